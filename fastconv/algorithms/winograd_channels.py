"""Channels-last Winograd convolution: how it is cut and run; see `fastconv.kernels.winograd_channels`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.winograd_blocks import Tiling
from fastconv.algorithms.workspace import odd_lines, places, scratch
from fastconv.jit import address_of
from fastconv.kernels import winograd_channels as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_points import TAPS
from fastconv.threads import Prepared, task_count

#: Tiles of a block: enough to read a panel of the weight from L2 or L3 for, few enough for their inputs.
TILES = 32


class Filters(NamedTuple):
    """A weight transformed for tiles of `tile` x `tile` cells, output channels on the lanes; a `Packing`."""

    dtype: np.dtype
    tile: int
    group_in: int
    group_out: int
    #: elements from tap to tap
    tap: int

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

    def pack(self, weight: np.ndarray, packed: int) -> None:
        _prepare_pack(self, self.tasks).run(address_of(weight), packed)


@lru_cache(maxsize=4096)
def _prepare_pack(filters: Filters, tasks: int) -> Prepared:
    itemsize = filters.dtype.itemsize
    return Prepared(
        kernels.PACK_WEIGHT[filters.tile],
        filters.dtype,
        tasks,
        "weight packed",
        group_in=filters.group_in,
        group_out=filters.group_out,
        tap_bytes=filters.tap * itemsize,
        channel_bytes=filters.group_out * itemsize,
        packed_point=filters.point_bytes,
    )


def filters_of(tiling: Tiling, dtype: np.dtype) -> Filters:
    conv = tiling.conv
    return Filters(dtype, tiling.tile, conv.group_in, conv.group_out, conv.weights.tap[2])


class Blocks(NamedTuple):
    """How the work is cut, strides in bytes, and what of a task's scratch memory is where."""

    tasks: int
    block_tiles: int
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
    scratch_bytes: int


@lru_cache(maxsize=4096)
def cut(tiling: Tiling, dtype: np.dtype, tasks: int) -> Blocks:
    """Sizes of the blocks of a convolution in `tasks` tasks."""
    conv, itemsize = tiling.conv, dtype.itemsize
    lanes = LANES[8 * itemsize]
    units = -(-tiling.tiles // ROWS)
    tasks = min(tasks, units)
    block_tiles = min(TILES, -(-units // tasks) * ROWS)
    input_tile = -(-conv.group_in // lanes) * lanes * itemsize
    input_point = odd_lines(block_tiles * input_tile)
    sum_point = odd_lines(block_tiles * VECTORS * lanes * itemsize)
    row = (max(conv.group_in, conv.group_out) + lanes) * itemsize
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
        ]
    )
    *at, end = at
    return Blocks._make((tasks, block_tiles, input_tile, input_point, sum_point, *at, odd_lines(end)))


class Run(NamedTuple):
    """Both kernels, ready to be run."""

    pack: Prepared
    forward: Prepared
    #: bytes of the workspace, and where in it the tasks' scratch begins
    workspace_bytes: int
    at_scratch: int

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """out = conv(x, weight) + bias; only the arrays' memory matters, not their shapes."""
        memory = scratch(self.workspace_bytes)
        self.pack.run(address_of(weight), memory)
        self._convolve(x, memory, bias, out, memory)

    def run_packed(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with the bytes of a transformed weight."""
        self._convolve(x, address_of(packed), bias, out, scratch(self.workspace_bytes))

    def _convolve(
        self, x: np.ndarray, packed: int, bias: np.ndarray | None, out: np.ndarray, memory: int
    ) -> None:
        bias_at = 0 if bias is None else address_of(bias)
        self.forward.run(address_of(x), bias_at, address_of(out), packed, memory + self.at_scratch)


@lru_cache(maxsize=4096)
def prepare(tiling: Tiling, dtype: np.dtype, relu: bool, tasks: int, packed: bool = False) -> Run:
    """Whatever does not depend on the arrays; with `packed` for `Run.run_packed`, else for `Run.run`."""
    conv = tiling.conv
    blocks, filters = cut(tiling, dtype, tasks), filters_of(tiling, dtype)
    depth, height, width = conv.input
    channels = conv.group_in
    params = blocks._asdict()
    tasks = params.pop("tasks")
    forward = Prepared(
        kernels.FORWARD[tiling.tile],
        dtype,
        tasks,
        "x bias y packed scratch",
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
        packed_point=filters.point_bytes,
        **params,
    )
    _, at_scratch, end = places([0 if packed else filters.size, tasks * blocks.scratch_bytes])
    return Run(_prepare_pack(filters, filters.tasks), forward, end, at_scratch)
