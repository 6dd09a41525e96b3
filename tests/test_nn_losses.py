"""Losses: values worked by hand, gradients against differences, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastconv import nn


@st.composite
def scores_and_labels(draw: st.DrawFn) -> tuple[Any, Any]:
    n, c = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    scores = draw(hnp.arrays(np.float64, (n, c), elements=st.floats(-30, 30)))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))
    return scores, labels


def test_cross_entropy_by_hand() -> None:
    loss = nn.CrossEntropy()
    # softmax (1/4, 3/4) and (1/2, 1/2)
    pred = np.array([[0.0, math.log(3)], [5.0, 5.0]])
    assert loss.forward(pred, np.array([1, 0])) == pytest.approx(
        (math.log(4 / 3) + math.log(2)) / 2, rel=1e-12
    )
    np.testing.assert_allclose(loss.backward(), np.array([[1 / 4, -1 / 4], [-1 / 2, 1 / 2]]) / 2)


def test_nll_by_hand() -> None:
    loss = nn.NLL()
    assert loss.forward(np.array([[-1.0, -2.0], [-3.0, -4.0]]), np.array([1, 0])) == 2.5
    np.testing.assert_array_equal(loss.backward(), [[0, -0.5], [-0.5, 0]])


def test_mse_by_hand() -> None:
    loss = nn.MSE()
    assert loss.forward(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1, 0], [0, 4]])) == 13 / 4
    np.testing.assert_array_equal(loss.backward(), [[0, 1], [1.5, 0]])


@given(scores_and_labels())
def test_cross_entropy_is_nll_of_log_softmax(case: tuple[Any, Any]) -> None:
    pred, labels = case
    cross, nll, layer = nn.CrossEntropy(), nn.NLL(), nn.LogSoftmax()
    value = cross.forward(pred, labels)
    assert value == pytest.approx(nll.forward(layer.forward(pred, True), labels), rel=1e-9)
    assert value >= -1e-12
    np.testing.assert_allclose(cross.backward(), layer.backward(nll.backward()), atol=1e-12)


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.NLL(), nn.MSE()], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backward_is_the_derivative(loss: nn.Loss, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    pred = rng.standard_normal((5, 4)).astype(dtype)
    labels: Any = rng.integers(4, size=5)
    target = rng.standard_normal((5, 4)) if isinstance(loss, nn.MSE) else labels
    loss.forward(pred, target)
    grad = loss.backward()
    assert (grad.shape, grad.dtype) == (pred.shape, pred.dtype)
    np.testing.assert_array_equal(loss.backward(), grad)
    exact = pred.astype(np.float64)
    for index in np.ndindex(pred.shape):
        up, down = exact.copy(), exact.copy()
        up[index] += 1e-5
        down[index] -= 1e-5
        difference = (loss.forward(up, target) - loss.forward(down, target)) / 2e-5
        assert grad[index] == pytest.approx(difference, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_does_not_overflow(dtype: Any) -> None:
    loss = nn.CrossEntropy()
    pred = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        value = loss.forward(pred, np.array([1, 1]))
        grad = loss.backward()
    assert value == pytest.approx((2e4 + math.log(2)) / 2, rel=1e-6)
    np.testing.assert_allclose(grad, [[0.5, -0.5, 0], [0, -0.25, 0.25]], atol=1e-6)


def test_cross_entropy_of_a_class_ruled_out() -> None:
    loss = nn.CrossEntropy()
    assert loss.forward(np.array([[0.0, -np.inf]]), np.array([0])) == 0
    np.testing.assert_array_equal(loss.backward(), [[0, 0]])
    assert loss.forward(np.array([[0.0, -np.inf]]), np.array([1])) == math.inf


def test_labels_may_be_any_integers() -> None:
    pred = np.eye(3)
    values = {
        nn.CrossEntropy().forward(pred, np.array([0, 1, 2], dtype))
        for dtype in (np.uint8, np.int8, np.int32, np.uint64)
    }
    assert len(values) == 1


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.NLL()], ids=repr)
def test_wrong_labels(loss: nn.Loss) -> None:
    pred = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"labels must be from 0 to 3.*got 4"):
        loss.forward(pred, np.array([0, 4, 1]))
    with pytest.raises(ValueError, match=r"labels must be from 0 to 3.*got -1"):
        loss.forward(pred, np.array([0, -1, 1]))
    with pytest.raises(TypeError, match="integer labels, got dtype float64"):
        loss.forward(pred, np.array([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match=r"one label per row of pred, shape \(3,\), got \(2,\)"):
        loss.forward(pred, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"got \(3, 4\)"):
        loss.forward(pred, np.zeros((3, 4), int))


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.NLL()], ids=repr)
def test_wrong_predictions(loss: nn.Loss) -> None:
    for shape in ((3,), (3, 4, 5), (0, 4), (3, 0)):
        with pytest.raises(ValueError, match=r"pred must have shape \(N, C\)"):
            loss.forward(np.zeros(shape), np.zeros(shape[0], int))
    with pytest.raises(TypeError, match="pred must be float32 or float64, got int64"):
        loss.forward(np.zeros((3, 4), np.int64), np.zeros(3, int))
    with pytest.raises(TypeError, match="pred must be a numpy array, got list"):
        loss.forward([[0.0]], np.zeros(1, int))  # type: ignore[arg-type]


def test_wrong_targets_of_mse() -> None:
    with pytest.raises(ValueError, match=r"one shape.*got \(3, 1\) and \(3,\)"):
        nn.MSE().forward(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="at least one element"):
        nn.MSE().forward(np.zeros((0, 1)), np.zeros((0, 1)))
    with pytest.raises(TypeError, match="real numbers, got dtype complex128"):
        nn.MSE().forward(np.zeros(3), np.zeros(3, complex))


@pytest.mark.parametrize("loss", [nn.CrossEntropy(), nn.NLL(), nn.MSE()], ids=repr)
def test_backward_needs_forward(loss: nn.Loss) -> None:
    with pytest.raises(RuntimeError, match=r"backward: call forward\(pred, target\) first"):
        type(loss)().backward()
