"""Adaptive pooling: windows that divide x into a given number of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np

from fastconv.algorithms import pooling
from fastconv.algorithms.pool_axes import adaptive_windows
from fastconv.arguments import adaptive_output, canonical, check_layout, check_size, shape_argument
from fastconv.functional import windows
from fastconv.functional.arrays import check_shape, empty, lift_like_x, ordered_array, real_arrays, zeros
from fastconv.functional.narrow import widens
from fastconv.shapes import ArrayShape, array_shape, join_shape, lift

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool1d_backward",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
]

#: An int, or per spatial axis an int or None; None keeps that axis.
OutputSize = int | None | Sequence[int | None]


def adaptive_avg_pool1d(x: np.ndarray, output_size: OutputSize, *, layout: str = "NCHW") -> np.ndarray:
    """Mean over `output_size` windows of signals x (N, C, L): see `adaptive_avg_pool2d`."""
    return _avg("adaptive_avg_pool1d", 1, x, output_size, layout)


def adaptive_avg_pool2d(x: np.ndarray, output_size: OutputSize, *, layout: str = "NCHW") -> np.ndarray:
    """Mean over windows that divide an image into `output_size` parts as evenly as cells allow.

    Window o of an axis has the cells from floor(o * size / parts) up to ceil((o + 1) * size / parts).

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W); with ``layout="NHWC"`` channels last
    output_size : int, or per spatial axis an int or None
        None keeps an axis as it is.
    layout : "NCHW" or "NHWC"

    Returns
    -------
    y : ndarray, (N, C, *output_size)

    Raises
    ------
    ValueError, TypeError
        Wrong shape, size or dtype.

    Notes
    -----
    As ``torch.nn.functional.adaptive_avg_pool2d``.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_avg_pool2d(np.ones((2, 3, 7, 5)), (3, None)).shape
    (2, 3, 3, 5)
    """
    return _avg("adaptive_avg_pool2d", 2, x, output_size, layout)


def adaptive_avg_pool3d(x: np.ndarray, output_size: OutputSize, *, layout: str = "NCHW") -> np.ndarray:
    """Mean over windows of volumes x (N, C, D, H, W): see `adaptive_avg_pool2d`."""
    return _avg("adaptive_avg_pool3d", 3, x, output_size, layout)


def adaptive_avg_pool1d_backward(
    grad_output: np.ndarray, input_shape: Sequence[int], *, layout: str = "NCHW"
) -> np.ndarray:
    """Gradient of `adaptive_avg_pool1d`: see `adaptive_avg_pool2d_backward`."""
    return _avg_backward("adaptive_avg_pool1d_backward", 1, grad_output, input_shape, layout)


def adaptive_avg_pool2d_backward(
    grad_output: np.ndarray, input_shape: Sequence[int], *, layout: str = "NCHW"
) -> np.ndarray:
    """Gradient of `adaptive_avg_pool2d` with respect to x.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
    input_shape : sequence of int
        The shape of x.
    layout : "NCHW" or "NHWC"

    Returns
    -------
    grad_x : ndarray of shape `input_shape`

    Raises
    ------
    ValueError, TypeError
        Shapes that do not belong together, or a wrong dtype.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_avg_pool2d_backward(np.ones((1, 1, 1, 1)), (1, 1, 2, 2))
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]])
    """
    return _avg_backward("adaptive_avg_pool2d_backward", 2, grad_output, input_shape, layout)


def adaptive_avg_pool3d_backward(
    grad_output: np.ndarray, input_shape: Sequence[int], *, layout: str = "NCHW"
) -> np.ndarray:
    """Gradient of `adaptive_avg_pool3d`: see `adaptive_avg_pool2d_backward`."""
    return _avg_backward("adaptive_avg_pool3d_backward", 3, grad_output, input_shape, layout)


@overload
def adaptive_max_pool1d(
    x: np.ndarray, output_size: OutputSize, return_indices: Literal[False] = False, *, layout: str = "NCHW"
) -> np.ndarray: ...
@overload
def adaptive_max_pool1d(
    x: np.ndarray, output_size: OutputSize, return_indices: Literal[True], *, layout: str = "NCHW"
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def adaptive_max_pool1d(
    x: np.ndarray, output_size: OutputSize, return_indices: bool = False, *, layout: str = "NCHW"
) -> Any: ...
def adaptive_max_pool1d(
    x: np.ndarray, output_size: OutputSize, return_indices: bool = False, *, layout: str = "NCHW"
) -> Any:
    """Largest cell of each window of signals x (N, C, L): see `adaptive_max_pool2d`."""
    return _max("adaptive_max_pool1d", 1, x, output_size, return_indices, layout)


@overload
def adaptive_max_pool2d(
    x: np.ndarray, output_size: OutputSize, return_indices: Literal[False] = False, *, layout: str = "NCHW"
) -> np.ndarray: ...
@overload
def adaptive_max_pool2d(
    x: np.ndarray, output_size: OutputSize, return_indices: Literal[True], *, layout: str = "NCHW"
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def adaptive_max_pool2d(
    x: np.ndarray, output_size: OutputSize, return_indices: bool = False, *, layout: str = "NCHW"
) -> Any: ...
def adaptive_max_pool2d(
    x: np.ndarray, output_size: OutputSize, return_indices: bool = False, *, layout: str = "NCHW"
) -> Any:
    """Largest cell of each of the windows of `adaptive_avg_pool2d`.

    Parameters
    ----------
    x, output_size, layout
        As in `adaptive_avg_pool2d`; x may also be of integers.
    return_indices : bool
        Whether to return where the largest cells are. The gradient is `max_pool2d_backward`.

    Returns
    -------
    y : ndarray, (N, C, *output_size)
    indices : int64 ndarray of the shape of y, with `return_indices`
        Flat positions in the (H, W) plane.

    Raises
    ------
    ValueError, TypeError
        Wrong shape, size or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_max_pool2d(np.arange(6.0).reshape(1, 1, 2, 3), (1, 2))
    array([[[[4., 5.]]]])
    """
    return _max("adaptive_max_pool2d", 2, x, output_size, return_indices, layout)


@overload
def adaptive_max_pool3d(
    x: np.ndarray, output_size: OutputSize, return_indices: Literal[False] = False, *, layout: str = "NCHW"
) -> np.ndarray: ...
@overload
def adaptive_max_pool3d(
    x: np.ndarray, output_size: OutputSize, return_indices: Literal[True], *, layout: str = "NCHW"
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def adaptive_max_pool3d(
    x: np.ndarray, output_size: OutputSize, return_indices: bool = False, *, layout: str = "NCHW"
) -> Any: ...
def adaptive_max_pool3d(
    x: np.ndarray, output_size: OutputSize, return_indices: bool = False, *, layout: str = "NCHW"
) -> Any:
    """Largest cell of each window of volumes x (N, C, D, H, W): see `adaptive_max_pool2d`."""
    return _max("adaptive_max_pool3d", 3, x, output_size, return_indices, layout)


def _geometry(
    function: str, rank: int, x: np.ndarray, output_size: Any, layout: str
) -> tuple[ArrayShape, tuple[int, ...], tuple[int, ...]]:
    """Of x its facts, and of y the spatial size and the shape."""
    check_layout(function, layout)
    facts = array_shape(function, "x", x.shape, rank, layout)
    size = adaptive_output(function, canonical(output_size), facts.spatial)
    return facts, size, join_shape(layout, facts.batched, facts.batch, facts.channels, size)


@widens
def _avg(function: str, rank: int, x: np.ndarray, output_size: Any, layout: str) -> np.ndarray:
    dtype, (x,) = real_arrays(function, x=x)
    facts, size, shape = _geometry(function, rank, x, output_size, layout)
    y = empty(function, "the result", shape, dtype)
    if y.size:
        pooling.avg_pool(
            lift_like_x(function, "x", x, rank, layout),
            lift_like_x(function, "y", y, rank, layout),
            adaptive_windows(lift(facts.spatial), lift(size)),
        )
    return y


@widens
def _avg_backward(
    function: str, rank: int, grad_output: np.ndarray, input_shape: Sequence[int], layout: str
) -> np.ndarray:
    dtype, (grad_output,) = real_arrays(function, grad_output=grad_output)
    check_layout(function, layout)
    x_shape = shape_argument(function, "input_shape", input_shape)
    check_size(function, "the result", x_shape)
    grad_x = zeros(function, "the result", x_shape, dtype)
    y = array_shape(function, "grad_output", grad_output.shape, rank, layout)
    facts, size, shape = _geometry(function, rank, grad_x, y.spatial, layout)
    check_shape(function, "grad_output", grad_output, shape)
    if grad_x.size:
        pooling.avg_pool_backward(
            lift_like_x(function, "grad_output", grad_output, rank, layout),
            lift_like_x(function, "grad_x", grad_x, rank, layout),
            adaptive_windows(lift(facts.spatial), lift(size)),
        )
    return grad_x


@widens
def _max(function: str, rank: int, x: np.ndarray, output_size: Any, return_indices: bool, layout: str) -> Any:
    dtype, x = ordered_array(function, "x", x)
    facts, size, shape = _geometry(function, rank, x, output_size, layout)
    wants_indices = windows.flag(function, "return_indices", return_indices)
    y = empty(function, "the result", shape, dtype)
    indices = empty(function, "indices", shape, np.int64) if wants_indices else None
    if y.size:
        pooling.max_pool(
            lift_like_x(function, "x", x, rank, layout),
            lift_like_x(function, "y", y, rank, layout),
            None if indices is None else lift_like_x(function, "indices", indices, rank, layout),
            adaptive_windows(lift(facts.spatial), lift(size)),
        )
    return y if indices is None else (y, indices)
