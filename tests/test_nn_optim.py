"""Optimisers: first steps worked by hand, later ones against the recursions in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastconv import nn


class Point(nn.Layer):
    """A layer whose gradients the test sets."""

    def __init__(self, *start: float, dtype: Any = np.float64) -> None:
        super().__init__()
        self.params["p"] = np.array(start, dtype)

    def at(self, *grad: float) -> Point:
        self.grads["p"] = np.array(grad, self.params["p"].dtype)
        return self

    @property
    def value(self) -> float:
        return float(self.params["p"][0])


def walk(make: Callable[[nn.Layer], nn.Optimizer], grads: list[float], start: float) -> list[float]:
    """The positions after each step."""
    net = Point(start)
    optimizer = make(net)
    result = []
    for grad in grads:
        net.at(grad)
        optimizer.step()
        result.append(net.value)
    return result


def test_sgd_by_hand() -> None:
    ones = [1.0, 1.0, 1.0]
    assert walk(lambda n: nn.SGD(n, 0.1), ones, 1) == pytest.approx([0.9, 0.8, 0.7])
    # velocity 1, 1.9, 2.71
    assert walk(lambda n: nn.SGD(n, 0.1, momentum=0.9), ones, 1) == pytest.approx([0.9, 0.71, 0.439])
    # steps 1 + 0.9 * 1, 1 + 0.9 * 1.9, 1 + 0.9 * 2.71
    assert walk(lambda n: nn.SGD(n, 0.1, momentum=0.9, nesterov=True), ones, 1) == pytest.approx(
        [0.81, 0.539, 0.1951]
    )
    # velocity 1, 0.9 + 0.5, 1.26 + 0.5
    assert walk(lambda n: nn.SGD(n, 0.1, momentum=0.9, dampening=0.5), ones, 1) == pytest.approx(
        [0.9, 0.76, 0.584]
    )
    # the gradient of 0 leaves the decay: p (1 - 0.1 * 0.5)
    assert walk(lambda n: nn.SGD(n, 0.1, weight_decay=0.5), [0.0, 0.0], 1) == pytest.approx([0.95, 0.9025])


def test_rmsprop_by_hand() -> None:
    # mean square 0.01 * 4 = 0.2^2, so a step of 0.1 * 2 / 0.2; then 0.99 * 0.04 + 0.01 * 4 = 0.0796
    assert walk(lambda n: nn.RMSprop(n, 0.1), [2.0, 2.0], 1) == pytest.approx(
        [0, -0.2 / math.sqrt(0.0796)], abs=1e-6
    )


@pytest.mark.parametrize("grad", [-3.0, 1e-3, 5.0])
def test_the_first_step_of_adam_has_the_length_of_lr(grad: float) -> None:
    """m / (1 - beta1) = grad and v / (1 - beta2) = grad^2, so the step is lr sign(grad)."""
    (after,) = walk(lambda n: nn.Adam(n, 0.1), [grad], 1)
    assert after == pytest.approx(1 - 0.1 * math.copysign(1, grad), rel=1e-5)
    (after,) = walk(lambda n: nn.AdamW(n, 0.1, weight_decay=0.5), [grad], 1)
    assert after == pytest.approx(1 * (1 - 0.1 * 0.5) - 0.1 * math.copysign(1, grad), rel=1e-5)


# The recursions as the papers have them, in Python floats.


def sgd(
    p: float, grads: list[float], lr: float, momentum: float, decay: float, nesterov: bool
) -> Iterator[float]:
    v = 0.0
    for g in grads:
        d = g + decay * p
        v = momentum * v + d
        p -= lr * (d + momentum * v if nesterov else v)
        yield p


def rmsprop(
    p: float,
    grads: list[float],
    lr: float,
    alpha: float,
    decay: float,
    momentum: float,
    centered: bool,
) -> Iterator[float]:
    s = m = v = 0.0
    for g in grads:
        d = g + decay * p
        s = alpha * s + (1 - alpha) * d**2
        m = alpha * m + (1 - alpha) * d
        scaled = d / (math.sqrt(s - m**2 if centered else s) + 1e-8)
        v = momentum * v + scaled
        p -= lr * v
        yield p


def adam(
    p: float, grads: list[float], lr: float, beta1: float, beta2: float, decay: float, apart: bool
) -> Iterator[float]:
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        d = g if apart else g + decay * p
        if apart:
            p -= lr * decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d**2
        p -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + 1e-8)
        yield p


GRADS = np.random.default_rng(0).standard_normal(12).tolist()

RULES: dict[str, tuple[Callable[[nn.Layer], nn.Optimizer], Iterator[float]]] = {
    "SGD": (
        lambda n: nn.SGD(n, 0.3, 0.8, weight_decay=0.1),
        sgd(2.0, GRADS, 0.3, 0.8, 0.1, False),
    ),
    "SGD nesterov": (
        lambda n: nn.SGD(n, 0.3, 0.8, weight_decay=0.1, nesterov=True),
        sgd(2.0, GRADS, 0.3, 0.8, 0.1, True),
    ),
    "RMSprop": (
        lambda n: nn.RMSprop(n, 0.3, 0.9, weight_decay=0.1),
        rmsprop(2.0, GRADS, 0.3, 0.9, 0.1, 0, False),
    ),
    "RMSprop centered": (
        lambda n: nn.RMSprop(n, 0.3, 0.9, weight_decay=0.1, momentum=0.5, centered=True),
        rmsprop(2.0, GRADS, 0.3, 0.9, 0.1, 0.5, True),
    ),
    "Adam": (
        lambda n: nn.Adam(n, 0.3, (0.8, 0.95), weight_decay=0.1),
        adam(2.0, GRADS, 0.3, 0.8, 0.95, 0.1, False),
    ),
    "AdamW": (
        lambda n: nn.AdamW(n, 0.3, (0.8, 0.95), weight_decay=0.1),
        adam(2.0, GRADS, 0.3, 0.8, 0.95, 0.1, True),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_against_the_recursion(name: str) -> None:
    make, expected = RULES[name]
    assert walk(make, GRADS, 2.0) == pytest.approx(list(expected), rel=1e-10)


def test_defaults_are_those_of_torch() -> None:
    net = Point(1)
    assert nn.SGD(net).lr == 1e-3
    rms, plain, apart = nn.RMSprop(net), nn.Adam(net), nn.AdamW(net)
    assert (rms.lr, rms.alpha, rms.eps, rms.weight_decay) == (1e-2, 0.99, 1e-8, 0)
    for adam_like in (plain, apart):
        assert (adam_like.lr, adam_like.betas, adam_like.eps) == (1e-3, (0.9, 0.999), 1e-8)
    assert (plain.weight_decay, apart.weight_decay) == (0, 1e-2)


ALL = {
    "SGD": lambda n: nn.SGD(n, 0.1, 0.9, weight_decay=0.1),
    "Nesterov": lambda n: nn.SGD(n, 0.1, 0.9, weight_decay=0.1, nesterov=True),
    "RMSprop": lambda n: nn.RMSprop(n, 0.1, momentum=0.5, weight_decay=0.1, centered=True),
    "Adam": lambda n: nn.Adam(n, 0.1, weight_decay=0.1),
    "AdamW": lambda n: nn.AdamW(n, 0.1),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_in_place_and_leave_the_gradient(make: Any, dtype: Any) -> None:
    net = Point(1.0, 2.0, dtype=dtype)
    array = net.params["p"]
    optimizer = make(net)
    for _ in range(3):
        grad = net.at(0.5, -0.5).grads["p"]
        optimizer.step()
        np.testing.assert_array_equal(grad, [0.5, -0.5])
    assert net.params["p"] is array
    assert array.dtype == dtype
    assert not np.array_equal(array, [1, 2])
    assert optimizer.steps == 3


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_two_parameters_do_not_mix(make: Any) -> None:
    """Two layers in one optimiser move as each alone does."""
    both = nn.Sequential(Point(1.0), Point(1.0))
    optimizer = make(both)
    for grad in (1.0, 0.5, -2.0):
        both.layers[0].at(grad)  # type: ignore[attr-defined]
        both.layers[1].at(3 * grad + 1)  # type: ignore[attr-defined]
        optimizer.step()
    assert [float(p[0]) for p in both.params.values()] == [
        walk(make, [1.0, 0.5, -2.0], 1.0)[-1],
        walk(make, [4.0, 2.5, -5.0], 1.0)[-1],
    ]


def test_lr_may_change() -> None:
    net = Point(1.0)
    optimizer = nn.SGD(net, 0.5)
    net.at(1.0)
    optimizer.step()
    optimizer.lr = 0.25
    optimizer.step()
    assert net.value == 0.25


def test_step_without_gradient_changes_nothing() -> None:
    net = nn.Sequential(Point(1.0).at(1.0), Point(1.0))
    optimizer = nn.Adam(net)
    with pytest.raises(RuntimeError, match=r"Adam\.step: no gradient for 1\.p; run .* backward"):
        optimizer.step()
    assert [p[0] for p in net.params.values()] == [1, 1]
    assert optimizer.steps == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: nn.SGD(n, -1), "SGD: lr must not be negative, got -1"),
        (lambda n: nn.SGD(n, float("nan")), "SGD: lr must not be negative, got nan"),
        (lambda n: nn.SGD(n, momentum=-1), "SGD: momentum must not be negative"),
        (lambda n: nn.SGD(n, nesterov=True), "SGD: nesterov needs a momentum above 0"),
        (lambda n: nn.RMSprop(n, alpha=1), "RMSprop: alpha must be at least 0 and below 1, got 1"),
        (lambda n: nn.Adam(n, betas=(1.0, 0.9)), r"Adam: betas\[0\] must be at least 0"),
        (lambda n: nn.AdamW(n, betas=(0.9, -0.1)), r"AdamW: betas\[1\] must be at least 0"),
        (lambda n: nn.Adam(n, eps=-1), "Adam: eps must not be negative"),
        (lambda n: nn.Adam(n, weight_decay=-1), "Adam: weight_decay must not be negative"),
    ],
)
def test_wrong_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Point(1))


@pytest.mark.parametrize("value", ["x", None, True, [1], np.ones(2), 1j])
def test_rates_must_be_numbers(value: Any) -> None:
    """Python's own messages told of operators, not of the argument."""
    for make, name in ((nn.SGD, "lr"), (nn.RMSprop, "alpha"), (nn.AdamW, "weight_decay")):
        with pytest.raises(TypeError, match=f"^{make.__name__}: {name} must be a number"):
            make(Point(1), **{name: value})


def test_net_must_be_a_layer() -> None:
    with pytest.raises(TypeError, match="Adam: net must be a Layer, got list"):
        nn.Adam([])  # type: ignore[arg-type]
