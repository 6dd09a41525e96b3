"""im2col and col2im: between an image and the matrix of its windows.

    image (n, c, z, y, x)                          columns, one row per channel and kernel cell
    +---+---+---+
    | a | b | c |   kernel 2 x 2                   row (c, 0, 0):  a b d e
    +---+---+---+   windows: abde, bcef,           row (c, 0, 1):  b c e f
    | d | e | f |            degh, efhi            row (c, 1, 0):  d e g h
    +---+---+---+                                  row (c, 1, 1):  e f h i
    | g | h | i |                                                  pixel -->
    +---+---+---+

A call moves one block: some images, some groups of channels, some rows of each group's matrix, some
output pixels. The block is contiguous, ordered (n, group, row, pixel).
Algorithm: K. Chellapilla, S. Puri, P. Simard, "High performance convolutional neural networks for document
processing" (2006); the name is MATLAB's.
"""

from __future__ import annotations

from math import inf

from fastconv.jit import fields, inlined, kernel, reals, record

LOWERING = record(
    # addresses
    "image columns "
    # strides of image, in elements
    "image_n image_c image_z image_y image_x "
    # sizes of image and of a row of output pixels and a plane of rows
    "depth height width out_height out_width "
    # window; taps = cells of the kernel
    "taps kernel_y kernel_x stride_z stride_y stride_x "
    "dilation_z dilation_y dilation_x pad_z pad_y pad_x "
    # channels of a group, and the block: where it begins, and how much of each axis it has
    "group_channels first_n first_group first_row first_pixel images groups rows pixels "
    # what padding reads as, for im2col: 0 zero, 1 minus infinity
    "lowest"
)


@inlined
def positions_inside(start, step, size, first, last):
    """The part [low, high) of the positions [first, last) where 0 <= start + position * step < size."""
    low = first
    if start + first * step < 0:
        low = min(-(start // step), last)
    high = last
    if start + (last - 1) * step >= size:
        high = max((size - start + step - 1) // step, low)
    return low, high


@inlined
def move_row(p, image, base, columns, column, row, gather, padding):
    """One row of the matrix: gather it from the image at `base`, or add it back to it.

    A row is cut into runs of pixels in one output row; of each run the part inside the image is one strided
    copy. `gather` is a constant at every call, so that only one of the two ways is compiled in.
    """
    tap = row % p.taps
    kernel_z, rest = divmod(tap, p.kernel_y * p.kernel_x)
    kernel_y, kernel_x = divmod(rest, p.kernel_x)
    z0 = kernel_z * p.dilation_z - p.pad_z
    y0 = kernel_y * p.dilation_y - p.pad_y
    x0 = kernel_x * p.dilation_x - p.pad_x
    step = p.stride_x * p.image_x

    pixel = p.first_pixel
    end = pixel + p.pixels
    rest, ox = divmod(pixel, p.out_width)
    oz, oy = divmod(rest, p.out_height)
    while pixel < end:
        run = min(p.out_width - ox, end - pixel)
        z = oz * p.stride_z + z0
        y = oy * p.stride_y + y0
        low, high = ox + run, ox + run
        if 0 <= z < p.depth and 0 <= y < p.height:
            low, high = positions_inside(x0, p.stride_x, p.width, ox, ox + run)
        # column + o - ox is where output cell o of this run is kept
        source = base + z * p.image_z + y * p.image_y + (x0 + low * p.stride_x) * p.image_x
        target = column + low - ox
        if gather:
            for i in range(low - ox):
                columns[column + i] = padding
            if step == 1:
                for i in range(high - low):
                    columns[target + i] = image[source + i]
            else:
                for i in range(high - low):
                    columns[target + i] = image[source + i * step]
            for i in range(high - ox, run):
                columns[column + i] = padding
        elif step == 1:
            for i in range(high - low):
                image[source + i] += columns[target + i]
        else:
            for i in range(high - low):
                image[source + i * step] += columns[target + i]
        column += run
        pixel += run
        ox = 0
        oy += 1
        if oy == p.out_height:
            oy = 0
            oz += 1


@kernel(LOWERING)
def im2col(bits):
    """Write the block of `columns` from `image`. A unit is one row of one image and group."""

    def im2col(params, t, tasks):
        p = fields(params, LOWERING)
        image = reals(p.image, bits)
        columns = reals(p.columns, bits)
        padding = -inf if p.lowest else 0.0
        units = p.images * p.groups * p.rows
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            rest, r = divmod(unit, p.rows)
            n, group = divmod(rest, p.groups)
            row = p.first_row + r
            channel = (p.first_group + group) * p.group_channels + row // p.taps
            base = (p.first_n + n) * p.image_n + channel * p.image_c
            move_row(p, image, base, columns, unit * p.pixels, row, True, padding)

    return im2col


@kernel(LOWERING)
def col2im(bits):
    """Add the block of `columns` into `image`. A unit is one channel of one image."""

    def col2im(params, t, tasks):
        p = fields(params, LOWERING)
        image = reals(p.image, bits)
        columns = reals(p.columns, bits)
        first_channel = p.first_row // p.taps
        last_row = p.first_row + p.rows
        channels = (last_row - 1) // p.taps - first_channel + 1
        units = p.images * p.groups * channels
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            matrix, c = divmod(unit, channels)
            n, group = divmod(matrix, p.groups)
            c += first_channel
            channel = (p.first_group + group) * p.group_channels + c
            base = (p.first_n + n) * p.image_n + channel * p.image_c
            for row in range(max(c * p.taps, p.first_row), min((c + 1) * p.taps, last_row)):
                column = (matrix * p.rows + row - p.first_row) * p.pixels
                move_row(p, image, base, columns, column, row, False, 0.0)

    return col2im
