"""Answers worked out by hand in introductions to convolutional networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import EVERY, GENERAL, needs, refused, skip_refused
from oracles import assert_same
from strategies import Conv

import fastconv

every_algorithm = pytest.mark.parametrize("name", EVERY)
general_algorithm = pytest.mark.parametrize("name", GENERAL)
every_pooling = pytest.mark.parametrize("name", fastconv.POOL_ALGORITHMS)


def image(rows: Any, dtype: str = "float64") -> np.ndarray:
    """One image of one channel."""
    return np.array(rows, dtype)[None, None]


# --- convolution --------------------------------------------------------------------------------


@general_algorithm
@pytest.mark.parametrize(
    ("options", "size"), [({}, (3, 3)), ({"stride": 2}, (2, 2)), ({"padding": 1}, (5, 5))]
)
def test_5x5_image_with_a_3x3_filter(name: str, options: dict[str, int], size: tuple[int, int]) -> None:
    x, weight = image(np.ones((5, 5))), image(np.ones((3, 3)))
    skip_refused(name, x, weight, **options)
    y = fastconv.conv2d(x, weight, **options, algorithm=name)
    assert y.shape == (1, 1, *size)


FILTER = [[1, 2, 3], [-4, 7, 4], [2, -5, 1]]


@every_algorithm
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("window", "answer"),
    [
        ([[2, 4, 9], [2, 1, 4], [1, 1, 2]], 51),
        ([[4, 9, 1], [1, 4, 4], [1, 2, 9]], 66),
        ([[2, 9, 2], [5, 1, 3], [4, 8, 5]], -2),
    ],
)
def test_one_window(name: str, dtype: str, window: list[list[int]], answer: int) -> None:
    y = fastconv.conv2d(image(window, dtype), image(FILTER, dtype), algorithm=name)
    assert y.dtype == dtype
    assert_same(y, image([[answer]]))


@general_algorithm
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("x", "filters", "padding", "y"),
    [
        ((32, 32, 3), (10, 5, 5, 3), "valid", (28, 28, 10)),
        ((32, 32, 3), (10, 3, 3, 3), 0, (30, 30, 10)),
        ((6, 6, 1), (1, 3, 3, 1), 0, (4, 4, 1)),
        ((6, 6, 1), (1, 3, 3, 1), "same", (6, 6, 1)),
        ((32, 32, 3), (10, 5, 5, 3), "same", (32, 32, 10)),
        ((7, 9, 2), (4, 4, 2, 2), "same", (7, 9, 4)),
    ],
)
def test_sizes(
    name: str, layout: str, x: tuple[int, ...], filters: tuple[int, ...], padding: Any, y: tuple[int, ...]
) -> None:
    """Height, width, channels, as the textbooks write them."""
    case = Conv(x[:2], filters[1:3], channels=(x[2], filters[0]), padding=padding, layout=layout)
    if refused(name, replace(case, dtype="float64"), "forward"):
        return
    images, weight = np.ones((1, *x)), np.ones(filters)
    if layout == "NCHW":
        result = fastconv.conv2d(
            images.transpose(0, 3, 1, 2), weight.transpose(0, 3, 1, 2), padding=padding, algorithm=name
        ).transpose(0, 2, 3, 1)
    else:
        result = fastconv.conv2d(
            images, weight.transpose(1, 2, 3, 0), padding=padding, layout="NHWC", algorithm=name
        )
    assert result.shape == (1, *y)
    full = filters[1] * filters[2] * filters[3]
    assert (result[:, filters[1] // 2, filters[2] // 2] == full).all()  # a window that lies in x as a whole


@general_algorithm
def test_a_filter_is_not_flipped(name: str) -> None:
    """Convolution means cross-correlation: a one in the filter's corner picks the window's same corner."""
    if refused(name, Conv((3, 3), (2, 2), dtype="float64"), "forward"):
        return
    x = image(np.arange(9).reshape(3, 3))
    y = fastconv.conv2d(x, image([[1, 0], [0, 0]]), algorithm=name)
    assert_same(y, image([[0, 1], [3, 4]]))


@every_algorithm
def test_edge_filter(name: str) -> None:
    """Dark left of bright: the vertical edge lights up."""
    x = image([[0, 0, 0, 10, 10, 10]] * 6)
    y = fastconv.conv2d(x, image([[-1, 0, 1]] * 3), algorithm=name)
    assert_same(y, image([[0, 30, 30, 0]] * 4))


@general_algorithm
def test_channels_add_up_and_groups_keep_apart(name: str) -> None:
    if refused(name, Conv((2, 2), (2, 2), channels=(2, 1), dtype="float64"), "forward"):
        return
    x = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 10.0)])[None]
    together = fastconv.conv2d(x, np.ones((1, 2, 2, 2)), np.array([0.5]), algorithm=name)
    assert_same(together, image([[44.5]]))
    weight = np.ones((2, 1, 2, 2))
    skip_refused(name, x, weight, groups=2)
    apart = fastconv.conv2d(x, weight, np.array([0.5, -0.5]), groups=2, algorithm=name)
    assert_same(apart[0, :, 0, 0], np.array([4.5, 39.5]))


@general_algorithm
def test_relu(name: str) -> None:
    if refused(name, Conv((2, 2), (1, 1), dtype="float64"), "forward"):
        return
    x = image([[1, -2], [-3, 4]])
    y = fastconv.conv2d(x, image([[1]]), np.array([-2.0]), activation="relu", algorithm=name)
    assert_same(y, image([[0, 0], [0, 2]]))


@every_algorithm
def test_gradients(name: str) -> None:
    """With y[o] = x[o] w[0] + x[o + 1] w[1] and dL/dy = (1, 10)."""
    x, weight, grad = np.array([[[2.0, 3, 5]]]), np.array([[[7.0, 11]]]), np.array([[[1.0, 10]]])
    wanted = needs(name, Conv((3,), (2,), dtype="float64"))
    grads = fastconv.conv1d_backward(grad, x, weight, algorithm=name, needs=wanted)
    if wanted[0]:
        assert_same(grads.x, np.array([[[7.0, 11 + 70, 110]]]))
    if wanted[1]:
        assert_same(grads.weight, np.array([[[2.0 + 30, 3 + 50]]]))
    assert_same(grads.bias, np.array([11.0]))


# --- pooling ------------------------------------------------------------------------------------

FOUR = image([[1, 3, 2, 1], [2, 9, 1, 1], [1, 3, 2, 3], [5, 6, 1, 2]])


@every_pooling
def test_2x2_pooling_turns_4x4_into_2x2(name: str) -> None:
    assert_same(fastconv.max_pool2d(FOUR, 2, stride=2, algorithm=name), image([[9, 2], [6, 3]]))
    assert_same(fastconv.avg_pool2d(FOUR, 2, stride=2, algorithm=name), image([[3.75, 1.25], [3.75, 2]]))


@every_pooling
def test_max_pool_commutes_with_relu(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8))
    pooled_first = np.maximum(fastconv.max_pool2d(x, 2, algorithm=name), 0)
    relu_first = fastconv.max_pool2d(np.maximum(x, 0), 2, algorithm=name)
    assert (pooled_first == 0).any()
    assert_same(relu_first, pooled_first)


@every_pooling
def test_pooling_gradients(name: str) -> None:
    """To the largest of each window; in equal parts."""
    grad = image([[1, 2], [3, 4]])
    _, indices = fastconv.max_pool2d(FOUR, 2, return_indices=True, algorithm=name)
    assert_same(indices, np.array([[[[5, 2], [13, 11]]]]))
    grad_x = fastconv.max_pool2d_backward(grad, indices, FOUR.shape)
    assert_same(grad_x, image([[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 4], [0, 3, 0, 0]]))
    grad_x = fastconv.avg_pool2d_backward(grad, FOUR.shape, 2, algorithm=name)
    assert_same(grad_x, np.kron(grad, np.full((2, 2), 0.25)))


def test_lenet() -> None:
    """28x28 digits through LeNet-5's layers: 6@28, 6@14, 16@10, 16@5."""
    x = np.ones((2, 1, 28, 28), np.float32)
    x = fastconv.conv2d(x, np.ones((6, 1, 5, 5), np.float32), padding=2)
    assert x.shape == (2, 6, 28, 28)
    x = fastconv.avg_pool2d(x, 2)
    assert x.shape == (2, 6, 14, 14)
    x = fastconv.conv2d(x, np.ones((16, 6, 5, 5), np.float32))
    assert x.shape == (2, 16, 10, 10)
    assert fastconv.max_pool2d(x, 2).shape == (2, 16, 5, 5)
