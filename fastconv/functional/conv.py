"""Convolution and its gradients.

Every function goes the same way: check and normalise the arguments, look up the geometry, find the
algorithm, allocate the result, run. The functions for one, two and three dimensions differ in their rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv.algorithms.bias_gradient import bias_gradient
from fastconv.arguments import Ints, Padding, check_choice
from fastconv.functional import bound, run
from fastconv.functional.arrays import Output, check_shape, real_arrays
from fastconv.functional.narrow import widens
from fastconv.functional.packed_weight import PackedWeight
from fastconv.functional.padding import Border

__all__ = [
    "ConvGrads",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv3d",
    "conv3d_backward",
]


class ConvGrads(NamedTuple):
    """Gradients of a convolution, as a named tuple.

    Attributes
    ----------
    x, weight, bias : ndarray or None
        Each of the shape of what it is the gradient of; None where it was not needed.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    >>> grads = conv2d_backward(np.ones((1, 1, 2, 2)), x, weight, needs=(False, True, True))
    >>> grads.x is None, grads.weight.shape, grads.bias
    (True, (1, 1, 2, 2), array([4.]))
    """

    x: np.ndarray | None
    weight: np.ndarray | None
    bias: np.ndarray | None


# --- convolution --------------------------------------------------------------------------------


def conv1d(
    x: np.ndarray,
    weight: np.ndarray | PackedWeight,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolution of signals x (N, C, L) with weight (K, C // groups, R): see `conv2d`.

    >>> import numpy as np
    >>> conv1d(np.ones((2, 3, 16)), np.ones((4, 3, 5)), padding="same").shape
    (2, 4, 16)
    """
    args = (stride, padding, dilation, groups, padding_mode, activation, layout, algorithm, out)
    return _forward("conv1d", 1, x, weight, bias, *args)


def conv2d(
    x: np.ndarray,
    weight: np.ndarray | PackedWeight,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolution of images, as neural networks define it: cross-correlation, without a flip.

    With c over the channels of k's group, and x zero outside its borders::

        y[n, k, i, j] = bias[k] + sum over c, r, s of
            x[n, c, i * stride - pad + r * dilation, j * stride - pad + s * dilation] * weight[k, c, r, s]

    Parameters
    ----------
    x : ndarray, (N, C, H, W), or (C, H, W) for one image
        float32 or float64, any memory order. With ``layout="NHWC"``: (N, H, W, C). Arrays of float16 or of
        ml_dtypes' bfloat16 are computed in float32, here and everywhere, and so is y rounded once.
    weight : ndarray, (K, C // groups, R, S), or a `PackedWeight`
        The dtype of x. With ``layout="NHWC"``: (R, S, C // groups, K).
    bias : ndarray, (K,), optional
    stride, dilation : int or one int per spatial axis
    padding : int, one int per axis, one (before, after) pair per axis, or str
        "valid" is 0; "same" gives y the size ceil(in / stride) with the odd cell at the end, "same_lower"
        at the start.
    groups : int
        Channels are cut into this many groups that do not see each other.
    padding_mode : "zeros", "reflect", "replicate" or "circular"
        What lies beyond the borders.
    activation : None or "relu"
        Applied to the result.
    layout : "NCHW" or "NHWC"
        Where the channels are, in x, weight and y.
    algorithm : str
        A key of `fastconv.ALGORITHMS`.
    out : ndarray, optional
        Where to write y.

    Returns
    -------
    y : ndarray, (N, K, P, Q), or (N, P, Q, K) with ``layout="NHWC"``
        P = (H + pad_before + pad_after - dilation * (R - 1) - 1) // stride + 1, and so Q.

    Raises
    ------
    ValueError
        Shapes or values that do not fit together; an algorithm that cannot do what is asked.
    TypeError
        Another dtype, several dtypes, something else than an array or an int.

    Notes
    -----
    Names and order of the arguments are those of ``torch.nn.functional.conv2d``.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((8, 3, 32, 32), np.float32)
    >>> weight = np.ones((10, 3, 5, 5), np.float32)
    >>> conv2d(x, weight).shape
    (8, 10, 28, 28)
    >>> conv2d(x, weight, stride=2, padding="same", activation="relu").shape
    (8, 10, 16, 16)
    """
    args = (stride, padding, dilation, groups, padding_mode, activation, layout, algorithm, out)
    return _forward("conv2d", 2, x, weight, bias, *args)


def conv3d(
    x: np.ndarray,
    weight: np.ndarray | PackedWeight,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolution of volumes x (N, C, D, H, W) with weight (K, C // groups, T, R, S): see `conv2d`.

    >>> import numpy as np
    >>> conv3d(np.ones((1, 2, 8, 8, 8)), np.ones((4, 2, 3, 3, 3)), padding=((0, 0), (1, 1), (1, 1))).shape
    (1, 4, 6, 8, 8)
    """
    args = (stride, padding, dilation, groups, padding_mode, activation, layout, algorithm, out)
    return _forward("conv3d", 3, x, weight, bias, *args)


def _forward(
    function: str,
    rank: int,
    x: np.ndarray,
    weight: np.ndarray | PackedWeight,
    bias: np.ndarray | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    activation: Any,
    layout: str,
    algorithm: str,
    out: np.ndarray | None,
) -> np.ndarray:
    if out is None and isinstance(padding_mode, str) and padding_mode == "zeros":
        y = bound.forward(
            rank, x, weight, bias, stride, padding, dilation, groups, activation, layout, algorithm
        )
        if y is not None:
            return y
    args = (stride, padding, dilation, groups, padding_mode, activation, layout, algorithm, out)
    return _checked_forward(function, rank, x, weight, bias, *args)


@widens
def _checked_forward(
    function: str,
    rank: int,
    x: np.ndarray,
    weight: np.ndarray | PackedWeight,
    bias: np.ndarray | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    activation: Any,
    layout: str,
    algorithm: str,
    out: np.ndarray | None,
) -> np.ndarray:
    """The way of whatever is not plain, has not been seen before, or is wrong."""
    check_choice(function, "activation", activation, (None, "relu"))
    packed = weight if isinstance(weight, PackedWeight) else None
    dtype, (x, plain, bias) = real_arrays(function, x=x, weight=weight, bias=bias)
    facts = (plain.shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x.shape, *facts)
    if bias is not None:
        check_shape(function, "bias", bias, (shape.out_channels,))
    result = Output(function, out, run.y_shape(shape, x.ndim), dtype, (x, plain, bias))
    x, shape = Border(function, padding_mode, shape, x.shape).pad(x)
    run.forward(function, x, plain, bias, activation == "relu", result.array, shape, algorithm, packed)
    return result.finish()


# --- gradients ----------------------------------------------------------------------------------


def conv1d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    needs: Sequence[bool] = (True, True, True),
) -> ConvGrads:
    """Gradients of `conv1d` with respect to x, weight and bias: see `conv2d_backward`."""
    args = (stride, padding, dilation, groups, padding_mode, layout, algorithm, needs)
    return _backward("conv1d_backward", 1, grad_output, x, weight, *args)


def conv2d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    needs: Sequence[bool] = (True, True, True),
) -> ConvGrads:
    """Gradients of `conv2d` with respect to x, weight and bias.

    With y = conv2d(x, weight, bias, ...) and a loss whose derivative by y is `grad_output`.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
    x, weight, stride, padding, dilation, groups, padding_mode, layout, algorithm
        As given to `conv2d`.
    needs : three bools
        Which of the gradients of x, weight and bias to compute.

    Returns
    -------
    ConvGrads
        A named tuple (x, weight, bias), each the shape of what it is the gradient of; None where not needed.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`; and if `grad_output` has not the shape of y.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3))
    >>> grads = conv2d_backward(np.ones((2, 4, 6, 6)), x, weight)
    >>> grads.x.shape, grads.weight.shape, grads.bias.shape
    ((2, 3, 8, 8), (4, 3, 3, 3), (4,))
    """
    args = (stride, padding, dilation, groups, padding_mode, layout, algorithm, needs)
    return _backward("conv2d_backward", 2, grad_output, x, weight, *args)


def conv3d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    algorithm: str = "auto",
    needs: Sequence[bool] = (True, True, True),
) -> ConvGrads:
    """Gradients of `conv3d` with respect to x, weight and bias: see `conv2d_backward`."""
    args = (stride, padding, dilation, groups, padding_mode, layout, algorithm, needs)
    return _backward("conv3d_backward", 3, grad_output, x, weight, *args)


@widens
def _backward(
    function: str,
    rank: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    layout: str,
    algorithm: str,
    needs: Sequence[bool],
) -> ConvGrads:
    need_x, need_weight, need_bias = run.check_needs(function, needs, algorithm)
    if isinstance(padding_mode, str) and padding_mode == "zeros":
        args = (stride, padding, dilation, groups, layout, algorithm, need_x, need_weight)
        grads = bound.gradients(rank, grad_output, x, weight, *args)
        if grads is not None:
            return ConvGrads(*grads, bias_gradient(grad_output, rank, layout) if need_bias else None)
    _, (grad_output, x, weight) = real_arrays(function, grad_output=grad_output, x=x, weight=weight)
    facts = (weight.shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x.shape, *facts)
    check_shape(function, "grad_output", grad_output, run.y_shape(shape, x.ndim))
    border = Border(function, padding_mode, shape, x.shape)
    x, shape = border.pad(x)
    grad_x = grad_weight = grad_bias = None
    if need_x:
        grad_x = run.input_grad(function, grad_output, weight, x.shape, shape, algorithm)
        grad_x = border.fold(grad_x)
    if need_weight:
        grad_weight = run.weight_grad(function, grad_output, x, weight.shape, shape, algorithm)
    if need_bias:
        grad_bias = bias_gradient(grad_output, rank, layout)
    return ConvGrads(grad_x, grad_weight, grad_bias)
