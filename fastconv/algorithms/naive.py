"""The reference loops as algorithms: slow, in float64, rounded once at the end."""

from __future__ import annotations

import numpy as np

from fastconv import reference
from fastconv.algorithms.base import Algorithm, PoolAlgorithm
from fastconv.algorithms.epilogue import finish, quiet
from fastconv.shapes import ConvShape, PoolShape


def _double(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float64)


def _widest(array: np.ndarray) -> np.ndarray:
    """The largest type of its kind, so that the loops are compiled for three instead of ten."""
    return np.ascontiguousarray(array, {"i": np.int64, "u": np.uint64}.get(array.dtype.kind, np.float64))


@quiet
class Naive(Algorithm):
    name = "naive"
    summary = "the loops of the definition, accumulating in float64: the reference"

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        x = shape.batch * shape.in_channels * int(np.prod(shape.input))
        y = shape.batch * shape.out_channels * shape.pixels
        weight = shape.out_channels * shape.group_in * shape.taps
        return 8 * (x + y + weight)

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        relu: bool,
        out: np.ndarray,
        shape: ConvShape,
    ) -> None:
        y = reference.conv(
            _double(x),
            _double(weight),
            shape.stride,
            shape.pad_before,
            shape.dilation,
            shape.groups,
            shape.output,
        )
        finish(y, None if bias is None else bias.reshape(-1, 1, 1, 1), relu)
        out[...] = y

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        out[...] = reference.conv_input_grad(
            _double(grad_output),
            _double(weight),
            shape.stride,
            shape.pad_before,
            shape.dilation,
            shape.groups,
            shape.input,
        )

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        out[...] = reference.conv_weight_grad(
            _double(grad_output),
            _double(x),
            shape.stride,
            shape.pad_before,
            shape.dilation,
            shape.groups,
            shape.kernel,
        )


@quiet
class NaivePool(PoolAlgorithm):
    name = "naive"
    summary = "the loops of the definition, averages accumulating in float64: the reference"

    def max_pool(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, shape: PoolShape) -> None:
        y, places = reference.max_pool(
            _widest(x), shape.kernel, shape.stride, shape.pad_before, shape.dilation, shape.output
        )
        out[...] = y
        if indices is not None:
            indices[...] = places

    def avg_pool(
        self, x: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
    ) -> None:
        out[...] = reference.avg_pool(
            _double(x),
            shape.kernel,
            shape.stride,
            shape.pad_before,
            shape.pad_after,
            shape.dilation,
            shape.output,
            count_padding,
            divisor,
        )

    def avg_pool_backward(
        self,
        grad_output: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        count_padding: bool,
        divisor: int,
    ) -> None:
        out[...] = reference.avg_pool_backward(
            _double(grad_output),
            shape.kernel,
            shape.stride,
            shape.pad_before,
            shape.pad_after,
            shape.dilation,
            shape.input,
            count_padding,
            divisor,
        )

    def lp_pool(self, x: np.ndarray, out: np.ndarray, shape: PoolShape, norm: float) -> None:
        with np.errstate(all="ignore"):
            out[...] = reference.lp_pool(
                _double(x),
                norm,
                shape.kernel,
                shape.stride,
                shape.pad_before,
                shape.pad_after,
                shape.dilation,
                shape.output,
            )

    def lp_pool_backward(
        self,
        grad_output: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        norm: float,
    ) -> None:
        with np.errstate(all="ignore"):
            out[...] = reference.lp_pool_backward(
                _double(grad_output),
                _double(x),
                _double(y),
                norm,
                shape.kernel,
                shape.stride,
                shape.pad_before,
                shape.pad_after,
                shape.dilation,
            )
