"""Convolution, ReLU and pooling in one go, against the functions one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import jit, nn
from fastconv.functional.blocks import conv_block, conv_block_backward

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: there are no blocks")


def separately(x, weight, bias, arguments, pool):  # type: ignore[no-untyped-def]
    """y, and what its backward makes of a gradient, by functions that are tested elsewhere."""
    full = fastconv.conv2d(x, weight, bias, *arguments, activation="relu", algorithm="im2col")
    y, indices = fastconv.max_pool2d(full, 2, return_indices=True) if pool else (full, None)

    def backward(grad):  # type: ignore[no-untyped-def]
        if pool:
            grad = fastconv.max_pool2d_backward(grad, indices, full.shape)
        return fastconv.conv2d_backward(grad * (full > 0), x, weight, *arguments, algorithm="im2col")

    return y, backward


@st.composite
def blocks(draw):  # type: ignore[no-untyped-def]
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.integers(1, 2))
    padding = tuple(draw(st.integers(0, (k - 1) * dilation)) for k in kernel)
    size = tuple((k - 1) * dilation + draw(st.integers(2, 40)) for k in kernel)
    channels, out_channels = draw(st.integers(1, 9)), draw(st.integers(1, 18))
    dtype = draw(st.sampled_from(["f4", "f8"]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    images = draw(st.integers(8, 19))
    x = rng.standard_normal((images, channels, *size)).astype(dtype)
    weight = rng.standard_normal((out_channels, channels, *kernel)).astype(dtype)
    bias = rng.standard_normal(out_channels).astype(dtype) if draw(st.booleans()) else None
    return x, weight, bias, (1, padding, dilation, 1), rng


@given(blocks(), st.booleans())
def test_a_block_is_its_parts(block, pool) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, arguments, rng = block
    found = conv_block(x, weight, bias, arguments, pool, True)
    if found is None:
        assert not pool or weight[0].size == weight.shape[1]  # only a pointwise block has another way
        return
    y, noted, shape = found
    exact, backward = separately(x, weight, bias, arguments, pool)
    close = 2e-5 if x.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(y, exact, atol=close * abs(exact).max(), rtol=close)
    inference = conv_block(x, weight, bias, arguments, pool, False)
    assert inference is not None
    np.testing.assert_array_equal(y, inference[0])
    # where sums differ in the last digit, another cell may be the largest: take the block's word for y
    if not np.array_equal(y > 0, exact > 0):
        return
    grad = rng.standard_normal(y.shape).astype(x.dtype)
    grads = conv_block_backward(grad, x, weight, noted, shape, (True, True, bias is not None))
    for mine, theirs in zip(grads[: 2 + (bias is not None)], backward(grad), strict=False):
        assert mine is not None
        assert theirs is not None
        np.testing.assert_allclose(mine, theirs, atol=5 * close * max(1, abs(theirs).max()), rtol=close)


def test_ties_and_nan_go_to_the_first() -> None:
    x = np.zeros((8, 1, 4, 40), np.float32)
    x[:, :, :2, :2] = [[1, 1], [1, 1]]
    x[:, :, :2, 2:4] = [[1, 2], [3, 3]]
    x[:, :, :2, 4:6] = [[1, 2], [2, 0]]
    x[:, :, :2, 8:10] = [[1, np.nan], [np.nan, 3]]
    weight = np.ones((1, 1, 1, 2), np.float32)
    weight[..., 1] = 0
    found = conv_block(x, weight, None, (1, ((0, 0), (0, 1)), 1, 1), True, True)
    assert found is not None
    y, codes, _ = found
    assert codes is not None
    np.testing.assert_array_equal(y[:, 0, 0, :6], [[1, 3, 2, np.nan, np.nan, 0]] * 8)
    np.testing.assert_array_equal(codes[:, 0, 0, :6], [[0, 2, 1, 4, 4, 4]] * 8)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_infinity_reaches_only_what_depends_on_it(bad: float) -> None:
    """The flat sums pair gaps of the gradient with cells of x: zeros, but not times infinity."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 2, 24, 20))
    x[3, 1, 5, 0] = bad
    weight = rng.standard_normal((8, 2, 3, 3))
    found = conv_block(x, weight, None, (1, 0, 1, 1), True, True)
    assert found is not None
    y, codes, shape = found
    assert codes is not None
    grad = rng.standard_normal(y.shape)
    got = conv_block_backward(grad, x, weight, codes, shape, (False, True, False)).weight
    _, backward = separately(x, weight, None, (1, 0, 1, 1), True)
    np.testing.assert_allclose(got, backward(grad).weight, rtol=1e-9)
    assert got is not None
    assert np.isfinite(got[:, 0]).all()
    assert np.isfinite(got[:, 1, :, 1:]).all()


def test_the_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((37, 1, 28, 28), np.float32), rng.integers(0, 10, 37)

    def gradients(threads: int) -> list[np.ndarray]:
        with fastconv.num_threads(threads):
            net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1, rng=0),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1, rng=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Dropout(rng=2),
                nn.Flatten(),
                nn.Linear(784, 10, rng=3),
            )
            loss = nn.CrossEntropy()
            loss.forward(net.forward(x, training=True), labels)
            grad_x = net.backward(loss.backward())
            return [grad_x, *net.grads.values()]

    threads = fastconv.get_num_threads()
    for one, many in zip(gradients(1), gradients(threads), strict=True):
        np.testing.assert_array_equal(one, many)


def test_a_joined_layer_says_whose_backward_to_call() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    y = net.forward(np.ones((8, 1, 20, 20), np.float32), training=True)
    with pytest.raises(RuntimeError, match="Sequential, whose backward"):
        net.layers[2].backward(np.ones_like(y))
    assert net.backward(np.ones_like(y)).shape == (8, 1, 20, 20)
    with pytest.raises(ValueError, match="layer 0"):
        net.backward(np.ones((8, 4, 8, 9), np.float32))
    net.forward(np.ones((8, 1, 20, 20), np.float32))
    with pytest.raises(RuntimeError, match="for inference"):
        net.backward(np.ones_like(y))


def test_results_outlive_the_next_forward() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2))
    x = np.random.default_rng(0).standard_normal((8, 1, 20, 20), np.float32)
    first = net.forward(x, training=True)
    kept, grad = first.copy(), net.backward(first)
    kept_grad = grad.copy()
    net.backward(net.forward(2 * x, training=True))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(grad, kept_grad)
