"""Implicit GEMM: matrix products that pack what they read as they go, and multiply in registers.

The forward pass is a `Convolution`. The input gradient is one for each phase of the stride: the cells of x
that are a stride apart get their sums through the same kernel cells. Each phase is a convolution of
grad_output of stride 1, by those kernel cells in reverse order and with the channels exchanged; its results
are a stride apart. Both come in a channels-first and a channels-last kind. The weight gradient is a product
of another kind: see `fastconv.kernels.weight_gradient`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from fastconv.algorithms import channels_last, channels_last_gradient, implicit_gemm, weight_gradient
from fastconv.algorithms.base import Algorithm, Bound, BoundGradient, Packing
from fastconv.algorithms.implicit_gemm import (
    Convolution,
    Pixels,
    Weights,
    prepare,
    tasks_of,
)
from fastconv.jit import DISABLED
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.shapes import ConvShape, Triple

#: Most scratch memory of a task.
SCRATCH_BYTES = 8 << 20


def as_row(shape: ConvShape) -> ConvShape:
    """The shape itself, or if it is pointwise the same with one row of pixels, as long as can be."""
    if not shape.is_pointwise:
        return shape
    row = (1, 1, shape.pixels)
    return shape._replace(input=row, output=row)


def _steps(size: Triple) -> Triple:
    """Elements from one cell of a plane to the next along each axis."""
    return size[1] * size[2], size[2], 1


@lru_cache(maxsize=1024)
def forward_convolution(shape: ConvShape) -> Convolution:
    shape = as_row(shape)
    taps, cells = _steps(shape.kernel), _steps(shape.output)
    if shape.layout == "NHWC":
        k = shape.out_channels
        weights = Weights(shape.group_out, 1, k, 0, _times(shape.group_in * k, taps))
        y = Pixels(0, k * shape.pixels, 1, _times(k, cells))
    else:
        row = shape.group_in * shape.taps
        weights = Weights(shape.group_out * row, row, shape.taps, 0, taps)
        y = Pixels(0, shape.out_channels * shape.pixels, shape.pixels, cells)
    return Convolution(
        shape.batch,
        shape.groups,
        shape.group_in,
        shape.group_out,
        shape.input,
        shape.kernel,
        shape.stride,
        shape.dilation,
        shape.pad_before,
        shape.output,
        weights,
        y,
    )


def _times(factor: int, steps: Triple) -> Triple:
    return factor * steps[0], factor * steps[1], factor * steps[2]


class _Phase(NamedTuple):
    """Along one axis: the cells of x that read the same kernel cells, the last of these first."""

    first: int
    cells: int
    last_tap: int
    tap_step: int
    taps: int
    dilation: int
    pad: int


def _phases(size: int, kernel: int, stride: int, dilation: int, pad: int) -> list[_Phase]:
    """The phases of an axis that any kernel cell reaches."""
    phases = []
    divisor = gcd(stride, dilation)
    step, spread = stride // divisor, dilation // divisor
    for first in range(min(stride, size)):
        taps = [k for k in range(min(step, kernel)) if (first + pad - k * dilation) % stride == 0]
        if taps:
            count = -(-(kernel - taps[0]) // step)
            # the output cell that reads the first cell of the phase through the first of its taps
            reader = (first + pad - taps[0] * dilation) // stride
            last = taps[0] + (count - 1) * step
            cells = -(-(size - first) // stride)
            phases.append(_Phase(first, cells, last, step, count, spread, (count - 1) * spread - reader))
    return phases


@lru_cache(maxsize=1024)
def input_grad_convolutions(shape: ConvShape) -> tuple[Convolution, ...]:
    """The convolutions of grad_output that give grad_x, each a part of it; the rest is zeros."""
    shape = as_row(shape)
    axes = (
        _phases(*facts)
        for facts in zip(
            shape.input, shape.kernel, shape.stride, shape.dilation, shape.pad_before, strict=True
        )
    )
    cells = shape.input[0] * shape.input[1] * shape.input[2]
    taps, steps = _steps(shape.kernel), _steps(shape.input)
    if shape.layout == "NHWC":
        c = shape.in_channels
        taps, steps = _times(shape.group_in * shape.out_channels, taps), _times(c, steps)
        group, row, channel, x_k = shape.group_out, shape.out_channels, 1, 1
    else:
        group = shape.group_out * shape.group_in * shape.taps
        row, channel, x_k = shape.taps, shape.group_in * shape.taps, cells
    result = []
    for z, y, x in product(*axes):
        phases = (z, y, x)
        result.append(
            Convolution(
                shape.batch,
                shape.groups,
                shape.group_out,
                shape.group_in,
                shape.output,
                (z.taps, y.taps, x.taps),
                (1, 1, 1),
                (z.dilation, y.dilation, x.dilation),
                (z.pad, y.pad, x.pad),
                (z.cells, y.cells, x.cells),
                Weights(
                    group,
                    row,
                    channel,
                    sum(p.last_tap * tap for p, tap in zip(phases, taps, strict=True)),
                    (-z.tap_step * taps[0], -y.tap_step * taps[1], -x.tap_step * taps[2]),
                ),
                Pixels(
                    sum(p.first * step for p, step in zip(phases, steps, strict=True)),
                    shape.in_channels * cells,
                    x_k,
                    (shape.stride[0] * steps[0], shape.stride[1] * steps[1], shape.stride[2] * steps[2]),
                ),
            )
        )
    return tuple(result)


def _convolutions(shape: ConvShape, op: str) -> tuple[Convolution, ...]:
    return (forward_convolution(shape),) if op == "forward" else input_grad_convolutions(shape)


def _room(shape: ConvShape) -> Any:
    """The module that computes a `Convolution` of arrays in the shape's layout."""
    return channels_last if shape.layout == "NHWC" else implicit_gemm


def _weight_room(shape: ConvShape) -> tuple[Any, Any]:
    """The module that computes a weight gradient of arrays in the shape's layout, and what it is told."""
    if shape.layout == "NHWC":
        return channels_last_gradient, forward_convolution(shape)
    return weight_gradient, as_row(shape)


class Gemm(Algorithm):
    name = "gemm"
    summary = "implicit GEMM: windows packed tile by tile, multiplied in registers"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if DISABLED:
            return "it needs the compiler, which NUMBA_DISABLE_JIT turns off"
        if not shape.is_empty and self._scratch_bytes(shape, dtype, op) > SCRATCH_BYTES:
            return f"a block of a kernel this large needs more than {SCRATCH_BYTES >> 20} MiB a thread"
        return None

    def drawback(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        # measured on 2 cores with 1 and 3 input channels: im2col took 0.2 to 0.5 of the time
        if op == "input_grad" and shape.groups == 1 and shape.group_in <= ROWS // 2:
            return f"it would compute {ROWS} input channels where there are {shape.group_in}"
        return None

    def _scratch_bytes(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        """Most scratch memory that a task may need."""
        if op == "weight_grad":
            room, geometry = _weight_room(shape)
            scratch_bytes: int = room.cut(geometry, dtype.itemsize).scratch_bytes
            return scratch_bytes
        if shape.layout == "NHWC":
            sizes = [channels_last.cut(conv, dtype, 1).scratch_bytes for conv in _convolutions(shape, op)]
        else:
            cuts = (implicit_gemm.cut(conv, dtype.itemsize, 1) for conv in _convolutions(shape, op))
            sizes = [blocks.scratch_bytes for blocks in cuts]
        return max(sizes, default=0)

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if shape.is_empty:
            return 0
        if op == "weight_grad":
            room, geometry = _weight_room(shape)
            workspace_bytes: int = room.workspace_bytes(geometry, dtype)
            return workspace_bytes
        room = _room(shape)
        return max((room.workspace_bytes(conv, dtype) for conv in _convolutions(shape, op)), default=0)

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        if shape.is_empty:
            return {}
        lanes = LANES[8 * dtype.itemsize]
        tile = f"{VECTORS} vectors of {lanes}"
        if op == "weight_grad":
            room, geometry = _weight_room(shape)
            blocks = room.cut(geometry, dtype.itemsize)
            names = ("kernel cells", "output channels")
            exchanged = shape.layout == "NCHW" and blocks.exchanged
            rows, columns = names[::-1] if exchanged else names
            return {
                "tile": f"{ROWS} {rows} x {VECTORS * lanes} {columns} ({tile})",
                "chunk": blocks.chunk,
                "segments": f"{blocks.segments}, added in order",
            }
        convolutions = _convolutions(shape, op)
        if not convolutions:  # a gradient of nothing but cells that no window reads
            return {}
        conv = max(convolutions, key=lambda conv: conv.flops)
        phases = {"phases": f"{len(convolutions)} of the stride"} if len(convolutions) > 1 else {}
        if shape.layout == "NHWC":
            parts = channels_last.cut(conv, dtype, implicit_gemm.tasks_of(conv))
            return {
                "tile": f"{ROWS} pixels x {VECTORS * lanes} channels ({tile})",
                "block": f"{parts.taps} kernel cells x {parts.channels} channels x {parts.tiles} tiles, "
                "x found by a table",
                "tasks": f"{parts.pixel_tasks} over pixels x {parts.panel_tasks} over output channels",
                **phases,
            }
        cut = implicit_gemm.cut(conv, dtype.itemsize, implicit_gemm.tasks_of(conv))
        return {
            "tile": f"{ROWS} channels x {VECTORS * lanes} pixels ({tile})",
            "block": f"{cut.channels} channels x {conv.taps} cells x {cut.pixels} pixels, packed"
            + (" straight from the array" if cut.direct else ""),
            "tasks": f"{cut.pixel_tasks} over pixels x {cut.panel_tasks} over output channels",
            **phases,
        }

    def packing(self, shape: ConvShape, dtype: np.dtype) -> Packing:
        conv = forward_convolution(shape)
        return channels_last.columns_of(conv, dtype) if shape.layout == "NHWC" else conv.packing(dtype)

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, packed: bool = False
    ) -> Bound:
        conv = forward_convolution(shape)
        run: channels_last.Run | implicit_gemm.Run
        if shape.layout == "NHWC":
            run = channels_last.prepare(conv, dtype, relu, tasks_of(conv), packed)
        else:
            run = prepare(conv, dtype, has_bias, relu, tasks_of(conv), packed)
        return run.run_packed if packed else run.run

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        self.bind_gradient(shape, out.dtype, "input_grad")(grad_output, weight, out)

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        self.bind_gradient(shape, out.dtype, "weight_grad")(grad_output, x, out)

    def bind_gradient(self, shape: ConvShape, dtype: np.dtype, op: str) -> BoundGradient:
        if op == "weight_grad":
            room, geometry = _weight_room(shape)
            weight_gradient: BoundGradient = room.bind(geometry, dtype)
            return weight_gradient
        convolutions = input_grad_convolutions(shape)
        room = _room(shape)
        runs = [room.bind(conv, dtype) for conv in convolutions]
        whole = sum(conv.pixels for conv in convolutions) == prod(as_row(shape).input)

        def input_gradient(grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
            if not whole:
                out.fill(0)
            for run in runs:
                run(grad_output, weight, None, out)

        return input_gradient
