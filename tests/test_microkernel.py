"""The GEMM micro-kernel against NumPy's product in float64."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from fastconv import jit
from fastconv.jit import address_of
from fastconv.kernels import simd
from fastconv.kernels.dots import multiply_dots
from fastconv.kernels.microkernel import (
    BIAS,
    LOAD,
    ROWS,
    VECTORS,
    ZERO,
    multiply_pixels,
    multiply_rows,
    multiply_tile,
)
from fastconv.kernels.simd import LANES

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: there is no micro-kernel")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("vectors", range(1, VECTORS + 1))
def test_tile(bits: int, vectors: int) -> None:
    @numba.njit
    def run(a, b, offsets, depth, c, c_row, start, bias, least):  # type: ignore[no-untyped-def]
        like = simd.splat(0.0, bits)
        multiply_tile(a, b, offsets, depth, c, c_row, start, bias, least, vectors, like)

    rng = np.random.default_rng(0)
    dtype = np.dtype(f"f{bits // 8}")
    width = vectors * LANES[bits]
    for depth in (1, 2, 37):
        a = rng.standard_normal((depth, ROWS)).astype(dtype)
        rows = rng.standard_normal((2 * depth + 1, width + 3)).astype(dtype)
        order = rng.permutation(2 * depth + 1)[:depth]  # rows of B lie anywhere
        offsets = (order * rows.strides[0] + dtype.itemsize).astype(np.int64)
        b = rows[order, 1 : width + 1]
        bias = rng.standard_normal(ROWS).astype(dtype)
        before = rng.standard_normal((ROWS, width + 2)).astype(dtype)
        starts = {ZERO: 0, LOAD: before[:, :width], BIAS: bias[:, None]}
        for start, initial in starts.items():
            for least in (-np.inf, 0.0):
                c = before.copy()
                addresses = (address_of(a), address_of(rows), address_of(offsets), depth)
                bound = dtype.type(least)
                run(*addresses, address_of(c), c.strides[0], start, address_of(bias), bound)
                exact = np.maximum(a.T.astype(np.float64) @ b + initial, least)
                scale = abs(a.T).astype(np.float64) @ abs(b) + abs(initial)
                error = abs(c[:, :width] - exact)
                assert (error <= (depth + 2) * np.finfo(dtype).eps * scale).all()
                np.testing.assert_array_equal(c[:, width:], before[:, width:])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("vectors", range(1, VECTORS + 1))
def test_tile_of_rows_anywhere(bits: int, vectors: int) -> None:
    @numba.njit
    def run(a_rows, offsets, b, depth, c, c_row, start):  # type: ignore[no-untyped-def]
        multiply_rows(a_rows, offsets, b, depth, c, c_row, start, vectors, simd.splat(0.0, bits))

    rng = np.random.default_rng(0)
    dtype = np.dtype(f"f{bits // 8}")
    width = vectors * LANES[bits]
    for depth in (1, 2, 37):
        x = rng.standard_normal(500).astype(dtype)
        rows = rng.integers(0, 100, ROWS)
        columns = rng.integers(0, 400, depth)
        a = x[rows[:, None] + columns]
        b = rng.standard_normal((depth, width)).astype(dtype)
        before = rng.standard_normal((ROWS, width + 2)).astype(dtype)
        tables = address_of(x) + rows * dtype.itemsize, columns * dtype.itemsize
        for start, initial in {ZERO: 0, LOAD: before[:, :width]}.items():
            c = before.copy()
            run(*map(address_of, tables), address_of(b), depth, address_of(c), c.strides[0], start)
            exact = a.astype(np.float64) @ b + initial
            scale = abs(a).astype(np.float64) @ abs(b) + abs(initial)
            assert (abs(c[:, :width] - exact) <= (depth + 2) * np.finfo(dtype).eps * scale).all()
            np.testing.assert_array_equal(c[:, width:], before[:, width:])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("vectors", range(1, VECTORS + 1))
def test_tile_of_pixels(bits: int, vectors: int) -> None:
    @numba.njit
    def run(a, a_skip, taps, depth, b, c, c_skip, start, bias, least, last):  # type: ignore[no-untyped-def]
        like = simd.splat(0.0, bits)
        multiply_pixels(a, a_skip, taps, depth, b, c, c_skip, start, bias, least, last, vectors, like)

    rng = np.random.default_rng(0)
    dtype = np.dtype(f"f{bits // 8}")
    lanes = LANES[bits]
    for taps, depth, last in ((1, 1, lanes), (3, 5, 1), (9, 37, lanes - 1)):
        used = (vectors - 1) * lanes + last
        x = rng.standard_normal(900).astype(dtype)
        at = rng.integers(0, 800, (taps, ROWS))
        a = np.stack([x[first : first + depth] for first in (at + 2).ravel()]).reshape(taps, ROWS, depth)
        b = rng.standard_normal((taps, depth, vectors * lanes)).astype(dtype)
        bias = rng.standard_normal(used).astype(dtype)
        before = rng.standard_normal((ROWS, vectors * lanes + 3)).astype(dtype)
        order = rng.permutation(ROWS)
        for start, initial in {ZERO: 0, LOAD: before[:, 3 : 3 + used], BIAS: bias}.items():
            for least in (-np.inf, 0.0):
                c = before.copy()
                a_rows = (address_of(x) + at * dtype.itemsize)[:, order].copy()
                c_rows = (address_of(c) + np.arange(ROWS) * c.strides[0])[order]
                facts = (2 * dtype.itemsize, taps, depth, address_of(b))
                ends = (3 * dtype.itemsize, start, address_of(bias), dtype.type(least), last)
                run(address_of(a_rows), *facts, address_of(c_rows), *ends)
                exact = np.einsum("tri,tij->rj", a.astype(np.float64), b[..., :used]) + initial
                scale = np.einsum("tri,tij->rj", abs(a).astype(np.float64), abs(b[..., :used])) + abs(initial)
                error = abs(c[:, 3 : 3 + used] - np.maximum(exact, least))
                assert (error <= (taps * depth + 2) * np.finfo(dtype).eps * scale).all()
                np.testing.assert_array_equal(c[:, :3], before[:, :3])
                np.testing.assert_array_equal(c[:, 3 + used :], before[:, 3 + used :])


def test_nan_is_not_clipped() -> None:
    c_row = 8 * LANES[64]

    @numba.njit
    def run(a, b, offsets, c, least):  # type: ignore[no-untyped-def]
        like = simd.splat(0.0, 64)
        multiply_tile(a, b, offsets, 1, c, c_row, ZERO, 0, least, 1, like)

    a = np.full(ROWS, np.nan)
    b = np.ones(LANES[64])
    c = np.zeros((ROWS, LANES[64]))
    run(address_of(a), address_of(b), address_of(np.zeros(1, np.int64)), address_of(c), 0.0)
    assert np.isnan(c).all()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("vectors", range(1, VECTORS + 1))
def test_tile_of_dots(bits: int, vectors: int) -> None:
    @numba.njit
    def run(a_rows, b_rows, depth, c, c_row, start):  # type: ignore[no-untyped-def]
        multiply_dots(a_rows, b_rows, depth, c, c_row, start, vectors, simd.splat(0.0, bits))

    rng = np.random.default_rng(0)
    dtype = np.dtype(f"f{bits // 8}")
    lanes = LANES[bits]
    x = rng.standard_normal(900).astype(dtype)
    for depth in (1, 2, 11):
        at = rng.integers(0, 900 - depth * lanes, ROWS + vectors)
        rows = np.stack([x[first : first + depth * lanes] for first in at]).reshape(-1, depth, lanes)
        before = rng.standard_normal((ROWS, vectors * lanes + 2)).astype(dtype)
        table = address_of(x) + at * dtype.itemsize
        for start, initial in {ZERO: 0, LOAD: before[:, :-2].reshape(ROWS, vectors, lanes)}.items():
            c = before.copy()
            tables = address_of(table), address_of(table) + 8 * ROWS
            run(*tables, depth, address_of(c), c.strides[0], start)
            pairs = rows[:ROWS, None].astype(np.float64), rows[None, ROWS:]
            exact = (pairs[0] * pairs[1]).sum(2) + initial
            scale = abs(pairs[0] * pairs[1]).sum(2) + abs(initial)
            error = abs(c[:, :-2].reshape(exact.shape) - exact)
            assert (error <= (depth + 2) * np.finfo(dtype).eps * scale).all()
            np.testing.assert_array_equal(c[:, -2:], before[:, -2:])
