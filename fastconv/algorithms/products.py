"""The products of a dense layer: how their work is cut; see `fastconv.kernels.products` for what is done.

NumPy leaves products to a BLAS with threads of its own, which then wait for work on the cores that the
kernels need, and the reverse: the product of 64 x 784 with 784 x 128 took 0.11 ms alone, and 0.28 ms between
convolutions. So products that fit the caches are done here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.workspace import places, scratch
from fastconv.jit import DISABLED, address_of
from fastconv.kernels import products as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.threads import Prepared, task_count

#: Multiplications below which NumPy's BLAS stays on one thread, and has less to prepare.
LEAST_WORK = 1 << 18
#: Most bytes of the matrix that each task packs whole, and of a panel of the other one.
PACKED_BYTES = 256 << 10
#: Most rows of x, all of which are read for each panel of outputs.
MOST_SAMPLES = 512
#: Bytes of a block of a row: ROWS of them stay in L1.
BLOCK_BYTES = 2048


class _Run(NamedTuple):
    run: Prepared
    scratch_bytes: int


def _plain(*arrays: np.ndarray) -> bool:
    return not DISABLED and all(array.flags.c_contiguous and array.flags.aligned for array in arrays)


def times_transposed(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool
) -> np.ndarray | None:
    """x (N, K) x weight' (K, O) + bias, no less than 0 with `relu`; or None where NumPy should do it."""
    arrays = (x, weight) if bias is None else (x, weight, bias)
    samples, depth = x.shape
    outputs = len(weight)
    if samples * depth * outputs < LEAST_WORK or samples > MOST_SAMPLES or not _plain(*arrays):
        return None
    tasks = task_count(samples * depth * outputs // 4, -(-outputs // ROWS))
    prepared = _prepare_dots(x.dtype, samples, outputs, depth, relu, tasks)
    y = np.empty((samples, outputs), x.dtype)
    bias_at = 0 if bias is None else address_of(bias)
    at_scratch = scratch(prepared.scratch_bytes)
    prepared.run.run(address_of(x), address_of(weight), bias_at, address_of(y), at_scratch)
    return y


@lru_cache(maxsize=1024)
def _prepare_dots(dtype: np.dtype, samples: int, outputs: int, depth: int, relu: bool, tasks: int) -> _Run:
    vector = LANES[8 * dtype.itemsize] * dtype.itemsize
    sizes = (
        samples * vector,
        ROWS * vector,
        ROWS * 8,
        VECTORS * 8,
        -(-samples // VECTORS) * ROWS * VECTORS * vector,
    )
    *at, end = places(sizes)
    run = Prepared(
        kernels.dots,
        dtype,
        tasks,
        "x weight bias y scratch",
        scratch_bytes=end + 64,
        relu=int(relu),
        samples=samples,
        outputs=outputs,
        depth=depth,
        block=BLOCK_BYTES // vector,
        **dict(zip(("at_x_tails", "at_weight_tails", "at_rows", "at_columns", "at_tiles"), at, strict=True)),
    )
    return _Run(run, tasks * (end + 64))


def times(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """a (M, K) x b (K, J), where a may be transposed; or None where NumPy should do it."""
    rows, depth = a.shape
    columns = b.shape[1]
    flat = a if a.flags.c_contiguous else a.T
    panel = VECTORS * LANES[8 * b.itemsize]
    packed = max(-(-rows // ROWS) * ROWS, panel) * depth * b.itemsize
    if rows * depth * columns < LEAST_WORK or packed > PACKED_BYTES or not _plain(flat, b):
        return None
    steps = (depth, 1) if flat is a else (1, rows)
    tasks = task_count(rows * depth * columns // 4, -(-columns // panel))
    prepared = _prepare_product(b.dtype, rows, depth, columns, steps, tasks)
    c = np.empty((rows, columns), b.dtype)
    prepared.run.run(address_of(flat), address_of(b), address_of(c), scratch(prepared.scratch_bytes))
    return c


@lru_cache(maxsize=1024)
def _prepare_product(
    dtype: np.dtype, rows: int, depth: int, columns: int, steps: tuple[int, int], tasks: int
) -> _Run:
    panel = VECTORS * LANES[8 * dtype.itemsize] * dtype.itemsize
    sizes = (-(-rows // ROWS) * ROWS * depth * dtype.itemsize, depth * panel, depth * 8, ROWS * panel)
    *at, end = places(sizes)
    run = Prepared(
        kernels.product,
        dtype,
        tasks,
        "a b c scratch",
        scratch_bytes=end + 64,
        rows=rows,
        depth=depth,
        columns=columns,
        a_row=steps[0],
        a_column=steps[1],
        **dict(zip(("at_a", "at_b", "at_offsets", "at_tile"), at, strict=True)),
    )
    return _Run(run, tasks * (end + 64))
