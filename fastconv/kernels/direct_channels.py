"""Direct convolution of channels-last arrays with few channels: see `fastconv.kernels.direct`.

    y[pixel, k] = sum over (ky, kx, c) of x[at pixel + tap, c] * weight[ky, kx, c, k]

is computed by tiles of ROWS pixels by some vectors of output channels, held in registers. What the kernel's
cells see from a pixel lies at the same distances from what the first one sees, whatever the pixel, in a copy of
some rows of x between zeros. So a table of these distances serves all pixels, and one loop goes through all
cells and channels, where `fastconv.kernels.channels_last` has one for each cell. With one channel that
loop has 9 steps instead of 3 times 3.

With so few output channels that they fill no more than half of a vector, each has those of two neighbouring
pixels.

    packed  <- weight, a panel of vectors of output channels after the other
    for each image and block of rows of output cells
        rows    <- the rows of x that the block reads, between zeros: in the cache
        for each panel
            for each tile of pixels, which may lie in several rows
                tile of y = rows x packed

A unit is a block. The order of additions is that of (ky, kx, c), whatever the blocks and the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.jit import Kernel, fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import ROWS, VECTORS, Tile
from fastconv.kernels.simd import LANES, Vector, first_lanes, masked_store, splat_value, take

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

#: Entries of the table of a block's pixels: where it is read, and written, in bytes; and of how many lanes.
PLACES = 3


class _Windows:
    """Operands of `multiply_windows`: the reals that a cell sees from each pixel, or each two of them."""

    def __init__(self, tile: Tile, starts: list[Any], offsets: Any, b: Any, pair: tuple[Any, Any] | None) -> None:
        self.tile, self.starts, self.offsets, self.panel, self.pair = tile, starts, offsets, b, pair
        self.panel_step = tile.vectors * tile.vector_bytes

    def read(self, k: Any, panel: Any) -> tuple[list[Any], list[Any]]:
        """As `Operands.read`."""
        tile = self.tile
        builder, columns, offset = tile.builder, tile.vectors_at(panel), tile.word_at(self.offsets, k)
        reals = [tile.broadcast(builder.add(start, offset), 0) for start in self.starts]
        if self.pair is not None:
            step, is_first = self.pair
            offset = builder.add(offset, step)
            seconds = [tile.broadcast(builder.add(start, offset), 0) for start in self.starts]
            reals = [builder.select(is_first, *both) for both in zip(reals, seconds, strict=True)]
        return reals, columns


@intrinsic(prefer_literal=True)
def multiply_windows(
    typingctx: Any,
    x: Any,
    places: Any,
    offsets: Any,
    depth: Any,
    b: Any,
    bias: Any,
    y: Any,
    used: Any,
    step: Any,
    least: Any,
    pixels: Any,
    vectors: Any,
    like: Any,
) -> Any:
    """Tile of y = bias + x B panel, and no less than `least`.

    `places` has three entries for each of ROWS rows of the tile: a row's reals are at ``x + place +
    offsets[k]``, it goes to ``y + place``. A row is one pixel, of the last of whose vectors `used` lanes are
    stored. Or with `pixels` = 2 it is two that follow each other, of `used` lanes each, the second `step` bytes
    behind the first in x; then the third entry is the number of lanes stored. All in bytes.
    """
    if not isinstance(vectors, types.IntegerLiteral) or not isinstance(like, Vector):
        return None
    count, two = vectors.literal_value, pixels.literal_value == 2
    real = types.float32 if like.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, places, offsets, depth, b, bias, y, used, step, least = args[:10]
        tile = Tile(builder, like, count, None if two else used)
        starts, ends = (
            [builder.add(base, tile.word_at(places, tile.word(PLACES * row + entry))) for row in range(ROWS)]
            for entry, base in enumerate((x, y))
        )
        biases = tile.vectors_at(bias)
        pair = (step, first_lanes(builder, used, like.lanes)) if two else None
        sums = tile.loop(
            _Windows(tile, starts, offsets, b, pair), depth, [biases[column] for _, column in tile.cells]
        )
        if not two:
            tile.store(ends, sums, least)
            return context.get_dummy_value()
        bound = splat_value(builder, least, like)
        for row, total in enumerate(sums):
            lanes = tile.word_at(places, tile.word(PLACES * row + 2))
            total = builder.select(builder.fcmp_ordered("<", total, bound), bound, total)
            mask = first_lanes(builder, lanes, like.lanes)
            masked_store(builder, total, tile.at(ends[row], 0, like.llvm), mask, like)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, real, pixels, vectors, like), codegen


@inlined
def pack_row(p, source, packed, k, depth, pixels, zero):
    """The output channels at `source`, or zeros where that is 0, as row k of each panel of `depth` rows.

    With two pixels to a vector they are there twice.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    vectors = (p.group_out + lanes - 1) // lanes
    panels = (vectors + VECTORS - 1) // VECTORS
    for panel in range(panels):
        first = panel * vectors // panels
        count = (panel + 1) * vectors // panels - first
        for vector in range(count):
            column = (first + vector) * lanes
            part = zero
            if source:
                part = take(source + column * size, p.group_out - column, zero)
            place = packed + (first * depth + k * count + vector) * lanes * size
            simd.store(place, part)
            if pixels == 2:
                simd.store_part(place + p.group_out * size, part, p.group_out)


@inlined
def multiply_wide(x, places, offsets, depth, b, bias, y, used, step, least, pixels, wide, zero):
    """`multiply_windows` of `wide` vectors, up to VECTORS, of one pixel, or one vector of two."""
    if pixels == 2:
        multiply_windows(x, places, offsets, depth, b, bias, y, used, step, least, 2, 1, zero)
    elif wide == 3:
        multiply_windows(x, places, offsets, depth, b, bias, y, used, step, least, 1, 3, zero)
    elif wide == 2:
        multiply_windows(x, places, offsets, depth, b, bias, y, used, step, least, 1, 2, zero)
    else:
        multiply_windows(x, places, offsets, depth, b, bias, y, used, step, least, 1, 1, zero)


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
def find_places(p, count, places, pixels, size):
    """The pixels of a block of `count` rows, and so many more that are not there that the last tile is whole."""
    length = 0
    for row in range(count):
        for ox in range(0, p.out_width, pixels):
            places[PLACES * length] = (row * p.stride_y * p.row_size + ox * p.stride_x * p.group_in) * size
            places[PLACES * length + 1] = (row * p.y_y + ox * p.y_x) * size
            places[PLACES * length + 2] = min(pixels, p.out_width - ox) * p.group_out
            length += 1
    for i in range(length, length + ROWS):
        places[PLACES * i], places[PLACES * i + 1], places[PLACES * i + 2] = 0, 0, 0
    return length


def _direct(pixels: int) -> Callable[[int], Callable[..., None]]:
    def direct_channels(bits: int) -> Any:
        """y = conv(x, weight) + bias, and no less than 0 with `relu`; rows of tiles are that many pixels."""
        lanes, size = LANES[bits], bits // 8

        def direct_channels(params, t, tasks):
            p = fields(params, FORWARD)
            zero = simd.splat(0.0, bits)
            scratch = p.scratch + t * p.scratch_bytes
            rows, packed, biases = scratch + p.at_rows, scratch + p.at_packed, scratch + p.at_bias
            table, unread = scratch + p.at_places, scratch + p.at_unread
            offsets, places = ints(scratch + p.at_offsets), ints(table)
            depth = p.kernel_y * p.kernel_x * p.group_in
            vectors = (p.group_out + lanes - 1) // lanes
            panels = (vectors + VECTORS - 1) // VECTORS
            k = 0
            for ky in range(p.kernel_y):
                for kx in range(p.kernel_x):
                    for c in range(p.group_in):
                        offset = ky * p.dilation_y * p.row_size + kx * p.dilation_x * p.group_in + c
                        offsets[k] = offset * size
                        place = ky * p.weight_y + kx * p.weight_x + c * p.weight_channel
                        pack_row(p, p.weight + place * size, packed, k, depth, pixels, zero)
                        k += 1
            pack_row(p, p.bias, biases, 0, 1, pixels, zero)

            blocks = (p.out_height + p.block_rows - 1) // p.block_rows
            units = p.images * blocks
            least = 0.0 if p.relu else -inf
            step = p.stride_x * p.group_in * size
            last_count, length = 0, 0
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                n, block = divmod(unit, blocks)
                first_row = block * p.block_rows
                count = min(p.block_rows, p.out_height - first_row)
                if count != last_count:
                    length = find_places(p, count, places, pixels, size)
                    last_count = count
                fill_rows(p, n, first_row, count, rows, zero)
                y = p.y + (n * p.y_n + first_row * p.y_y) * size
                for i in range(length, length + ROWS):
                    places[PLACES * i + 1] = unread - y
                for panel in range(panels):
                    first = panel * vectors // panels
                    wide = (panel + 1) * vectors // panels - first
                    skip = first * lanes * size
                    used = min(lanes, p.group_out - (first + wide - 1) * lanes)
                    for place in range(0, length, ROWS):
                        multiply_wide(
                            rows,
                            table + place * PLACES * 8,
                            scratch + p.at_offsets,
                            depth,
                            packed + skip * depth,
                            biases + skip,
                            y + skip,
                            used,
                            step,
                            least,
                            pixels,
                            wide,
                            zero,
                        )

        return direct_channels

    return direct_channels


#: By pixels of a row of a tile.
forward: dict[int, Kernel] = {pixels: kernel(FORWARD)(_direct(pixels)) for pixels in (1, 2)}
