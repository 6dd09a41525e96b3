"""The micro-kernel for products of rows by rows: vectors of both matrices, and none of them packed.

    C (ROWS, vectors) = A (ROWS, depth) x B' (depth, vectors)    depth in vectors, every sum one of its own

Per step there are ROWS + `vectors` loads for ROWS x `vectors` multiply-adds, 11 for 24 with 32 registers:
still below the one load per multiply-add that the load ports give.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.kernels.microkernel import ROWS, Operands, Tile
from fastconv.kernels.simd import Vector


@intrinsic(prefer_literal=True)
def multiply_dots(
    typingctx: Any,
    a_rows: Any,
    b_rows: Any,
    depth: Any,
    c: Any,
    c_row: Any,
    start: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """C tile = start + A x B', where the rows of both lie anywhere and the sums are left in their lanes.

    `a_rows` and `b_rows` are tables of the addresses of ROWS and of `vectors` rows, in int64; `depth` counts
    vectors of them, at least one. Each cell of C is a vector, whose lanes add up to the dot product.
    `start` is ZERO or LOAD. Else as `multiply_tile`.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count = vectors.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a_rows, b_rows, depth, c, c_row, start = args[:6]
        tile = Tile(builder, like, count)
        rows = tile.rows(c, c_row)
        initial = tile.begin(rows, start)
        tile.store(rows, tile.loop(_Dots(tile, a_rows, b_rows), depth, initial))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, vectors, like), codegen


class _Dots(Operands):
    """Operands of `multiply_dots`: vectors of both matrices, whose rows are found by tables."""

    def __init__(self, tile: Tile, a_rows: Any, b_rows: Any) -> None:
        self.tile, self.panel = tile, tile.word(0)  # here the bytes from the first vector of every row
        self.panel_step = tile.vector_bytes
        self.a_rows = [tile.word_at(a_rows, tile.word(row)) for row in range(ROWS)]
        self.b_rows = [tile.word_at(b_rows, tile.word(row)) for row in range(tile.vectors)]

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """The vectors number k of A's rows and of B's."""
        tile = self.tile
        rows = [tile.load(tile.builder.add(row, panel), 0) for row in self.a_rows]
        return rows, [tile.load(tile.builder.add(row, panel), 0) for row in self.b_rows]
