"""What bounds an operation, measured in the same run: the multiply-adds of the cores, and a copy in memory.

The peak of the multiply-adds is that of fastconv's own micro-kernel on panels that stay in the L1 cache,
on all threads: what a convolution would reach if packing, memory and the ends of tiles cost nothing. An
algorithm that needs fewer multiplications than the definition can exceed it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import cache
from math import inf
from typing import Any

import numpy as np

import fastconv
from benchmarks.contenders import Yardstick
from fastconv.jit import address_of, fields, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import ROWS, VECTORS, ZERO, multiply_tile
from fastconv.kernels.simd import LANES
from fastconv.threads import launch

#: Bytes of the panel of A: half of the smallest L1 cache. That of B is a few rows, over and over again.
PANEL_BYTES = 16 << 10
B_ROWS = 8
#: Tiles that a task computes in a call: 3 million vector multiply-adds, about a millisecond.
TILES = 250

PEAK = record("a b offsets depth c c_bytes tiles")


@kernel(PEAK)
def multiply_tiles(bits):
    """The same tile of a product, over and over again; each task has a C of its own."""
    c_row = VECTORS * LANES[bits] * bits // 8

    def multiply_tiles(params, t, tasks):
        p = fields(params, PEAK)
        zero = simd.splat(0.0, bits)
        c = p.c + t * p.c_bytes
        for _ in range(p.tiles):
            multiply_tile(p.a, p.b, p.offsets, p.depth, c, c_row, ZERO, 0, -inf, VECTORS, zero)

    return multiply_tiles


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin where a cache line does."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    first = -address_of(memory) % 64
    return memory[first : first + size].view(dtype).reshape(shape)


class Peak:
    """Multiply-adds out of the L1 cache, on `threads` threads."""

    def __init__(self, dtype: Any, threads: int) -> None:
        self.dtype, self.threads = np.dtype(dtype), threads
        bits = 8 * self.dtype.itemsize
        self.depth = PANEL_BYTES // (ROWS * self.dtype.itemsize)
        columns = VECTORS * LANES[bits]
        rng = np.random.default_rng(0)
        self.a = _aligned((self.depth, ROWS), self.dtype)
        self.a[:] = rng.standard_normal(self.a.shape)
        self.b = _aligned((B_ROWS, columns), self.dtype)
        self.b[:] = rng.standard_normal(self.b.shape)
        self.rows = np.arange(self.depth) % B_ROWS
        self.offsets = self.rows * self.b.strides[0]
        self.c = _aligned((threads, ROWS, columns), self.dtype)
        #: of a call, a multiplication and an addition each
        self.flops = 2 * threads * TILES * self.depth * ROWS * columns

    def call(self) -> np.ndarray:
        """Each task's tile, all the same."""
        launch(
            multiply_tiles,
            self.dtype,
            self.threads,
            a=address_of(self.a),
            b=address_of(self.b),
            offsets=address_of(self.offsets),
            depth=self.depth,
            c=address_of(self.c),
            c_bytes=self.c.strides[0],
            tiles=TILES,
        )
        return self.c

    def expected(self) -> np.ndarray:
        tile = self.a.T.astype(np.float64) @ self.b[self.rows].astype(np.float64)
        return np.broadcast_to(tile, self.c.shape)


@cache
def peak(dtype: Any, threads: int) -> Peak:
    return Peak(dtype, threads)


def fma_peak(dtype: Any) -> Yardstick:
    """Of all threads."""
    measured = peak(dtype, fastconv.get_num_threads())
    return Yardstick("FMA peak", measured.call, measured.flops)


def measured_peaks(calls: int = 20) -> dict[str, dict[str, float]]:
    """Floating-point operations a second, by dtype and number of threads: medians of interleaved calls."""
    threads = sorted({1, fastconv.get_num_threads()})
    peaks = [peak(dtype, count) for dtype in (np.float32, np.float64) for count in threads]
    times: list[list[float]] = [[] for _ in peaks]
    for _ in range(calls + 1):
        for one, found in zip(peaks, times, strict=True):
            start = time.perf_counter()
            one.call()
            found.append(time.perf_counter() - start)
    rates: dict[str, dict[str, float]] = {}
    for one, found in zip(peaks, times, strict=True):
        # the first call may compile
        rates.setdefault(one.dtype.name, {})[str(one.threads)] = one.flops / statistics.median(found[1:])
    return rates


#: Bytes that are copied from one place in memory to another: more than caches hold.
COPY_BYTES = 128 << 20

COPY = record("source target size")


@kernel(COPY)
def copy_memory(bits):
    """Each task copies its share, a vector at a time."""
    step = LANES[bits] * bits // 8

    def copy_memory(params, t, tasks):
        p = fields(params, COPY)
        zero = simd.splat(0.0, bits)
        for vector in range(p.size // step * t // tasks, p.size // step * (t + 1) // tasks):
            place = vector * step
            simd.store(p.target + place, simd.load(p.source + place, zero))

    return copy_memory


class Copy:
    """Memory to memory, on `threads` threads, `size` bytes of it."""

    def __init__(self, threads: int, size: int = COPY_BYTES) -> None:
        self.threads = threads
        self.source = _aligned((size // 4,), np.dtype(np.float32))
        self.source[:] = np.arange(size // 4, dtype=np.float32)
        self.target = _aligned(self.source.shape, self.source.dtype)
        self.target.fill(-1)  # touched, so that no page is new
        #: read and written
        self.work = 2 * self.source.nbytes

    def call(self) -> np.ndarray:
        """The copy."""
        launch(
            copy_memory,
            self.source.dtype,
            self.threads,
            source=address_of(self.source),
            target=address_of(self.target),
            size=self.source.nbytes,
        )
        return self.target


def measured_bandwidth(calls: int = 5) -> dict[str, float]:
    """Bytes a second that copying reads and writes, by number of threads: the best of some calls."""
    found = {}
    for threads in sorted({1, fastconv.get_num_threads()}):
        copy, times = Copy(threads), []
        for _ in range(calls + 1):  # the first may compile
            start = time.perf_counter()
            copy.call()
            times.append(time.perf_counter() - start)
        found[str(threads)] = copy.work / min(times)
    return found


def copy_of(arrays: Sequence[np.ndarray]) -> Yardstick:
    """NumPy copies `arrays` into memory that it has touched before: each byte is read and written."""
    copies = [np.zeros_like(array) for array in arrays]

    def copy() -> None:
        for array, other in zip(arrays, copies, strict=True):
            np.copyto(other, array)

    return Yardstick("copy", copy, 2 * sum(array.nbytes for array in arrays))
