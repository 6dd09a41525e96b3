"""Convolution of 8-bit integers: exact, whatever the zero points; and quantised, rounded as ONNX says."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import MEMORY, Conv, convs

import fastconv
from fastconv import conv_integer, prepack_integer, qlinear_conv, reference
from fastconv.arguments import LARGEST_ARGUMENT
from fastconv.shapes import conv_shape

BYTES = st.sampled_from([np.uint8, np.int8])
#: Bytes are never misaligned.
MEMORIES = st.sampled_from(sorted(MEMORY.keys() - {"misaligned"}))


def some_bytes(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Any values, the least and the greatest more often than others."""
    limits = np.iinfo(dtype)
    array = rng.integers(limits.min, limits.max + 1, shape)
    ends = rng.choice([limits.min, limits.max], shape)
    return np.where(rng.random(shape) < 0.3, ends, array).astype(dtype)


def facts(case: Conv) -> dict[str, Any]:
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}


def integers(case: Conv, x_dtype: Any, weight_dtype: Any, per_channel: bool) -> tuple[Any, Any, Any, Any]:
    """x, its zero point, weight, and its zero points."""
    rng = np.random.default_rng(case.seed)
    batch = 1 if case.batch is None else case.batch
    x = some_bytes(rng, x_dtype, (batch, case.channels[0], *case.size))
    weight = some_bytes(rng, weight_dtype, case.weight().shape)
    x_zero = some_bytes(rng, x_dtype, (1,))[0]
    zeros = some_bytes(rng, weight_dtype, (case.channels[1] if per_channel else 1,))
    return x, x_zero, weight, zeros


def differences(case: Conv, x: Any, x_zero: Any, weight: Any, zeros: Any) -> np.ndarray:
    """The sums, exact in float64."""
    centred = weight.astype(float) - zeros.astype(float).reshape(-1, *(1,) * (weight.ndim - 1))
    return oracles.conv(x.astype(float) - float(x_zero), centred, **case.geometry)


@given(case=convs(), x_dtype=BYTES, weight_dtype=BYTES, per_channel=st.booleans(), memory=MEMORIES)
@example(Conv((13, 17), (3, 3), (5, 19), 2), np.uint8, np.int8, True, "transposed")
@example(Conv((7, 7), (1, 1), (3, 9)), np.int8, np.uint8, False, "strided")
def test_exact(case: Conv, x_dtype: Any, weight_dtype: Any, per_channel: bool, memory: str) -> None:
    given = integers(case, x_dtype, weight_dtype, per_channel)
    x, x_zero, weight, zeros = given
    users = MEMORY[memory](x[0] if case.batch is None else x)
    y = conv_integer(users, weight, x_zero, zeros, **facts(case))
    assert y.dtype == np.int32
    y = y[None] if case.batch is None else y
    np.testing.assert_array_equal(y, differences(case, *given))
    packed = prepack_integer(weight, zeros, case.groups)
    again = conv_integer(users, packed, x_zero, **facts(case))
    np.testing.assert_array_equal(again.reshape(y.shape), y)


@given(case=convs(), x_dtype=BYTES, weight_dtype=BYTES)
def test_reference(case: Conv, x_dtype: Any, weight_dtype: Any) -> None:
    """The loops of the definition give the same."""
    given = integers(case, x_dtype, weight_dtype, True)
    x, x_zero, weight, zeros = given
    args = (case.stride, case.padding, case.dilation, case.groups, "NCHW")
    shape = conv_shape("test", case.rank, x.shape, weight.shape, *args)
    lifted = [a.reshape(*a.shape[:2], *(1,) * (3 - case.rank), *a.shape[2:]) for a in (x, weight)]
    y = reference.conv_integer(
        *lifted,
        int(x_zero),
        zeros.astype(np.int64),
        shape.stride,
        shape.pad_before,
        shape.dilation,
        case.groups,
        shape.output,
    )
    expected = differences(case, *given)
    np.testing.assert_array_equal(y.reshape(expected.shape), expected)


#: Powers of two make many ties.
SCALES = st.sampled_from([0.5, 2.0, 2**-9, 2**-11, 3e-3, 0.7, 1e-4])


@given(
    case=convs(),
    x_dtype=BYTES,
    weight_dtype=BYTES,
    y_dtype=BYTES,
    scales=st.tuples(SCALES, SCALES, SCALES),
    per_channel=st.booleans(),
)
def test_quantised(
    case: Conv, x_dtype: Any, weight_dtype: Any, y_dtype: Any, scales: Any, per_channel: bool
) -> None:
    """Against rational numbers, rounded half to even by Python."""
    given = integers(case, x_dtype, weight_dtype, per_channel)
    x, x_zero, weight, zeros = given
    rng = np.random.default_rng(case.seed + 1)
    channels = case.channels[1]
    x_scale, weight_scale, y_scale = (np.float32(scale) for scale in scales)
    weight_scales = weight_scale * rng.choice([1, 0.25, 3], channels if per_channel else 1).astype(np.float32)
    y_zero = some_bytes(rng, y_dtype, (1,))
    bias = rng.integers(-5000, 5000, channels).astype(np.int32) if case.bias else None
    users = x[0] if case.batch is None else x
    quantities = (users, x_scale, x_zero, weight, weight_scales, zeros, y_scale, y_zero)
    y = qlinear_conv(*quantities, bias, **facts(case))
    assert y.dtype == y_dtype
    sums = differences(case, *given)
    factors = np.broadcast_to(x_scale * weight_scales / y_scale, (channels,))
    assert factors.dtype == np.float32
    limits = np.iinfo(y_dtype)
    expected = np.empty(sums.shape, int)
    for place in np.ndindex(sums.shape):
        k = place[1]
        total = int(sums[place]) + (0 if bias is None else int(bias[k]))
        value = round(Fraction(total) * Fraction(float(factors[k]))) + int(y_zero[0])
        expected[place] = min(max(value, limits.min), limits.max)
    np.testing.assert_array_equal(y.reshape(expected.shape), expected)


def test_rounds_half_to_even_before_the_zero_point() -> None:
    x = np.arange(8, dtype=np.uint8).reshape(1, 1, 8)
    y = qlinear_conv(x, 0.5, 0, np.ones((1, 1, 1), np.int8), 1, 0, 1, np.uint8(1))
    np.testing.assert_array_equal(y.ravel(), np.array([0, 0, 1, 2, 2, 2, 3, 4]) + 1)


def test_saturates() -> None:
    x = np.array([[[0, 100, 200]]], np.uint8)
    one = np.ones((1, 1, 1), np.int8)
    assert qlinear_conv(x, 1, 100, one, 1e18, 0, 1e-18, np.int8(3)).ravel().tolist() == [-128, 3, 127]


def test_extremes_are_exact() -> None:
    """The greatest sum that fits in 32 bits, and beyond it the low 32 bits."""
    x = np.full((1, 33025, 1), 255, np.uint8)
    weight = np.full((1, 33025, 1), 255, np.uint8)
    assert conv_integer(x[:, :33024], weight[:, :33024]).item() == 33024 * 255 * 255 < 2**31
    assert conv_integer(x, weight, 0, 0).item() == 33025 * 255 * 255 - (33025 * 255 * 255 >= 2**31) * 2**32


def test_padding_is_the_zero_point() -> None:
    x = np.full((1, 2, 4, 4), 9, np.uint8)
    y = conv_integer(x, np.ones((3, 2, 3, 3), np.int8), x_zero_point=9, padding=1)
    assert not y.any()


@pytest.mark.parametrize("threads", [1, 2])
def test_same_with_other_threads(threads: int) -> None:
    """Many tiles; and few, of which tasks share one."""
    if threads > fastconv.get_num_threads():
        pytest.skip("there is one thread")
    rng = np.random.default_rng(3)
    for size, channels in (((2, 48, 30, 31), 40), ((1, 96, 7, 7), 100)):
        x = some_bytes(rng, np.uint8, size)
        weight = some_bytes(rng, np.int8, (channels, size[1], 3, 3))
        expected = oracles.conv(x.astype(float) - 7, weight, (1, 1), [(1, 1)] * 2, (1, 1))
        with fastconv.num_threads(threads):
            np.testing.assert_array_equal(conv_integer(x, weight, 7, padding=1), expected)


@given(case=convs(empty=True))
def test_empty(case: Conv) -> None:
    x, x_zero, weight, zeros = integers(case, np.uint8, np.int8, False)
    y = conv_integer(x, weight, x_zero, zeros, **facts(case))
    assert y.shape == (len(x), case.channels[1], *case.out)
    assert y.dtype == np.int32
    assert not y.any()
    q = qlinear_conv(x, 1, x_zero, weight, 1, zeros, 1, np.uint8(5), **facts(case))
    assert (q == 5).all()
    assert q.shape == y.shape


X, W = np.zeros((1, 2, 5, 5), np.uint8), np.zeros((4, 2, 3, 3), np.int8)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "x must have dtype uint8 or int8, got float32", {"x": X.astype(np.float32)}),
        (TypeError, "x must be a numpy.ndarray", {"x": [1]}),
        (TypeError, "weight must have dtype uint8 or int8, got int32", {"weight": W.astype(np.int32)}),
        (ValueError, "weight must have 3 to 5 axes", {"weight": W[0, 0]}),
        (ValueError, "x must have 4 axes", {"x": X[0, 0]}),
        (ValueError, "x has 2 channels", {"weight": W[:, :1]}),
        (ValueError, "do not divide into groups = 3", {"groups": 3}),
        (ValueError, "groups must be at least 1", {"groups": 0}),
        (TypeError, "groups must be an int", {"groups": 1.5}),
        (ValueError, "stride must be at least 1", {"stride": 0}),
        (ValueError, "padding must be at most", {"padding": LARGEST_ARGUMENT + 1}),
        (ValueError, "x_zero_point must be values of uint8", {"x_zero_point": 256}),
        (ValueError, "x_zero_point must be one value", {"x_zero_point": np.zeros(2, np.uint8)}),
        (TypeError, "x_zero_point must be integers", {"x_zero_point": 0.5}),
        (ValueError, "weight_zero_point must be values of int8", {"weight_zero_point": 200}),
        (ValueError, r"weight_zero_point must have shape \(4,\)", {"weight_zero_point": [1, 2]}),
        (ValueError, "was packed for groups = 1, got 2", {"weight": prepack_integer(W), "groups": 2}),
        (
            ValueError,
            "zero points of a packed weight",
            {"weight": prepack_integer(W), "weight_zero_point": 1},
        ),
    ],
)
def test_refuses(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^conv_integer: .*{message}"):
        conv_integer(**{"x": X, "weight": W, **changes})


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "y_zero_point must have dtype uint8 or int8", {"y_zero_point": 3}),
        (ValueError, "y_zero_point must be one value", {"y_zero_point": np.zeros(4, np.uint8)}),
        (ValueError, r"weight_scale must have shape \(4,\)", {"weight_scale": [1.0, 2.0]}),
        (ValueError, r"x_scale must be one value", {"x_scale": [1.0, 2.0]}),
        (ValueError, "x_scale . weight_scale / y_scale must be finite", {"y_scale": 0}),
        (ValueError, "x_scale . weight_scale / y_scale must be finite", {"x_scale": 1e30, "y_scale": 1e-30}),
        (TypeError, "bias must have dtype int32", {"bias": np.zeros(4)}),
        (ValueError, r"bias must have shape \(4,\)", {"bias": np.zeros(3, np.int32)}),
    ],
)
def test_quantised_refuses(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "x": X,
        "x_scale": 1,
        "x_zero_point": 0,
        "weight": W,
        "weight_scale": 1,
        "weight_zero_point": 0,
        "y_scale": 1,
        "y_zero_point": np.uint8(0),
    }
    with pytest.raises(error, match=f"^qlinear_conv: {message}"):
        qlinear_conv(**{**given, **changes})


def test_packed() -> None:
    weight = W.copy()
    packed = prepack_integer(weight, np.arange(4))
    weight[:] = 1  # it is a copy
    assert not conv_integer(X, packed)[:, 0].any()
    assert repr(packed).startswith("PackedIntegers((4, 2, 3, 3), groups 1, ")
