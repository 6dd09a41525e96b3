"""Pooling by kernels that walk each window where it lies."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import PoolAlgorithm
from fastconv.jit import Kernel, address_of
from fastconv.kernels import pooling as kernels
from fastconv.shapes import PoolShape, Triple
from fastconv.threads import launch


class Axis(NamedTuple):
    """The windows along one axis: window o has the cells range(first[o], last[o], step)."""

    first: np.ndarray
    last: np.ndarray
    step: int
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
    if count_padding:
        extent = -((start - np.minimum(end, size + after)) // dilation)
    else:
        extent = -((first - last) // dilation)
    return Axis(first, last, dilation, extent)


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
        return Axis(first, last, 1, last - first)

    z, y, x = (axis(*pair) for pair in zip(size, output, strict=True))
    return z, y, x


def max_pool(x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, axes: Axes) -> None:
    """out, indices = the largest cell of each window and its flat position in the plane."""
    _run(kernels.max_pool, x, out, axes, indices=indices)


def max_pool_backward(grad_output: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """out = each gradient added to the cell that its index names."""
    _run(kernels.max_pool_backward, out, grad_output, None, indices=indices)


def avg_pool(x: np.ndarray, out: np.ndarray, axes: Axes, divisor: int = 0) -> None:
    """out = the mean of each window."""
    _run(kernels.avg_pool, x, out, axes, divisor=divisor)


def avg_pool_backward(grad_output: np.ndarray, out: np.ndarray, axes: Axes, divisor: int = 0) -> None:
    """out = each gradient, divided, added to every cell of its window."""
    _run(kernels.avg_pool_backward, out, grad_output, axes, divisor=divisor)


def _run(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    axes: Axes | None,
    indices: np.ndarray | None = None,
    divisor: int = 0,
) -> None:
    x_n, x_c, x_z, x_y, x_x = (stride // x.itemsize for stride in x.strides)
    y_n, y_c, y_z, y_y, y_x = (stride // y.itemsize for stride in y.strides)
    tables = {}
    for name, axis in zip("zyx", axes or (None, None, None), strict=True):
        tables["first_" + name] = address_of(axis.first) if axis else 0
        tables["last_" + name] = address_of(axis.last) if axis else 0
        tables["step_" + name] = axis.step if axis else 0
        tables["extent_" + name] = address_of(axis.extent) if axis else 0
    launch(
        kernel,
        x.dtype,
        work=x.size + y.size,
        units=x.shape[0] * x.shape[1],
        x=address_of(x),
        y=address_of(y),
        indices=0 if indices is None else address_of(indices),
        x_n=x_n,
        x_c=x_c,
        x_z=x_z,
        x_y=x_y,
        x_x=x_x,
        y_n=y_n,
        y_c=y_c,
        y_z=y_z,
        y_y=y_y,
        y_x=y_x,
        images=x.shape[0],
        channels=x.shape[1],
        depth=x.shape[2],
        height=x.shape[3],
        width=x.shape[4],
        out_depth=y.shape[2],
        out_height=y.shape[3],
        out_width=y.shape[4],
        divisor=divisor,
        **tables,
    )


class DirectPool(PoolAlgorithm):
    name = "direct"
    summary = "each window read where it lies"

    def max_pool(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, shape: PoolShape) -> None:
        max_pool(x, out, indices, windows(shape, True))

    def avg_pool(
        self, x: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
    ) -> None:
        avg_pool(x, out, windows(shape, count_padding), divisor)

    def avg_pool_backward(
        self,
        grad_output: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        count_padding: bool,
        divisor: int,
    ) -> None:
        avg_pool_backward(grad_output, out, windows(shape, count_padding), divisor)
