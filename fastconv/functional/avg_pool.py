"""Average pooling and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arguments import Ints, Padding, shape_argument
from fastconv.functional import windows
from fastconv.functional.arrays import Output, check_shape, empty, lift_like_x, real_arrays
from fastconv.functional.narrow import widens

__all__ = [
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
]


def avg_pool1d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of each window of signals x (N, C, L): see `avg_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _forward("avg_pool1d", 1, x, facts, count_include_pad, divisor_override, algorithm, out)


def avg_pool2d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of each window of an image, per channel.

    Parameters
    ----------
    x, kernel_size, stride, padding, ceil_mode, dilation, layout, algorithm, out
        As in `max_pool2d`; cells of the padding are 0.
    count_include_pad : bool
        Whether cells of the padding count in the divisor. Cells beyond it, of a last window in ceil mode,
        never do.
    divisor_override : int, optional
        What to divide by instead of the number of cells.

    Returns
    -------
    y : ndarray, (N, C, P, Q)

    Raises
    ------
    ValueError, TypeError
        As `max_pool2d`.

    Notes
    -----
    Names and order of the arguments are those of ``torch.nn.functional.avg_pool2d``.
    Sums are taken in the dtype of x, columns first: the error is at most height + width of the window
    rounding errors of the sum of absolute values.

    Examples
    --------
    >>> import numpy as np
    >>> avg_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]])
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _forward("avg_pool2d", 2, x, facts, count_include_pad, divisor_override, algorithm, out)


def avg_pool3d(
    x: np.ndarray,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of each window of volumes x (N, C, D, H, W): see `avg_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return _forward("avg_pool3d", 3, x, facts, count_include_pad, divisor_override, algorithm, out)


def avg_pool1d_backward(
    grad_output: np.ndarray,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `avg_pool1d` with respect to x: see `avg_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    args = (facts, count_include_pad, divisor_override, algorithm)
    return _backward("avg_pool1d_backward", 1, grad_output, input_shape, *args)


def avg_pool2d_backward(
    grad_output: np.ndarray,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `avg_pool2d` with respect to x.

    Parameters
    ----------
    grad_output : ndarray, the shape of y
    input_shape : sequence of int
        The shape of x.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, layout, algorithm
        As given to `avg_pool2d`.

    Returns
    -------
    grad_x : ndarray of shape `input_shape`

    Raises
    ------
    ValueError, TypeError
        As `avg_pool2d`; and if `grad_output` has not the shape of y.

    Examples
    --------
    >>> import numpy as np
    >>> avg_pool2d_backward(np.ones((1, 1, 1, 1)), (1, 1, 2, 2), 2)
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]])
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    args = (facts, count_include_pad, divisor_override, algorithm)
    return _backward("avg_pool2d_backward", 2, grad_output, input_shape, *args)


def avg_pool3d_backward(
    grad_output: np.ndarray,
    input_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> np.ndarray:
    """Gradient of `avg_pool3d` with respect to x: see `avg_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    args = (facts, count_include_pad, divisor_override, algorithm)
    return _backward("avg_pool3d_backward", 3, grad_output, input_shape, *args)


def _divisor(function: str, divisor_override: Any) -> int:
    """0 where the cells are to be counted."""
    if divisor_override is None:
        return 0
    return windows.positive(function, "divisor_override", divisor_override)


@widens
def _forward(
    function: str,
    rank: int,
    x: np.ndarray,
    facts: tuple[Any, ...],
    count_include_pad: bool,
    divisor_override: int | None,
    algorithm: str,
    out: np.ndarray | None,
) -> np.ndarray:
    dtype, (x,) = real_arrays(function, x=x)
    shape = windows.geometry(function, rank, x.shape, *facts)
    divisor = _divisor(function, divisor_override)
    count_padding = windows.flag(function, "count_include_pad", count_include_pad)
    chosen = windows.find_algorithm(function, algorithm)
    result = Output(function, out, windows.y_shape(shape, x.ndim), dtype, (x,))
    if result.array.size:
        chosen.avg_pool(
            lift_like_x(function, "x", x, rank, shape.layout),
            lift_like_x(function, "out", result.array, rank, shape.layout),
            shape,
            count_padding,
            divisor,
        )
    return result.finish()


@widens
def _backward(
    function: str,
    rank: int,
    grad_output: np.ndarray,
    input_shape: Sequence[int],
    facts: tuple[Any, ...],
    count_include_pad: bool,
    divisor_override: int | None,
    algorithm: str,
) -> np.ndarray:
    dtype, (grad_output,) = real_arrays(function, grad_output=grad_output)
    x_shape = shape_argument(function, "input_shape", input_shape)
    shape = windows.geometry(function, rank, x_shape, *facts)
    check_shape(function, "grad_output", grad_output, windows.y_shape(shape, len(x_shape)))
    divisor = _divisor(function, divisor_override)
    count_padding = windows.flag(function, "count_include_pad", count_include_pad)
    chosen = windows.find_algorithm(function, algorithm)
    grad_x = empty(function, "the result", x_shape, dtype)
    if grad_x.size:
        chosen.avg_pool_backward(
            lift_like_x(function, "grad_output", grad_output, rank, shape.layout),
            lift_like_x(function, "grad_x", grad_x, rank, shape.layout),
            shape,
            count_padding,
            divisor,
        )
    return grad_x
