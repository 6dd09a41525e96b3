"""Convolution of channels-last arrays: a matrix product that reads x through a table of addresses.

Where channels are the last axis, the cell of x that a kernel cell sees is a row of reals, and the output
channels of a pixel are neighbours. So output channels lie on the lanes, and x needs no packing:

    y (pixels, Kg) = sum over kernel cells of  x (pixels, Cg)  x  weight (Cg, Kg)       for each group

    A: ROWS pixels, where they are          B: packed, a panel of up to VECTORS vectors of channels
       tap 0: -> x[0,0,:] .. x[0,7,:]          tap 0: | weight[0, 0, k..] | weight[0, 1, k..] | ..
       tap 1: -> x[0,1,:] .. x[0,8,:]          tap 1: | weight[1, 0, k..] | ..

The table has the address of the pixel that each kernel cell sees, and that of a row of zeros where it sees
padding: any stride, dilation and padding is the same to the product, and nothing is copied or tested in it.
This is the indirect convolution of M. Dukhan ("The Indirect Convolution Algorithm", 2019). Rows of y are
found by a table as well: those behind the last pixel go to a row that nobody reads.

Where there are few channels, the kernel cells of a row count as one with as many times the channels, for what
they see is one row of reals, once the rows of x are widened by their padding.

    for each block of pixels                                    in y, in L2
        for each group
            for each block of kernel cells and channels         its part of B: L2 or L3
                for each panel of output channels               a panel stays in L2
                    for each tile of ROWS pixels                x streams from L2

A task has a range of tiles and a range of panels. Sums are added in the order of the kernel cells and the
channels, whatever the tasks and the blocks of pixels.
"""

from __future__ import annotations

from math import inf

from fastconv.jit import fields, inlined, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import BIAS, LOAD, ROWS, VECTORS, ZERO, multiply_pixels
from fastconv.kernels.simd import LANES, put, take

FORWARD = record(
    # addresses; weight is packed (`pack_columns`), bias may be 0
    "x weight bias y scratch scratch_bytes relu "
    # strides in elements; channels are contiguous
    "x_n x_z x_y x_x y_n y_z y_y y_x "
    "images groups group_in group_out depth height width "
    "kernel_z kernel_y kernel_x stride_z stride_y stride_x "
    "dilation_z dilation_y dilation_x pad_z pad_y pad_x "
    "out_depth out_height out_width "
    # blocks, and over how many tasks tiles and panels are split
    "block_taps block_channels block_tiles pixel_tasks panel_tasks "
    # parts of a task's scratch, bytes from its start
    "at_zeros at_unread at_offsets at_a at_c"
)

#: `taps_at` is a table of the elements from the first kernel cell of a channel to each that is used.
PACK = record(
    "weight packed taps_at groups group_in group_out taps block_taps block_channels "
    "group_stride row_stride channel_stride"
)

#: Rows of x, and how long they are and become; how many zeros come before them.
WIDEN = record("x wide rows row wide_row left")


@kernel(PACK)
def pack_columns(bits):
    """packed[group][block][panel][tap, c][column] = weight, zeros behind the last. A unit is a panel."""
    lanes, size = LANES[bits], bits // 8

    def pack_columns(params, t, tasks):
        p = fields(params, PACK)
        weight, packed, taps_at = reals(p.weight, bits), reals(p.packed, bits), ints(p.taps_at)
        zero = simd.splat(0.0, bits)
        vectors = (p.group_out + lanes - 1) // lanes
        panels = (vectors + VECTORS - 1) // VECTORS
        units = p.groups * panels
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            group, panel = divmod(unit, panels)
            first = panel * vectors // panels
            width = ((panel + 1) * vectors // panels - first) * lanes
            columns = min(width, p.group_out - first * lanes)
            source = group * p.group_stride + first * lanes * p.row_stride
            for t0 in range(0, p.taps, p.block_taps):
                block_taps = min(p.block_taps, p.taps - t0)
                for c0 in range(0, p.group_in, p.block_channels):
                    channels = min(p.block_channels, p.group_in - c0)
                    block = group * p.taps * p.group_in + t0 * p.group_in + block_taps * c0
                    target = block * vectors * lanes + block_taps * channels * first * lanes
                    for tap in range(t0, t0 + block_taps):
                        cells = source + taps_at[tap] + c0 * p.channel_stride
                        done = 0
                        if p.row_stride == 1:
                            for c in range(channels):
                                row = cells + c * p.channel_stride
                                for k in range(0, width, lanes):
                                    part = take(p.weight + (row + k) * size, columns - k, zero)
                                    simd.store(p.packed + (target + c * width + k) * size, part)
                            done = channels
                        elif p.channel_stride == 1:
                            done = channels // lanes * lanes
                        if p.row_stride != 1:
                            for c in range(0, done, lanes):
                                for k in range(0, width, lanes):
                                    simd.transpose_square(
                                        p.weight + (cells + c + k * p.row_stride) * size,
                                        p.row_stride * size,
                                        min(lanes, columns - k),
                                        lanes,
                                        p.packed + (target + c * width + k) * size,
                                        width * size,
                                        zero,
                                    )
                        for c in range(done, channels):
                            row = cells + c * p.channel_stride
                            for k in range(columns):
                                packed[target + c * width + k] = weight[row + k * p.row_stride]
                            for k in range(columns, width):
                                packed[target + c * width + k] = 0
                        target += channels * width

    return pack_columns


@kernel(WIDEN)
def widen_rows(bits):
    """wide = the rows of x with zeros at their ends. A unit is a row."""
    lanes, size = LANES[bits], bits // 8

    def widen_rows(params, t, tasks):
        p = fields(params, WIDEN)
        zero = simd.splat(0.0, bits)
        for unit in range(t * p.rows // tasks, (t + 1) * p.rows // tasks):
            target = p.wide + unit * p.wide_row * size
            source = p.x + unit * p.row * size
            for i in range(0, p.left, lanes):
                put(target + i * size, zero, p.left - i)
            used = min(p.row, p.wide_row - p.left)
            for i in range(0, used, lanes):
                put(target + (p.left + i) * size, take(source + i * size, used - i, zero), used - i)
            for i in range(p.left + used, p.wide_row, lanes):
                put(target + i * size, zero, p.wide_row - i)

    return widen_rows


@inlined
def table_of_taps(p, offsets, size):
    """offsets[kz, ky, kx] = bytes from the cell of x that the first one sees to what that one does."""
    tap = 0
    for kz in range(p.kernel_z):
        for ky in range(p.kernel_y):
            for kx in range(p.kernel_x):
                offset = kz * p.dilation_z * p.x_z + ky * p.dilation_y * p.x_y + kx * p.dilation_x * p.x_x
                offsets[tap] = offset * size
                tap += 1


@inlined
def table_of_pixel(p, n, oz, oy, ox, row, offsets, a_rows, zeros, size):
    """The entries of a tile's table for one pixel of y, which is its row `row`."""
    z, y, x = oz * p.stride_z - p.pad_z, oy * p.stride_y - p.pad_y, ox * p.stride_x - p.pad_x
    base = p.x + (n * p.x_n + z * p.x_z + y * p.x_y + x * p.x_x) * size
    tap = 0
    for kz in range(p.kernel_z):
        iz = z + kz * p.dilation_z
        for ky in range(p.kernel_y):
            iy = y + ky * p.dilation_y
            inside = 0 <= iz < p.depth and 0 <= iy < p.height
            for kx in range(p.kernel_x):
                ix = x + kx * p.dilation_x
                seen = inside and 0 <= ix < p.width
                a_rows[tap * ROWS + row] = base + offsets[tap] if seen else zeros
                tap += 1


@inlined
def fill_tables(p, first, last, taps, offsets, a_rows, c_rows, zeros, unread, size):
    """Addresses of what each kernel cell sees from the pixels in [first, last), and of their rows of y."""
    reach_z = (p.kernel_z - 1) * p.dilation_z
    reach_y = (p.kernel_y - 1) * p.dilation_y
    reach_x = (p.kernel_x - 1) * p.dilation_x
    n, rest = divmod(first, p.out_depth * p.out_height * p.out_width)
    oz, rest = divmod(rest, p.out_height * p.out_width)
    oy, ox = divmod(rest, p.out_width)
    for start in range(first, last, ROWS):
        z, y, x = oz * p.stride_z - p.pad_z, oy * p.stride_y - p.pad_y, ox * p.stride_x - p.pad_x
        c = p.y + (n * p.y_n + oz * p.y_z + oy * p.y_y + ox * p.y_x) * size
        inner = ox + ROWS <= p.out_width and start + ROWS <= last
        inner = inner and z >= 0 and z + reach_z < p.depth and y >= 0 and y + reach_y < p.height
        if inner and x >= 0 and x + (ROWS - 1) * p.stride_x + reach_x < p.width:
            # all in one row of pixels, and none sees padding
            base = p.x + (n * p.x_n + z * p.x_z + y * p.x_y + x * p.x_x) * size
            step = p.stride_x * p.x_x * size
            for tap in range(taps):
                place = base + offsets[tap]
                for row in range(ROWS):
                    ints(a_rows)[tap * ROWS + row] = place + row * step
            for row in range(ROWS):
                ints(c_rows)[row] = c + row * p.y_x * size
            ox += ROWS
        else:
            for row in range(ROWS):
                if start + row >= last:
                    ints(c_rows)[row] = unread
                    for tap in range(taps):
                        ints(a_rows)[tap * ROWS + row] = zeros
                    continue
                ints(c_rows)[row] = p.y + (n * p.y_n + oz * p.y_z + oy * p.y_y + ox * p.y_x) * size
                table_of_pixel(p, n, oz, oy, ox, row, offsets, ints(a_rows), zeros, size)
                ox += 1
                if ox == p.out_width:
                    ox, oy = 0, oy + 1
                    if oy == p.out_height:
                        oy, oz = 0, oz + 1
                        if oz == p.out_depth:
                            oz, n = 0, n + 1
        if ox == p.out_width:
            ox, oy = 0, oy + 1
            if oy == p.out_height:
                oy, oz = 0, oz + 1
                if oz == p.out_depth:
                    oz, n = 0, n + 1
        a_rows += taps * ROWS * 8
        c_rows += ROWS * 8


@kernel(FORWARD)
def forward(bits):
    """y = conv(x, weight) + bias, and no less than 0 with `relu`."""
    lanes, size = LANES[bits], bits // 8

    def forward(params, t, tasks):
        p = fields(params, FORWARD)
        zero = simd.splat(0.0, bits)
        taps = p.kernel_z * p.kernel_y * p.kernel_x
        pixels = p.images * p.out_depth * p.out_height * p.out_width
        vectors = (p.group_out + lanes - 1) // lanes
        panels = (vectors + VECTORS - 1) // VECTORS
        tail = p.group_out - (vectors - 1) * lanes

        # this task's panels and tiles
        pixel_task, panel_task = divmod(t, p.panel_tasks)
        first_panel = panel_task * panels // p.panel_tasks
        last_panel = (panel_task + 1) * panels // p.panel_tasks
        tiles = (pixels + ROWS - 1) // ROWS
        first_pixel = pixel_task * tiles // p.pixel_tasks * ROWS
        last_pixel = min((pixel_task + 1) * tiles // p.pixel_tasks * ROWS, pixels)

        scratch = p.scratch + t * p.scratch_bytes
        zeros, unread = scratch + p.at_zeros, scratch + p.at_unread
        for i in range(0, p.groups * p.group_in, lanes):
            simd.store(zeros + i * size, zero)
        offsets = ints(scratch + p.at_offsets)
        table_of_taps(p, offsets, size)
        a_rows, c_rows = scratch + p.at_a, scratch + p.at_c

        for block in range(first_pixel, last_pixel, p.block_tiles * ROWS):
            end = min(block + p.block_tiles * ROWS, last_pixel)
            fill_tables(p, block, end, taps, offsets, a_rows, c_rows, zeros, unread, size)
            for group in range(p.groups):
                for t0 in range(0, taps, p.block_taps):
                    block_taps = min(p.block_taps, taps - t0)
                    for c0 in range(0, p.group_in, p.block_channels):
                        channels = min(p.block_channels, p.group_in - c0)
                        weights = (group * taps + t0) * p.group_in + block_taps * c0
                        start = LOAD if t0 + c0 > 0 else (BIAS if p.bias else ZERO)
                        final = t0 + block_taps == taps and c0 + channels == p.group_in
                        least = 0.0 if final and p.relu else -inf
                        a_skip = (group * p.group_in + c0) * size
                        for panel in range(first_panel, last_panel):
                            first = panel * vectors // panels
                            count = (panel + 1) * vectors // panels - first
                            depth = block_taps * channels
                            b = p.weight + (weights * vectors + depth * first) * lanes * size
                            column = group * p.group_out + first * lanes
                            bias, c_skip = p.bias + column * size, column * size
                            used = tail if first + count == vectors else lanes
                            a, c = a_rows + t0 * ROWS * 8, c_rows
                            for _ in range(block, end, ROWS):
                                if count == 3:
                                    multiply_pixels(
                                        a,
                                        a_skip,
                                        block_taps,
                                        channels,
                                        b,
                                        c,
                                        c_skip,
                                        start,
                                        bias,
                                        least,
                                        used,
                                        3,
                                        zero,
                                    )
                                elif count == 2:
                                    multiply_pixels(
                                        a,
                                        a_skip,
                                        block_taps,
                                        channels,
                                        b,
                                        c,
                                        c_skip,
                                        start,
                                        bias,
                                        least,
                                        used,
                                        2,
                                        zero,
                                    )
                                else:
                                    multiply_pixels(
                                        a,
                                        a_skip,
                                        block_taps,
                                        channels,
                                        b,
                                        c,
                                        c_skip,
                                        start,
                                        bias,
                                        least,
                                        used,
                                        1,
                                        zero,
                                    )
                                a += taps * ROWS * 8
                                c += ROWS * 8

    return forward
