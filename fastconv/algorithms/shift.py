"""Convolution by shifts: small images that stay in cache, each kernel cell a shift of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from fastconv.algorithms.base import Algorithm, Bound
from fastconv.algorithms.gemm import Gemm
from fastconv.algorithms.images import (
    PLAIN,
    Whole,
    backward_places,
    convolve,
    form_of,
    forward_places,
    gradients,
    layout,
    prepare_backward,
    prepare_forward,
    segments_of,
)
from fastconv.jit import DISABLED
from fastconv.kernels.simd import LANES
from fastconv.shapes import ConvShape
from fastconv.threads import task_count

#: Most scratch memory of a task: it stays in L2.
SCRATCH_BYTES = 640 << 10
#: "auto" wants images enough for the threads to share, whatever their number.
LEAST_IMAGES = 8
#: And cells of y, gaps included, enough for the sums of the weight gradient.
LEAST_CELLS = 256
#: And, forward and for the gradient of x, this share of the lanes computing cells of the result.
LEAST_USE = 0.85


class Shift(Algorithm):
    name = "shift"
    summary = "whole padded images in cache, every kernel cell a shift"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if DISABLED:
            return "it needs the compiler, which NUMBA_DISABLE_JIT turns off"
        if shape.layout != "NCHW":
            return "it reads channels-first arrays only"
        if shape.stride != (1, 1, 1):
            return "it takes steps of 1 only"
        if shape.groups != 1:
            return "it knows no groups"
        if shape.input[0] != 1 or shape.kernel[0] != 1 or shape.output[0] != 1:
            return "it knows two spatial axes"
        if 0 in (shape.batch, shape.in_channels, shape.out_channels, *shape.input, *shape.output):
            return None
        reach = [(k - 1) * d for k, d in zip(shape.kernel, shape.dilation, strict=True)]
        if op != "forward" and any(p > r for p, r in zip(shape.pad_before, reach, strict=True)):
            return "windows that lie wholly in the padding have no gradient of x that is a convolution"
        if self._scratch_bytes(shape, dtype, op) > SCRATCH_BYTES:
            return f"an image needs more than {SCRATCH_BYTES >> 10} KiB a thread"
        return None

    def drawback(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if shape.batch < LEAST_IMAGES:
            return f"threads share whole images, and there are fewer than {LEAST_IMAGES}"
        if shape.is_pointwise:
            return "a single kernel cell needs no shifts"
        if 0 in (shape.batch, shape.in_channels, shape.out_channels, *shape.input, *shape.output):
            return None
        # measured on 2 cores, time of gemm's: 28 x 28 images 0.5 to 0.8, 14 x 14 1.0, 7 x 7 3.0
        if op == "weight_grad" and layout(shape, dtype.itemsize).x_cells < LEAST_CELLS:
            return f"an image of fewer than {LEAST_CELLS} cells makes its sums too short"
        # time of gemm's: 12 x 12 cells to 10 x 10, where 78 of 100 lanes are of use, 1.2; 28 x 28, 0.8
        if op != "weight_grad" and self._use_of_lanes(shape, dtype, op) < LEAST_USE:
            return "too many lanes compute what lies between the rows"
        # 32 channels from one: 1.1, whereas 8 from one are 0.6
        if op == "forward" and shape.in_channels * shape.taps < 16 < shape.out_channels:
            return "copying so many channels takes as long as their few sums"
        return None

    def _use_of_lanes(self, shape: ConvShape, dtype: np.dtype, op: str) -> float:
        """The share of what is computed that gets stored."""
        cells, lanes = layout(shape, dtype.itemsize), LANES[8 * dtype.itemsize]
        flat, size = (cells.x_cells, shape.output) if op == "forward" else (cells.g_cells, shape.input)
        return prod(size) / (-(-flat // lanes) * lanes)

    def _scratch_bytes(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if op == "forward":
            return forward_places(shape, dtype.itemsize)[-1]
        sums = op == "weight_grad"
        return backward_places(shape, dtype.itemsize, sums, not sums)[-1]

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if shape.flops == 0:
            return 0
        segments = segments_of(shape, dtype.itemsize)
        if op == "forward":
            tasks = task_count(shape.flops // 2, shape.batch)
            return prepare_forward(shape, dtype, True, False, False, tasks).scratch_bytes
        wants = (op == "weight_grad", False, op == "input_grad")
        tasks = task_count(shape.flops // 2, segments)
        return prepare_backward(shape, dtype, PLAIN, wants, segments, tasks).scratch_bytes

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        if shape.flops == 0:
            return {}
        return {
            "image": f"{self._scratch_bytes(shape, dtype, op) >> 10} KiB in cache, "
            f"rows {layout(shape, dtype.itemsize).pitch} cells apart"
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
        convolve(x, weight, bias, relu, False, out, None, shape)

    def packing(self, shape: ConvShape, dtype: np.dtype) -> Whole:
        return form_of(shape, dtype)

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, packed: bool = False
    ) -> Bound:
        tasks = task_count(shape.flops // 2, shape.batch)
        run = prepare_forward(shape, dtype, has_bias, relu, False, tasks)
        return run.run_packed if packed else run.run

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        gradients(grad_output, grad_output, weight, shape, grad_x=out)

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        if not gradients(grad_output, x, out, shape, grad_weight=out):
            Gemm().weight_grad(grad_output, x, out, shape)
