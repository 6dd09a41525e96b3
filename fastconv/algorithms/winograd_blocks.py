"""Winograd convolution: how its work is cut and run; see `fastconv.kernels.winograd` for what is done."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.implicit_gemm import Convolution, Weights
from fastconv.algorithms.workspace import odd_lines, places, scratch
from fastconv.jit import address_of
from fastconv.kernels import winograd as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_points import TAPS
from fastconv.kernels.winograd_transforms import cells_of_piece, room_of_piece, span_of, tiles_of_piece
from fastconv.threads import Prepared, task_count

#: With no more tiles than this part of the output channels the threads share the latter.
FEW_TILES = 4
#: Then all tiles and all sums are kept at once, in no more bytes than these.
FEW_BYTES = 16 << 20
#: Otherwise, tiles of a block: each weight that comes from L3 or memory is used for so many. With 24 of them
#: float64 takes 1.04 to 1.2 times as long, the longest with 256 channels, whose weights are 18 MiB.
BLOCK_TILES = 48
#: Weights of no more bytes stay in L2, and blocks are as wide as the micro-kernel.
NEAR_BYTES = 256 << 10
#: Bytes of the inputs of a task's tiles.
TASK_BYTES = 6 << 20
#: With few tiles, bytes of their inputs that are multiplied with one panel after the other, from L2. For 64
#: tiles of float64 384 KiB would be 22 channels, too few to pay for loading and storing the sums: 1.06.
INPUT_BYTES = 640 << 10
#: Bytes of the sums that wait to be transformed.
SUM_BYTES = 256 << 10
#: Unused bytes between the scratch memories of two tasks. A core that stores tiles far apart fetches lines
#: ahead of them, beyond its own memory's end, and the next task waits for those lines to come back: with 4
#: input channels of 56 x 56 cells two tasks took 223 us, as long as one, and that far apart they take 126.
APART_BYTES = 512 << 10


class Points(NamedTuple):
    """A weight transformed for tiles of `tile` x `tile` cells; a `Packing`.

    Of stride 2 it has fewer points than the inputs: those of the odd cells have one factor.
    """

    dtype: np.dtype
    tile: int
    stride: int
    groups: int
    group_in: int
    group_out: int
    weights: Weights

    @property
    def panels(self) -> int:
        """Panels of output channels, of all groups."""
        return self.groups * -(-self.group_out // ROWS)

    @property
    def panel_bytes(self) -> int:
        """Of a point."""
        return self.group_in * ROWS * self.dtype.itemsize

    @property
    def point_bytes(self) -> int:
        return odd_lines(self.panels * self.panel_bytes)

    @property
    def points(self) -> int:
        """Different factors of a pair of channels."""
        return (self.tile + TAPS - 1) ** 2

    @property
    def size(self) -> int:
        """Bytes."""
        return self.points * self.point_bytes

    @property
    def flipped(self) -> bool:
        """Whether the taps are in reverse order."""
        return self.weights.tap[2] < 0

    @property
    def first(self) -> int:
        """Bytes from the first cell of the array to that which comes first in memory of those used."""
        first = self.weights.first_tap - (TAPS * TAPS - 1 if self.flipped else 0)
        return first * self.dtype.itemsize

    @property
    def layout(self) -> dict[str, int]:
        """The fields of a record that say where the weight's cells are."""
        weights = self.weights
        return {
            "group_stride": weights.group,
            "row_stride": weights.row,
            "channel_stride": weights.channel,
            "plain": int(weights.channel == TAPS * TAPS),
            "flipped": int(self.flipped),
        }

    def pack(self, weight: np.ndarray, packed: int) -> None:
        """Write the transformed weight to an address."""
        prepared = _prepare_pack(self, self.tasks)
        prepared.run(address_of(weight) + self.first, packed, scratch(self.tasks * taps_bytes(self.dtype)))

    @property
    def tasks(self) -> int:
        """Tasks that the work is worth."""
        return task_count(self.size // self.dtype.itemsize, self.panels)


def taps_bytes(dtype: np.dtype) -> int:
    """Scratch memory for the taps of some channels."""
    return odd_lines((kernels.TAP_CHANNELS * TAPS * TAPS + LANES[8 * dtype.itemsize]) * ROWS * dtype.itemsize)


@lru_cache(maxsize=4096)
def _prepare_pack(points: Points, tasks: int) -> Prepared:
    return Prepared(
        kernels.PACK_WEIGHT[points.tile, points.stride],
        points.dtype,
        tasks,
        "weight packed scratch",
        scratch_bytes=taps_bytes(points.dtype),
        groups=points.groups,
        group_in=points.group_in,
        group_out=points.group_out,
        packed_point=points.point_bytes,
        packed_panel=points.panel_bytes,
        **points.layout,
    )


class Tiling(NamedTuple):
    """A convolution in tiles of `tile` x `tile` cells of y."""

    conv: Convolution
    tile: int

    @property
    def stride(self) -> int:
        return self.conv.stride[2]

    @property
    def points(self) -> int:
        return span_of(self.tile, self.stride) ** 2

    @property
    def grid(self) -> tuple[int, int]:
        """Rows of tiles, and tiles of a row."""
        _, height, width = self.conv.output
        return -(-height // self.tile), -(-width // self.tile)

    @property
    def tiles(self) -> int:
        return self.conv.images * self.conv.output[0] * prod(self.grid)

    @property
    def panels(self) -> int:
        """Panels of output channels, of all groups."""
        return self.conv.groups * self.conv.panels

    def packing(self, dtype: np.dtype) -> Points:
        """The form of the transformed weight."""
        conv = self.conv
        return Points(dtype, self.tile, self.stride, conv.groups, conv.group_in, conv.group_out, conv.weights)


class Blocks(NamedTuple):
    """How the work is cut, strides in bytes, and what of a task's scratch memory is where."""

    block_tiles: int
    block_channels: int
    block_panels: int
    tile_tasks: int
    panel_tasks: int
    #: few tiles: inputs are transformed before, by all tasks, and weights only when they are used
    fused: bool
    packed_point: int
    packed_panel: int
    input_point: int
    input_channel: int
    strip: int
    sum_row: int
    sum_panel: int
    at_zeros: int
    at_strips: int
    at_inputs: int
    at_taps: int
    at_packed: int
    at_sums: int
    at_results: int
    at_offsets: int
    at_reads: int
    at_writes: int
    scratch_bytes: int


@lru_cache(maxsize=4096)
def cut(tiling: Tiling, dtype: np.dtype, tasks: int) -> Blocks:
    """Sizes of the blocks of a convolution in `tasks` tasks."""
    conv, points, itemsize = tiling.conv, tiling.points, dtype.itemsize
    packing = tiling.packing(dtype)
    lanes = LANES[8 * itemsize]
    channels = conv.groups * conv.group_in
    vectors = -(-tiling.tiles // lanes)
    kept = points * vectors * lanes * itemsize * (channels + tiling.panels * ROWS)
    # with stride 2 the inputs have more points than the weights
    part = FEW_TILES * tiling.tiles * points // packing.points
    few = part <= conv.groups * conv.group_out or vectors < tasks <= tiling.panels
    few = few and kept <= FEW_BYTES
    room = TASK_BYTES // (points * channels * lanes * itemsize)
    if few:
        tile_tasks, panel_tasks = 1, min(tasks, tiling.panels)
        block_tiles = vectors * lanes
        blocks = max(1, round(points * conv.group_in * block_tiles * itemsize / INPUT_BYTES))
        block_channels = -(-conv.group_in // blocks)
        block_panels = 1
    else:
        tile_tasks, panel_tasks = min(tasks, vectors), 1
        most = -(-vectors // tile_tasks)
        wide = VECTORS if packing.size <= NEAR_BYTES else BLOCK_TILES // lanes
        block_tiles = -(-most // -(-most // max(1, min(wide, room)))) * lanes
        block_channels = conv.group_in
        block_panels = max(1, SUM_BYTES // (ROWS * points * block_tiles * itemsize))
        block_panels = -(-conv.panels // -(-conv.panels // block_panels))

    packed_point, packed_panel = packing.point_bytes, packing.panel_bytes
    if few:
        packed_panel = block_channels * ROWS * itemsize
        packed_point = odd_lines(block_panels * packed_panel)
    input_channel = block_tiles * itemsize
    input_point = odd_lines(channels * input_channel)
    strip = odd_lines((block_tiles + room_of_piece(lanes, tiling.tile, tiling.stride)) * itemsize)
    sum_row = odd_lines(points * input_channel)
    sum_panel = ROWS * sum_row
    waiting = block_panels if block_channels == conv.group_in else -(-tiling.panels // panel_tasks)
    rows_of_tiles = block_tiles // tiling.grid[1] + 2
    pieces = block_tiles // tiles_of_piece(lanes, tiling.tile, tiling.stride) + rows_of_tiles
    sizes = (
        cells_of_piece(lanes, tiling.stride) * itemsize,
        points * strip,
        0 if few else points * input_point,
        taps_bytes(dtype) if few else 0,
        packing.points * packed_point if few else 0,
        waiting * sum_panel + 64,  # and a real that stands for no bias, before the results
        ROWS * tiling.tile**2 * lanes * itemsize,
        block_channels * 8,
        pieces * kernels.READ_FIELDS * 8,
        (block_tiles // lanes + rows_of_tiles) * kernels.WRITE_FIELDS * 8,
    )
    *at, end = places(sizes)
    return Blocks._make(
        (
            block_tiles,
            block_channels,
            block_panels,
            tile_tasks,
            panel_tasks,
            few,
            packed_point,
            packed_panel,
            input_point,
            input_channel,
            strip,
            sum_row,
            sum_panel,
            *at,
            odd_lines(end),
        )
    )


def tasks_of(tiling: Tiling) -> int:
    """Tasks that the work is worth."""
    return task_count(tiling.conv.flops // 2, tiling.panels * tiling.tiles)


class Run(NamedTuple):
    """The kernels, ready to be run, and the workspace that they need."""

    #: transforms the weight; None where it is transformed when used
    pack: Prepared | None
    #: transforms the inputs; None where each task does so itself
    transform: Prepared | None
    forward: Prepared
    #: bytes from the first cell of the array
    first_weight: int
    first_y: int
    #: where in the workspace are the shared inputs, the transformed weight, the tasks' scratch
    at_inputs: int
    at_packed: int
    at_scratch: int
    workspace_bytes: int

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """out = conv(x, weight) + bias; only the arrays' memory matters, not their shapes."""
        workspace = scratch(self.workspace_bytes)
        weight_at, packed = address_of(weight) + self.first_weight, workspace + self.at_packed
        if self.pack is not None:
            self.pack.run(weight_at, packed, workspace + self.at_scratch)
        self._convolve(x, weight_at, packed, bias, out, workspace)

    def run_packed(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with the bytes of a transformed weight."""
        self._convolve(x, 0, address_of(packed), bias, out, scratch(self.workspace_bytes))

    def _convolve(
        self,
        x: np.ndarray,
        weight: int,
        packed: int,
        bias: np.ndarray | None,
        out: np.ndarray,
        workspace: int,
    ) -> None:
        inputs, task_scratch = 0, workspace + self.at_scratch
        if self.transform is not None:
            inputs = workspace + self.at_inputs
            self.transform.run(address_of(x), 0, 0, 0, 0, inputs, task_scratch)
        self.forward.run(
            address_of(x),
            weight,
            0 if bias is None else address_of(bias),
            address_of(out) + self.first_y,
            packed,
            inputs,
            task_scratch,
        )


@lru_cache(maxsize=4096)
def prepare(tiling: Tiling, dtype: np.dtype, relu: bool, tasks: int, packed: bool = False) -> Run:
    """Whatever does not depend on the arrays; with `packed` for `Run.run_packed`, else for `Run.run`.

    There is no transformed weight with few tiles, which take longer to wait for it than to transform the
    weight itself: with 512 channels of 14 x 14 cells 4.4 ms instead of 2.5.
    """
    conv, form = tiling.conv, (tiling.tile, tiling.stride)
    blocks, packing = cut(tiling, dtype, tasks), tiling.packing(dtype)
    assert not (packed and blocks.fused)
    depth, height, width = conv.input
    plane = height * width
    scratch_bytes = odd_lines(blocks.scratch_bytes + APART_BYTES) if tasks > 1 else blocks.scratch_bytes
    params = dict(
        blocks._replace(scratch_bytes=scratch_bytes)._asdict(),
        **packing.layout,
        fused=int(blocks.fused),
        relu=int(relu),
        x_n=conv.groups * conv.group_in * depth * plane,
        x_c=depth * plane,
        x_z=plane,
        x_y=width,
        y_n=conv.y.n,
        y_k=conv.y.k,
        images=conv.images,
        groups=conv.groups,
        group_in=conv.group_in,
        group_out=conv.group_out,
        depth=depth,
        height=height,
        width=width,
        out_height=conv.output[1],
        out_width=conv.output[2],
        pad_y=conv.pad[1],
        pad_x=conv.pad[2],
        tiles_y=tiling.grid[0],
        tiles_x=tiling.grid[1],
    )
    addresses = "x weight bias y packed inputs scratch"
    pack = transform = None
    inputs_bytes = packed_bytes = pack_bytes = 0
    computing = blocks.tile_tasks * blocks.panel_tasks
    if blocks.fused:
        channels = conv.groups * conv.group_in
        transforming = task_count(tiling.points * channels * tiling.tiles, channels)
        transform = Prepared(kernels.TRANSFORM_INPUT[form], dtype, transforming, addresses, **params)
        inputs_bytes = tiling.points * blocks.input_point
        computing_bytes = max(computing, transforming) * scratch_bytes
    else:
        computing_bytes = computing * scratch_bytes
        if not packed:
            pack = _prepare_pack(packing, packing.tasks)
            packed_bytes, pack_bytes = packing.size, packing.tasks * taps_bytes(dtype)
    at_inputs, at_packed, at_scratch, end = places(
        [inputs_bytes, packed_bytes, max(computing_bytes, pack_bytes)]
    )
    return Run(
        pack,
        transform,
        Prepared(kernels.FORWARD[form], dtype, computing, addresses, **params),
        packing.first,
        conv.y.first * dtype.itemsize,
        at_inputs,
        at_packed,
        at_scratch,
        end,
    )
