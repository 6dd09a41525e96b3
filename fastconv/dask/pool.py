"""Max and average pooling of dask arrays, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da

from fastconv.arguments import Ints, Padding
from fastconv.dask.pooling import avg_backward, avg_forward, max_backward, max_forward

__all__ = [
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
]


def max_pool1d(
    x: da.Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> Any:
    """Largest cell of each window of signals x (N, C, L): see `max_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return max_forward("max_pool1d", 1, x, facts, return_indices, algorithm)


def max_pool2d(
    x: da.Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> Any:
    """`fastconv.max_pool2d` of a dask array, chunk by chunk.

    Parameters
    ----------
    x : dask.array.Array, (N, C, H, W) or (C, H, W); with ``layout="NHWC"`` channels last
        In chunks of any sizes along batch and space. Channels are brought into one chunk.
    kernel_size, stride, padding, dilation, ceil_mode, return_indices, layout, algorithm
        As in `fastconv.max_pool2d`.

    Returns
    -------
    y : dask.array.Array, (N, C, P, Q)
        The very numbers of `fastconv.max_pool2d`, in chunks as those of `fastconv.dask.conv2d`.
    indices : int64 dask.array.Array of the shape of y, with `return_indices`
        Flat positions in the whole (H, W) plane.

    Raises
    ------
    ValueError, TypeError
        As `fastconv.max_pool2d`, at once; and if x is not a dask array, or the sizes of its chunks are not
        known.

    Examples
    --------
    >>> import dask.array as da
    >>> x = da.arange(16.0, chunks=16).reshape(1, 1, 4, 4).rechunk((1, 1, 2, 4))
    >>> y, indices = max_pool2d(x, 2, return_indices=True)
    >>> y.numblocks, indices.compute()
    ((1, 1, 2, 1), array([[[[ 5,  7],
             [13, 15]]]]))
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return max_forward("max_pool2d", 2, x, facts, return_indices, algorithm)


def max_pool3d(
    x: da.Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> Any:
    """Largest cell of each window of volumes x (N, C, D, H, W): see `max_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return max_forward("max_pool3d", 3, x, facts, return_indices, algorithm)


def max_pool1d_backward(
    grad_output: da.Array,
    indices: da.Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    kernel_size: Ints | None = None,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> da.Array:
    """Gradient of `max_pool1d` with respect to x: see `max_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return max_backward("max_pool1d_backward", 1, grad_output, indices, input_shape, facts)


def max_pool2d_backward(
    grad_output: da.Array,
    indices: da.Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    kernel_size: Ints | None = None,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> da.Array:
    """Gradient of `max_pool2d` with respect to x: `fastconv.max_pool2d_backward` of dask arrays.

    Parameters
    ----------
    grad_output : dask.array.Array, the shape of y
    indices : dask.array.Array of any integer dtype, the shape of y
        As returned by `max_pool2d`.
    input_shape : sequence of int
        The shape of x.
    layout : "NCHW" or "NHWC"
    kernel_size, stride, padding, dilation, ceil_mode : optional
        As given to `max_pool2d`. They say how far from its window an index may point. Without a `kernel_size`
        it may be anywhere, and each image is brought into one chunk.

    Returns
    -------
    grad_x : dask.array.Array of shape `input_shape`

    Raises
    ------
    ValueError, TypeError
        As `fastconv.max_pool2d_backward`, at once but for indices that are out of range: these are found when
        they are computed.

    Examples
    --------
    >>> import dask.array as da
    >>> x = da.arange(16.0, chunks=16).reshape(1, 1, 4, 4).rechunk((1, 1, 2, 4))
    >>> y, indices = max_pool2d(x, 2, return_indices=True)
    >>> grad_x = max_pool2d_backward(da.ones_like(y), indices, x.shape, kernel_size=2)
    >>> grad_x.numblocks, grad_x[0, 0, 1].compute()
    ((1, 1, 2, 1), array([0., 1., 0., 1.]))
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return max_backward("max_pool2d_backward", 2, grad_output, indices, input_shape, facts)


def max_pool3d_backward(
    grad_output: da.Array,
    indices: da.Array,
    input_shape: Sequence[int],
    *,
    layout: str = "NCHW",
    kernel_size: Ints | None = None,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> da.Array:
    """Gradient of `max_pool3d` with respect to x: see `max_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return max_backward("max_pool3d_backward", 3, grad_output, indices, input_shape, facts)


def avg_pool1d(
    x: da.Array,
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
) -> da.Array:
    """Mean of each window of signals x (N, C, L): see `avg_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return avg_forward("avg_pool1d", 1, x, facts, count_include_pad, divisor_override, algorithm)


def avg_pool2d(
    x: da.Array,
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
) -> da.Array:
    """`fastconv.avg_pool2d` of a dask array, chunk by chunk.

    Parameters
    ----------
    x : dask.array.Array
        As for `max_pool2d`.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, layout, algorithm
        As in `fastconv.avg_pool2d`.

    Returns
    -------
    y : dask.array.Array, (N, C, P, Q)
        The values of `fastconv.avg_pool2d`, but that sums may be rounded in another order.

    Raises
    ------
    ValueError, TypeError
        As `max_pool2d`.

    Examples
    --------
    >>> import dask.array as da
    >>> x = da.arange(16.0, chunks=16).reshape(1, 1, 4, 4).rechunk((1, 1, 2, 4))
    >>> avg_pool2d(x, 2).compute()
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]])
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return avg_forward("avg_pool2d", 2, x, facts, count_include_pad, divisor_override, algorithm)


def avg_pool3d(
    x: da.Array,
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
) -> da.Array:
    """Mean of each window of volumes x (N, C, D, H, W): see `avg_pool2d`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    return avg_forward("avg_pool3d", 3, x, facts, count_include_pad, divisor_override, algorithm)


def avg_pool1d_backward(
    grad_output: da.Array,
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
) -> da.Array:
    """Gradient of `avg_pool1d` with respect to x: see `avg_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    args = (facts, count_include_pad, divisor_override, algorithm)
    return avg_backward("avg_pool1d_backward", 1, grad_output, input_shape, *args)


def avg_pool2d_backward(
    grad_output: da.Array,
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
) -> da.Array:
    """Gradient of `avg_pool2d` with respect to x: `fastconv.avg_pool2d_backward` of dask arrays.

    Parameters
    ----------
    grad_output : dask.array.Array, the shape of y
    input_shape : sequence of int
        The shape of x.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation, layout, algorithm
        As given to `avg_pool2d`.

    Returns
    -------
    grad_x : dask.array.Array of shape `input_shape`
        A cell belongs to the chunk of the windows around it.

    Raises
    ------
    ValueError, TypeError
        As `fastconv.avg_pool2d_backward`, at once.

    Examples
    --------
    >>> import dask.array as da
    >>> avg_pool2d_backward(da.ones((1, 1, 1, 2), chunks=1), (1, 1, 2, 4), 2).compute()
    array([[[[0.25, 0.25, 0.25, 0.25],
             [0.25, 0.25, 0.25, 0.25]]]])
    """
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    args = (facts, count_include_pad, divisor_override, algorithm)
    return avg_backward("avg_pool2d_backward", 2, grad_output, input_shape, *args)


def avg_pool3d_backward(
    grad_output: da.Array,
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
) -> da.Array:
    """Gradient of `avg_pool3d` with respect to x: see `avg_pool2d_backward`."""
    facts = (kernel_size, stride, padding, dilation, ceil_mode, layout)
    args = (facts, count_include_pad, divisor_override, algorithm)
    return avg_backward("avg_pool3d_backward", 3, grad_output, input_shape, *args)
