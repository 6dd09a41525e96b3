"""Power-average pooling: every registered algorithm against the reference and an outside oracle."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isinf, prod
from typing import Any

import numpy as np
import oracles
import pytest
from harness import framed, poison_workspace, poisoned, reference_lp_pool, reference_lp_pool_backward
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within, inner
from strategies import MEMORY, Pool, pools

import fastconv
from fastconv.algorithms import POOL_ALGORITHMS
from fastconv.functional import windows
from fastconv.functional.arrays import lift_like_x

every_algorithm = pytest.mark.parametrize("name", POOL_ALGORITHMS)

NORMS = st.sampled_from([1.0, 2.0, 2.0, 3.0, 4.0, 1.5, 0.5, -1.0])


def arrays(case: Pool, norm: float) -> tuple[np.ndarray, np.ndarray]:
    """x and a gradient of y. Powers that are not whole and even want positive numbers."""
    x = case.x()
    return x if norm == 2 else np.abs(x) + np.asarray(0.01, x.dtype), case.grad()


def run(case: Pool, suffix: str, *args: Any, **options: Any) -> np.ndarray:
    given = [case.give(a) if isinstance(a, np.ndarray) else a for a in args]
    facts = {**case.facts, **options}
    return case.take(getattr(fastconv, f"lp_pool{case.rank}d{suffix}")(*given, **facts))


def fill(name: str, case: Pool, x: np.ndarray, norm: float) -> np.ndarray:
    """y as the algorithm itself leaves it in an array of NaN."""
    given = case.give(x)
    shape = windows.geometry("test", case.rank, given.shape, **case.facts)
    poison_workspace(case.dtype)
    with poisoned(case.give(case.grad())) as y:
        lifted, out = (lift_like_x("test", "x", a, case.rank, case.layout) for a in (framed(given), y))
        POOL_ALGORITHMS[name].lp_pool(lifted, out, shape, norm)
    return case.take(y)


@every_algorithm
@given(case=pools(), norm=NORMS)
def test_lp_pool(name: str, case: Pool, norm: float) -> None:
    x, grad = arrays(case, norm)
    y = fill(name, case, x, norm)
    assert y.dtype == case.dtype
    taps = prod(case.geometry["kernel"])
    for expected in (reference_lp_pool(case, x, norm), oracles.lp_pool(x, norm, **case.geometry)):
        # a root divides the relative error of its sum by p
        assert_within(y, expected, expected * max(1, 1 / abs(norm)), taps + 8)
    assert_same_bits(run(case, "", x, norm, algorithm=name), y)

    grad_x = run(case, "_backward", grad, x, norm, algorithm=name)
    assert grad_x.dtype == case.dtype
    expected = reference_lp_pool_backward(case, grad, x, y, norm)
    scale = reference_lp_pool_backward(case, np.abs(grad), np.abs(x), y, norm)
    # y ** (1 - p) has |1 - p| times the relative error of y
    terms = (taps + 8) * (1 + abs(1 - norm) / abs(norm))
    assert_within(grad_x, expected, np.abs(scale), int(terms))


@given(case=pools(kinds=("gauss",), dtype="float64"), norm=NORMS)
def test_gradient_by_eulers_identity(case: Pool, norm: float) -> None:
    """y doubles with x, so <x, dL/dx> = <y, dL/dy>, whatever dL/dy."""
    x, grad = arrays(case, norm)
    y, grad_x = run(case, "", x, norm), run(case, "_backward", grad, x, norm)
    scale = inner(np.abs(y), np.abs(grad)) * max(1, 1 / abs(norm))
    assert abs(inner(x, grad_x) - inner(y, grad)) <= 1e-13 * scale * prod(case.geometry["kernel"])


@every_algorithm
@given(case=pools(kinds=("gauss", "ints")), norm=st.sampled_from([inf, -inf]))
def test_an_infinite_norm_is_the_largest_or_least(name: str, case: Pool, norm: float) -> None:
    x, grad = case.x(), case.grad()
    y = run(case, "", x, norm, algorithm=name)
    assert_same(y, oracles.lp_pool(x, norm, **case.geometry).astype(x.dtype))
    indices = oracles.max_pool(np.abs(x) * np.sign(norm), **case.geometry).indices
    expected = oracles.scatter_add(grad, indices, x.shape) * np.sign(x)
    scale = oracles.scatter_add(np.abs(grad), indices, x.shape)
    assert_within(run(case, "_backward", grad, x, norm, algorithm=name), expected, scale, prod(case.out))


@every_algorithm
def test_sum_and_root_by_hand(name: str) -> None:
    x = np.array([[[3.0, 4, -1, 2, -2, -2]]])
    assert_same(fastconv.lp_pool1d(x, 1, 2, algorithm=name), np.array([[[7.0, 1, -4]]]))
    y = fastconv.lp_pool1d(x, 2, 2, algorithm=name)
    assert_within(y, np.array([[[5, 5**0.5, 8**0.5]]]), y, 2)
    y = fastconv.lp_pool1d(x, 3, 2, algorithm=name)  # 91, 7 and -16
    assert_within(y[..., :2], np.array([[[91 ** (1 / 3), 7 ** (1 / 3)]]]), y[..., :2], 2)
    assert np.isnan(y[..., 2]).all()


@every_algorithm
def test_a_window_that_hangs_over_counts_as_whole(name: str) -> None:
    """As in torch: T times the average, of the two cells that there are, and not beyond the padding."""
    x = np.array([[[1.0, 1, 1, 1, 4]]])
    options = {"stride": 3, "ceil_mode": True, "algorithm": name}
    assert_same(fastconv.lp_pool1d(x, 1, 3, **options), np.array([[[3.0, 7.5]]]))
    y = fastconv.lp_pool1d(x, 1, 3, **options, padding=((0, 1),))
    assert_same(y, np.array([[[3.0, 5]]]))
    grad_x = fastconv.lp_pool1d_backward(np.array([[[1.0, 2]]]), x, 1, 3, **options)
    assert_same(grad_x, np.array([[[1.0, 1, 1, 3, 3]]]))


@every_algorithm
@pytest.mark.parametrize("norm", [1, 2, 3, 0.5, inf, -1])
def test_gradient_of_a_window_of_zeros_is_zero(name: str, norm: float) -> None:
    """Not NaN, which 0 / 0 would be; nor does a cell beside it get any."""
    x = np.array([[[0.0, 0, 3, 4]]], np.float32)
    grad_x = fastconv.lp_pool1d_backward(np.ones((1, 1, 2), np.float32), x, norm, 2, algorithm=name)
    assert_same(grad_x[..., :2], np.zeros((1, 1, 2)))
    assert np.isfinite(grad_x).all()
    if norm == 2:
        assert_within(grad_x[..., 2:], np.array([[[0.6, 0.8]]]), np.ones((1, 1, 2)), 4)


@every_algorithm
def test_what_is_not_finite(name: str) -> None:
    x = np.array([[[np.nan, 1, np.inf, 1, 1, -np.inf, 1e30, 1]]], np.float32)
    y = fastconv.lp_pool1d(x, 2, 2, algorithm=name)
    assert_same(y[..., :3], np.array([[[np.nan, np.inf, np.inf]]]))
    y = fastconv.lp_pool1d(x, inf, 2, algorithm=name)
    assert_same(y, np.array([[[np.nan, np.inf, np.inf, 1e30]]], np.float32))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_any_memory_order(memory: str, layout: str) -> None:
    case = Pool((5, 6), (3, 2), channels=3, batch=2, padding=1, stride=2, layout=layout)
    x, grad = case.give(case.x()), case.give(case.grad())
    for norm in (1, 2, inf):
        y = fastconv.lp_pool2d(MEMORY[memory](x), norm, **case.facts)
        assert_same_bits(y, fastconv.lp_pool2d(x, norm, **case.facts))
        grad_x = fastconv.lp_pool2d_backward(MEMORY[memory](grad), MEMORY[memory](x), norm, **case.facts)
        assert_same_bits(grad_x, fastconv.lp_pool2d_backward(grad, x, norm, **case.facts))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
@pytest.mark.parametrize("norm", [2, inf])
def test_empty_arrays(shape: tuple[int, ...], norm: float) -> None:
    y = fastconv.lp_pool2d(np.ones(shape), norm, 2)
    assert y.shape == (*shape[:2], 2, 2)
    assert fastconv.lp_pool2d_backward(y, np.ones(shape), norm, 2).shape == shape


@given(case=pools(kinds=("gauss",)))
def test_same_values_whatever_the_layout(case: Pool) -> None:
    other = replace(case, layout="NCHW" if case.layout == "NHWC" else "NHWC")
    taps = prod(case.geometry["kernel"])
    y = run(case, "", case.x(), 2)
    assert_within(run(other, "", case.x(), 2), y.astype(np.float64), y.astype(np.float64), taps)
    assert not isinf(y.sum())
