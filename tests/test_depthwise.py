"""What is particular to depthwise convolution: its kernels for common sides and strides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits
from strategies import DTYPES, SEEDS, Conv
from test_conv import check_forward, check_gradients, check_input_grad, check_weight_grad

import fastconv
from fastconv import jit
from fastconv.kernels.simd import LANES

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: its kernels need the compiler")


@st.composite
def depthwise(draw: st.DrawFn) -> Conv:
    """Depthwise convolutions that there are kernels for, maps narrow and wide."""
    side, stride = draw(st.sampled_from([(3, 1), (3, 2), (3, 1), (3, 2), (5, 1), (7, 2)]))
    before, after = (st.integers(0, side + 1) for _ in range(2))
    padding = draw(st.tuples(st.tuples(before, after), st.tuples(before, after)))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9) | st.integers(10, 70))
    height, width = (max(size, side - sum(pads)) for size, pads in zip((height, width), padding, strict=True))
    channels = draw(st.integers(1, 3))
    multiplier = draw(st.sampled_from([1, 1, 2]))
    return Conv(
        size=(height, width),
        kernel=(side, side),
        channels=(channels, channels * multiplier),
        batch=draw(st.integers(1, 3)),
        stride=stride,
        padding=padding,
        groups=channels,
        dtype=draw(DTYPES),
        kind=draw(st.sampled_from(["gauss", "ints"])),
        seed=draw(SEEDS),
        bias=draw(st.booleans()),
        relu=draw(st.booleans()),
    )


@given(case=depthwise())
def test_agrees_with_reference(case: Conv) -> None:
    check_forward("depthwise", case)
    check_gradients("depthwise", case)


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kernel(side: int, stride: int, dtype: str) -> None:
    """At widths around whole numbers of vectors."""
    lanes = LANES[32 if dtype == "float32" else 64]
    for width in (7, lanes, lanes + 1, 2 * lanes, 2 * lanes + 1, 4 * lanes - 1, 5 * lanes):
        case = Conv(
            (5, stride * width),
            (side, side),
            channels=(2, 2),
            groups=2,
            batch=2,
            stride=stride,
            padding=side // 2,
            dtype=dtype,
            kind="ints",
            bias=True,
        )
        check_forward("depthwise", case)
        check_input_grad("depthwise", case)
        check_weight_grad("depthwise", case)


@pytest.mark.parametrize("size", [(3, 40, 30, 30), (1, 200, 9, 9), (40, 3, 17, 50)])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_bits_for_any_number_of_threads(size: tuple[int, ...], stride: int) -> None:
    rng = np.random.default_rng(0)
    channels = size[1]
    x = rng.standard_normal(size).astype(np.float32)
    weight = rng.standard_normal((channels, 1, 3, 3)).astype(np.float32)
    facts = {"stride": stride, "padding": 1, "groups": channels, "algorithm": "depthwise"}

    def results(threads: int) -> list[np.ndarray]:
        with fastconv.num_threads(threads):
            y = fastconv.conv2d(x, weight, **facts)
            gradients = fastconv.conv2d_backward(np.cos(y), x, weight, **facts)
        return [y, *(gradient for gradient in gradients if gradient is not None)]

    one = results(1)
    for threads in range(2, fastconv.get_num_threads() + 1):
        for result, expected in zip(results(threads), one, strict=True):
            assert_same_bits(result, expected)


def test_infinities_stay_where_they_are_read() -> None:
    """Lanes beyond the map, and rows beside it, hold zeros: times an infinity they would be NaN."""
    x = np.ones((1, 1, 5, 19), np.float32)
    x[0, 0, -1, :] = np.inf
    x[0, 0, :, -1] = np.inf
    grad_output = np.ones((1, 1, 3, 17), np.float32)
    args = (grad_output, x, (1, 1, 3, 3))
    result = fastconv.conv2d_weight_grad(*args, algorithm="depthwise")
    expected = fastconv.conv2d_weight_grad(*args, algorithm="naive")
    assert np.isfinite(result[0, 0, :2, :2]).all()
    assert_same(result, expected)


def test_nan_is_not_clipped() -> None:
    x = np.full((1, 2, 4, 4), np.nan, np.float32)
    y = fastconv.conv2d(
        x, np.ones((2, 1, 3, 3), np.float32), groups=2, activation="relu", algorithm="depthwise"
    )
    assert np.isnan(y).all()
