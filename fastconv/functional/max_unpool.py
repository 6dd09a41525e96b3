"""Unpooling, the partial inverse of max pooling, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.algorithms import pool_indices
from fastconv.arguments import (
    Ints,
    Padding,
    canonical,
    check_layout,
    check_size,
    padding_pairs,
    per_axis,
    unpool_output,
)
from fastconv.functional.arrays import (
    check_indices,
    check_shape,
    empty,
    index_array,
    lift_like_x,
    real_arrays,
)
from fastconv.functional.narrow import widens
from fastconv.shapes import array_shape, join_shape

__all__ = [
    "max_unpool1d",
    "max_unpool1d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "max_unpool3d",
    "max_unpool3d_backward",
]


def max_unpool1d(
    x: np.ndarray,
    indices: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    output_size: Sequence[int] | None = None,
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Partial inverse of `max_pool1d` for signals x (N, C, L): see `max_unpool2d`."""
    facts = (kernel_size, stride, padding, output_size, layout)
    return _forward("max_unpool1d", 1, x, indices, facts)


def max_unpool2d(
    x: np.ndarray,
    indices: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    output_size: Sequence[int] | None = None,
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Put each cell where the pooling found it: the partial inverse of `max_pool2d`, 0 elsewhere.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W); with ``layout="NHWC"`` channels last
        As returned by `max_pool2d`; float32 or float64.
    indices : ndarray of any integer dtype, the shape of x
        Flat positions in the (P, Q) plane of y, as returned by `max_pool2d`. Where several name one cell, the
        last in row-major order is there.
    kernel_size, stride, padding
        As given to `max_pool2d`; padding in numbers.
    output_size : sequence of int, optional
        The size (P, Q) of what was pooled, or its whole shape: pooling gives one size for several.
        Each may differ from the default by less than the stride.
    layout : "NCHW" or "NHWC"

    Returns
    -------
    y : ndarray, (N, C, P, Q)
        Unless `output_size` says otherwise P = (H - 1) * stride - pad_before - pad_after + R.

    Raises
    ------
    ValueError
        Shapes or sizes that do not fit together, or an index outside the plane.
    TypeError
        x not float32 or float64, or `indices` not integers.

    Notes
    -----
    Names and order of the arguments are those of ``torch.nn.functional.max_unpool2d``.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[[1.0, 2], [4, 3]]]])
    >>> y, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    >>> max_unpool2d(y, indices, 2)
    array([[[[0., 0.],
             [4., 0.]]]])
    """
    facts = (kernel_size, stride, padding, output_size, layout)
    return _forward("max_unpool2d", 2, x, indices, facts)


def max_unpool3d(
    x: np.ndarray,
    indices: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    output_size: Sequence[int] | None = None,
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Partial inverse of `max_pool3d` for volumes x (N, C, D, H, W): see `max_unpool2d`."""
    facts = (kernel_size, stride, padding, output_size, layout)
    return _forward("max_unpool3d", 3, x, indices, facts)


def max_unpool1d_backward(
    grad_output: np.ndarray,
    indices: np.ndarray,
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Gradient of `max_unpool1d` with respect to x: see `max_unpool2d_backward`."""
    return _backward("max_unpool1d_backward", 1, grad_output, indices, layout)


def max_unpool2d_backward(
    grad_output: np.ndarray,
    indices: np.ndarray,
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Gradient of `max_unpool2d` with respect to x: that of the cell where each one was put.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
        float32 or float64.
    indices : ndarray of any integer dtype, the shape of x
        As given to `max_unpool2d`.
    layout : "NCHW" or "NHWC"

    Returns
    -------
    grad_x : ndarray of the shape of `indices`
        Where several indices name one cell each has its gradient, as in torch.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not belong together, an index outside the plane, or a wrong dtype.

    Examples
    --------
    >>> import numpy as np
    >>> max_unpool2d_backward(np.array([[[[1.0, 2], [3, 4]]]]), np.array([[[[2]]]]))
    array([[[[3.]]]])
    """
    return _backward("max_unpool2d_backward", 2, grad_output, indices, layout)


def max_unpool3d_backward(
    grad_output: np.ndarray,
    indices: np.ndarray,
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Gradient of `max_unpool3d` with respect to x: see `max_unpool2d_backward`."""
    return _backward("max_unpool3d_backward", 3, grad_output, indices, layout)


def _y_shape(function: str, rank: int, x_shape: tuple[int, ...], facts: tuple[Any, ...]) -> tuple[int, ...]:
    kernel_size, stride, padding, output_size, layout = map(canonical, facts)
    check_layout(function, layout)
    x = array_shape(function, "x", x_shape, rank, layout)
    kernel = per_axis(function, "kernel_size", kernel_size, rank)
    strides = kernel if stride is None else per_axis(function, "stride", stride, rank)
    if padding in ("same", "same_lower"):
        raise ValueError(f"{function}: padding = {padding!r} is not defined here; give numbers")
    pads = padding_pairs(function, padding, x.spatial, kernel, strides, (1,) * rank)
    if isinstance(output_size, tuple) and len(output_size) == len(x_shape):  # a whole shape
        whole = array_shape(function, "output_size", output_size, rank, layout)
        if (whole.batch, whole.channels) != (x.batch, x.channels):
            raise ValueError(
                f"{function}: output_size must agree with x in batch and channels, got {output_size}, "
                f"x.shape = {x_shape}"
            )
        output_size = whole.spatial
    output = unpool_output(function, output_size, x_shape, x.spatial, kernel, strides, pads)
    shape = join_shape(layout, x.batched, x.batch, x.channels, output)
    check_size(function, "the output", shape)
    return shape


@widens
def _forward(
    function: str, rank: int, x: np.ndarray, indices: np.ndarray, facts: tuple[Any, ...]
) -> np.ndarray:
    dtype, (x,) = real_arrays(function, x=x)
    shape = _y_shape(function, rank, x.shape, facts)
    places = index_array(function, "indices", indices)
    check_shape(function, "indices", places, x.shape)
    y = empty(function, "the result", shape, dtype)
    if y.size and not pool_indices.max_unpool(*_lifted(function, rank, facts[-1], x, places, y)):
        _refuse(function, rank, facts[-1], indices, shape)
    return y


@widens
def _backward(
    function: str, rank: int, grad_output: np.ndarray, indices: np.ndarray, layout: str
) -> np.ndarray:
    check_layout(function, layout)
    dtype, (grad_output,) = real_arrays(function, grad_output=grad_output)
    places = index_array(function, "indices", indices)
    x = array_shape(function, "indices", places.shape, rank, layout)
    y = array_shape(function, "grad_output", grad_output.shape, rank, layout)
    if (x.batched, x.batch, x.channels) != (y.batched, y.batch, y.channels):
        raise ValueError(
            f"{function}: grad_output and indices must agree in batch and channels, got "
            f"grad_output.shape = {grad_output.shape}, indices.shape = {places.shape}"
        )
    grad_x = empty(function, "the result", places.shape, dtype)
    if grad_x.size and not (
        grad_output.size
        and pool_indices.max_unpool_backward(*_lifted(function, rank, layout, grad_output, places, grad_x))
    ):
        _refuse(function, rank, layout, indices, grad_output.shape)
    return grad_x


def _lifted(function: str, rank: int, layout: str, *arrays: np.ndarray) -> list[np.ndarray]:
    return [lift_like_x(function, "array", array, rank, layout) for array in arrays]


def _refuse(function: str, rank: int, layout: str, indices: np.ndarray, shape: tuple[int, ...]) -> None:
    """Say which indices are beyond the planes of an array of that shape."""
    cells = int(np.prod(array_shape(function, "y", shape, rank, layout).spatial))
    check_indices(function, "indices", indices, cells, "output")
