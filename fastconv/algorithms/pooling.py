"""Pooling by kernels that read each window where it lies.

Planes whose rows are contiguous, which is any channels-first array, go by rows of vectors
(`fastconv.kernels.pool_rows`); the rest, and windows of varying width, cell by cell
(`fastconv.kernels.pooling`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import PoolAlgorithm
from fastconv.algorithms.workspace import workspace
from fastconv.jit import DISABLED, Kernel, address_of
from fastconv.kernels import pool_places, pool_rows
from fastconv.kernels import pooling as kernels
from fastconv.kernels.simd import LANES
from fastconv.shapes import PoolShape, Triple
from fastconv.threads import launch, task_count


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


def max_pool(
    x: np.ndarray,
    out: np.ndarray,
    indices: np.ndarray | None,
    axes: Axes,
    shape: PoolShape | None = None,
) -> None:
    """out, indices = the largest cell of each window and its flat position in the plane.

    `axes` say which cells the windows have; `shape` tells more of them where they all are of one kind.
    """
    if indices is None and _by_rows(pool_rows.max_rows, x, out, axes, shape):
        return
    if indices is not None and x[0, 0].size < pool_rows.NOWHERE:
        if _by_rows(pool_places.max_rows_indices, x, out, axes, shape, indices=indices):
            return
    _run(kernels.max_pool, x, out, axes, indices=indices)


def max_pool_backward(grad_output: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """out = each gradient added to the cell that its index names."""
    _run(kernels.max_pool_backward, out, grad_output, None, indices=indices)


def avg_pool(
    x: np.ndarray, out: np.ndarray, axes: Axes, divisor: int = 0, shape: PoolShape | None = None
) -> None:
    """out = the mean of each window."""
    if not _by_rows(pool_rows.avg_rows, x, out, axes, shape, divisor=divisor):
        _run(kernels.avg_pool, x, out, axes, divisor=divisor)


def avg_pool_backward(
    grad_output: np.ndarray,
    out: np.ndarray,
    axes: Axes,
    divisor: int = 0,
    shape: PoolShape | None = None,
) -> None:
    """out = each gradient, divided, added to every cell of its window."""
    _run(kernels.avg_pool_backward, out, grad_output, axes, divisor=divisor)


def _kind(x: np.ndarray, axes: Axes, shape: PoolShape | None) -> int | None:
    """Which of the kinds of window that `pool_rows` knows these are, or None."""
    size = x.shape[2:]
    if all(
        len(axis.first) == 1 and axis.step == 1 and axis.first[0] == 0 and axis.last[0] == cells
        for axis, cells in zip(axes, size, strict=True)
    ):
        return pool_rows.PLANE
    if shape is None:
        return None
    pairs = shape.kernel == shape.stride == (1, 2, 2) and shape.dilation == (1, 1, 1)
    if pairs and all(o * s <= n for o, s, n in zip(shape.output, shape.stride, size, strict=True)):
        if shape.pad_before == (0, 0, 0):
            return pool_rows.PAIRS
    return pool_rows.ANY


def _by_rows(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    axes: Axes,
    shape: PoolShape | None,
    indices: np.ndarray | None = None,
    divisor: int = 0,
) -> bool:
    """Run a kernel of `pool_rows`, if it can: whether it did."""
    rows = x.flags.c_contiguous and y.flags.c_contiguous
    kind = None if DISABLED or not rows else _kind(x, axes, shape)
    if kind is None:
        return False
    z_axis, y_axis, x_axis = axes
    lanes = LANES[8 * x.itemsize]
    width, out_width = x.shape[4], y.shape[4]
    if kind == pool_rows.PLANE:
        window = (width, 1, 1, 0)
    else:
        assert shape is not None
        window = (shape.kernel[2], shape.stride[2], shape.dilation[2], shape.pad_before[2])
    kernel_x, stride_x, dilation_x, pad_x = window
    row_size = pool_rows.row_size(lanes, width, kernel_x, stride_x, dilation_x, pad_x, out_width)
    tasks = task_count(x.size + y.size, x.shape[0] * x.shape[1])
    extents, scratch = workspace(x.dtype, (out_width + lanes,), (tasks * pool_rows.SCRATCH_ROWS * row_size,))
    extents[:out_width] = 1 if divisor else x_axis.extent
    extents[out_width:] = 1
    launch(
        kernel,
        x.dtype,
        tasks,
        x=address_of(x),
        y=address_of(y),
        indices=0 if indices is None else address_of(indices),
        **_strides_and_sizes(x, y),
        first_z=address_of(z_axis.first),
        last_z=address_of(z_axis.last),
        first_y=address_of(y_axis.first),
        last_y=address_of(y_axis.last),
        step_z=z_axis.step,
        step_y=y_axis.step,
        kernel_x=kernel_x,
        stride_x=stride_x,
        dilation_x=dilation_x,
        pad_x=pad_x,
        kind=kind,
        extent_z=address_of(z_axis.extent),
        extent_y=address_of(y_axis.extent),
        extent_x=address_of(extents),
        divisor=divisor,
        tiled=int(_tiles(z_axis, x.shape[2]) and _tiles(y_axis, x.shape[3])),
        scratch=address_of(scratch),
        row_size=row_size,
        margin=pool_rows.margin(lanes, kernel_x, dilation_x, pad_x),
    )
    return True


def _tiles(axis: Axis, size: int) -> bool:
    """Whether every cell of an axis is in exactly one window."""
    ends = np.append(axis.first, size)
    return axis.step == 1 and ends[0] == 0 and bool((axis.last == ends[1:]).all())


def _strides_and_sizes(x: np.ndarray, y: np.ndarray) -> dict[str, int]:
    """What both records of parameters have of x and y, in elements."""
    fields = {}
    for name, array in (("x", x), ("y", y)):
        for axis, stride in zip("nczy", array.strides, strict=False):
            fields[f"{name}_{axis}"] = stride // array.itemsize
    fields["images"], fields["channels"] = x.shape[:2]
    fields["depth"], fields["height"], fields["width"] = x.shape[2:]
    fields["out_depth"], fields["out_height"], fields["out_width"] = y.shape[2:]
    return fields


def _run(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    axes: Axes | None,
    indices: np.ndarray | None = None,
    divisor: int = 0,
) -> None:
    tables = {}
    for name, axis in zip("zyx", axes or (None, None, None), strict=True):
        tables["first_" + name] = address_of(axis.first) if axis else 0
        tables["last_" + name] = address_of(axis.last) if axis else 0
        tables["step_" + name] = axis.step if axis else 0
        tables["extent_" + name] = address_of(axis.extent) if axis else 0
    launch(
        kernel,
        x.dtype,
        task_count(x.size + y.size, x.shape[0] * x.shape[1]),
        x=address_of(x),
        y=address_of(y),
        indices=0 if indices is None else address_of(indices),
        **_strides_and_sizes(x, y),
        x_x=x.strides[4] // x.itemsize,
        y_x=y.strides[4] // y.itemsize,
        divisor=divisor,
        **tables,
    )


class DirectPool(PoolAlgorithm):
    name = "direct"
    summary = "each window read where it lies"

    def max_pool(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, shape: PoolShape) -> None:
        max_pool(x, out, indices, windows(shape, True), shape)

    def avg_pool(
        self, x: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
    ) -> None:
        avg_pool(x, out, windows(shape, count_padding), divisor, shape)

    def avg_pool_backward(
        self,
        grad_output: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        count_padding: bool,
        divisor: int,
    ) -> None:
        avg_pool_backward(grad_output, out, windows(shape, count_padding), divisor, shape)
