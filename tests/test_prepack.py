"""Weights packed once: the same bits, for any batch, and never a wrong form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from strategies import Conv, convs

import fastconv
from fastconv import conv2d, prepack
from fastconv.functional.packed_weight import PackedWeight

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 16, 12, 13)).astype(np.float32)
WEIGHT = RNG.standard_normal((12, 16, 3, 3)).astype(np.float32)
BIAS = RNG.standard_normal(12).astype(np.float32)


@pytest.mark.parametrize("algorithm", fastconv.ALGORITHMS)
@given(case=convs())
def test_same_bits(algorithm: str, case: Conv) -> None:
    """By each algorithm that can do it, with and without a bias, on the short way and on the long one."""
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    bias = np.linspace(-1, 1, case.channels[1]).astype(case.dtype)
    conv = getattr(fastconv, f"conv{case.rank}d")
    facts = {**case.facts, "algorithm": algorithm}
    try:
        packed = prepack(weight, x_shape=x.shape, **facts)
    except ValueError:
        with pytest.raises(ValueError, match="cannot compute this forward"):
            conv(x, weight, bias, **facts)
        return
    for offset in (None, bias):
        expected = conv(x, weight, offset, **facts)
        for _ in range(2):
            np.testing.assert_array_equal(conv(x, packed, offset, **facts), expected)
        out = np.full_like(expected, np.nan)
        assert conv(x, packed, offset, **facts, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_any_batch(batch: int) -> None:
    packed = prepack(WEIGHT, x_shape=X.shape, padding=1)
    x = np.resize(X, (batch, *X.shape[1:]))
    expected = conv2d(x, WEIGHT, BIAS, padding=1, activation="relu")
    np.testing.assert_array_equal(conv2d(x, packed, BIAS, padding=1, activation="relu"), expected)


@pytest.mark.parametrize(
    "facts",
    [
        {"padding": 2},
        {"stride": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"dilation": 3},
        {"algorithm": "im2col"},
        {"algorithm": "naive"},
        {"algorithm": "gemm"},
    ],
    ids=str,
)
def test_other_arguments_than_packed_for(facts: dict[str, Any]) -> None:
    """Right, if maybe slower."""
    packed = prepack(WEIGHT, x_shape=(4, 16, 9, 9), padding=1)
    np.testing.assert_array_equal(conv2d(X, packed, BIAS, **facts), conv2d(X, WEIGHT, BIAS, **facts))


def test_other_groups_of_the_same_weight() -> None:
    """The weight's shape is the same, its form is not."""
    weight = RNG.standard_normal((32, 8, 3, 3)).astype(np.float32)
    packed = prepack(weight, x_shape=(1, 8, 12, 12))
    x = RNG.standard_normal((1, 16, 12, 12)).astype(np.float32)
    np.testing.assert_array_equal(conv2d(x, packed, groups=2), conv2d(x, weight, groups=2))


def test_same_bits_with_other_threads() -> None:
    packed = prepack(WEIGHT, x_shape=X.shape, padding=1)
    expected = conv2d(X, packed, BIAS, padding=1)
    with fastconv.num_threads(1):
        np.testing.assert_array_equal(conv2d(X, packed, BIAS, padding=1), expected)


def test_it_is_a_copy() -> None:
    weight = WEIGHT.copy()
    packed = prepack(weight, x_shape=X.shape)
    weight[:] = 0
    np.testing.assert_array_equal(conv2d(X, packed), conv2d(X, WEIGHT))
    assert not np.asarray(packed).flags.writeable


def test_the_packed_form_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = prepack(WEIGHT, x_shape=X.shape, algorithm="gemm")
    packed.packed[:] = 0
    assert not conv2d(X, packed, algorithm="gemm").any()
    out = np.ones((2, 12, 10, 11), np.float32)
    assert not conv2d(X, packed, out=out, algorithm="gemm").any()


def test_gradients_take_it() -> None:
    packed = prepack(WEIGHT, x_shape=X.shape)
    grad = RNG.standard_normal((2, 12, 10, 11)).astype(np.float32)
    for one, other in zip(
        fastconv.conv2d_backward(grad, X, packed), fastconv.conv2d_backward(grad, X, WEIGHT), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_facts() -> None:
    packed = prepack(WEIGHT, x_shape=X.shape, algorithm="gemm")
    assert isinstance(packed, PackedWeight)
    assert (packed.shape, packed.ndim, packed.dtype) == (WEIGHT.shape, 4, WEIGHT.dtype)
    assert packed.algorithm == "gemm"
    assert packed.nbytes >= 2 * WEIGHT.nbytes
    assert repr(packed) == f"PackedWeight((12, 16, 3, 3), float32, for 'gemm', {packed.nbytes:,} bytes)"
    assert np.asarray(packed, np.float64).dtype == np.float64
    assert np.array(packed, copy=True).flags.writeable


@pytest.mark.parametrize(
    ("error", "message", "weight", "options"),
    [
        (ValueError, "prepack: weight must have 3 to 5 axes", np.ones((3, 3)), {"x_shape": (1, 3, 8, 8)}),
        (ValueError, "^prepack: ", WEIGHT, {"x_shape": (1, 3, 8, 8)}),
        (ValueError, "prepack: unknown algorithm", WEIGHT, {"x_shape": X.shape, "algorithm": "fast"}),
        (TypeError, "prepack: weight must have dtype", np.ones((2, 2, 3, 3), int), {"x_shape": (1, 2, 8, 8)}),
    ],
)
def test_wrong(error: type[Exception], message: str, weight: np.ndarray, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        prepack(weight, **options)


def test_wrong_dtype_of_x() -> None:
    packed = prepack(WEIGHT, x_shape=X.shape)
    with pytest.raises(TypeError, match="conv2d: all arrays must have one dtype"):
        conv2d(X.astype(np.float64), packed)
