"""Channels-last Winograd convolution: how it is cut and run; see `fastconv.kernels.winograd_channels`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.implicit_gemm import Weights
from fastconv.algorithms.winograd_blocks import Tiling
from fastconv.algorithms.workspace import odd_lines, places, round_up, scratch
from fastconv.jit import address_of
from fastconv.kernels import winograd_channels as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_points import TAPS
from fastconv.threads import Prepared, task_count

#: Tiles of a block: enough to read a panel of the weight from L2 or L3 for, few enough for their inputs.
TILES = 64

#: With no more than this many times ROWS tiles the threads share the output channels, if there are so many
#: vectors of them for each where the weight is transformed when used, and else so many panels.
FEW_UNITS = 16
LEAST_VECTORS, LEAST_PANELS = 1, 2
#: Channels of a block of a weight that is transformed when it is used.
BLOCK_CHANNELS = 64
#: And of one that is transformed before.
PACK_CHANNELS = 32
#: A larger one takes longer to be read, from beyond L3, than to be transformed when used: with 512 channels
#: of 7 x 7 cells 3.5 instead of 2.7 ms.
MOST_PACKED = 12 << 20


class Filters(NamedTuple):
    """A weight transformed for tiles of `tile` x `tile` cells, output channels on the lanes; a `Packing`."""

    dtype: np.dtype
    tile: int
    group_in: int
    group_out: int
    weights: Weights

    @property
    def vectors(self) -> int:
        """Vectors of output channels."""
        return -(-self.group_out // LANES[8 * self.dtype.itemsize])

    @property
    def point_bytes(self) -> int:
        return odd_lines(self.group_in * self.vectors * LANES[8 * self.dtype.itemsize] * self.dtype.itemsize)

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.tile + TAPS - 1) ** 2 * self.point_bytes

    @property
    def tasks(self) -> int:
        """Tasks that the work is worth."""
        return task_count(self.size // self.dtype.itemsize, -(-self.vectors // VECTORS))

    @property
    def scratch_bytes(self) -> int:
        """Of all tasks."""
        return self.tasks * TAPS**2 * panel_bytes(PACK_CHANNELS, self.dtype)

    @property
    def first(self) -> int:
        """Bytes from the first cell of the array to that of the first tap."""
        return self.weights.first_tap * self.dtype.itemsize

    @property
    def strides(self) -> dict[str, int]:
        """The fields of a record that say where the weight's cells are."""
        weights, itemsize = self.weights, self.dtype.itemsize
        return {
            "tap_bytes": weights.tap[2] * itemsize,
            "row_bytes": weights.row * itemsize,
            "channel_bytes": weights.channel * itemsize,
        }

    def pack(self, weight: np.ndarray, packed: int) -> None:
        memory = scratch(self.scratch_bytes)
        _prepare_pack(self, self.tasks).run(address_of(weight) + self.first, packed, memory)


@lru_cache(maxsize=4096)
def _prepare_pack(filters: Filters, tasks: int) -> Prepared:
    return Prepared(
        kernels.PACK_WEIGHT[filters.tile],
        filters.dtype,
        tasks,
        "weight packed scratch",
        scratch_bytes=filters.scratch_bytes // tasks,
        group_in=filters.group_in,
        group_out=filters.group_out,
        **filters.strides,
        block_channels=PACK_CHANNELS,
        copied_tap=panel_bytes(PACK_CHANNELS, filters.dtype),
        packed_point=filters.point_bytes,
    )


def filters_of(tiling: Tiling, dtype: np.dtype) -> Filters:
    conv = tiling.conv
    return Filters(dtype, tiling.tile, conv.group_in, conv.group_out, conv.weights)


def panel_bytes(channels: int, dtype: np.dtype) -> int:
    """From tap to tap of a block of the weight that is copied, and from point to point once transformed."""
    lanes = LANES[8 * dtype.itemsize]
    return odd_lines(round_up(channels, lanes) * VECTORS * lanes * dtype.itemsize)


class Blocks(NamedTuple):
    """How the work is cut, strides in bytes, and what of a task's scratch memory is where."""

    tile_tasks: int
    panel_tasks: int
    block_tiles: int
    block_channels: int
    #: whether the weight is transformed panel by panel, when it is used, if it is not packed
    fused: bool
    input_tile: int
    input_point: int
    sum_point: int
    at_zeros: int
    at_unread: int
    at_inputs: int
    at_sums: int
    at_reads: int
    at_writes: int
    at_a: int
    at_c: int
    at_packed: int
    at_copied: int
    scratch_bytes: int


@lru_cache(maxsize=4096)
def cut(tiling: Tiling, dtype: np.dtype, tasks: int, packed: bool = False) -> Blocks:
    """Sizes of the blocks of a convolution in `tasks` tasks."""
    conv, itemsize = tiling.conv, dtype.itemsize
    lanes = LANES[8 * itemsize]
    units = -(-tiling.tiles // ROWS)
    # with few tiles it takes longer to read the weight than to transform what all tasks then transform; and
    # if they are one block, each panel is used but once, soon after it was written
    vectors = -(-conv.group_out // lanes)
    panels = -(-vectors // VECTORS)
    fused = units * ROWS <= TILES and not packed
    enough = vectors >= LEAST_VECTORS * tasks if fused else panels >= LEAST_PANELS * tasks
    share_panels = units <= FEW_UNITS and enough
    fused = fused and share_panels
    tile_tasks, panel_tasks = (1, tasks) if share_panels else (min(tasks, units), 1)
    block_tiles = min(TILES, -(-units // tile_tasks) * ROWS)
    block_channels = min(conv.group_in, BLOCK_CHANNELS) if fused else conv.group_in
    input_tile = -(-conv.group_in // lanes) * lanes * itemsize
    input_point = odd_lines(block_tiles * input_tile)
    sum_point = odd_lines(block_tiles * VECTORS * lanes * itemsize)
    row = (max(conv.group_in, conv.group_out) + lanes) * itemsize
    panel = panel_bytes(block_channels, dtype) if fused else 0
    at = places(
        [
            row,
            row,
            tiling.points * input_point,
            tiling.points * sum_point,
            block_tiles * tiling.points * 8,
            block_tiles * tiling.tile**2 * 8,
            block_tiles * 8,
            block_tiles * 8,
            tiling.points * panel,
            TAPS**2 * panel,
        ]
    )
    *at, end = at
    return Blocks._make(
        (
            tile_tasks,
            panel_tasks,
            block_tiles,
            block_channels,
            fused,
            input_tile,
            input_point,
            sum_point,
            *at,
            odd_lines(end),
        )
    )


def packing(tiling: Tiling, dtype: np.dtype, tasks: int) -> Filters | None:
    """The form of the transformed weight, or None where it had better be transformed when used."""
    filters = filters_of(tiling, dtype)
    return None if filters.size > MOST_PACKED and cut(tiling, dtype, tasks).fused else filters


class Run(NamedTuple):
    """Both kernels, ready to be run."""

    #: transforms the weight; None where it is transformed when used, or was before
    pack: Prepared | None
    forward: Prepared
    #: bytes from the first cell of the weight
    first_weight: int
    #: bytes of the workspace, and where in it the tasks' scratch begins
    workspace_bytes: int
    at_scratch: int

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """out = conv(x, weight) + bias; only the arrays' memory matters, not their shapes."""
        memory = scratch(self.workspace_bytes)
        weight_at = address_of(weight) + self.first_weight
        if self.pack is None:
            self._convolve(x, 0, weight_at, bias, out, memory)
        else:
            self.pack.run(weight_at, memory, memory + self.at_scratch)
            self._convolve(x, memory, 0, bias, out, memory)

    def run_packed(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with the bytes of a transformed weight."""
        self._convolve(x, address_of(packed), 0, bias, out, scratch(self.workspace_bytes))

    def _convolve(
        self, x: np.ndarray, packed: int, weight: int, bias: np.ndarray | None, out: np.ndarray, memory: int
    ) -> None:
        bias_at = 0 if bias is None else address_of(bias)
        self.forward.run(address_of(x), bias_at, address_of(out), packed, weight, memory + self.at_scratch)


@lru_cache(maxsize=4096)
def prepare(tiling: Tiling, dtype: np.dtype, relu: bool, tasks: int, packed: bool = False) -> Run:
    """Whatever does not depend on the arrays; with `packed` for `Run.run_packed`, else for `Run.run`."""
    conv = tiling.conv
    blocks, filters = cut(tiling, dtype, tasks, packed), filters_of(tiling, dtype)
    depth, height, width = conv.input
    channels = conv.group_in
    params = blocks._asdict()
    fused = params.pop("fused")
    panel = panel_bytes(blocks.block_channels, dtype)
    tasks = blocks.tile_tasks * blocks.panel_tasks
    forward = Prepared(
        kernels.FORWARD[tiling.tile],
        dtype,
        tasks,
        "x bias y packed weight scratch",
        relu=int(relu),
        x_n=depth * height * width * channels,
        x_z=height * width * channels,
        x_y=width * channels,
        x_x=channels,
        y_n=conv.y.n,
        y_z=conv.y.axes[0],
        y_y=conv.y.axes[1],
        y_x=conv.y.axes[2],
        images=conv.images,
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
        copied_tap=panel,
        packed_point=panel if fused else filters.point_bytes,
        **filters.strides,
        **params,
    )
    before = not packed and not fused
    scratch_bytes = max(tasks * blocks.scratch_bytes, filters.scratch_bytes if before else 0)
    _, at_scratch, end = places([filters.size if before else 0, scratch_bytes])
    pack = _prepare_pack(filters, filters.tasks) if before else None
    return Run(pack, forward, filters.first, end, at_scratch)
