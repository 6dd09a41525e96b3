"""Power-average pooling and its gradient."""

from __future__ import annotations

from math import isinf, isnan
from typing import Any

import numpy as np

from fastconv.algorithms import PoolAlgorithm, pool_indices
from fastconv.arguments import Ints, Padding, check_bytes, real
from fastconv.functional import windows
from fastconv.functional.arrays import check_shape, empty, lift_like_x, real_arrays
from fastconv.functional.narrow import widens
from fastconv.shapes import PoolShape

__all__ = [
    "lp_pool1d",
    "lp_pool1d_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
    "lp_pool3d",
    "lp_pool3d_backward",
]


def lp_pool1d(
    x: np.ndarray,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Power average of each window of signals x (N, C, L): see `lp_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _forward("lp_pool1d", 1, x, norm_type, facts, algorithm)


def lp_pool2d(
    x: np.ndarray,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Power average of each window of an image, per channel: (sum of x ** p) ** (1 / p).

    With p = 2 the root of the sum of squares, with p = 1 the sum, with p = inf the largest absolute value.

    Parameters
    ----------
    x, kernel_size, stride, padding, ceil_mode, dilation, layout, algorithm
        As in `max_pool2d`; cells of the padding are 0.
    norm_type : float
        p, any number but 0.

    Returns
    -------
    y : ndarray, (N, C, P, Q)

    Raises
    ------
    ValueError, TypeError
        As `max_pool2d`; and where `norm_type` is 0, NaN, or no number.

    Notes
    -----
    Names, order and results are those of ``torch.nn.functional.lp_pool2d``. As there, powers keep their sign,
    so that a sum may be negative and then, unless p is 1, its root NaN: for a norm with an odd or fractional
    p give |x|, as ONNX's LpPool does. As there, too, a window that hangs over the end in ceil mode counts as
    whole: what lies beyond the padding is taken to be as large as the rest is on average.

    Examples
    --------
    >>> import numpy as np
    >>> lp_pool2d(np.array([[[[3.0, 4, 0, -2], [0, 0, 0, 0]]]]), 2, 2)
    array([[[[5., 2.]]]])
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _forward("lp_pool2d", 2, x, norm_type, facts, algorithm)


def lp_pool3d(
    x: np.ndarray,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Power average of each window of volumes x (N, C, D, H, W): see `lp_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _forward("lp_pool3d", 3, x, norm_type, facts, algorithm)


def lp_pool1d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `lp_pool1d` with respect to x: see `lp_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _backward("lp_pool1d_backward", 1, grad_output, x, norm_type, facts, algorithm)


def lp_pool2d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `lp_pool2d` with respect to x.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
    x, norm_type, kernel_size, stride, ceil_mode, padding, dilation, layout, algorithm
        As given to `lp_pool2d`.

    Returns
    -------
    grad_x : ndarray of the shape of x
        sum over the windows of grad_output * (x / y) ** (p - 1). A window whose value is 0 adds 0.

    Raises
    ------
    ValueError, TypeError
        As `lp_pool2d`; and if `grad_output` has not the shape of y.

    Examples
    --------
    >>> import numpy as np
    >>> lp_pool2d_backward(np.ones((1, 1, 1, 1)), np.array([[[[3.0, 4], [0, 0]]]]), 2, 2)
    array([[[[0.6, 0.8],
             [0. , 0. ]]]])
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _backward("lp_pool2d_backward", 2, grad_output, x, norm_type, facts, algorithm)


def lp_pool3d_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `lp_pool3d` with respect to x: see `lp_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _backward("lp_pool3d_backward", 3, grad_output, x, norm_type, facts, algorithm)


def _norm(function: str, value: Any) -> float:
    norm = real(function, "norm_type", value)
    if norm == 0 or isnan(norm):
        raise ValueError(f"{function}: norm_type must be a number but 0, got {norm}")
    return norm


def _pool(
    function: str, x: np.ndarray, y: np.ndarray, shape: PoolShape, norm: float, chosen: PoolAlgorithm
) -> Any:
    """Fill y, x and y having three spatial axes. Of an infinite norm the places of the cells are returned."""
    if not isinf(norm):
        chosen.lp_pool(x, y, shape, norm)
        return None
    sign = 1 if norm > 0 else -1
    check_bytes(function, "the places", y.shape, np.dtype(np.int64))
    indices = np.empty_like(y, np.int64)
    chosen.max_pool(sign * np.abs(x), y, indices, shape)
    y *= sign
    return indices


@widens
def _forward(
    function: str, rank: int, x: np.ndarray, norm_type: Any, facts: tuple[Any, ...], algorithm: str
) -> np.ndarray:
    dtype, (x,) = real_arrays(function, x=x)
    shape = windows.geometry(function, rank, x.shape, *facts)
    norm = _norm(function, norm_type)
    chosen = windows.find_algorithm(function, algorithm)
    y = empty(function, "the result", windows.y_shape(shape, x.ndim), dtype)
    if y.size:
        lifted, out = (lift_like_x(function, "x", array, rank, shape.layout) for array in (x, y))
        _pool(function, lifted, out, shape, norm, chosen)
    return y


@widens
def _backward(
    function: str,
    rank: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    norm_type: Any,
    facts: tuple[Any, ...],
    algorithm: str,
) -> np.ndarray:
    dtype, (grad_output, x) = real_arrays(function, grad_output=grad_output, x=x)
    shape = windows.geometry(function, rank, x.shape, *facts)
    norm = _norm(function, norm_type)
    check_shape(function, "grad_output", grad_output, windows.y_shape(shape, x.ndim))
    chosen = windows.find_algorithm(function, algorithm)
    grad_x = empty(function, "the result", x.shape, dtype)
    if not grad_x.size:
        return grad_x
    lifted, grad, out, y = (
        lift_like_x(function, "x", array, rank, shape.layout)
        for array in (x, grad_output, grad_x, np.empty_like(grad_output))
    )
    indices = _pool(function, lifted, y, shape, norm, chosen)
    if indices is None:
        chosen.lp_pool_backward(grad, lifted, y, out, shape, norm)
    else:
        pool_indices.max_pool_backward(grad, indices, out)
        out *= np.sign(lifted)
    return grad_x
