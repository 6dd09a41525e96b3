"""Convolution of 8-bit integers, exact, and the step back to 8 bits.

With its zero point taken off, an 8-bit number fits in 16 bits, and the product of two in 32. CPUs multiply
16-bit numbers in pairs, a0 * b0 + a1 * b1 in each 32-bit lane, twice as many as they multiply reals: so the
numbers of a panel lie in pairs along the depth (input channel and kernel cell), two to a lane::

        A panel: ROWS rows of weight              B panel: the windows of `panel` pixels, side by side

        pair 0   a0,a1 of row 0 | of row 1 | ..   pair 0   b0,b1 of pixel 0 | of pixel 1 | ..
        pair 1   a2,a3 of row 0 | ..              pair 1   b2,b3 of pixel 0 | ..

    for each tile of VECTORS vectors of pixels        a unit, with some of the output channels: packed, in L2
        for each panel of ROWS rows of weight         packed before
            tile of y += A panel x B panel

The sums wrap around at 32 bits, as int32 has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.jit import SIGNED, fields, ints, kernel, reals, record
from fastconv.kernels.microkernel import ROWS, VECTORS, Tile
from fastconv.kernels.simd import FEATURES, LANES, Vector, _call


def _pair_instruction() -> str | None:
    """LLVM's name of the instruction that multiplies pairs; None where it must be put together.

    LLVM itself recognises it, but not where an operand is used more than once, as in a tile.
    """
    for lanes, feature, name in (
        (16, "avx512bw", "llvm.x86.avx512.pmaddw.d.512"),
        (8, "avx2", "llvm.x86.avx2.pmadd.wd"),
        (4, "sse4.2", "llvm.x86.sse2.pmadd.wd"),
    ):
        if LANES[32] == lanes and feature in FEATURES:
            return name
    return None


_PAIRS = _pair_instruction()

#: What `reals` calls these.
INT8, INT16, INT32 = SIGNED + 8, SIGNED + 16, SIGNED + 32

CONV_INTEGER = record(
    # addresses: x in 16 bits between zeros, the packed weight, y in 32 bits, a task's scratch and its size
    "x weight y scratch scratch_bytes "
    # tables of int64: from a window's first cell to that of each number, pixel to its window's first cell
    "cells windows "
    # elements of x from image to image, and from group to group
    "x_n x_group "
    # panels of a group's weight, and the bytes of one; output channels of a group
    "panels panel_bytes rows pairs images groups pixels parts "
    # how many pixels after each other have their windows side by side in x
    "run"
)

REQUANTIZE = record(
    # addresses: sums in 32 bits, y in 8 bits; per output channel a bias in int64 and a factor in float64
    "sums y biases factors "
    # planes of y, and which of them share a channel
    "planes channels pixels zero_point lowest highest"
)


class _PairTile(Tile):
    """A tile of int32 sums of products of pairs of 16-bit numbers."""

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """c + a0 * b0 + a1 * b1, a pair to a lane."""
        builder, lanes = self.builder, self.like.lanes
        halves = ir.VectorType(ir.IntType(16), 2 * lanes)
        pair = [builder.bitcast(value, halves) for value in (a, b)]
        if (
            _PAIRS is not None
        ):  # with the sum in one instruction on CPUs that have that (VNNI), LLVM sees to it
            return builder.add(c, _call(builder, _PAIRS, self.like.llvm, pair))
        total = None
        for first in (0, 1):
            places = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(first, 2 * lanes, 2)))
            wide = [
                builder.sext(builder.shuffle_vector(value, value, places), self.like.llvm) for value in pair
            ]
            product = builder.mul(*wide)
            total = product if total is None else builder.add(total, product)
        return builder.add(c, total)


class _Pairs:
    """Operands of `multiply_pairs`: two packed panels."""

    def __init__(self, tile: Tile, a: Any, b: Any) -> None:
        self.tile, self.a, self.panel = tile, a, b
        self.panel_step = VECTORS * tile.vector_bytes

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """A's pairs number k, each in all lanes, and the vectors of B's."""
        tile = self.tile
        column = tile.builder.add(self.a, tile.builder.mul(k, tile.word(ROWS * tile.element_bytes)))
        pairs = [tile.broadcast(column, row * tile.element_bytes) for row in range(ROWS)]
        return pairs, tile.vectors_at(panel)


@intrinsic(prefer_literal=True)
def multiply_pairs(typingctx: Any, a: Any, b: Any, pairs: Any, c: Any, c_row: Any, vectors: Any) -> Any:
    """C tile = A panel x B panel, of which the first `vectors` vectors; C's rows are `c_row` bytes apart."""
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    count, like = vectors.literal_value, Vector("int", 32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, pairs, c, c_row = args[:5]
        tile = _PairTile(builder, like, count)
        rows = tile.rows(c, c_row)
        initial = [ir.Constant(like.llvm, None)] * len(tile.cells)
        tile.store(rows, tile.loop(_Pairs(tile, a, b), pairs, initial))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, vectors), codegen


@kernel(CONV_INTEGER, ints=True)
def conv_integer(bits):
    """y = conv(x, weight). A unit is a tile of pixels of one image, one group and a part of its panels."""
    panel = VECTORS * LANES[32]
    vector = LANES[32]

    def conv_integer(params, t, tasks):
        p = fields(params, CONV_INTEGER)
        x, y = reals(p.x, INT16), reals(p.y, INT32)
        cells, windows = ints(p.cells), ints(p.windows)
        b = p.scratch + t * p.scratch_bytes
        packed = reals(b, INT32)
        spare = b + p.pairs * panel * 4
        sums = reals(spare, INT32)
        tiles = (p.pixels + panel - 1) // panel
        units = p.parts * p.images * p.groups * tiles
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            rest, tile = divmod(unit, tiles)
            rest, group = divmod(rest, p.groups)
            part, n = divmod(rest, p.images)
            first = tile * panel
            count = min(panel, p.pixels - first)
            base = n * p.x_n + group * p.x_group
            for pair in range(p.pairs):
                one, other = base + cells[2 * pair], base + cells[2 * pair + 1]
                place = pair * panel
                i = 0
                while i < count and p.run > 1:
                    # windows side by side: LLVM moves whole vectors
                    run = min(p.run - (first + i) % p.run, count - i)
                    start = windows[first + i]
                    for j in range(run):
                        cell = start + j
                        packed[place + i + j] = x[one + cell] & 0xFFFF | x[other + cell] << 16
                    i += run
                for j in range(i, count):
                    cell = windows[first + j]
                    packed[place + j] = x[one + cell] & 0xFFFF | x[other + cell] << 16
            for k in range(part * p.panels // p.parts, (part + 1) * p.panels // p.parts):
                a = p.weight + (group * p.panels + k) * p.panel_bytes
                height = min(ROWS, p.rows - k * ROWS)
                cell = ((n * p.groups + group) * p.rows + k * ROWS) * p.pixels + first
                c, c_row = p.y + cell * 4, p.pixels * 4
                whole = count == panel and height == ROWS
                if not whole:
                    c, c_row = spare, panel * 4
                if count > 2 * vector:
                    multiply_pairs(a, b, p.pairs, c, c_row, 3)
                elif count > vector:
                    multiply_pairs(a, b, p.pairs, c, c_row, 2)
                else:
                    multiply_pairs(a, b, p.pairs, c, c_row, 1)
                if not whole:
                    for row in range(height):
                        for i in range(count):
                            y[cell + row * p.pixels + i] = sums[row * panel + i]

    return conv_integer


@kernel(REQUANTIZE, ints=True)
def requantize(bits):
    """y = (sums + bias) * factor, rounded half to even, plus the zero point, saturated. A unit is a plane."""

    def requantize(params, t, tasks):
        p = fields(params, REQUANTIZE)
        sums, y = reals(p.sums, INT32), reals(p.y, INT8)
        biases, factors = ints(p.biases), reals(p.factors, 64)
        low, high = float(p.lowest - p.zero_point), float(p.highest - p.zero_point)
        for plane in range(t * p.planes // tasks, (t + 1) * p.planes // tasks):
            bias, factor = biases[plane % p.channels], factors[plane % p.channels]
            for i in range(plane * p.pixels, (plane + 1) * p.pixels):
                value = min(max(float(sums[i] + bias) * factor, low), high)
                y[i] = np.int64(np.rint(value)) + p.zero_point

    return requantize
