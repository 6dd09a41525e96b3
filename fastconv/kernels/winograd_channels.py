"""Winograd's minimal filtering of channels-last arrays: see `fastconv.kernels.winograd` for what is computed.

The lanes are channels, in each of the three transforms, so that none needs a shuffle. Like
`fastconv.kernels.channels_last` it finds the cells of x and of y by tables of addresses, in which a row of
zeros stands for padding, and a row that nobody reads for what lies beyond y:

    x    cells of a tile, by a table        B'dB    inputs (span^2, tiles, c)
    weight (3, 3, c, k)                     GgG'    packed (span^2, panels, c, columns)
    sums (span^2, tiles, columns)  +=  inputs x packed, one product for each of the span^2 points
    y    cells of a tile, by a table        <- A'mA + bias

    for each block of tiles, of which a task has some
        inputs <- x, transformed
        for each panel of output channels, of which a task has some
            for each block of input channels
                packed <- weight, transformed         with few tiles; else this was done before
                for each point
                    for each ROWS tiles
                        sums += inputs x packed       in registers
            y <- sums, transformed
"""

from __future__ import annotations

from math import inf

from fastconv.jit import Kernel, fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO, multiply_pixels
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_cells import transform_cells, transform_filter, transform_products
from fastconv.kernels.winograd_points import TAPS
from fastconv.kernels.winograd_transforms import form_of

#: Strides of the weight in bytes, from tap to tap, output to output and input to input channel, of which one
#: is that of neighbours; of the transformed one from point to point.
PACK = record(
    "weight packed scratch scratch_bytes group_in group_out tap_bytes row_bytes channel_bytes packed_point"
)

WINOGRAD = record(
    # addresses; bias may be 0. Where the weight is transformed when used, `packed` is 0
    "x bias y packed weight scratch scratch_bytes relu "
    # of the weight as in `PACK`
    "tap_bytes row_bytes channel_bytes "
    # strides in elements; channels are contiguous
    "x_n x_z x_y x_x y_n y_z y_y y_x "
    "images group_in group_out depth height width out_height out_width pad_y pad_x tiles_y tiles_x "
    # bytes from point to point, and tile to tile of the inputs
    "packed_point input_point input_tile sum_point block_tiles block_channels "
    # over how many tasks tiles and panels are split
    "tile_tasks panel_tasks "
    # parts of a task's scratch, bytes from its start
    "at_zeros at_unread at_inputs at_sums at_reads at_writes at_a at_c at_packed at_turned"
)


@inlined
def pack_panel(p, turned, first, count, c0, channels, packed, point_bytes, form, zero):
    """packed[point][c][column] = G weight G', for `channels` channels from c0 on and `count` vectors.

    Zeros are behind the last output. `turned` is memory for the taps of some channels as they are to be
    read, if they need be transposed.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    for c in range(0, channels, lanes):
        # neighbouring outputs are on the same pages of memory, other taps and channels far away
        for vector in range(count):
            column = (first + vector) * lanes
            source = p.weight + column * p.row_bytes + (c0 + c) * p.channel_bytes
            row, tap_bytes = p.channel_bytes, p.tap_bytes
            if p.row_bytes != size:
                row, tap_bytes = lanes * size, lanes * lanes * size
                for tap in range(TAPS * TAPS):
                    simd.transpose_square(
                        source + tap * p.tap_bytes,
                        p.row_bytes,
                        p.group_out - column,
                        p.group_in - c0 - c,
                        turned + tap * tap_bytes,
                        row,
                        zero,
                    )
                source = turned
            for i in range(min(lanes, channels - c)):
                transform_filter(
                    source + i * row,
                    tap_bytes,
                    p.group_out - column,
                    packed + ((c + i) * count + vector) * lanes * size,
                    point_bytes,
                    form,
                )


def _pack_weight(tile: int) -> Kernel:
    @kernel(PACK)
    def pack_weight(bits):
        """packed[point][panel][c][column] = G weight G', zeros behind the last column. A unit is a panel."""
        lanes, size = LANES[bits], bits // 8

        def pack_weight(params, t, tasks):
            p = fields(params, PACK)
            form, zero = form_of(tile, bits), simd.splat(0.0, bits)
            vectors = (p.group_out + lanes - 1) // lanes
            panels = (vectors + VECTORS - 1) // VECTORS
            turned = p.scratch + t * p.scratch_bytes
            for panel in range(t * panels // tasks, (t + 1) * panels // tasks):
                first = panel * vectors // panels
                count = (panel + 1) * vectors // panels - first
                packed = p.packed + p.group_in * first * lanes * size
                pack_panel(p, turned, first, count, 0, p.group_in, packed, p.packed_point, form, zero)

        return pack_weight

    return pack_weight


@inlined
def find_cells(p, first, count, tile, span, zeros, unread, reads, writes, size):
    """The addresses of the cells of x that each of `count` tiles reads, and of those of y that it writes."""
    for i in range(count):
        rest, tile_x = divmod(first + i, p.tiles_x)
        rest, tile_y = divmod(rest, p.tiles_y)
        n, z = divmod(rest, p.depth)
        for a in range(span):
            iy = tile_y * tile - p.pad_y + a
            row = p.x + (n * p.x_n + z * p.x_z + iy * p.x_y) * size
            for b in range(span):
                ix = tile_x * tile - p.pad_x + b
                inside = 0 <= iy < p.height and 0 <= ix < p.width
                reads[(i * span + a) * span + b] = row + ix * p.x_x * size if inside else zeros
        for a in range(tile):
            oy = tile_y * tile + a
            row = p.y + (n * p.y_n + z * p.y_z + oy * p.y_y) * size
            for b in range(tile):
                ox = tile_x * tile + b
                inside = oy < p.out_height and ox < p.out_width
                writes[(i * tile + a) * tile + b] = row + ox * p.y_x * size if inside else unread


def _forward(tile: int) -> Kernel:
    span = tile + TAPS - 1
    points = span * span

    @kernel(WINOGRAD)
    def forward(bits):
        """y = conv(x, weight) + bias, and no less than 0 with `relu`."""
        lanes, size = LANES[bits], bits // 8

        def forward(params, t, tasks):
            p = fields(params, WINOGRAD)
            form, zero = form_of(tile, bits), simd.splat(0.0, bits)
            vectors = (p.group_out + lanes - 1) // lanes
            panels = (vectors + VECTORS - 1) // VECTORS
            tiles = p.images * p.depth * p.tiles_y * p.tiles_x
            # whole tiles of the micro-kernel
            units = (tiles + ROWS - 1) // ROWS
            tile_task, panel_task = divmod(t, p.panel_tasks)
            first_tile = tile_task * units // p.tile_tasks * ROWS
            last_tile = min((tile_task + 1) * units // p.tile_tasks * ROWS, tiles)
            first_panel = panel_task * panels // p.panel_tasks
            last_panel = (panel_task + 1) * panels // p.panel_tasks

            scratch = p.scratch + t * p.scratch_bytes
            zeros, unread = scratch + p.at_zeros, scratch + p.at_unread
            for i in range(0, max(p.group_in, p.group_out), lanes):
                simd.store(zeros + i * size, zero)
            inputs, sums = scratch + p.at_inputs, scratch + p.at_sums
            reads, writes = scratch + p.at_reads, scratch + p.at_writes
            a_rows, c_rows = ints(scratch + p.at_a), ints(scratch + p.at_c)
            for i in range(p.block_tiles):
                a_rows[i] = inputs + i * p.input_tile
                c_rows[i] = sums + i * VECTORS * lanes * size
            least = 0.0 if p.relu else -inf

            for block in range(first_tile, last_tile, p.block_tiles):
                count = min(p.block_tiles, last_tile - block)
                find_cells(p, block, count, tile, span, zeros, unread, ints(reads), ints(writes), size)
                for i in range(count):
                    for c in range(0, p.group_in, lanes):
                        transform_cells(
                            reads + i * points * 8,
                            c * size,
                            p.group_in - c,
                            inputs + i * p.input_tile + c * size,
                            p.input_point,
                            form,
                        )
                for panel in range(first_panel, last_panel):
                    first = panel * vectors // panels
                    wide = (panel + 1) * vectors // panels - first
                    for c0 in range(0, p.group_in, p.block_channels):
                        channels = min(p.block_channels, p.group_in - c0)
                        start = LOAD if c0 else ZERO
                        b = p.packed + p.group_in * first * lanes * size
                        if not p.packed:
                            b = scratch + p.at_packed
                            turned = scratch + p.at_turned
                            pack_panel(p, turned, first, wide, c0, channels, b, p.packed_point, form, zero)
                        for point in range(points):
                            a_skip, c_skip = point * p.input_point + c0 * size, point * p.sum_point
                            # what the last tiles lack is computed of what is there, and not used
                            for i in range(0, count, ROWS):
                                a, c = scratch + p.at_a + i * 8, scratch + p.at_c + i * 8
                                if wide == 3:
                                    multiply_pixels(
                                        a, a_skip, 1, channels, b, c, c_skip, start, 0, -inf, lanes, 3, zero
                                    )
                                elif wide == 2:
                                    multiply_pixels(
                                        a, a_skip, 1, channels, b, c, c_skip, start, 0, -inf, lanes, 2, zero
                                    )
                                else:
                                    multiply_pixels(
                                        a, a_skip, 1, channels, b, c, c_skip, start, 0, -inf, lanes, 1, zero
                                    )
                            b += p.packed_point
                    for i in range(count):
                        for vector in range(wide):
                            column = (first + vector) * lanes
                            transform_products(
                                sums + (i * VECTORS + vector) * lanes * size,
                                p.sum_point,
                                p.bias + column * size if p.bias else zeros,
                                least,
                                writes + i * tile * tile * 8,
                                column * size,
                                p.group_out - column,
                                form,
                            )

        return forward

    return forward


#: The kernels, by the size of the tiles.
PACK_WEIGHT = {tile: _pack_weight(tile) for tile in (2, 4)}
FORWARD = {tile: _forward(tile) for tile in (2, 4)}
