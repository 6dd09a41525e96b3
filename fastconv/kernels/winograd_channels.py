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
                packed <- copied, transformed         with few tiles; else this was done before
                for each point
                    for each ROWS tiles
                        copied <- weight              a part of the next block
                        sums += inputs x packed       in registers
            y <- sums, transformed

With few tiles it takes most of the time to read the weight: pieces of rows far apart, of which nine fall on
the same sets of the caches where the number of channels is a power of two. So while a block is multiplied,
the next one is copied, a few rows at a time; their cache lines are asked for before, one in each step of the
micro-kernel: 2.3 instead of 3.8 ms with 512 channels of 14 x 14 cells. A burst of such requests is in vain.
"""

from __future__ import annotations

from math import inf

from fastconv.jit import Kernel, fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO, multiply_ahead
from fastconv.kernels.simd import LANES, take
from fastconv.kernels.winograd_cells import transform_cells, transform_filter, transform_products
from fastconv.kernels.winograd_points import TAPS
from fastconv.kernels.winograd_transforms import form_of

#: Strides of the weight in bytes, from tap to tap, output to output and input to input channel, of which one
#: is that of neighbours; of the copied one from tap to tap, of the transformed one from point to point.
PACK = record(
    "weight packed scratch scratch_bytes group_in group_out tap_bytes row_bytes channel_bytes "
    "block_channels copied_tap packed_point"
)

WINOGRAD = record(
    # addresses; bias may be 0. Where the weight is transformed when used, `packed` is 0
    "x bias y packed weight scratch scratch_bytes relu "
    # of the weight as in `PACK`
    "tap_bytes row_bytes channel_bytes block_channels copied_tap packed_point "
    # strides in elements; channels are contiguous
    "x_n x_z x_y x_x y_n y_z y_y y_x "
    "images group_in group_out depth height width out_height out_width pad_y pad_x tiles_y tiles_x "
    # bytes from point to point, and tile to tile of the inputs
    "input_point input_tile sum_point block_tiles "
    # over how many tasks tiles and panels are split
    "tile_tasks panel_tasks "
    # parts of a task's scratch, bytes from its start
    "at_zeros at_unread at_inputs at_sums at_reads at_writes at_a at_c at_packed at_copied"
)


@inlined
def parts_of_block(p, count, channels, zero):
    """The parts in which a block of the weight is copied; and those of each tap.

    The block's are `channels` input channels of `count` vectors of output channels. A tap of it is that many
    rows, of which a part is a column of vectors; but the first part is no column, since a column of vectors
    most often is two of cache lines, and those of a part's are asked for before it is copied.
    """
    lanes = simd.lanes_of(zero)
    parts = 1 + (count if p.row_bytes == simd.bytes_of(zero) else (channels + lanes - 1) // lanes)
    return TAPS * TAPS * parts, parts


@inlined
def lines_of_part(p, first, c0, part, parts_of_tap, zero):
    """Where a part's last cache line of its first row is, and how far it is to the next row's."""
    start = p.weight + first * simd.lanes_of(zero) * p.row_bytes + c0 * p.channel_bytes
    tap, column = divmod(part, parts_of_tap)
    end = 1 if column == parts_of_tap - 1 else 0
    row = p.channel_bytes if p.row_bytes == simd.bytes_of(zero) else p.row_bytes
    return start + tap * p.tap_bytes + column * simd.vector_bytes(zero) - end, row


@inlined
def copy_part(p, first, count, c0, channels, part, parts_of_tap, copied, zero):
    """A part of copied[tap][c][column] = weight, with zeros behind the last column."""
    lanes, size, step = simd.lanes_of(zero), simd.bytes_of(zero), simd.vector_bytes(zero)
    tap, column = divmod(part, parts_of_tap)
    column -= 1
    if column < 0:
        return
    # to the compiler any store may change the record
    row, row_bytes, channel_bytes = count * step, p.row_bytes, p.channel_bytes
    source = p.weight + tap * p.tap_bytes + first * lanes * row_bytes + c0 * channel_bytes
    target = copied + tap * p.copied_tap
    columns = p.group_out - first * lanes
    if row_bytes == size:
        for c in range(channels):
            part = take(source + c * channel_bytes + column * step, columns - column * lanes, zero)
            simd.store(target + c * row + column * step, part)
    else:
        for vector in range(count):
            simd.transpose_square(
                source + vector * lanes * row_bytes + column * step,
                row_bytes,
                columns - vector * lanes,
                channels - column * lanes,
                target + column * lanes * row + vector * step,
                row,
                zero,
            )


@inlined
def copy_block(p, first, count, c0, channels, copied, zero):
    """All parts of a block."""
    parts, parts_of_tap = parts_of_block(p, count, channels, zero)
    for part in range(parts):
        copy_part(p, first, count, c0, channels, part, parts_of_tap, copied, zero)


@inlined
def transform_block(copied, copied_tap, count, packed, packed_point, form, zero):
    """packed[point] = G weight G', of so many vectors of a block."""
    step = simd.vector_bytes(zero)
    for i in range(0, count * step, step):
        transform_filter(copied + i, copied_tap, packed + i, packed_point, form)


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
            copied = p.scratch + t * p.scratch_bytes
            for panel in range(t * panels // tasks, (t + 1) * panels // tasks):
                first = panel * vectors // panels
                count = (panel + 1) * vectors // panels - first
                packed = p.packed + p.group_in * first * lanes * size
                for c0 in range(0, p.group_in, p.block_channels):
                    channels = min(p.block_channels, p.group_in - c0)
                    copy_block(p, first, count, c0, channels, copied, zero)
                    transform_block(
                        copied, p.copied_tap, channels * count, packed, p.packed_point, form, zero
                    )
                    packed += channels * count * lanes * size

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


@inlined
def multiply_point(a, a_skip, depth, b, c, c_skip, start, ahead, ahead_step, wide, zero):
    """`multiply_ahead` of `wide` vectors, up to VECTORS."""
    if wide == 3:
        multiply_ahead(a, a_skip, depth, b, c, c_skip, start, ahead, ahead_step, 3, zero)
    elif wide == 2:
        multiply_ahead(a, a_skip, depth, b, c, c_skip, start, ahead, ahead_step, 2, zero)
    else:
        multiply_ahead(a, a_skip, depth, b, c, c_skip, start, ahead, ahead_step, 1, zero)


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
            tiles = p.images * p.depth * p.tiles_y * p.tiles_x
            # whole tiles of the micro-kernel
            units = (tiles + ROWS - 1) // ROWS
            tile_task, panel_task = divmod(t, p.panel_tasks)
            first_tile = tile_task * units // p.tile_tasks * ROWS
            last_tile = min((tile_task + 1) * units // p.tile_tasks * ROWS, tiles)
            # a packed weight has its panels; else a task makes them of its vectors
            origin, own, panels = 0, vectors, (vectors + VECTORS - 1) // VECTORS
            first_panel = panel_task * panels // p.panel_tasks
            last_panel = (panel_task + 1) * panels // p.panel_tasks
            if not p.packed:
                origin = panel_task * vectors // p.panel_tasks
                own = (panel_task + 1) * vectors // p.panel_tasks - origin
                panels = (own + VECTORS - 1) // VECTORS
                first_panel, last_panel = 0, panels
            blocks = (p.group_in + p.block_channels - 1) // p.block_channels

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
            packed, copied = scratch + p.at_packed, scratch + p.at_copied
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
                rows = (count + ROWS - 1) // ROWS
                for step in range(first_panel * blocks, last_panel * blocks):
                    panel, c0 = step // blocks, step % blocks * p.block_channels
                    channels = min(p.block_channels, p.group_in - c0)
                    first = origin + panel * own // panels
                    wide = origin + (panel + 1) * own // panels - first
                    # the block of the weight that comes next
                    panel, next_c0 = (step + 1) // blocks, (step + 1) % blocks * p.block_channels
                    next_channels = min(p.block_channels, p.group_in - next_c0)
                    next_first = origin + panel * own // panels
                    next_wide = origin + (panel + 1) * own // panels - next_first
                    if p.packed:
                        b = p.packed + p.group_in * first * lanes * size
                        parts, parts_of_tap = 0, 1
                    else:
                        b = packed
                        if step == 0:
                            copy_block(p, first, wide, c0, channels, copied, zero)
                        transform_block(copied, p.copied_tap, channels * wide, b, p.packed_point, form, zero)
                        parts, parts_of_tap = parts_of_block(p, next_wide, next_channels, zero)
                        if panel == last_panel:
                            parts = 0
                    start = LOAD if c0 else ZERO
                    part, done = 0, 0
                    for point in range(points):
                        a_skip, c_skip = point * p.input_point + c0 * size, point * p.sum_point
                        # what the last tiles lack is computed of what is there, and not used
                        for row in range(rows):
                            # lines of the packed weight's next point, or of the next block
                            ahead_step = wide * lanes * size
                            ahead = b + p.packed_point + row % wide * lanes * size
                            if parts:
                                done += 1
                                last = part
                                part = done * parts // (points * rows)
                                for i in range(last, part):
                                    copy_part(
                                        p,
                                        next_first,
                                        next_wide,
                                        next_c0,
                                        next_channels,
                                        i,
                                        parts_of_tap,
                                        copied,
                                        zero,
                                    )
                                ahead, ahead_step = lines_of_part(
                                    p, next_first, next_c0, part, parts_of_tap, zero
                                )
                            multiply_point(
                                scratch + p.at_a + row * ROWS * 8,
                                a_skip,
                                channels,
                                b,
                                scratch + p.at_c + row * ROWS * 8,
                                c_skip,
                                start,
                                ahead,
                                ahead_step,
                                wide,
                                zero,
                            )
                        b += p.packed_point
                    if c0 + channels < p.group_in:
                        continue
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
