"""Convolution of 8-bit integers: exact sums in int32, and quantised from 8 bits to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.algorithms import integer as algorithm
from fastconv.arguments import LARGEST_ARGUMENT, Ints, Padding, canonical, check_bytes, integer, shown
from fastconv.functional import run
from fastconv.functional.arrays import check_shape, empty, lift_like_x, lift_weight, plain_array, zeros
from fastconv.shapes import ConvShape

__all__ = [
    "PackedIntegers",
    "conv_integer",
    "prepack_integer",
    "qlinear_conv",
]

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


class PackedIntegers:
    """An 8-bit weight for convolutions with its zero points taken off, packed: see `prepack_integer`.

    It does not follow the arrays that it was made of.

    Attributes
    ----------
    shape : tuple of int
        Of the weight.
    groups : int
        That it was packed for.

    Examples
    --------
    >>> import numpy as np
    >>> prepack_integer(np.ones((4, 3, 5, 5), np.int8)).shape
    (4, 3, 5, 5)
    """

    def __init__(self, weight: np.ndarray, zero_points: np.ndarray, groups: int) -> None:
        self.shape, self.groups = weight.shape, groups
        differences = np.subtract(weight, zero_points, dtype=np.int16)
        self.panels = np.empty(0, np.int16)
        if differences.size:
            self.panels = algorithm.pack(lift_weight(differences, weight.ndim - 2, "NCHW"), groups)

    def __repr__(self) -> str:
        return f"PackedIntegers({self.shape}, groups {self.groups}, {self.panels.nbytes:,} bytes)"


def prepack_integer(weight: np.ndarray, weight_zero_point: Any = 0, groups: int = 1) -> PackedIntegers:
    """A weight packed once for many calls of `conv_integer` or `qlinear_conv`.

    Parameters
    ----------
    weight, weight_zero_point, groups
        As the convolution would be given them.

    Returns
    -------
    PackedIntegers
        To be given in the place of weight, with the same `groups`; the zero points are part of it.

    Raises
    ------
    ValueError, TypeError
        As `conv_integer`.

    Examples
    --------
    >>> import numpy as np
    >>> packed = prepack_integer(np.ones((4, 3, 5, 5), np.int8), weight_zero_point=2)
    >>> conv_integer(np.ones((2, 3, 8, 8), np.uint8), packed).shape
    (2, 4, 4, 4)
    """
    return _packed("prepack_integer", weight, weight_zero_point, groups)


def conv_integer(
    x: np.ndarray,
    weight: np.ndarray,
    x_zero_point: Any = 0,
    weight_zero_point: Any = 0,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> np.ndarray:
    """Convolution of 8-bit integers, with exact sums in int32.

    The `conv2d` of x - x_zero_point with weight - weight_zero_point; padding counts as x_zero_point.

    Parameters
    ----------
    x : uint8 or int8 ndarray, (N, C, *spatial), with one to three spatial axes
    weight : uint8 or int8 ndarray, (K, C // groups, *kernel), or what `prepack_integer` makes of one
    x_zero_point : int, or an array of one
        A value of x's dtype.
    weight_zero_point : int, or an array of one or of K
        Values of weight's dtype.
    stride, padding, dilation, groups
        As in `conv2d`.

    Returns
    -------
    y : int32 ndarray, (N, K, *out)
        Sums beyond 32 bits, of which there are none below 33,025 products, wrap around.

    Raises
    ------
    ValueError
        Shapes or values that do not fit together.
    TypeError
        Another dtype than uint8 or int8.

    Notes
    -----
    As ONNX's ConvInteger.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    >>> conv_integer(x, np.ones((1, 1, 2, 2), np.uint8), x_zero_point=1)
    array([[[[ 4,  8],
             [16, 20]]]], dtype=int32)
    """
    function = "conv_integer"
    x, zero_point = _bytes_and_zero_point(function, x, x_zero_point)
    packed = _packed(function, weight, weight_zero_point, groups)
    shape = _geometry(function, x, packed, stride, padding, dilation, groups)
    return _sums(function, x, zero_point, packed, shape)


def qlinear_conv(
    x: np.ndarray,
    x_scale: Any,
    x_zero_point: Any,
    weight: np.ndarray,
    weight_scale: Any,
    weight_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> np.ndarray:
    """Convolution of quantised numbers, quantised again.

    An array stands for (array - zero_point) * scale. With s the sums of `conv_integer`, plus `bias`::

        y = s * (x_scale * weight_scale / y_scale) + y_zero_point

    rounded half to even before the zero point is added, and no less and no more than y's dtype has.

    Parameters
    ----------
    x, x_zero_point, weight, weight_zero_point, stride, padding, dilation, groups
        As in `conv_integer`.
    x_scale, y_scale : float32, or an array of one
    weight_scale : float32, or an array of one or of K
    y_zero_point : uint8 or int8
        A NumPy number, or an array of one: its dtype is y's.
    bias : int32 ndarray, (K,), optional
        In units of x_scale * weight_scale.

    Returns
    -------
    y : ndarray of y_zero_point's dtype, (N, K, *out)

    Raises
    ------
    ValueError
        Shapes or values that do not fit together.
    TypeError
        A wrong dtype.

    Notes
    -----
    As ONNX's QLinearConv, and in its order. Scales are multiplied in float32, sums with them in float64.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    >>> qlinear_conv(x, 0.5, 1, np.ones((1, 1, 2, 2), np.int8), 0.5, 0, 2, np.uint8(3))
    array([[[[3, 4],
             [5, 5]]]], dtype=uint8)
    """
    function = "qlinear_conv"
    x, zero_point = _bytes_and_zero_point(function, x, x_zero_point)
    packed = _packed(function, weight, weight_zero_point, groups)
    shape = _geometry(function, x, packed, stride, padding, dilation, groups)
    point = _numbers(function, "y_zero_point", y_zero_point)
    if point.dtype not in _BYTES:
        raise TypeError(f"{function}: y_zero_point must have dtype uint8 or int8, got {point.dtype}")
    y_zero = _zero_point(function, "y_zero_point", point, point.dtype)
    ends = _scales(function, "x_scale", x_scale, 1), _scales(function, "y_scale", y_scale, 1)
    scales = _scales(function, "weight_scale", weight_scale, shape.out_channels)
    with np.errstate(all="ignore"):
        factors = ends[0] * scales / ends[1]
    if not np.isfinite(factors).all():
        raise ValueError(f"{function}: x_scale * weight_scale / y_scale must be finite in float32")
    if bias is not None:
        bias = plain_array(function, "bias", bias)
        if bias.dtype != np.int32:
            raise TypeError(f"{function}: bias must have dtype int32, got {bias.dtype}")
        check_shape(function, "bias", bias, (shape.out_channels,))
    sums = _sums(function, x, zero_point, packed, shape)
    y = empty(function, "the result", sums.shape, point.dtype)
    if y.size:
        channels_second = sums if x.ndim == shape.rank + 2 else sums[None]
        algorithm.requantize(channels_second, bias, factors, y_zero, y)
    return y


def _geometry(
    function: str,
    x: np.ndarray,
    packed: PackedIntegers,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> ConvShape:
    rank = len(packed.shape) - 2
    return run.geometry(function, rank, x.shape, packed.shape, stride, padding, dilation, groups, "NCHW")


def _sums(
    function: str, x: np.ndarray, x_zero_point: int, packed: PackedIntegers, shape: ConvShape
) -> np.ndarray:
    y = zeros(function, "the result", run.y_shape(shape, x.ndim), np.int32)
    if y.size and x.size:
        check_bytes(function, "the padded x", algorithm.padded_shape(shape), np.dtype(np.int16))
        check_bytes(function, "a table of windows", (3, shape.pixels), np.dtype(np.int64))
        lifted = lift_like_x(function, "x", x, shape.rank, "NCHW")
        out = lift_like_x(function, "y", y, shape.rank, "NCHW")
        algorithm.conv_integer(lifted, packed.panels, out, x_zero_point, shape)
    return y


# --- checks -----------------------------------------------------------------------------------------


def _bytes(function: str, name: str, value: Any) -> np.ndarray:
    array = plain_array(function, name, value)
    if array.dtype not in _BYTES:
        raise TypeError(f"{function}: {name} must have dtype uint8 or int8, got {array.dtype}")
    return array


def _bytes_and_zero_point(function: str, x: Any, zero_point: Any) -> tuple[np.ndarray, int]:
    x = _bytes(function, "x", x)
    return x, _zero_point(function, "x_zero_point", zero_point, x.dtype)


def _packed(function: str, weight: Any, zero_point: Any, groups: Any) -> PackedIntegers:
    """The weight packed, if it is not already."""
    groups = integer(function, "groups", canonical(groups), 1, LARGEST_ARGUMENT, "an int")
    if isinstance(weight, PackedIntegers):
        if weight.groups != groups:
            raise ValueError(f"{function}: weight was packed for groups = {weight.groups}, got {groups}")
        if _integers(function, "weight_zero_point", zero_point, np.dtype(np.int16), weight.shape[0]).any():
            raise ValueError(f"{function}: the zero points of a packed weight are part of it")
        return weight
    weight = _bytes(function, "weight", weight)
    if not 3 <= weight.ndim <= 5:
        raise ValueError(f"{function}: weight must have 3 to 5 axes, got shape {weight.shape}")
    if weight.shape[0] % groups:
        raise ValueError(
            f"{function}: the {weight.shape[0]} output channels of weight do not divide into "
            f"groups = {groups}"
        )
    check_bytes(function, "the packed weight", weight.shape, np.dtype(np.int16))
    return PackedIntegers(weight, _zero_points(function, zero_point, weight), groups)


def _zero_point(function: str, name: str, value: Any, dtype: np.dtype) -> int:
    """A single value of an 8-bit dtype."""
    return int(_integers(function, name, value, dtype, 1).item())


def _zero_points(function: str, value: Any, weight: np.ndarray) -> np.ndarray:
    """Those of weight, one or one for each output channel, to be subtracted from it."""
    points = _integers(function, "weight_zero_point", value, weight.dtype, weight.shape[0])
    return points.reshape(-1, *(1,) * (weight.ndim - 1))


def _numbers(function: str, name: str, value: Any) -> np.ndarray:
    """What the user has given for one number, or for one of each channel, as an array of some dtype."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: {name} is a masked array, whose mask would be ignored")
    try:
        return np.asarray(value)
    except Exception as error:  # lists of several lengths, or in themselves; what the user wrote
        raise TypeError(f"{function}: {name} must be a number, or an array, got {shown(value)}") from error


def _one_or_each(function: str, name: str, array: np.ndarray, channels: int) -> None:
    """Refuse what is neither one number nor one for each of so many channels."""
    if array.size != 1:
        if channels == 1:
            raise ValueError(f"{function}: {name} must be one value, got shape {array.shape}")
        check_shape(function, name, array, (channels,))


def _integers(function: str, name: str, value: Any, dtype: np.dtype, channels: int) -> np.ndarray:
    array = _numbers(function, name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {name} must be integers, got {array.dtype}")
    _one_or_each(function, name, array, channels)
    limits = np.iinfo(dtype)
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise ValueError(f"{function}: {name} must be values of {dtype}, got {shown(value)}")
    return array.astype(np.int16)


def _scales(function: str, name: str, value: Any, channels: int) -> np.ndarray:
    array = _numbers(function, name, value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{function}: {name} must be real numbers, got {array.dtype}")
    _one_or_each(function, name, array, channels)
    with np.errstate(all="ignore"):  # what overflows is refused with the product
        return array.reshape(-1).astype(np.float32)
