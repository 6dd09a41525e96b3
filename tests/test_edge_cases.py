"""What others got wrong: one test per case, with the report of whom it happened to.

The cases are public: issues and pull requests of PyTorch, ONNX, ONNX Runtime and MLX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import (
    COMPLETE,
    EVERY,
    GENERAL,
    fill_forward,
    fill_input_grad,
    fill_weight_grad,
    refused,
    settled,
)
from oracles import assert_same
from strategies import Conv

import fastconv
from fastconv.algorithms import POOL_ALGORITHMS
from fastconv.kernels.simd import LANES

every_algorithm = pytest.mark.parametrize("name", EVERY)
general_algorithm = pytest.mark.parametrize("name", GENERAL)
every_pooling = pytest.mark.parametrize("name", POOL_ALGORITHMS)


# --- windows ------------------------------------------------------------------------------------


@every_pooling
def test_ceil_mode_drops_a_window_in_the_padding(name: str) -> None:
    """Windows begin at -1, 1 and 3, but x ends at 3 (pytorch#45357, onnx#5741)."""
    x = np.array([[[1.0, 2, 3]]])
    options = {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True, "algorithm": name}
    assert_same(fastconv.max_pool1d(x, **options), np.array([[[1.0, 3]]]))
    assert_same(fastconv.avg_pool1d(x, **options), np.array([[[0.5, 2.5]]]))


@every_pooling
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


@every_pooling
def test_windows_of_minus_infinity_have_an_index(name: str) -> None:
    """The first real cell, not -1 and not a cell of the padding (pytorch#40131)."""
    x = np.full((1, 1, 2, 3), -np.inf)
    y, indices = fastconv.max_pool2d(x, 2, stride=1, padding=1, return_indices=True, algorithm=name)
    assert_same(y, np.full((1, 1, 3, 4), -np.inf))
    assert_same(indices[0, 0], np.array([[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5]]))


@every_pooling
def test_the_first_of_equals_wins(name: str) -> None:
    """In row-major order; zeros are equal whatever their sign."""
    x = np.array([[[[0.0, -0.0, 7, 7], [-0.0, 0.0, 7, 7], [3, 3, 1, 2], [3, 3, 2, 2]]]])
    y, indices = fastconv.max_pool2d(x, 2, return_indices=True, algorithm=name)
    assert_same(y[0, 0], np.array([[0.0, 7], [3, 2]]))
    assert_same(indices[0, 0], np.array([[0, 2], [8, 11]]))


@every_pooling
def test_the_first_nan_wins(name: str) -> None:
    """A NaN is larger than everything, inf included, wherever it is in its window."""
    x = np.array([[[np.inf, 1, np.nan, 2, np.nan, 5, 6, -np.inf]]])
    y, indices = fastconv.max_pool1d(x, 4, stride=1, return_indices=True, algorithm=name)
    assert_same(y, np.array([[[np.nan, np.nan, np.nan, np.nan, np.nan]]]))
    assert_same(indices, np.array([[[2, 2, 2, 4, 4]]]))
    grad_x = fastconv.max_pool1d_backward(np.ones((1, 1, 5)), indices, x.shape)
    assert_same(grad_x, np.array([[[0, 0, 3.0, 0, 2, 0, 0, 0]]]))


@every_pooling
def test_gradients_add_up_where_windows_overlap(name: str) -> None:
    x = np.array([[[0.0, 9, 0, 8, 0]]])
    _, indices = fastconv.max_pool1d(x, 3, stride=1, return_indices=True, algorithm=name)
    grad_x = fastconv.max_pool1d_backward(np.array([[[1.0, 10, 100]]]), indices, x.shape)
    assert_same(grad_x, np.array([[[0.0, 11, 0, 100, 0]]]))
    grad_x = fastconv.avg_pool1d_backward(np.array([[[3.0, 30, 300]]]), x.shape, 3, stride=1, algorithm=name)
    assert_same(grad_x, np.array([[[1.0, 11, 111, 110, 100]]]))


def test_adaptive_windows_are_integers() -> None:
    """floor and ceil of exact quotients: floats may come out just above or below (pytorch#81409)."""
    for size, parts in [(7, 3), (10, 7), (49, 49), (100, 7), (113, 57), (1, 5)]:
        x = np.arange(float(size)).reshape(1, 1, size)
        y = fastconv.adaptive_max_pool1d(x, parts)
        assert_same(y[0, 0], np.array([-(-(o + 1) * size // parts) - 1.0 for o in range(parts)]))
        low = -fastconv.adaptive_max_pool1d(-x, parts)
        assert_same(low[0, 0], np.array([float(o * size // parts) for o in range(parts)]))


# --- arrays -------------------------------------------------------------------------------------


NONE = np.ones((0, 4, 6, 7), np.float32)
WEIGHT = np.ones((6, 2, 3, 2), np.float32)


@pytest.mark.parametrize(
    ("function", "args", "shape"),
    [
        ("conv2d", (NONE, WEIGHT, None, 1, 0, 1, 2), (0, 6, 4, 6)),
        ("conv2d_input_grad", (NONE, WEIGHT[:4], (0, 4, 8, 8), 1, 0, 1, 2), (0, 4, 8, 8)),
        ("conv_transpose2d", (NONE, WEIGHT[:4], None, 2), (0, 2, 13, 14)),
        ("max_pool2d", (NONE, 2), (0, 4, 3, 3)),
        ("max_pool2d_backward", (NONE, NONE.astype(int), (0, 4, 12, 14)), (0, 4, 12, 14)),
        ("avg_pool2d", (NONE, 2), (0, 4, 3, 3)),
        ("avg_pool2d_backward", (NONE, (0, 4, 12, 14), 2), (0, 4, 12, 14)),
        ("lp_pool2d", (NONE, 2, 2), (0, 4, 3, 3)),
        ("lp_pool2d_backward", (NONE[:, :, :3, :3], NONE, 2, 2), (0, 4, 6, 7)),
        ("adaptive_avg_pool2d", (NONE, (2, None)), (0, 4, 2, 7)),
        ("adaptive_avg_pool2d_backward", (NONE, (0, 4, 12, 14)), (0, 4, 12, 14)),
        ("adaptive_max_pool2d", (NONE, 3), (0, 4, 3, 3)),
        ("max_unpool2d", (NONE, NONE.astype(int), 2), (0, 4, 12, 14)),
        ("max_unpool2d_backward", (NONE, NONE.astype(int)), (0, 4, 6, 7)),
        ("im2col", (NONE, 2), (0, 16, 30)),
        ("col2im", (np.ones((0, 16, 30)), (6, 7), 2), (0, 4, 6, 7)),
    ],
)
def test_empty_batch(function: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    """No images in, none out, of the right shape (pytorch#12013)."""
    assert getattr(fastconv, function)(*args).shape == shape


def test_gradients_of_an_empty_batch() -> None:
    """Those of what all images share are zeros, not what was in memory (pytorch#12013)."""
    y = fastconv.conv2d(NONE, WEIGHT, None, 1, 0, 1, 2)
    grads = fastconv.conv2d_backward(y, NONE, WEIGHT, 1, 0, 1, 2)
    assert grads.x.shape == NONE.shape
    assert_same(grads.weight, np.zeros_like(WEIGHT))
    assert_same(grads.bias, np.zeros(6, np.float32))
    assert_same(fastconv.conv2d_weight_grad(y, NONE, WEIGHT.shape, 1, 0, 1, 2), np.zeros_like(WEIGHT))
    weight = WEIGHT[:4]
    grads = fastconv.conv_transpose2d_backward(np.ones((0, 2, 8, 8), np.float32), NONE, weight)
    assert_same(grads.weight, np.zeros_like(weight))
    assert_same(grads.bias, np.zeros(2, np.float32))


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


@pytest.mark.parametrize("function", ["max_pool2d_backward", "max_unpool2d"])
def test_indices_of_another_shape(function: str) -> None:
    """Fewer of them than of gradients were read beyond their end (pytorch#194803)."""
    x, fewer = np.ones((2, 3, 4, 4), np.float32), np.zeros((2, 3, 4, 3), np.int64)
    last = (2, 3, 8, 8) if "backward" in function else 2
    with pytest.raises(ValueError, match=rf"^{function}: indices must have shape \(2, 3, 4, 4\), got"):
        getattr(fastconv, function)(x, fewer, last)


# --- sizes --------------------------------------------------------------------------------------


def test_output_too_large_to_address() -> None:
    """Sizes are Python ints: products of 32 or 64 bits came round to small ones (mlx#4258)."""
    x, weight = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with pytest.raises(ValueError, match=r"conv2d: the output would have shape .*, too large to address"):
        fastconv.conv2d(x, weight, padding=2**31 - 1)
    with pytest.raises(ValueError, match=r"conv_transpose2d: the output .*, too large to address"):
        fastconv.conv_transpose2d(x, weight, stride=2**31 - 1)
    with pytest.raises(ValueError, match=r"max_pool2d: the output .*, too large to address"):
        fastconv.max_pool2d(x, 2**31 - 1, stride=1, padding=2**31 - 2)
    with pytest.raises(ValueError, match=r"im2col: the result .*, too large to address"):
        fastconv.im2col(x, 2**20, padding=2**21)
    with pytest.raises(ValueError, match=r"explain: the output .*, too large to address"):
        fastconv.explain((2**30, 1, 2**20, 2**20), (1, 1, 1, 1))


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("stride", [1, 2**31 - 1])
def test_dilation_far_beyond_x(name: str, stride: int) -> None:
    """The outer taps lie 2**31 - 1 cells to the left and right of x; int32 would come round (mlx#4258)."""
    far = 2**31 - 1
    x, weight = np.array([[[1.0, 2.0, 3.0]]]), np.array([[[5.0, 7.0, 11.0]]])
    y = fastconv.conv1d(x, weight, dilation=far, padding=far, stride=stride, algorithm=name)
    np.testing.assert_array_equal(y, 7 * x if stride == 1 else 7 * x[..., :1])


def exact(name: str, case: Conv) -> list[np.ndarray] | None:
    """y and both gradients, of integers; None where the algorithm does not do such a convolution."""
    ways = (("forward", fill_forward), ("input_grad", fill_input_grad), ("weight_grad", fill_weight_grad))
    if any(refused(name, case, op) for op, _ in ways):
        return None
    return [settled(name, fill(name, case)) for _, fill in ways]


@general_algorithm
def test_padding_larger_than_the_kernel(name: str) -> None:
    """One cell far inside its padding: y is the kernel turned round, and zeros about it."""
    x, weight = np.ones((1, 1, 1, 1)), np.arange(1.0, 7).reshape(1, 1, 2, 3)
    if refused(name, Conv((1, 1), (2, 3), padding=(4, 5), dtype="float64"), "forward"):
        return
    y = fastconv.conv2d(x, weight, padding=(4, 5), algorithm=name)
    expected = np.zeros((1, 1, 8, 9))
    expected[0, 0, 3:5, 3:6] = weight[0, 0, ::-1, ::-1]
    assert_same(y, expected)


@every_algorithm
def test_non_square_everything(name: str) -> None:
    """Height and width exchanged in every argument are exchanged in every result."""
    upright = Conv(
        (9, 7), (3, 2), (2, 4), 2, (2, 1), ((2, 0), (1, 3)), (1, 2), 2, dtype="float64", kind="ints", seed=3
    )
    x, weight, grad = upright.x(), upright.weight(), upright.grad()

    def results(swap: bool) -> list[np.ndarray]:
        def turn(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(array.swapaxes(2, 3)) if swap else array

        step = -1 if swap else 1
        facts = [f[::step] for f in (upright.stride, upright.padding, upright.dilation)]
        options = {"algorithm": name if not refused(name, upright, "forward") else "auto"}
        y = fastconv.conv2d(turn(x), turn(weight), None, *facts, 2, **options)
        options["algorithm"] = "auto"
        grads = fastconv.conv2d_backward(turn(grad), turn(x), turn(weight), *facts, 2, **options)
        return [turn(array) for array in (y, grads.x, grads.weight)]

    for one, other in zip(results(False), results(True), strict=True):
        assert_same(one, other)


@every_algorithm
@pytest.mark.parametrize("stride", [2, 3])
def test_dilation_with_stride(name: str, stride: int) -> None:
    """The same as a kernel with zeros between its cells."""
    case = Conv((11, 13), (3, 2), (2, 3), 1, stride, 2, (2, 3), dtype="float64", kind="ints", seed=1)
    found = exact(name, case)
    if found is None:
        return
    spread = np.zeros((3, 2, 5, 4))
    spread[:, :, ::2, ::3] = case.weight()
    assert_same(found[0], fastconv.conv2d(case.x(), spread, None, stride, 2))
    grads = fastconv.conv2d_backward(case.grad(), case.x(), spread, stride, 2)
    assert_same(found[1], grads.x)
    assert_same(found[2], grads.weight[:, :, ::2, ::3])


@every_algorithm
@pytest.mark.parametrize("width", [1, 3, LANES[32] - 1, LANES[32] + 1])
def test_groups_of_any_width(name: str, width: int) -> None:
    """Groups are convolutions side by side, also where their channels do not fill vectors."""
    case = Conv((6, 7), (3, 3), (3 * width, 3 * width), 1, 1, 1, 1, 3, kind="ints", seed=2)
    found = exact(name, case)
    if found is None:
        return
    for group in range(3):
        part = slice(group * width, (group + 1) * width)
        x, weight, grad = case.x()[:, part], case.weight()[part], case.grad()[:, part]
        assert_same(found[0][:, part], fastconv.conv2d(x, weight, padding=1, algorithm="im2col"))
        grads = fastconv.conv2d_backward(grad, x, weight, padding=1, algorithm="im2col")
        assert_same(found[1][:, part], grads.x)
        assert_same(found[2][part], grads.weight)


# --- values -------------------------------------------------------------------------------------


@general_algorithm
def test_denormal_numbers_are_kept(name: str) -> None:
    """Not flushed to zero, which others do for speed (pytorch#67797)."""
    if refused(name, Conv((4, 4), (2, 2), dtype="float64"), "forward"):
        return
    x, weight = np.full((1, 1, 4, 4), 1e-310), np.ones((1, 1, 2, 2))
    assert_same(fastconv.conv2d(x, weight, algorithm=name), np.full((1, 1, 3, 3), 4e-310))
