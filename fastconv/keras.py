"""Convolution and pooling as `keras.ops` defines them, on NumPy arrays; Keras itself is not needed.

>>> import numpy as np
>>> from fastconv import keras as ops
>>> x, kernel = np.ones((2, 28, 28, 3), np.float32), np.ones((3, 3, 3, 8), np.float32)
>>> ops.conv(x, kernel, strides=2, padding="same").shape
(2, 14, 14, 8)
>>> ops.max_pool(x, 2).shape
(2, 14, 14, 3)

Names, arguments and shapes are those of Keras 3: one function for one to three spatial axes, as many as
`inputs` has besides batch and channels; channels last unless ``data_format="channels_first"``, whatever a
``keras.json`` says; kernels with their spatial axes first and their channels last, in either format. There is
no bias and no activation, as in Keras: `fastconv.conv2d` with ``layout="NHWC"`` takes the same arrays, and
does both on the way.

All arrays of a call are float32 or all float64. An empty result and an output padding that is not smaller
than the stride, which the backends of Keras treat differently, are errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv import functional as F
from fastconv.arguments import Ints, canonical, check_choice, per_axis

__all__ = [
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "conv",
    "conv_transpose",
    "depthwise_conv",
    "max_pool",
    "separable_conv",
]

_LAYOUTS = {None: "NHWC", "channels_last": "NHWC", "channels_first": "NCHW"}


def _geometry(function: str, inputs: np.ndarray, data_format: str | None) -> tuple[int, str]:
    """The number of spatial axes and fastconv's name of the layout."""
    check_choice(function, "data_format", data_format, tuple(_LAYOUTS))
    rank = np.ndim(inputs) - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            f"{function}: inputs must have a batch axis, 1 to 3 spatial axes and channels, "
            f"got shape {np.shape(inputs)}"
        )
    return rank, _LAYOUTS[data_format]


def _padding(function: str, padding: Any) -> str:
    """In small letters, as Keras has it."""
    lowered = padding.lower() if isinstance(padding, str) else padding
    check_choice(function, "padding", lowered, ("valid", "same"))
    return str(lowered)


def _channels(inputs: np.ndarray, layout: str) -> int:
    return int(inputs.shape[-1 if layout == "NHWC" else 1])


def _check_kernel(function: str, name: str, kernel: np.ndarray, rank: int) -> None:
    if np.ndim(kernel) != rank + 2:
        raise ValueError(
            f"{function}: {name} must have {rank} spatial axes, as inputs has, and two of channels, "
            f"got shape {np.shape(kernel)}"
        )


def _channels_first(kernel: np.ndarray, layout: str) -> np.ndarray:
    """A kernel (*spatial, in, out) as fastconv takes it together with x in `layout`."""
    return kernel if layout == "NHWC" else np.moveaxis(kernel, (-1, -2), (0, 1))


def conv(
    inputs: np.ndarray,
    kernel: np.ndarray,
    strides: Ints = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Ints = 1,
) -> np.ndarray:
    """Convolution in one to three dimensions: `keras.ops.conv`.

    Parameters
    ----------
    inputs : ndarray, (N, *spatial, C), or (N, C, *spatial) with ``data_format="channels_first"``
        float32 or float64.
    kernel : ndarray, (*kernel, C // groups, K)
        Fewer input channels than `inputs` has make as many groups as it takes.
    strides, dilation_rate : int or one int per spatial axis
    padding : "valid" or "same"
        With "same" the result has the size ceil(size / stride); the odd cell of padding is at the end.
    data_format : "channels_last", "channels_first" or None
        None is "channels_last".

    Returns
    -------
    ndarray, (N, *out, K) or (N, K, *out)

    Raises
    ------
    ValueError
        Shapes or values that do not fit together; a result without cells.
    TypeError
        Another dtype than float32 or float64, several dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> conv(np.ones((2, 9, 3)), np.ones((5, 3, 4)), padding="same").shape
    (2, 9, 4)
    """
    rank, layout = _geometry("conv", inputs, data_format)
    _check_kernel("conv", "kernel", kernel, rank)
    channels, group_in = _channels(inputs, layout), int(kernel.shape[-2])
    if group_in == 0 or channels % group_in:
        raise ValueError(
            f"conv: the {channels} channels of inputs must be a multiple of the kernel's {group_in}; "
            f"inputs.shape = {inputs.shape}, kernel.shape = {kernel.shape}"
        )
    facts = (strides, _padding("conv", padding), dilation_rate, max(1, channels // group_in))
    y: np.ndarray = _conv(rank)(inputs, _channels_first(kernel, layout), None, *facts, layout=layout)
    return y


def _conv(rank: int) -> Any:
    return (F.conv1d, F.conv2d, F.conv3d)[rank - 1]


def depthwise_conv(
    inputs: np.ndarray,
    kernel: np.ndarray,
    strides: Ints = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Ints = 1,
) -> np.ndarray:
    """Convolution of each channel by itself: `keras.ops.depthwise_conv`.

    Parameters
    ----------
    inputs, strides, padding, data_format, dilation_rate
        As in `conv`.
    kernel : ndarray, (*kernel, C, M)
        M results for every channel.

    Returns
    -------
    ndarray, (N, *out, C * M) or (N, C * M, *out)
        A channel's results next to each other.

    Raises
    ------
    ValueError, TypeError
        As `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> depthwise_conv(np.ones((2, 8, 8, 3)), np.ones((3, 3, 3, 2))).shape
    (2, 6, 6, 6)
    """
    rank, layout = _geometry("depthwise_conv", inputs, data_format)
    _check_kernel("depthwise_conv", "kernel", kernel, rank)
    return _depthwise("depthwise_conv", inputs, kernel, strides, padding, layout, dilation_rate)


def _depthwise(
    function: str,
    inputs: np.ndarray,
    kernel: np.ndarray,
    strides: Ints,
    padding: str,
    layout: str,
    dilation_rate: Ints,
) -> np.ndarray:
    *spatial, channels, multiplier = kernel.shape
    if _channels(inputs, layout) != channels:
        raise ValueError(
            f"{function}: inputs and kernel must have as many channels, got {_channels(inputs, layout)} "
            f"and {channels}; inputs.shape = {inputs.shape}, kernel.shape = {kernel.shape}"
        )
    weight = _channels_first(np.reshape(kernel, (*spatial, 1, channels * multiplier)), layout)
    facts = (strides, _padding(function, padding), dilation_rate, max(1, channels))
    y: np.ndarray = _conv(len(spatial))(inputs, weight, None, *facts, layout=layout)
    return y


def separable_conv(
    inputs: np.ndarray,
    depthwise_kernel: np.ndarray,
    pointwise_kernel: np.ndarray,
    strides: Ints = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Ints = 1,
) -> np.ndarray:
    """Convolution of each channel by itself, then over the channels of each cell: `keras.ops.separable_conv`.

    Parameters
    ----------
    inputs, strides, padding, data_format, dilation_rate
        As in `depthwise_conv`.
    depthwise_kernel : ndarray, (*kernel, C, M)
    pointwise_kernel : ndarray, (*ones, C * M, K)

    Returns
    -------
    ndarray, (N, *out, K) or (N, K, *out)

    Raises
    ------
    ValueError, TypeError
        As `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> separable_conv(np.ones((2, 8, 8, 3)), np.ones((3, 3, 3, 2)), np.ones((1, 1, 6, 4))).shape
    (2, 6, 6, 4)
    """
    rank, layout = _geometry("separable_conv", inputs, data_format)
    _check_kernel("separable_conv", "depthwise_kernel", depthwise_kernel, rank)
    _check_kernel("separable_conv", "pointwise_kernel", pointwise_kernel, rank)
    between = depthwise_kernel.shape[-2] * depthwise_kernel.shape[-1]
    if pointwise_kernel.shape[:-1] != (*(1,) * rank, between):
        raise ValueError(
            f"separable_conv: pointwise_kernel must have shape {(*(1,) * rank, between, 'K')}, "
            f"got {pointwise_kernel.shape}; depthwise_kernel.shape = {depthwise_kernel.shape}"
        )
    facts = (strides, padding, layout, dilation_rate)
    hidden = _depthwise("separable_conv", inputs, depthwise_kernel, *facts)
    y: np.ndarray = _conv(rank)(hidden, _channels_first(pointwise_kernel, layout), layout=layout)
    return y


def conv_transpose(
    inputs: np.ndarray,
    kernel: np.ndarray,
    strides: Ints = 1,
    padding: str = "valid",
    output_padding: Ints | None = None,
    data_format: str | None = None,
    dilation_rate: Ints = 1,
) -> np.ndarray:
    """Transposed convolution in one to three dimensions: `keras.ops.conv_transpose`.

    Parameters
    ----------
    inputs, strides, data_format, dilation_rate
        As in `conv`.
    kernel : ndarray, (*kernel, K, C)
    padding : "valid" or "same"
        What the convolution had whose input gradient this is. With R = dilation * (kernel - 1) + 1, the size
        of the result is (size - 1) * stride + R with "valid" and (size - 1) * stride + R % 2 with "same".
    output_padding : int or one int per spatial axis, optional
        That many cells more at the end, fewer than the stride. None chooses the number for which the result
        has the size (size - 1) * stride + max(R, stride) with "valid" and size * stride with "same".

    Returns
    -------
    ndarray, (N, *out, K) or (N, K, *out)

    Raises
    ------
    ValueError, TypeError
        As `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> conv_transpose(np.ones((2, 7, 7, 8)), np.ones((3, 3, 4, 8)), strides=2, padding="same").shape
    (2, 14, 14, 4)
    """
    rank, layout = _geometry("conv_transpose", inputs, data_format)
    _check_kernel("conv_transpose", "kernel", kernel, rank)
    stride = per_axis("conv_transpose", "strides", canonical(strides), rank)
    dilation = per_axis("conv_transpose", "dilation_rate", canonical(dilation_rate), rank)
    same = _padding("conv_transpose", padding) == "same"
    given: Sequence[int | None] = (None,) * rank
    if output_padding is not None:
        given = per_axis("conv_transpose", "output_padding", canonical(output_padding), rank, least=0)
    pads, extra = [], []
    for k, s, d, cells in zip(kernel.shape, stride, dilation, given, strict=False):
        reach = d * (k - 1) + 1
        if cells is not None and cells >= s:
            raise ValueError(
                f"conv_transpose: output_padding must be smaller than strides, got "
                f"output_padding = {output_padding}, strides = {strides}"
            )
        # what is cut off from (size - 1) * stride + reach cells; if that is less than nothing, what is added
        if same:
            cut = reach - s if cells is None else reach - reach % 2 - cells
        else:
            cut = min(0, reach - s) if cells is None else -cells
        before = max(0, cut // 2)
        pads.append((before, max(0, cut - before)))
        extra.append(max(0, before - cut))
    # fastconv's weight is (C, K, *kernel), or (*kernel, K, C) with channels last, as here
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    weight = _channels_first(kernel, layout)
    return function(inputs, weight, None, stride, pads, extra, 1, dilation, layout=layout)


def max_pool(
    inputs: np.ndarray,
    pool_size: Ints,
    strides: Ints | None = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> np.ndarray:
    """Largest cell of each window, per channel: `keras.ops.max_pool`.

    Parameters
    ----------
    inputs, padding, data_format
        As in `conv`; cells of the padding are never the largest.
    pool_size : int or one int per spatial axis
    strides : int or one int per spatial axis, optional
        None means `pool_size`.

    Returns
    -------
    ndarray, (N, *out, C) or (N, C, *out)

    Raises
    ------
    ValueError, TypeError
        As `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> max_pool(np.arange(5.0).reshape(1, 5, 1), 2, padding="same")[0, :, 0]
    array([1., 3., 4.])
    """
    rank, layout = _geometry("max_pool", inputs, data_format)
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    y: np.ndarray = function(inputs, pool_size, strides, _padding("max_pool", padding), layout=layout)
    return y


def average_pool(
    inputs: np.ndarray,
    pool_size: Ints,
    strides: Ints | None = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> np.ndarray:
    """Mean of the cells of each window, per channel: `keras.ops.average_pool`.

    Parameters
    ----------
    inputs, pool_size, strides, padding, data_format
        As in `max_pool`; cells of the padding do not count.

    Returns
    -------
    ndarray, (N, *out, C) or (N, C, *out)

    Raises
    ------
    ValueError, TypeError
        As `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> average_pool(np.arange(5.0).reshape(1, 5, 1), 2, padding="same")[0, :, 0]
    array([0.5, 2.5, 4. ])
    """
    rank, layout = _geometry("average_pool", inputs, data_format)
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    facts = (pool_size, strides, _padding("average_pool", padding))
    y: np.ndarray = function(inputs, *facts, count_include_pad=False, layout=layout)
    return y


def adaptive_average_pool(
    inputs: np.ndarray, output_size: Ints, data_format: str | None = None
) -> np.ndarray:
    """Mean of windows that divide the inputs into `output_size` parts: `keras.ops.adaptive_average_pool`.

    Parameters
    ----------
    inputs, data_format
        As in `conv`.
    output_size : int or one int per spatial axis

    Returns
    -------
    ndarray, (N, *output_size, C) or (N, C, *output_size)

    Raises
    ------
    ValueError, TypeError
        As `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_average_pool(np.arange(5.0).reshape(1, 5, 1), 2)[0, :, 0]
    array([1., 3.])
    """
    rank, layout = _geometry("adaptive_average_pool", inputs, data_format)
    function = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[rank - 1]
    return function(inputs, output_size, layout=layout)


def adaptive_max_pool(inputs: np.ndarray, output_size: Ints, data_format: str | None = None) -> np.ndarray:
    """Largest cell of the windows of `adaptive_average_pool`: `keras.ops.adaptive_max_pool`.

    Parameters
    ----------
    inputs, output_size, data_format
        As in `adaptive_average_pool`.

    Returns
    -------
    ndarray, (N, *output_size, C) or (N, C, *output_size)

    Raises
    ------
    ValueError, TypeError
        As `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> adaptive_max_pool(np.arange(5.0).reshape(1, 5, 1), 2)[0, :, 0]
    array([2., 4.])
    """
    rank, layout = _geometry("adaptive_max_pool", inputs, data_format)
    function: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[rank - 1]
    y: np.ndarray = function(inputs, output_size, layout=layout)
    return y
