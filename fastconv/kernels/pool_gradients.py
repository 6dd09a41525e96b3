"""The gradient of average pooling, for contiguous planes: see `pool_rows`, whose record they take.

It is a sum over a window, too: of those gradients whose window holds a cell. So each cell of grad_x is
written once, whole and in an order of its own, and nothing is added to memory. Downwards the tables tell
which rows of windows hold a row of x. Sideways the scratch row has the gradients as far apart as the
windows, zeros between and around them, and is folded with stride 1.
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel, reals
from fastconv.kernels import simd
from fastconv.kernels.folds import fold_sum
from fastconv.kernels.pool_rows import PAIRS, ROWS, clear, fold_sideways, vector_start
from fastconv.kernels.simd import put, take


@inlined
def spread_down(scratch, p, plane, iz, first, rows, zero, bits):
    """`rows` scratch rows = the gradients of the windows that hold row `first` of x and the next ones."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    first_z, count_z, first_y, count_y = ints(p.first_z), ints(p.count_z), ints(p.first_y), ints(p.count_y)
    factors = reals(p.extent_y, bits)
    width, stride = p.width, p.stride_x
    for iy in range(first, first + rows):
        for start in range(0, width, lanes):
            ox = vector_start(start, width, lanes)
            total = zero
            for j in range(count_z[iz]):
                oz = first_z[iz] + j * p.step_z
                for k in range(count_y[iy]):
                    oy = first_y[iy] + k * p.step_y
                    row = oz * p.height + oy
                    gradients = take(plane + (row * width + ox) * size, width, zero)
                    factor = simd.splat_like(factors[row], zero)
                    total = simd.add(total, simd.multiply(gradients, factor))
            total = simd.multiply(total, simd.load(p.extent_x + ox * size, zero))
            cells = scratch + ox * stride * size
            if stride == 1:
                simd.store(cells, total)
            elif stride == 2:
                simd.store(cells, simd.interleave_low(total, zero))
                simd.store(cells + lanes * size, simd.interleave_high(total, zero))
            else:
                simd.store_strided(cells, stride * size, total)
        scratch += p.row_size * size


@inlined
def double(target, p, source, rows, zero):
    """Twice as many rows of x at `target` = each gradient of `rows` rows, times a factor, for 2 x 2 cells."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    width, out_width = p.width, p.out_width
    factor = simd.load(p.extent_x, zero)
    for _ in range(rows):
        for start in range(0, width, lanes):
            ox = vector_start(start, width, lanes)
            shares = simd.multiply(take(source + ox * size, width, zero), factor)
            low, high = simd.interleave_low(shares, shares), simd.interleave_high(shares, shares)
            for row in range(2):
                cells = target + (row * out_width + 2 * ox) * size
                put(cells, low, out_width)
                if out_width > lanes:
                    put(cells + lanes * size, high, out_width - lanes)
        source += width * size
        target += 2 * out_width * size


@kernel(ROWS)
def avg_rows_backward(bits):
    """grad_x (as y) = the sum of each gradient (as x) whose window holds the cell, divided."""

    def avg_rows_backward(params, t, tasks):
        p = fields(params, ROWS)
        zero = simd.splat(0.0, bits)
        size = bits // 8
        scratch = p.scratch + t * p.task_size * size
        clear(scratch, p.task_size, zero)
        blocks = (p.out_height + p.block - 1) // p.block
        units = p.planes * p.out_depth * blocks
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            out_plane, block = divmod(unit, blocks)
            plane, iz = divmod(out_plane, p.out_depth)
            source = p.x + plane * p.depth * p.height * p.width * size
            first = block * p.block
            rows = min(p.block, p.out_height - first)
            target = p.y + (out_plane * p.out_height + first) * p.out_width * size
            if p.kind == PAIRS:
                double(target, p, source + (iz * p.height + first // 2) * p.width * size, rows // 2, zero)
                continue
            spread_down(scratch + p.margin * size, p, source, iz, first, rows, zero, bits)
            row = scratch + (p.margin + p.pad_x - (p.kernel_x - 1) * p.dilation_x) * size
            fold_sideways(
                target, row, p, p.out_width, rows, 1, zero, fold_sum, False, False, reals(p.extent_y, bits)
            )

    return avg_rows_backward
