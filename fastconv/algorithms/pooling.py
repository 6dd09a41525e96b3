"""Pooling by kernels that read each window where it lies.

Contiguous planes, which are those of any channels-first array, go by rows of vectors
(`fastconv.kernels.pool_rows`); channels-last arrays by vectors of channels
(`fastconv.kernels.pool_channels`); the rest, as windows of varying width, cell by cell
(`fastconv.kernels.pooling`). All that follows from the shape alone is worked out once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from fastconv.algorithms.base import PoolAlgorithm
from fastconv.algorithms.workspace import round_up, scratch
from fastconv.jit import DISABLED, Kernel, address_of
from fastconv.kernels import pool_channels, pool_gradients, pool_places, pool_planes, pool_rows
from fastconv.kernels import pooling as kernels
from fastconv.kernels.simd import LANES
from fastconv.shapes import PoolShape, Triple
from fastconv.threads import Prepared, task_count

#: Bytes of scratch rows that a block aims at. Of 2 to 32 KiB this was best: averages of 3 x 3 cells of
#: 112 x 112 took 0.56 ms, and 0.98 ms with 32 KiB.
BLOCK_BYTES = 4 << 10

#: Bytes of scratch rows of a task that are never too many; the arrays themselves allow for more.
MOST_TASK_BYTES = 1 << 20

#: Bytes of a gradient that are cleared at a time, just before they are added to.
CLEAR_BYTES = 16 << 10

#: Blocks that a task should have at least, so that tasks take alike.
BLOCKS_PER_TASK = 4


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


def _covering(axis: Axis, size: int) -> Axis:
    """Which windows hold each of `size` cells, told as windows are; the extents stay those of the windows.

    A cell's windows are every `step`-th: those whose first cell is a multiple of the dilation away.
    """
    phase = axis.first % axis.step
    alike = np.flatnonzero(phase == phase[0])
    step = int(alike[1]) if len(alike) > 1 else len(phase)
    first, count = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for start in range(step):
        members = np.arange(start, len(phase), step)
        cells = np.arange(phase[start], size, axis.step)
        ended = np.searchsorted(axis.last[members], cells, "right")
        begun = np.searchsorted(axis.first[members], cells, "right")
        first[cells] = start + step * ended
        count[cells] = np.maximum(begun - ended, 0)
    return Axis(first, first + count * step, step, count, axis.extent)


@lru_cache(maxsize=256)
def _all_covering(axes: Axes, size: Triple) -> Axes:
    """`_covering` along each axis of a plane."""
    z, y, x = (_covering(axis, cells) for axis, cells in zip(axes, size, strict=True))
    return z, y, x


# --- by rows ------------------------------------------------------------------------------------


class _Rows:
    """A kernel of `pool_rows` with all that follows from the shape, and the tables it reads."""

    def __init__(
        self,
        kernel: Kernel,
        dtype: np.dtype,
        tasks: int,
        elements: int,
        tables: dict[str, np.ndarray],
        **sizes: int,
    ) -> None:
        self._tables = tables  # kept alive
        self._task_bytes = elements * dtype.itemsize
        self._scratch = tasks * self._task_bytes
        addresses = {name: address_of(table) for name, table in tables.items()}
        names = "x y indices scratch"
        self._prepared = Prepared(kernel, dtype, tasks, names, task_size=elements, **addresses, **sizes)

    def run(self, x: np.ndarray, y: np.ndarray, indices: np.ndarray | None = None) -> bool:
        """Whether it did: not where padding or dilation are so large that rows are nearly all padding."""
        if self._task_bytes > max(MOST_TASK_BYTES, 4 * (x.nbytes + y.nbytes)):
            return False
        places = 0 if indices is None else address_of(indices)
        self._prepared.run(address_of(x), address_of(y), places, scratch(self._scratch))
        return True


def _kind(shape: PoolShape) -> int:
    """Which of the kinds of window that `pool_rows` knows these are; those of a gradient may be PAIRS."""
    padded = any(shape.pad_before) or any(shape.pad_after)
    if padded or shape.dilation != (1, 1, 1):
        return pool_rows.ANY
    if shape.kernel == shape.input and shape.output == (1, 1, 1):
        return pool_rows.PLANE
    fits = tuple(o * s for o, s in zip(shape.output, shape.stride, strict=True)) == shape.input
    if fits and shape.kernel == shape.stride == (1, 2, 2):
        return pool_rows.PAIRS
    return pool_rows.FLAT if fits and shape.kernel[2] <= shape.stride[2] else pool_rows.ANY


def _extents(shape: PoolShape, count_padding: bool, divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the divisors of averages: of each row of windows, by depth and height, and each column."""
    z, y, x = (axis.extent for axis in windows(shape, count_padding))
    if divisor:
        return np.full(len(z) * len(y), divisor), np.ones_like(x)
    return np.outer(z, y).ravel(), x


def _block(row_size: int, itemsize: int, rows: int, all_rows: int, tasks: int) -> int:
    """How many of the `rows` of a plane make a block, of `all_rows` in all planes."""
    most = min(rows, max(1, BLOCK_BYTES // (row_size * itemsize)))
    return max(1, min(most, all_rows // (tasks * BLOCKS_PER_TASK))) if tasks > 1 else most


@lru_cache(maxsize=1024)
def _forward(
    kernel: Kernel, shape: PoolShape, dtype: np.dtype, tasks: int, count_padding: bool, divisor: int
) -> _Rows:
    """Max or average pooling by rows."""
    z_axis, y_axis, _ = windows(shape, count_padding)
    lanes = LANES[8 * dtype.itemsize]
    planes = shape.batch * shape.channels
    depth, height, width = shape.input
    out_depth, out_height, out_width = shape.output
    kernel_x, stride_x, dilation_x, pad_x = _sideways(shape)
    kind = _kind(shape)
    if kind == pool_rows.PAIRS and (kernel is pool_places.max_rows_indices or out_width < lanes):
        kind = pool_rows.FLAT
    margin = round_up(pad_x, lanes)
    reach = (kernel_x - 1) * dilation_x
    if kind == pool_rows.FLAT:
        row_size = width
    else:
        reals = max(width, lanes, reach - pad_x + stride_x * max(out_width, lanes))
        row_size = round_up(margin + reals, lanes)
    all_rows = planes * out_depth * out_height
    block = _block(row_size, dtype.itemsize, out_height, all_rows, tasks)
    if kind == pool_rows.FLAT:
        cells = block * out_width
        elements = round_up(block * width + reach + stride_x * lanes, lanes)
    else:
        elements, cells = block * row_size, out_width
    rows, columns = _extents(shape, count_padding, divisor)
    if kernel is pool_places.max_rows_indices:
        elements *= 2
    if kind == pool_rows.PLANE:
        kernel = pool_planes.avg_planes if kernel is pool_rows.avg_rows else pool_planes.max_planes
        elements = lanes * lanes
        cells, columns = 0, rows[:1] * columns[:1]
    tables = {
        "first_z": z_axis.first,
        "count_z": z_axis.cells,
        "first_y": y_axis.first,
        "count_y": y_axis.cells,
        "extent_y": rows.astype(dtype),
        "extent_x": np.resize(columns, cells + lanes).astype(dtype),
    }
    return _Rows(
        kernel,
        dtype,
        tasks,
        elements,
        tables,
        planes=planes,
        depth=depth,
        height=height,
        width=width,
        out_depth=out_depth,
        out_height=out_height,
        out_width=out_width,
        step_z=z_axis.step,
        step_y=y_axis.step,
        kernel_x=kernel_x,
        stride_x=stride_x,
        dilation_x=dilation_x,
        pad_x=pad_x,
        margin=margin,
        kind=kind,
        block=block,
        row_size=row_size,
    )


@lru_cache(maxsize=1024)
def _backward(shape: PoolShape, dtype: np.dtype, tasks: int, count_padding: bool, divisor: int) -> _Rows:
    """The gradient of average pooling by rows."""
    lanes = LANES[8 * dtype.itemsize]
    planes = shape.batch * shape.channels
    depth, height, width = shape.output
    out_depth, out_height, out_width = shape.input
    kernel_x, stride_x, dilation_x, pad_x = _sideways(shape)
    reach = (kernel_x - 1) * dilation_x
    margin = round_up(reach - pad_x, lanes)
    reals = max(stride_x * max(width, lanes), pad_x + max(out_width, lanes))
    row_size = round_up(margin + reals, lanes)
    block = _block(row_size, dtype.itemsize, out_height, planes * out_depth * out_height, tasks)
    kind = _kind(shape)
    if kind == pool_rows.PAIRS:
        block = round_up(block, 2)
    kernel = pool_gradients.avg_rows_backward
    rows, columns = _extents(shape, count_padding, divisor)
    if kind in (pool_rows.PAIRS, pool_rows.PLANE):
        columns = rows[:1] * columns[:1]
    if kind == pool_rows.PLANE:
        kernel = pool_planes.avg_planes_backward
    tables = {
        "extent_y": (1 / rows).astype(dtype),
        "extent_x": (1 / np.resize(columns, width + lanes)).astype(dtype),
    }
    z_axis, y_axis = (_covering(windows(shape, count_padding)[i], shape.input[i]) for i in range(2))
    tables["first_z"], tables["count_z"] = z_axis.first, z_axis.cells
    tables["first_y"], tables["count_y"] = y_axis.first, y_axis.cells
    return _Rows(
        kernel,
        dtype,
        tasks,
        block * row_size,
        tables,
        planes=planes,
        depth=depth,
        height=height,
        width=width,
        out_depth=out_depth,
        out_height=out_height,
        out_width=out_width,
        step_z=z_axis.step,
        step_y=y_axis.step,
        kernel_x=kernel_x,
        stride_x=stride_x,
        dilation_x=dilation_x,
        pad_x=pad_x,
        margin=margin,
        kind=kind,
        block=block,
        row_size=row_size,
    )


def _sideways(shape: PoolShape) -> tuple[int, int, int, int]:
    return shape.kernel[2], shape.stride[2], shape.dilation[2], shape.pad_before[2]


def _by_rows(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    shape: PoolShape,
    indices: np.ndarray | None = None,
    count_padding: bool = True,
    divisor: int = 0,
) -> bool:
    """Run a kernel of `pool_rows` forward, if it can: whether it did."""
    if DISABLED or not (x.flags.c_contiguous and y.flags.c_contiguous):
        return False
    tasks = task_count(x.size + y.size, y.size)
    return _forward(kernel, shape, x.dtype, tasks, count_padding, divisor).run(x, y, indices)


# --- window by window ----------------------------------------------------------------------------

#: For each kernel that goes cell by cell the one for channels-last arrays, by vectors of channels.
BY_CHANNELS = {
    kernels.max_pool: pool_channels.max_channels,
    kernels.avg_pool: pool_channels.avg_channels,
    pool_channels.avg_channels_backward: pool_channels.avg_channels_backward,
}


def _are_channels_last(*arrays: np.ndarray) -> bool:
    """Whether each cell's channels are neighbours, and vectors can be used."""
    return not DISABLED and all(a.shape[1] > 1 and a.strides[1] == a.itemsize for a in arrays)


@lru_cache(maxsize=1024)
def _prepare(
    kernel: Kernel,
    dtype: np.dtype,
    tasks: int,
    x: tuple[tuple[int, ...], tuple[int, ...]],
    y: tuple[tuple[int, ...], tuple[int, ...]],
    axes: Axes,
    divisor: int,
) -> tuple[Prepared, Axes]:
    """A kernel for arrays x and y, of which shape and strides are told; and what must be kept alive."""
    fields = {}
    for name, (_, strides) in (("x", x), ("y", y)):
        for axis_name, stride in zip("nczyx", strides, strict=True):
            fields[f"{name}_{axis_name}"] = stride // dtype.itemsize
    for name, axis in zip("zyx", axes, strict=True):
        fields["first_" + name] = address_of(axis.first)
        fields["last_" + name] = address_of(axis.last)
        fields["step_" + name] = axis.step
        fields["extent_" + name] = address_of(axis.extent)
    if not divisor and all((axis.extent == axis.extent[0]).all() for axis in axes):
        divisor = prod(int(axis.extent[0]) for axis in axes)  # need not be worked out for each window
    fields["images"], fields["channels"], fields["depth"], fields["height"], fields["width"] = x[0]
    fields["out_depth"], fields["out_height"], fields["out_width"] = y[0][2:]
    prepared = Prepared(kernel, dtype, tasks, "x y indices", divisor=divisor, **fields)
    return prepared, axes


def _run(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    axes: Axes,
    indices: np.ndarray | None = None,
    divisor: int = 0,
) -> None:
    units = x.shape[0] * x.shape[1]
    narrow = indices is None or prod(x.shape[2:]) < pool_rows.NOWHERE
    if kernel in BY_CHANNELS and narrow and _are_channels_last(x, y):
        units = x.shape[0] * y.shape[2] * y.shape[3]
        kernel = BY_CHANNELS[kernel]
    tasks = task_count(x.size + y.size, units)
    arrays = (x.shape, x.strides), (y.shape, y.strides)
    prepared = _prepare(kernel, x.dtype, tasks, *arrays, axes, divisor)[0]
    prepared.run(address_of(x), address_of(y), 0 if indices is None else address_of(indices))


def max_pool(x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, axes: Axes) -> None:
    """out, indices = the largest cell of each window and its flat position in the plane."""
    _run(kernels.max_pool, x, out, axes, indices=indices)


def avg_pool(x: np.ndarray, out: np.ndarray, axes: Axes, divisor: int = 0) -> None:
    """out = the mean of each window."""
    _run(kernels.avg_pool, x, out, axes, divisor=divisor)


def avg_pool_backward(grad_output: np.ndarray, out: np.ndarray, axes: Axes, divisor: int = 0) -> None:
    """out = each gradient, divided, added to every cell of its window."""
    if _are_channels_last(grad_output, out):
        size: Triple = out.shape[2:]
        _run(pool_channels.avg_channels_backward, grad_output, out, _all_covering(axes, size), None, divisor)
    else:
        _run(kernels.avg_pool_backward, out, grad_output, axes, divisor=divisor)


@lru_cache(maxsize=1024)
def _scatter(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], dtype: np.dtype, tasks: int, channels_last: bool
) -> Prepared:
    images, channels = x_shape[:2]
    cells, out_cells = prod(x_shape[2:]), prod(y_shape[2:])
    step = channels if channels_last else 1  # from cell to cell
    return Prepared(
        kernels.max_pool_backward,
        dtype,
        tasks,
        "x y indices wrong",
        planes=images * channels,
        channels=channels,
        chunk=max(1, CLEAR_BYTES // (cells * dtype.itemsize)),
        cells=cells,
        out_cells=out_cells,
        x_n=channels * cells,
        x_x=step,
        y_n=channels * out_cells,
        y_x=step,
    )


def max_pool_backward(grad_output: np.ndarray, indices: np.ndarray, out: np.ndarray) -> bool:
    """out = each gradient added to the cell that its index names; whether all of them name one."""
    tasks = task_count(out.size + grad_output.size, out.shape[0] * out.shape[1])
    wrong = np.empty(tasks, np.int64)
    channels_last = not (out.flags.c_contiguous and grad_output.flags.c_contiguous)
    prepared = _scatter(out.shape, grad_output.shape, out.dtype, tasks, channels_last)
    prepared.run(address_of(out), address_of(grad_output), address_of(indices), address_of(wrong))
    return not wrong.any()


class DirectPool(PoolAlgorithm):
    name = "direct"
    summary = "each window read where it lies"

    def max_pool(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, shape: PoolShape) -> None:
        if indices is None:
            done = _by_rows(pool_rows.max_rows, x, out, shape)
        else:
            narrow = prod(shape.input) < pool_rows.NOWHERE
            done = narrow and _by_rows(pool_places.max_rows_indices, x, out, shape, indices)
        if not done:
            max_pool(x, out, indices, windows(shape, True))

    def avg_pool(
        self, x: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
    ) -> None:
        if not _by_rows(pool_rows.avg_rows, x, out, shape, None, count_padding, divisor):
            avg_pool(x, out, windows(shape, count_padding), divisor)

    def avg_pool_backward(
        self,
        grad_output: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        count_padding: bool,
        divisor: int,
    ) -> None:
        done = False
        if not DISABLED and out.flags.c_contiguous and grad_output.flags.c_contiguous:
            tasks = task_count(out.size + grad_output.size, out.size)
            done = _backward(shape, out.dtype, tasks, count_padding, divisor).run(grad_output, out)
        if not done:
            avg_pool_backward(grad_output, out, windows(shape, count_padding), divisor)
