"""The reference against the definitions in other words: tests/oracles.py, with NumPy and SciPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracles
from harness import (
    reference_avg_pool,
    reference_avg_pool_backward,
    reference_forward,
    reference_input_grad,
    reference_max_pool,
    reference_weight_grad,
)
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same, assert_within, inner
from strategies import Conv, Pool, convs, pools

from fastconv import reference


@given(case=convs(dtype="float64"))
def test_conv(case: Conv) -> None:
    x, weight = case.x(), case.weight()
    y = reference_forward(case, x, weight)
    expected = oracles.conv(x, weight, **case.geometry)
    assert y.dtype == np.float64
    assert_within(y, expected, oracles.conv(np.abs(x), np.abs(weight), **case.geometry), weight[0].size)


@given(case=convs(dtype="float64").filter(lambda case: case.rank == 2))
def test_conv_is_scipys(case: Conv) -> None:
    x, weight = case.x(), case.weight()
    expected = oracles.correlate(x, weight, **case.geometry)
    scale = oracles.correlate(np.abs(x), np.abs(weight), **case.geometry)
    assert_within(reference_forward(case, x, weight), expected, scale, weight[0].size)


@given(case=convs(kind="ints", dtype="float64"))
def test_conv_gradients_are_adjoint(case: Conv) -> None:
    """With the forward proven, the identities prove the gradients, as they hold for every x, weight and g."""
    x, weight, grad = case.x(), case.weight(), case.grad()
    forward = inner(reference_forward(case, x, weight), grad)
    assert forward == inner(reference_input_grad(case, grad, weight), x)
    assert forward == inner(reference_weight_grad(case, grad, x), weight)


def test_conv_gradients_cell_by_cell() -> None:
    """Each cell of the gradients is the change of <y, g> that a step of 1 makes: y is linear in both."""
    case = Conv((4, 3), (2, 3), channels=(2, 4), groups=2, stride=(1, 2), padding=((1, 0), (2, 1)))
    case = replace(case, kind="ints", dtype="float64")
    x, weight, grad = case.x(), case.weight(), case.grad()
    start = inner(oracles.conv(x, weight, **case.geometry), grad)
    grad_x, grad_weight = reference_input_grad(case, grad, weight), reference_weight_grad(case, grad, x)
    for array, gradient in ((x, grad_x), (weight, grad_weight)):
        for cell in np.ndindex(array.shape):
            array[cell] += 1
            assert gradient[cell] == inner(oracles.conv(x, weight, **case.geometry), grad) - start
            array[cell] -= 1


@given(case=pools(kinds=("gauss", "ints", "special")))
def test_max_pool(case: Pool) -> None:
    y, indices = reference_max_pool(case, case.x())
    expected = oracles.max_pool(case.x(), **case.geometry)
    assert indices.dtype == np.int64
    assert_same(y, expected.y)
    assert_same(indices, expected.indices)


@given(case=pools(kinds=("ints",)))
def test_max_pool_backward(case: Pool) -> None:
    _, indices = reference_max_pool(case, case.x())
    lift = (1,) * (3 - case.rank)
    n, c = case.x().shape[:2]
    grad = case.grad().astype(np.float64).reshape(n, c, *lift, *case.out)
    places = indices.reshape(grad.shape)
    grad_x = reference.max_pool_backward(grad, places, (*lift, *case.size))
    assert_same(grad_x, oracles.scatter_add(grad, places, grad_x.shape))


divisors = st.none() | st.integers(1, 5)


@given(case=pools(dtype="float64"), count_padding=st.booleans(), divisor=divisors)
def test_avg_pool(case: Pool, count_padding: bool, divisor: int | None) -> None:
    y = reference_avg_pool(case, case.x(), count_padding, divisor)
    how = {**case.geometry, "count_padding": count_padding, "override": divisor}
    expected = oracles.avg_pool(case.x(), **how)
    assert_within(
        y, expected, oracles.avg_pool(np.abs(case.x()), **how), int(np.prod(case.geometry["kernel"]))
    )


@given(case=pools(kinds=("ints",), dtype="float64"), divisor=st.sampled_from([1, 2, 4]))
def test_avg_pool_backward_is_adjoint(case: Pool, divisor: int) -> None:
    """Exactly, where the divisor is a power of two."""
    y = reference_avg_pool(case, case.x(), True, divisor)
    grad_x = reference_avg_pool_backward(case, case.grad(), True, divisor)
    assert inner(y, case.grad()) == inner(grad_x, case.x())


@given(case=pools(dtype="float64"), count_padding=st.booleans())
def test_avg_pool_backward_divides_like_forward(case: Pool, count_padding: bool) -> None:
    """A gradient that is the divisor of each window brings 1 to each of its cells."""
    how = {**case.geometry, "count_padding": count_padding}
    grad = np.broadcast_to(oracles.divisors(case.size, **how), case.grad().shape)
    ones = np.ones(case.grad().shape)
    counts = reference_avg_pool_backward(case, ones, count_padding, 1)  # windows that hold each cell
    assert_same(reference_avg_pool_backward(case, grad, count_padding, None), counts)


@st.composite
def adaptive(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """x with three spatial axes, and an output size that may be larger than it."""
    size = draw(st.tuples(*[st.integers(1, 7)] * 3))
    output = draw(st.tuples(*[st.integers(1, 9)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.integers(-2, 3, (2, 2, *size)).astype(np.float64)
    if draw(st.booleans()):
        x[rng.random(x.shape) < 0.3] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return x, output


@given(case=adaptive())
def test_adaptive_pools(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    x, output = case
    y, indices = reference.adaptive_max_pool(x, output)
    expected = oracles.adaptive_max_pool(x, output)
    assert_same(y, expected.y)
    assert_same(indices, expected.indices)
    x = np.nan_to_num(x, posinf=3, neginf=-3)
    mean = oracles.adaptive_avg_pool(x, output)
    scale = oracles.adaptive_avg_pool(np.abs(x), output)
    assert_within(reference.adaptive_avg_pool(x, output), mean, scale, x[0, 0].size)


@given(case=adaptive())
def test_adaptive_avg_pool_backward(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    """The gradient of each output cell by itself: its window, in equal parts."""
    x, output = case
    for cell, window in zip(np.ndindex(*output), oracles.adaptive_windows(x.shape[2:], output), strict=True):
        if sum(cell) % 7:  # some of them
            continue
        grad = np.zeros((1, 1, *output))
        grad[(0, 0, *cell)] = 1
        grad_x = reference.adaptive_avg_pool_backward(grad, x.shape[2:])
        expected = np.zeros((1, 1, *x.shape[2:]))
        expected[(0, 0, *window)] = 1 / expected[(0, 0, *window)].size
        assert_same(grad_x, expected)
