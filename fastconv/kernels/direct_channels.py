"""Direct convolution of channels-last arrays with few channels: see `fastconv.kernels.direct`.

    y[pixel, k] = sum over (ky, kx, c) of x[at pixel + tap, c] * weight[ky, kx, c, k]

What the cells of the kernel see from a pixel lies at the same distances from what the first one sees,
whatever the pixel, in a copy of some rows of x between zeros. So a table of these distances serves all
pixels, and one loop goes through all cells and channels, where `fastconv.kernels.channels_last` has one for
each cell:

    for each image and block of rows of output cells
        rows    <- the rows of x that the block reads, between zeros: in the cache
        for each panel of vectors of output channels
            for each tile of ROWS pixels, which may lie in several rows
                tile of y = rows x weight, packed by panels             in registers

Of one input channel the pixels of a row are neighbours, as they are channels first, and may lie on the lanes.
That is done where the output channels are as few as NARROW, which would leave lanes empty:

        for each tile of vectors of pixels, one row of `rows` after the other, with what is between them
            tile of y = weight x rows, transposed in registers          those between rows are not stored

A unit is a block. The order of additions is that of (ky, kx, c), whatever the blocks and the tasks.
"""

from __future__ import annotations

from math import inf
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.jit import fields, inlined, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import ROWS, VECTORS, Tile
from fastconv.kernels.simd import LANES, REGISTERS, Vector, perfect_shuffle, take
from fastconv.kernels.writer import Writer

FORWARD = record(
    # addresses; bias is 0 where there is none
    "x weight bias y scratch scratch_bytes relu "
    "images group_in group_out height width out_height out_width "
    "kernel_y kernel_x stride_y stride_x dilation_y dilation_x pad_y pad_x "
    # steps in elements of the weight, of which output channels are neighbours, and of y
    "weight_channel weight_y weight_x y_n y_y y_x "
    # rows of output cells of a block, and elements of a row of `rows`
    "block_rows row_size "
    # parts of a task's scratch, bytes from its start
    "at_rows at_packed at_bias at_offsets at_places at_unread"
)

#: Entries of the tables: of a pixel, where it is read and where it is written; of a vector of pixels that are
#: transposed, where it is written, and how many of its pixels. In bytes.
PLACES = 2
#: Output channels that are transposed, a power of two, and vectors of pixels.
NARROW = 8
FLAT_VECTORS = 3 if REGISTERS >= 32 else 1


class _Windows:
    """Operands of `multiply_windows`: what a cell sees from each pixel."""

    def __init__(self, tile: Tile, starts: list[Any], offsets: Any, b: Any) -> None:
        self.tile, self.starts, self.offsets, self.panel = tile, starts, offsets, b
        self.panel_step = tile.vectors * tile.vector_bytes

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """As `Operands.read`."""
        tile = self.tile
        columns, offset = tile.vectors_at(panel), tile.word_at(self.offsets, k)
        return [tile.broadcast(tile.builder.add(start, offset), 0) for start in self.starts], columns


@intrinsic(prefer_literal=True)
def multiply_windows(
    typingctx: Any,
    x: Any,
    offsets: Any,
    depth: Any,
    b: Any,
    bias: Any,
    y: Any,
    places: Any,
    last: Any,
    least: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """Tile of y = bias + x B panel, and no less than `least`.

    Of ROWS pixels, for which `places` is a table: what step k sees is at ``x + place + offsets[k]``, the
    result goes to ``y + place``. Of the last of its vectors `last` lanes are stored.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count = vectors.literal_value
    real = types.float32 if like.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, offsets, depth, b, bias, y, places, last, least = args[:9]
        tile = Tile(builder, like, count, last)
        starts, ends = (
            [builder.add(base, tile.word_at(places, tile.word(PLACES * row + entry))) for row in range(ROWS)]
            for entry, base in enumerate((x, y))
        )
        biases = tile.vectors_at(bias)
        initial = [biases[column] for _, column in tile.cells]
        tile.store(ends, tile.loop(_Windows(tile, starts, offsets, b), depth, initial), least)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, real, vectors, like), codegen


@intrinsic(prefer_literal=True)
def multiply_flat(
    typingctx: Any,
    x: Any,
    offsets: Any,
    depth: Any,
    weight: Any,
    bias: Any,
    y: Any,
    places: Any,
    used: Any,
    least: Any,
    like: Any,
) -> Any:
    """Tile of y = bias + weight x (vectors of x), transposed, and no less than `least`.

    Of FLAT_VECTORS vectors of pixels at ``x + offsets[k]`` for each k, and NARROW output channels, of which
    the first `used` are stored. A vector of the transposed tile is some pixels; `places` is a table of those.
    """
    if not isinstance(like, Vector):
        return None
    real = types.float32 if like.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, offsets, depth, weight, bias, y, places, used = args[:8]
        write = Writer(builder, like)
        least, size = write.splat(args[8]), write.element_bytes
        pixels = like.lanes // NARROW

        def body(k: Any, sums: list[Any]) -> list[Any]:
            place = write.sum(x, write.word_at(offsets, k))
            panel = write.sum(weight, write.product(k, NARROW * size))
            seen = [write.load(write.sum(place, v * like.lanes * size)) for v in range(FLAT_VECTORS)]
            factors = [write.broadcast(write.sum(panel, row * size)) for row in range(NARROW)]
            pairs = [(factor, cells) for cells in seen for factor in factors]
            return [write.fma(*pair, total) for pair, total in zip(pairs, sums, strict=True)]

        biases = [write.broadcast(write.sum(bias, row * size)) for row in range(NARROW)]
        sums = write.loop(depth, biases * FLAT_VECTORS, body)
        sums = [builder.select(builder.fcmp_ordered("<", s, least), least, s) for s in sums]
        unused = write.product(builder.sub(used, write.word(NARROW)), size)
        for v in range(FLAT_VECTORS):
            columns = sums[v * NARROW : (v + 1) * NARROW]
            for _ in range(NARROW.bit_length() - 1):
                columns = perfect_shuffle(builder, columns, like.lanes)
            for i, column in enumerate(columns):
                entry = PLACES * (v * NARROW + i)
                end, count = write.sum(y, write.word_at(places, entry)), write.word_at(places, entry + 1)
                for pixel in range(pixels):
                    there = builder.icmp_signed("<", write.word(pixel), count)
                    lanes = builder.select(there, used, write.word(0))
                    mask = write.lanes_below(write.word(-pixel * NARROW), lanes)
                    write.store(write.sum(end, write.product(unused, pixel)), column, mask)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, real, like), codegen


@inlined
def multiply_wide(x, offsets, depth, b, bias, y, places, last, least, wide, zero):
    """`multiply_windows` of `wide` vectors, up to VECTORS."""
    if wide == 3:
        multiply_windows(x, offsets, depth, b, bias, y, places, last, least, 3, zero)
    elif wide == 2:
        multiply_windows(x, offsets, depth, b, bias, y, places, last, least, 2, zero)
    else:
        multiply_windows(x, offsets, depth, b, bias, y, places, last, least, 1, zero)


@inlined
def pack_row(p, source, packed, k, depth, zero):
    """The output channels at `source`, or zeros where that is 0, as row k of each panel of `depth` rows."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    vectors = (p.group_out + lanes - 1) // lanes
    panels = (vectors + VECTORS - 1) // VECTORS
    for panel in range(panels):
        first = panel * vectors // panels
        count = (panel + 1) * vectors // panels - first
        for vector in range(count):
            column = (first + vector) * lanes
            place = packed + (first * depth + k * count + vector) * lanes * size
            if source:
                simd.store(place, take(source + column * size, p.group_out - column, zero))
            else:
                simd.store(place, zero)


@inlined
def table_of_offsets(p, offsets, size):
    """offsets[ky, kx, c] = how far that reading is from the first, in bytes."""
    k = 0
    for ky in range(p.kernel_y):
        for kx in range(p.kernel_x):
            for c in range(p.group_in):
                offsets[k] = (ky * p.dilation_y * p.row_size + kx * p.dilation_x * p.group_in + c) * size
                k += 1


@inlined
def fill_rows(p, n, first_row, count, rows, zero):
    """The rows of x that `count` rows of output cells from `first_row` on read, between zeros."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    # read once: to the compiler any store may change the record
    channels, row_size = p.group_in, p.row_size
    left, row, height = p.pad_x * channels, p.width * channels, p.height
    used = max(0, min(row, row_size - left))
    iy = first_row * p.stride_y - p.pad_y
    source = p.x + (n * height + iy) * row * size
    for _ in range((count - 1) * p.stride_y + (p.kernel_y - 1) * p.dilation_y + 1):
        # what is stored behind a row, the next one overwrites
        done = 0
        if 0 <= iy < height:
            for i in range(0, left, lanes):
                simd.store(rows + i * size, zero)
            for i in range(0, used, lanes):
                simd.store(rows + (left + i) * size, take(source + i * size, used - i, zero))
            done = left + (used + lanes - 1) // lanes * lanes
        for i in range(done, row_size, lanes):
            simd.store(rows + i * size, zero)
        rows += row_size * size
        source += row * size
        iy += 1


@inlined
def find_pixels(p, count, places, size):
    """The pixels of a block of `count` rows, and as many that are not there as make the last tile whole."""
    length = 0
    for row in range(count):
        for ox in range(p.out_width):
            places[PLACES * length] = (row * p.stride_y * p.row_size + ox * p.stride_x * p.group_in) * size
            places[PLACES * length + 1] = (row * p.y_y + ox * p.y_x) * size
            length += 1
    for i in range(length, length + ROWS):
        places[PLACES * i] = 0
    return length


@inlined
def find_flat(p, count, places, pixels, step, size):
    """The vectors of `pixels` pixels of a block of `count` rows, and `step` more that are not there."""
    length = 0
    for row in range(count):
        for ox in range(0, p.row_size, pixels):
            places[PLACES * length] = (row * p.y_y + ox * p.y_x) * size
            places[PLACES * length + 1] = min(pixels, p.out_width - ox)
            length += 1
    for i in range(length, length + step):
        places[PLACES * i], places[PLACES * i + 1] = 0, 0
    return length


@kernel(FORWARD)
def forward(bits):
    """y = conv(x, weight) + bias, and no less than 0 with `relu`."""
    lanes, size = LANES[bits], bits // 8

    def forward(params, t, tasks):
        p = fields(params, FORWARD)
        zero = simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        rows, packed, biases = scratch + p.at_rows, scratch + p.at_packed, scratch + p.at_bias
        offsets, table, unread = scratch + p.at_offsets, scratch + p.at_places, scratch + p.at_unread
        places = ints(table)
        depth = p.kernel_y * p.kernel_x * p.group_in
        vectors = (p.group_out + lanes - 1) // lanes
        panels = (vectors + VECTORS - 1) // VECTORS
        table_of_offsets(p, ints(offsets), size)
        for k in range(depth):
            tap, c = divmod(k, p.group_in)
            place = tap // p.kernel_x * p.weight_y + tap % p.kernel_x * p.weight_x + c * p.weight_channel
            pack_row(p, p.weight + place * size, packed, k, depth, zero)
        pack_row(p, p.bias, biases, 0, 1, zero)

        blocks = (p.out_height + p.block_rows - 1) // p.block_rows
        units = p.images * blocks
        least = 0.0 if p.relu else -inf
        last_count, length = 0, 0
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, block = divmod(unit, blocks)
            first_row = block * p.block_rows
            count = min(p.block_rows, p.out_height - first_row)
            if count != last_count:
                length = find_pixels(p, count, places, size)
                last_count = count
            fill_rows(p, n, first_row, count, rows, zero)
            y = p.y + (n * p.y_n + first_row * p.y_y) * size
            for i in range(length, length + ROWS):
                places[PLACES * i + 1] = unread - y
            for panel in range(panels):
                first = panel * vectors // panels
                wide = (panel + 1) * vectors // panels - first
                skip = first * lanes * size
                last = min(lanes, p.group_out - (first + wide - 1) * lanes)
                b, bias = packed + skip * depth, biases + skip
                for place in range(0, length, ROWS):
                    tile = table + place * PLACES * 8
                    multiply_wide(rows, offsets, depth, b, bias, y + skip, tile, last, least, wide, zero)

    return forward


@kernel(FORWARD)
def forward_flat(bits):
    """`forward` from one channel to no more than NARROW, with stride 1."""
    lanes, size = LANES[bits], bits // 8

    def forward_flat(params, t, tasks):
        p = fields(params, FORWARD)
        zero = simd.splat(0.0, bits)
        scratch = p.scratch + t * p.scratch_bytes
        rows, packed, biases = scratch + p.at_rows, scratch + p.at_packed, scratch + p.at_bias
        offsets, table = scratch + p.at_offsets, scratch + p.at_places
        depth, pixels = p.kernel_y * p.kernel_x, lanes // NARROW
        step = FLAT_VECTORS * NARROW
        table_of_offsets(p, ints(offsets), size)
        source, target, bias = reals(p.weight, bits), reals(packed, bits), reals(biases, bits)
        for k in range(depth):
            place = k // p.kernel_x * p.weight_y + k % p.kernel_x * p.weight_x
            for row in range(NARROW):
                target[k * NARROW + row] = source[place + row] if row < p.group_out else 0.0
        for row in range(NARROW):
            bias[row] = reals(p.bias, bits)[row] if p.bias and row < p.group_out else 0.0

        blocks = (p.out_height + p.block_rows - 1) // p.block_rows
        units = p.images * blocks
        least = 0.0 if p.relu else -inf
        last_count, length = 0, 0
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, block = divmod(unit, blocks)
            first_row = block * p.block_rows
            count = min(p.block_rows, p.out_height - first_row)
            if count != last_count:
                length = find_flat(p, count, ints(table), pixels, step, size)
                last_count = count
            fill_rows(p, n, first_row, count, rows, zero)
            y = p.y + (n * p.y_n + first_row * p.y_y) * size
            for place in range(0, length, step):
                x, tile = rows + place * pixels * size, table + place * PLACES * 8
                multiply_flat(x, offsets, depth, packed, biases, y, tile, p.group_out, least, zero)

    return forward_flat
