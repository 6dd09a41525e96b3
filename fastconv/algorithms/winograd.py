"""Winograd's minimal filtering: 3 x 3 kernels with 36 products for 16 outputs instead of 144."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastconv.algorithms import winograd_blocks
from fastconv.algorithms.base import Algorithm, Bound
from fastconv.algorithms.gemm import forward_convolution, input_grad_convolutions
from fastconv.algorithms.implicit_gemm import Convolution
from fastconv.algorithms.winograd_blocks import Tiling, prepare, tasks_of
from fastconv.jit import DISABLED
from fastconv.kernels.microkernel import VECTORS
from fastconv.kernels.simd import LANES
from fastconv.precision import get_float32_precision
from fastconv.shapes import ConvShape

#: Most scratch memory of a task.
SCRATCH_BYTES = 16 << 20


def _convolution(shape: ConvShape, op: str) -> Convolution:
    if op == "forward":
        return forward_convolution(shape)
    (conv,) = input_grad_convolutions(shape)  # one for each phase of the stride
    return conv


def tiling_of(shape: ConvShape, dtype: np.dtype, op: str) -> Tiling:
    """The convolution and the size of its tiles."""
    return Tiling(_convolution(shape, op), 4)


def _is_empty(shape: ConvShape) -> bool:
    """Whether there is nothing to compute."""
    return 0 in (shape.batch, shape.in_channels, shape.out_channels, *shape.input)


class Winograd(Algorithm):
    name = "winograd"
    summary = "minimal filtering: tiles and kernels transformed, multiplied point by point"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if DISABLED:
            return "it needs the compiler, which NUMBA_DISABLE_JIT turns off"
        if get_float32_precision() == "highest":
            return 'it rounds more than set_float32_precision("highest") allows'
        if op == "weight_grad":
            return "it is made for small kernels, and here grad_output would be the kernel"
        if shape.layout != "NCHW":
            return "it reads channels-first arrays only"
        if shape.kernel != (1, 3, 3):
            return "it is made for kernels of 3 x 3 cells"
        if shape.stride != (1, 1, 1) or shape.dilation[1:] != (1, 1):
            return "it is made for stride 1 and dilation 1"
        if shape.pad_before[0] or shape.pad_after[0]:
            return "it pads height and width only"
        if not _is_empty(shape):
            blocks = winograd_blocks.cut(tiling_of(shape, dtype, op), dtype.itemsize, 1)
            if blocks.scratch_bytes > SCRATCH_BYTES:
                return f"so many channels need more than {SCRATCH_BYTES >> 20} MiB a thread"
        return None

    def drawback(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        return None

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if _is_empty(shape):
            return 0
        tiling = tiling_of(shape, dtype, op)
        return prepare(tiling, dtype, False, tasks_of(tiling)).workspace_bytes

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        return {}

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        relu: bool,
        out: np.ndarray,
        shape: ConvShape,
    ) -> None:
        self.bind(shape, x.dtype, bias is not None, relu)(x, weight, bias, out)

    def bind(self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool) -> Bound:
        tiling = tiling_of(shape, dtype, "forward")
        return prepare(tiling, dtype, relu, tasks_of(tiling)).run

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        tiling = tiling_of(shape, out.dtype, "input_grad")
        prepare(tiling, out.dtype, False, tasks_of(tiling)).run(grad_output, weight, None, out)

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        raise NotImplementedError
