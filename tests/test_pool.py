"""Pooling: every registered algorithm, and adaptive pooling, against the reference and an outside oracle."""

from __future__ import annotations

import inspect
from dataclasses import replace
from math import prod
from typing import Any
from unittest import mock

import numpy as np
import oracles
import pytest
from harness import (
    blocks_of,
    framed,
    poison_workspace,
    poisoned,
    reference_avg_pool,
    reference_avg_pool_backward,
    reference_max_pool,
)
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within, inner
from strategies import BLOCK_BYTES, MEMORY, Pool, pools, to_layout, values

import fastconv
from fastconv import threads
from fastconv.algorithms import POOL_ALGORITHMS
from fastconv.functional import windows
from fastconv.functional.arrays import lift_like_x

every_algorithm = pytest.mark.parametrize("name", POOL_ALGORITHMS)

# cases that earlier versions, or other libraries, got wrong
NAMED = {
    "one cell": Pool((1, 1), 1),
    "window as large as x": Pool((3, 4), (3, 4)),
    "non-square everything": Pool((7, 10), (2, 3), stride=(3, 2), padding=(1, 2), channels=2, batch=2),
    "overlapping windows": Pool((6, 7), 3, stride=1, channels=2),
    "gaps between windows": Pool((9, 8), 2, stride=3),
    "padding as large as ONNX allows": Pool((3, 3), 3, stride=1, padding=2),
    "asymmetric padding": Pool((5, 5), 3, stride=2, padding=((0, 2), (2, 1))),
    "dilation with stride": Pool((9, 10), (2, 3), stride=2, dilation=(3, 2), padding=(2, 1)),
    "ceil mode": Pool((6, 7), 3, stride=2, ceil_mode=True),
    "ceil mode, window in the padding dropped": Pool((3, 4), 2, stride=2, padding=1, ceil_mode=True),
    "ceil mode, window hangs over the padding": Pool((4, 4), 3, stride=3, padding=1, ceil_mode=True),
    "ceil mode, stride larger than the kernel": Pool((7, 7), 2, stride=4, ceil_mode=True),
    "same": Pool((5, 6), 2, stride=2, padding="same"),
    "same_lower": Pool((5, 6), 2, stride=1, padding="same_lower"),
    "window jumps over x": Pool((3,), 3, stride=3, padding=((3, 3),), dilation=3),
    "volume": Pool((3, 5, 4), (2, 3, 2), stride=(1, 2, 2), padding=(0, 1, 1), channels=2),
    "signal": Pool((11,), 4, stride=3, padding=2),
    "channels last": Pool((5, 4), 2, channels=3, batch=2, layout="NHWC"),
    "channels last, side by side": Pool((4, 6), 2, channels=70, batch=2, layout="NHWC"),
    "channels last, padded": Pool((4, 5), 3, stride=1, padding=1, channels=133, layout="NHWC"),
    "channels last, dilated": Pool(
        (7, 6), 2, stride=1, padding=1, dilation=(2, 3), channels=17, layout="NHWC"
    ),
    "channels last, dilation with stride": Pool(
        (3, 9, 8), 2, stride=(1, 2, 2), dilation=(1, 4, 3), channels=67, batch=1, layout="NHWC"
    ),
    "a window to each cell, dilated": Pool((4, 3), 2, stride=1, dilation=2),
    "2x2, long rows": Pool((4, 75), 2, channels=2),
    "2x2, whole vectors": Pool((2, 64), 2),
    "2x2, long rows, the last column left over": Pool((5, 33), 2, ceil_mode=True),
    "3x3, stride 2, long rows": Pool((5, 77), 3, stride=2, padding=1),
    "3x3, stride 1, long rows": Pool((3, 50), 3, stride=1, padding=1),
    "stride 3, long rows": Pool((4, 70), (2, 4), stride=(2, 3), padding=(0, 2)),
    "dilation, long rows": Pool((7, 70), 3, stride=(1, 2), dilation=(2, 5), padding=(0, 4)),
    "window as long as long rows": Pool((2, 67), (2, 67)),
    "padding longer than a vector": Pool((2, 40), (1, 45), stride=1, padding=(0, 22)),
}
every_case = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())

divisors = st.none() | st.integers(1, 5)


def function(case: Pool, kind: str, suffix: str = "") -> Any:
    """max_pool2d, avg_pool1d_backward and so on."""
    return getattr(fastconv, f"{kind}_pool{case.rank}d{suffix}")


def lifted(case: Pool, array: np.ndarray) -> np.ndarray:
    return lift_like_x("test", "array", array, case.rank, case.layout)


def geometry(case: Pool) -> Any:
    return windows.geometry("test", case.rank, case.give(case.x()).shape, **case.facts)


# Each runs the algorithm itself, on an output full of NaN (of -1 where it is indices).


def fill_max(name: str, case: Pool) -> tuple[np.ndarray, np.ndarray]:
    x, like, shape = lifted(case, framed(case.give(case.x()))), case.give(case.grad()), geometry(case)
    algorithm = POOL_ALGORITHMS[name]
    poison_workspace(case.dtype)
    with poisoned(like) as y, poisoned(like.astype(np.int64), -1) as indices:
        algorithm.max_pool(x, lifted(case, y), lifted(case, indices), shape)
    with poisoned(like) as without:
        algorithm.max_pool(x, lifted(case, without), None, shape)
    assert_same(without, y)
    return case.take(y), case.take(indices)


def fill_avg(name: str, case: Pool, count_padding: bool, divisor: int | None) -> np.ndarray:
    x, shape = lifted(case, framed(case.give(case.x()))), geometry(case)
    poison_workspace(case.dtype)
    with poisoned(case.give(case.grad())) as y:
        POOL_ALGORITHMS[name].avg_pool(x, lifted(case, y), shape, count_padding, divisor or 0)
    return case.take(y)


def fill_avg_backward(name: str, case: Pool, count_padding: bool, divisor: int | None) -> np.ndarray:
    grad, shape = lifted(case, framed(case.give(case.grad()))), geometry(case)
    algorithm = POOL_ALGORITHMS[name]
    poison_workspace(case.dtype)
    with poisoned(case.give(case.x())) as grad_x:
        algorithm.avg_pool_backward(grad, lifted(case, grad_x), shape, count_padding, divisor or 0)
    return case.take(grad_x)


# --- max pooling --------------------------------------------------------------------------------


def check_max(name: str, case: Pool) -> None:
    y, indices = fill_max(name, case)
    assert y.dtype == case.dtype
    for expected in (reference_max_pool(case, case.x()), oracles.max_pool(case.x(), **case.geometry)):
        assert_same(y, expected[0])
        assert_same(indices, expected[1])
    picked = np.take_along_axis(
        case.x().reshape(*case.x().shape[:2], -1), indices.reshape(*indices.shape[:2], -1), axis=2
    )
    assert_same(picked.reshape(y.shape), y)


@every_algorithm
@every_case
@pytest.mark.parametrize("kind", ["gauss", "ints", "special"])
def test_max_pool_named(name: str, case: Pool, kind: str) -> None:
    check_max(name, replace(case, kind=kind))


@every_algorithm
@given(case=pools(kinds=("gauss", "ints", "special")), block=BLOCK_BYTES)
def test_max_pool(name: str, case: Pool, block: int) -> None:
    """With ties, and with windows of NaN and infinities: y and indices are exact."""
    with blocks_of(block):
        check_max(name, case)


@every_algorithm
@given(case=pools(kinds=("gauss", "special")))
def test_max_pool_runs_the_algorithm(name: str, case: Pool) -> None:
    x, run = case.give(case.x()), function(case, "max")
    expected, places = fill_max(name, case)
    out = np.full_like(case.give(case.grad()), np.nan)
    y = run(x, **case.facts, algorithm=name, out=out)
    assert y is out
    assert_same(y, case.give(expected))  # but for the sign of a zero, where both are in the window
    y, indices = run(x, **case.facts, return_indices=True, algorithm=name)
    assert_same_bits(y, case.give(expected))
    assert_same_bits(indices, case.give(places))


@given(case=pools())
def test_max_pool_is_the_maximum_over_im2col(case: Pool) -> None:
    low = float(case.x().min()) - 1  # im2col pads with 0, max pooling with nothing: make all of x positive
    x = (case.x() - np.asarray(low, case.dtype)).astype(case.dtype)
    g = case.geometry
    hang = [
        max(0, (o - 1) * s + d * (k - 1) + 1 - n - before)
        for n, k, s, d, (before, _), o in zip(
            case.size, g["kernel"], g["stride"], g["dilation"], g["pads"], case.out, strict=True
        )
    ]  # beyond the explicit padding in ceil mode, or as far as the last window reaches
    pads = tuple((before, after) for (before, _), after in zip(g["pads"], hang, strict=True))
    columns = fastconv.im2col(x, g["kernel"], dilation=g["dilation"], padding=pads, stride=g["stride"])
    largest = columns.reshape(*x.shape[:2], -1, columns.shape[-1]).max(axis=2)
    y = case.take(function(case, "max")(case.give(x), **case.facts))
    assert_same(y, largest.reshape(y.shape))


@given(case=pools(kinds=("ints", "special")))
def test_max_pool_backward(case: Pool) -> None:
    """Gradients go to the largest cell, and add up where several windows have the same."""
    _, indices = function(case, "max")(case.give(case.x()), **case.facts, return_indices=True)
    grad, shape = case.grad(), case.x().shape
    backward = function(case, "max", "_backward")
    given_shape = case.give(case.x()).shape
    grad_x = backward(case.give(grad), indices, given_shape, layout=case.layout)
    assert grad_x.dtype == case.dtype
    assert grad_x.shape == given_shape
    expected = oracles.scatter_add(grad, case.take(indices), shape)
    scale = oracles.scatter_add(np.abs(grad), case.take(indices), shape)
    assert_within(case.take(grad_x), expected, scale, prod(case.out))


INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i4", "<u2"]


@pytest.mark.parametrize("integer", INTEGERS)
def test_max_pool_backward_takes_any_integers(integer: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6))
    y, indices = fastconv.max_pool2d(x, 3, stride=1, return_indices=True)
    expected = fastconv.max_pool2d_backward(y, indices, x.shape)
    assert_same_bits(fastconv.max_pool2d_backward(y, indices.astype(integer), x.shape), expected)


def test_max_pool_backward_takes_any_indices() -> None:
    """Not only those that a pooling would give."""
    grad = np.arange(1.0, 7).reshape(1, 1, 2, 3)
    indices = np.array([3, 3, 0, 3, 1, 0]).reshape(1, 1, 2, 3)
    grad_x = fastconv.max_pool2d_backward(grad, indices, (1, 1, 1, 4))
    assert_same(grad_x, np.array([[[[3.0 + 6, 5, 0, 1 + 2 + 4]]]]))


@pytest.mark.parametrize("memory", MEMORY)
def test_max_pool_backward_in_any_memory(memory: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5))
    y, indices = fastconv.max_pool2d(x, 3, stride=1, return_indices=True)
    expected = fastconv.max_pool2d_backward(y, indices, x.shape)
    # NaN in the gaps of strided int64 indices does not fit: any number does
    order = MEMORY[memory](indices) if memory != "strided" else np.repeat(indices, 2, axis=-1)[..., ::2]
    assert_same_bits(fastconv.max_pool2d_backward(MEMORY[memory](y), order, x.shape), expected)


# --- average pooling ----------------------------------------------------------------------------


def check_avg(name: str, case: Pool, count_padding: bool, divisor: int | None) -> None:
    y = fill_avg(name, case, count_padding, divisor)
    assert y.dtype == case.dtype
    taps = prod(case.geometry["kernel"])
    scale = reference_avg_pool(case, np.abs(case.x()), count_padding, divisor)
    how = {**case.geometry, "count_padding": count_padding, "override": divisor}
    assert_within(y, reference_avg_pool(case, case.x(), count_padding, divisor), scale, taps)
    assert_within(y, oracles.avg_pool(case.x(), **how), scale, taps)

    grad_x = fill_avg_backward(name, case, count_padding, divisor)
    assert grad_x.dtype == case.dtype
    expected = reference_avg_pool_backward(case, case.grad(), count_padding, divisor)
    scale = reference_avg_pool_backward(case, np.abs(case.grad()), count_padding, divisor)
    assert_within(grad_x, expected, scale, taps)


@every_algorithm
@every_case
@pytest.mark.parametrize("count_padding", [True, False])
def test_avg_pool_named(name: str, case: Pool, count_padding: bool) -> None:
    check_avg(name, case, count_padding, None)
    check_avg(name, replace(case, dtype="float64"), count_padding, 3)


@every_algorithm
@given(case=pools(), block=BLOCK_BYTES, count_padding=st.booleans(), divisor=divisors)
def test_avg_pool(name: str, case: Pool, block: int, count_padding: bool, divisor: int | None) -> None:
    with blocks_of(block):
        check_avg(name, case, count_padding, divisor)


@every_algorithm
@given(case=pools(kinds=("ints",), dtype="float64"), divisor=st.sampled_from([1, 2, 4]))
def test_avg_pool_gradient_is_adjoint(name: str, case: Pool, divisor: int) -> None:
    """<avg_pool(x), g> = <x, avg_pool_backward(g)>, exactly where the divisor is a power of two."""
    y = fill_avg(name, case, True, divisor)
    assert inner(y, case.grad()) == inner(fill_avg_backward(name, case, True, divisor), case.x())


@every_algorithm
@given(case=pools(), count_padding=st.booleans(), divisor=divisors)
def test_avg_pool_runs_the_algorithm(name: str, case: Pool, count_padding: bool, divisor: int | None) -> None:
    how = {"count_include_pad": count_padding, "divisor_override": divisor, "algorithm": name}
    x, out = case.give(case.x()), np.full_like(case.give(case.grad()), np.nan)
    y = function(case, "avg")(x, **case.facts, **how, out=out)
    assert y is out
    assert_same_bits(y, case.give(fill_avg(name, case, count_padding, divisor)))
    grad_x = function(case, "avg", "_backward")(case.give(case.grad()), x.shape, **case.facts, **how)
    assert_same_bits(grad_x, case.give(fill_avg_backward(name, case, count_padding, divisor)))


@every_algorithm
@given(case=pools(kinds=("special",)))
def test_avg_pool_of_what_is_not_finite(name: str, case: Pool) -> None:
    """NaN, and the sum of both infinities, make NaN; one infinity stays."""
    with np.errstate(invalid="ignore"):
        y = fill_avg(name, case, True, None)
        expected = oracles.avg_pool(case.x(), **case.geometry)
    finite = np.isfinite(expected)
    assert_same(y[~finite], expected[~finite].astype(case.dtype))
    scale = np.full(finite.sum(), 1.0)
    assert_within(y[finite], expected[finite], scale, prod(case.geometry["kernel"]))


# --- both ---------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_order(name: str, memory: str, layout: str) -> None:
    case = Pool((5, 6), (3, 2), channels=3, batch=2, padding=1, stride=2, layout=layout)
    x, grad = case.give(case.x()), case.give(case.grad())
    given = MEMORY[memory](x)
    options = {**case.facts, "algorithm": name}
    y, indices = fastconv.max_pool2d(given, **options, return_indices=True)
    expected, places = fastconv.max_pool2d(x, **options, return_indices=True)
    assert_same_bits(y, expected)
    assert_same_bits(indices, places)
    assert_same_bits(fastconv.avg_pool2d(given, **options), fastconv.avg_pool2d(x, **options))
    assert_same_bits(
        fastconv.avg_pool2d_backward(MEMORY[memory](grad), x.shape, **options),
        fastconv.avg_pool2d_backward(grad, x.shape, **options),
    )
    assert_same(given, x)


@every_algorithm
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("memory", ["fortran", "strided", "reversed", "transposed", "misaligned"])
def test_out_in_any_memory(name: str, kind: str, memory: str) -> None:
    case = Pool((5, 6), 3, channels=3, batch=2, stride=1)
    expected = function(case, kind)(case.x(), 3, stride=1, algorithm=name)
    out = MEMORY[memory](np.full_like(expected, np.nan))
    y = function(case, kind)(case.x(), 3, stride=1, algorithm=name, out=out)
    assert y is out
    assert_same(out, expected)
    if memory == "strided":
        gaps = np.ones(out.base.shape, bool)
        gaps[::2, ::2, ::2, ::2] = False
        assert np.isnan(out.base[gaps]).all()


@every_algorithm
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("shift", [0, 3])
def test_out_overlaps_x(name: str, kind: str, shift: int) -> None:
    memory = np.random.default_rng(0).standard_normal(53)
    x, out = memory[:50].reshape(1, 2, 5, 5), memory[shift : 50 + shift].reshape(1, 2, 5, 5)
    options = {"kernel_size": 3, "stride": 1, "padding": 1, "algorithm": name}
    run = getattr(fastconv, f"{kind}_pool2d")
    expected = run(x.copy(), **options)
    assert run(x, **options, out=out) is out
    assert_same(out, expected)


@every_algorithm
@given(case=pools(kinds=("gauss",)), block=st.sampled_from([4 << 20, 2048]))
def test_same_bits_whatever_the_threads(name: str, case: Pool, block: int) -> None:
    _, places = fill_max(name, case)
    grad, shape = case.give(case.grad()), case.give(case.x()).shape

    def run() -> list[np.ndarray]:
        backward = function(case, "max", "_backward")
        return [
            *fill_max(name, case),
            fill_avg(name, case, False, None),
            fill_avg_backward(name, case, False, None),
            backward(grad, case.give(places), shape, layout=case.layout),
        ]

    with blocks_of(block):
        with fastconv.num_threads(1):
            alone = run()
        with mock.patch.object(threads, "SERIAL_WORK", 0):  # small work would run on one thread
            for array, expected in zip(run(), alone, strict=True):
                assert_same_bits(array, expected)


@every_algorithm
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty_arrays(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in, nothing out, and no algorithm is asked."""
    for op in ("max_pool", "avg_pool", "avg_pool_backward"):

        def unreachable(*args: Any, **kwargs: Any) -> None:
            pytest.fail("an algorithm was given an empty array")

        monkeypatch.setattr(type(POOL_ALGORITHMS[name]), op, unreachable)
    x, half = np.ones(shape), (*shape[:2], 2, 2)
    y, indices = fastconv.max_pool2d(x, 2, return_indices=True, algorithm=name)
    assert y.shape == indices.shape == half
    assert fastconv.avg_pool2d(x, 2, algorithm=name).shape == half
    assert fastconv.max_pool2d_backward(y, indices, shape).shape == shape
    assert fastconv.avg_pool2d_backward(y, shape, 2, algorithm=name).shape == shape
    assert fastconv.adaptive_avg_pool2d(x, 2).shape == half
    assert fastconv.adaptive_max_pool2d(x, 2).shape == half
    assert fastconv.adaptive_avg_pool2d_backward(y, shape).shape == shape


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_take_the_same_arguments(rank: int) -> None:
    """In torch's order."""
    for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"):
        for suffix in ("", "_backward"):
            if name + suffix == "adaptive_max_pool_backward":
                continue
            one = inspect.signature(getattr(fastconv, f"{name}{rank}d{suffix}"))
            assert str(one) == str(inspect.signature(getattr(fastconv, f"{name}2d{suffix}")))
    names = list(inspect.signature(getattr(fastconv, f"max_pool{rank}d")).parameters)
    torch = ["x", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"]
    assert names[: len(torch)] == torch
    names = list(inspect.signature(getattr(fastconv, f"avg_pool{rank}d")).parameters)
    torch = ["x", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"]
    assert names[: len(torch)] == torch


# --- by hand: what other libraries got wrong ----------------------------------------------------


@every_algorithm
def test_windows_of_minus_infinity_have_an_index(name: str) -> None:
    """The first real cell, not -1 and not a cell of the padding (pytorch#40131)."""
    x = np.full((1, 1, 2, 3), -np.inf)
    y, indices = fastconv.max_pool2d(x, 2, stride=1, padding=1, return_indices=True, algorithm=name)
    assert_same(y, np.full((1, 1, 3, 4), -np.inf))
    assert_same(indices[0, 0], np.array([[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5]]))


@every_algorithm
def test_the_first_nan_wins(name: str) -> None:
    """A NaN is larger than everything, inf included, wherever it is in its window."""
    x = np.array([[[np.inf, 1, np.nan, 2, np.nan, 5, 6, -np.inf]]])
    y, indices = fastconv.max_pool1d(x, 4, stride=1, return_indices=True, algorithm=name)
    assert_same(y, np.array([[[np.nan, np.nan, np.nan, np.nan, np.nan]]]))
    assert_same(indices, np.array([[[2, 2, 2, 4, 4]]]))
    grad_x = fastconv.max_pool1d_backward(np.ones((1, 1, 5)), indices, x.shape)
    assert_same(grad_x, np.array([[[0, 0, 3.0, 0, 2, 0, 0, 0]]]))


@every_algorithm
def test_the_first_of_equals_wins(name: str) -> None:
    """In row-major order; zeros are equal whatever their sign."""
    x = np.array([[[[0.0, -0.0, 7, 7], [-0.0, 0.0, 7, 7], [3, 3, 1, 2], [3, 3, 2, 2]]]])
    y, indices = fastconv.max_pool2d(x, 2, return_indices=True, algorithm=name)
    assert_same(y[0, 0], np.array([[0.0, 7], [3, 2]]))
    assert_same(indices[0, 0], np.array([[0, 2], [8, 11]]))


@every_algorithm
def test_ceil_mode_drops_a_window_in_the_padding(name: str) -> None:
    """Windows begin at -1, 1 and 3, but x ends at 3 (pytorch#45357, onnx#5741)."""
    x = np.array([[[1.0, 2, 3]]])
    options = {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True, "algorithm": name}
    assert_same(fastconv.max_pool1d(x, **options), np.array([[[1.0, 3]]]))
    assert_same(fastconv.avg_pool1d(x, **options), np.array([[[0.5, 2.5]]]))


@every_algorithm
def test_divisor_ends_with_the_explicit_padding(name: str) -> None:
    """Cells beyond it, under the last window in ceil mode, never count (onnx#5276, onnxruntime#29629)."""
    x = np.array([[[1.0, 2, 3, 4]]])
    options = {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True, "algorithm": name}
    # the windows are [0 1 2] and [3 4 0], nothing hangs over
    assert_same(fastconv.avg_pool1d(x, **options), np.array([[[1, 7 / 3]]]))
    assert_same(fastconv.avg_pool1d(x, **options, count_include_pad=False), np.array([[[1.5, 3.5]]]))
    # [0 1 2], [3 4 5] and [6 0 .]: two cells, one of them padding
    x = np.array([[[1.0, 2, 3, 4, 5, 6]]])
    assert_same(fastconv.avg_pool1d(x, **options), np.array([[[1, 4, 3]]]))
    assert_same(fastconv.avg_pool1d(x, **options, count_include_pad=False), np.array([[[1.5, 4, 6]]]))
    assert_same(fastconv.avg_pool1d(x, **options, divisor_override=2), np.array([[[1.5, 6, 3]]]))


@every_algorithm
def test_average_does_not_lose_small_numbers(name: str) -> None:
    """1,024 ones in float32; the first made so large that it would swallow those that follow."""
    x = np.ones((1, 1, 32, 32), np.float32)
    assert fastconv.avg_pool2d(x, 32, algorithm=name)[0, 0, 0, 0] == 1
    x[0, 0, 0, 0] = 2**24
    y = fastconv.avg_pool2d(x, 32, algorithm=name)
    expected = np.array([[[[(2.0**24 + 2**10 - 1) / 2**10]]]])
    # the reference adds up in float64, "direct" by columns, "im2col" in any order
    roundings = {"naive": 0, "direct": 64, "auto": 64, "im2col": 2**10}
    assert_within(y, expected, expected, roundings[name])


@every_algorithm
def test_gradients_add_up_where_windows_overlap(name: str) -> None:
    x = np.array([[[0.0, 9, 0, 8, 0]]])
    _, indices = fastconv.max_pool1d(x, 3, stride=1, return_indices=True, algorithm=name)
    grad_x = fastconv.max_pool1d_backward(np.array([[[1.0, 10, 100]]]), indices, x.shape)
    assert_same(grad_x, np.array([[[0.0, 11, 0, 100, 0]]]))
    grad_x = fastconv.avg_pool1d_backward(np.array([[[3.0, 30, 300]]]), x.shape, 3, stride=1, algorithm=name)
    assert_same(grad_x, np.array([[[1.0, 11, 111, 110, 100]]]))


# --- adaptive pooling ---------------------------------------------------------------------------


@st.composite
def adaptive(draw: st.DrawFn) -> tuple[Pool, Any]:
    """x, as that of a pooling, and an output size, which may be larger than x."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    case = Pool(
        size=draw(st.tuples(*[st.integers(1, 9 if rank < 3 else 5)] * rank)),
        kernel=1,
        channels=draw(st.integers(1, 3)),
        batch=draw(st.sampled_from([None, 1, 2])),
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        kind=draw(st.sampled_from(["gauss", "ints", "special"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    one = st.integers(1, 7)
    return case, draw(one | st.none() | st.tuples(*[one | st.none()] * rank))


def adaptive_size(case: Pool, wanted: Any) -> tuple[int, ...]:
    wanted = wanted if isinstance(wanted, tuple) else (wanted,) * case.rank
    return tuple(n if o is None else o for n, o in zip(case.size, wanted, strict=True))


@given(drawn=adaptive())
def test_adaptive_max_pool(drawn: tuple[Pool, Any]) -> None:
    case, wanted = drawn
    run = getattr(fastconv, f"adaptive_max_pool{case.rank}d")
    y, indices = run(case.give(case.x()), wanted, return_indices=True, layout=case.layout)
    expected = oracles.adaptive_max_pool(case.x(), adaptive_size(case, wanted))
    assert y.dtype == case.dtype
    assert_same(case.take(y), expected.y)
    assert_same(case.take(indices), expected.indices)
    assert_same_bits(run(case.give(case.x()), wanted, layout=case.layout), y)
    grad = values(case.seed, "ints", case.dtype, y.shape)
    backward = getattr(fastconv, f"max_pool{case.rank}d_backward")
    grad_x = backward(grad, indices, case.give(case.x()).shape, layout=case.layout)
    assert_same(case.take(grad_x), oracles.scatter_add(case.take(grad), case.take(indices), case.x().shape))


@given(drawn=adaptive())
def test_adaptive_avg_pool(drawn: tuple[Pool, Any]) -> None:
    case, wanted = drawn
    case = replace(case, kind="gauss" if case.kind == "special" else case.kind)
    size = adaptive_size(case, wanted)
    run = getattr(fastconv, f"adaptive_avg_pool{case.rank}d")
    y = run(case.give(case.x()), wanted, layout=case.layout)
    assert y.dtype == case.dtype
    expected = oracles.adaptive_avg_pool(case.x(), size)
    assert_within(case.take(y), expected, oracles.adaptive_avg_pool(np.abs(case.x()), size), prod(case.size))

    grad = values(case.seed + 1, "gauss", case.dtype, y.shape)
    backward = getattr(fastconv, f"adaptive_avg_pool{case.rank}d_backward")
    grad_x = case.take(backward(grad, case.give(case.x()).shape, layout=case.layout))
    expected, scale = np.zeros(case.x().shape), np.zeros(case.x().shape)
    for cell, window in zip(np.ndindex(*size), oracles.adaptive_windows(case.size, size), strict=True):
        share = case.take(grad)[(..., *cell)].astype(np.float64) / expected[(0, 0, *window)].size
        share = share.reshape(*share.shape, *[1] * case.rank)
        expected[(..., *window)] += share
        scale[(..., *window)] += np.abs(share)
    assert grad_x.dtype == case.dtype
    assert_within(grad_x, expected, scale, prod(size))


def test_adaptive_windows_are_integers() -> None:
    """floor and ceil of exact quotients: floats may come out just above or below (pytorch#81409)."""
    for size, parts in [(7, 3), (10, 7), (49, 49), (100, 7), (113, 57), (1, 5)]:
        x = np.arange(float(size)).reshape(1, 1, size)
        y = fastconv.adaptive_max_pool1d(x, parts)
        assert_same(y[0, 0], np.array([-(-(o + 1) * size // parts) - 1.0 for o in range(parts)]))
        low = -fastconv.adaptive_max_pool1d(-x, parts)
        assert_same(low[0, 0], np.array([float(o * size // parts) for o in range(parts)]))


def test_adaptive_is_plain_pooling_where_parts_are_even() -> None:
    x = np.random.default_rng(0).integers(-9, 9, (2, 3, 12, 8)).astype(np.float64)
    assert_same(fastconv.adaptive_avg_pool2d(x, (3, 4)), fastconv.avg_pool2d(x, (4, 2)))
    assert_same(fastconv.adaptive_max_pool2d(x, (3, 4)), fastconv.max_pool2d(x, (4, 2)))
    assert_same(fastconv.adaptive_avg_pool2d(x, None), x)
    assert_same(fastconv.adaptive_avg_pool2d(x, (None, 1)), x.mean(axis=3, keepdims=True))


@pytest.mark.parametrize("memory", MEMORY)
def test_adaptive_in_any_memory(memory: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7))
    last = to_layout(x, "NHWC")
    for run in (fastconv.adaptive_avg_pool2d, fastconv.adaptive_max_pool2d):
        assert_same_bits(run(MEMORY[memory](x), (2, 3)), run(x, (2, 3)))
        assert_same_bits(run(MEMORY[memory](last), (2, 3), layout="NHWC"), run(last, (2, 3), layout="NHWC"))


@pytest.mark.parametrize(
    ("index", "dtype", "found"),
    [
        (42, np.int64, "positions in the input plane, 0 to 41, .*42"),
        (-1, np.int64, "0 to 41, got values from -1 to 0"),
        (-1, np.int8, "values from -1"),
        (2**64 - 1, np.uint64, "to 18446744073709551615"),
        (2 * 3 * 42 - 1, np.int64, "0 to 41"),
    ],
)
def test_index_beyond_the_plane(index: int, dtype: type, found: str) -> None:
    """Once an out-of-bounds read (pytorch#194803). The one kind of wrong input that a kernel itself finds."""
    indices = np.zeros((2, 3, 3, 3), dtype)
    indices[1, 2, 0, 1] = index
    with pytest.raises(ValueError, match=f"^max_pool2d_backward: .*{found}"):
        fastconv.max_pool2d_backward(np.ones((2, 3, 3, 3), np.float32), indices, (2, 3, 6, 7))
