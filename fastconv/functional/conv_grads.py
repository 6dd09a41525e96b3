"""The two gradients of a convolution one at a time, for those who have only what each of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arguments import Ints, Padding, shape_argument
from fastconv.functional import bound, run
from fastconv.functional.arrays import check_shape, real_arrays
from fastconv.functional.narrow import widens

__all__ = [
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d_input_grad",
    "conv3d_weight_grad",
]


def conv1d_input_grad(
    grad_output: np.ndarray,
    weight: np.ndarray,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `conv1d` with respect to x: see `conv2d_input_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _input_grad_of("conv1d_input_grad", 1, grad_output, weight, input_shape, *args)


def conv2d_input_grad(
    grad_output: np.ndarray,
    weight: np.ndarray,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `conv2d` with respect to x, which it does not depend on but for its shape.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
    weight, stride, padding, dilation, groups, layout, algorithm
        As given to `conv2d`.
    input_shape : sequence of int
        The shape of x.

    Returns
    -------
    grad_x : ndarray of shape `input_shape`

    Raises
    ------
    ValueError, TypeError
        As `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d_input_grad(np.ones((2, 4, 3, 3)), np.ones((4, 3, 2, 2)), (2, 3, 6, 7), stride=2).shape
    (2, 3, 6, 7)
    """
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _input_grad_of("conv2d_input_grad", 2, grad_output, weight, input_shape, *args)


def conv3d_input_grad(
    grad_output: np.ndarray,
    weight: np.ndarray,
    input_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `conv3d` with respect to x: see `conv2d_input_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _input_grad_of("conv3d_input_grad", 3, grad_output, weight, input_shape, *args)


@widens
def _input_grad_of(
    function: str,
    rank: int,
    grad_output: np.ndarray,
    weight: np.ndarray,
    input_shape: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: str,
    algorithm: str,
) -> np.ndarray:
    args = (stride, padding, dilation, groups, layout, algorithm)
    grad_x = bound.gradient("input_grad", rank, grad_output, weight, input_shape, *args)
    if grad_x is not None:
        return grad_x
    _, (grad_output, weight) = real_arrays(function, grad_output=grad_output, weight=weight)
    x_shape = shape_argument(function, "input_shape", input_shape)
    facts = (weight.shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x_shape, *facts)
    check_shape(function, "grad_output", grad_output, run.y_shape(shape, len(x_shape)))
    return run.input_grad(function, grad_output, weight, x_shape, shape, algorithm)


def conv1d_weight_grad(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `conv1d` with respect to weight: see `conv2d_weight_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _weight_grad_of("conv1d_weight_grad", 1, grad_output, x, weight_shape, *args)


def conv2d_weight_grad(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `conv2d` with respect to weight, which it does not depend on but for its shape.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
    x, stride, padding, dilation, groups, layout, algorithm
        As given to `conv2d`.
    weight_shape : sequence of int
        The shape of weight.

    Returns
    -------
    grad_weight : ndarray of shape `weight_shape`

    Raises
    ------
    ValueError, TypeError
        As `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d_weight_grad(np.ones((2, 4, 6, 6)), np.ones((2, 3, 8, 8)), (4, 3, 3, 3)).shape
    (4, 3, 3, 3)
    """
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _weight_grad_of("conv2d_weight_grad", 2, grad_output, x, weight_shape, *args)


def conv3d_weight_grad(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `conv3d` with respect to weight: see `conv2d_weight_grad`."""
    args = (stride, padding, dilation, groups, layout, algorithm)
    return _weight_grad_of("conv3d_weight_grad", 3, grad_output, x, weight_shape, *args)


@widens
def _weight_grad_of(
    function: str,
    rank: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight_shape: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: str,
    algorithm: str,
) -> np.ndarray:
    args = (stride, padding, dilation, groups, layout, algorithm)
    grad_weight = bound.gradient("weight_grad", rank, grad_output, x, weight_shape, *args)
    if grad_weight is not None:
        return grad_weight
    _, (grad_output, x) = real_arrays(function, grad_output=grad_output, x=x)
    w_shape = shape_argument(function, "weight_shape", weight_shape)
    facts = (w_shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x.shape, *facts)
    check_shape(function, "grad_output", grad_output, run.y_shape(shape, x.ndim))
    return run.weight_grad(function, grad_output, x, w_shape, shape, algorithm)
