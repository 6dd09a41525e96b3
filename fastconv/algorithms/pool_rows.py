"""Pooling by rows of vectors, for contiguous planes: see `fastconv.kernels.pool_rows`.

All that follows from the shape alone is worked out once and kept.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from fastconv.algorithms.pool_axes import covering, windows
from fastconv.algorithms.workspace import round_up, scratch
from fastconv.jit import DISABLED, Kernel, address_of
from fastconv.kernels import pool_gradients, pool_places, pool_planes, pool_rows
from fastconv.kernels.simd import LANES
from fastconv.shapes import PoolShape
from fastconv.threads import Prepared, task_count

#: Bytes of scratch rows that a block aims at. Of 2 to 32 KiB this was best: averages of 3 x 3 cells of
#: 112 x 112 took 0.56 ms, and 0.98 ms with 32 KiB.
BLOCK_BYTES = 4 << 10

#: Bytes of scratch rows of a task that are never too many; the arrays themselves allow for more.
MOST_TASK_BYTES = 1 << 20

#: Blocks that a task should have at least, so that tasks take alike.
BLOCKS_PER_TASK = 4

#: For each kernel that goes by rows the one for windows as large as planes.
BY_PLANES = {
    pool_rows.max_rows: pool_planes.max_planes,
    pool_places.max_rows_indices: pool_planes.max_planes,
    pool_rows.avg_rows: pool_planes.avg_planes,
    pool_rows.norm_rows: pool_planes.norm_planes,
}


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
def _prepare_forward(
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
    if kernel is pool_rows.norm_rows:  # 1 of a whole window
        rows, columns = rows / prod(shape.kernel[:2]), columns / kernel_x
    if kernel is pool_places.max_rows_indices:
        elements *= 2
    if kind == pool_rows.PLANE:
        kernel = BY_PLANES[kernel]
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
def _prepare_backward(
    shape: PoolShape, dtype: np.dtype, tasks: int, count_padding: bool, divisor: int
) -> _Rows:
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
    z_axis, y_axis = (covering(windows(shape, count_padding)[i], shape.input[i]) for i in range(2))
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


def forward(
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
    return _prepare_forward(kernel, shape, x.dtype, tasks, count_padding, divisor).run(x, y, indices)


def backward(
    grad_output: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
) -> bool:
    """The gradient of average pooling, if it can go by rows: whether it did."""
    if DISABLED or not (out.flags.c_contiguous and grad_output.flags.c_contiguous):
        return False
    tasks = task_count(out.size + grad_output.size, out.size)
    return _prepare_backward(shape, out.dtype, tasks, count_padding, divisor).run(grad_output, out)
