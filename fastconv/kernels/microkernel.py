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

from typing import Any, Protocol

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.kernels.simd import (
    HAS_FMA,
    REGISTERS,
    Vector,
    first_lanes,
    masked_load,
    masked_store,
    splat_value,
)

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
        a, b, offsets, depth, c, c_row, start, bias, least = args[:9]
        tile = Tile(builder, like, count)
        rows = tile.rows(c, c_row)
        initial = tile.begin(rows, start, bias)
        tile.store(rows, tile.loop(_Panel(tile, a, b, offsets), depth, initial), least)
        return context.get_dummy_value()

    arguments = [address] * 8 + [real, vectors, like]
    return types.void(*arguments), codegen


@intrinsic(prefer_literal=True)
def multiply_rows(
    typingctx: Any,
    a_rows: Any,
    offsets: Any,
    b: Any,
    depth: Any,
    c: Any,
    c_row: Any,
    start: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """C tile = start + A x B panel, where A's rows lie anywhere, and B's panel is packed.

    `a_rows` is a table of the addresses of A's ROWS rows, `offsets` one of the bytes from there to the real
    for each k, the same for all rows; both in int64. `start` is ZERO or LOAD. Else as `multiply_tile`.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count = vectors.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a_rows, offsets, b, depth, c, c_row, start = args[:7]
        tile = Tile(builder, like, count)
        rows = tile.rows(c, c_row)
        initial = tile.begin(rows, start)
        tile.store(rows, tile.loop(_Rows(tile, a_rows, offsets, b), depth, initial))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, vectors, like), codegen


@intrinsic(prefer_literal=True)
def multiply_pixels(
    typingctx: Any,
    a_rows: Any,
    a_skip: Any,
    taps: Any,
    depth: Any,
    b: Any,
    c_rows: Any,
    c_skip: Any,
    start: Any,
    bias: Any,
    least: Any,
    last: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """C tile = start + sum over taps of A x B panel, where A's and C's rows lie anywhere.

    `a_rows` is a table of the addresses of A's ROWS rows for each of `taps` taps, `c_rows` one of C's rows;
    `a_skip` and `c_skip` bytes are added to them. A row is `depth` reals, one after the other. B's panel is
    packed, `taps` x `depth` rows. `bias` is the address of a real per column. Of the last vector of a row
    of C, and of bias, only `last` lanes are read and written. Else as `multiply_tile`.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count = vectors.literal_value
    real = types.float32 if like.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a_rows, a_skip, taps, depth, b, c_rows, c_skip, start, bias, least, last = args[:11]
        tile = Tile(builder, like, count, last)
        rows = [builder.add(tile.word_at(c_rows, tile.word(row)), c_skip) for row in range(ROWS)]
        initial = tile.begin(rows, start, bias, bias_per_row=False)
        tile.store(rows, tile.loop_over_taps(a_rows, a_skip, taps, depth, b, initial), least)
        return context.get_dummy_value()

    arguments = [types.int64] * 9 + [real, types.int64, vectors, like]
    return types.void(*arguments), codegen


@intrinsic(prefer_literal=True)
def multiply_seen(
    typingctx: Any,
    a: Any,
    a_skip: Any,
    b: Any,
    depth: Any,
    c: Any,
    c_row: Any,
    start: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """C tile = start + A x B panel, where A's columns lie anywhere, and B's panel is packed.

    `a` is a table of the addresses of A's columns, each ROWS reals one after the other, to which `a_skip`
    bytes are added; in int64. `start` is ZERO or LOAD. Else as `multiply_tile`.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count = vectors.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_skip, b, depth, c, c_row, start = args[:7]
        tile = Tile(builder, like, count)
        rows = tile.rows(c, c_row)
        initial = tile.begin(rows, start)
        tile.store(rows, tile.loop(_Seen(tile, a, a_skip, b), depth, initial))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, vectors, like), codegen


@intrinsic(prefer_literal=True)
def multiply_blocks(
    typingctx: Any, a: Any, b: Any, depth: Any, c: Any, c_row: Any, start: Any, vectors: Any, like: Any
) -> Any:
    """C tile = start + A x B panel, where A's columns are parts of a packed block, and B's panel is packed.

    Column k begins at `a`, k times `block_lanes` reals on. `start` is ZERO or LOAD. Else as `multiply_tile`.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count = vectors.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, depth, c, c_row, start = args[:6]
        tile = Tile(builder, like, count)
        rows = tile.rows(c, c_row)
        initial = tile.begin(rows, start)
        tile.store(rows, tile.loop(_Blocks(tile, a, b), depth, initial))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, vectors, like), codegen


def block_lanes(lanes: int) -> int:
    """Reals of a column of A's blocks: whole vectors, and whole columns of a tile.

    >>> block_lanes(2 * ROWS) == 2 * ROWS, block_lanes(1) == ROWS
    (True, True)
    """
    return max(ROWS, lanes)


class Tile:
    """Writes the code of one tile; of whole vectors, or with the last one of each row cut to `last` lanes."""

    def __init__(self, builder: Any, like: Vector, vectors: int, last: Any = None) -> None:
        self.builder, self.like, self.vectors = builder, like, vectors
        self.mask = None if last is None else first_lanes(builder, last, like.lanes)
        self.cells = [(row, column) for row in range(ROWS) for column in range(vectors)]
        self.element_bytes = like.bits // 8
        self.vector_bytes = like.lanes * self.element_bytes

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, lane by lane."""
        name = f"llvm.{'fma' if HAS_FMA else 'fmuladd'}.v{self.like.lanes}f{self.like.bits}"
        kind = ir.FunctionType(self.like.llvm, [self.like.llvm] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [a, b, c])

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

    def vectors_at(self, address: Any) -> list[Any]:
        """As many vectors as the tile is wide."""
        return [self.load(address, column * self.vector_bytes) for column in range(self.vectors)]

    def word_at(self, table: Any, index: Any) -> Any:
        """An entry of a table of int64."""
        pointer = self.builder.inttoptr(table, ir.IntType(64).as_pointer())
        return self.builder.load(self.builder.gep(pointer, [index]))

    def rows(self, c: Any, c_row: Any) -> list[Any]:
        """The addresses of C's rows."""
        return [self.builder.add(c, self.builder.mul(c_row, self.word(row))) for row in range(ROWS)]

    def is_cut(self, column: int) -> bool:
        return self.mask is not None and column == self.vectors - 1

    def load_column(self, row: Any, column: int) -> Any:
        """A vector of a row of C."""
        if not self.is_cut(column):
            return self.load(row, column * self.vector_bytes)
        return masked_load(
            self.builder, self.at(row, column * self.vector_bytes, self.like.llvm), self.mask, self.like
        )

    def begin(self, rows: list[Any], start: Any, bias: Any = None, bias_per_row: bool = True) -> list[Any]:
        """The accumulators before the first multiply-add, by the kind of start; without `bias` not BIAS.

        A bias is a real per row, or per column.
        """
        builder = self.builder
        at_load = builder.append_basic_block("start.load")
        at_zero = builder.append_basic_block("start.zero")
        ready = builder.append_basic_block("start.ready")
        switch = builder.switch(start, at_zero)
        switch.add_case(self.word(LOAD), at_load)
        starts = []

        builder.position_at_end(at_load)
        loaded = [self.load_column(rows[row], column) for row, column in self.cells]
        builder.branch(ready)
        starts.append((at_load, loaded))
        builder.position_at_end(at_zero)
        builder.branch(ready)
        starts.append((at_zero, [ir.Constant(self.like.llvm, None)] * len(self.cells)))
        if bias is not None:
            at_bias = builder.append_basic_block("start.bias")
            switch.add_case(self.word(BIAS), at_bias)
            builder.position_at_end(at_bias)
            if bias_per_row:
                biases = [self.broadcast(bias, row * self.element_bytes) for row in range(ROWS)]
            else:
                biases = [self.load_column(bias, column) for column in range(self.vectors)]
            builder.branch(ready)
            starts.append((at_bias, [biases[row if bias_per_row else column] for row, column in self.cells]))

        builder.position_at_end(ready)
        initial = [builder.phi(self.like.llvm) for _ in self.cells]
        for block, values in starts:
            for phi, value in zip(initial, values, strict=True):
                phi.add_incoming(value, block)
        return initial

    def loop_over_taps(
        self, a_rows: Any, a_skip: Any, taps: Any, depth: Any, b: Any, initial: list[Any]
    ) -> list[Any]:
        """`loop` for each tap, with the rows of A that a table has for it."""
        builder = self.builder
        before = builder.block
        body = builder.append_basic_block("tap")
        after = builder.append_basic_block("taps")
        step = builder.mul(depth, self.word(self.vectors * self.vector_bytes))
        builder.branch(body)

        builder.position_at_end(body)
        tap = builder.phi(ir.IntType(64))
        panel = builder.phi(ir.IntType(64))
        sums = [builder.phi(self.like.llvm) for _ in self.cells]
        first = builder.mul(tap, self.word(ROWS))
        rows = [
            builder.add(self.word_at(a_rows, builder.add(first, self.word(row))), a_skip)
            for row in range(ROWS)
        ]
        totals = self.loop(_Pixels(self, rows, panel), depth, sums)

        end = builder.block
        next_tap = builder.add(tap, self.word(1))
        for phi, start, following in (
            (tap, self.word(0), next_tap),
            (panel, b, builder.add(panel, step)),
            *zip(sums, initial, totals, strict=True),
        ):
            phi.add_incoming(start, before)
            phi.add_incoming(following, end)
        builder.cbranch(builder.icmp_signed("<", next_tap, taps), body, after)
        builder.position_at_end(after)
        return totals

    def loop(self, operands: Operands, depth: Any, initial: list[Any]) -> list[Any]:
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
        panel.add_incoming(operands.panel, before)
        for phi, value in zip(sums, initial, strict=True):
            phi.add_incoming(value, before)

        reals, columns = operands.read(k, panel)
        totals = [
            self.multiply_add(reals[row], columns[column], total)
            for (row, column), total in zip(self.cells, sums, strict=True)
        ]

        next_k = builder.add(k, self.word(1))
        k.add_incoming(next_k, body)
        panel.add_incoming(builder.add(panel, self.word(operands.panel_step)), body)
        for phi, total in zip(sums, totals, strict=True):
            phi.add_incoming(total, body)
        builder.cbranch(builder.icmp_signed("<", next_k, depth), body, after)
        builder.position_at_end(after)
        return totals

    def store(self, rows: list[Any], sums: list[Any], least: Any = None) -> None:
        builder = self.builder
        if least is not None:
            bound = splat_value(builder, least, self.like)
            sums = [builder.select(builder.fcmp_ordered("<", s, bound), bound, s) for s in sums]
        for (row, column), total in zip(self.cells, sums, strict=True):
            place = self.at(rows[row], column * self.vector_bytes, self.like.llvm)
            if self.is_cut(column):
                masked_store(builder, total, place, self.mask, self.like)
            else:
                builder.store(total, place).align = self.element_bytes


class Operands(Protocol):
    """What `Tile.loop` multiplies."""

    #: what changes from step to step, and by how many bytes
    panel: Any
    panel_step: int

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """What to multiply in step k: a vector for each row of the tile, and one for each column."""


class _Panel:
    """Operands of `multiply_tile`: A is a packed panel, B's rows are found by a table."""

    def __init__(self, tile: Tile, a: Any, b: Any, offsets: Any) -> None:
        self.tile, self.panel, self.b, self.offsets = tile, a, b, offsets
        self.panel_step = ROWS * tile.element_bytes

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """A's reals of column k, in all lanes, and the vectors of B's row k."""
        tile = self.tile
        columns = tile.vectors_at(tile.builder.add(self.b, tile.word_at(self.offsets, k)))
        return [tile.broadcast(panel, row * tile.element_bytes) for row in range(ROWS)], columns


class _Rows:
    """Operands of `multiply_rows`: A's rows and columns are found by tables, B is a packed panel."""

    def __init__(self, tile: Tile, a_rows: Any, offsets: Any, b: Any) -> None:
        self.tile, self.panel, self.offsets = tile, b, offsets
        self.panel_step = tile.vectors * tile.vector_bytes
        self.a_rows = [tile.word_at(a_rows, tile.word(row)) for row in range(ROWS)]

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """As `_Panel.read`."""
        tile = self.tile
        columns = tile.vectors_at(panel)
        offset = tile.word_at(self.offsets, k)
        return [tile.broadcast(tile.builder.add(row, offset), 0) for row in self.a_rows], columns


class _Seen:
    """Operands of `multiply_seen`: A's columns are found by a table, B is a packed panel."""

    def __init__(self, tile: Tile, a: Any, a_skip: Any, b: Any) -> None:
        self.tile, self.a, self.a_skip, self.panel = tile, a, a_skip, b
        self.panel_step = tile.vectors * tile.vector_bytes

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """As `_Panel.read`."""
        tile = self.tile
        columns = tile.vectors_at(panel)
        column = tile.builder.add(tile.word_at(self.a, k), self.a_skip)
        return [tile.broadcast(column, row * tile.element_bytes) for row in range(ROWS)], columns


class _Blocks:
    """Operands of `multiply_blocks`: A's columns are parts of longer ones, B is a packed panel."""

    def __init__(self, tile: Tile, a: Any, b: Any) -> None:
        self.tile, self.a, self.panel = tile, a, b
        self.panel_step = tile.vectors * tile.vector_bytes

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """As `_Panel.read`."""
        tile = self.tile
        columns = tile.vectors_at(panel)
        step = tile.word(block_lanes(tile.like.lanes) * tile.element_bytes)
        column = tile.builder.add(self.a, tile.builder.mul(k, step))
        return [tile.broadcast(column, row * tile.element_bytes) for row in range(ROWS)], columns


class _Pixels:
    """Operands of `multiply_pixels`: A's rows are contiguous, B is a packed panel."""

    def __init__(self, tile: Tile, rows: list[Any], b: Any) -> None:
        self.tile, self.rows, self.panel = tile, rows, b
        self.panel_step = tile.vectors * tile.vector_bytes

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """As `_Panel.read`."""
        tile = self.tile
        columns = tile.vectors_at(panel)
        offset = tile.builder.mul(k, tile.word(tile.element_bytes))
        return [tile.broadcast(tile.builder.add(row, offset), 0) for row in self.rows], columns
