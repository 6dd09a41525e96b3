"""Direct convolution of few channels: x read where it lies, between zeros, and no matrix made of it.

    y[k, pixel] = sum over (c, ky, kx) of weight[k, c, ky, kx] * x[c, at pixel + tap]       for each group

is computed by tiles of some output channels by some vectors of pixels, held in registers. The vectors of a
tile lie anywhere, each within a row of output cells; all read x at the same offset for each (c, ky, kx).
Implicit GEMM copies x once for each cell of the kernel, so that its tiles may be whole across rows, and are
aligned; with few channels that takes as long as the products. Here x is copied once, or where a map is narrow
once for each column of the kernel: rows as long as those of output cells, one right after the other, so that
vectors run on from row to row and no lanes stay empty (`flat`).

    for each group
        packed  <- its weights, a panel of output channels after the other
        for each image and block of rows of output cells
            rows    <- the rows of x that the block reads, zero-padded, split by phase of the stride,
                        or one copy for each column of the kernel: in L2
            for each panel of output channels
                for each tile of vectors
                    tile of y = weights x rows

The first and the last row of output cells have tiles of their own where they have one or two vectors: these
leave out the rows of the kernel that lie in the padding, a third of the products with 3 x 3 cells.
A unit is a block. The order of additions is that of (ky, c, kx), whatever the blocks and the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.jit import Kernel, fields, inlined, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.rows import fill_phase
from fastconv.kernels.simd import LANES, REGISTERS
from fastconv.kernels.writer import Writer

#: Vectors of a tile by its output channels: as many sums as leave registers for the operands.
TILES = {1: 8, 2: 8, 4: 6, 8: 3} if REGISTERS >= 32 else {1: 4, 2: 4, 4: 3}

FORWARD = record(
    # addresses; bias is 0 where there is none
    "x weight bias y scratch scratch_bytes relu "
    "images groups group_in group_out height width out_height out_width "
    "kernel_y kernel_x stride_y stride_x dilation_y dilation_x pad_y pad_x "
    # steps in elements of the weight and of y
    "weight_group weight_row weight_channel weight_y weight_x y_n y_k y_y y_x "
    "block_rows "
    # whether rows of output cells follow each other without a gap
    "flat "
    # elements of a phase of a row, or of what a column of the kernel reads, of a row, of a channel of `rows`
    "phase_size row_size channel_size "
    # parts of a task's scratch, bytes from its start
    "at_rows at_packed at_bias at_offsets at_places at_tile"
)

#: Entries of the table of a block's vectors: where it is read, and written, in bytes, and its cells.
PLACES = 3


@intrinsic(prefer_literal=True)
def multiply_places(
    typingctx: Any,
    weight: Any,
    x: Any,
    offsets: Any,
    depth: Any,
    sources: Any,
    targets: Any,
    y: Any,
    y_row: Any,
    used_rows: Any,
    bias: Any,
    least: Any,
    rows: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """Tile of y = bias + weight x (vectors of x), and no less than `least`.

    `sources` and `targets` are tables of places, which may be the same: of vector v, the first says that it
    is at ``x + place + offsets[k]`` for each k, the other where it goes from `y` on, and how many of its
    lanes. `weight` is a packed panel of `rows` rows; the first `used_rows` are stored, `y_row` apart. All in
    bytes.
    """
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    height, count = rows.literal_value, vectors.literal_value
    real = types.float32 if like.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weight, x, offsets, depth, sources, targets, y, y_row, used_rows, bias = args[:10]
        write = Writer(builder, like)
        least = write.splat(args[10])
        size = write.element_bytes
        starts = [write.sum(x, write.word_at(sources, PLACES * v)) for v in range(count)]
        biases = [write.broadcast(write.sum(bias, row * size)) for row in range(height)]

        def body(k: Any, sums: list[Any]) -> list[Any]:
            offset = write.word_at(offsets, k)
            panel = write.sum(weight, write.product(k, height * size))
            pixels = [write.load(write.sum(start, offset)) for start in starts]
            result = []
            for row in range(height):
                factor = write.broadcast(write.sum(panel, row * size))
                row_sums = sums[row * count : (row + 1) * count]
                result += [write.fma(x, factor, total) for x, total in zip(pixels, row_sums, strict=True)]
            return result

        sums = write.loop(depth, [start for start in biases for _ in range(count)], body)
        ends = [write.sum(y, write.word_at(targets, PLACES * v + 1)) for v in range(count)]
        zero = write.word(0)
        masks = [write.lanes_below(zero, write.word_at(targets, PLACES * v + 2)) for v in range(count)]
        for row in range(height):
            with write.only_when(builder.icmp_signed("<", write.word(row), used_rows)):
                for v in range(count):
                    total = sums[row * count + v]
                    total = builder.select(builder.fcmp_ordered("<", total, least), least, total)
                    write.store(write.sum(ends[v], write.product(y_row, row)), total, masks[v])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10, real, rows, vectors, like), codegen


@inlined
def pack_group(p, group, packed, whole_bias, rows, bits):
    """packed[panel][ky, c, kx][rows] = a group's weight; and its bias, both with zeros up to whole panels."""
    source, target = reals(p.weight, bits), reals(packed, bits)
    bias, biases = reals(p.bias, bits), reals(whole_bias, bits)
    place = 0
    panels = (p.group_out + rows - 1) // rows
    for panel in range(panels):
        used = min(rows, p.group_out - panel * rows)
        first = group * p.weight_group + panel * rows * p.weight_row
        for ky in range(p.kernel_y):
            for c in range(p.group_in):
                for kx in range(p.kernel_x):
                    cell = first + c * p.weight_channel + ky * p.weight_y + kx * p.weight_x
                    for row in range(used):
                        target[place + row] = source[cell + row * p.weight_row]
                    for row in range(used, rows):
                        target[place + row] = 0
                    place += rows
        for row in range(rows):
            biases[panel * rows + row] = 0
            if p.bias and row < used:
                biases[panel * rows + row] = bias[group * p.group_out + panel * rows + row]


@inlined
def fill_block(p, x, first_row, count, rows, zero):
    """The rows of a group's channels at `x` that `count` rows of output cells from `first_row` on read.

    For the common strides a column of vectors at a time: all their masks are the same.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    # read once: to the compiler any store may change the record
    height, width, stride, pad_x = p.height, p.width, p.stride_x, p.pad_x
    phase_size, row_size, channel_size = p.phase_size, p.row_size, p.channel_size
    iy0 = first_row * p.stride_y - p.pad_y
    reach = (count - 1) * p.stride_y + (p.kernel_y - 1) * p.dilation_y + 1
    low = min(reach, max(0, -iy0))
    high = max(low, min(reach, height - iy0))
    x_row, row_bytes, phase_bytes = width * size, row_size * size, phase_size * size
    for c in range(p.group_in):
        source = x + (c * height + iy0) * x_row
        target = rows + c * channel_size * size
        for u in range(0, row_size, lanes):
            for row in range(low):
                simd.store(target + row * row_bytes + u * size, zero)
            for row in range(high, reach):
                simd.store(target + row * row_bytes + u * size, zero)
        if stride == 1:
            for u in range(0, phase_size, lanes):
                cell = u - pad_x
                for row in range(low, high):
                    vector = simd.load_between(source + row * x_row + cell * size, cell, width, zero)
                    simd.store(target + row * row_bytes + u * size, vector)
        elif stride == 2:
            for u in range(0, phase_size, lanes):
                cell = 2 * u - pad_x
                for row in range(low, high):
                    place, to = source + row * x_row + cell * size, target + row * row_bytes + u * size
                    first = simd.load_between(place, cell, width, zero)
                    second = simd.load_between(place + lanes * size, cell + lanes, width, zero)
                    simd.store(to, simd.even(first, second))
                    simd.store(to + phase_bytes, simd.odd(first, second))
        else:
            for row in range(low, high):
                for phase in range(stride):
                    fill_phase(
                        target + row * row_bytes + phase * phase_bytes,
                        source + row * x_row,
                        phase - pad_x,
                        stride,
                        width,
                        phase_size,
                        x_row,
                        zero,
                    )


@inlined
def fill_flat(p, x, first_row, count, rows, zero):
    """The same for each column of the kernel by itself: rows as long as those of output cells, without a gap.

    Of a row whole vectors are written. The last one reaches into the next row, so its column comes first.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    height, width, out_width, phase_size = p.height, p.width, p.out_width, p.phase_size
    iy0 = first_row - p.pad_y
    reach = count + (p.kernel_y - 1) * p.dilation_y
    low = min(reach, max(0, -iy0))
    high = max(low, min(reach, height - iy0))
    x_row, row_bytes = width * size, out_width * size
    for c in range(p.group_in):
        source = x + (c * height + iy0) * x_row
        for kx in range(p.kernel_x):
            target = rows + (c * p.channel_size + kx * phase_size) * size
            first = kx * p.dilation_x - p.pad_x
            for u in range(0, low * out_width, lanes):
                simd.store(target + u * size, zero)
            for u in range((out_width - 1) // lanes * lanes, -1, -lanes):
                cell = first + u
                for row in range(low, high):
                    vector = simd.load_between(source + row * x_row + cell * size, cell, width, zero)
                    simd.store(target + row * row_bytes + u * size, vector)
            for u in range(high * out_width, reach * out_width, lanes):
                simd.store(target + u * size, zero)


@inlined
def table_of_offsets(p, offsets, size):
    """offsets[ky, c, kx] = how far that reading is from the first, in bytes."""
    k = 0
    for ky in range(p.kernel_y):
        for c in range(p.group_in):
            for kx in range(p.kernel_x):
                row = c * p.channel_size + ky * p.dilation_y * p.row_size
                if p.flat:
                    offsets[k] = (row + kx * p.phase_size) * size
                else:
                    x0 = kx * p.dilation_x
                    offsets[k] = (row + x0 % p.stride_x * p.phase_size + x0 // p.stride_x) * size
                k += 1


@inlined
def find_places(p, count, places, vectors, lanes, size):
    """The vectors of a block of `count` rows, and so many more without cells that the last tile is whole."""
    length = 0
    rows, width = (1, count * p.out_width) if p.flat else (count, p.out_width)
    for row in range(rows):
        for ox in range(0, width, lanes):
            place = PLACES * length
            places[place] = (row * p.stride_y * p.row_size + ox) * size
            places[place + 1] = (row * p.y_y + ox * p.y_x) * size
            places[place + 2] = min(lanes, width - ox)
            length += 1
    for i in range(vectors):
        place = PLACES * (length + i)
        places[place], places[place + 1], places[place + 2] = places[place - PLACES], 0, 0
    return length


@inlined
def taps_inside(p, oy):
    """The first and the number of the kernel's cells whose rows are in x, for a row of output cells.

    All of them if there are none.
    """
    iy, row = oy * p.stride_y - p.pad_y, p.group_in * p.kernel_x
    low = (max(0, -iy) + p.dilation_y - 1) // p.dilation_y
    high = min(p.kernel_y, (p.height - iy + p.dilation_y - 1) // p.dilation_y)
    return (low * row, (high - low) * row) if low < high else (0, p.kernel_y * row)


@inlined
def scatter_vectors(p, y, tile, tile_row, places, used_rows, vectors, zero):
    """What a tile in scratch holds, to cells of y that do not follow each other."""
    size, lanes = simd.bytes_of(zero), simd.lanes_of(zero)
    for row in range(used_rows):
        for v in range(vectors):
            target = y + row * p.y_k * size + places[PLACES * v + 1]
            source = tile + row * tile_row + v * lanes * size
            for i in range(places[PLACES * v + 2]):
                simd.copy_real(target + i * p.y_x * size, source + i * size, zero)


def _direct(rows: int) -> Callable[[int], Callable[..., None]]:
    wide = TILES[rows]
    narrow = (wide + 1) // 2

    def direct_forward(bits: int) -> Any:
        """y = conv(x, weight) + bias, and no less than 0 with `relu`."""
        lanes, size = LANES[bits], bits // 8

        def direct_forward(params, t, tasks):
            p = fields(params, FORWARD)
            zero = simd.splat(0.0, bits)
            scratch = p.scratch + t * p.scratch_bytes
            x_rows, packed, biases = scratch + p.at_rows, scratch + p.at_packed, scratch + p.at_bias
            offsets, places, tile = ints(scratch + p.at_offsets), scratch + p.at_places, scratch + p.at_tile
            whole_depth = p.group_in * p.kernel_y * p.kernel_x
            per_row = (p.out_width + lanes - 1) // lanes
            own_tiles = not p.flat and (per_row == 1 or per_row == narrow)
            table_of_offsets(p, offsets, size)
            # where a tile goes that is scattered from scratch
            tile_row = wide * lanes * size
            whole = ints(tile + rows * tile_row)
            for v in range(wide):
                whole[PLACES * v + 1], whole[PLACES * v + 2] = v * lanes * size, lanes

            blocks = (p.out_height + p.block_rows - 1) // p.block_rows
            units = p.groups * p.images * blocks
            least = 0.0 if p.relu else -inf
            last_group, last_count, length = -1, 0, 0
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                rest, block = divmod(unit, blocks)
                group, n = divmod(rest, p.images)
                if group != last_group:
                    pack_group(p, group, packed, biases, rows, bits)
                    last_group = group
                first_row = block * p.block_rows
                count = min(p.block_rows, p.out_height - first_row)
                if count != last_count:
                    length = find_places(p, count, ints(places), wide, lanes, size)
                    last_count = count
                last = first_row + count == p.out_height
                end = length - per_row if own_tiles and last else length
                image = n * p.groups + group
                x = p.x + image * p.group_in * p.height * p.width * size
                if p.flat:
                    fill_flat(p, x, first_row, count, x_rows, zero)
                else:
                    fill_block(p, x, first_row, count, x_rows, zero)
                for k in range(0, p.group_out, rows):
                    used = min(rows, p.group_out - k)
                    bias = biases + k * size
                    y = p.y + (n * p.y_n + (group * p.group_out + k) * p.y_k + first_row * p.y_y) * size
                    place = 0
                    while place < length:
                        step, first_k, depth = wide, 0, whole_depth
                        if own_tiles and place == 0 and first_row == 0:
                            step = per_row
                            first_k, depth = taps_inside(p, 0)
                        elif place >= end:
                            step = per_row
                            first_k, depth = taps_inside(p, p.out_height - 1)
                        elif end - place <= narrow or wide < end - place <= 2 * narrow:
                            # two narrow tiles where a wide one would leave a rest as good as empty
                            step = narrow
                        weight = packed + (k * whole_depth + first_k * rows) * size
                        taps_at = scratch + p.at_offsets + first_k * 8
                        table = places + place * PLACES * 8
                        target, target_row, ends = y, p.y_k * size, table
                        if p.y_x != 1:
                            target, target_row, ends = tile, tile_row, tile + rows * tile_row
                        if step == wide:
                            multiply_places(
                                weight,
                                x_rows,
                                taps_at,
                                depth,
                                table,
                                ends,
                                target,
                                target_row,
                                used,
                                bias,
                                least,
                                rows,
                                wide,
                                zero,
                            )
                        elif step == narrow:
                            multiply_places(
                                weight,
                                x_rows,
                                taps_at,
                                depth,
                                table,
                                ends,
                                target,
                                target_row,
                                used,
                                bias,
                                least,
                                rows,
                                narrow,
                                zero,
                            )
                        else:
                            multiply_places(
                                weight,
                                x_rows,
                                taps_at,
                                depth,
                                table,
                                ends,
                                target,
                                target_row,
                                used,
                                bias,
                                least,
                                rows,
                                1,
                                zero,
                            )
                        if p.y_x != 1:
                            scatter_vectors(p, y, tile, tile_row, ints(table), used, step, zero)
                        # the last row is left to its own tile, though this one may have had a part of it
                        place = min(place + step, end) if place < end else length

        return direct_forward

    return direct_forward


#: By output channels of a tile.
forward: dict[int, Kernel] = {rows: kernel(FORWARD)(_direct(rows)) for rows in TILES}
