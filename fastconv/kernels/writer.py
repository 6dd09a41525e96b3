"""Writing LLVM code for kernels that are unrolled by numbers known when they are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.kernels.simd import HAS_FMA, Vector, splat_value

_WORD = ir.IntType(64)
_I32 = ir.IntType(32)


class Writer:
    """Appends instructions on vectors of the type `like` to a function; addresses are int64, in bytes."""

    def __init__(self, builder: Any, like: Vector) -> None:
        self.builder, self.like = builder, like
        self.element_bytes = like.bits // 8
        self.vector_bytes = like.lanes * self.element_bytes
        self.zero = ir.Constant(like.llvm, None)
        self._kind = f"v{like.lanes}f{like.bits}"
        self._align = ir.Constant(_I32, self.element_bytes)

    # --- ints ---

    def word(self, value: int) -> Any:
        return ir.Constant(_WORD, value)

    def sum(self, *terms: Any) -> Any:
        """Of ints, those of Python among them as constants."""
        total = self._word_of(terms[0])
        for term in terms[1:]:
            if term != 0:
                total = self.builder.add(total, self._word_of(term))
        return total

    def product(self, a: Any, b: Any) -> Any:
        return self.builder.mul(self._word_of(a), self._word_of(b))

    def _word_of(self, value: Any) -> Any:
        return self.word(value) if isinstance(value, int) else value

    def is_below(self, value: Any, limit: Any) -> Any:
        """Whether 0 <= value < limit: negative numbers are large unsigned ones."""
        return self.builder.icmp_unsigned("<", value, limit)

    def word_at(self, table: Any, index: Any) -> Any:
        """An entry of a table of int64."""
        pointer = self.builder.inttoptr(table, _WORD.as_pointer())
        return self.builder.load(self.builder.gep(pointer, [self._word_of(index)]))

    # --- vectors ---

    def _at(self, address: Any, kind: ir.Type) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def _call(self, name: str, result: ir.Type, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def fma(self, a: Any, b: Any, total: Any) -> Any:
        """a * b + total."""
        name = f"llvm.{'fma' if HAS_FMA else 'fmuladd'}.{self._kind}"
        return self._call(name, self.like.llvm, [a, b, total])

    def splat(self, value: Any) -> Any:
        return splat_value(self.builder, value, self.like)

    def broadcast(self, address: Any) -> Any:
        """A real from memory in every lane."""
        return self.splat(self.builder.load(self._at(address, self.like.element)))

    def load(self, address: Any, mask: Any = None) -> Any:
        """A vector; lanes that are not in the mask are zeros, and their memory is not touched."""
        pointer = self._at(address, self.like.llvm)
        if mask is None:
            value = self.builder.load(pointer)
            value.align = self.element_bytes
            return value
        name = f"llvm.masked.load.{self._kind}.p0"
        return self._call(name, self.like.llvm, [pointer, self._align, mask, self.zero])

    def store(self, address: Any, value: Any, mask: Any = None) -> None:
        pointer = self._at(address, self.like.llvm)
        if mask is None:
            self.builder.store(value, pointer).align = self.element_bytes
        else:
            name = f"llvm.masked.store.{self._kind}.p0"
            self._call(name, ir.VoidType(), [value, pointer, self._align, mask])

    def lanes_below(self, first: Any, limit: Any) -> Any:
        """The mask of the lanes whose cell, the first lane's being `first`, is at least 0 and below `limit`.

        A limit below 0 is none.
        """
        lanes = self.like.lanes
        none = self.word(0)
        limit = self.builder.select(self.builder.icmp_signed("<", limit, none), none, limit)
        numbers = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
        cells = self.builder.add(self._splat_i32(first), numbers)
        return self.builder.icmp_unsigned("<", cells, self._splat_i32(limit))

    def _splat_i32(self, value: Any) -> Any:
        kind = ir.VectorType(_I32, self.like.lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        small = self.builder.trunc(value, _I32)
        one = self.builder.insert_element(undefined, small, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(kind, [0] * self.like.lanes))

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))

    def unzip(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Of two vectors in a row, the even lanes and the odd ones."""
        lanes = 2 * self.like.lanes
        return self.shuffle(a, b, list(range(0, lanes, 2))), self.shuffle(a, b, list(range(1, lanes, 2)))

    def zip(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Lanes of both in turn, the inverse of `unzip`."""
        lanes = self.like.lanes
        order = [i // 2 + i % 2 * lanes for i in range(2 * lanes)]
        return self.shuffle(a, b, order[:lanes]), self.shuffle(a, b, order[lanes:])

    def total(self, value: Any) -> Any:
        """The sum of the lanes, in halves."""
        lanes = self.like.lanes
        while lanes > 1:
            lanes //= 2
            order = [i + lanes if i < lanes else i for i in range(self.like.lanes)]
            value = self.builder.fadd(value, self.shuffle(value, value, order))
        return self.builder.extract_element(value, ir.Constant(_I32, 0))

    # --- control ---

    def when(self, condition: Any, values: list[Any], change: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """`change(values)` where `condition` holds, else the values as they are."""
        builder = self.builder
        before = builder.block
        then = builder.append_basic_block("then")
        after = builder.append_basic_block("after")
        builder.cbranch(condition, then, after)
        builder.position_at_end(then)
        changed = change(values)
        last = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        merged = []
        for old, new in zip(values, changed, strict=True):
            phi = builder.phi(old.type)
            phi.add_incoming(old, before)
            phi.add_incoming(new, last)
            merged.append(phi)
        return merged

    @contextmanager
    def only_when(self, condition: Any) -> Iterator[None]:
        """What is written inside is done where `condition` holds."""
        with self.builder.if_then(condition):
            yield

    def loop(self, count: Any, initial: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """`values = body(i, values)` for i in [0, count), count at least 1; the values after the last."""
        builder = self.builder
        before = builder.block
        start = builder.append_basic_block("loop")
        end = builder.append_basic_block("looped")
        builder.branch(start)
        builder.position_at_end(start)
        index = builder.phi(_WORD)
        index.add_incoming(self.word(0), before)
        phis = []
        for value in initial:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        values = body(index, phis)
        last = builder.block
        following = builder.add(index, self.word(1))
        index.add_incoming(following, last)
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, last)
        builder.cbranch(builder.icmp_signed("<", following, count), start, end)
        builder.position_at_end(end)
        return values
