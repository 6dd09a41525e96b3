"""What goes by indices: the gradient of max pooling, unpooling, and its gradient."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from fastconv.jit import Kernel, address_of
from fastconv.kernels import pooling as kernels
from fastconv.threads import Prepared, task_count

#: Bytes of a gradient that are cleared at a time, just before they are added to.
CLEAR_BYTES = 16 << 10


@lru_cache(maxsize=1024)
def _by_indices(
    kernel: Kernel,
    planes: tuple[int, ...],
    parts: tuple[int, ...],
    dtype: np.dtype,
    tasks: int,
    channels_last: bool,
) -> Prepared:
    images, channels = planes[:2]
    cells, out_cells = prod(planes[2:]), prod(parts[2:])
    step = channels if channels_last else 1  # from cell to cell
    return Prepared(
        kernel,
        dtype,
        tasks,
        "x y indices wrong",
        planes=images * channels,
        channels=channels,
        chunk=max(1, CLEAR_BYTES // (cells * dtype.itemsize)),
        cells=cells,
        out_cells=out_cells,
        x_n=channels * cells,
        x_c=1 if channels_last else cells,
        x_x=step,
        y_n=channels * out_cells,
        y_c=1 if channels_last else out_cells,
        y_x=step,
    )


def _run_by_indices(kernel: Kernel, planes: np.ndarray, parts: np.ndarray, indices: np.ndarray) -> bool:
    """Run a kernel of indices, of the shape of `parts`, into `planes`; whether all of them name a cell."""
    tasks = task_count(planes.size + parts.size, planes.shape[0] * planes.shape[1])
    wrong = np.empty(tasks, np.int64)
    channels_last = not (planes.flags.c_contiguous and parts.flags.c_contiguous)
    prepared = _by_indices(kernel, planes.shape, parts.shape, planes.dtype, tasks, channels_last)
    prepared.run(address_of(planes), address_of(parts), address_of(indices), address_of(wrong))
    return not wrong.any()


def max_pool_backward(grad_output: np.ndarray, indices: np.ndarray, out: np.ndarray) -> bool:
    """out = each gradient added to the cell that its index names; whether all of them name one."""
    return _run_by_indices(kernels.max_pool_backward, out, grad_output, indices)


def max_unpool(x: np.ndarray, indices: np.ndarray, out: np.ndarray) -> bool:
    """out = each cell of x where its index says, and 0 elsewhere; whether all of them say where."""
    return _run_by_indices(kernels.max_unpool, out, x, indices)


def max_unpool_backward(grad_output: np.ndarray, indices: np.ndarray, out: np.ndarray) -> bool:
    """out = for each index the gradient of the cell that it names; whether all of them name one."""
    return _run_by_indices(kernels.max_unpool_backward, grad_output, out, indices)
