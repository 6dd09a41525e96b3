"""Implicit GEMM: how its work is cut and run; see `fastconv.kernels.implicit_gemm` for what is done.

A `Convolution` is what the kernel can compute: the forward pass is one, the input gradient several.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Bound
from fastconv.algorithms.workspace import odd_lines, places, scratch
from fastconv.jit import address_of
from fastconv.kernels import implicit_gemm as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.kernels.weight_panels import MOST_SPAN, PACK, pack_weight
from fastconv.shapes import Triple
from fastconv.threads import Both, Prepared, task_count

#: Rows of the packed block: enough to pay for loading and storing a tile, a weight panel of which fits L1.
DEPTH = 576
#: Bytes of the packed block, which stays in L2.
PACKED_BYTES = 480 << 10
#: Bytes of the rows of x that are filled at a time, which stay in L1.
ROWS_BYTES = 20 << 10
#: Unused bytes between the memories of two tasks: a core fetches lines ahead of those that it stores.
APART_BYTES = 4 << 10
#: From this many bytes on, a weight that is read once is packed where it is read.
FRESH_BYTES = 256 << 10
#: Most pixels of a block.
PIXELS = 480
#: Below this many vectors of pixels the threads share the output channels instead.
FEW_VECTORS = 64


class Weights(NamedTuple):
    """Where a weight's cells are, in elements: group, output channel, input channel, and the kernel cell."""

    group: int
    row: int
    channel: int
    first_tap: int
    tap: Triple

    def taps_at(self, kernel: Triple) -> np.ndarray:
        """Elements from the first kernel cell of a channel to each, int64."""
        return np.ascontiguousarray(
            np.array(self.tap, np.int64) @ np.indices(kernel).reshape(3, -1), np.int64
        )

    def order(self, kernel: Triple, group_out: int) -> dict[str, int]:
        """The fields of a record of `pack_weight` that say what follows what."""
        taps_at = self.taps_at(kernel)
        plain = self.channel == taps_at.size and bool((taps_at == np.arange(taps_at.size)).all())
        # are the rows of a channel neighbours, and nothing but its kernel cells?
        near = self.row <= MOST_SPAN and self.channel >= self.row * group_out
        near = near and self.first_tap + taps_at.min() >= 0 and self.first_tap + taps_at.max() < self.row
        return {
            "group_stride": self.group,
            "row_stride": self.row,
            "channel_stride": self.channel,
            "plain": int(plain),
            "span": self.row if near and not plain else 0,
            "first_cell": self.first_tap,
        }


class Pixels(NamedTuple):
    """Where the cells of y are, in elements."""

    first: int
    n: int
    k: int
    axes: Triple


class Panels(NamedTuple):
    """A weight packed for the kernel; a `Packing`. It depends on nothing but the weight's own facts."""

    dtype: np.dtype
    groups: int
    group_in: int
    group_out: int
    kernel: Triple
    weights: Weights

    @property
    def panels(self) -> int:
        """Panels of output channels of all groups."""
        return self.groups * -(-self.group_out // ROWS)

    @property
    def size(self) -> int:
        return self.panels * ROWS * self.group_in * prod(self.kernel) * self.dtype.itemsize

    @property
    def tasks(self) -> int:
        """Tasks that packing is worth."""
        return task_count(self.size // self.dtype.itemsize // 4, self.panels)

    def pack(self, weight: np.ndarray, packed: int) -> None:
        first = self.weights.first_tap * self.dtype.itemsize
        _prepare_pack(self, self.tasks)[0].run(address_of(weight) + first, packed, 0, 0)


@lru_cache(maxsize=4096)
def _prepare_pack(panels: Panels, tasks: int, bias_alone: bool = False) -> tuple[Prepared, np.ndarray]:
    """What packs a weight and its bias, or the bias alone; and a table to be kept alive as long."""
    weights = panels.weights
    taps = prod(panels.kernel)
    taps_at = weights.taps_at(panels.kernel)
    prepared = Prepared(
        pack_weight,
        panels.dtype,
        tasks,
        "weight packed bias whole_bias",
        taps_at=address_of(taps_at),
        groups=panels.groups,
        group_in=panels.group_in,
        group_out=panels.group_out,
        taps=taps,
        block_channels=block_channels(panels.group_in, taps),
        **weights.order(panels.kernel, panels.group_out),
        first_unit=0,
        last_unit=panels.panels,
        first_channel=0,
        last_channel=0 if bias_alone else panels.group_in,
    )
    return prepared, taps_at


class Convolution(NamedTuple):
    """A convolution of a contiguous x (N, C, D, H, W), with steps for weight and y of any size."""

    images: int
    groups: int
    group_in: int
    group_out: int
    input: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    #: before the first cell; negative where the first window begins inside x
    pad: Triple
    output: Triple
    weights: Weights
    y: Pixels

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def pixels(self) -> int:
        """Cells of one output plane."""
        return prod(self.output)

    @property
    def flops(self) -> int:
        channels = self.groups * self.group_out
        return 2 * self.images * channels * self.pixels * self.group_in * self.taps

    @property
    def panels(self) -> int:
        """Panels of output channels of a group."""
        return -(-self.group_out // ROWS)

    @property
    def sizes(self) -> dict[str, int]:
        """The fields of a kernel's record that say what is computed."""
        return {
            "images": self.images,
            "groups": self.groups,
            "group_in": self.group_in,
            "group_out": self.group_out,
            "depth": self.input[0],
            "height": self.input[1],
            "width": self.input[2],
            **per_axis("kernel", self.kernel),
            **per_axis("stride", self.stride),
            **per_axis("dilation", self.dilation),
            **per_axis("pad", self.pad),
            "out_depth": self.output[0],
            "out_height": self.output[1],
            "out_width": self.output[2],
        }

    def packing(self, dtype: np.dtype) -> Panels:
        return Panels(dtype, self.groups, self.group_in, self.group_out, self.kernel, self.weights)

    @property
    def dense(self) -> bool:
        """Whether the pixels of a plane of y are contiguous."""
        _, height, width = self.output
        return self.y.axes == (height * width, width, 1)

    @property
    def reads_inside(self) -> bool:
        """Whether no window reaches beyond x."""
        axes = zip(self.input, self.output, self.stride, self.kernel, self.dilation, strict=True)
        inside = all((out - 1) * s + (k - 1) * d < size for size, out, s, k, d in axes)
        return inside and self.pad == (0, 0, 0)


class Blocks(NamedTuple):
    """How the work is cut, and what of a task's scratch memory is where, in bytes."""

    channels: int
    pixels: int
    blocks: int
    pixel_tasks: int
    panel_tasks: int
    direct: bool
    #: whether a task packs what it reads of the weight, since it reads it once
    fresh: bool
    fill_channels: int
    phase_size: int
    row_size: int
    plane_size: int
    channel_size: int
    at_rows: int
    at_packed: int
    at_tiles: int
    at_offsets: int
    at_panel_offsets: int
    at_runs: int
    at_moves: int
    at_fills: int
    at_fresh: int
    at_pack: int
    scratch_bytes: int


def block_channels(group_in: int, taps: int) -> int:
    """Input channels of a block: the packed weight depends on it, and so it depends on nothing else."""
    return -(-group_in // max(1, round(group_in * taps / DEPTH)))


@lru_cache(maxsize=4096)
def cut(conv: Convolution, itemsize: int, tasks: int) -> Blocks:
    """Sizes of the blocks of a convolution in `tasks` tasks."""
    lanes = LANES[8 * itemsize]
    panel_pixels = VECTORS * lanes
    channels = block_channels(conv.group_in, conv.taps)
    block_depth = channels * conv.taps

    pixels = conv.images * conv.pixels
    vectors = -(-pixels // lanes)
    share_channels = (vectors < FEW_VECTORS and conv.panels >= 2 * tasks) or vectors < tasks <= conv.panels
    pixel_tasks = 1 if share_channels else min(tasks, vectors)
    panel_tasks = tasks if share_channels else 1
    most = max(VECTORS, min(PIXELS, PACKED_BYTES // (itemsize * block_depth)) // lanes)
    task_vectors = -(-vectors // pixel_tasks)
    blocks = -(-task_vectors // most)
    block_vectors = -(-task_vectors // blocks)
    block, block_panels = block_vectors * lanes, -(-block_vectors // VECTORS)

    weight_bytes = conv.groups * conv.panels * ROWS * conv.group_in * conv.taps * itemsize
    fresh = pixel_tasks == blocks == 1 and weight_bytes >= FRESH_BYTES

    # the rows of x that a block reads: see the kernel
    width, stride_x = conv.output[2], conv.stride[2]
    direct = stride_x == 1 and conv.reads_inside
    runs = block // width + 2
    pieces = runs // conv.output[1] + 2
    reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1
    rows = 0 if direct else runs * conv.stride[1] + pieces * reach
    phase = min(width, block) + (conv.kernel[2] - 1) * conv.dilation[2] // stride_x
    row = phase * stride_x
    plane = rows * row + 2 * lanes
    channel = conv.kernel[0] * plane
    fill_channels = channels if direct else min(channels, max(1, ROWS_BYTES // (channel * itemsize)))
    moves = block_vectors + block_panels + 2 * runs + 4
    fills = conv.kernel[0] * rows * -(-phase // lanes) * stride_x if stride_x <= kernels.FILL_STRIDE else 0
    tiles = 1 if channels == conv.group_in else -(-conv.panels // panel_tasks) * block_panels

    sizes = (
        (0 if direct else fill_channels * channel + 4 * lanes) * itemsize,
        (block_depth * block + (block_panels + 4) * lanes) * itemsize,
        tiles * ROWS * panel_pixels * itemsize,
        block_depth * 8,
        VECTORS * block_depth * 8,
        runs * kernels.RUN_FIELDS * 8,
        moves * kernels.MOVE_FIELDS * 8,
        fills * kernels.FILL_FIELDS * 8,
        kernels.FRESH_PANELS * ROWS * block_depth * itemsize if fresh else 0,
        PACK.itemsize,
    )
    *at, end = places(sizes)
    return Blocks._make(
        (
            channels,
            block,
            blocks,
            pixel_tasks,
            panel_tasks,
            direct,
            fresh,
            fill_channels,
            phase,
            row,
            plane,
            channel,
            *at,
            # an odd number of cache lines, so that the tasks' memories do not fall on the same sets
            odd_lines(end + APART_BYTES),
        )
    )


def tasks_of(conv: Convolution) -> int:
    """Tasks that the work is worth."""
    return task_count(conv.flops // 2, conv.images * conv.pixels * conv.groups * conv.group_out)


def workspace_bytes(conv: Convolution, dtype: np.dtype) -> int:
    """Scratch memory of all tasks, and the packed weight."""
    return prepare(conv, dtype, True, False, tasks_of(conv)).scratch_bytes


def bind(conv: Convolution, dtype: np.dtype) -> Bound:
    """The convolution, for this number of threads."""
    return prepare(conv, dtype, False, False, tasks_of(conv)).run


class Run(NamedTuple):
    """Both kernels, ready to be run."""

    #: packs the weight and the bias, or with a packed weight the bias
    pack: Prepared
    forward: Prepared
    #: bytes from the first cell of the array
    first_weight: int
    first_y: int
    #: whether the forward kernel does the packing
    fresh: bool
    #: bytes of the workspace; where in it the bias goes, padded to whole panels, or None; the tasks' scratch
    scratch_bytes: int
    at_bias: int | None
    at_scratch: int
    #: both kernels in one go, if neither has work for more than a thread, and where their records go
    both: Both | None
    at_records: int
    #: kept alive
    taps_at: np.ndarray

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """out = conv(x, weight) + bias; only the arrays' memory matters, not their shapes."""
        packed = scratch(self.scratch_bytes)
        bias_at = 0 if bias is None else address_of(bias)
        whole_bias = 0 if self.at_bias is None else packed + self.at_bias
        weight_at = address_of(weight) + self.first_weight
        out_at = address_of(out) + self.first_y
        bias_read = whole_bias or bias_at
        scratch_at = packed + self.at_scratch
        if self.fresh:
            record = self.pack.record(weight_at, 0, bias_at, whole_bias)
            self.forward.run(address_of(x), address_of(record), bias_read, out_at, scratch_at)
        elif self.both is not None:
            self.both.run(
                packed + self.at_records,
                (
                    weight_at,
                    packed,
                    bias_at,
                    whole_bias,
                    address_of(x),
                    packed,
                    bias_read,
                    out_at,
                    scratch_at,
                ),
            )
        else:
            self.pack.run(weight_at, packed, bias_at, whole_bias)
            self.forward.run(address_of(x), packed, bias_read, out_at, scratch_at)

    def run_packed(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with the bytes of a packed weight."""
        memory = scratch(self.scratch_bytes)
        bias_at = 0 if bias is None else address_of(bias)
        if self.at_bias is not None:
            self.pack.run(0, 0, bias_at, memory + self.at_bias)
            bias_at = memory + self.at_bias
        self.forward.run(
            address_of(x),
            address_of(packed),
            bias_at,
            address_of(out) + self.first_y,
            memory + self.at_scratch,
        )


@lru_cache(maxsize=4096)
def prepare(
    conv: Convolution, dtype: np.dtype, has_bias: bool, relu: bool, tasks: int, packed: bool = False
) -> Run:
    """Whatever does not depend on the arrays; with `packed` for `Run.run_packed`, else for `Run.run`."""
    blocks = cut(conv, dtype.itemsize, tasks)
    tasks = blocks.pixel_tasks * blocks.panel_tasks
    depth, height, width = conv.input
    plane = depth * height * width
    panels = conv.packing(dtype)
    fresh = blocks.fresh and not packed
    pack, taps_at = _prepare_pack(panels, 1 if packed or fresh else panels.tasks, packed)
    forward = Prepared(
        kernels.forward,
        dtype,
        tasks,
        "x weight bias y scratch",
        pack_task=pack_weight.task(dtype).address if fresh else 0,
        scratch_bytes=blocks.scratch_bytes,
        relu=int(relu),
        x_n=conv.groups * conv.group_in * plane,
        x_c=plane,
        x_z=height * width,
        x_y=width,
        y_n=conv.y.n,
        y_k=conv.y.k,
        **per_axis("y", conv.y.axes),
        dense=int(conv.dense),
        **conv.sizes,
        block_channels=blocks.channels,
        block_pixels=blocks.pixels,
        blocks=blocks.blocks,
        pixel_tasks=blocks.pixel_tasks,
        panel_tasks=blocks.panel_tasks,
        direct=int(blocks.direct),
        fill_channels=blocks.fill_channels,
        at_rows=blocks.at_rows,
        at_packed=blocks.at_packed,
        at_tiles=blocks.at_tiles,
        at_offsets=blocks.at_offsets,
        at_panel_offsets=blocks.at_panel_offsets,
        at_runs=blocks.at_runs,
        at_moves=blocks.at_moves,
        at_fills=blocks.at_fills,
        at_fresh=blocks.at_fresh,
        at_pack=blocks.at_pack,
        phase_size=blocks.phase_size,
        row_size=blocks.row_size,
        plane_size=blocks.plane_size,
        channel_size=blocks.channel_size,
    )
    padded = has_bias and conv.group_out % ROWS != 0
    bias_size = panels.panels * ROWS * dtype.itemsize if padded else 0
    both = Both(pack, forward) if pack.tasks == tasks == 1 and not (packed or fresh) else None
    _, at_bias, at_scratch, at_records, end = places(
        [
            0 if packed or fresh else panels.size,
            bias_size,
            tasks * blocks.scratch_bytes,
            0 if both is None else both.size,
        ]
    )
    return Run(
        pack,
        forward,
        conv.weights.first_tap * dtype.itemsize,
        conv.y.first * dtype.itemsize,
        fresh,
        end,
        at_bias if padded else None,
        at_scratch,
        both,
        at_records,
        taps_at,
    )


def per_axis(name: str, values: Triple) -> dict[str, int]:
    """The fields of a record for a value per axis."""
    return {f"{name}_{axis}": value for axis, value in zip("zyx", values, strict=True)}
