"""Max and average pooling of channels-last arrays, for windows of any kind.

The channels of a cell are neighbours, so they lie on the lanes: a window is folded four vectors of channels
at a time, the last ones singly, and its shape makes no difference. Windows are told by the tables of
`fastconv.kernels.pooling`, whose record these kernels take; the strides of channels are 1.
"""

from __future__ import annotations

from fastconv.jit import bits_of, fields, inlined, ints, kernel
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import root
from fastconv.kernels.folds import larger
from fastconv.kernels.pool_rows import vector_start
from fastconv.kernels.pooling import POOLING, window_divisor
from fastconv.kernels.simd import LANES, put, put_wide, take

#: Vectors of channels that share the loops over a window: with one, the largest of 3 x 3 cells took
#: 0.51 ms where it takes 0.14.
TOGETHER = 4


@inlined
def four(cell, zero):
    """Four vectors that follow each other."""
    step = simd.lanes_of(zero) * simd.bytes_of(zero)
    return (
        simd.load(cell, zero),
        simd.load(cell + step, zero),
        simd.load(cell + 2 * step, zero),
        simd.load(cell + 3 * step, zero),
    )


@inlined
def put_four(place, values):
    step = simd.lanes_of(values[0]) * simd.bytes_of(values[0])
    simd.store(place, values[0])
    simd.store(place + step, values[1])
    simd.store(place + 2 * step, values[2])
    simd.store(place + 3 * step, values[3])


@inlined
def largest_of_four(p, cell, rows_z, rows_y, columns, zero):
    """`largest` for four vectors of channels."""
    size = simd.bytes_of(zero)
    a, b, c, d = four(cell, zero)
    for iz in range(0, rows_z, p.step_z):
        for iy in range(0, rows_y, p.step_y):
            row = cell + (iz * p.x_z + iy * p.x_y) * size
            for ix in range(0, columns, p.step_x):
                e, f, g, h = four(row + ix * p.x_x * size, zero)
                a, b, c, d = larger(a, e), larger(b, f), larger(c, g), larger(d, h)
    return a, b, c, d


@inlined
def largest_and_places_of_four(p, cell, place, rows_z, rows_y, columns, zero):
    """`largest_and_place` for four vectors of channels."""
    size = simd.bytes_of(zero)
    a, b, c, d = four(cell, zero)
    at_a = simd.ramp_like(place, 0, zero)
    at_b, at_c, at_d = at_a, at_a, at_a
    for iz in range(0, rows_z, p.step_z):
        for iy in range(0, rows_y, p.step_y):
            row = cell + (iz * p.x_z + iy * p.x_y) * size
            row_place = place + (iz * p.height + iy) * p.width
            for ix in range(0, columns, p.step_x):
                e, f, g, h = four(row + ix * p.x_x * size, zero)
                here = simd.ramp_like(row_place + ix, 0, zero)
                wins = simd.exceeds(e, a)
                a, at_a = simd.select(wins, e, a), simd.select(wins, here, at_a)
                wins = simd.exceeds(f, b)
                b, at_b = simd.select(wins, f, b), simd.select(wins, here, at_b)
                wins = simd.exceeds(g, c)
                c, at_c = simd.select(wins, g, c), simd.select(wins, here, at_c)
                wins = simd.exceeds(h, d)
                d, at_d = simd.select(wins, h, d), simd.select(wins, here, at_d)
    return (a, b, c, d), (at_a, at_b, at_c, at_d)


@inlined
def put_four_wide(target, values, lanes):
    """Four vectors of ints that become int64."""
    simd.store_whole_wide(target, values[0])
    simd.store_whole_wide(target + lanes * 8, values[1])
    simd.store_whole_wide(target + 2 * lanes * 8, values[2])
    simd.store_whole_wide(target + 3 * lanes * 8, values[3])


@inlined
def sum_of_four(p, cell, rows_z, rows_y, columns, zero, squares):
    """The sums of a window, or of its squares, for four vectors of channels, row by row."""
    size = simd.bytes_of(zero)
    a, b, c, d = zero, zero, zero, zero
    for iz in range(0, rows_z, p.step_z):
        for iy in range(0, rows_y, p.step_y):
            row = cell + (iz * p.x_z + iy * p.x_y) * size
            for ix in range(0, columns, p.step_x):
                e, f, g, h = four(row + ix * p.x_x * size, zero)
                if squares:
                    e, f = simd.multiply(e, e), simd.multiply(f, f)
                    g, h = simd.multiply(g, g), simd.multiply(h, h)
                a, b, c, d = simd.add(a, e), simd.add(b, f), simd.add(c, g), simd.add(d, h)
    return a, b, c, d


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
                done = 0
                while done + TOGETHER * lanes <= channels:
                    cells = source + done * size
                    if has_places and indices:
                        most, places = largest_and_places_of_four(
                            p, cells, place, rows_z, rows_y, columns, zero
                        )
                        put_four_wide(indices + (target + done) * 8, places, lanes)
                    else:
                        most = largest_of_four(p, cells, rows_z, rows_y, columns, zero)
                    put_four(p.y + (target + done) * size, most)
                    done += TOGETHER * lanes
                for start in range(done, channels, lanes):
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
    def averages(bits):
        lanes, size = LANES[bits], bits // 8

        def channels_of(params, t, tasks):
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
                    done = 0
                    while done + TOGETHER * lanes <= channels:
                        a, b, c, d = sum_of_four(
                            p, source + done * size, rows_z, rows_y, columns, zero, squares
                        )
                        a, b = simd.divide(a, divisor), simd.divide(b, divisor)
                        c, d = simd.divide(c, divisor), simd.divide(d, divisor)
                        if squares:
                            a, b, c, d = root(a), root(b), root(c), root(d)
                        put_four(target + done * size, (a, b, c, d))
                        done += TOGETHER * lanes
                    for start in range(done, channels, lanes):
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

        return channels_of

    return averages


#: y = the sum over each window, row by row, divided by its divisor.
avg_channels = kernel(POOLING)(_averages(False))
#: y = the root of the sum of squares over each window divided by its divisor, that of an average over T.
norm_channels = kernel(POOLING)(_averages(True))


@inlined
def shares_of_four(cell, factor, zero):
    """Four vectors of a gradient, times `factor`."""
    a, b, c, d = four(cell, zero)
    return (
        simd.multiply(a, factor),
        simd.multiply(b, factor),
        simd.multiply(c, factor),
        simd.multiply(d, factor),
    )


@kernel(POOLING)
def avg_channels_backward(bits):
    """grad_x (as y) = the sum of the gradients (as x), divided, of those windows that hold a cell.

    The tables tell these windows. Each cell of grad_x is written once, and nothing is added to memory.
    """
    lanes, size = LANES[bits], bits // 8

    def avg_channels_backward(params, t, tasks):
        p = fields(params, POOLING)
        zero = simd.splat(0.0, bits)
        channels = p.channels
        factor = simd.splat_like(1.0 / max(1, p.divisor), zero)
        first_z, last_z, first_y, last_y = ints(p.first_z), ints(p.last_z), ints(p.first_y), ints(p.last_y)
        units = p.images * p.out_depth * p.out_height
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            plane, iy = divmod(unit, p.out_height)
            n, iz = divmod(plane, p.out_depth)
            one_row = last_z[iz] - first_z[iz] == p.step_z and last_y[iy] - first_y[iy] == p.step_y
            for ix in range(p.out_width):
                first_x, last_x = ints(p.first_x)[ix], ints(p.last_x)[ix]
                target = p.y + (n * p.y_n + iz * p.y_z + iy * p.y_y + ix * p.y_x) * size
                done = 0
                if p.divisor and last_x - first_x == p.step_x and one_row:
                    # windows side by side: a copy, times a factor
                    row = (
                        p.x + (n * p.x_n + first_z[iz] * p.x_z + first_y[iy] * p.x_y + first_x * p.x_x) * size
                    )
                    for done in range(0, channels, lanes):
                        c = vector_start(done, channels, lanes) * size
                        put(target + c, simd.multiply(take(row + c, channels, zero), factor), channels)
                    continue
                while done + TOGETHER * lanes <= channels:
                    a, b, c, d = zero, zero, zero, zero
                    for oz in range(first_z[iz], last_z[iz], p.step_z):
                        for oy in range(first_y[iy], last_y[iy], p.step_y):
                            row = p.x + (done + n * p.x_n + oz * p.x_z + oy * p.x_y) * size
                            for ox in range(first_x, last_x, p.step_x):
                                if not p.divisor:
                                    factor = simd.splat_like(1.0 / window_divisor(p, oz, oy, ox), zero)
                                e, f, g, h = shares_of_four(row + ox * p.x_x * size, factor, zero)
                                a, b, c, d = simd.add(a, e), simd.add(b, f), simd.add(c, g), simd.add(d, h)
                    put_four(target + done * size, (a, b, c, d))
                    done += TOGETHER * lanes
                for start in range(done, channels, lanes):
                    c = vector_start(start, channels, lanes)
                    total = zero
                    for oz in range(first_z[iz], last_z[iz], p.step_z):
                        for oy in range(first_y[iy], last_y[iy], p.step_y):
                            row = p.x + (c + n * p.x_n + oz * p.x_z + oy * p.x_y) * size
                            for ox in range(first_x, last_x, p.step_x):
                                gradient = take(row + ox * p.x_x * size, channels, zero)
                                if not p.divisor:
                                    factor = simd.splat_like(1.0 / window_divisor(p, oz, oy, ox), zero)
                                total = simd.add(total, simd.multiply(gradient, factor))
                    put(target + c * size, total, channels)

    return avg_channels_backward
