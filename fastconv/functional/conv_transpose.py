"""Transposed convolution: the input gradient of a convolution, as a layer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.algorithms.bias_gradient import bias_gradient
from fastconv.algorithms.epilogue import finish, quietly
from fastconv.arguments import Ints, Padding, canonical
from fastconv.functional import run
from fastconv.functional.arrays import check_shape, empty, real_arrays
from fastconv.functional.conv import ConvGrads
from fastconv.functional.narrow import widens
from fastconv.shapes import ConvShape, conv_transpose_shape, drop, join_shape

__all__ = [
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
]


def conv_transpose1d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Transposed convolution of x (N, C, L) with weight (C, K // groups, R): see `conv_transpose2d`."""
    args = (stride, padding, output_padding, groups, dilation, layout, algorithm)
    return _forward("conv_transpose1d", 1, x, weight, bias, *args)


def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Transposed convolution: every cell of x puts a copy of the kernel, times its value, into y.

    It is the input gradient of a `conv2d` with the same weight, and upsamples by `stride`.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W); with ``layout="NHWC"`` channels last
    weight : ndarray, (C, K // groups, R, S); with ``layout="NHWC"`` (R, S, K // groups, C)
    bias : ndarray, (K,), optional
    stride, dilation, padding, groups, layout, algorithm
        Of that convolution, as in `conv2d`; padding takes numbers only, and makes y smaller.
    output_padding : int or one int per spatial axis
        Cells added at the end of y, fewer than the stride or the dilation.

    Returns
    -------
    y : ndarray, (N, K, P, Q)
        P = (H - 1) * stride - pad_before - pad_after + dilation * (R - 1) + output_padding + 1.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Notes
    -----
    Names, order and weight shape are those of ``torch.nn.functional.conv_transpose2d``.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight = np.ones((2, 8, 7, 7)), np.ones((8, 4, 3, 3))
    >>> conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1).shape
    (2, 4, 14, 14)
    """
    args = (stride, padding, output_padding, groups, dilation, layout, algorithm)
    return _forward("conv_transpose2d", 2, x, weight, bias, *args)


def conv_transpose3d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Transposed convolution of x (N, C, D, H, W): see `conv_transpose2d`."""
    args = (stride, padding, output_padding, groups, dilation, layout, algorithm)
    return _forward("conv_transpose3d", 3, x, weight, bias, *args)


def conv_transpose1d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    needs: Sequence[bool] = (True, True, True),
) -> ConvGrads:
    """Gradients of `conv_transpose1d`: see `conv_transpose2d_backward`."""
    args = (stride, padding, output_padding, groups, dilation, layout, algorithm, needs)
    return _backward("conv_transpose1d_backward", 1, grad_output, x, weight, *args)


def conv_transpose2d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    needs: Sequence[bool] = (True, True, True),
) -> ConvGrads:
    """Gradients of `conv_transpose2d` with respect to x, weight and bias.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
    x, weight, stride, padding, output_padding, groups, dilation, layout, algorithm
        As given to `conv_transpose2d`.
    needs : three bools
        Which of the gradients of x, weight and bias to compute.

    Returns
    -------
    ConvGrads
        A named tuple (x, weight, bias); None where not needed.

    Raises
    ------
    ValueError, TypeError
        As `conv_transpose2d`; and if `grad_output` has not the shape of y.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight = np.ones((2, 8, 7, 7)), np.ones((8, 4, 3, 3))
    >>> grads = conv_transpose2d_backward(np.ones((2, 4, 9, 9)), x, weight)
    >>> grads.x.shape, grads.weight.shape, grads.bias.shape
    ((2, 8, 7, 7), (8, 4, 3, 3), (4,))
    """
    args = (stride, padding, output_padding, groups, dilation, layout, algorithm, needs)
    return _backward("conv_transpose2d_backward", 2, grad_output, x, weight, *args)


def conv_transpose3d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    needs: Sequence[bool] = (True, True, True),
) -> ConvGrads:
    """Gradients of `conv_transpose3d`: see `conv_transpose2d_backward`."""
    args = (stride, padding, output_padding, groups, dilation, layout, algorithm, needs)
    return _backward("conv_transpose3d_backward", 3, grad_output, x, weight, *args)


@widens
@quietly
def _forward(
    function: str,
    rank: int,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    layout: str,
    algorithm: str,
) -> np.ndarray:
    _, (x, weight, bias) = real_arrays(function, x=x, weight=weight, bias=bias)
    facts = (stride, padding, output_padding, groups, dilation, layout)
    shape = _geometry(function, rank, x, weight, *facts)
    if bias is not None:
        check_shape(function, "bias", bias, (shape.in_channels,))
    y = run.input_grad(function, x, weight, _y_shape(shape, x.ndim), shape, algorithm)
    if bias is not None:
        finish(y, bias.reshape((-1,) + (1,) * rank) if layout == "NCHW" else bias, relu=False)
    return y


@widens
def _backward(
    function: str,
    rank: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    layout: str,
    algorithm: str,
    needs: Sequence[bool],
) -> ConvGrads:
    need_x, need_weight, need_bias = run.check_needs(function, needs, algorithm)
    dtype, (grad_output, x, weight) = real_arrays(function, grad_output=grad_output, x=x, weight=weight)
    facts = (stride, padding, output_padding, groups, dilation, layout)
    shape = _geometry(function, rank, x, weight, *facts)
    check_shape(function, "grad_output", grad_output, _y_shape(shape, x.ndim))
    grad_x = grad_weight = grad_bias = None
    if need_x:
        # the adjoint of the adjoint: the convolution itself
        grad_x = empty(function, "grad_x", x.shape, dtype)
        run.forward(function, grad_output, weight, None, False, grad_x, shape, algorithm)
    if need_weight:
        grad_weight = run.weight_grad(function, x, grad_output, weight.shape, shape, algorithm)
    if need_bias:
        grad_bias = bias_gradient(grad_output, rank, layout)
    return ConvGrads(grad_x, grad_weight, grad_bias)


def _geometry(
    function: str,
    rank: int,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    layout: Any,
) -> ConvShape:
    """The convolution whose input gradient this is: its output is x, its input y."""
    return conv_transpose_shape(
        function,
        rank,
        x.shape,
        weight.shape,
        canonical(stride),
        canonical(padding),
        canonical(output_padding),
        canonical(groups),
        canonical(dilation),
        canonical(layout),
    )


def _y_shape(shape: ConvShape, ndim: int) -> tuple[int, ...]:
    batched = ndim == shape.rank + 2
    size = drop(shape.input, shape.rank)
    return join_shape(shape.layout, batched, shape.batch, shape.in_channels, size)
