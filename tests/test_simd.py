"""Vectors in compiled code, each operation against NumPy."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from fastconv import jit
from fastconv.jit import address_of
from fastconv.kernels import simd
from fastconv.kernels.simd import LANES

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: there are no vectors")
both = pytest.mark.parametrize("bits", [32, 64])


def real(bits: int) -> np.dtype[Any]:
    return np.dtype(f"f{bits // 8}")


def sample(bits: int, count: int = 2) -> np.ndarray:
    """`count` vectors, the first two with every pairing of numbers, infinities and NaN."""
    lanes = LANES[bits]
    values = np.random.default_rng(0).standard_normal((count, lanes)).astype(real(bits))
    values[0, :2] = np.nan, np.inf
    values[1, 1:2] = np.nan
    values[1, -1] = values[0, -1]
    return values


@both
def test_memory(bits: int) -> None:
    lanes, size = LANES[bits], bits // 8

    @numba.njit
    def copy(source: int, target: int, part: int) -> None:
        like = simd.splat(7.0, bits)
        simd.store(target, simd.load(source + size, like))  # not aligned
        simd.store(target + lanes * size, simd.load_part(source, part, like))
        simd.store_part(target + 2 * lanes * size, like, part)
        simd.put(target + 3 * lanes * size, simd.take(source, part, like), lanes + 1)

    x = np.arange(2 * lanes).astype(real(bits))
    for part in range(lanes + 1):
        y = np.full((5, lanes), -1, real(bits))
        copy(address_of(x), address_of(y), part)
        first = np.where(np.arange(lanes) < part, x[:lanes], 7)
        np.testing.assert_array_equal(y[0], x[1 : lanes + 1])
        np.testing.assert_array_equal(y[1], first)
        np.testing.assert_array_equal(y[2], np.where(np.arange(lanes) < part, 7, -1))
        np.testing.assert_array_equal(y[3], first)
        np.testing.assert_array_equal(y[4], -1)


@both
def test_arithmetic(bits: int) -> None:
    lanes, size = LANES[bits], bits // 8

    @numba.njit
    def compute(source: int, target: int) -> None:
        like = simd.splat(0.0, bits)
        a, b = simd.load(source, like), simd.load(source + lanes * size, like)
        simd.store(target, simd.add(a, b))
        simd.store(target + lanes * size, simd.multiply(a, b))
        simd.store(target + 2 * lanes * size, simd.divide(a, b))
        simd.store(target + 3 * lanes * size, simd.maximum(a, b))

    a, b = x = sample(bits)
    y = np.empty((4, lanes), real(bits))
    compute(address_of(x), address_of(y))
    np.testing.assert_array_equal(y, [a + b, a * b, a / b, np.maximum(a, b)])


@both
def test_shuffles(bits: int) -> None:
    lanes, size = LANES[bits], bits // 8

    @numba.njit
    def compute(source: int, target: int) -> None:
        like = simd.splat(0.0, bits)
        a, b = simd.load(source, like), simd.load(source + lanes * size, like)
        even, odd = simd.even(a, b), simd.odd(a, b)
        simd.store(target, even)
        simd.store(target + lanes * size, odd)
        simd.store(target + 2 * lanes * size, simd.interleave_low(even, odd))
        simd.store(target + 3 * lanes * size, simd.interleave_high(even, odd))

    x = np.arange(2 * lanes).astype(real(bits))
    y = np.empty((4, lanes), real(bits))
    compute(address_of(x), address_of(y))
    np.testing.assert_array_equal(y[0], x[::2])
    np.testing.assert_array_equal(y[1], x[1::2])
    np.testing.assert_array_equal(y[2:].ravel(), x)


@both
def test_precedes(bits: int) -> None:
    """The larger wins, NaN above all, and of equals the lower place."""
    lanes, size = LANES[bits], bits // 8

    @numba.njit
    def compute(a: float, place_a: int, b: float, place_b: int, target: int, places: int) -> None:
        one, two = simd.splat(a, bits), simd.splat(b, bits)
        at_one, at_two = simd.ramp_like(place_a, 0, one), simd.ramp_like(place_b, 0, one)
        wins = simd.precedes(one, at_one, two, at_two)
        simd.store(target, simd.select(wins, one, two))
        simd.store_wide(places, simd.select(wins, at_one, at_two), lanes)

    assert size * lanes == simd.REGISTER_BYTES
    numbers = [-np.inf, -1.0, 0.0, 2.0, np.inf, np.nan]
    y, places = np.empty(lanes, real(bits)), np.empty(lanes, np.int64)
    for a in numbers:
        for b in numbers:
            for place_a, place_b in ((3, 8), (8, 3)):
                compute(a, place_a, b, place_b, address_of(y), address_of(places))
                same = a == b or (np.isnan(a) and np.isnan(b))
                a_wins = place_a < place_b if same else np.isnan(a) or a > b
                np.testing.assert_array_equal(places, place_a if a_wins else place_b)
                np.testing.assert_array_equal(y, real(bits).type(a if a_wins else b))


@both
def test_ramp_and_part_of_wide(bits: int) -> None:
    lanes = LANES[bits]

    @numba.njit
    def compute(start: int, target: int, count: int) -> None:
        simd.store_wide(target, simd.ramp_like(start, 3, simd.splat(0.0, bits)), count)

    for count in range(lanes + 1):
        y = np.full(lanes + 1, -9, np.int64)
        compute(5, address_of(y), count)
        np.testing.assert_array_equal(y[:count], 5 + 3 * np.arange(count))
        np.testing.assert_array_equal(y[count:], -9)


@both
@pytest.mark.parametrize("height", [2, 4, 8, None])
def test_transpose(bits: int, height: int | None) -> None:
    lanes = LANES[bits]
    rows = lanes if height is None else height

    if height is None:

        @numba.njit
        def run(source: int, source_row: int, used: int, columns: int, target: int, target_row: int) -> None:
            like = simd.splat(0.0, bits)
            simd.transpose_square(source, source_row, used, columns, target, target_row, like)

    else:

        @numba.njit
        def run(source: int, source_row: int, used: int, columns: int, target: int, target_row: int) -> None:
            like = simd.splat(0.0, bits)
            simd.transpose_block(source, source_row, used, columns, target, target_row, height, like)

    x = np.arange(1, rows * (lanes + 3) + 1).astype(real(bits)).reshape(rows, lanes + 3)
    for used in (0, 1, rows - 1, rows, rows + 5):
        for columns in (0, 1, lanes - 1, lanes, lanes + 1):
            y = np.full((rows, lanes + 2), -1, real(bits))
            run(address_of(x), x.strides[0], used, columns, address_of(y), y.strides[0])
            block = np.zeros((rows, lanes), real(bits))
            block[:used, :columns] = x[:used, : min(columns, lanes)]
            np.testing.assert_array_equal(y[:, :lanes].ravel(), block.T.ravel())
            assert (y[:, lanes:] == -1).all()


@both
def test_sums_in_double(bits: int) -> None:
    lanes = LANES[64]

    @numba.njit
    def run(source: int, count: int) -> float:
        return float(simd.total(simd.load_double(source, bits, count)))

    x = np.random.default_rng(0).standard_normal(lanes + 1).astype(real(bits))
    for count in range(lanes + 1):
        assert run(address_of(x), count) == pytest.approx(x[:count].astype(np.float64).sum(), rel=1e-15)


@both
def test_copy_real(bits: int) -> None:
    @numba.njit
    def run(target: int, source: int) -> None:
        simd.copy_real(target, source, simd.splat(0.0, bits))

    x, y = np.arange(3, 6).astype(real(bits)), np.zeros(3, real(bits))
    run(address_of(y) + bits // 8, address_of(x))
    np.testing.assert_array_equal(y, [0, 3, 0])
