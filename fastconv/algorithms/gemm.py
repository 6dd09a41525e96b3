"""Implicit GEMM: a matrix product that packs the windows of x as it goes, and multiplies in registers.

See `fastconv.kernels.implicit_gemm` for how. This file chooses the sizes of the blocks and splits the work.
The input gradient of a convolution of stride 1 is the same computation: a convolution of grad_output with
the weight transposed between its channels and flipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Algorithm
from fastconv.algorithms.workspace import workspace
from fastconv.jit import DISABLED, address_of
from fastconv.kernels import implicit_gemm as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.shapes import ConvShape
from fastconv.threads import launch, task_count

#: Rows of the packed block: enough to pay for loading and storing a tile, a weight panel of which fits L1.
DEPTH = 576
#: Bytes of the packed block, which stays in L2.
PACKED_BYTES = 480 << 10
#: Most pixels of a block.
PIXELS = 480
#: Below this many vectors of pixels the threads share the output channels instead.
FEW_VECTORS = 64
#: Most scratch memory of a task.
SCRATCH_BYTES = 8 << 20


class Blocks(NamedTuple):
    """How the work is cut, and what of a task's scratch memory is where, in bytes."""

    channels: int
    pixels: int
    pixel_tasks: int
    panel_tasks: int
    direct: bool
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
    scratch_bytes: int


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@lru_cache(maxsize=1024)
def cut(shape: ConvShape, itemsize: int, tasks: int) -> Blocks:
    """Sizes of the blocks of a forward pass in `tasks` tasks."""
    lanes = LANES[8 * itemsize]
    panel_pixels = VECTORS * lanes
    panels = -(-shape.group_out // ROWS)
    depth = shape.group_in * shape.taps
    channels = -(-shape.group_in // max(1, round(depth / DEPTH)))
    block_depth = channels * shape.taps

    pixels = shape.batch * shape.pixels
    vectors = -(-pixels // lanes)
    share_channels = (vectors < FEW_VECTORS and panels >= 2 * tasks) or vectors < tasks <= panels
    pixel_tasks = 1 if share_channels else min(tasks, vectors)
    panel_tasks = tasks if share_channels else 1
    most = min(PIXELS, PACKED_BYTES // (itemsize * block_depth)) // panel_pixels * panel_pixels
    task_pixels = _ceil(-(-pixels // pixel_tasks), lanes)
    count = -(-task_pixels // max(panel_pixels, most))
    block = _ceil(-(-task_pixels // count), panel_pixels)

    # the rows of x that a block reads: see the kernel
    width, stride_x = shape.output[2], shape.stride[2]
    direct = stride_x == 1 and shape.pad_before == (0, 0, 0) and _reads_inside(shape)
    runs = block // width + 2
    pieces = runs // shape.output[1] + 2
    reach = (shape.kernel[1] - 1) * shape.dilation[1] + 1
    rows = 0 if direct else runs * shape.stride[1] + pieces * reach
    phase = min(width, block) + (shape.kernel[2] - 1) * shape.dilation[2] // stride_x
    row = phase * stride_x
    plane = rows * row + 2 * lanes
    channel = shape.kernel[0] * plane
    moves = block // lanes + block // panel_pixels + 2 * runs + 4
    tiles = 1 if channels == shape.group_in else -(-panels // panel_tasks) * (block // panel_pixels)

    sizes = (
        (0 if direct else channels * channel + 4 * lanes) * itemsize,
        (block_depth * (block + panel_pixels) + 4 * lanes) * itemsize,
        tiles * ROWS * panel_pixels * itemsize,
        block_depth * 8,
        VECTORS * block_depth * 8,
        runs * kernels.RUN_FIELDS * 8,
        moves * kernels.MOVE_FIELDS * 8,
    )
    rows_at, packed_at, tiles_at, offsets_at, panel_offsets_at, runs_at, moves_at, end = accumulate(
        (_ceil(size, 64) for size in sizes), initial=0
    )
    return Blocks(
        channels=channels,
        pixels=block,
        pixel_tasks=pixel_tasks,
        panel_tasks=panel_tasks,
        direct=direct,
        phase_size=phase,
        row_size=row,
        plane_size=plane,
        channel_size=channel,
        at_rows=rows_at,
        at_packed=packed_at,
        at_tiles=tiles_at,
        at_offsets=offsets_at,
        at_panel_offsets=panel_offsets_at,
        at_runs=runs_at,
        at_moves=moves_at,
        # an odd number of cache lines, so that the tasks' memories do not fall on the same sets
        scratch_bytes=end + 64 * (1 - end // 64 % 2),
    )


def _reads_inside(shape: ConvShape) -> bool:
    """Whether no window reaches beyond x."""
    facts = zip(shape.input, shape.output, shape.stride, shape.kernel, shape.dilation, strict=True)
    return all((out - 1) * stride + (k - 1) * d < size for size, out, stride, k, d in facts)


def _as_convolution(shape: ConvShape, op: str) -> ConvShape:
    """The convolution that computes `op`."""
    if op == "forward":
        if shape.is_pointwise:  # a row of pixels: runs are then as long as they can be
            row = (1, 1, shape.pixels)
            return shape._replace(input=row, output=row)
        return shape
    before, after = (
        tuple(d * (k - 1) - pad for d, k, pad in zip(shape.dilation, shape.kernel, pads, strict=True))
        for pads in (shape.pad_before, shape.pad_after)
    )
    mirrored = shape._replace(
        in_channels=shape.out_channels,
        out_channels=shape.in_channels,
        input=shape.output,
        output=shape.input,
        pad_before=before,  # type: ignore[arg-type]
        pad_after=after,  # type: ignore[arg-type]
    )
    return _as_convolution(mirrored, "forward")


def _is_empty(shape: ConvShape) -> bool:
    """Whether there is nothing to compute."""
    return 0 in (shape.batch, shape.in_channels, shape.out_channels, *shape.input)


def _tasks(shape: ConvShape) -> int:
    return task_count(shape.flops // 2, shape.batch * shape.pixels * shape.out_channels)


class Gemm(Algorithm):
    name = "gemm"
    summary = "implicit GEMM: windows packed tile by tile, multiplied in registers"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if DISABLED:
            return "it needs the compiler, which NUMBA_DISABLE_JIT turns off"
        if shape.layout != "NCHW":
            return "it reads channels-first arrays only"
        if op == "weight_grad":
            return "it has forward and input_grad only"
        if op == "input_grad":
            if shape.stride != (1, 1, 1):
                return "the input gradient is a convolution for stride 1 only"
            reach = zip(shape.dilation, shape.kernel, shape.pad_before, strict=True)
            if any(pad > d * (k - 1) for d, k, pad in reach):
                return "the padding is larger than the kernel"
        if _is_empty(shape):
            return None
        if cut(_as_convolution(shape, op), dtype.itemsize, 1).scratch_bytes > SCRATCH_BYTES:
            return f"a block of a kernel this large needs more than {SCRATCH_BYTES >> 20} MiB a thread"
        return None

    def drawback(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        # measured on 2 cores: im2col took 0.13 to 0.8 of the time with 1 to 6 input channels, 0.5 to 1.0 of
        # it with 1x1 kernels; 1.1 to 1.5 times it with 3x3 kernels and 64 channels, 5 times it for depthwise
        if op == "input_grad" and shape.groups == 1:
            if shape.group_in < 2 * ROWS:
                return f"it would compute {ROWS} input channels where there are {shape.group_in}"
            if shape.taps == 1:
                return "there is nothing to lower, and BLAS takes the weight transposed"
        return None

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if _is_empty(shape):
            return 0
        convolution = _as_convolution(shape, op)
        tasks = _tasks(convolution)
        blocks = cut(convolution, dtype.itemsize, tasks)
        return tasks * blocks.scratch_bytes + _packed_size(convolution) * dtype.itemsize

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        if _is_empty(shape):
            return {}
        convolution = _as_convolution(shape, op)
        lanes = LANES[8 * dtype.itemsize]
        blocks = cut(convolution, dtype.itemsize, _tasks(convolution))
        return {
            "tile": f"{ROWS} channels x {VECTORS * lanes} pixels ({VECTORS} vectors of {lanes})",
            "block": f"{blocks.channels} channels x {convolution.taps} cells x {blocks.pixels} pixels, packed"
            + (" straight from x" if blocks.direct else ""),
            "tasks": f"{blocks.pixel_tasks} over pixels x {blocks.panel_tasks} over output channels",
        }

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        relu: bool,
        out: np.ndarray,
        shape: ConvShape,
    ) -> None:
        _convolve(x, weight, bias, relu, out, _as_convolution(shape, "forward"))

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        # (G, Kg, Cg, T, R, S) -> (G, Cg, Kg, T, R, S), flipped
        grouped = weight.reshape(shape.groups, shape.group_out, *weight.shape[1:])
        mirrored = np.ascontiguousarray(grouped.swapaxes(1, 2)[..., ::-1, ::-1, ::-1])
        _convolve(grad_output, mirrored, None, False, out, _as_convolution(shape, "input_grad"))

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        raise NotImplementedError("see supports()")


def _packed_size(shape: ConvShape) -> int:
    """Reals of the packed weight."""
    return shape.groups * -(-shape.group_out // ROWS) * ROWS * shape.group_in * shape.taps


def _convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    relu: bool,
    out: np.ndarray,
    shape: ConvShape,
) -> None:
    """out = conv(x, weight) + bias. `weight` is contiguous, its groups outermost."""
    tasks = _tasks(shape)
    blocks = cut(shape, x.itemsize, tasks)
    tasks = blocks.pixel_tasks * blocks.panel_tasks
    panels = -(-shape.group_out // ROWS)
    packed, biases, scratch = workspace(
        x.dtype,
        (_packed_size(shape),),
        (shape.groups, panels * ROWS),
        (tasks * blocks.scratch_bytes // x.itemsize,),
    )
    depth = shape.group_in * shape.taps
    launch(
        kernels.pack_weight,
        x.dtype,
        task_count(weight.size, shape.groups * panels),
        weight=address_of(weight),
        packed=address_of(packed),
        groups=shape.groups,
        group_out=shape.group_out,
        depth=depth,
        block_depth=blocks.channels * shape.taps,
    )
    if bias is not None:
        biases[:, : shape.group_out] = bias.reshape(shape.groups, shape.group_out)
        biases[:, shape.group_out :] = 0
    depth_in, height, width = shape.input
    launch(
        kernels.forward,
        x.dtype,
        tasks,
        x=address_of(x),
        weight=address_of(packed),
        bias=0 if bias is None else address_of(biases),
        y=address_of(out),
        relu=int(relu),
        x_n=shape.in_channels * depth_in * height * width,
        x_c=depth_in * height * width,
        x_z=height * width,
        x_y=width,
        y_n=shape.out_channels * shape.pixels,
        y_k=shape.pixels,
        images=shape.batch,
        groups=shape.groups,
        group_in=shape.group_in,
        group_out=shape.group_out,
        depth=depth_in,
        height=height,
        width=width,
        kernel_z=shape.kernel[0],
        kernel_y=shape.kernel[1],
        kernel_x=shape.kernel[2],
        stride_z=shape.stride[0],
        stride_y=shape.stride[1],
        stride_x=shape.stride[2],
        dilation_z=shape.dilation[0],
        dilation_y=shape.dilation[1],
        dilation_x=shape.dilation[2],
        pad_z=shape.pad_before[0],
        pad_y=shape.pad_before[1],
        pad_x=shape.pad_before[2],
        out_depth=shape.output[0],
        out_height=shape.output[1],
        out_width=shape.output[2],
        block_channels=blocks.channels,
        block_pixels=blocks.pixels,
        pixel_tasks=blocks.pixel_tasks,
        panel_tasks=blocks.panel_tasks,
        direct=int(blocks.direct),
        scratch=address_of(scratch),
        scratch_bytes=blocks.scratch_bytes,
        at_rows=blocks.at_rows,
        at_packed=blocks.at_packed,
        at_tiles=blocks.at_tiles,
        at_offsets=blocks.at_offsets,
        at_panel_offsets=blocks.at_panel_offsets,
        at_runs=blocks.at_runs,
        at_moves=blocks.at_moves,
        phase_size=blocks.phase_size,
        row_size=blocks.row_size,
        plane_size=blocks.plane_size,
        channel_size=blocks.channel_size,
    )
