"""The weight gradient by Winograd's minimal filtering, of arrays in both layouts.

The gradient of `fastconv.kernels.winograd`'s formula, with its matrices: for every pair of channels

    grad_weight[k, c] = G' [ sum over tiles t of (A grad_y[k, t] A') * (B' x[c, t] B) ] G

where * is cell by cell: 36 products for what are 9 x 16 (F(3 x 3, 4 x 4) of A. Lavin and S. Gray, "Fast
Algorithms for Convolutional Neural Networks", 2016). For each of the span^2 points there is one product of
matrices, in which the tiles are what is summed over, and only the last sums are transformed back.

    x       cells of a tile   B'dB    inputs (span^2, blocks of c, tiles, block_lanes)
    grad_y  cells of a tile   AgA'    gradients (span^2, panels of k, tiles, columns)
    sums (units, span^2, c, columns)  +=  inputs' x gradients, one product for each point
    grad_weight               <- G'mG, a unit, that is a block of c and a panel of k, after the other

The lanes are channels in every transform. Channels-last arrays are read where they are; of the others, the
rows that a piece of a row of tiles reads are transposed first, one vector of channels after the other.

There are two ways to share the work, by the shape alone, so that the bits are the same with any number of
tasks. With many channels all tasks transform a chunk of the tiles, and then have some of the units each:
sums that no other chunk follows are transformed back while they are in L2. With few, whose sums all fit in
L2, tasks have segments of the tiles, each with sums of its own, which are then added in their order.

    shared      for each chunk of tiles           segments    for each segment, of which a task has some
                    inputs, gradients                             for each chunk of its tiles
                    for each unit                                     inputs, gradients      stay in L2
                        sums += products                              for each unit
                        if last: grad_weight                              sums += products   stay in L2
                                                              for each unit
                                                                  grad_weight <- sums of the segments
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO, multiply_blocks
from fastconv.kernels.simd import LANES, put
from fastconv.kernels.winograd_cells import transform_back, transform_cells, transform_gradients
from fastconv.kernels.winograd_points import TAPS
from fastconv.kernels.winograd_transforms import form_of

#: Outputs of a tile along an axis: the tiles are what is summed over, so that nothing is gained by small ones
#: that fill the lanes better.
TILE = 4
SPAN = TILE + TAPS - 1
POINTS = SPAN * SPAN
CELLS = TAPS * TAPS

#: Most tiles of a piece of a row. Longer pieces are faster on large planes, until they leave L1.
PIECE = 14

#: One record for all kernels.
GRADIENT = record(
    # addresses; `sums` is 0 where those of a unit stay in the task's scratch
    "x grad_output grad_weight inputs gradients sums scratch "
    # the pieces of a chunk, and which units are done
    "first_piece last_piece first_unit last_unit "
    "scratch_bytes "
    # whether the channels of a pixel, rather than the pixels of a row, follow each other; strides in elements
    "channels_last x_n x_z x_y x_x x_c y_n y_z y_y y_x y_k w_tap w_c w_k "
    "images groups group_in group_out depth height width out_height out_width pad_y pad_x tiles_y tiles_x "
    # pieces of a row of tiles; pieces and tiles of a chunk
    "row_pieces chunk_pieces chunk_tiles segments "
    # bytes from point to point, and from unit to unit of the sums; input channels of a unit
    "input_point gradient_point sum_point unit_bytes segment_bytes block_in "
    # parts of a task's scratch, bytes from its start
    "at_zeros at_table at_turned at_inputs at_gradients at_sums"
)


@inlined
def tile_of_piece(p, piece):
    """The first tile of a piece."""
    row, part = divmod(piece, p.row_pieces)
    return row * p.tiles_x + part * p.tiles_x // p.row_pieces


@inlined
def find_cells(base, row_bytes, cell_bytes, iy, ix, height, width, span, count, table, zeros):
    """The addresses of the span x span cells of each of `count` neighbouring tiles, the first at (iy, ix).

    `base` is where the plane's first cell is. Cells that do not exist are those at `zeros`.
    """
    entry = 0
    for i in range(count):
        for a in range(span):
            y = iy + a
            for b in range(span):
                x = ix + i * TILE + b
                inside = 0 <= y < height and 0 <= x < width
                table[entry] = base + y * row_bytes + x * cell_bytes if inside else zeros
                entry += 1


@inlined
def turn_rows(source, channel_bytes, row_bytes, channels, rows, columns, target, zero):
    """Some rows of a plane, transposed: cell by cell a vector of channels. Behind the last is slack."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    if columns * size == row_bytes:  # one follows the other
        rows, columns = 1, rows * columns
    for _ in range(rows):
        # what a short block writes behind its cells is written over by the next row
        for x in range(0, columns, lanes):
            simd.transpose_square(
                source + x * size,
                channel_bytes,
                channels,
                columns - x,
                target + x * lanes * size,
                lanes * size,
                zero,
            )
        source += row_bytes
        target += columns * lanes * size


@inlined
def input_vectors(p, lanes):
    """Vectors of the input channels of a group: those of whole blocks."""
    block = max(ROWS, lanes)
    return (p.group_in + block - 1) // block * block // lanes


@inlined
def place_of_input(p, vector, tile, lanes, size):
    """Bytes from the start of a point to a vector of a tile's input channels; and on to the next tile."""
    block = max(ROWS, lanes)
    whole, part = divmod(vector * lanes, block)
    return ((whole * p.chunk_tiles + tile) * block + part) * size, block * size


@inlined
def place_of_gradient(p, vector, tile, lanes, size):
    """The same for a vector of output channels."""
    out_vectors = (p.group_out + lanes - 1) // lanes
    out_panels = (out_vectors + VECTORS - 1) // VECTORS
    group, within = divmod(vector, out_vectors)
    panel = ((within + 1) * out_panels - 1) // out_vectors
    first = panel * out_vectors // out_panels
    wide = (panel + 1) * out_vectors // out_panels - first
    before = (group * out_vectors + first) * p.chunk_tiles
    return (before + tile * wide + within - first) * lanes * size, wide * lanes * size


@inlined
def transform_tiles(p, first_piece, last_piece, t, tasks, inputs, gradients, scratch, form, zero):
    """Share `t` of `tasks` of inputs and gradients of the tiles of some pieces."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    in_vectors = p.groups * input_vectors(p, lanes)
    out_vectors = p.groups * ((p.group_out + lanes - 1) // lanes)
    first_tile = tile_of_piece(p, first_piece)
    zeros, turned, table = scratch + p.at_zeros, scratch + p.at_turned, scratch + p.at_table
    for i in range(0, max(p.x_x, p.y_x), lanes):
        simd.store(zeros + i * size, zero)

    per_piece = in_vectors + out_vectors
    units = (last_piece - first_piece) * per_piece
    unit, last_unit = t * units // tasks, (t + 1) * units // tasks
    while unit < last_unit:
        piece, first = divmod(unit, per_piece)
        last = min(per_piece, first + last_unit - unit)
        unit += last - first
        tile = tile_of_piece(p, first_piece + piece)
        count = tile_of_piece(p, first_piece + piece + 1) - tile
        place = tile - first_tile
        plane, rest = divmod(tile, p.tiles_y * p.tiles_x)
        n, z = divmod(plane, p.depth)
        tile_y, tile_x = divmod(rest, p.tiles_x)

        for of_x in range(2):
            # where the cells are of what the tiles see of x, or of the tiles of grad_output
            if of_x:
                low, high, vectors = first, min(last, in_vectors), in_vectors // p.groups
                base, row, cell = p.x + (n * p.x_n + z * p.x_z) * size, p.x_y * size, p.x_x * size
                height, width, channels, channel_bytes = p.height, p.width, p.group_in, p.x_c * size
                iy, ix, span = tile_y * TILE - p.pad_y, tile_x * TILE - p.pad_x, SPAN
            else:
                low, high, vectors = max(0, first - in_vectors), last - in_vectors, out_vectors // p.groups
                base, row, cell = p.grad_output + (n * p.y_n + z * p.y_z) * size, p.y_y * size, p.y_x * size
                height, width, channels, channel_bytes = p.out_height, p.out_width, p.group_out, p.y_k * size
                iy, ix, span = tile_y * TILE, tile_x * TILE, TILE
            if low >= high:
                continue
            # the rows and columns that exist of what they see, whole rows if there is but one piece of them
            top, bottom = max(0, iy), min(height, iy + span)
            left, right = max(0, ix), min(width, ix + (count - 1) * TILE + span)
            if p.row_pieces == 1:
                left, right = 0, width
            corner = base + top * row + left * size
            seen, seen_row = base, row
            if not p.channels_last:
                seen_row, cell = (right - left) * lanes * size, lanes * size
                seen = turned - top * seen_row - left * cell
            find_cells(seen, seen_row, cell, iy, ix, height, width, span, count, ints(table), zeros)
            for v in range(low, high):
                group, within = divmod(v, vectors)
                some = max(0, channels - within * lanes)
                skip = (group * channels + within * lanes) * channel_bytes
                if not p.channels_last:
                    rows, columns = bottom - top, right - left
                    turn_rows(corner + skip, channel_bytes, row, some, rows, columns, turned, zero)
                    skip, some = 0, lanes
                if of_x:
                    target, step = place_of_input(p, v, place, lanes, size)
                    for i in range(count):
                        cells = table + i * POINTS * 8
                        transform_cells(cells, skip, some, inputs + target + i * step, p.input_point, form)
                else:
                    target, step = place_of_gradient(p, v, place, lanes, size)
                    for i in range(count):
                        cells = table + i * TILE * TILE * 8
                        transform_gradients(
                            cells, skip, some, gradients + target + i * step, p.gradient_point, form
                        )


@inlined
def parts_of_unit(p, unit, lanes):
    """A unit's group, in it the first input channel, how many, the first output vector, and how many."""
    out_vectors = (p.group_out + lanes - 1) // lanes
    out_panels = (out_vectors + VECTORS - 1) // VECTORS
    rest, panel = divmod(unit, out_panels)
    group, block = divmod(rest, (p.group_in + p.block_in - 1) // p.block_in)
    channel = block * p.block_in
    first = panel * out_vectors // out_panels
    wide = (panel + 1) * out_vectors // out_panels - first
    return group, channel, min(p.block_in, p.group_in - channel), first, wide


@inlined
def multiply_unit(p, unit, count, start, inputs, gradients, sums, zero):
    """The sums of a unit over `count` tiles."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    group, channel, channels, first, wide = parts_of_unit(p, unit, lanes)
    row = wide * lanes * size
    in_vector = group * input_vectors(p, lanes)
    out_vector = group * ((p.group_out + lanes - 1) // lanes) + first
    b = gradients + place_of_gradient(p, out_vector, 0, lanes, size)[0]
    for point in range(POINTS):
        c_tile = sums + point * p.sum_point
        for c in range(channel, channel + channels, ROWS):
            # a tile's rows are a part of a vector, or some vectors, of which the first is found
            a = inputs + place_of_input(p, in_vector + c // lanes, 0, lanes, size)[0] + c % lanes * size
            if wide == 3:
                multiply_blocks(a, b, count, c_tile, row, start, 3, zero)
            elif wide == 2:
                multiply_blocks(a, b, count, c_tile, row, start, 2, zero)
            else:
                multiply_blocks(a, b, count, c_tile, row, start, 1, zero)
            c_tile += ROWS * row
        inputs += p.input_point
        b += p.gradient_point


@inlined
def finish_unit(p, unit, sums, turned, form, zero):
    """grad_weight of a unit from its sums."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    vector = lanes * size
    group, channel, channels, first, wide = parts_of_unit(p, unit, lanes)
    for v in range(wide):
        k = (first + v) * lanes
        outputs = p.group_out - k
        target = p.grad_weight + ((group * p.group_out + k) * p.w_k + channel * p.w_c) * size
        filters, filter_bytes, tap_bytes, some = target, p.w_c * size, p.w_tap * size, outputs
        if not p.channels_last:
            filters, filter_bytes, tap_bytes, some = turned, CELLS * vector, vector, lanes
        for c in range(channels):
            source = sums + (c * wide + v) * vector
            transform_back(source, p.sum_point, filters + c * filter_bytes, tap_bytes, some, form)
        if not p.channels_last:
            # rows of grad_weight, which are the cells of channel after channel
            cells, row = channels * CELLS, p.w_k * size
            for i in range(0, cells, lanes):
                source, place = turned + i * vector, target + i * size
                if i + lanes <= cells and lanes <= outputs:
                    simd.transpose_square(source, vector, lanes, lanes, place, row, zero)
                else:
                    # over what is read, of which nothing is needed again
                    simd.transpose_square(source, vector, cells - i, lanes, source, vector, zero)
                    for j in range(min(lanes, outputs)):
                        put(place + j * row, simd.load(source + j * vector, zero), cells - i)


@kernel(GRADIENT)
def transform(bits):
    """inputs and gradients of a chunk."""

    def transform(params, t, tasks):
        p = fields(params, GRADIENT)
        form, zero = form_of(TILE, bits), simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        transform_tiles(p, p.first_piece, p.last_piece, t, tasks, p.inputs, p.gradients, scratch, form, zero)

    return transform


@kernel(GRADIENT)
def products(bits):
    """The sums of a chunk, and after the last one grad_weight."""

    def products(params, t, tasks):
        p = fields(params, GRADIENT)
        form, zero = form_of(TILE, bits), simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        pieces = p.images * p.depth * p.tiles_y * p.row_pieces
        count = tile_of_piece(p, p.last_piece) - tile_of_piece(p, p.first_piece)
        start = LOAD if p.first_piece else ZERO
        units = p.last_unit - p.first_unit
        for i in range(t * units // tasks, (t + 1) * units // tasks):
            sums = p.sums + i * p.unit_bytes if p.sums else scratch + p.at_sums
            unit = p.first_unit + i
            multiply_unit(p, unit, count, start, p.inputs, p.gradients, sums, zero)
            if p.last_piece == pieces:
                finish_unit(p, unit, sums, scratch + p.at_turned, form, zero)

    return products


@kernel(GRADIENT)
def segment_sums(bits):
    """The sums of each segment, by tasks that transform the tiles themselves."""

    def segment_sums(params, t, tasks):
        p = fields(params, GRADIENT)
        form, zero = form_of(TILE, bits), simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        inputs, gradients = scratch + p.at_inputs, scratch + p.at_gradients
        pieces = p.images * p.depth * p.tiles_y * p.row_pieces
        for segment in range(t * p.segments // tasks, (t + 1) * p.segments // tasks):
            first, last = segment * pieces // p.segments, (segment + 1) * pieces // p.segments
            for piece in range(first, last, p.chunk_pieces):
                end = min(piece + p.chunk_pieces, last)
                transform_tiles(p, piece, end, 0, 1, inputs, gradients, scratch, form, zero)
                count = tile_of_piece(p, end) - tile_of_piece(p, piece)
                start = LOAD if piece > first else ZERO
                for unit in range(p.last_unit):
                    sums = p.sums + segment * p.segment_bytes + unit * p.unit_bytes
                    multiply_unit(p, unit, count, start, inputs, gradients, sums, zero)

    return segment_sums


@kernel(GRADIENT)
def finish(bits):
    """grad_weight from the sums of all segments."""
    lanes, size = LANES[bits], bits // 8

    def finish(params, t, tasks):
        p = fields(params, GRADIENT)
        form, zero = form_of(TILE, bits), simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        for unit in range(t * p.last_unit // tasks, (t + 1) * p.last_unit // tasks):
            sums = p.sums + unit * p.unit_bytes
            for place in range(sums, sums + POINTS * p.sum_point, lanes * size):
                total = simd.load(place, zero)
                for segment in range(1, p.segments):
                    total = simd.add(total, simd.load(place + segment * p.segment_bytes, zero))
                simd.store(place, total)
            finish_unit(p, unit, sums, scratch + p.at_turned, form, zero)

    return finish


#: What one of the two ways of sharing needs, and then the other.
KERNELS = (transform, products, segment_sums, finish)
