"""Pooling by kernels that read each window where it lies.

Contiguous planes, which are those of any channels-first array, go by rows of vectors
(`fastconv.algorithms.pool_rows`); channels-last arrays by vectors of channels
(`fastconv.kernels.pool_channels`); the rest, as windows of varying width, cell by cell
(`fastconv.kernels.pooling`). All that follows from the shape alone is worked out once and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from fastconv.algorithms import pool_rows as by_rows
from fastconv.algorithms.base import PoolAlgorithm
from fastconv.algorithms.pool_axes import Axes, windows
from fastconv.jit import DISABLED, Kernel, address_of
from fastconv.kernels import pool_channels, pool_places, pool_rows
from fastconv.kernels import pooling as kernels
from fastconv.kernels.simd import LANES
from fastconv.shapes import PoolShape
from fastconv.threads import Prepared, get_num_threads, task_count

#: For each kernel that goes cell by cell the one for channels-last arrays, by vectors of channels.
BY_CHANNELS = {
    kernels.max_pool: pool_channels.max_channels,
    kernels.avg_pool: pool_channels.avg_channels,
    kernels.avg_pool_backward: pool_channels.avg_channels_backward,
}


def _is_channels_last(array: np.ndarray) -> bool:
    """Whether each cell's channels are neighbours."""
    return array.shape[1] > 1 and array.strides[1] == array.itemsize


@lru_cache(maxsize=1024)
def _prepare(
    kernel: Kernel,
    dtype: np.dtype,
    tasks: int,
    x: tuple[tuple[int, ...], tuple[int, ...]],
    y: tuple[tuple[int, ...], tuple[int, ...]],
    axes: Axes,
    divisor: int,
    taps: int,
    block_channels: int,
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
    fields["images"], fields["channels"], fields["depth"], fields["height"], fields["width"] = x[0]
    fields["out_depth"], fields["out_height"], fields["out_width"] = y[0][2:]
    fields["divisor"], fields["taps"], fields["block_channels"] = divisor, taps, block_channels
    prepared = Prepared(kernel, dtype, tasks, "x y indices", **fields)
    return prepared, axes


def _run(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    axes: Axes,
    indices: np.ndarray | None = None,
    divisor: int = 0,
    taps: int = 1,
) -> None:
    images, channels = x.shape[:2]
    units, block_channels = images * channels, channels
    narrow = indices is None or prod(x.shape[2:]) < pool_rows.NOWHERE
    if not DISABLED and narrow and _is_channels_last(x) and _is_channels_last(y):
        units = images * y.shape[2] * y.shape[3]
        if kernel is kernels.avg_pool_backward:
            if images < get_num_threads():
                block_channels = LANES[8 * x.itemsize]
            units = images * -(-channels // block_channels)
        kernel = BY_CHANNELS.get(kernel, kernel)
    tasks = task_count(x.size + y.size, units)
    arrays = (x.shape, x.strides), (y.shape, y.strides)
    prepared = _prepare(kernel, x.dtype, tasks, *arrays, axes, divisor, taps, block_channels)[0]
    prepared.run(address_of(x), address_of(y), 0 if indices is None else address_of(indices))


def max_pool(x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, axes: Axes) -> None:
    """out, indices = the largest cell of each window and its flat position in the plane."""
    if indices is not None and x.itemsize < 4:
        _by_wider_ints(max_pool, x, out, indices, axes)
        return
    _run(kernels.max_pool, x, out, axes, indices=indices)


def _by_wider_ints(
    run: Callable[[np.ndarray, np.ndarray, np.ndarray, Any], None],
    x: np.ndarray,
    out: np.ndarray,
    indices: np.ndarray,
    windows: Any,
) -> None:
    """Max pooling with indices of ints of 8 or 16 bits, in which kernels have no room for places."""
    y = np.empty_like(out, np.int32)
    run(x.astype(np.int32), y, indices, windows)
    out[...] = y


def avg_pool(x: np.ndarray, out: np.ndarray, axes: Axes, divisor: int = 0) -> None:
    """out = the mean of each window."""
    _run(kernels.avg_pool, x, out, axes, divisor=divisor)


def avg_pool_backward(grad_output: np.ndarray, out: np.ndarray, axes: Axes, divisor: int = 0) -> None:
    """out = each gradient, divided, added to every cell of its window."""
    _run(kernels.avg_pool_backward, out, grad_output, axes, divisor=divisor)


class DirectPool(PoolAlgorithm):
    name = "direct"
    summary = "each window read where it lies"

    def max_pool(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, shape: PoolShape) -> None:
        if indices is not None and x.itemsize < 4:
            _by_wider_ints(self.max_pool, x, out, indices, shape)
            return
        if indices is None:
            done = by_rows.forward(pool_rows.max_rows, x, out, shape)
        else:
            narrow = prod(shape.input) < pool_rows.NOWHERE
            done = narrow and by_rows.forward(pool_places.max_rows_indices, x, out, shape, indices)
        if not done:
            max_pool(x, out, indices, windows(shape, True))

    def avg_pool(
        self, x: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
    ) -> None:
        if not by_rows.forward(pool_rows.avg_rows, x, out, shape, None, count_padding, divisor):
            avg_pool(x, out, windows(shape, count_padding), divisor)

    def avg_pool_backward(
        self,
        grad_output: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        count_padding: bool,
        divisor: int,
    ) -> None:
        if not by_rows.backward(grad_output, out, shape, count_padding, divisor):
            avg_pool_backward(grad_output, out, windows(shape, count_padding), divisor)

    def lp_pool(self, x: np.ndarray, out: np.ndarray, shape: PoolShape, norm: float) -> None:
        if norm != 2 or DISABLED:
            super().lp_pool(x, out, shape, norm)
        elif not by_rows.forward(pool_rows.norm_rows, x, out, shape):
            if _is_channels_last(x) and _is_channels_last(out):
                _run(pool_channels.norm_channels, x, out, windows(shape, True), taps=shape.taps)
            else:
                super().lp_pool(x, out, shape, norm)
