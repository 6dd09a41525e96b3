"""Max pooling and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np

from fastconv.algorithms import pool_indices
from fastconv.arguments import Ints, Padding, check_layout, check_size, shape_argument
from fastconv.functional import windows
from fastconv.functional.arrays import (
    Output,
    check_indices,
    check_shape,
    empty,
    index_array,
    lift_like_x,
    ordered_array,
    real_arrays,
)
from fastconv.functional.narrow import widens
from fastconv.shapes import array_shape, lift

__all__ = [
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
]


@overload
def max_pool1d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray: ...
@overload
def max_pool1d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    *,
    return_indices: Literal[True],
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def max_pool1d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> Any: ...
def max_pool1d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> Any:
    """Largest cell of each window of signals x (N, C, L): see `max_pool2d`."""
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _forward("max_pool1d", 1, x, *args, layout, algorithm, out)


@overload
def max_pool2d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray: ...
@overload
def max_pool2d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    *,
    return_indices: Literal[True],
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def max_pool2d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> Any: ...
def max_pool2d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> Any:
    """Largest cell of each window of an image, per channel.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W); with ``layout="NHWC"`` channels last
        float32, float64 or integers of any width, any memory order.
    kernel_size : int or one int per spatial axis
        Size of the window.
    stride : int or one int per spatial axis, optional
        Step from window to window; None means `kernel_size`.
    padding : int, one int or one (before, after) pair per axis, or str
        As in `conv2d`, but cells of the padding are never the largest. Smaller than the dilated window.
    dilation : int or one int per spatial axis
    ceil_mode : bool
        Let the last window hang over the end; one that would start in the padding is dropped.
    return_indices : bool
        Whether to return where the largest cells are, as `max_pool2d_backward` needs it.
    layout : "NCHW" or "NHWC"
    algorithm : str
        A key of `fastconv.POOL_ALGORITHMS`.
    out : ndarray, optional
        Where to write y.

    Returns
    -------
    y : ndarray, (N, C, P, Q)
        P = (H + pad_before + pad_after - dilation * (R - 1) - 1) // stride + 1, rounded up in ceil mode.
    indices : int64 ndarray of the shape of y, with `return_indices`
        Flat positions in the (H, W) plane. The first of equal cells in row-major order wins. A NaN is larger
        than everything.

    Raises
    ------
    ValueError
        Shapes or values that do not fit together.
    TypeError
        Another dtype, or something else than an array or an int.

    Notes
    -----
    Names and order of the arguments are those of ``torch.nn.functional.max_pool2d``.

    Examples
    --------
    >>> import numpy as np
    >>> max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    array([[[[ 5.,  7.],
             [13., 15.]]]])
    """
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _forward("max_pool2d", 2, x, *args, layout, algorithm, out)


@overload
def max_pool3d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray: ...
@overload
def max_pool3d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    *,
    return_indices: Literal[True],
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def max_pool3d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> Any: ...
def max_pool3d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> Any:
    """Largest cell of each window of volumes x (N, C, D, H, W): see `max_pool2d`."""
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _forward("max_pool3d", 3, x, *args, layout, algorithm, out)


def max_pool1d_backward(
    grad_output: np.ndarray,
    indices: np.ndarray,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Gradient of `max_pool1d` with respect to x: see `max_pool2d_backward`."""
    return _backward("max_pool1d_backward", 1, grad_output, indices, input_shape, layout)


def max_pool2d_backward(
    grad_output: np.ndarray,
    indices: np.ndarray,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Gradient of `max_pool2d` with respect to x.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
        float32 or float64.
    indices : ndarray of any integer dtype, the shape of y
        As returned by `max_pool2d`; where several name one cell, their gradients add up.
    input_shape : sequence of int
        The shape of x.
    layout : "NCHW" or "NHWC"

    Returns
    -------
    grad_x : ndarray of shape `input_shape`

    Raises
    ------
    ValueError
        Shapes that do not belong together, or an index outside the (H, W) plane.
    TypeError
        `grad_output` not float32 or float64, or `indices` not integers.

    Examples
    --------
    >>> import numpy as np
    >>> y, indices = max_pool2d(np.arange(4.0).reshape(1, 1, 2, 2), 2, return_indices=True)
    >>> max_pool2d_backward(np.ones_like(y), indices, (1, 1, 2, 2))
    array([[[[0., 0.],
             [0., 1.]]]])
    """
    return _backward("max_pool2d_backward", 2, grad_output, indices, input_shape, layout)


def max_pool3d_backward(
    grad_output: np.ndarray,
    indices: np.ndarray,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
) -> np.ndarray:
    """Gradient of `max_pool3d` with respect to x: see `max_pool2d_backward`."""
    return _backward("max_pool3d_backward", 3, grad_output, indices, input_shape, layout)


@widens
def _forward(
    function: str,
    rank: int,
    x: np.ndarray,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    return_indices: bool,
    layout: str,
    algorithm: str,
    out: np.ndarray | None,
) -> Any:
    dtype, x = ordered_array(function, "x", x)
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    shape = windows.geometry(function, rank, x.shape, *facts)
    chosen = windows.find_algorithm(function, algorithm)
    wants_indices = windows.flag(function, "return_indices", return_indices)
    result = Output(function, out, windows.y_shape(shape, x.ndim), dtype, (x,))
    indices = empty(function, "indices", result.array.shape, np.int64) if wants_indices else None
    if result.array.size:
        chosen.max_pool(
            lift_like_x(function, "x", x, shape.rank, shape.layout),
            lift_like_x(function, "out", result.array, shape.rank, shape.layout),
            None if indices is None else lift_like_x(function, "indices", indices, rank, layout),
            shape,
        )
    return result.finish() if indices is None else (result.finish(), indices)


@widens
def _backward(
    function: str,
    rank: int,
    grad_output: np.ndarray,
    indices: np.ndarray,
    input_shape: Sequence[int],
    layout: str,
) -> np.ndarray:
    check_layout(function, layout)
    dtype, (grad_output,) = real_arrays(function, grad_output=grad_output)
    x_shape = shape_argument(function, "input_shape", input_shape)
    check_size(function, "the result", x_shape)
    x = array_shape(function, "input_shape", x_shape, rank, layout)
    y = array_shape(function, "grad_output", grad_output.shape, rank, layout)
    if (x.batched, x.batch, x.channels) != (y.batched, y.batch, y.channels):
        raise ValueError(
            f"{function}: grad_output and input_shape must agree in batch and channels, got "
            f"grad_output.shape = {grad_output.shape}, input_shape = {x_shape}"
        )
    plane = lift(x.spatial)
    cells = plane[0] * plane[1] * plane[2]
    places = index_array(function, "indices", indices)
    check_shape(function, "indices", places, grad_output.shape)
    grad_x = empty(function, "the result", x_shape, dtype)
    if grad_x.size == 0 or grad_output.size == 0:
        check_indices(function, "indices", indices, cells)
        grad_x.fill(0)
        return grad_x
    if not pool_indices.max_pool_backward(
        lift_like_x(function, "grad_output", grad_output, rank, layout),
        lift_like_x(function, "indices", places, rank, layout),
        lift_like_x(function, "grad_x", grad_x, rank, layout),
    ):
        check_indices(function, "indices", indices, cells)
    return grad_x
