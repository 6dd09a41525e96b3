"""The boundary between the user's arrays and the algorithms'.

Coming in, arrays are checked, made contiguous, aligned and native, and viewed with three spatial axes in
logical order (N, C, D, H, W). Going out, the extra axes are dropped again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.arguments import check_bytes
from fastconv.functional.narrow import NarrowArrays, NarrowOut, is_narrow
from fastconv.shapes import array_shape

_FLOAT32: np.dtype[Any] = np.dtype(np.float32)
_FLOAT64: np.dtype[Any] = np.dtype(np.float64)


def _array(function: str, name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: {name} is a masked array, whose mask would be ignored; "
            "fill it first, as with .filled(0)"
        )
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        try:
            return np.asarray(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{function}: {name} must be a numpy.ndarray, or become one: {error}") from error
    raise TypeError(f"{function}: {name} must be a numpy.ndarray, got {type(value).__name__}")


def empty(function: str, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A fresh array, its contents arbitrary, if it fits in memory."""
    check_bytes(function, name, shape, np.dtype(dtype))
    return np.empty(shape, dtype)


def zeros(function: str, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A fresh array of zeros, if it fits in memory."""
    check_bytes(function, name, shape, np.dtype(dtype))
    return np.zeros(shape, dtype)


def _plain(function: str, name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array itself if kernels can read it, else a copy that they can."""
    if array.dtype is not dtype or not (array.flags.c_contiguous and array.flags.aligned):
        check_bytes(function, f"a copy of {name}", array.shape, dtype)
        array = np.ascontiguousarray(array, dtype)
        if not array.flags.aligned:
            array = array.copy()
    return array


def plain_array(function: str, name: str, value: Any) -> np.ndarray:
    """An array of any dtype in a form that kernels can read."""
    array = _array(function, name, value)
    return _plain(function, name, array, array.dtype.newbyteorder("="))


def real_arrays(function: str, **arrays: Any) -> tuple[np.dtype, list[Any]]:
    """Check that all arrays are float32 or all float64; a `bias` may be None.

    Returns the common dtype and the arrays in a form that kernels can read: native, aligned, contiguous.
    Where all are of 16 bits instead, that is told by `NarrowArrays`, to a caller who knows what to do.
    """
    common: np.dtype | None = None
    result: list[Any] = []
    for name, value in arrays.items():
        if value is None and name == "bias":
            result.append(None)
            continue
        array = value if type(value) is np.ndarray else _array(function, name, value)
        native = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
        if native == _FLOAT32:
            dtype = _FLOAT32
        elif native == _FLOAT64:
            dtype = _FLOAT64
        elif is_narrow(native):
            dtype = native
        else:
            raise TypeError(
                f"{function}: {name} must have dtype float32 or float64, got {array.dtype}; "
                f"convert it, as with {name}.astype(numpy.float32)"
            )
        if common is None:
            common = dtype
        elif dtype is not common and dtype != common:
            dtypes = ", ".join(  # those after it may be anything
                f"{key} {getattr(item, 'dtype', type(item).__name__)}"
                for key, item in arrays.items()
                if item is not None
            )
            raise TypeError(f"{function}: all arrays must have one dtype, got {dtypes}")
        result.append(array)
    assert common is not None
    if is_narrow(common):
        raise NarrowArrays(common)
    return common, [
        None if array is None else _plain(function, name, array, common)
        for name, array in zip(arrays, result, strict=True)
    ]


def ordered_array(function: str, name: str, value: Any) -> tuple[np.dtype, np.ndarray]:
    """As `real_arrays`, for one array that may be of integers, too."""
    array = value if type(value) is np.ndarray else _array(function, name, value)
    dtype = array.dtype
    if dtype is _FLOAT32 or dtype is _FLOAT64:  # the usual, soon
        return dtype, _plain(function, name, array, dtype)
    if dtype.kind in "iu":
        dtype = dtype.newbyteorder("=")
        return dtype, _plain(function, name, array, dtype)
    if dtype.kind == "b":
        raise TypeError(
            f"{function}: {name} must have dtype float32, float64 or an integer dtype, got bool; "
            f"convert it, as with {name}.astype(numpy.uint8)"
        )
    dtype, (array,) = real_arrays(function, **{name: array})
    return dtype, array


def index_array(function: str, name: str, value: Any) -> np.ndarray:
    """Integers of any kind as contiguous int64."""
    array = _array(function, name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {name} must have an integer dtype, got {array.dtype}")
    return _plain(function, name, array, np.dtype(np.int64))


def check_indices(function: str, name: str, array: Any, limit: int, plane: str = "input") -> None:
    """Refuse integers that are not all from 0 to `limit` - 1, in an array or what has one."""
    array = np.asarray(array)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if array.size and (low < 0 or high >= limit):
        raise ValueError(
            f"{function}: {name} must be positions in the {plane} plane, 0 to {limit - 1}, "
            f"got values from {low} to {high}"
        )


def check_shape(function: str, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {array.shape}")


def lift_weight(array: np.ndarray, rank: int, layout: str) -> np.ndarray:
    """View a weight as (K, C // groups, T, R, S)."""
    ones = (1,) * (3 - rank)
    if layout == "NCHW":
        return array.reshape(*array.shape[:2], *ones, *array.shape[2:])
    return array.reshape(*ones, *array.shape).transpose(4, 3, 0, 1, 2)


def lift_like_x(function: str, name: str, array: np.ndarray, rank: int, layout: str) -> np.ndarray:
    """View x, y or their like as (N, C, D, H, W)."""
    facts = array_shape(function, name, array.shape, rank, layout)
    ones = (1,) * (3 - rank)
    if layout == "NCHW":
        return array.reshape(facts.batch, facts.channels, *ones, *facts.spatial)
    return array.reshape(facts.batch, *ones, *facts.spatial, facts.channels).transpose(0, 4, 1, 2, 3)


class Output:
    """The array that a function returns: a fresh one, or the user's `out`.

    `array` is what the algorithm fills. Where `out` is not contiguous, or overlaps an input that is
    still to be read, that is another array, which `finish` copies into `out`.
    """

    def __init__(
        self,
        function: str,
        out: Any,
        shape: tuple[int, ...],
        dtype: np.dtype,
        inputs: tuple[np.ndarray | None, ...],
    ) -> None:
        stored = dtype
        if isinstance(out, NarrowOut):
            out, stored = out.array, out.dtype
        self._out = out
        self._indirect = False
        if out is None:
            self.array = empty(function, "the result", shape, dtype)
            return
        if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
            raise TypeError(f"{function}: out must be a numpy.ndarray, got {type(out).__name__}")
        if out.dtype != stored or not out.dtype.isnative:
            raise TypeError(f"{function}: out must have dtype {stored}, as x has, got {out.dtype}")
        check_shape(function, "out", out, shape)
        if not out.flags.writeable:
            raise ValueError(f"{function}: out is read-only")
        usable = out.flags.c_contiguous and out.flags.aligned
        overlaps = any(np.may_share_memory(out, array) for array in inputs if array is not None)
        self._indirect = overlaps or not usable or stored != dtype
        self.array = empty(function, "the result", shape, dtype) if self._indirect else np.asarray(out)

    def finish(self) -> np.ndarray:
        """The array to return."""
        out = self.array if self._out is None else self._out
        if self._indirect:
            out[...] = self.array
        return np.asanyarray(out)
