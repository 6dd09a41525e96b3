"""Convolution of small images by shifts: forward, and both gradients in one go; see `images` for the idea.

A unit is an image, or for the gradients a segment of images. With `pool`, y is what 2 x 2 max pooling makes
of the result, and `codes` says for each of its cells which of the four it was: the result itself is never in
memory. The gradients take it up from there:

    gradients <- grad_output, put where the pooling took its cells from, or where y > 0, or as it is
    images    <- x                                                                  of a whole segment, in L2
    for each panel of ROWS output channels, of VECTORS kernel cells
        tile  <- the segment's gradients (K, cells) x images' (cells, CRS), a vector for each sum
        sums  <- the tile's lanes added up
    grad_x    <- the convolution of `gradients` with the weight turned round, (C, KRS) x (KRS, cells)

The sums of each segment are left to be added in their order, and segments depend on the shape alone: so the
result has the same bits whatever the number of tasks.
"""

from __future__ import annotations

from fastconv.jit import fields, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import lane_sum
from fastconv.kernels.dots import multiply_dots
from fastconv.kernels.images import (
    clear,
    convolve_panel,
    copy_image,
    copy_positive,
    pool_pairs,
    store_plane,
    table_of_shifts,
    unpool_pairs,
)
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO
from fastconv.kernels.simd import LANES

FORWARD = record(
    # addresses; weight is packed (`implicit_gemm.pack_weight`), bias as long as whole panels, or 0
    "x weight bias y codes scratch scratch_bytes relu pool "
    "images channels out_channels height width out_height out_width "
    "kernel_y kernel_x dilation_y dilation_x "
    # see `images`; `cells` counts the flat output cells, gaps included, and out_pitch has room for them
    "pitch first_cell channel_size cells out_pitch "
    # parts of a task's scratch, bytes from its start
    "at_image at_shifts at_out"
)

#: `source` says what grad_output is: PLAIN, of a ReLU with output `y`, or of the pooling that left `codes`.
PLAIN, RELU, POOLED = 0, 1, 2

BACKWARD = record(
    # addresses; `weight` is packed, channels exchanged and turned round; sums, bias_sums, weight and grad_x
    # are 0 where not wanted; not_finite[segment] = 1 where x holds NaN or infinity
    "grad_output codes y x weight sums bias_sums not_finite grad_x scratch scratch_bytes source "
    "images segments channels out_channels height width out_height out_width pooled_height pooled_width "
    "kernel_y kernel_x dilation_y dilation_x pitch "
    # of x and of the gradient: where the first cell lies, the size of a channel; the flat output cells of
    # the convolution and of the gradient's
    "x_first x_channel x_cells g_first g_channel g_cells out_pitch "
    # parts of a task's scratch, bytes from its start; the tables have `rows` and `columns` for each image
    "at_images at_gradients at_rows at_columns rows columns at_shifts at_tile at_out"
)


@kernel(FORWARD)
def forward(bits):
    """y = conv(x, weight) + bias, no less than 0 with `relu`, and pooled with `pool`."""
    size = bits // 8

    def forward(params, t, tasks):
        p = fields(params, FORWARD)
        zero = simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        image, out = scratch + p.at_image, scratch + p.at_out
        shifts = ints(scratch + p.at_shifts)
        step_y = p.dilation_y * p.pitch
        depth = table_of_shifts(
            shifts, p.channels, p.kernel_y, p.kernel_x, step_y, p.dilation_x, p.channel_size, 0, size
        )
        clear(image, p.channels * p.channel_size, zero)
        height, width = p.out_height, p.out_width
        if p.pool:
            height, width = height // 2, width // 2
        panels = (p.out_channels + ROWS - 1) // ROWS
        for n in range(t * p.images // tasks, (t + 1) * p.images // tasks):
            x = p.x + n * p.channels * p.height * p.width * size
            inside = image + p.first_cell * size
            copy_image(x, p.channels, p.height, p.width, inside, p.channel_size, p.pitch, zero)
            for panel in range(panels):
                weights = p.weight + panel * ROWS * depth * size
                bias = p.bias + panel * ROWS * size if p.bias else 0
                clipped = p.relu and not p.pool
                table = scratch + p.at_shifts
                convolve_panel(image, weights, table, depth, bias, clipped, p.cells, out, p.out_pitch, zero)
                for row in range(min(ROWS, p.out_channels - panel * ROWS)):
                    plane = (n * p.out_channels + panel * ROWS + row) * height * width
                    source = out + row * p.out_pitch * size
                    if p.pool:
                        codes = p.codes + plane if p.codes else 0
                        pool_pairs(source, p.pitch, height, width, p.y + plane * size, codes, p.relu, zero)
                    else:
                        store_plane(source, p.pitch, height, width, p.y + plane * size, zero)

    return forward


@kernel(BACKWARD)
def backward(bits):
    """grad_x, and for each segment the sums that make up the gradients of weight and bias."""
    lanes, size = LANES[bits], bits // 8
    vector_bytes = lanes * size

    def backward(params, t, tasks):
        p = fields(params, BACKWARD)
        zero = simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        images, gradients = scratch + p.at_images, scratch + p.at_gradients
        tile, out = scratch + p.at_tile, scratch + p.at_out
        rows = ints(scratch + p.at_rows)
        image_size, gradient_size = p.channels * p.x_channel, p.out_channels * p.g_channel
        plane, out_plane = p.height * p.width, p.out_height * p.out_width
        pooled_plane = p.pooled_height * p.pooled_width
        kernel_y, kernel_x = p.kernel_y, p.kernel_x
        step_y, step_x = p.dilation_y * p.pitch, p.dilation_x
        vectors = (p.x_cells + lanes - 1) // lanes
        cells = p.channels * kernel_y * kernel_x

        most = (p.images + p.segments - 1) // p.segments
        clear(gradients, most * gradient_size, zero)
        for i in range(most):
            for k in range(p.rows):  # rows and columns beyond the last repeat it
                place = i * gradient_size + min(k, p.out_channels - 1) * p.g_channel + p.g_first
                rows[i * p.rows + k] = gradients + place * size
        if p.sums:
            clear(images, most * image_size, zero)
            for i in range(most):
                table, image = (
                    ints(scratch + p.at_columns + i * p.columns * 8),
                    images + i * image_size * size,
                )
                table_of_shifts(
                    table, p.channels, kernel_y, kernel_x, step_y, step_x, p.x_channel, image, size
                )
                for cell in range(cells, p.columns):
                    table[cell] = table[cells - 1]
        shifts = ints(scratch + p.at_shifts)
        depth = 0
        if p.grad_x:
            depth = table_of_shifts(
                shifts, p.out_channels, kernel_y, kernel_x, step_y, step_x, p.g_channel, 0, size
            )

        for segment in range(t * p.segments // tasks, (t + 1) * p.segments // tasks):
            first = segment * p.images // p.segments
            count = (segment + 1) * p.images // p.segments - first
            for i in range(count):
                inside = gradients + (i * gradient_size + p.g_first) * size
                if p.source == POOLED:
                    source = (first + i) * p.out_channels * pooled_plane
                    unpool_pairs(
                        p.grad_output + source * size,
                        p.codes + source,
                        p.out_channels,
                        p.pooled_height,
                        p.pooled_width,
                        inside,
                        p.g_channel,
                        p.pitch,
                        zero,
                    )
                else:
                    source = (first + i) * p.out_channels * out_plane * size
                    y = p.y + source if p.source == RELU else 0
                    copy_positive(
                        p.grad_output + source,
                        y,
                        p.out_channels,
                        p.out_height,
                        p.out_width,
                        inside,
                        p.g_channel,
                        p.pitch,
                        zero,
                    )

            if p.bias_sums:
                sums = reals(p.bias_sums + segment * p.out_channels * size, bits)
                for k in range(p.out_channels):
                    total = zero
                    for i in range(count):
                        for vector in range(vectors):
                            place = rows[i * p.rows + k] + vector * vector_bytes
                            total = simd.add(total, simd.load(place, zero))
                    sums[k] = lane_sum(total)

            if p.sums:
                check = zero
                for i in range(count):
                    x = p.x + (first + i) * p.channels * plane * size
                    inside = images + (i * image_size + p.x_first) * size
                    found = copy_image(x, p.channels, p.height, p.width, inside, p.x_channel, p.pitch, zero)
                    check = simd.add(check, found)
                ints(p.not_finite)[segment] = lane_sum(check) != 0
                sums = reals(p.sums + segment * p.out_channels * cells * size, bits)
                for row in range(0, p.out_channels, ROWS):
                    for column in range(0, cells, VECTORS):
                        for i in range(count):
                            a = scratch + p.at_rows + (i * p.rows + row) * 8
                            b = scratch + p.at_columns + (i * p.columns + column) * 8
                            start = LOAD if i else ZERO
                            multiply_dots(a, b, vectors, tile, VECTORS * vector_bytes, start, VECTORS, zero)
                        for k in range(row, min(row + ROWS, p.out_channels)):
                            for cell in range(column, min(column + VECTORS, cells)):
                                place = tile + ((k - row) * VECTORS + cell - column) * vector_bytes
                                sums[k * cells + cell] = lane_sum(simd.load(place, zero))

            if p.grad_x:
                for i in range(count):
                    gradient = gradients + i * gradient_size * size
                    for panel in range((p.channels + ROWS - 1) // ROWS):
                        weights = p.weight + panel * ROWS * depth * size
                        table = scratch + p.at_shifts
                        convolve_panel(
                            gradient, weights, table, depth, 0, 0, p.g_cells, out, p.out_pitch, zero
                        )
                        for row in range(min(ROWS, p.channels - panel * ROWS)):
                            channel = (first + i) * p.channels + panel * ROWS + row
                            source = out + row * p.out_pitch * size
                            grad_x = p.grad_x + channel * plane * size
                            store_plane(source, p.pitch, p.height, p.width, grad_x, zero)

    return backward
