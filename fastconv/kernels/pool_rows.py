"""Pooling by rows of vectors, for planes whose rows are contiguous.

A window is a box, so its reduction is done one axis after the other. Per row of output cells

    rows of x inside the window      folded downwards, a vector of columns at a time, into
    scratch  |pad|  W columns  |pad| a row with its padding in place, which is then folded
    y        |  Q output cells  |    sideways, a vector of output cells at a time.

Padding costs nothing that way: the ends of the scratch row hold what loses every comparison, or adds nothing.
Sideways, strides 1 and 2 are unaligned loads and a deinterleave; other strides go cell by cell. Two kinds
of window need no scratch: 2 x 2 cells side by side, and the whole plane.
A unit is one plane. `pool_places` also tells places.
"""

from __future__ import annotations

from math import inf

from fastconv.jit import fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.simd import put, take

ROWS = record(
    # x or grad_x; y or grad_output; indices (0: none), which have the strides of y; all in elements
    "x y indices "
    "x_n x_c x_z x_y "
    "y_n y_c y_z y_y "
    "images channels depth height width out_depth out_height out_width "
    # tables of the windows downwards: cells range(first[o], last[o], step)
    "first_z last_z first_y last_y step_z step_y "
    # the window sideways
    "kernel_x stride_x dilation_x pad_x "
    # kind of window: 0 any, 1 2 x 2 cells side by side, 2 the whole plane
    "kind "
    # average: the divisor of a window is extent_z[oz] * extent_y[oy] * extent_x[ox], unless `divisor` is
    # positive. extent_x has reals, and a vector more than out_width
    "extent_z extent_y extent_x divisor "
    # gradient: whether each row of x is in exactly one window
    "tiled "
    # scratch memory: its address, elements of a row (SCRATCH_ROWS per task), and margin before a row
    "scratch row_size margin"
)

SCRATCH_ROWS = 2

ANY, PAIRS, PLANE = 0, 1, 2

#: Place of a padding cell: it loses every tie.
NOWHERE = 2**31 - 1


def margin(lanes: int, kernel: int, dilation: int, pad: int) -> int:
    """Elements of padding before a scratch row: what the window, or the gradient's mirror of it, reaches."""
    return -(-max(pad, (kernel - 1) * dilation) // lanes) * lanes


def row_size(lanes: int, width: int, kernel: int, stride: int, dilation: int, pad: int, out: int) -> int:
    """Elements of a scratch row, its margin and all that the passes may touch included."""
    columns = pad + width + 2 * lanes
    cells = (out + 2 * lanes) * stride + (kernel - 1) * dilation
    return margin(lanes, kernel, dilation, pad) + -(-max(columns, cells) // lanes) * lanes + lanes


@inlined
def combine(a, b, average):
    return simd.add(a, b) if average else simd.maximum(a, b)


# --- forward ------------------------------------------------------------------------------------


@inlined
def fold_down(target, source, planes, plane_step, rows, row_step, width, neutral, average):
    """A row at `target` = each column of a box of rows at `source`, combined."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    whole = width - width % lanes
    for i in range(0, whole, lanes):
        total = simd.load(source + i * size, neutral)
        for z in range(planes):
            cells = source + i * size + z * plane_step
            for r in range(z == 0, rows):
                total = combine(total, simd.load(cells + r * row_step, neutral), average)
        simd.store(target + i * size, total)
    if whole < width:
        total = neutral
        for z in range(planes):
            cells = source + whole * size + z * plane_step
            for r in range(rows):
                part = simd.load_part(cells + r * row_step, width - whole, neutral)
                total = combine(total, part, average)
        simd.store(target + whole * size, total)


@inlined
def finish(total, ox, extent_x, extent, average):
    """The mean from the sum."""
    if average:
        extents = simd.load(extent_x + ox * simd.bytes_of(total), total)
        return simd.divide(total, simd.multiply(extents, extent))
    return total


@inlined
def fold_sideways(target, source, out_width, kernel, stride, dilation, neutral, extent_x, extent, average):
    """Cells at `target` = `kernel` cells each, combined, of the row at `source`; stride 1 or 2."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    for ox in range(0, out_width, lanes):
        total = neutral
        cells = source + ox * stride * size
        if stride == 1:
            for k in range(kernel):
                total = combine(total, simd.load(cells + k * dilation * size, neutral), average)
        else:
            for k in range(kernel):
                both = cells + k * dilation * size
                low, high = simd.load(both, neutral), simd.load(both + lanes * size, neutral)
                total = combine(total, simd.even(low, high), average)
        put(target + ox * size, finish(total, ox, extent_x, extent, average), out_width - ox)


@inlined
def fold_pairs(target, upper, lower, out_width, neutral, extent_x, extent, average):
    """Cells at `target` = 2 x 2 cells each, combined, of the rows at `upper` and `lower`."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    whole = out_width - out_width % lanes
    for ox in range(0, whole, lanes):
        i, j = 2 * ox * size, (2 * ox + lanes) * size
        low = combine(simd.load(upper + i, neutral), simd.load(lower + i, neutral), average)
        high = combine(simd.load(upper + j, neutral), simd.load(lower + j, neutral), average)
        total = combine(simd.even(low, high), simd.odd(low, high), average)
        simd.store(target + ox * size, finish(total, ox, extent_x, extent, average))
    if whole < out_width:
        i, j = 2 * whole * size, (2 * whole + lanes) * size
        count = 2 * (out_width - whole)
        low = combine(take(upper + i, count, neutral), take(lower + i, count, neutral), average)
        high = neutral
        if count > lanes:
            high = combine(
                take(upper + j, count - lanes, neutral), take(lower + j, count - lanes, neutral), average
            )
        total = combine(simd.even(low, high), simd.odd(low, high), average)
        total = finish(total, whole, extent_x, extent, average)
        simd.store_part(target + whole * size, total, out_width - whole)


@inlined
def fold_plane(source, cells, neutral, average):
    """All cells of a contiguous plane combined, in every lane."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    total = neutral
    for i in range(0, cells - lanes + 1, lanes):
        total = combine(total, simd.load(source + i * size, neutral), average)
    rest = cells % lanes
    if rest:
        part = simd.load_part(source + (cells - rest) * size, rest, neutral)
        total = combine(total, part, average)
    # halves: even and odd lanes against each other, until all lanes are the same
    width = lanes
    while width > 1:
        total = combine(simd.even(total, total), simd.odd(total, total), average)
        width //= 2
    return total


@inlined
def window_extent(p, oz, oy):
    """The part of a window's divisor that its whole row of windows shares."""
    if p.divisor > 0:
        return p.divisor
    return ints(p.extent_z)[oz] * ints(p.extent_y)[oy]


@inlined
def pool_planes(p, t, tasks, neutral, average):
    """The forward pass over this task's planes; `neutral` changes nothing that it is combined with."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    first_z, last_z, x_z, step_z = ints(p.first_z), ints(p.last_z), p.x_z, p.step_z
    first_y, last_y, x_y, step_y = ints(p.first_y), ints(p.last_y), p.x_y, p.step_y
    width, out_width, out_height, out_depth = p.width, p.out_width, p.out_height, p.out_depth
    kernel_x, stride_x, dilation_x, pad_x = p.kernel_x, p.stride_x, p.dilation_x, p.pad_x
    kind, extent_x = p.kind, p.extent_x
    scratch = p.scratch + SCRATCH_ROWS * t * p.row_size * size
    if kind == ANY:
        for i in range(0, p.row_size, lanes):
            simd.store(scratch + i * size, neutral)
    units = p.images * p.channels
    for unit in range(t * units // tasks, (t + 1) * units // tasks):
        n, c = divmod(unit, p.channels)
        plane = p.x + (n * p.x_n + c * p.x_c) * size
        first_target = p.y + (n * p.y_n + c * p.y_c) * size
        if kind == PLANE:
            total = fold_plane(plane, p.depth * p.height * width, neutral, average)
            extent = simd.splat_like(window_extent(p, 0, 0), neutral)
            simd.store_part(first_target, finish(total, 0, extent_x, extent, average), 1)
            continue
        for oz in range(out_depth):
            planes = (last_z[oz] - first_z[oz] + step_z - 1) // step_z
            for oy in range(out_height):
                source = plane + (first_z[oz] * x_z + first_y[oy] * x_y) * size
                target = first_target + (oz * p.y_z + oy * p.y_y) * size
                extent = simd.splat_like(window_extent(p, oz, oy) if average else 1, neutral)
                if kind == PAIRS:
                    lower = source + x_y * size
                    fold_pairs(target, source, lower, out_width, neutral, extent_x, extent, average)
                    continue
                rows = (last_y[oy] - first_y[oy] + step_y - 1) // step_y
                fold_down(
                    scratch + pad_x * size,
                    source,
                    planes,
                    step_z * x_z * size,
                    rows,
                    step_y * x_y * size,
                    width,
                    neutral,
                    average,
                )
                if stride_x <= 2:
                    fold_sideways(
                        target,
                        scratch,
                        out_width,
                        kernel_x,
                        stride_x,
                        dilation_x,
                        neutral,
                        extent_x,
                        extent,
                        average,
                    )
                    continue
                for ox in range(out_width):
                    total = simd.load(scratch + ox * stride_x * size, neutral)
                    for kx in range(1, kernel_x):
                        cell = scratch + (ox * stride_x + kx * dilation_x) * size
                        total = combine(total, simd.load(cell, neutral), average)
                    mean = finish(total, ox, extent_x, extent, average)
                    simd.store_part(target + ox * size, mean, 1)


@kernel(ROWS)
def max_rows(bits):
    """y = the largest cell of each window; a NaN is larger than everything."""

    def max_rows(params, t, tasks):
        pool_planes(fields(params, ROWS), t, tasks, simd.splat(-inf, bits), False)

    return max_rows


@kernel(ROWS)
def avg_rows(bits):
    """y = the sum over each window divided by its divisor."""

    def avg_rows(params, t, tasks):
        pool_planes(fields(params, ROWS), t, tasks, simd.splat(0.0, bits), True)

    return avg_rows
