"""The boundary between the user's dask arrays and the graphs: checks, made before anything is computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from fastconv.functional.arrays import index_array, real_arrays
from fastconv.shapes import array_shape


def data_array(function: str, name: str, value: Any) -> da.Array:
    """Check that an array is one of dask's, and that its shape is known."""
    if not isinstance(value, da.Array):
        plain = f"; for NumPy arrays there is fastconv.{function}" if isinstance(value, np.ndarray) else ""
        raise TypeError(f"{function}: {name} must be a dask.array.Array, got {type(value).__name__}{plain}")
    if any(np.isnan(size) for size in value.shape):
        raise ValueError(
            f"{function}: {name} must have chunks of known sizes, got shape {value.shape}; "
            f"call {name}.compute_chunk_sizes() first"
        )
    return value


def real_dtype(function: str, **arrays: Any) -> np.dtype:
    """Check the dtypes of arrays, NumPy's or dask's, as fastconv's functions of NumPy arrays do."""
    facts = {name: getattr(array, "_meta", array) for name, array in arrays.items()}
    dtype, _ = real_arrays(function, **facts)
    return dtype


def native(array: da.Array, dtype: np.dtype) -> da.Array:
    """The array in the machine's order of bytes."""
    return array if array.dtype.isnative else array.astype(dtype)


def parameter(array: Any, dtype: np.dtype) -> da.Array:
    """A weight or bias as a dask array of one chunk; NumPy's are copied, as they may change meanwhile."""
    if not isinstance(array, da.Array):
        array = da.from_array(np.array(array, dtype, order="C"), chunks=-1)
    array = native(array, dtype)
    return array if array.npartitions == 1 else array.rechunk(-1)


def check_index_dtype(function: str, name: str, value: da.Array) -> None:
    index_array(function, name, value._meta)


class Axes(NamedTuple):
    """Where batch, channels and space are in arrays like x."""

    batched: bool
    rank: int
    layout: str

    @property
    def channel(self) -> int:
        return int(self.batched) if self.layout == "NCHW" else int(self.batched) + self.rank

    @property
    def space(self) -> tuple[int, ...]:
        """The spatial axes."""
        first = int(self.batched) + (self.layout == "NCHW")
        return tuple(range(first, first + self.rank))

    def arranged(self, batch: Any, channels: Any, spatial: Any) -> list[Any]:
        """One thing per axis, in the order of the layout."""
        lead = [batch] if self.batched else []
        return [*lead, channels, *spatial] if self.layout == "NCHW" else [*lead, *spatial, channels]


def axes_of_array(function: str, name: str, shape: tuple[int, ...], rank: int, layout: str) -> Axes:
    return Axes(array_shape(function, name, shape, rank, layout).batched, rank, layout)


def chunked(array: da.Array, axes: Axes) -> da.Array:
    """The array with all channels in one chunk, and no chunk that is empty."""
    wanted: dict[int, Any] = {}
    for axis, sizes in enumerate(array.chunks):
        if len(sizes) > 1 and (axis == axes.channel or 0 in sizes):
            wanted[axis] = -1 if axis == axes.channel else tuple(size for size in sizes if size) or (0,)
    return array.rechunk(wanted) if wanted else array


def like(array: da.Array, other: da.Array, axes: Axes) -> da.Array:
    """`array` likewise, with the chunks of `other` along the batch."""
    array = chunked(array, axes)
    if axes.batched and array.chunks[0] != other.chunks[0]:
        array = array.rechunk({0: other.chunks[0]})
    return array
