"""Max pooling by rows of vectors that also tells where the largest cells are: see `pool_rows`.

A second scratch row holds the place of each cell of the first. Places are as narrow as the cells, int32
beside float32, and widened in the last store alone. Ints of less than 32 bits are no place for them.
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel
from fastconv.kernels import simd
from fastconv.kernels.pool_rows import FLAT, NOWHERE, ROWS, clear, vector_start
from fastconv.kernels.simd import put, put_wide, take


@inlined
def tap(cells, stride, like):
    """Every `stride`-th cell."""
    if stride == 1:
        return simd.load(cells, like)
    if stride == 2:
        return simd.even(simd.load(cells, like), simd.load(cells + simd.vector_bytes(like), like))
    return simd.load_strided(cells, stride * simd.bytes_of(like), like)


@inlined
def place_down(
    target, places, source, planes, plane_step, plane_place, rows, row_step, row_place, width, first, neutral
):
    """As `fold_down` for the largest, with each cell's place in the plane; `first` is that of `source`."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    for start in range(0, width, lanes):
        i = vector_start(start, width, lanes)
        best = take(source + i * size, width, neutral)
        where = simd.ramp_like(first + i, 1, neutral)
        for z in range(planes):
            cells = source + i * size + z * plane_step
            place = first + i + z * plane_place
            for r in range(1 if z == 0 else 0, rows):
                # in order of place: of equals the earlier one, that is in `best`, stays
                value = take(cells + r * row_step, width, neutral)
                wins = simd.exceeds(value, best)
                best = simd.select(wins, value, best)
                where = simd.select(wins, simd.ramp_like(place + r * row_place, 1, neutral), where)
        simd.store(target + i * size, best)
        # lanes beyond a row shorter than a vector keep NOWHERE
        put(places + i * size, where, width)


@inlined
def place_sideways(target, indices, source, places, out_width, kernel, stride, dilation, neutral):
    """As `fold_sideways` for the largest, with places."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    nowhere = simd.ramp_like(NOWHERE, 0, neutral)
    for start in range(0, out_width, lanes):
        ox = vector_start(start, out_width, lanes)
        cell = ox * stride * size
        best, where = tap(source + cell, stride, neutral), tap(places + cell, stride, nowhere)
        for _ in range(1, kernel):
            cell += dilation * size
            value, place = tap(source + cell, stride, neutral), tap(places + cell, stride, nowhere)
            # columns go before rows here, so that places decide between equals
            wins = simd.precedes(value, place, best, where)
            best, where = simd.select(wins, value, best), simd.select(wins, place, where)
        put(target + ox * size, best, out_width)
        put_wide(indices + ox * 8, where, out_width)


@kernel(ROWS, ints=True)
def max_rows_indices(bits):
    """y and indices = the first largest cell of each window and its place in the plane."""

    def max_rows_indices(params, t, tasks):
        p = fields(params, ROWS)
        neutral = simd.lowest(bits)
        size = simd.bytes_of(neutral)
        # the first half for cells, the other for their places
        scratch = p.scratch + t * p.task_size * size
        half = p.task_size // 2
        clear(scratch, half, neutral)
        places = scratch + half * size
        clear(places, half, simd.ramp_like(NOWHERE, 0, neutral))
        first_z, count_z, first_y, count_y = (
            ints(p.first_z),
            ints(p.count_z),
            ints(p.first_y),
            ints(p.count_y),
        )
        width, out_width = p.width, p.out_width
        x_z = p.height * width
        before = p.margin - p.pad_x
        blocks = (p.out_height + p.block - 1) // p.block
        units = p.planes * p.out_depth * blocks
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            out_plane, block = divmod(unit, blocks)
            plane, oz = divmod(out_plane, p.out_depth)
            x = p.x + plane * p.depth * x_z * size
            first = block * p.block
            rows = min(p.block, p.out_height - first)
            target = (out_plane * p.out_height + first) * out_width
            for r in range(rows):
                oy = first + r
                row = p.margin + r * p.row_size
                place = first_z[oz] * x_z + first_y[oy] * width
                place_down(
                    scratch + row * size,
                    places + row * size,
                    x + place * size,
                    count_z[oz],
                    p.step_z * x_z * size,
                    p.step_z * x_z,
                    count_y[oy],
                    p.step_y * width * size,
                    p.step_y * width,
                    width,
                    place,
                    neutral,
                )
            cells = out_width
            if p.kind == FLAT:
                cells, rows = rows * out_width, 1
            for r in range(rows):
                row = (before + r * p.row_size) * size
                place_sideways(
                    p.y + (target + r * out_width) * size,
                    p.indices + (target + r * out_width) * 8,
                    scratch + row,
                    places + row,
                    cells,
                    p.kernel_x,
                    p.stride_x,
                    p.dilation_x,
                    neutral,
                )

    return max_rows_indices
