"""`fastconv.cs231n`: against the loops that the course asks its students to write."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits
from strategies import values

from fastconv import cs231n

Param = dict[str, Any]

# --- what a student hands in ----------------------------------------------------------------------


def conv_forward_naive(x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Param) -> Any:
    stride, pad = conv_param["stride"], conv_param["pad"]
    n, _, height, width = x.shape
    f, _, hh, ww = w.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((n, f, 1 + (height + 2 * pad - hh) // stride, 1 + (width + 2 * pad - ww) // stride))
    for i, k, p, q in np.ndindex(out.shape):
        window = padded[i, :, p * stride : p * stride + hh, q * stride : q * stride + ww]
        out[i, k, p, q] = np.sum(window * w[k]) + b[k]
    return out, (x, w, b, conv_param)


def conv_backward_naive(dout: np.ndarray, cache: Any) -> Any:
    x, w, _, conv_param = cache
    stride, pad = conv_param["stride"], conv_param["pad"]
    hh, ww = w.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))).astype(np.float64)
    dpadded, dw = np.zeros_like(padded), np.zeros(w.shape)
    for i, k, p, q in np.ndindex(dout.shape):
        rows, columns = slice(p * stride, p * stride + hh), slice(q * stride, q * stride + ww)
        dw[k] += dout[i, k, p, q] * padded[i, :, rows, columns]
        dpadded[i, :, rows, columns] += dout[i, k, p, q] * w[k]
    end = (padded.shape[2] - pad, padded.shape[3] - pad)
    return dpadded[:, :, pad : end[0], pad : end[1]], dw, dout.sum(axis=(0, 2, 3))


def max_pool_forward_naive(x: np.ndarray, pool_param: Param) -> Any:
    height, width, stride = (pool_param[name] for name in ("pool_height", "pool_width", "stride"))
    n, c, h, w = x.shape
    out = np.zeros((n, c, 1 + (h - height) // stride, 1 + (w - width) // stride))
    for i, k, p, q in np.ndindex(out.shape):
        out[i, k, p, q] = x[i, k, p * stride : p * stride + height, q * stride : q * stride + width].max()
    return out, (x, pool_param)


def max_pool_backward_naive(dout: np.ndarray, cache: Any) -> np.ndarray:
    x, pool_param = cache
    height, width, stride = (pool_param[name] for name in ("pool_height", "pool_width", "stride"))
    dx = np.zeros(x.shape)
    for i, k, p, q in np.ndindex(dout.shape):
        window = x[i, k, p * stride : p * stride + height, q * stride : q * stride + width]
        r, s = np.unravel_index(window.argmax(), window.shape)
        dx[i, k, p * stride + r, q * stride + s] += dout[i, k, p, q]
    return dx


# --- convolution ----------------------------------------------------------------------------------

DTYPES = st.sampled_from(["float32", "float64", "int64", "uint8"])


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, Param]:
    """Of integers, whose sums are exact, in whatever dtypes."""
    n, c, f = (draw(st.integers(1, 3)) for _ in range(3))
    pad, stride = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    hh, ww = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    height, width = (max(1, k - 2 * pad) + draw(st.integers(0, 4)) for k in (hh, ww))
    shapes = (n, c, height, width), (f, c, hh, ww), (f,)
    kinds = [draw(DTYPES), draw(st.sampled_from(["float32", "float64"])), draw(DTYPES)]
    arrays = [
        np.abs(values(i, "ints", "float64", shape)).astype(kind)
        for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]
    return (*arrays, {"stride": stride, "pad": pad})


@given(case=convolutions(), dout_dtype=st.sampled_from(["float32", "float64"]))
def test_convolution(case: Any, dout_dtype: str) -> None:
    x, w, b, _ = case
    out, cache = cs231n.conv_forward_fast(*case)
    expected, naive_cache = conv_forward_naive(*case)
    assert_same(np.rint(out), expected)
    assert out.dtype == (np.float32 if np.result_type(x, w, b) == np.float32 else np.float64)
    assert all(mine is own for mine, own in zip(cache, naive_cache, strict=True))

    dout = values(9, "ints", dout_dtype, out.shape)
    gradients = cs231n.conv_backward_fast(dout, cache)
    for gradient, of, naive in zip(gradients, case, conv_backward_naive(dout, cache), strict=False):
        assert_same(np.rint(gradient), naive)
        if of.dtype.kind == "f":
            assert gradient.dtype == of.dtype
    again = cs231n.conv_backward_fast(dout, (*naive_cache, "the course's x_cols"))
    for first, second in zip(gradients, again, strict=True):
        assert_same_bits(first, second)


def test_numbers_that_are_not_integers() -> None:
    """As in the notebook: relative errors next to nothing."""
    x, w, b = (
        values(i, "gauss", "float64", shape) for i, shape in enumerate([(4, 3, 5, 5), (4, 3, 3, 3), (4,)])
    )
    param = {"stride": 2, "pad": 1}
    out, cache = cs231n.conv_forward_strides(x, w, b, param)
    np.testing.assert_allclose(out, conv_forward_naive(x, w, b, param)[0], rtol=1e-12, atol=1e-13)
    dout = values(5, "gauss", "float64", out.shape)
    for mine, naive in zip(
        cs231n.conv_backward_strides(dout, cache), conv_backward_naive(dout, cache), strict=True
    ):
        np.testing.assert_allclose(mine, naive, rtol=1e-11, atol=1e-12)


# --- pooling --------------------------------------------------------------------------------------


@given(
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    room=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dtype=DTYPES,
)
def test_max_pool(window: tuple[int, int], stride: int, room: tuple[int, int], dtype: str) -> None:
    """Few values, so that many windows have several largest cells."""
    param = {"pool_height": window[0], "pool_width": window[1], "stride": stride}
    shape = (2, 2, window[0] + room[0], window[1] + room[1])
    x = np.abs(values(1, "ints", "float64", shape)).astype(dtype)
    out, cache = cs231n.max_pool_forward_fast(x, param)
    expected, naive_cache = max_pool_forward_naive(x, param)
    assert_same(out, expected)
    own_x, own_param = cache  # as a backward of one's own begins
    assert own_x is x
    assert own_param is param

    dout = values(2, "ints", "float64", out.shape)
    dx = cs231n.max_pool_backward_fast(dout, cache)
    assert_same(dx, max_pool_backward_naive(dout, cache))
    assert dx.dtype == (dtype if dtype == "float32" else np.float64)
    for other in (naive_cache, copy.copy(cache), pickle.loads(pickle.dumps(cache))):
        assert_same_bits(cs231n.max_pool_backward_fast(dout, other), dx)


def test_ties() -> None:
    """The first of equal cells gets it all: as much comes out as goes in."""
    out, cache = cs231n.max_pool_forward_fast(
        np.zeros((1, 1, 4, 4)), {"pool_height": 2, "pool_width": 2, "stride": 2}
    )
    expected = np.zeros((1, 1, 4, 4))
    expected[:, :, ::2, ::2] = 1
    assert_same(cs231n.max_pool_backward_fast(np.ones_like(out), cache), expected)


# --- layers in a row, and lowering ------------------------------------------------------------------


def test_sandwich() -> None:
    """Against the layers one by one; and its caches, which layers of one's own can take."""
    x, w, b = (
        values(i, "gauss", "float64", shape) for i, shape in enumerate([(2, 3, 6, 6), (4, 3, 3, 3), (4,)])
    )
    conv_param, pool_param = {"stride": 1, "pad": 1}, {"pool_height": 2, "pool_width": 2, "stride": 2}
    out, cache = cs231n.conv_relu_pool_forward(x, w, b, conv_param, pool_param)
    a, conv_cache = conv_forward_naive(x, w, b, conv_param)
    expected, pool_cache = max_pool_forward_naive(np.maximum(a, 0), pool_param)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-13)

    dout = values(5, "gauss", "float64", out.shape)
    dhidden = max_pool_backward_naive(dout, pool_cache)
    naive = conv_backward_naive(dhidden * (a > 0), conv_cache)
    by_hand = conv_backward_naive(max_pool_backward_naive(dout, cache[2]) * (cache[1] > 0), cache[0])
    gradients = cs231n.conv_relu_pool_backward(dout, cache)
    for mine, one, other in zip(gradients, naive, by_hand, strict=True):
        np.testing.assert_allclose(mine, one, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-12)


def test_lowering() -> None:
    """A column is a window, those of all images at one place next to each other."""
    x = values(0, "ints", "float64", (2, 3, 4, 5))
    cols = cs231n.im2col_indices(x, 2, 3, padding=1, stride=2)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = [
        padded[n, :, p : p + 2, q : q + 3].ravel()
        for p in range(0, 5, 2)
        for q in range(0, 5, 2)
        for n in (0, 1)
    ]
    assert_same(cols, np.stack(windows, axis=1))
    weights = values(1, "ints", "float64", cols.shape)
    adjoint = cs231n.col2im_indices(weights, x.shape, 2, 3, padding=1, stride=2)
    assert adjoint.shape == x.shape
    assert np.sum(adjoint * x) == np.sum(weights * cols)
    empty = cs231n.im2col_indices(x[:0], 2, 2)
    assert empty.shape == (12, 0)
    assert cs231n.col2im_indices(empty, (0, 3, 4, 5), 2, 2).shape == (0, 3, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: cs231n.conv_forward_fast(x, x, np.ones(3), {"stride": 1, "pad": 0}), ValueError, "bias"),
        (
            lambda x: cs231n.conv_forward_fast(x, x, np.ones(2), {"stride": 1, "pad": 0.5}),
            TypeError,
            "padding must be",
        ),
        (
            lambda x: cs231n.conv_forward_fast(x * 1j, x, np.ones(2), {"stride": 1, "pad": 0}),
            TypeError,
            "conv_forward_fast: the arrays must hold real numbers, got complex128",
        ),
        (
            lambda x: cs231n.max_pool_forward_fast(x, {"pool_height": 9, "pool_width": 2, "stride": 1}),
            ValueError,
            "max_pool2d",
        ),
        (lambda x: cs231n.col2im_indices(np.ones((8, 9)), (2, 2, 4, 4), 2, 2), ValueError, "windows"),
        (lambda x: cs231n.col2im_indices(np.ones((4, 18)), (2, 2, 4, 4), 2, 2, 0), ValueError, "not"),
    ],
)
def test_errors(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones((2, 2, 4, 4)))
