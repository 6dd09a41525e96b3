"""Convolution as a matrix product whose right-hand matrix is never made.

    y (Kg, pixels) = weight (Kg, CgT) x columns (CgT, pixels)    for each group, with T cells of the kernel

is computed in blocks, as in the BLIS papers. Of `columns` only a block of `block_pixels` pixels and
`block_channels` channels exists at a time, packed for the micro-kernel, in the L2 cache:

    for each block of pixels                                   counted over the whole batch
        for each group
            for each block of channels
                rows    <- the rows of x that the block reads, zero-padded, split by phase of the stride
                packed  <- its columns, a panel of VECTORS vectors of pixels after the other
                for each panel of ROWS output channels         stays in L1
                    for each panel of pixels                   streams from L2
                        tile of y += weight panel x packed panel

Packing is a list of *moves*, each a vector copied from `rows` to a panel, unaligned. The list is the same for
every channel and kernel cell but for an offset: no index arithmetic, no tests. A move may run over the end
of its row of pixels: the next one writes what belongs there. Without padding and with stride 1 the moves
read x itself.

A task has a range of pixels and a range of channel panels. The order of additions is that of the
channels, whatever the blocks of pixels and the tasks.
"""

from __future__ import annotations

from math import inf

from numba import intp

from fastconv.jit import call_task, fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import BIAS, LOAD, ROWS, VECTORS, ZERO, multiply_tile
from fastconv.kernels.rows import fill_phase
from fastconv.kernels.simd import LANES, put, take
from fastconv.kernels.weight_panels import PACK

FORWARD = record(
    # addresses; weight is packed, bias as long as whole panels, or 0. With a `pack_task`, the address of
    # `pack_weight`, each task packs what it reads of the weight, which is the record for that kernel
    "x weight bias y scratch pack_task scratch_bytes relu "
    # strides in elements; the last axis of x is contiguous, and so are the pixels of y if it is dense
    "x_n x_c x_z x_y y_n y_k y_z y_y y_x dense "
    "images groups group_in group_out height width depth "
    "kernel_z kernel_y kernel_x stride_z stride_y stride_x "
    "dilation_z dilation_y dilation_x pad_z pad_y pad_x "
    "out_depth out_height out_width "
    # blocks, those of a task, and over how many tasks pixels and panels are split
    "block_channels block_pixels blocks pixel_tasks panel_tasks "
    # channels whose rows are filled at a time
    "fill_channels "
    # whether moves read x itself
    "direct "
    # parts of a task's scratch, bytes from its start
    "at_rows at_packed at_tiles at_offsets at_panel_offsets at_runs at_moves at_fills "
    "at_fresh at_pack "
    # `rows`: elements of a phase of a row, of a row, of a plane of rows, of a channel
    "phase_size row_size plane_size channel_size"
)

#: Entries of the table of runs: n, oz, oy, first column, first row, and the rows [from, to) that are its own.
RUN_FIELDS = 7
#: Entries of the table of moves: source in bytes, place in the block of pixels, cells that may be read.
MOVE_FIELDS = 3
#: Entries of the table of fills: source in bytes, the lanes that are inside x, target in bytes.
FILL_FIELDS = 3
#: Up to this stride the rows of x are filled by a table, and for no fewer channels: it takes time to make.
FILL_STRIDE, FILL_CHANNELS = 2, 8

#: Panels that a task packs at a time, which stay in L2.
FRESH_PANELS = 8
#: Places in the record of `pack_weight`.
_NAMES = PACK.names or ()
_PACKED, _WHOLE_BIAS, _PART = (_NAMES.index(name) for name in ("packed", "whole_bias", "first_unit"))
_WORDS = len(_NAMES)


@inlined
def table_of_offsets(p, offsets, size):
    """offsets[c, kz, ky, kx] = how far that kernel cell's reading is from that of the first, in bytes."""
    k = 0
    for c in range(p.block_channels):
        for kz in range(p.kernel_z):
            for ky in range(p.kernel_y):
                for kx in range(p.kernel_x):
                    x0, y0 = kx * p.dilation_x, ky * p.dilation_y
                    if p.direct:
                        offset = c * p.x_c + kz * p.dilation_z * p.x_z + y0 * p.x_y + x0
                    else:
                        offset = c * p.channel_size + kz * p.plane_size + y0 * p.row_size
                        offset += x0 % p.stride_x * p.phase_size + x0 // p.stride_x
                    offsets[k] = offset * size
                    k += 1


@inlined
def find_runs(p, block, count, runs, moves, lanes, size):
    """Cut the block's pixels into runs, each within a row of output cells, and those into moves.

    Output rows of one plane that follow each other share the rows of x that they both read. Where a row of
    output cells is longer than a block, a run has only its own part of them.
    """
    panel_pixels = VECTORS * lanes
    plane = p.out_height * p.out_width
    whole = p.out_width <= p.block_pixels
    run_count, move_count, row_count = 0, 0, 0
    place = 0
    while place < count:
        n, rest = divmod(block + place, p.out_depth * plane)
        oz, rest = divmod(rest, plane)
        oy, ox = divmod(rest, p.out_width)
        length = min(p.out_width - ox, count - place)
        run, before = RUN_FIELDS * run_count, RUN_FIELDS * (run_count - 1)
        first_row = row_count
        if whole and run_count > 0 and runs[before] == n and runs[before + 1] == oz:
            first_row = runs[before + 4] + p.stride_y
        runs[run], runs[run + 1], runs[run + 2] = n, oz, oy
        runs[run + 3] = 0 if whole else ox
        runs[run + 4] = first_row
        runs[run + 5] = row_count
        row_count = max(row_count, first_row + (p.kernel_y - 1) * p.dilation_y + 1)
        runs[run + 6] = row_count
        run_count += 1
        if p.direct:
            source = n * p.x_n + oz * p.stride_z * p.x_z + oy * p.stride_y * p.x_y + ox
        else:
            source = first_row * p.row_size + (ox if whole else 0)
        while length > 0:
            cells = min(min(length, lanes), panel_pixels - place % panel_pixels)
            move = MOVE_FIELDS * move_count
            moves[move], moves[move + 1] = source * size, place
            # x itself may end behind the last cell
            moves[move + 2] = cells if p.direct else lanes
            move_count += 1
            source += cells
            place += cells
            length -= cells
    return run_count, move_count


@inlined
def find_fills(p, runs, run_count, fills, lanes, size):
    """The vectors of x that `fill_rows` reads, and where they go; for strides up to FILL_STRIDE along x.

    With a stride of 2 there are two vectors in a row for one of each phase. A row's last vectors come first:
    what they write behind it, into the next phase or row, is written after them.
    """
    fill_count = 0
    for run_index in range(run_count):
        run = RUN_FIELDS * run_index
        first_row = runs[run + 4]
        iy0 = runs[run + 2] * p.stride_y - p.pad_y - first_row
        ix0 = runs[run + 3] * p.stride_x - p.pad_x
        for kz in range(p.kernel_z):
            iz = runs[run + 1] * p.stride_z - p.pad_z + kz * p.dilation_z
            for row in range(runs[run + 5], runs[run + 6]):
                if p.kernel_y == 1 and row != first_row:
                    continue  # a stride skips it
                iy = iy0 + row
                inside = 0 <= iz < p.depth and 0 <= iy < p.height
                source = runs[run] * p.x_n + iz * p.x_z + iy * p.x_y
                target = kz * p.plane_size + row * p.row_size
                for u in range((p.phase_size - 1) // lanes * lanes, -1, -lanes):
                    for part in range(p.stride_x):
                        first = ix0 + u * p.stride_x + part * lanes
                        low, high = min(lanes, max(0, -first)), max(0, min(lanes, p.width - first))
                        seen = (1 << high) - (1 << low) if inside and low < high else 0
                        fill = FILL_FIELDS * fill_count
                        # where no lane is inside x, any address of x will do
                        fills[fill] = (source + first) * size if seen else 0
                        fills[fill + 1] = seen
                        fills[fill + 2] = (target + part * p.phase_size + u) * size
                        fill_count += 1
    return fill_count


@inlined
def fill_by_table(p, fills, fill_count, first_channel, channels, rows, zero):
    """`fill_rows` for a stride along x of 1 or 2."""
    size = simd.bytes_of(zero)
    ahead = p.x_c * size
    for c in range(channels):
        source, target = first_channel + c * ahead, rows + c * p.channel_size * size
        if p.stride_x == 1:
            for fill in range(0, FILL_FIELDS * fill_count, FILL_FIELDS):
                cell = source + fills[fill]
                simd.prefetch(cell + ahead)
                simd.store(target + fills[fill + 2], simd.load_lanes(cell, fills[fill + 1], zero))
        else:
            for fill in range(0, FILL_FIELDS * fill_count, 2 * FILL_FIELDS):
                near, far = source + fills[fill], source + fills[fill + FILL_FIELDS]
                simd.prefetch(near + ahead)
                simd.prefetch(far + ahead)
                first = simd.load_lanes(near, fills[fill + 1], zero)
                second = simd.load_lanes(far, fills[fill + FILL_FIELDS + 1], zero)
                simd.store(target + fills[fill + 2], simd.even(first, second))
                if p.kernel_x > 1:
                    simd.store(target + fills[fill + FILL_FIELDS + 2], simd.odd(first, second))


@inlined
def fill_rows(p, runs, run_count, first_channel, channels, rows, zero):
    """The rows of x that the runs read, from some channels at `first_channel`, into the scratch at `rows`."""
    size = simd.bytes_of(zero)
    for c in range(channels):
        for run_index in range(run_count):
            run = RUN_FIELDS * run_index
            first_row = runs[run + 4]
            iy0 = runs[run + 2] * p.stride_y - p.pad_y - first_row
            ix0 = runs[run + 3] * p.stride_x - p.pad_x
            for kz in range(p.kernel_z):
                iz = runs[run + 1] * p.stride_z - p.pad_z + kz * p.dilation_z
                for row in range(runs[run + 5], runs[run + 6]):
                    if p.kernel_y == 1 and row != first_row:
                        continue  # a stride skips it
                    iy = iy0 + row
                    inside = 0 <= iz < p.depth and 0 <= iy < p.height
                    source = runs[run] * p.x_n + c * p.x_c + iz * p.x_z + iy * p.x_y
                    target = c * p.channel_size + kz * p.plane_size + row * p.row_size
                    # a narrow kernel reads the first phases only
                    for phase in range(min(p.stride_x, (p.kernel_x - 1) * p.dilation_x + 1)):
                        fill_phase(
                            rows + (target + phase * p.phase_size) * size,
                            first_channel + source * size,
                            ix0 + phase,
                            p.stride_x,
                            p.width if inside else 0,
                            p.phase_size,
                            p.x_c * size,
                            zero,
                        )


@inlined
def pack_panel(target, source, offsets, depth, moves, move, last_move, first_place, vectors, ahead, zero):
    """One panel: for each kernel cell of `depth`, the moves from `move` up to `last_move`.

    `ahead` is 0, or how far behind a move what is wanted soon lies, in bytes.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    for k in range(depth):
        base = source + offsets[k]
        for m in range(MOVE_FIELDS * move, MOVE_FIELDS * last_move, MOVE_FIELDS):
            if ahead:
                simd.prefetch(base + moves[m] + ahead)
            place = target + (moves[m + 1] - first_place) * size
            simd.store(place, take(base + moves[m], moves[m + 2], zero))
        target += vectors * lanes * size


@inlined
def store_tile(p, c, c_row, first, cells, channel, rows, zero):
    """The part of a tile that exists, from scratch at `c` into y, image by image."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    pixels = p.out_depth * p.out_height * p.out_width
    done = 0
    while done < cells:
        n, pixel = divmod(first + done, pixels)
        length = min(cells - done, pixels - pixel)
        for row in range(rows):
            source = c + row * c_row + done * size
            target = p.y + (n * p.y_n + (channel + row) * p.y_k + pixel) * size
            for i in range(0, length, lanes):
                put(target + i * size, take(source + i * size, length - i, zero), length - i)
        done += length


@inlined
def scatter_tile(p, c, c_row, first, cells, channel, rows, zero):
    """`store_tile` for a y that is not dense, row by row of its pixels."""
    size = simd.bytes_of(zero)
    done = 0
    while done < cells:
        n, rest = divmod(first + done, p.out_depth * p.out_height * p.out_width)
        oz, rest = divmod(rest, p.out_height * p.out_width)
        oy, ox = divmod(rest, p.out_width)
        length = min(cells - done, p.out_width - ox)
        for row in range(rows):
            source = c + row * c_row + done * size
            target = n * p.y_n + (channel + row) * p.y_k + oz * p.y_z + oy * p.y_y + ox * p.y_x
            for i in range(length):
                simd.copy_real(p.y + (target + i * p.y_x) * size, source + i * size, zero)
        done += length


@kernel(FORWARD)
def forward(bits):
    """y = conv(x, weight) + bias, and no less than 0 with `relu`."""
    lanes, size = LANES[bits], bits // 8
    panel_pixels = VECTORS * lanes

    def forward(params, t, tasks):
        p = fields(params, FORWARD)
        zero = simd.splat(0.0, bits)
        taps = p.kernel_z * p.kernel_y * p.kernel_x
        pixels = p.out_depth * p.out_height * p.out_width
        panels = (p.group_out + ROWS - 1) // ROWS

        # this task's panels, and its pixels in whole vectors
        pixel_task, panel_task = divmod(t, p.panel_tasks)
        first_panel = panel_task * panels // p.panel_tasks
        last_panel = (panel_task + 1) * panels // p.panel_tasks
        vectors = (p.images * pixels + lanes - 1) // lanes
        first_vector = pixel_task * vectors // p.pixel_tasks
        last_vector = (pixel_task + 1) * vectors // p.pixel_tasks

        scratch = p.scratch + t * p.scratch_bytes
        packed, tiles = scratch + p.at_packed, scratch + p.at_tiles
        fresh, own, template = scratch + p.at_fresh, ints(scratch + p.at_pack), ints(p.weight)
        offsets, runs, moves = (
            ints(scratch + p.at_offsets),
            ints(scratch + p.at_runs),
            ints(scratch + p.at_moves),
        )
        fills, by_table = ints(scratch + p.at_fills), not p.direct and p.stride_x <= FILL_STRIDE
        by_table = by_table and p.block_channels >= FILL_CHANNELS
        table_of_offsets(p, offsets, size)
        ahead = 4 * p.x_c * size if p.direct else 0  # 1 x 1 kernels: a few channels
        # B's rows for the micro-kernel, in panels of 1, 2, .. vectors
        block_depth = p.block_channels * taps
        panel_offsets = ints(scratch + p.at_panel_offsets)
        for vector in range(VECTORS):
            for k in range(block_depth):
                panel_offsets[vector * block_depth + k] = k * (vector + 1) * lanes * size

        # blocks of as equal sizes as can be
        for block_index in range(p.blocks):
            block = (first_vector + block_index * (last_vector - first_vector) // p.blocks) * lanes
            end = (first_vector + (block_index + 1) * (last_vector - first_vector) // p.blocks) * lanes
            count = min(end, p.images * pixels) - block
            if count <= 0:
                continue
            block_vectors = (count + lanes - 1) // lanes
            block_panels = (block_vectors + VECTORS - 1) // VECTORS
            run_count, move_count = find_runs(p, block, count, runs, moves, lanes, size)
            fill_count = 0
            if by_table:
                fill_count = find_fills(p, runs, run_count, fills, lanes, size)

            for group in range(p.groups):
                weights = p.weight + group * p.group_in * taps * panels * ROWS * size
                for c0 in range(0, p.group_in, p.block_channels):
                    channels = min(p.block_channels, p.group_in - c0)
                    depth = channels * taps
                    base = p.x + (group * p.group_in + c0) * p.x_c * size
                    # a few channels at a time, whose rows stay in L1
                    for c in range(0, channels, p.fill_channels):
                        count_c = min(p.fill_channels, channels - c)
                        source = base + c * p.x_c * size
                        if not p.direct:
                            rows = scratch + p.at_rows
                            if by_table:
                                fill_by_table(p, fills, fill_count, source, count_c, rows, zero)
                            else:
                                fill_rows(p, runs, run_count, source, count_c, rows, zero)
                            source = rows

                        # a plain 0 is a type of its own, for which `pack_panel` would be compiled once more
                        move = intp(0)
                        for panel in range(block_panels):
                            first = panel * panel_pixels
                            panel_vectors = min(VECTORS, block_vectors - panel * VECTORS)
                            end = first + panel_vectors * lanes
                            last = move
                            while last < move_count and moves[MOVE_FIELDS * last + 1] < end:
                                last += 1
                            # a vector behind each panel, for what the last move writes over the end
                            target = packed + (first * depth + panel * lanes) * size
                            target += c * taps * panel_vectors * lanes * size
                            pack_panel(
                                target,
                                source,
                                offsets,
                                count_c * taps,
                                moves,
                                move,
                                last,
                                first,
                                panel_vectors,
                                ahead,
                                zero,
                            )
                            move = last

                    start = LOAD if c0 else (BIAS if p.bias else ZERO)
                    final = c0 + channels == p.group_in
                    least = 0.0 if final and p.relu else -inf
                    for panel_row in range(first_panel, last_panel):
                        if p.pack_task:
                            place = (panel_row - first_panel) % FRESH_PANELS
                            if place == 0:
                                # the next few panels of this block, with the task's own copy of the record
                                for word in range(_WORDS):
                                    own[word] = template[word]
                                place_of_all = (group * p.group_in + c0) * panels + panel_row * channels
                                own[_PACKED] = fresh - place_of_all * taps * ROWS * size
                                if c0:
                                    own[_WHOLE_BIAS] = 0
                                own[_PART] = group * panels + panel_row
                                own[_PART + 1] = group * panels + min(last_panel, panel_row + FRESH_PANELS)
                                own[_PART + 2], own[_PART + 3] = c0, c0 + channels
                                call_task(p.pack_task, scratch + p.at_pack, 0, 1)
                            a = fresh + place * depth * ROWS * size
                        else:
                            a = weights + (c0 * panels + panel_row * channels) * taps * ROWS * size
                        bias = p.bias + (group * panels + panel_row) * ROWS * size
                        channel = group * p.group_out + panel_row * ROWS
                        used_rows = min(ROWS, p.group_out - panel_row * ROWS)
                        for panel in range(block_panels):
                            first = panel * panel_pixels
                            panel_vectors = min(VECTORS, block_vectors - panel * VECTORS)
                            cells = min(panel_vectors * lanes, count - first)
                            n, pixel = divmod(block + first, pixels)
                            # a whole tile within one image is kept in y, another one in scratch
                            in_y = p.dense and used_rows == ROWS and cells == panel_vectors * lanes
                            in_y = in_y and pixel + cells <= pixels
                            if in_y:
                                c = p.y + (n * p.y_n + channel * p.y_k + pixel) * size
                                c_row = p.y_k * size
                            else:
                                slot = 0
                                if p.block_channels < p.group_in:
                                    slot = (panel_row - first_panel) * block_panels + panel
                                c = tiles + slot * ROWS * panel_pixels * size
                                c_row = panel_vectors * lanes * size
                            b = packed + (first * depth + panel * lanes) * size
                            table = scratch + p.at_panel_offsets + (panel_vectors - 1) * block_depth * 8
                            if panel_vectors == 3:
                                multiply_tile(a, b, table, depth, c, c_row, start, bias, least, 3, zero)
                            elif panel_vectors == 2:
                                multiply_tile(a, b, table, depth, c, c_row, start, bias, least, 2, zero)
                            else:
                                multiply_tile(a, b, table, depth, c, c_row, start, bias, least, 1, zero)
                            if final and not in_y:
                                if p.dense:
                                    store_tile(p, c, c_row, block + first, cells, channel, used_rows, zero)
                                else:
                                    scatter_tile(p, c, c_row, block + first, cells, channel, used_rows, zero)

    return forward
