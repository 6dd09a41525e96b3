"""The gradient of average pooling by rows of vectors: `pool_rows` run backwards.

A row of gradients is divided by the divisors of its windows, spread sideways to the columns that each has,
and added to every row that it has.
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel, reals
from fastconv.kernels import simd
from fastconv.kernels.pool_rows import ROWS, SCRATCH_ROWS, finish, window_extent
from fastconv.kernels.simd import LANES, put, take


@inlined
def share_out(target, source, out_width, extent_x, extent):
    """A row at `target` = the gradients at `source`, each divided by its window's divisor."""
    lanes, size = simd.lanes_of(extent), simd.bytes_of(extent)
    for ox in range(0, out_width, lanes):
        value = take(source + ox * size, out_width - ox, extent)
        put(target + ox * size, finish(value, ox, extent_x, extent, True), out_width - ox)


@inlined
def spread_sideways(target, source, columns, kernel, stride, dilation, zero):
    """Cells at `target` = the sum of the shares of the windows that each is in; stride 1 or 2.

    Column i is in the windows o with i = o * stride + k * dilation: a convolution with a kernel of ones,
    mirrored. The source has zeros before and after it. For stride 2, even and odd columns
    come from separate sums over even and odd k * dilation.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    for i in range(0, columns, lanes * stride):
        if stride == 1:
            total = zero
            for k in range(kernel):
                total = simd.add(total, simd.load(source + (i - k * dilation) * size, zero))
            simd.store(target + i * size, total)
        else:
            even, odd = zero, zero
            for k in range(kernel):
                offset = k * dilation
                value = simd.load(source + (i // 2 - offset // 2) * size, zero)
                if offset % 2 == 0:
                    even = simd.add(even, value)
                else:
                    odd = simd.add(odd, value)
            simd.store(target + i * size, simd.interleave_low(even, odd))
            simd.store(target + (i + lanes) * size, simd.interleave_high(even, odd))


@inlined
def spread_down(target, source, planes, plane_step, rows, row_step, width, tiled, zero):
    """Add the row at `source` to each row of a box at `target`, or write it there where `tiled`."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    for i in range(0, width, lanes):
        value = simd.load(source + i * size, zero)
        count = width - i
        for z in range(planes):
            cells = target + i * size + z * plane_step
            for r in range(rows):
                cell = cells + r * row_step
                put(cell, value if tiled else simd.add(value, take(cell, count, zero)), count)


@kernel(ROWS)
def avg_rows_backward(bits):
    """grad_x (as x) = each gradient (as y), divided, added to every cell of its window."""
    lanes, size = LANES[bits], bits // 8

    def avg_rows_backward(params, t, tasks):
        p = fields(params, ROWS)
        zero = simd.splat(0.0, bits)
        first_z, last_z, x_z, step_z = ints(p.first_z), ints(p.last_z), p.x_z, p.step_z
        first_y, last_y, x_y, step_y = ints(p.first_y), ints(p.last_y), p.x_y, p.step_y
        width, out_width, out_height, out_depth = p.width, p.out_width, p.out_height, p.out_depth
        kernel_x, stride_x, dilation_x, pad_x = p.kernel_x, p.stride_x, p.dilation_x, p.pad_x
        tiled = p.tiled
        shares = p.scratch + (SCRATCH_ROWS * t * p.row_size + p.margin) * size
        spread = p.scratch + (SCRATCH_ROWS * t + 1) * p.row_size * size
        cells = reals(spread, bits)
        share = reals(shares, bits)
        for i in range(-p.margin, p.row_size - p.margin, lanes):
            simd.store(shares + i * size, zero)
        columns = pad_x + width
        units = p.images * p.channels
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, c = divmod(unit, p.channels)
            plane = p.x + (n * p.x_n + c * p.x_c) * size
            source = p.y + (n * p.y_n + c * p.y_c) * size
            if not tiled:
                for i in range(0, p.depth * x_z, lanes):
                    put(plane + i * size, zero, p.depth * x_z - i)
            for oz in range(out_depth):
                planes = (last_z[oz] - first_z[oz] + step_z - 1) // step_z
                for oy in range(out_height):
                    rows = (last_y[oy] - first_y[oy] + step_y - 1) // step_y
                    extent = simd.splat_like(window_extent(p, oz, oy), zero)
                    gradients = source + (oz * p.y_z + oy * p.y_y) * size
                    share_out(shares, gradients, out_width, p.extent_x, extent)
                    if stride_x == 1:
                        spread_sideways(spread, shares, columns, kernel_x, 1, dilation_x, zero)
                    elif stride_x == 2:
                        spread_sideways(spread, shares, columns, kernel_x, 2, dilation_x, zero)
                    else:
                        for i in range(0, columns, lanes):
                            simd.store(spread + i * size, zero)
                        for ox in range(out_width):
                            for kx in range(kernel_x):
                                cells[ox * stride_x + kx * dilation_x] += share[ox]
                    spread_down(
                        plane + (first_z[oz] * x_z + first_y[oy] * x_y) * size,
                        spread + pad_x * size,
                        planes,
                        step_z * x_z * size,
                        rows,
                        step_y * x_y * size,
                        width,
                        tiled,
                        zero,
                    )

    return avg_rows_backward
