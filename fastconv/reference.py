"""The reference: every operation as the loops of its definition, in float64.

Nothing here is clever, so that it can be read and believed; everything else in fastconv is tested
against it. Arrays have three spatial axes: x is (N, C, D, H, W), a weight (K, C // groups, T, R, S),
and 1-d and 2-d data have axes of size 1 in front. ``stride``, ``padding`` (what is put *before* each
axis), ``dilation`` and ``output`` (the spatial size of y) are triples. Cells outside x count as zero for
convolution and average pooling, and do not take part in max pooling.

Loop indices: n image, k output channel, c input channel within the group, (oz, oy, ox) output cell,
(kz, ky, kx) kernel cell, (iz, iy, ix) input cell.
"""

from __future__ import annotations

import numpy as np

from fastconv.jit import compiled, inlined


@inlined
def inside(iz, iy, ix, size):
    """Whether an input cell exists, or lies in the padding."""
    return 0 <= iz < size[0] and 0 <= iy < size[1] and 0 <= ix < size[2]


# --- convolution --------------------------------------------------------------------------------
# y = conv(x, weight) is linear in x and in weight. The three functions run the same loops over the same
# products; they differ in which of the three arrays collects them.


@compiled
def conv(x, weight, stride, padding, dilation, groups, output):
    """y[n, k, o] = sum over c and t of x[n, c, o * stride - padding + t * dilation] * weight[k, c, t]"""
    group_in, group_out = weight.shape[1], weight.shape[0] // groups
    y = np.zeros((x.shape[0], weight.shape[0]) + output)
    for n, k, oz, oy, ox in np.ndindex(y.shape):
        first_channel = k // group_out * group_in
        for c, kz, ky, kx in np.ndindex(weight.shape[1:]):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, x.shape[2:]):
                y[n, k, oz, oy, ox] += x[n, first_channel + c, iz, iy, ix] * weight[k, c, kz, ky, kx]
    return y


@compiled
def conv_input_grad(grad_output, weight, stride, padding, dilation, groups, size):
    """d sum(grad_output * y) / dx, for x of spatial size `size`."""
    group_in, group_out = weight.shape[1], weight.shape[0] // groups
    grad_x = np.zeros((grad_output.shape[0], group_in * groups) + size)
    for n, k, oz, oy, ox in np.ndindex(grad_output.shape):
        first_channel = k // group_out * group_in
        for c, kz, ky, kx in np.ndindex(weight.shape[1:]):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, size):
                grad_x[n, first_channel + c, iz, iy, ix] += (
                    grad_output[n, k, oz, oy, ox] * weight[k, c, kz, ky, kx]
                )
    return grad_x


@compiled
def conv_weight_grad(grad_output, x, stride, padding, dilation, groups, kernel):
    """d sum(grad_output * y) / dweight, for a kernel of spatial size `kernel`."""
    group_in, group_out = x.shape[1] // groups, grad_output.shape[1] // groups
    grad_weight = np.zeros((grad_output.shape[1], group_in) + kernel)
    for n, k, oz, oy, ox in np.ndindex(grad_output.shape):
        first_channel = k // group_out * group_in
        for c, kz, ky, kx in np.ndindex(grad_weight.shape[1:]):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, x.shape[2:]):
                grad_weight[k, c, kz, ky, kx] += (
                    grad_output[n, k, oz, oy, ox] * x[n, first_channel + c, iz, iy, ix]
                )
    return grad_weight


# --- max pooling --------------------------------------------------------------------------------


@compiled
def max_pool(x, kernel, stride, padding, dilation, output):
    """The largest cell of each window, and its flat position in the (D, H, W) plane.

    The first of equal cells wins. A NaN is larger than everything, and the first NaN wins. x may be of ints.
    """
    size = x.shape[2:]
    y = np.zeros(x.shape[:2] + output, x.dtype)
    indices = np.zeros(x.shape[:2] + output, np.int64)
    for n, c, oz, oy, ox in np.ndindex(y.shape):
        best, place = x[n, c, 0, 0, 0], -1
        for kz, ky, kx in np.ndindex(kernel):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, size):
                value = x[n, c, iz, iy, ix]
                larger = value > best or (value != value and best == best)
                if place < 0 or larger:
                    best, place = value, (iz * size[1] + iy) * size[2] + ix
        y[n, c, oz, oy, ox] = best
        indices[n, c, oz, oy, ox] = place
    return y, indices


@compiled
def max_pool_backward(grad_output, indices, size):
    """Each gradient goes to the cell that was the largest; where windows overlap they add up."""
    grad_x = np.zeros(grad_output.shape[:2] + size)
    for n, c, oz, oy, ox in np.ndindex(grad_output.shape):
        place = indices[n, c, oz, oy, ox]
        iz, rest = divmod(place, size[1] * size[2])
        iy, ix = divmod(rest, size[2])
        grad_x[n, c, iz, iy, ix] += grad_output[n, c, oz, oy, ox]
    return grad_x


@compiled
def max_unpool(x, indices, size):
    """Each cell of x goes where its index says, of several the last one; the rest is 0."""
    y = np.zeros(x.shape[:2] + size)
    for n, c, oz, oy, ox in np.ndindex(x.shape):
        place = indices[n, c, oz, oy, ox]
        iz, rest = divmod(place, size[1] * size[2])
        iy, ix = divmod(rest, size[2])
        y[n, c, iz, iy, ix] = x[n, c, oz, oy, ox]
    return y


@compiled
def max_unpool_backward(grad_output, indices):
    """Each cell of x has the gradient of the cell that its index names."""
    size = grad_output.shape[2:]
    grad_x = np.zeros(indices.shape)
    for n, c, oz, oy, ox in np.ndindex(indices.shape):
        place = indices[n, c, oz, oy, ox]
        iz, rest = divmod(place, size[1] * size[2])
        iy, ix = divmod(rest, size[2])
        grad_x[n, c, oz, oy, ox] = grad_output[n, c, iz, iy, ix]
    return grad_x


# --- average pooling ----------------------------------------------------------------------------


@compiled
def window_divisor(
    oz, oy, ox, size, kernel, stride, padding, padding_after, dilation, count_padding, override
):
    """What the sum over one window is divided by.

    `override` if it is positive; else the number of cells of the window that lie in x or, with
    `count_padding`, in the explicit padding. Cells beyond that (of a last window in ceil mode) never count.
    """
    if override > 0:
        return override
    count = 0
    for kz, ky, kx in np.ndindex(kernel):
        iz = oz * stride[0] - padding[0] + kz * dilation[0]
        iy = oy * stride[1] - padding[1] + ky * dilation[1]
        ix = ox * stride[2] - padding[2] + kx * dilation[2]
        padded = (
            iz < size[0] + padding_after[0]
            and iy < size[1] + padding_after[1]
            and ix < size[2] + padding_after[2]
        )
        if inside(iz, iy, ix, size) or (count_padding and padded):
            count += 1
    return count


@compiled
def avg_pool(x, kernel, stride, padding, padding_after, dilation, output, count_padding, override):
    """The sum over each window divided by `window_divisor`."""
    size = x.shape[2:]
    y = np.zeros(x.shape[:2] + output)
    for n, c, oz, oy, ox in np.ndindex(y.shape):
        total = 0.0
        for kz, ky, kx in np.ndindex(kernel):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, size):
                total += x[n, c, iz, iy, ix]
        y[n, c, oz, oy, ox] = total / window_divisor(
            oz,
            oy,
            ox,
            size,
            kernel,
            stride,
            padding,
            padding_after,
            dilation,
            count_padding,
            override,
        )
    return y


@compiled
def avg_pool_backward(
    grad_output, kernel, stride, padding, padding_after, dilation, size, count_padding, override
):
    """Each gradient, divided like the average, goes to every cell of its window."""
    grad_x = np.zeros(grad_output.shape[:2] + size)
    for n, c, oz, oy, ox in np.ndindex(grad_output.shape):
        share = grad_output[n, c, oz, oy, ox] / window_divisor(
            oz,
            oy,
            ox,
            size,
            kernel,
            stride,
            padding,
            padding_after,
            dilation,
            count_padding,
            override,
        )
        for kz, ky, kx in np.ndindex(kernel):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, size):
                grad_x[n, c, iz, iy, ix] += share
    return grad_x


# --- power-average pooling ----------------------------------------------------------------------


@compiled
def lp_pool(x, norm, kernel, stride, padding, padding_after, dilation, output):
    """(T * the mean over each window of x ** norm) ** (1 / norm), for windows of T cells.

    The mean is that of `avg_pool`, padding counted: T times it is the sum, but for windows that hang over.
    """
    size = x.shape[2:]
    taps = kernel[0] * kernel[1] * kernel[2]
    y = np.zeros(x.shape[:2] + output)
    for n, c, oz, oy, ox in np.ndindex(y.shape):
        total = 0.0
        for kz, ky, kx in np.ndindex(kernel):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, size):
                total += x[n, c, iz, iy, ix] ** norm
        count = window_divisor(oz, oy, ox, size, kernel, stride, padding, padding_after, dilation, True, 0)
        y[n, c, oz, oy, ox] = (total * taps / count) ** (1 / norm)
    return y


@compiled
def lp_pool_backward(grad_output, x, y, norm, kernel, stride, padding, padding_after, dilation):
    """d sum(grad_output * y) / dx for y = lp_pool(x); 0 by definition where y is 0."""
    size = x.shape[2:]
    taps = kernel[0] * kernel[1] * kernel[2]
    grad_x = np.zeros(x.shape)
    for n, c, oz, oy, ox in np.ndindex(y.shape):
        if y[n, c, oz, oy, ox] == 0:
            continue
        count = window_divisor(oz, oy, ox, size, kernel, stride, padding, padding_after, dilation, True, 0)
        share = grad_output[n, c, oz, oy, ox] * taps / count * y[n, c, oz, oy, ox] ** (1 - norm)
        for kz, ky, kx in np.ndindex(kernel):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, size):
                grad_x[n, c, iz, iy, ix] += share * x[n, c, iz, iy, ix] ** (norm - 1)
    return grad_x


# --- adaptive pooling ---------------------------------------------------------------------------


@inlined
def adaptive_window(o, size, output):
    """First and last (exclusive) cell of adaptive window `o`, in integer arithmetic."""
    return o * size // output, -((-(o + 1) * size) // output)


@compiled
def adaptive_max_pool(x, output):
    """As `max_pool`, over windows that divide x into `output` parts as evenly as cells allow."""
    size = x.shape[2:]
    y = np.zeros(x.shape[:2] + output, x.dtype)
    indices = np.zeros(x.shape[:2] + output, np.int64)
    for n, c, oz, oy, ox in np.ndindex(y.shape):
        z0, z1 = adaptive_window(oz, size[0], output[0])
        y0, y1 = adaptive_window(oy, size[1], output[1])
        x0, x1 = adaptive_window(ox, size[2], output[2])
        best, place = x[n, c, z0, y0, x0], -1
        for dz, dy, dx in np.ndindex((z1 - z0, y1 - y0, x1 - x0)):
            value = x[n, c, z0 + dz, y0 + dy, x0 + dx]
            if place < 0 or value > best or (value != value and best == best):
                best, place = value, ((z0 + dz) * size[1] + y0 + dy) * size[2] + x0 + dx
        y[n, c, oz, oy, ox] = best
        indices[n, c, oz, oy, ox] = place
    return y, indices


@compiled
def adaptive_avg_pool(x, output):
    """The mean over windows that divide x into `output` parts as evenly as cells allow."""
    size = x.shape[2:]
    y = np.zeros(x.shape[:2] + output)
    for n, c, oz, oy, ox in np.ndindex(y.shape):
        z0, z1 = adaptive_window(oz, size[0], output[0])
        y0, y1 = adaptive_window(oy, size[1], output[1])
        x0, x1 = adaptive_window(ox, size[2], output[2])
        y[n, c, oz, oy, ox] = np.mean(x[n, c, z0:z1, y0:y1, x0:x1])
    return y


@compiled
def adaptive_avg_pool_backward(grad_output, size):
    """Each gradient is shared evenly among the cells of its window."""
    output = grad_output.shape[2:]
    grad_x = np.zeros(grad_output.shape[:2] + size)
    for n, c, oz, oy, ox in np.ndindex(grad_output.shape):
        z0, z1 = adaptive_window(oz, size[0], output[0])
        y0, y1 = adaptive_window(oy, size[1], output[1])
        x0, x1 = adaptive_window(ox, size[2], output[2])
        cells = (z1 - z0) * (y1 - y0) * (x1 - x0)
        grad_x[n, c, z0:z1, y0:y1, x0:x1] += grad_output[n, c, oz, oy, ox] / cells
    return grad_x


# --- 8-bit integers -----------------------------------------------------------------------------


@compiled
def conv_integer(x, weight, x_zero_point, weight_zero_points, stride, padding, dilation, groups, output):
    """`conv` of differences from the zero points, in integers; each output channel has one for its weight."""
    group_in, group_out = weight.shape[1], weight.shape[0] // groups
    y = np.zeros((x.shape[0], weight.shape[0]) + output, np.int64)
    for n, k, oz, oy, ox in np.ndindex(y.shape):
        first_channel = k // group_out * group_in
        for c, kz, ky, kx in np.ndindex(weight.shape[1:]):
            iz = oz * stride[0] - padding[0] + kz * dilation[0]
            iy = oy * stride[1] - padding[1] + ky * dilation[1]
            ix = ox * stride[2] - padding[2] + kx * dilation[2]
            if inside(iz, iy, ix, x.shape[2:]):
                y[n, k, oz, oy, ox] += (np.int64(x[n, first_channel + c, iz, iy, ix]) - x_zero_point) * (
                    np.int64(weight[k, c, kz, ky, kx]) - weight_zero_points[k]
                )
    return y


# --- deformable convolution ---------------------------------------------------------------------


@inlined
def between_cells(plane, y, x):
    """A plane at (y, x): linear between cells, zero beyond the borders, and NaN where the place is NaN."""
    if y != y or x != x:
        return np.nan
    total = 0.0
    if -1 < y < plane.shape[0] and -1 < x < plane.shape[1]:
        top, left = int(np.floor(y)), int(np.floor(x))
        for iy, ix in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if inside(0, iy, ix, (1,) + plane.shape):
                total += (1 - abs(y - iy)) * (1 - abs(x - ix)) * plane[iy, ix]
    return total


@compiled
def deform_conv(x, offset, weight, mask, stride, padding, dilation, groups, output):
    """`conv` in two dimensions, x (N, C, H, W), where each cell of each window has moved.

    Offsets (N, offset groups, R, S, 2, P, Q) are how far, down and to the right; what is read there is
    multiplied by the mask (N, offset groups, R, S, P, Q).
    """
    group_in, group_out = weight.shape[1], weight.shape[0] // groups
    offset_channels = x.shape[1] // offset.shape[1]
    y = np.zeros((x.shape[0], weight.shape[0]) + output)
    for n, k, oy, ox in np.ndindex(y.shape):
        for c, ky, kx in np.ndindex(weight.shape[1:]):
            channel = k // group_out * group_in + c
            g = channel // offset_channels
            iy = oy * stride[0] - padding[0] + ky * dilation[0] + offset[n, g, ky, kx, 0, oy, ox]
            ix = ox * stride[1] - padding[1] + kx * dilation[1] + offset[n, g, ky, kx, 1, oy, ox]
            value = between_cells(x[n, channel], iy, ix) * mask[n, g, ky, kx, oy, ox]
            y[n, k, oy, ox] += value * weight[k, c, ky, kx]
    return y
