"""Max pooling of integers: every algorithm against the naive loops, at both ends of what a dtype holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits
from strategies import LAYOUTS, MEMORY, SEEDS, Pool, pools, to_layout

import fastconv
from fastconv import reference, threads
from fastconv.algorithms import POOL_ALGORITHMS

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def draw(case: Pool, dtype: str) -> np.ndarray:
    """x, channels-first: the whole range, or for ties but a few numbers at its ends."""
    rng = np.random.default_rng(case.seed)
    ends = np.iinfo(dtype)
    shape = case.x().shape
    if case.kind == "ints":
        return rng.choice(np.array([ends.min, ends.min + 1, ends.max], dtype), shape)
    return rng.integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)


def expected(case: Pool, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By the naive loops, over 64 bits."""
    g, ones = case.geometry, (1,) * (3 - case.rank)
    widest = x.astype(np.uint64 if x.dtype.kind == "u" else np.int64)
    before = tuple(pair[0] for pair in g["pads"])
    y, indices = reference.max_pool(
        widest.reshape(*x.shape[:2], *ones, *case.size),
        (*ones, *g["kernel"]),
        (*ones, *g["stride"]),
        (*(0 for _ in ones), *before),
        (*ones, *g["dilation"]),
        (*ones, *case.out),
    )
    shape = (*x.shape[:2], *case.out)
    return y.reshape(shape).astype(x.dtype), indices.reshape(shape)


def check(case: Pool, dtype: str, name: str) -> None:
    x = draw(case, dtype)
    y, places = expected(case, x)
    if x.itemsize < 8:  # float64 holds them all
        outside = oracles.max_pool(x.astype(np.float64), **case.geometry)
        assert_same(y, outside.y)
        assert_same(places, outside.indices)
    run = getattr(fastconv, f"max_pool{case.rank}d")
    out = np.full_like(case.give(y), 42)
    assert run(case.give(x), **case.facts, algorithm=name, out=out) is out
    assert_same_bits(out, case.give(y))
    found, indices = run(case.give(x), **case.facts, algorithm=name, return_indices=True)
    assert_same_bits(found, case.give(y))
    assert_same_bits(indices, case.give(places))


@every_dtype
@settings(max_examples=15)
@given(case=pools(kinds=("gauss", "ints")), name=st.sampled_from(list(POOL_ALGORITHMS)))
def test_max_pool(dtype: str, case: Pool, name: str) -> None:
    check(case, dtype, name)


NAMED = {
    "2x2, whole vectors": Pool((2, 256), 2),
    "2x2, long rows": Pool((4, 203), 2, channels=2),
    "3x3, stride 2": Pool((5, 150), 3, stride=2, padding=1),
    "3x3, stride 1": Pool((5, 150), 3, stride=1, padding=1),
    "stride 3": Pool((4, 211), (2, 4), stride=(2, 3), padding=(0, 2)),
    "dilation": Pool((7, 150), 3, stride=(1, 2), dilation=(2, 5), padding=(0, 4)),
    "whole planes": Pool((7, 7), 7, channels=70),
    "large planes": Pool((12, 13), (12, 13), channels=3),
    "channels last": Pool((5, 4), 2, channels=130, layout="NHWC"),
}


@every_dtype
@pytest.mark.parametrize("kind", ["gauss", "ints"])
def test_max_pool_named(dtype: str, kind: str) -> None:
    for case in NAMED.values():
        check(replace(case, kind=kind), dtype, "auto")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
@settings(max_examples=10)
@given(layout=LAYOUTS, size=st.tuples(*[st.integers(1, 9)] * 2), output=st.integers(1, 7), seed=SEEDS)
def test_adaptive_max_pool(dtype: str, layout: str, size: tuple[int, int], output: int, seed: int) -> None:
    x = draw(Pool(size, 1, channels=3, batch=2, seed=seed), dtype)
    y, indices = fastconv.adaptive_max_pool2d(to_layout(x, layout), output, True, layout=layout)
    widest = x.reshape(*x.shape[:2], 1, *size).astype(np.int64)
    expected, places = reference.adaptive_max_pool(widest, (1, output, output))
    assert y.dtype == x.dtype
    assert_same(y, to_layout(expected[:, :, 0], layout))
    assert_same(indices, to_layout(places[:, :, 0], layout))
    assert_same_bits(fastconv.adaptive_max_pool2d(to_layout(x, layout), output, layout=layout), y)


@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_order(memory: str) -> None:
    x = np.random.default_rng(0).integers(-128, 127, (2, 3, 6, 7), np.int32)
    # NaN in the gaps of strided ints does not fit: any number does
    given = MEMORY[memory](x) if memory != "strided" else np.repeat(x, 2, axis=-1)[..., ::2]
    y, indices = fastconv.max_pool2d(given, 3, 2, 1, return_indices=True)
    assert y.dtype == np.int32
    expected = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert_same_bits(y, expected[0])
    assert_same_bits(indices, expected[1])


@pytest.mark.parametrize("dtype", ["int8", "uint32"])
def test_same_bits_whatever_the_threads(dtype: str) -> None:
    x = draw(Pool((9, 70), 1, channels=5, batch=3), dtype)
    with fastconv.num_threads(1):
        alone = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True), fastconv.max_pool2d(x, 3, 2, 1)
    with mock.patch.object(threads, "SERIAL_WORK", 0):  # small work would run on one thread
        both = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True), fastconv.max_pool2d(x, 3, 2, 1)
    for array, expected in zip((*both[0], both[1]), (*alone[0], alone[1]), strict=True):
        assert_same_bits(array, expected)


def test_a_window_of_the_least_number_has_the_first_real_cell() -> None:
    """Padding holds the least number, too, where kernels pad at all: it must not win the tie."""
    for dtype in DTYPES:
        x = np.full((1, 1, 2, 3), np.iinfo(dtype).min, dtype)
        for name in POOL_ALGORITHMS:
            y, indices = fastconv.max_pool2d(x, 2, 1, 1, return_indices=True, algorithm=name)
            assert (y == x[0, 0, 0, 0]).all()
            assert_same(indices[0, 0], np.array([[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5]]))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    y, indices = fastconv.max_pool2d(np.ones(shape, np.uint8), 2, return_indices=True)
    assert y.shape == indices.shape == (*shape[:2], 2, 2)
    assert y.dtype == np.uint8


@pytest.mark.parametrize("function", [fastconv.max_pool2d, fastconv.adaptive_max_pool2d])
def test_truth_values_are_no_numbers(function: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"^{function.__name__}: x must have dtype .*integer dtype, got bool"
    ):
        function(np.ones((1, 1, 4, 4), bool), 2)
