"""Max pooling by rows of vectors that also tells where the largest cells are: see `pool_rows`.

A second scratch row holds the place of each cell of the first.
"""

from __future__ import annotations

from math import inf

from fastconv.jit import fields, inlined, ints, kernel
from fastconv.kernels import simd
from fastconv.kernels.pool_rows import NOWHERE, ROWS, SCRATCH_ROWS
from fastconv.kernels.simd import LANES, put, take


@inlined
def place_down(
    target, places, source, planes, plane_step, plane_place, rows, row_step, row_place, width, first, neutral
):
    """As `fold_down` for the largest, with each cell's place in the plane; `first` is that of `source`."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    for i in range(0, width, lanes):
        best, where = neutral, simd.ramp_like(NOWHERE, 0, neutral)
        for z in range(planes):
            for r in range(rows):
                cells = source + i * size + z * plane_step + r * row_step
                value = take(cells, width - i, neutral)
                place = simd.ramp_like(first + z * plane_place + r * row_place + i, 1, neutral)
                wins = simd.precedes(value, place, best, where)
                best, where = simd.select(wins, value, best), simd.select(wins, place, where)
        # lanes beyond the row won their place with the value of padding: leave NOWHERE there
        simd.store(target + i * size, best)
        put(places + i * size, where, width - i)


@inlined
def place_sideways(target, indices, source, places, out_width, kernel, stride, dilation, neutral):
    """As `fold_sideways` for the largest, with places; any stride."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    # a stride above 2 goes cell by cell: of each vector, the first lane counts
    count = lanes if stride <= 2 else 1
    nowhere = simd.ramp_like(NOWHERE, 0, neutral)
    for ox in range(0, out_width, count):
        best, where = neutral, nowhere
        for k in range(kernel):
            cell = (ox * stride + k * dilation) * size
            value = simd.load(source + cell, neutral)
            place = simd.load(places + cell, nowhere)
            if stride == 2:
                value = simd.even(value, simd.load(source + cell + lanes * size, neutral))
                place = simd.even(place, simd.load(places + cell + lanes * size, nowhere))
            wins = simd.precedes(value, place, best, where)
            best, where = simd.select(wins, value, best), simd.select(wins, place, where)
        cells = min(count, out_width - ox)
        put(target + ox * size, best, cells)
        simd.store_wide(indices + ox * 8, where, cells)


@kernel(ROWS)
def max_rows_indices(bits):
    """y and indices = the first largest cell of each window and its place in the plane."""
    lanes, size = LANES[bits], bits // 8

    def max_rows_indices(params, t, tasks):
        p = fields(params, ROWS)
        neutral = simd.splat(-inf, bits)
        nowhere = simd.ramp_like(NOWHERE, 0, neutral)
        first_z, last_z, x_z, step_z = ints(p.first_z), ints(p.last_z), p.x_z, p.step_z
        first_y, last_y, x_y, step_y = ints(p.first_y), ints(p.last_y), p.x_y, p.step_y
        width, out_width, out_height, out_depth = p.width, p.out_width, p.out_height, p.out_depth
        kernel_x, stride_x, dilation_x, pad_x = p.kernel_x, p.stride_x, p.dilation_x, p.pad_x
        row = p.scratch + SCRATCH_ROWS * t * p.row_size * size
        places = row + p.row_size * size
        for i in range(0, p.row_size, lanes):
            simd.store(row + i * size, neutral)
            simd.store(places + i * size, nowhere)
        units = p.images * p.channels
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, c = divmod(unit, p.channels)
            plane = p.x + (n * p.x_n + c * p.x_c) * size
            first_target = n * p.y_n + c * p.y_c
            for oz in range(out_depth):
                planes = (last_z[oz] - first_z[oz] + step_z - 1) // step_z
                for oy in range(out_height):
                    rows = (last_y[oy] - first_y[oy] + step_y - 1) // step_y
                    source = first_z[oz] * x_z + first_y[oy] * x_y
                    place_down(
                        row + pad_x * size,
                        places + pad_x * size,
                        plane + source * size,
                        planes,
                        step_z * x_z * size,
                        step_z * x_z,
                        rows,
                        step_y * x_y * size,
                        step_y * x_y,
                        width,
                        source,
                        neutral,
                    )
                    target = first_target + oz * p.y_z + oy * p.y_y
                    y, indices = p.y + target * size, p.indices + target * 8
                    if stride_x == 1:
                        place_sideways(y, indices, row, places, out_width, kernel_x, 1, dilation_x, neutral)
                    elif stride_x == 2:
                        place_sideways(y, indices, row, places, out_width, kernel_x, 2, dilation_x, neutral)
                    else:
                        place_sideways(
                            y, indices, row, places, out_width, kernel_x, stride_x, dilation_x, neutral
                        )

    return max_rows_indices
