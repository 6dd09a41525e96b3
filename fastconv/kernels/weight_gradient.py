"""The weight gradient as a matrix product in which x is read in place.

    grad_weight' (CgT, Kg) = columns' (CgT, pixels) x grad_output' (pixels, Kg)      for each group

The output channels are on the lanes. So a row of the left matrix, that is one cell of the kernel in one
channel, is only ever broadcast, real by real, and a broadcast can read anywhere: the row (c, kz, ky, kx) at
pixel p is what x holds at `a_rows[c, kz, ky, kx] + offsets[p]`, whatever the stride and the dilation.
Nothing is lowered; where there is padding, the rows of x are copied between zeros. Only grad_output is
transposed. Few input channels are nothing special: their kernel cells fill the rows.

    for each segment of the pixels                             its sums are a matrix of their own
        for each group, and each block of output channels
            for each chunk of the segment's pixels
                panels  <- grad_output's chunk, transposed         stays in L2
                for each block of input channels
                    rows    <- the rows of x that the chunk reads, between zeros
                    for each panel of ROWS kernel cells            stays in L1
                        for each panel of output channels          streams from L2
                            tile of sums += x x panel

The sums of a single segment are transposed into the gradient tile by tile, as their last chunk is added;
those of several by another kernel, which adds them up. The segments depend on the shape alone, and are added
in their order: the result has the same bits whatever the number of tasks. A task has a range of (segment,
group, block of output channels, panel of kernel cells).
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO, multiply_rows
from fastconv.kernels.rows import fill_phase
from fastconv.kernels.simd import LANES, put

SUMS = record(
    # addresses; sums is (segments, groups, sums_height, sums_width), and grad_weight 0 if there are several
    # segments
    "x grad_output sums scratch grad_weight "
    "scratch_bytes sums_height sums_width "
    # strides in elements; the last axis of x, and the pixels of grad_output, are contiguous
    "x_n x_c x_z x_y y_n y_k "
    "images groups group_in group_out depth height width "
    "kernel_z kernel_y kernel_x stride_z stride_y stride_x "
    "dilation_z dilation_y dilation_x pad_z pad_y pad_x "
    "out_depth out_height out_width "
    # a chunk is chunk_rows whole rows of output cells, or chunk_columns of one row; channels of a block
    "segments chunk_rows chunk_columns block_in block_out "
    # whether x itself is read
    "direct "
    # parts of a task's scratch, bytes from its start
    "at_rows at_panels at_offsets at_taps at_a_rows "
    # `rows`: elements of a row, of a plane of rows, of a channel; `panels`: pixels that a panel has room for
    "row_size plane_size channel_size panel_pixels"
)

FINISH = record(
    "sums grad_weight scratch scratch_bytes sums_height sums_width segments groups group_cells group_out"
)


@inlined
def table_of_taps(p, taps, size):
    """taps[kz, ky, kx] = how far that kernel cell's reading is from that of the first, in bytes."""
    t = 0
    for kz in range(p.kernel_z):
        for ky in range(p.kernel_y):
            for kx in range(p.kernel_x):
                if p.direct:
                    offset = kz * p.dilation_z * p.x_z + ky * p.dilation_y * p.x_y
                else:
                    offset = kz * p.plane_size + ky * p.dilation_y * p.row_size
                taps[t] = (offset + kx * p.dilation_x) * size
                t += 1


@inlined
def pack_pixels(p, pixels, length, place, channels, panels, zero):
    """Transpose `length` pixels of some channels of grad_output, to places from `place` on in the panels."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    vectors = (channels + lanes - 1) // lanes
    count = (vectors + VECTORS - 1) // VECTORS
    for panel in range(count):
        first, last = panel * vectors // count, (panel + 1) * vectors // count
        row = (last - first) * lanes * size
        for vector in range(first, last):
            source = pixels + vector * lanes * p.y_k * size
            target = panels + (first * p.panel_pixels + vector - first) * lanes * size + place * row
            rows = channels - vector * lanes
            # what a short block writes behind its pixels is written over, or is slack
            for i in range(0, length, lanes):
                cell, columns = source + i * size, length - i
                simd.transpose_square(cell, p.y_k * size, rows, columns, target + i * row, row, zero)


@inlined
def fill_piece(p, x, n, oz, oy, ox, count, columns, first_row, rows, zero):
    """The rows of x that `count` rows of output cells from (n, oz, oy) on read, for one channel at `x`."""
    size = simd.bytes_of(zero)
    height = (count - 1) * p.stride_y + (p.kernel_y - 1) * p.dilation_y + 1
    width = (columns - 1) * p.stride_x + (p.kernel_x - 1) * p.dilation_x + 1
    for kz in range(p.kernel_z):
        iz = oz * p.stride_z - p.pad_z + kz * p.dilation_z
        for row in range(height):
            iy = oy * p.stride_y - p.pad_y + row
            inside = 0 <= iz < p.depth and 0 <= iy < p.height
            fill_phase(
                rows + (kz * p.plane_size + (first_row + row) * p.row_size) * size,
                x + (n * p.x_n + iz * p.x_z + iy * p.x_y) * size,
                ox * p.stride_x - p.pad_x,
                1,
                p.width if inside else 0,
                width,
                0,
                zero,
            )


@inlined
def store_gradient(tile, tile_row, target, target_row, rows, columns, memory, zero):
    """target[column][row] = tile[row][column] for some rows and columns of a tile."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    for column in range(0, columns, lanes):
        block = tile + column * size
        simd.transpose_block(block, tile_row, ROWS, lanes, memory, lanes * size, ROWS, zero)
        for i in range(min(lanes, columns - column)):
            cell, to = memory + i * ROWS * size, target + (column + i) * target_row
            if rows == ROWS:
                simd.copy_reals(to, cell, ROWS, zero)
            else:
                simd.store_part(to, simd.load_part(cell, rows, zero), rows)


@kernel(SUMS)
def weight_sums(bits):
    """The sums of each segment, kernel cells by output channels; of a single one the gradient itself."""
    lanes, size = LANES[bits], bits // 8
    tile_bytes, memory_bytes = ROWS * VECTORS * lanes * size, ROWS * lanes * size

    def weight_sums(params, t, tasks):
        p = fields(params, SUMS)
        zero = simd.splat(0.0, bits)
        taps_count = p.kernel_z * p.kernel_y * p.kernel_x
        cells = p.group_in * taps_count
        row_panels = (cells + ROWS - 1) // ROWS
        out_blocks = (p.group_out + p.block_out - 1) // p.block_out
        pieces = (p.out_width + p.chunk_columns - 1) // p.chunk_columns
        all_rows = p.images * p.out_depth * p.out_height
        chunks = (all_rows + p.chunk_rows - 1) // p.chunk_rows * pieces
        units = p.segments * p.groups * out_blocks * row_panels
        reach = (p.kernel_y - 1) * p.dilation_y + 1

        scratch = p.scratch + t * p.scratch_bytes
        rows, panels = scratch + p.at_rows, scratch + p.at_panels
        offsets, taps = ints(scratch + p.at_offsets), ints(scratch + p.at_taps)
        a_rows = ints(scratch + p.at_a_rows)
        table_of_taps(p, taps, size)
        tile_alone, memory = simd.stack_memory(tile_bytes), simd.stack_memory(memory_bytes)

        unit, last_unit = t * units // tasks, (t + 1) * units // tasks
        while unit < last_unit:
            # the panels of kernel cells that this task has of one segment, group and block
            rest, first_panel = divmod(unit, row_panels)
            last_panel = min(row_panels, first_panel + last_unit - unit)
            unit += last_panel - first_panel
            rest, out_block = divmod(rest, out_blocks)
            segment, group = divmod(rest, p.groups)
            first_out = out_block * p.block_out
            channels = min(p.block_out, p.group_out - first_out)
            vectors = (channels + lanes - 1) // lanes
            out_panels = (vectors + VECTORS - 1) // VECTORS
            gradient = p.grad_output + (group * p.group_out + first_out) * p.y_k * size
            x = p.x + group * p.group_in * p.x_c * size
            sums = p.sums + (segment * p.groups + group) * p.sums_height * p.sums_width * size
            sums += first_out * size

            first_chunk, last_chunk = segment * chunks // p.segments, (segment + 1) * chunks // p.segments
            for chunk in range(first_chunk, last_chunk):
                start = ZERO if chunk == first_chunk else LOAD
                row_chunk, column_piece = divmod(chunk, pieces)
                first_row = row_chunk * p.chunk_rows
                last_row = min(first_row + p.chunk_rows, all_rows)
                ox = column_piece * p.chunk_columns
                columns = min(p.chunk_columns, p.out_width - ox)

                # rows of one plane follow each other in memory, and share rows of x
                place, x_rows, row = 0, 0, first_row
                while row < last_row:
                    plane, oy = divmod(row, p.out_height)
                    n, oz = divmod(plane, p.out_depth)
                    count = min(last_row - row, p.out_height - oy)
                    pixel = (oz * p.out_height + oy) * p.out_width + ox
                    pixels = gradient + (n * p.y_n + pixel) * size
                    pack_pixels(p, pixels, count * columns, place, channels, panels, zero)
                    for i in range(count):
                        if p.direct:
                            base = n * p.x_n + oz * p.stride_z * p.x_z + (oy + i) * p.stride_y * p.x_y
                            base += ox * p.stride_x
                        else:
                            base = (x_rows + i * p.stride_y) * p.row_size
                        for column in range(columns):
                            offsets[place] = (base + column * p.stride_x) * size
                            place += 1
                    x_rows += (count - 1) * p.stride_y + reach
                    row += count

                panel = first_panel
                while panel < last_panel:
                    first_in = panel * ROWS // taps_count
                    if p.direct:
                        end_panel, base, channel_size = last_panel, x + first_in * p.x_c * size, p.x_c
                    else:
                        end_panel = min(last_panel, (first_in + p.block_in) * taps_count // ROWS)
                        if first_in + p.block_in >= p.group_in:
                            end_panel = last_panel
                        base, channel_size = rows, p.channel_size
                        last_in = min(p.group_in, (end_panel * ROWS - 1) // taps_count + 1)
                        for c in range(first_in, last_in):
                            x_rows, row = 0, first_row
                            while row < last_row:
                                plane, oy = divmod(row, p.out_height)
                                n, oz = divmod(plane, p.out_depth)
                                count = min(last_row - row, p.out_height - oy)
                                channel = x + c * p.x_c * size
                                target = rows + (c - first_in) * p.channel_size * size
                                fill_piece(p, channel, n, oz, oy, ox, count, columns, x_rows, target, zero)
                                x_rows += (count - 1) * p.stride_y + reach
                                row += count

                    for row_panel in range(panel, end_panel):
                        for i in range(ROWS):
                            # rows beyond the last repeat it
                            c, tap = divmod(min(row_panel * ROWS + i, cells - 1), taps_count)
                            a_rows[i] = base + (c - first_in) * channel_size * size + taps[tap]
                        tile = sums + row_panel * ROWS * p.sums_width * size
                        for out_panel in range(out_panels):
                            first = out_panel * vectors // out_panels
                            width = (out_panel + 1) * vectors // out_panels - first
                            b = panels + first * p.panel_pixels * lanes * size
                            c_tile, c_row = tile + first * lanes * size, p.sums_width * size
                            if p.grad_weight and last_chunk == first_chunk + 1:
                                c_tile, c_row = tile_alone, VECTORS * lanes * size
                            a, o = scratch + p.at_a_rows, scratch + p.at_offsets
                            if width == 3:
                                multiply_rows(a, o, b, place, c_tile, c_row, start, 3, zero)
                            elif width == 2:
                                multiply_rows(a, o, b, place, c_tile, c_row, start, 2, zero)
                            else:
                                multiply_rows(a, o, b, place, c_tile, c_row, start, 1, zero)
                            if p.grad_weight and chunk == last_chunk - 1:
                                cell, channel = row_panel * ROWS, first_out + first * lanes
                                target = (group * p.group_out + channel) * cells + cell
                                store_gradient(
                                    c_tile,
                                    c_row,
                                    p.grad_weight + target * size,
                                    cells * size,
                                    min(ROWS, cells - cell),
                                    min(width * lanes, channels - first * lanes),
                                    memory,
                                    zero,
                                )
                    panel = end_panel

    return weight_sums


@kernel(FINISH)
def finish_weight(bits):
    """grad_weight[k, cell] = the sum over segments of sums[segment, cell, k]. A unit is a vector of cells."""
    lanes, size = LANES[bits], bits // 8

    def finish_weight(params, t, tasks):
        p = fields(params, FINISH)
        zero = simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        blocks = (p.group_cells + lanes - 1) // lanes
        units = p.groups * blocks
        segment_size = p.groups * p.sums_height * p.sums_width * size
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            group, block = divmod(unit, blocks)
            first = block * lanes
            cells = min(lanes, p.group_cells - first)
            sums = p.sums + (group * p.sums_height + first) * p.sums_width * size
            for row in range(cells):
                for k in range(0, p.group_out, lanes):
                    place = sums + (row * p.sums_width + k) * size
                    total = simd.load(place, zero)
                    for segment in range(1, p.segments):
                        total = simd.add(total, simd.load(place + segment * segment_size, zero))
                    if p.segments > 1:
                        simd.store(place, total)
            for k in range(0, p.group_out, lanes):
                target = p.grad_weight + ((group * p.group_out + k) * p.group_cells + first) * size
                source, row, out_row = sums + k * size, p.sums_width * size, p.group_cells * size
                if cells == lanes and k + lanes <= p.group_out:
                    simd.transpose_square(source, row, lanes, lanes, target, out_row, zero)
                else:
                    simd.transpose_square(source, row, cells, lanes, scratch, lanes * size, zero)
                    for i in range(min(lanes, p.group_out - k)):
                        put(target + i * out_row, simd.load(scratch + i * lanes * size, zero), cells)

    return finish_weight
