"""The GEMM micro-kernel: a small tile of a matrix product, held in registers.

Every fast convolution here ends in products of packed panels::

        A panel: ROWS rows of A, one          B panel: `vectors` vectors of columns of B,
        column of them after the other        one row of them anywhere (offsets[k] bytes on)

        k=0   a00 a10 a20 ... a70             k=0   | b00 b01 ... b0L | ... |
        k=1   a01 a11 a21 ... a71             k=1   | b10 b11 ... b1L | ... |
        k=2   a02 a12 a22 ... a72             k=2   | b20 b21 ... b2L | ... |
          :                                     :

        C tile += A panel x B panel           row i: | ci0 ci1 ... ciL | ... |   rows c_row bytes apart

For each k the kernel loads the vectors of B's row once, broadcasts each of the ROWS reals of A's column,
and does ROWS x `vectors` fused multiply-adds into accumulators that never leave the registers.

Why 8 x 3 with 32 registers (AVX-512, NEON): 24 accumulators and 3 vectors of B leave 5; the broadcast is
folded into the multiply-add as a memory operand. Per k that is 24 multiply-adds against 3 vector loads and
8 broadcast loads, 0.46 loads each: below the one load per multiply-add that the load ports give, with
24 independent chains, more than the 4 cycles x 2 units that hide the latency of a multiply-add.
Why 4 x 3 with 16 registers (AVX2, SSE): 12 accumulators, 3 of B, 1 for the broadcast: all 16.
Fewer vectors (the tails of a row of panels) keep ROWS, so that A's panels have one shape.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.kernels.simd import HAS_FMA, REGISTERS, Vector, splat_value

#: Rows of a tile, for every dtype.
ROWS = 8 if REGISTERS >= 32 else 4
#: Most vectors of a tile's row.
VECTORS = 3

#: How a tile begins: at zero, at what C holds, or at a bias per row.
ZERO, LOAD, BIAS = 0, 1, 2


@intrinsic(prefer_literal=True)
def multiply_tile(
    typingctx: Any,
    a: Any,
    b: Any,
    offsets: Any,
    depth: Any,
    c: Any,
    c_row: Any,
    start: Any,
    bias: Any,
    least: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """C tile = start + A panel x B panel, and no less than `least`.

    a, b, c, offsets and bias are addresses and c_row is in bytes; `offsets` is a table of the byte offsets of
    B's rows, in int64; `depth` is at least 1. `least` is a real, minus infinity for no lower bound; a NaN
    stays. `vectors` is a constant from 1 to VECTORS, `like` a vector of the dtype.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count = vectors.literal_value
    real = types.float32 if like.bits == 32 else types.float64
    address = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _Tile(builder, like, count).emit(*args[:9])
        return context.get_dummy_value()

    arguments = [address] * 8 + [real, vectors, like]
    return types.void(*arguments), codegen


class _Tile:
    """Writes the code of one tile."""

    def __init__(self, builder: Any, like: Vector, vectors: int) -> None:
        self.builder, self.like, self.vectors = builder, like, vectors
        self.cells = [(row, column) for row in range(ROWS) for column in range(vectors)]
        self.element_bytes = like.bits // 8
        self.vector_bytes = like.lanes * self.element_bytes
        name = f"llvm.{'fma' if HAS_FMA else 'fmuladd'}.v{like.lanes}f{like.bits}"
        kind = ir.FunctionType(like.llvm, [like.llvm] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, kind, name)

    def word(self, value: int) -> Any:
        return ir.Constant(ir.IntType(64), value)

    def at(self, address: Any, offset: int, kind: ir.Type) -> Any:
        """A pointer to `kind`, `offset` bytes after `address`."""
        moved = self.builder.add(address, self.word(offset)) if offset else address
        return self.builder.inttoptr(moved, kind.as_pointer())

    def load(self, address: Any, offset: int) -> Any:
        value = self.builder.load(self.at(address, offset, self.like.llvm))
        value.align = self.element_bytes
        return value

    def broadcast(self, address: Any, offset: int) -> Any:
        real = self.builder.load(self.at(address, offset, self.like.element))
        return splat_value(self.builder, real, self.like)

    def emit(
        self, a: Any, b: Any, offsets: Any, depth: Any, c: Any, c_row: Any, start: Any, bias: Any, least: Any
    ) -> None:
        builder = self.builder
        rows = [builder.add(c, builder.mul(c_row, self.word(row))) for row in range(ROWS)]
        initial = self.begin(rows, start, bias)
        sums = self.loop(a, b, offsets, depth, initial)
        bound = splat_value(builder, least, self.like)
        for (row, column), total in zip(self.cells, sums, strict=True):
            below = builder.fcmp_ordered("<", total, bound)
            clipped = builder.select(below, bound, total)
            place = self.at(rows[row], column * self.vector_bytes, self.like.llvm)
            builder.store(clipped, place).align = self.element_bytes

    def begin(self, rows: list[Any], start: Any, bias: Any) -> list[Any]:
        """The accumulators before the first multiply-add, by the kind of start."""
        builder = self.builder
        at_load = builder.append_basic_block("start.load")
        at_bias = builder.append_basic_block("start.bias")
        at_zero = builder.append_basic_block("start.zero")
        ready = builder.append_basic_block("start.ready")
        switch = builder.switch(start, at_zero)
        switch.add_case(self.word(LOAD), at_load)
        switch.add_case(self.word(BIAS), at_bias)

        builder.position_at_end(at_load)
        loaded = [self.load(rows[row], column * self.vector_bytes) for row, column in self.cells]
        builder.branch(ready)
        builder.position_at_end(at_bias)
        biases = [self.broadcast(bias, row * self.element_bytes) for row in range(ROWS)]
        builder.branch(ready)
        builder.position_at_end(at_zero)
        builder.branch(ready)

        builder.position_at_end(ready)
        zero = ir.Constant(self.like.llvm, None)
        initial = []
        for (row, _), value in zip(self.cells, loaded, strict=True):
            phi = builder.phi(self.like.llvm)
            phi.add_incoming(value, at_load)
            phi.add_incoming(biases[row], at_bias)
            phi.add_incoming(zero, at_zero)
            initial.append(phi)
        return initial

    def loop(self, a: Any, b: Any, offsets: Any, depth: Any, initial: list[Any]) -> list[Any]:
        """The multiply-adds; the accumulators after the last."""
        builder = self.builder
        before = builder.block
        body = builder.append_basic_block("multiply")
        after = builder.append_basic_block("multiplied")
        builder.branch(body)

        builder.position_at_end(body)
        k = builder.phi(ir.IntType(64))
        panel = builder.phi(ir.IntType(64))
        sums = [builder.phi(self.like.llvm) for _ in self.cells]
        k.add_incoming(self.word(0), before)
        panel.add_incoming(a, before)
        for phi, value in zip(sums, initial, strict=True):
            phi.add_incoming(value, before)

        table = builder.inttoptr(offsets, ir.IntType(64).as_pointer())
        b_row = builder.add(b, builder.load(builder.gep(table, [k])))
        columns = [self.load(b_row, column * self.vector_bytes) for column in range(self.vectors)]
        reals = [self.broadcast(panel, row * self.element_bytes) for row in range(ROWS)]
        totals = [
            builder.call(self.fma, [reals[row], columns[column], total])
            for (row, column), total in zip(self.cells, sums, strict=True)
        ]

        next_k = builder.add(k, self.word(1))
        k.add_incoming(next_k, body)
        panel.add_incoming(builder.add(panel, self.word(ROWS * self.element_bytes)), body)
        for phi, total in zip(sums, totals, strict=True):
            phi.add_incoming(total, body)
        builder.cbranch(builder.icmp_signed("<", next_k, depth), body, after)
        builder.position_at_end(after)
        return totals
