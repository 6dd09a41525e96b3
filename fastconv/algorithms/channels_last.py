"""Channels-last convolution: how its work is cut and run; see `fastconv.kernels.channels_last`.

It computes a `Convolution` as the channels-first kernel does, of an x (N, D, H, W, C).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Bound
from fastconv.algorithms.implicit_gemm import Convolution, Weights, per_axis, tasks_of
from fastconv.algorithms.workspace import places, scratch
from fastconv.jit import address_of
from fastconv.kernels import channels_last as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.shapes import Triple
from fastconv.threads import Prepared, task_count

#: Rows of B that are multiplied at a time: enough to pay for loading and storing a tile.
DEPTH = 576
#: Up to this many channels, x is copied with its padding to make longer rows: ResNet's first layer took
#: 6.9 ms without, and 5.8 with it.
FEW_CHANNELS = 16
#: But not if that takes more than this many reals.
MOST_WIDENED = 2 << 20
#: Tiles of pixels of a block: the part of y that is added to stays in L2.
TILES = 24


class Columns(NamedTuple):
    """A weight packed for the kernel; a `Packing`. It depends on nothing but the weight's own facts."""

    dtype: np.dtype
    groups: int
    group_in: int
    group_out: int
    kernel: Triple
    weights: Weights

    @property
    def vectors(self) -> int:
        """Vectors of output channels of a group."""
        return -(-self.group_out // LANES[8 * self.dtype.itemsize])

    @property
    def panels(self) -> int:
        """Panels of output channels of a group."""
        return -(-self.vectors // VECTORS)

    @property
    def size(self) -> int:
        width = self.vectors * LANES[8 * self.dtype.itemsize] * self.dtype.itemsize
        return self.groups * self.group_in * prod(self.kernel) * width

    @property
    def block(self) -> tuple[int, int]:
        """Kernel cells and channels that are multiplied at a time."""
        channels = -(-self.group_in // max(1, round(self.group_in / DEPTH)))
        taps = max(1, DEPTH // channels) if channels == self.group_in else 1
        return min(taps, prod(self.kernel)), channels

    @property
    def tasks(self) -> int:
        """Tasks that packing is worth."""
        return task_count(self.size // self.dtype.itemsize // 4, self.groups * self.panels)

    def pack(self, weight: np.ndarray, packed: int) -> None:
        first = self.weights.first_tap * self.dtype.itemsize
        _prepare_pack(self, self.tasks)[0].run(address_of(weight) + first, packed)


@lru_cache(maxsize=4096)
def _prepare_pack(columns: Columns, tasks: int) -> tuple[Prepared, np.ndarray]:
    """What packs a weight, and a table to be kept alive as long."""
    weights = columns.weights
    taps_at = weights.taps_at(columns.kernel)
    block_taps, block_channels = columns.block
    prepared = Prepared(
        kernels.pack_columns,
        columns.dtype,
        tasks,
        "weight packed",
        taps_at=address_of(taps_at),
        groups=columns.groups,
        group_in=columns.group_in,
        group_out=columns.group_out,
        taps=len(taps_at),
        block_taps=block_taps,
        block_channels=block_channels,
        group_stride=weights.group,
        row_stride=weights.row,
        channel_stride=weights.channel,
    )
    return prepared, taps_at


def columns_of(conv: Convolution, dtype: np.dtype) -> Columns:
    conv = merge(conv)
    return Columns(dtype, conv.groups, conv.group_in, conv.group_out, conv.kernel, conv.weights)


def merge(conv: Convolution) -> Convolution:
    """The same convolution with the kernel cells of a row as one, if it is worth it; else `conv` itself.

    What those see must be one row of reals, and the weight's rows follow each other. The input of the
    result is as wide as the windows reach.
    """
    channels, taps = conv.group_in, conv.kernel[2]
    weights = conv.weights
    contiguous = conv.groups == 1 and conv.dilation[2] == 1 and weights.tap[2] == channels * weights.channel
    width = (conv.output[2] - 1) * conv.stride[2] + taps
    inside = conv.pad[2] == 0 and width <= conv.input[2]
    few = channels <= FEW_CHANNELS and conv.images * prod(conv.input[:2]) * width * channels <= MOST_WIDENED
    if taps == 1 or not contiguous or not (inside or few):
        return conv
    return conv._replace(
        group_in=taps * channels,
        input=(*conv.input[:2], conv.input[2] if inside else width),
        kernel=(*conv.kernel[:2], 1),
        pad=(*conv.pad[:2], 0),
        weights=weights._replace(tap=(*weights.tap[:2], 0)),
    )


def widening(original: Convolution, merged: Convolution, dtype: np.dtype) -> tuple[Prepared | None, int]:
    """What makes the rows of x as wide as a merged convolution reads them, if need be; and their reals."""
    depth, height, width = merged.input
    x_width, left = original.input[2], original.pad[2]
    if merged is original or (left == 0 and width == x_width):
        return None, 0
    channels, rows = merged.groups * original.group_in, merged.images * depth * height
    widen = Prepared(
        kernels.widen_rows,
        dtype,
        task_count(rows * width * channels // 4, rows),
        "x wide",
        rows=rows,
        row=x_width * channels,
        wide_row=width * channels,
        left=left * channels,
    )
    return widen, rows * width * channels


class Blocks(NamedTuple):
    """How the work is cut, and what of a task's scratch memory is where, in bytes."""

    taps: int
    channels: int
    tiles: int
    pixel_tasks: int
    panel_tasks: int
    at_zeros: int
    at_unread: int
    at_offsets: int
    at_a: int
    at_c: int
    scratch_bytes: int


@lru_cache(maxsize=4096)
def cut(conv: Convolution, dtype: np.dtype, tasks: int) -> Blocks:
    columns, conv = columns_of(conv, dtype), merge(conv)
    lanes = LANES[8 * dtype.itemsize]
    tiles = -(-conv.images * conv.pixels // ROWS)
    # the threads share whichever comes out more even
    share_panels = columns.panels / -(-columns.panels // tasks) > tiles / -(-tiles // tasks)
    pixel_tasks = 1 if share_panels else min(tasks, tiles)
    panel_tasks = min(tasks, columns.panels) if share_panels else 1
    block_tiles = min(TILES, -(-tiles // pixel_tasks))
    at = places(
        [
            (conv.groups * conv.group_in + lanes) * dtype.itemsize,
            (conv.groups * conv.group_out + lanes) * dtype.itemsize,
            conv.taps * 8,
            block_tiles * conv.taps * ROWS * 8,
            block_tiles * ROWS * 8,
        ]
    )
    return Blocks(*columns.block, block_tiles, pixel_tasks, panel_tasks, *at)


class Run(NamedTuple):
    """Both kernels, ready to be run."""

    pack: Prepared
    #: widens the rows of x, if they need it
    widen: Prepared | None
    forward: Prepared
    #: bytes from the first cell of the array
    first_weight: int
    first_y: int
    #: bytes of the workspace, and where in it the wide x and the tasks' scratch begin
    scratch_bytes: int
    at_x: int
    at_scratch: int
    #: kept alive
    taps_at: np.ndarray

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """out = conv(x, weight) + bias; only the arrays' memory matters, not their shapes."""
        memory = scratch(self.scratch_bytes)
        self.pack.run(address_of(weight) + self.first_weight, memory)
        self._convolve(x, memory, bias, out, memory)

    def run_packed(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with the bytes of a packed weight."""
        self._convolve(x, address_of(packed), bias, out, scratch(self.scratch_bytes))

    def _convolve(
        self, x: np.ndarray, packed: int, bias: np.ndarray | None, out: np.ndarray, memory: int
    ) -> None:
        bias_at = 0 if bias is None else address_of(bias)
        x_at = address_of(x)
        if self.widen is not None:
            self.widen.run(x_at, memory + self.at_x)
            x_at = memory + self.at_x
        self.forward.run(x_at, packed, bias_at, address_of(out) + self.first_y, memory + self.at_scratch)


@lru_cache(maxsize=4096)
def prepare(conv: Convolution, dtype: np.dtype, relu: bool, tasks: int, packed: bool = False) -> Run:
    """Whatever does not depend on the arrays; with `packed` for `Run.run_packed`, else for `Run.run`."""
    blocks = cut(conv, dtype, tasks)
    tasks = blocks.pixel_tasks * blocks.panel_tasks
    columns = columns_of(conv, dtype)
    pack, taps_at = _prepare_pack(columns, columns.tasks)
    channels = conv.groups * conv.group_in
    original, conv = conv, merge(conv)
    widen, wide_size = widening(original, conv, dtype)
    depth, height, width = conv.input
    forward = Prepared(
        kernels.forward,
        dtype,
        tasks,
        "x weight bias y scratch",
        scratch_bytes=blocks.scratch_bytes,
        relu=int(relu),
        x_n=depth * height * width * channels,
        x_z=height * width * channels,
        x_y=width * channels,
        x_x=channels,
        y_n=conv.y.n,
        **per_axis("y", conv.y.axes),
        **conv.sizes,
        block_taps=blocks.taps,
        block_channels=blocks.channels,
        block_tiles=blocks.tiles,
        pixel_tasks=blocks.pixel_tasks,
        panel_tasks=blocks.panel_tasks,
        at_zeros=blocks.at_zeros,
        at_unread=blocks.at_unread,
        at_offsets=blocks.at_offsets,
        at_a=blocks.at_a,
        at_c=blocks.at_c,
    )
    _, at_x, at_scratch, end = places(
        [0 if packed else columns.size, wide_size * dtype.itemsize, tasks * blocks.scratch_bytes]
    )
    return Run(
        pack,
        widen,
        forward,
        conv.weights.first_tap * dtype.itemsize,
        conv.y.first * dtype.itemsize,
        end,
        at_x,
        at_scratch,
        taps_at,
    )


def workspace_bytes(conv: Convolution, dtype: np.dtype) -> int:
    """Scratch memory of all tasks, and the packed weight."""
    return prepare(conv, dtype, False, tasks_of(conv)).scratch_bytes


def bind(conv: Convolution, dtype: np.dtype) -> Bound:
    """The convolution, for this number of threads."""
    return prepare(conv, dtype, False, tasks_of(conv)).run
