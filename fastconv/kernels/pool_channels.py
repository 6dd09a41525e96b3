"""Max and average pooling of channels-last arrays, for windows of any kind.

The channels of a cell are neighbours, so they lie on the lanes: a window is folded a vector of channels at
a time, and its shape makes no difference. Windows are told by the tables of `fastconv.kernels.pooling`, whose
record these kernels take; the strides of channels are 1.
"""

from __future__ import annotations

from fastconv.jit import bits_of, fields, inlined, ints, kernel
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import root
from fastconv.kernels.folds import larger
from fastconv.kernels.pool_rows import vector_start
from fastconv.kernels.pooling import POOLING, window_divisor
from fastconv.kernels.simd import LANES, put, put_wide, take


@inlined
def largest(p, cell, rows_z, rows_y, columns, width, zero):
    """The largest of a window whose first cell is at `cell`; its sizes are in cells of x."""
    size = simd.bytes_of(zero)
    best = take(cell, width, zero)
    for iz in range(0, rows_z, p.step_z):
        for iy in range(0, rows_y, p.step_y):
            row = cell + (iz * p.x_z + iy * p.x_y) * size
            for ix in range(0, columns, p.step_x):
                best = larger(best, take(row + ix * p.x_x * size, width, zero))
    return best


@inlined
def largest_and_place(p, cell, place, rows_z, rows_y, columns, width, zero):
    """`largest`, and the place of each in the plane, the first of equals; `place` is the first cell's."""
    size = simd.bytes_of(zero)
    best = take(cell, width, zero)
    where = simd.ramp_like(place, 0, zero)
    for iz in range(0, rows_z, p.step_z):
        for iy in range(0, rows_y, p.step_y):
            row = cell + (iz * p.x_z + iy * p.x_y) * size
            row_place = place + (iz * p.height + iy) * p.width
            for ix in range(0, columns, p.step_x):
                value = take(row + ix * p.x_x * size, width, zero)
                wins = simd.exceeds(value, best)
                best = simd.select(wins, value, best)
                where = simd.select(wins, simd.ramp_like(row_place + ix, 0, zero), where)
    return best, where


@kernel(POOLING, ints=True)
def max_channels(bits):
    """y = the largest cell of each window, the first of equals; a NaN is larger than everything."""
    lanes, size = LANES[bits_of(bits)], bits_of(bits) // 8
    has_places = size >= 4  # places are as wide as cells

    def max_channels(params, t, tasks):
        p = fields(params, POOLING)
        zero = simd.lowest(bits)
        channels, indices = p.channels, p.indices
        units = p.images * p.out_depth * p.out_height
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            plane, oy = divmod(unit, p.out_height)
            n, oz = divmod(plane, p.out_depth)
            z, y = ints(p.first_z)[oz], ints(p.first_y)[oy]
            rows_z, rows_y = ints(p.last_z)[oz] - z, ints(p.last_y)[oy] - y
            for ox in range(p.out_width):
                x = ints(p.first_x)[ox]
                columns = ints(p.last_x)[ox] - x
                source = p.x + (n * p.x_n + z * p.x_z + y * p.x_y + x * p.x_x) * size
                target = n * p.y_n + oz * p.y_z + oy * p.y_y + ox * p.y_x
                place = (z * p.height + y) * p.width + x
                for start in range(0, channels, lanes):
                    c = vector_start(start, channels, lanes)
                    cell = source + c * size
                    if has_places and indices:
                        best, where = largest_and_place(
                            p, cell, place, rows_z, rows_y, columns, channels, zero
                        )
                        put_wide(indices + (target + c) * 8, where, channels)
                    else:
                        best = largest(p, cell, rows_z, rows_y, columns, channels, zero)
                    put(p.y + (target + c) * size, best, channels)

    return max_channels


def _averages(squares):
    def factory(bits):
        lanes, size = LANES[bits], bits // 8

        def channels(params, t, tasks):
            p = fields(params, POOLING)
            zero = simd.splat(0.0, bits)
            channels = p.channels
            units = p.images * p.out_depth * p.out_height
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                plane, oy = divmod(unit, p.out_height)
                n, oz = divmod(plane, p.out_depth)
                z, y = ints(p.first_z)[oz], ints(p.first_y)[oy]
                rows_z, rows_y = ints(p.last_z)[oz] - z, ints(p.last_y)[oy] - y
                for ox in range(p.out_width):
                    x = ints(p.first_x)[ox]
                    columns = ints(p.last_x)[ox] - x
                    source = p.x + (n * p.x_n + z * p.x_z + y * p.x_y + x * p.x_x) * size
                    target = p.y + (n * p.y_n + oz * p.y_z + oy * p.y_y + ox * p.y_x) * size
                    divisor = simd.splat_like(window_divisor(p, oz, oy, ox) / (1.0 * p.taps), zero)
                    for start in range(0, channels, lanes):
                        c = vector_start(start, channels, lanes)
                        total = zero
                        for iz in range(0, rows_z, p.step_z):
                            for iy in range(0, rows_y, p.step_y):
                                row = source + (c + iz * p.x_z + iy * p.x_y) * size
                                for ix in range(0, columns, p.step_x):
                                    cells = take(row + ix * p.x_x * size, channels, zero)
                                    if squares:
                                        cells = simd.multiply(cells, cells)
                                    total = simd.add(total, cells)
                        total = simd.divide(total, divisor)
                        if squares:
                            total = root(total)
                        put(target + c * size, total, channels)

        return channels

    return factory


#: y = the sum over each window, row by row, divided by its divisor.
avg_channels = kernel(POOLING)(_averages(False))
#: y = the root of the sum of squares over each window divided by its divisor, that of an average over T.
norm_channels = kernel(POOLING)(_averages(True))


@kernel(POOLING)
def avg_channels_backward(bits):
    """grad_x (as x) = each cell of grad_output (as y), divided, added to every cell of its window.

    A unit is a block of channels of an image.
    """
    lanes, size = LANES[bits], bits // 8

    def avg_channels_backward(params, t, tasks):
        p = fields(params, POOLING)
        zero = simd.splat(0.0, bits)
        blocks = (p.channels + p.block_channels - 1) // p.block_channels
        units = p.images * blocks
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, block = divmod(unit, blocks)
            first = block * p.block_channels
            channels = min(p.block_channels, p.channels - first)
            plane = p.x + (n * p.x_n + first) * size
            for cell in range(p.depth * p.height * p.width):
                for c in range(0, channels, lanes):
                    put(plane + (cell * p.x_x + c) * size, zero, channels - c)
            for oz in range(p.out_depth):
                for oy in range(p.out_height):
                    source = n * p.y_n + oz * p.y_z + oy * p.y_y + first
                    for ox in range(p.out_width):
                        divisor = simd.splat_like(1.0 * window_divisor(p, oz, oy, ox), zero)
                        for c in range(0, channels, lanes):
                            count = channels - c
                            gradient = take(p.y + (source + c + ox * p.y_x) * size, count, zero)
                            share = simd.divide(gradient, divisor)
                            for iz in range(ints(p.first_z)[oz], ints(p.last_z)[oz], p.step_z):
                                for iy in range(ints(p.first_y)[oy], ints(p.last_y)[oy], p.step_y):
                                    row = plane + (c + iz * p.x_z + iy * p.x_y) * size
                                    for ix in range(ints(p.first_x)[ox], ints(p.last_x)[ox], p.step_x):
                                        place = row + ix * p.x_x * size
                                        put(place, simd.add(take(place, count, zero), share), count)

    return avg_channels_backward
