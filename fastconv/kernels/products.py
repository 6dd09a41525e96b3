"""Products of matrices for the dense layers of small networks: row-major, and small enough for the caches.

Two of the three products of a dense layer have a matrix whose rows are the rows of the sums:

    C (M, J) = A (M, K) x B (K, J)         A has any strides, B contiguous rows

    for each panel of VECTORS vectors of columns of B           a unit, packed, in L2 with all of A
        for each panel of ROWS rows of A                        packed once a task
            tile of C = A panel x B panel

The third, of x with the weight as networks store it, multiplies rows by rows and needs no packing:

    y (N, O) = x (N, K) x weight' (K, O)   dot products, a vector for each until they are done

    for each panel of ROWS rows of weight                       a unit, read once
        for each block of K
            for each panel of VECTORS rows of x
                tile, a vector for each sum, += weight panel x x panel'
"""

from __future__ import annotations

from math import inf

from fastconv.jit import fields, inlined, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import lane_sum
from fastconv.kernels.dots import multiply_dots
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO, multiply_tile
from fastconv.kernels.simd import LANES, put, take

PRODUCT = record(
    # addresses; strides of A in elements
    "a b c scratch scratch_bytes rows depth columns a_row a_column "
    # parts of a task's scratch, bytes from its start
    "at_a at_b at_offsets at_tile"
)

DOTS = record(
    # addresses; bias is 0 where there is none
    "x weight bias y scratch scratch_bytes relu samples outputs depth "
    # vectors of a block of the depth
    "block at_x_tails at_weight_tails at_rows at_columns at_tiles"
)


@inlined
def pack_rows(a, rows, depth, row_step, column_step, target, bits):
    """target[panel][k][ROWS] = a[row, k], and zeros for the rows that the last panel lacks."""
    source, packed = reals(a, bits), reals(target, bits)
    place = 0
    for first in range(0, rows, ROWS):
        whole = first + ROWS <= rows
        for k in range(depth):
            cell = first * row_step + k * column_step
            for row in range(ROWS):
                packed[place] = source[cell] if whole or first + row < rows else 0
                cell += row_step
                place += 1


@kernel(PRODUCT)
def product(bits):
    """C = A x B. A unit is a panel of columns."""
    lanes, size = LANES[bits], bits // 8
    panel = VECTORS * lanes

    def product(params, t, tasks):
        p = fields(params, PRODUCT)
        zero = simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        packed_a, packed_b, tile = scratch + p.at_a, scratch + p.at_b, scratch + p.at_tile
        pack_rows(p.a, p.rows, p.depth, p.a_row, p.a_column, packed_a, bits)
        offsets = ints(scratch + p.at_offsets)
        for k in range(p.depth):
            offsets[k] = k * panel * size
        units = (p.columns + panel - 1) // panel
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            first = unit * panel
            count = min(panel, p.columns - first)
            for k in range(p.depth):
                source, target = p.b + (k * p.columns + first) * size, packed_b + k * panel * size
                for i in range(0, count, lanes):
                    simd.store(target + i * size, take(source + i * size, count - i, zero))
            for row in range(0, p.rows, ROWS):
                a, table = packed_a + row * p.depth * size, scratch + p.at_offsets
                c, c_row = p.c + (row * p.columns + first) * size, p.columns * size
                whole = count == panel and row + ROWS <= p.rows
                if not whole:
                    c, c_row = tile, panel * size
                if count > 2 * lanes:
                    multiply_tile(a, packed_b, table, p.depth, c, c_row, ZERO, 0, -inf, 3, zero)
                elif count > lanes:
                    multiply_tile(a, packed_b, table, p.depth, c, c_row, ZERO, 0, -inf, 2, zero)
                else:
                    multiply_tile(a, packed_b, table, p.depth, c, c_row, ZERO, 0, -inf, 1, zero)
                if not whole:
                    for i in range(min(ROWS, p.rows - row)):
                        target = p.c + ((row + i) * p.columns + first) * size
                        for j in range(0, count, lanes):
                            put(target + j * size, simd.load(tile + (i * panel + j) * size, zero), count - j)

    return product


@inlined
def copy_tails(source, rows, depth, target, zero):
    """What is left of each row behind its whole vectors, a vector filled up with zeros."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    rest = depth % lanes
    for row in range(rows):
        tail = source + ((row + 1) * depth - rest) * size
        simd.store(target + row * lanes * size, simd.load_part(tail, rest, zero))


@kernel(DOTS)
def dots(bits):
    """y = x weight' + bias, no less than 0 with `relu`. A unit is a panel of outputs."""
    lanes, size = LANES[bits], bits // 8
    vector = lanes * size

    def dots(params, t, tasks):
        p = fields(params, DOTS)
        zero = simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        x_tails, weight_tails, tiles = (
            scratch + p.at_x_tails,
            scratch + p.at_weight_tails,
            scratch + p.at_tiles,
        )
        a_table, b_table = scratch + p.at_rows, scratch + p.at_columns
        rows, columns = ints(a_table), ints(b_table)
        y, bias = reals(p.y, bits), reals(p.bias, bits)
        vectors, tile = p.depth // lanes, ROWS * VECTORS * vector
        rest = p.depth % lanes != 0
        if rest:
            copy_tails(p.x, p.samples, p.depth, x_tails, zero)
        panels = (p.outputs + ROWS - 1) // ROWS
        for panel in range(t * panels // tasks, (t + 1) * panels // tasks):
            first = panel * ROWS
            count = min(ROWS, p.outputs - first)
            start = ZERO
            for block in range(0, vectors, p.block):
                for row in range(ROWS):  # rows beyond the last repeat it
                    place = (first + min(row, count - 1)) * p.depth + block * lanes
                    rows[row] = p.weight + place * size
                for n in range(0, p.samples, VECTORS):
                    for column in range(VECTORS):
                        place = min(n + column, p.samples - 1) * p.depth + block * lanes
                        columns[column] = p.x + place * size
                    depth = min(p.block, vectors - block)
                    c = tiles + n // VECTORS * tile
                    multiply_dots(a_table, b_table, depth, c, VECTORS * vector, start, VECTORS, zero)
                start = LOAD
            if rest:
                copy_tails(p.weight + first * p.depth * size, count, p.depth, weight_tails, zero)
                for row in range(ROWS):
                    rows[row] = weight_tails + min(row, count - 1) * vector
                for n in range(0, p.samples, VECTORS):
                    for column in range(VECTORS):
                        columns[column] = x_tails + min(n + column, p.samples - 1) * vector
                    c = tiles + n // VECTORS * tile
                    multiply_dots(a_table, b_table, 1, c, VECTORS * vector, start, VECTORS, zero)
            for n in range(p.samples):
                c = tiles + n // VECTORS * tile + n % VECTORS * vector
                for row in range(count):
                    total = lane_sum(simd.load(c + row * VECTORS * vector, zero))
                    if p.bias:
                        total += bias[first + row]
                    # a NaN stays
                    y[n * p.outputs + first + row] = 0 if p.relu and total < 0 else total

    return dots
