"""Which cells a window has: tables, one per axis, as the kernels of pooling read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastconv.shapes import PoolShape, Triple


@dataclass(frozen=True, eq=False)
class Axis:
    """The windows along one axis: window o has `cells[o]` cells, range(first[o], last[o], step)."""

    first: np.ndarray
    last: np.ndarray
    step: int
    cells: np.ndarray
    #: the axis' part of the number of cells that an average is divided by
    extent: np.ndarray


Axes = tuple[Axis, Axis, Axis]


def _axis(shape: PoolShape, axis: int, count_padding: bool) -> Axis:
    size, kernel, dilation = shape.input[axis], shape.kernel[axis], shape.dilation[axis]
    before, after = shape.pad_before[axis], shape.pad_after[axis]
    start = np.arange(shape.output[axis], dtype=np.int64) * shape.stride[axis] - before
    skipped = -(np.minimum(start, 0) // dilation)  # taps that lie in the padding before the axis
    first = start + skipped * dilation
    end = start + dilation * (kernel - 1) + 1
    last = np.minimum(end, size)
    count = -((first - last) // dilation)
    extent = -((start - np.minimum(end, size + after)) // dilation) if count_padding else count
    return Axis(first, last, dilation, count, extent)


@lru_cache(maxsize=256)
def windows(shape: PoolShape, count_padding: bool) -> Axes:
    """The windows of a pooling with a kernel."""
    z, y, x = (_axis(shape, axis, count_padding) for axis in range(3))
    return z, y, x


@lru_cache(maxsize=256)
def adaptive_windows(size: Triple, output: Triple) -> Axes:
    """The windows that divide `size` cells into `output` parts: o * size / output, rounded outwards."""

    def axis(cells: int, parts: int) -> Axis:
        o = np.arange(parts, dtype=np.int64)
        first = o * cells // parts
        last = -(-(o + 1) * cells // parts)
        return Axis(first, last, 1, last - first, last - first)

    z, y, x = (axis(*pair) for pair in zip(size, output, strict=True))
    return z, y, x
