"""Convolution by Winograd's minimal filtering: fewer multiplications, more additions.

The outputs are cut into tiles of `tile` x `tile` cells, each of which reads span x span cells of x,
span = tile + 2. With the matrices of `fastconv.kernels.winograd_points`, for every tile t

    y[k, t] = A' [ sum over c of (G weight[k, c] G') * (B' x[c, t] B) ] A

where * is cell by cell: so for each of the span^2 cells, called points, there is one product of matrices.
With stride 2 span = 2 tile + 1, and the points of the odd cells share their factors G weight G'.

    x (c, rows)          strips (span^2, tiles)       inputs (span^2, c, tiles)
    +-----------+  B'd   +----------------+    dB     +----------------+ point 0
    |  |  |  |  | -----> | | | | | | | |  | --------> | c              |-+ 1
    +-----------+ split  +----------------+           |   tiles        | |-+ ..
      overlapping        one channel, in L1           +----------------+ | |
                                                        +----------------+ |
    weight (k, c, 3, 3)  packed (span^2, panels,           +---------------+
        |     GgG'        c, ROWS)                              |
        +-------------------> panels of the micro-kernel -------+ one product per point
                                                                v
    y (k, rows)          results                      sums (k, span^2, tiles)
    +-----------+        +-----------------+  A'mA    +----------------+
    |  |  |  |  | <----- | tile after tile | <------- | a channel      |  stay in L2
    +-----------+        +-----------------+   + bias +----------------+

The lanes of a vector are tiles that follow each other, across rows of tiles and images. `split_rows` reads
x with masks instead of copying it between zeros; what it stores of a piece beyond its tiles, the next piece
overwrites. A vector of tiles within one row of tiles is stored to y at once, others by way of `results`.

    for each block of tiles
        inputs  <- all channels of x, transformed
        for each block of input channels                    one, unless there are few tiles
            for each block of panels of output channels
                packed <- their weights, transformed        or all at once before, by `pack_weight`
                for each point
                    for each panel
                        sums += packed x inputs             in registers
                y <- sums, transformed                      after the last input channels

Where there are many tiles, tasks share those, and the weights are transformed before, once. Where there are
few, tasks share the output channels: the inputs are transformed before (`transform_input`), and each panel of
weights right before the only time that it is used, so that the transformed weight, four times the weight, is
never written to memory. The order of additions is that of the channels, whatever the blocks and tasks.
"""

from __future__ import annotations

from math import inf

from fastconv.jit import Kernel, fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO, multiply_tile
from fastconv.kernels.rows import prefetch_rows
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_points import TAPS
from fastconv.kernels.winograd_transforms import (
    cells_of_piece,
    span_of,
    split_rows,
    strided_form_of,
    tiles_of_piece,
    transform_strips,
    transform_sums,
    transform_taps,
)

#: Of a weight, strides in elements from group to group, row to row, channel to channel; `plain` says that the
#: taps of one channel follow those of another, `flipped` that they are in reverse order. Of the transformed
#: one, bytes from point to point and from panel to panel.
PACK = record(
    "weight packed scratch scratch_bytes groups group_in group_out "
    "group_stride row_stride channel_stride plain flipped packed_point packed_panel"
)

#: One record for both other kernels.
WINOGRAD = record(
    # addresses: of the weight or, from `packed` on, the transformed one; bias may be 0; `inputs` is 0 where
    # each task transforms its own
    "x weight bias y packed inputs scratch "
    "scratch_bytes relu "
    # strides in elements; the last axis of x and the planes of y are contiguous
    "x_n x_c x_z x_y y_n y_k "
    "images groups group_in group_out depth height width out_height out_width pad_y pad_x tiles_y tiles_x "
    # of the weight, as in PACK
    "group_stride row_stride channel_stride plain flipped packed_point packed_panel "
    # bytes from point to point, channel to channel, and so on
    "input_point input_channel strip sum_row sum_panel "
    # blocks, and over how many tasks tiles and panels are split; `fused`: weights are transformed when needed
    "block_tiles block_channels block_panels tile_tasks panel_tasks fused "
    # parts of a task's scratch, bytes from its start
    "at_zeros at_strips at_inputs at_taps at_packed at_sums at_results at_offsets at_reads at_writes"
)

#: Entries of the table of pieces that are read: place in the block of tiles, element of x, first row, and
#: the columns [low, high) of the piece that exist.
READ_FIELDS = 5
#: Entries of the table of pieces that are written: place in the block of tiles, tiles, element of y, rows,
#: columns.
WRITE_FIELDS = 5
#: Input channels whose taps are transposed at once, to stay in L1.
TAP_CHANNELS = 32


@inlined
def transform_panel(p, group, panel, c0, count, taps, target, form, zero):
    """The weights of a panel and `count` input channels from c0 on, transformed, to target[point][c]."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    cells = TAPS * TAPS
    rows = min(ROWS, p.group_out - panel * ROWS)
    source = group * p.group_stride + panel * ROWS * p.row_stride + c0 * p.channel_stride
    tap = ROWS * size
    for c in range(0, count, TAP_CHANNELS):
        some = min(TAP_CHANNELS, count - c)
        runs = 1 if p.plain else some
        run = some * cells // runs
        for r in range(runs):
            for k in range(0, run, lanes):
                # what is written behind a run is written over, or is slack
                simd.transpose_block(
                    p.weight + (source + (c + r) * p.channel_stride + k) * size,
                    p.row_stride * size,
                    rows,
                    run - k,
                    taps + (r * cells + k) * tap,
                    lanes * size,
                    ROWS,
                    zero,
                )
        for i in range(some):
            first = taps + i * cells * tap
            result = target + (c + i) * ROWS * size
            if p.flipped:
                transform_taps(first + (cells - 1) * tap, -tap, result, p.packed_point, form)
            else:
                transform_taps(first, tap, result, p.packed_point, form)


@inlined
def find_pieces(p, block, count, tile, stride, step, cells, lanes, reads, writes):
    """Cut the block's tiles into pieces to be read at once, and pieces to be written.

    Both lie within a row of tiles; the former have at most `step` tiles, the latter do not cross vectors.
    """
    read_count, write_count, place = 0, 0, 0
    while place < count:
        image, rest = divmod(block + place, p.tiles_y * p.tiles_x)
        n, z = divmod(image, p.depth)
        tile_y, tile_x = divmod(rest, p.tiles_x)
        length = min(p.tiles_x - tile_x, count - place)
        iy, oy = tile_y * tile * stride - p.pad_y, tile_y * tile
        for done in range(0, length, step):
            ix = (tile_x + done) * tile * stride - p.pad_x
            read = READ_FIELDS * read_count
            reads[read] = place + done
            reads[read + 1] = n * p.x_n + z * p.x_z + iy * p.x_y + ix
            reads[read + 2] = iy
            reads[read + 3] = max(0, -ix)
            reads[read + 4] = max(0, min(cells, p.width - ix))
            read_count += 1
        done = 0
        while done < length:
            tiles = min(lanes - (place + done) % lanes, length - done)
            ox = (tile_x + done) * tile
            write = WRITE_FIELDS * write_count
            writes[write] = place + done
            writes[write + 1] = tiles
            writes[write + 2] = n * p.y_n + (z * p.out_height + oy) * p.out_width + ox
            writes[write + 3] = min(tile, p.out_height - oy)
            writes[write + 4] = min(tiles * tile, p.out_width - ox)
            write_count += 1
            done += tiles
        place += length
    return read_count, write_count


@inlined
def transform_channel(p, x, scratch, reads, read_count, vectors, target, span, cells, form, zero):
    """The tiles of one channel of x, transformed, to target[point][tile]."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    zeros, strips = scratch + p.at_zeros, scratch + p.at_strips
    for read in range(0, READ_FIELDS * read_count, READ_FIELDS):
        source, row = x + reads[read + 1] * size, p.x_y * size
        # those of the next channel, too far away for the processor to foresee: 24 instead of 34 ms with
        # 64 channels of 224 x 224 cells of float64
        prefetch_rows(source + p.x_c * size, row, span, cells * size)
        split_rows(
            source,
            row,
            reads[read + 2],
            p.height,
            reads[read + 3],
            reads[read + 4],
            zeros,
            strips + reads[read] * size,
            p.strip,
            form,
        )
    for vector in range(vectors):
        offset = vector * lanes * size
        transform_strips(strips + offset, p.strip, target + offset, p.input_point, form)


@inlined
def store_panel(p, channel, rows, sums, results, writes, write_count, vectors, tile, form, zero):
    """The sums of a panel's output channels, from `channel` on, transformed and stored to y."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    least = 0.0 if p.relu else -inf
    width = tile * lanes
    write = 0
    for vector in range(vectors):
        first = write
        while write < WRITE_FIELDS * write_count and writes[write] < (vector + 1) * lanes:
            write += WRITE_FIELDS
        whole = writes[first + 1] == lanes and writes[first + 3] == tile and writes[first + 4] == width
        for row in range(rows):
            k = channel + row
            if whole:
                target, pitch = p.y + (writes[first + 2] + k * p.y_k) * size, p.out_width * size
            else:
                target, pitch = results + row * tile * width * size, width * size
            bias = p.bias + k * size if p.bias else results - 64
            transform_sums(
                sums + row * p.sum_row + vector * lanes * size,
                p.input_channel,
                bias,
                least,
                target,
                pitch,
                form,
            )
        if not whole:
            for piece in range(first, write, WRITE_FIELDS):
                source = results + (writes[piece] - vector * lanes) * tile * size
                target = p.y + (writes[piece + 2] + channel * p.y_k) * size
                lines, cells = writes[piece + 3], writes[piece + 4]
                done = cells // lanes * lanes
                for row in range(rows):
                    for line in range(lines):
                        from_line = source + (row * tile + line) * width * size
                        to_line = target + (row * p.y_k + line * p.out_width) * size
                        for i in range(0, done, lanes):
                            simd.store(to_line + i * size, simd.load(from_line + i * size, zero))
                        if done < cells:
                            rest = simd.load(from_line + done * size, zero)
                            simd.store_part(to_line + done * size, rest, cells - done)


def _pack_weight(tile: int, stride: int) -> Kernel:
    @kernel(PACK)
    def pack_weight(bits):
        """packed[point][panel][c][ROWS] = the transformed weights. A unit is a panel of a group."""

        def pack_weight(params, t, tasks):
            p = fields(params, PACK)
            zero, form = simd.splat(0.0, bits), strided_form_of(tile, stride, bits)
            panels = (p.group_out + ROWS - 1) // ROWS
            taps = p.scratch + t * p.scratch_bytes
            units = p.groups * panels
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                group, panel = divmod(unit, panels)
                target = p.packed + unit * p.packed_panel
                transform_panel(p, group, panel, 0, p.group_in, taps, target, form, zero)

        return pack_weight

    return pack_weight


def _transform_input(tile: int, stride: int) -> Kernel:
    @kernel(WINOGRAD)
    def transform_input(bits):
        """inputs[point][c][tile] = the transformed tiles, all of them. A unit is a channel."""
        lanes, size = LANES[bits], bits // 8
        span = span_of(tile, stride)
        cells, step = cells_of_piece(lanes, stride), tiles_of_piece(lanes, tile, stride)

        def transform_input(params, t, tasks):
            p = fields(params, WINOGRAD)
            zero, form = simd.splat(0.0, bits), strided_form_of(tile, stride, bits)
            scratch = p.scratch + t * p.scratch_bytes
            for cell in range(0, cells, lanes):
                simd.store(scratch + p.at_zeros + cell * size, zero)
            reads, writes = ints(scratch + p.at_reads), ints(scratch + p.at_writes)
            count = p.images * p.depth * p.tiles_y * p.tiles_x
            vectors = (count + lanes - 1) // lanes
            read_count, _ = find_pieces(p, 0, count, tile, stride, step, cells, lanes, reads, writes)
            units = p.groups * p.group_in
            for c in range(t * units // tasks, (t + 1) * units // tasks):
                x, target = p.x + c * p.x_c * size, p.inputs + c * p.input_channel
                transform_channel(p, x, scratch, reads, read_count, vectors, target, span, cells, form, zero)

        return transform_input

    return transform_input


def _forward(tile: int, stride: int) -> Kernel:
    @kernel(WINOGRAD)
    def forward(bits):
        """y = conv(x, weight) + bias, and no less than 0 with `relu`."""
        lanes, size = LANES[bits], bits // 8
        span = span_of(tile, stride)
        factors = tile + TAPS - 1  # of a weight along an axis
        cells, step = cells_of_piece(lanes, stride), tiles_of_piece(lanes, tile, stride)

        def forward(params, t, tasks):
            p = fields(params, WINOGRAD)
            zero, form = simd.splat(0.0, bits), strided_form_of(tile, stride, bits)
            panels = (p.group_out + ROWS - 1) // ROWS
            channels = p.groups * p.group_in

            # this task's panels, counted over the groups, and its tiles in whole vectors
            tile_task, panel_task = divmod(t, p.panel_tasks)
            first_panel = panel_task * p.groups * panels // p.panel_tasks
            last_panel = (panel_task + 1) * p.groups * panels // p.panel_tasks
            tiles = p.images * p.depth * p.tiles_y * p.tiles_x
            vectors = (tiles + lanes - 1) // lanes
            first_tile = tile_task * vectors // p.tile_tasks * lanes
            last_tile = min((tile_task + 1) * vectors // p.tile_tasks * lanes, tiles)

            scratch = p.scratch + t * p.scratch_bytes
            for cell in range(0, cells, lanes):
                simd.store(scratch + p.at_zeros + cell * size, zero)
            table, results = scratch + p.at_offsets, scratch + p.at_results
            simd.store_part(results - 64, zero, 1)  # no bias
            offsets = ints(table)
            for k in range(p.block_channels):
                offsets[k] = k * p.input_channel
            reads, writes = ints(scratch + p.at_reads), ints(scratch + p.at_writes)

            for block in range(first_tile, last_tile, p.block_tiles):
                count = min(p.block_tiles, last_tile - block)
                block_vectors = (count + lanes - 1) // lanes
                read_count, write_count = find_pieces(
                    p, block, count, tile, stride, step, cells, lanes, reads, writes
                )
                inputs = p.inputs
                if not inputs:
                    inputs = scratch + p.at_inputs
                    for c in range(channels):
                        x, target = p.x + c * p.x_c * size, inputs + c * p.input_channel
                        transform_channel(
                            p,
                            x,
                            scratch,
                            reads,
                            read_count,
                            block_vectors,
                            target,
                            span,
                            cells,
                            form,
                            zero,
                        )

                for c0 in range(0, p.group_in, p.block_channels):
                    depth = min(p.block_channels, p.group_in - c0)
                    start = LOAD if c0 else ZERO
                    panel = first_panel
                    while panel < last_panel:
                        group, row_panel = divmod(panel, panels)
                        some = min(p.block_panels, min(last_panel - panel, panels - row_panel))
                        sums = scratch + p.at_sums
                        if p.block_channels < p.group_in:  # those of all panels wait for more
                            sums += (panel - first_panel) * p.sum_panel
                        if p.fused:
                            weights, taps = scratch + p.at_packed, scratch + p.at_taps
                            for i in range(some):
                                target = weights + i * p.packed_panel
                                transform_panel(p, group, row_panel + i, c0, depth, taps, target, form, zero)
                        else:
                            weights = p.packed + panel * p.packed_panel + c0 * ROWS * size
                        first_input = inputs + (group * p.group_in + c0) * p.input_channel
                        for point in range(span * span):
                            row_factor = min(point // span, factors - 1)
                            factor = row_factor * factors + min(point % span, factors - 1)
                            for i in range(some):
                                a = weights + factor * p.packed_point + i * p.packed_panel
                                for vector in range(0, block_vectors, VECTORS):
                                    offset = vector * lanes * size
                                    b = first_input + point * p.input_point + offset
                                    c = sums + i * p.sum_panel + point * p.input_channel + offset
                                    row = p.sum_row
                                    rest = block_vectors - vector
                                    if rest >= 3:
                                        multiply_tile(a, b, table, depth, c, row, start, 0, -inf, 3, zero)
                                    elif rest == 2:
                                        multiply_tile(a, b, table, depth, c, row, start, 0, -inf, 2, zero)
                                    else:
                                        multiply_tile(a, b, table, depth, c, row, start, 0, -inf, 1, zero)
                        if c0 + depth == p.group_in:
                            for i in range(some):
                                first = (row_panel + i) * ROWS
                                store_panel(
                                    p,
                                    group * p.group_out + first,
                                    min(ROWS, p.group_out - first),
                                    sums + i * p.sum_panel,
                                    results,
                                    writes,
                                    write_count,
                                    block_vectors,
                                    tile,
                                    form,
                                    zero,
                                )
                        panel += some

        return forward

    return forward


#: The outputs of a tile along an axis and the strides for which there are kernels, and these.
FORMS = ((2, 1), (4, 1), (4, 2))
PACK_WEIGHT = {form: _pack_weight(*form) for form in FORMS}
TRANSFORM_INPUT = {form: _transform_input(*form) for form in FORMS}
FORWARD = {form: _forward(*form) for form in FORMS}
