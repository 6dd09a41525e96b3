"""The matrix of a deformable convolution's windows, each cell of which is read at a place of its own.

A row of `columns` is a channel and kernel cell, as for im2col; places lie between cells of the image, so that
a number is the mean of the four around it, weighted by how near they are.
"""

from __future__ import annotations

from math import floor

from fastconv.jit import fields, kernel, reals, record

SAMPLES = record(
    # addresses, of one image: x (C, H, W), offset (offset groups, taps, 2, L), mask (offset groups, taps, L)
    # or 0, and columns (C, taps, pixels)
    "x offset mask columns "
    # sizes
    "channels height width offset_groups taps kernel_x out_width out_pixels "
    # the window, and which pixels
    "stride_y stride_x dilation_y dilation_x pad_y pad_x first_pixel pixels"
)


@kernel(SAMPLES)
def samples(bits):
    """Write the block of `columns`. A unit is an offset group and a kernel cell."""

    def samples(params, t, tasks):
        p = fields(params, SAMPLES)
        image, columns = reals(p.x, bits), reals(p.columns, bits)
        offset, mask = reals(p.offset, bits), reals(p.mask, bits)
        group_channels, plane = p.channels // p.offset_groups, p.height * p.width
        units = p.offset_groups * p.taps
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            group, tap = divmod(unit, p.taps)
            kernel_y, kernel_x = divmod(tap, p.kernel_x)
            for i in range(p.pixels):
                pixel = p.first_pixel + i
                oy, ox = divmod(pixel, p.out_width)
                place = 2 * unit * p.out_pixels + pixel
                # in float64 whatever the dtype: a place is rounded no more than it was given
                y = oy * p.stride_y - p.pad_y + kernel_y * p.dilation_y + float(offset[place])
                x = ox * p.stride_x - p.pad_x + kernel_x * p.dilation_x + float(offset[place + p.out_pixels])
                factor = float(mask[unit * p.out_pixels + pixel]) if p.mask else 1.0
                known = y == y and x == x
                inside = -1 < y < p.height and -1 < x < p.width
                top, left = (floor(y), floor(x)) if inside else (0, 0)
                down, right = y - top, x - left
                above, below = inside and top >= 0, inside and top + 1 < p.height
                before, behind = left >= 0, left + 1 < p.width
                cell = top * p.width + left
                for c in range(group_channels):
                    channel = group * group_channels + c
                    at = channel * plane + cell
                    value = 0.0 if known else y + x
                    if above and before:
                        value += (1 - down) * (1 - right) * image[at]
                    if above and behind:
                        value += (1 - down) * right * image[at + 1]
                    if below and before:
                        value += down * (1 - right) * image[at + p.width]
                    if below and behind:
                        value += down * right * image[at + p.width + 1]
                    columns[(channel * p.taps + tap) * p.pixels + i] = value * factor

    return samples
