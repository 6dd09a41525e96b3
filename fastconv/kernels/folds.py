"""Reductions of vectors in memory, the inner loops of pooling, as LLVM code.

Written out in Numba, each such loop would be unrolled eightfold by LLVM, for windows that have two or three
cells: 2 s of compile time a kernel and no gain. And the maximum would become a chain of comparisons and
selections, of which each waits for the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.kernels.simd import (
    _I32,
    Vector,
    _call,
    _is_number,
    _pointer,
    _shuffle,
    _suffix,
    first_lanes,
    greater_int,
)

_WORD = ir.IntType(64)


# --- loops and loads ----------------------------------------------------------------------------


def _load(builder: Any, address: Any, like: Vector) -> Any:
    value = builder.load(_pointer(builder, address, like))
    value.align = like.bits // 8
    return value


def _load_part(builder: Any, address: Any, mask: Any, rest: Any, like: Vector) -> Any:
    arguments = [_pointer(builder, address, like), ir.Constant(_I32, like.bits // 8), mask, rest]
    return _call(builder, f"llvm.masked.load.{_suffix(like)}.p0", like.llvm, arguments)


def _load_strided(builder: Any, address: Any, step: Any, like: Vector) -> Any:
    vector = ir.Constant(like.llvm, ir.Undefined)
    for lane in range(like.lanes):
        element = builder.load(builder.inttoptr(address, like.element.as_pointer()))
        vector = builder.insert_element(vector, element, ir.Constant(_I32, lane))
        address = builder.add(address, step)
    return vector


def tap_value(builder: Any, address: Any, stride: int | Any, like: Vector) -> Any:
    """LLVM code for every `stride`-th element; 1 and 2 are Python ints, others LLVM values in bytes."""
    if stride == 1:
        return _load(builder, address, like)
    if stride == 2:
        behind = builder.add(address, ir.Constant(_WORD, like.lanes * like.bits // 8))
        low, high = _load(builder, address, like), _load(builder, behind, like)
        return _shuffle(builder, low, high, list(range(0, 2 * like.lanes, 2)))
    return _load_strided(builder, address, stride, like)


def loop(builder: Any, count: Any, start: list[Any], body: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """LLVM code that passes values through `body`, `count` times, and is not unrolled."""
    entry = builder.block
    head, inside, behind = (builder.append_basic_block(name) for name in ("head", "body", "behind"))
    builder.branch(head)
    builder.position_at_end(head)
    left = builder.phi(_WORD)
    left.add_incoming(count, entry)
    values = [builder.phi(value.type) for value in start]
    for value, first in zip(values, start, strict=True):
        value.add_incoming(first, entry)
    builder.cbranch(builder.icmp_signed(">", left, ir.Constant(_WORD, 0)), inside, behind)
    builder.position_at_end(inside)
    following = body(list(values))
    left.add_incoming(builder.sub(left, ir.Constant(_WORD, 1)), builder.block)
    for value, other in zip(values, following, strict=True):
        value.add_incoming(other, builder.block)
    back = builder.branch(head)
    module = builder.module
    disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    # what tells a loop from others is that its metadata names itself
    itself = ir.MDValue(module, [], str(len(module.metadata)))
    itself.operands = (itself, disable)
    back.set_metadata("llvm.loop", itself)
    builder.position_at_end(behind)
    return values


def choose(builder: Any, ways: list[tuple[Any, Callable[[], Any]]]) -> Any:
    """LLVM code for the value of the first of `ways` whose condition holds; the last one has none."""
    condition, way = ways[0]
    if condition is None:
        return way()
    with builder.if_else(condition) as (then, otherwise):
        with then:
            first, first_block = way(), builder.block
        with otherwise:
            second, second_block = choose(builder, ways[1:]), builder.block
    value = builder.phi(first.type)
    value.add_incoming(first, first_block)
    value.add_incoming(second, second_block)
    return value


# --- combining ----------------------------------------------------------------------------------


def _sum(builder: Any, like: Vector, total: Any, value: Any) -> Any:
    return builder.fadd(total, value)


def _larger(builder: Any, like: Vector, best: Any, value: Any) -> Any:
    if like.kind != "real":
        return builder.select(greater_int(builder, like, value, best), value, best)
    # x86's max gives its second operand, `best`, where either is NaN: so a NaN in `best` stays, and one in
    # `value` is put in. That it is another one keeps LLVM from merging both selections into one on a mask
    larger = builder.select(builder.fcmp_ordered(">", value, best), value, best)
    nan = ir.Constant(value.type, [float("nan")] * value.type.count)
    return builder.select(builder.fcmp_unordered("uno", value, value), nan, larger)


def _combiner(combine: Callable[[Any, Vector, Any, Any], Any]) -> Any:
    @intrinsic
    def two(typingctx: Any, a: Any, b: Any) -> Any:
        if a != b or not _is_number(a):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return combine(builder, a, *args)

        return a(a, b), codegen

    return two


def _square(builder: Any, like: Vector, value: Any) -> Any:
    return builder.fmul(value, value)


def _folder(
    combine: Callable[[Any, Vector, Any, Any], Any],
    prepare: Callable[[Any, Vector, Any], Any] = lambda builder, like, value: value,
) -> Any:
    @intrinsic
    def fold(
        typingctx: Any, source: Any, count: Any, step: Any, stride: Any, width: Any, neutral: Any
    ) -> Any:
        if not _is_number(neutral):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, count, step, stride, width, rest = args

            def number(value: int) -> Any:
                return ir.Constant(_WORD, value)

            def folded(cells: Callable[[Any], Any]) -> Callable[[], Any]:
                def tap(address: Any) -> Any:
                    return prepare(builder, neutral, cells(address))

                def body(values: list[Any]) -> list[Any]:
                    address = builder.add(values[0], step)
                    return [address, combine(builder, neutral, values[1], tap(address))]

                def whole() -> Any:
                    return loop(builder, builder.sub(count, number(1)), [source, tap(source)], body)[1]

                return whole

            mask = first_lanes(builder, width, neutral.lanes)
            apart = builder.mul(stride, number(neutral.bits // 8))
            ways = [
                (
                    builder.icmp_signed("<", width, number(neutral.lanes)),
                    folded(lambda address: _load_part(builder, address, mask, rest, neutral)),
                ),
                (
                    builder.icmp_signed("==", stride, number(1)),
                    folded(lambda address: tap_value(builder, address, 1, neutral)),
                ),
                (
                    builder.icmp_signed("==", stride, number(2)),
                    folded(lambda address: tap_value(builder, address, 2, neutral)),
                ),
                (None, folded(lambda address: tap_value(builder, address, apart, neutral))),
            ]
            return choose(builder, ways)

        return neutral(*[types.int64] * 5, neutral), codegen

    return fold


#: larger(a, b): the larger of each pair; NaN where either is NaN.
larger = _combiner(_larger)

#: fold(source, count, step, stride, width, neutral): `count` vectors combined, at least one. The first is at
#: `source`, each `step` bytes behind the one before, and has every `stride`-th element. Where there are but
#: `width` of them, less than a vector, the others are those of `neutral`; the stride is 1 then.
fold_sum = _folder(_sum)
fold_squares = _folder(_sum, _square)
fold_largest = _folder(_larger)
