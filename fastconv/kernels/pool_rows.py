"""Pooling by rows of vectors, for contiguous planes.

A window is a box, so its reduction is done one axis after the other. Per block of rows of output cells

    rows of x inside the windows   folded downwards, a vector of columns at a time, into
    scratch |margin| W columns |   one row per row of windows, its padding in place, and these are folded
    y       |  Q output cells  |   sideways, a vector of output cells at a time.

Padding costs nothing that way: the ends of the scratch rows hold what loses every comparison, or adds
nothing. A block has several rows because what is loaded sideways lies across what was stored downwards:
such a load waits until both stores are through, which takes longer than the rest of a short row.
The last vector of a row ends where the row ends, and does some cells for the second time: that is cheaper
than a masked one, which only rows shorter than a vector get.
A unit is such a block. `pool_places` also tells places, `pool_gradients` goes back, and `pool_planes` has
windows as large as a plane.
"""

from __future__ import annotations

from fastconv.jit import bits_of, fields, inlined, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import root
from fastconv.kernels.folds import fold_largest, fold_squares, fold_sum, larger
from fastconv.kernels.simd import put

ROWS = record(
    # given anew in each call: what is read (x or grad_output), what is written (y or grad_x), indices of the
    # shape of y or 0, scratch memory
    "x y indices scratch "
    # sizes of what is read and written; `planes` counts channels and images
    "planes depth height width out_depth out_height out_width "
    # tables of the windows downwards: count[o] cells, from first[o] on, `step` apart
    "first_z count_z step_z first_y count_y step_y "
    # the window sideways: `margin` is the place of the first column in a scratch row, whose padding is before
    "kernel_x stride_x dilation_x pad_x margin "
    # kind of window, below; rows of a block; elements of a scratch row, and of a task's scratch memory
    "kind block row_size task_size "
    # average: tables of reals, the divisor of a window is extent_y[oz, oy] * extent_x[ox]. extent_x has as
    # many as are divided at a time and a vector more. In the gradient these are factors
    "extent_y extent_x"
)

#: Kinds of window: any; windows side by side that fill rows which fit together without a gap, so that the
#: rows of a block are one long row; 2 x 2 cells side by side; the whole plane.
ANY, FLAT, PAIRS, PLANE = 0, 1, 2, 3

#: Place of a padding cell: it loses every tie.
NOWHERE = 2**31 - 1


@inlined
def vector_start(i, width, lanes):
    """Where the vector begins that holds cell `i` of a row: earlier, where it would reach over the end."""
    return max(0, min(i, width - lanes))


@inlined
def clear(scratch, elements, neutral):
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    for i in range(0, elements, lanes):
        simd.store(scratch + i * size, neutral)


@inlined
def fold_down(scratch, p, plane, oz, first, rows, neutral, combine, fold):
    """`rows` scratch rows = each column of the windows of row `first` and the next ones, combined."""
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    first_z, count_z, first_y, count_y = ints(p.first_z), ints(p.count_z), ints(p.first_y), ints(p.count_y)
    width = p.width
    x_y = width * size
    x_z = p.height * x_y
    step_y, step_z = p.step_y * x_y, p.step_z * x_z
    source = plane + first_z[oz] * x_z
    planes = count_z[oz]
    for oy in range(first, first + rows):
        row = source + first_y[oy] * x_y
        for start in range(0, width, lanes):
            i = vector_start(start, width, lanes) * size
            total = fold(row + i, count_y[oy], step_y, 1, width, neutral)
            for z in range(1, planes):
                total = combine(total, fold(row + i + z * step_z, count_y[oy], step_y, 1, width, neutral))
            simd.store(scratch + i, total)
        scratch += p.row_size * size


@inlined
def cells_at(address, neutral, squares):
    """A vector of cells, or of their squares."""
    value = simd.load(address, neutral)
    return simd.multiply(value, value) if squares else value


@inlined
def fold_sideways(target, scratch, p, out_width, rows, stride, neutral, fold, divide, squares, extents):
    """`rows` rows of cells at `target` = the cells of each window of as many scratch rows, combined.

    With `divide` sums become means, with `squares` their roots; `extents` point to a real for each row.
    """
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    kernel_x, dilation_x, row_size = p.kernel_x, p.dilation_x * size, p.row_size * size
    for row in range(rows):
        for start in range(0, out_width, lanes):
            ox = vector_start(start, out_width, lanes)
            total = fold(scratch + ox * stride * size, kernel_x, dilation_x, stride, lanes, neutral)
            if divide:
                extent = simd.splat_like(extents[row], neutral)
                total = simd.divide(total, simd.multiply(simd.load(p.extent_x + ox * size, neutral), extent))
            if squares:
                total = root(total)
            put(target + ox * size, total, out_width)
        target += out_width * size
        scratch += row_size


@inlined
def fold_pairs(target, source, p, rows, neutral, combine, divide, squares, extent_x, extents):
    """`rows` rows of cells at `target` = 2 x 2 cells each, combined, of twice as many rows at `source`.

    The rows of x are read once and in order, without a scratch row between: where x comes from memory and not
    from a cache that is what counts.
    """
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    x_y = p.width * size
    for row in range(rows):
        for start in range(0, p.out_width, lanes):
            ox = vector_start(start, p.out_width, lanes)
            left = source + 2 * ox * size
            right = left + lanes * size
            low = combine(cells_at(left, neutral, squares), cells_at(left + x_y, neutral, squares))
            high = combine(cells_at(right, neutral, squares), cells_at(right + x_y, neutral, squares))
            total = combine(simd.even(low, high), simd.odd(low, high))
            if divide:
                extent = simd.splat_like(extents[row], neutral)
                total = simd.divide(total, simd.multiply(simd.load(extent_x, neutral), extent))
            if squares:
                total = root(total)
            simd.store(target + ox * size, total)
        target += p.out_width * size
        source += 2 * x_y


def _rows(average, squares):
    def rows(bits):
        size = bits_of(bits) // 8

        def rows(params, t, tasks):
            p = fields(params, ROWS)
            if squares:
                neutral, combine, first_fold, fold = simd.splat(0.0, bits), simd.add, fold_squares, fold_sum
            elif average:
                neutral, combine, first_fold, fold = simd.splat(0.0, bits), simd.add, fold_sum, fold_sum
            else:
                neutral, combine, first_fold, fold = simd.lowest(bits), larger, fold_largest, fold_largest
            scratch = p.scratch + t * p.task_size * size
            clear(scratch, p.task_size, neutral)
            blocks = (p.out_height + p.block - 1) // p.block
            units = p.planes * p.out_depth * blocks
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                out_plane, block = divmod(unit, blocks)
                plane, oz = divmod(out_plane, p.out_depth)
                source = p.x + plane * p.depth * p.height * p.width * size
                first = block * p.block
                rows = min(p.block, p.out_height - first)
                target = p.y + (out_plane * p.out_height + first) * p.out_width * size
                extents = reals(p.extent_y + (oz * p.out_height + first) * size, bits)
                if p.kind == PAIRS:
                    source += (oz * p.height + 2 * first) * p.width * size
                    fold_pairs(
                        target, source, p, rows, neutral, combine, average, squares, p.extent_x, extents
                    )
                    continue
                fold_down(scratch + p.margin * size, p, source, oz, first, rows, neutral, combine, first_fold)
                cells = p.out_width
                if p.kind == FLAT:
                    cells, rows = rows * cells, 1
                row = scratch + (p.margin - p.pad_x) * size
                fold_sideways(
                    target, row, p, cells, rows, p.stride_x, neutral, fold, average, squares, extents
                )

        return rows

    return rows


#: y = the largest cell of each window; a NaN is larger than everything.
max_rows = kernel(ROWS, ints=True)(_rows(False, False))
#: y = the sum over each window divided by its divisor.
avg_rows = kernel(ROWS)(_rows(True, False))
#: y = the root of the sum of squares over each window divided by its divisor, that of an average over T.
norm_rows = kernel(ROWS)(_rows(True, True))
