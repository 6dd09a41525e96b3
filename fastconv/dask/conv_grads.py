"""Gradients of convolutions of dask arrays: of x chunk by chunk, of weight and bias as sums over chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.array as da

from fastconv.arguments import Ints, Padding, shape_argument
from fastconv.dask.arrays import axes_of_array, chunked, data_array, like, native, parameter, real_dtype
from fastconv.dask.axes import axes_of
from fastconv.dask.conv import border_mode
from fastconv.dask.gradients import Convolution
from fastconv.functional import run
from fastconv.functional.arrays import check_shape
from fastconv.functional.padding import Border

__all__ = [
    "ConvGrads",
    "conv1d_backward",
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d_backward",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d_backward",
    "conv3d_input_grad",
    "conv3d_weight_grad",
]


class ConvGrads(NamedTuple):
    """Gradients of a convolution; None where not needed."""

    x: da.Array | None
    weight: da.Array | None
    bias: da.Array | None


def conv1d_backward(
    grad_output: da.Array,
    x: da.Array,
    weight: Any,
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
    grad_output: da.Array,
    x: da.Array,
    weight: Any,
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
    """Gradients of `conv2d` with respect to x, weight and bias: `fastconv.conv2d_backward` of dask arrays.

    Parameters
    ----------
    grad_output : dask.array.Array, the shape of y
        In any chunks; along the batch it is brought into those of x.
    x, weight, stride, padding, dilation, groups, padding_mode, layout, algorithm
        As given to `conv2d`.
    needs : three bools
        Which of the gradients of x, weight and bias to compute.

    Returns
    -------
    ConvGrads
        A named tuple (x, weight, bias) of dask arrays; None where not needed. That of x has the chunks of x,
        the others have one. They are sums over all chunks of `grad_output` in a fixed order, as a tree: the
        same bits whatever runs where and when.

    Raises
    ------
    ValueError, TypeError
        As `fastconv.conv2d_backward`, at once.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> x, weight = da.ones((2, 3, 8, 8), chunks=(1, 3, 4, 8)), np.ones((4, 3, 3, 3))
    >>> grads = conv2d_backward(da.ones((2, 4, 6, 6)), x, weight)
    >>> grads.x.chunks == x.chunks, grads.weight.shape, grads.bias.compute()
    (True, (4, 3, 3, 3), array([72., 72., 72., 72.]))
    """
    args = (stride, padding, dilation, groups, padding_mode, layout, algorithm, needs)
    return _backward("conv2d_backward", 2, grad_output, x, weight, *args)


def conv3d_backward(
    grad_output: da.Array,
    x: da.Array,
    weight: Any,
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


def conv1d_input_grad(
    grad_output: da.Array,
    weight: Any,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Gradient of `conv1d` with respect to x: see `conv2d_input_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _input_grad("conv1d_input_grad", 1, grad_output, weight, input_shape, *args)


def conv2d_input_grad(
    grad_output: da.Array,
    weight: Any,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Gradient of `conv2d` with respect to x: `fastconv.conv2d_input_grad` of dask arrays.

    Parameters
    ----------
    grad_output : dask.array.Array, the shape of y
    weight, stride, padding, dilation, groups, layout, algorithm
        As given to `conv2d`.
    input_shape : sequence of int
        The shape of x.

    Returns
    -------
    grad_x : dask.array.Array of shape `input_shape`
        A cell belongs to the chunk of the windows around it.

    Raises
    ------
    ValueError, TypeError
        As `fastconv.conv2d_input_grad`, at once.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> grad_output = da.ones((2, 4, 32, 32), chunks=(2, 4, 16, 16))
    >>> conv2d_input_grad(grad_output, np.ones((4, 3, 2, 2)), (2, 3, 64, 64), stride=2).chunksize
    (2, 3, 32, 32)
    """
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _input_grad("conv2d_input_grad", 2, grad_output, weight, input_shape, *args)


def conv3d_input_grad(
    grad_output: da.Array,
    weight: Any,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Gradient of `conv3d` with respect to x: see `conv2d_input_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _input_grad("conv3d_input_grad", 3, grad_output, weight, input_shape, *args)


def conv1d_weight_grad(
    grad_output: da.Array,
    x: da.Array,
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Gradient of `conv1d` with respect to weight: see `conv2d_weight_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _weight_grad("conv1d_weight_grad", 1, grad_output, x, weight_shape, *args)


def conv2d_weight_grad(
    grad_output: da.Array,
    x: da.Array,
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Gradient of `conv2d` with respect to weight: `fastconv.conv2d_weight_grad` of dask arrays.

    Parameters
    ----------
    grad_output : dask.array.Array, the shape of y
    x, stride, padding, dilation, groups, layout, algorithm
        As given to `conv2d`.
    weight_shape : sequence of int
        The shape of weight.

    Returns
    -------
    grad_weight : dask.array.Array of shape `weight_shape`, in one chunk
        A sum in a fixed order: see `conv2d_backward`.

    Raises
    ------
    ValueError, TypeError
        As `fastconv.conv2d_weight_grad`, at once.

    Examples
    --------
    >>> import dask.array as da
    >>> x, grad_output = (da.ones((2, c, 64, 64), chunks=(1, c, 32, 32)) for c in (3, 4))
    >>> conv2d_weight_grad(grad_output, x, (4, 3, 3, 3), padding=1).shape
    (4, 3, 3, 3)
    """
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _weight_grad("conv2d_weight_grad", 2, grad_output, x, weight_shape, *args)


def conv3d_weight_grad(
    grad_output: da.Array,
    x: da.Array,
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Gradient of `conv3d` with respect to weight: see `conv2d_weight_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _weight_grad("conv3d_weight_grad", 3, grad_output, x, weight_shape, *args)


def _backward(
    function: str,
    rank: int,
    grad_output: da.Array,
    x: da.Array,
    weight: Any,
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
    grad_output, x = data_array(function, "grad_output", grad_output), data_array(function, "x", x)
    dtype = real_dtype(function, grad_output=grad_output, x=x, weight=weight)
    facts = (weight.shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x.shape, *facts)
    check_shape(function, "grad_output", grad_output, run.y_shape(shape, x.ndim))
    border = Border(function, padding_mode, shape, x.shape)
    mode = border_mode(border, padding_mode)
    axes = axes_of_array(function, "x", x.shape, rank, layout)
    conv = Convolution(function, rank, shape, axes, mode, algorithm, dtype)
    x = chunked(native(x, dtype), axes)
    grad_output = like(native(grad_output, dtype), x, axes)
    grad_x = grad_weight = grad_bias = None
    if need_x:
        spatial = [x.chunks[n] for n in axes.space]
        grad_x = conv.input_grad(grad_output, parameter(weight, dtype), border, spatial)
    if need_weight:
        grad_weight = conv.weight_grad(grad_output, x, weight.shape)
    if need_bias:
        grad_bias = conv.bias_grad(grad_output)
    return ConvGrads(grad_x, grad_weight, grad_bias)


def _input_grad(
    function: str,
    rank: int,
    grad_output: da.Array,
    weight: Any,
    input_shape: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: str,
    algorithm: str,
) -> da.Array:
    grad_output = data_array(function, "grad_output", grad_output)
    dtype = real_dtype(function, grad_output=grad_output, weight=weight)
    x_shape = shape_argument(function, "input_shape", input_shape)
    facts = (weight.shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x_shape, *facts)
    check_shape(function, "grad_output", grad_output, run.y_shape(shape, len(x_shape)))
    axes = axes_of_array(function, "x", x_shape, rank, layout)
    grad_output = chunked(native(grad_output, dtype), axes)
    conv = Convolution(function, rank, shape, axes, "zeros", algorithm, dtype)
    spatial = [
        axis.input_chunks(grad_output.chunks[n]) for axis, n in zip(axes_of(shape), axes.space, strict=True)
    ]
    border = Border(function, "zeros", shape, x_shape)
    return conv.input_grad(grad_output, parameter(weight, dtype), border, spatial)


def _weight_grad(
    function: str,
    rank: int,
    grad_output: da.Array,
    x: da.Array,
    weight_shape: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: str,
    algorithm: str,
) -> da.Array:
    grad_output, x = data_array(function, "grad_output", grad_output), data_array(function, "x", x)
    dtype = real_dtype(function, grad_output=grad_output, x=x)
    w_shape = shape_argument(function, "weight_shape", weight_shape)
    facts = (w_shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x.shape, *facts)
    check_shape(function, "grad_output", grad_output, run.y_shape(shape, x.ndim))
    axes = axes_of_array(function, "x", x.shape, rank, layout)
    x = chunked(native(x, dtype), axes)
    grad_output = like(native(grad_output, dtype), x, axes)
    conv = Convolution(function, rank, shape, axes, "zeros", algorithm, dtype)
    return conv.weight_grad(grad_output, x, w_shape)
