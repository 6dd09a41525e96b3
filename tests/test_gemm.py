"""What is particular to implicit GEMM: how it cuts its work, and what it refuses."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits

import fastconv
from fastconv import jit
from fastconv.algorithms import ALGORITHMS, channels_last_gradient, gemm, implicit_gemm, weight_gradient
from fastconv.functional import bound
from fastconv.shapes import ConvShape, conv_shape

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: implicit GEMM needs the compiler")

FLOAT32 = np.dtype(np.float32)


def run(x: np.ndarray, weight: np.ndarray, threads: int) -> np.ndarray:
    with fastconv.num_threads(threads):
        return fastconv.conv2d(x, weight, padding=1, algorithm="gemm")


def forget() -> None:
    """Drop what was prepared with other sizes of blocks."""
    for cached in (
        implicit_gemm.cut,
        implicit_gemm.prepare,
        implicit_gemm._prepare_pack,
        bound._bind,
        weight_gradient.cut,
        weight_gradient._prepare,
        channels_last_gradient.cut,
        channels_last_gradient.prepare,
    ):
        cached.cache_clear()


@given(
    st.sampled_from([9, 18, 64, 10**6]),
    st.sampled_from([1, 4000, 10**6]),
    st.sampled_from([1, 100, 480]),
    st.sampled_from([1, 10**6]),
)
def test_blocks_do_not_change_the_result(depth: int, packed: int, pixels: int, few: int) -> None:
    rng = np.random.default_rng(depth + packed + pixels)
    # small integers: every order of additions is exact
    x = rng.integers(-4, 5, (3, 11, 13, 17)).astype(np.float32)
    weight = rng.integers(-4, 5, (19, 11, 3, 3)).astype(np.float32)
    limits = {"DEPTH": depth, "PACKED_BYTES": packed, "PIXELS": pixels, "FEW_VECTORS": few}
    with mock.patch.multiple(implicit_gemm, **limits):
        forget()
        y = run(x, weight, min(2, fastconv.get_num_threads()))
    forget()
    assert_same_bits(y, fastconv.conv2d(x, weight, padding=1, algorithm="naive"))


@pytest.mark.parametrize("fresh", [0, 10**9])
@pytest.mark.parametrize(
    "facts", [{"groups": 1}, {"groups": 2, "padding": 1}, {"groups": 3, "stride": 2, "padding": (2, 1)}]
)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 7), (9, 8)])
def test_weights_packed_before_or_where_they_are_read(fresh: int, facts: dict, kernel: tuple) -> None:
    """Few pixels, so that all is one block; whole panels of channels, several at a time, and part of one."""
    rng = np.random.default_rng(kernel)
    groups = facts["groups"]
    # small integers: every order of additions is exact
    x = rng.integers(-4, 5, (2, 21 * groups, 9, 8)).astype(np.float32)
    weight = rng.integers(-4, 5, (75 * groups, 21, *kernel)).astype(np.float32)
    bias = rng.integers(-4, 5, 75 * groups).astype(np.float32)

    def results(algorithm: str) -> list[np.ndarray]:
        y = fastconv.conv2d(x, weight, bias, **facts, algorithm=algorithm)
        grad_output = y % 5 - 2
        grads = fastconv.conv2d_backward(grad_output, x, weight, **facts, algorithm=algorithm)
        assert grads.x is not None
        return [y, grads.x]

    with mock.patch.multiple(implicit_gemm, FRESH_BYTES=fresh, DEPTH=100):
        forget()
        got = results("gemm")
    forget()
    for result, expected in zip(got, results("im2col"), strict=True):
        assert_same_bits(result, expected)


@given(
    st.sampled_from([1, 3000, 10**6]),
    st.sampled_from([1, 1000, 10**6]),
    st.sampled_from([(1, 1), (1, 5), (20, 40), (1, 10**6)]),
    st.sampled_from([1, 16, 10**6]),
    st.sampled_from([(1, 10**9), (3, 10**9), (16, 20_000), (16, 10**9)]),
    st.sampled_from([1, 2]),
)
def test_blocks_do_not_change_the_weight_gradient(
    chunk: int, rows: int, pixels: tuple[int, int], block: int, segments: tuple[int, int], stride: int
) -> None:
    rng = np.random.default_rng(chunk + rows + block)
    # small integers: every order of additions is exact
    x = rng.integers(-4, 5, (3, 11, 13, 17)).astype(np.float32)
    shape = (19, 11, 3, 3)
    grad_output = rng.integers(-4, 5, (3, 19, -(-13 // stride), -(-17 // stride))).astype(np.float32)
    lanes = fastconv.kernels.simd.LANES[32]
    limits = {
        "CHUNK_BYTES": chunk,
        "ROWS_BYTES": rows,
        "LEAST_PIXELS": pixels[0],
        "MOST_PIXELS": pixels[1],
        "BLOCK_OUT": -(-block // lanes) * lanes,
        "MOST_SEGMENTS": segments[0],
        "SUMS_BYTES": segments[1],
    }
    with mock.patch.multiple(weight_gradient, **limits):
        forget()
        result = fastconv.conv2d_weight_grad(grad_output, x, shape, stride, 1, algorithm="gemm")
    forget()
    expected = fastconv.conv2d_weight_grad(grad_output, x, shape, stride, 1, algorithm="naive")
    assert_same_bits(result, expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("channels", "exchanged"), [((32, 80), True), ((32, 85), False), ((80, 32), False)])
@pytest.mark.parametrize("pixels", [64, 400])
def test_pointwise_weight_gradient_exchanges_its_arrays(
    groups: int, channels: tuple[int, int], exchanged: bool, pixels: int
) -> None:
    """Where x has fewer channels, in whole panels."""
    group_in, group_out = channels
    rng = np.random.default_rng(group_out)
    # small integers: every order of additions is exact
    x = rng.integers(-4, 5, (3, groups * group_in, 13, 11)).astype(np.float32)
    grad_output = rng.integers(-4, 5, (3, groups * group_out, 13, 11)).astype(np.float32)
    shape = (groups * group_out, group_in, 1, 1)
    with mock.patch.multiple(weight_gradient, SUMS_BYTES=1, EXCHANGED_PIXELS=pixels):
        forget()
        geometry = conv_shape("conv2d", 2, x.shape, shape, 1, 0, 1, groups, "NCHW")
        rows = gemm.as_row(geometry)
        assert weight_gradient.cut(rows, 4).exchanged == exchanged
        result = fastconv.conv2d_weight_grad(grad_output, x, shape, groups=groups, algorithm="gemm")
    forget()
    expected = fastconv.conv2d_weight_grad(grad_output, x, shape, groups=groups, algorithm="naive")
    assert_same_bits(result, expected)


@given(
    st.sampled_from([1, 20_000, 10**6]),
    st.sampled_from([(1, 1), (1, 5), (20, 40), (1, 10**6)]),
    st.sampled_from([(1, 10**9), (3, 10**9), (16, 20_000), (16, 10**9)]),
    # channels of a group in and out, groups: rows of one kernel cell, of several, rows left over
    st.sampled_from([(1, 8, 1), (3, 5, 1), (8, 16, 1), (16, 70, 1), (11, 19, 2), (8, 16, 3)]),
    st.sampled_from(
        [{}, {"padding": 1}, {"stride": 2, "padding": (2, 1)}, {"dilation": (2, 3), "padding": 3}]
    ),
)
def test_blocks_do_not_change_the_channels_last_weight_gradient(
    chunk: int,
    pixels: tuple[int, int],
    segments: tuple[int, int],
    channels: tuple[int, int, int],
    facts: dict,
) -> None:
    rng = np.random.default_rng(chunk + pixels[0] + channels[0])
    group_in, group_out, groups = channels
    # small integers: every order of additions is exact
    x = rng.integers(-4, 5, (3, 9, 12, groups * group_in)).astype(np.float32)
    weight = rng.integers(-4, 5, (3, 2, group_in, groups * group_out)).astype(np.float32)
    facts = facts | {"groups": groups, "layout": "NHWC"}
    y = fastconv.conv2d(x, weight, **facts)
    grad_output = rng.integers(-4, 5, y.shape).astype(np.float32)
    limits = {
        "CHUNK_BYTES": chunk,
        "LEAST_PIXELS": pixels[0],
        "MOST_PIXELS": pixels[1],
        "MOST_SEGMENTS": segments[0],
        "SUMS_BYTES": segments[1],
    }
    with mock.patch.multiple(channels_last_gradient, **limits):
        forget()
        result = fastconv.conv2d_weight_grad(grad_output, x, weight.shape, **facts, algorithm="gemm")
    forget()
    expected = fastconv.conv2d_weight_grad(grad_output, x, weight.shape, **facts, algorithm="naive")
    assert_same_bits(result, expected)


@pytest.mark.parametrize("size", [(4, 20, 20, 64), (1, 7, 7, 512), (40, 30, 30, 1), (3, 9, 9, 21)])
def test_same_bits_of_channels_last_gradients_for_any_number_of_threads(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(size).astype(np.float32)
    grad_output = rng.standard_normal((*size[:3], 48)).astype(np.float32)

    def gradient(threads: int) -> np.ndarray:
        facts = {"padding": 1, "layout": "NHWC", "algorithm": "gemm"}
        with fastconv.num_threads(threads):
            return fastconv.conv2d_weight_grad(grad_output, x, (3, 3, size[3], 48), **facts)

    for threads in range(2, fastconv.get_num_threads() + 1):
        assert_same_bits(gradient(threads), gradient(1))


@pytest.mark.parametrize("size", [(4, 64, 20, 20), (1, 512, 7, 7), (40, 1, 30, 30)])
def test_same_bits_for_any_number_of_threads(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(size).astype(np.float32)
    weight = rng.standard_normal((64, size[1], 3, 3)).astype(np.float32)
    grad_output = rng.standard_normal((size[0], 64, *size[2:])).astype(np.float32)

    def results(threads: int) -> list[np.ndarray]:
        with fastconv.num_threads(threads):
            gradients = fastconv.conv2d_backward(grad_output, x, weight, padding=1, algorithm="gemm")
        return [run(x, weight, threads), *(gradient for gradient in gradients if gradient is not None)]

    one = results(1)
    for threads in range(2, fastconv.get_num_threads() + 1):
        for result, expected in zip(results(threads), one, strict=True):
            assert_same_bits(result, expected)


# (N, C, H, K, kernel, stride, padding) of ResNet-50 and VGG-16
LAYERS = [
    (1, 64, 224, 64, 3, 1, 1),
    (1, 512, 14, 512, 3, 1, 1),
    (4, 3, 224, 64, 7, 2, 3),
    (4, 512, 7, 512, 3, 1, 1),
    (4, 2048, 7, 512, 1, 1, 0),
    (4, 256, 56, 512, 1, 2, 0),
]


def convolution_shape(layer: tuple[int, ...]) -> ConvShape:
    n, c, h, k, r, stride, padding = layer
    return conv_shape("conv2d", 2, (n, c, h, h), (k, c, r, r), stride, padding, 1, 1, "NCHW")


@pytest.mark.parametrize("layer", LAYERS)
def test_scratch_of_a_task_is_bounded(layer: tuple[int, ...]) -> None:
    shape = convolution_shape(layer)
    for conv in (gemm.forward_convolution(shape), *gemm.input_grad_convolutions(shape)):
        for tasks in (1, 2, 16):
            blocks = implicit_gemm.cut(conv, 4, tasks)
            assert blocks.scratch_bytes <= gemm.SCRATCH_BYTES
            assert blocks.pixel_tasks * blocks.panel_tasks <= tasks
        # where the tasks pack what they read, there is no packed weight
        fresh = implicit_gemm.cut(conv, 4, implicit_gemm.tasks_of(conv)).fresh
        packed = 0 if fresh else conv.packing(FLOAT32).size
        workspace = implicit_gemm.workspace_bytes(conv, FLOAT32)
        assert packed < workspace <= packed + fastconv.get_num_threads() * gemm.SCRATCH_BYTES


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("layer", LAYERS)
def test_workspace_is_bounded(layer: tuple[int, ...], op: str) -> None:
    shape = convolution_shape(layer)
    weights = 4 * 2 * shape.out_channels * shape.group_in * shape.taps
    assert ALGORITHMS["gemm"].workspace(shape, FLOAT32, op) <= (16 << 20) + weights


@pytest.mark.parametrize(
    ("stride", "dilation", "padding"), [(2, 1, 1), (3, 2, 4), (2, 4, 0), (5, 1, 7), (4, 6, 2)]
)
def test_input_gradient_by_phases(stride: int, dilation: int, padding: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-4, 5, (5, 3, 4, 3)).astype(np.float32)
    x_shape = (2, 3, 23, 26)
    x = np.zeros(x_shape, np.float32)
    y = fastconv.conv2d(x, weight, None, stride, padding, dilation)
    grad_output = rng.integers(-4, 5, y.shape).astype(np.float32)
    facts = (weight, x_shape, stride, padding, dilation)
    result = fastconv.conv2d_input_grad(grad_output, *facts, algorithm="gemm")
    assert_same_bits(result, fastconv.conv2d_input_grad(grad_output, *facts, algorithm="naive"))


def refusal(
    op: str = "forward", kernel: int = 3, stride: int = 1, padding: int = 0, layout: str = "NCHW"
) -> str:
    """Why implicit GEMM would not compute `op`, or nothing."""
    x, weight = (1, 2, 900, 900), (2, 2, kernel, kernel)
    if layout == "NHWC":
        x, weight = (1, 900, 900, 2), (kernel, kernel, 2, 2)
    shape = conv_shape("conv2d", 2, x, weight, stride, padding, 1, 1, layout)
    return ALGORITHMS["gemm"].supports(shape, FLOAT32, op) or ""


def test_refusals_say_why() -> None:
    assert refusal() == refusal("input_grad") == refusal("weight_grad", stride=2, padding=3) == ""
    assert refusal(layout="NHWC") == refusal("input_grad", layout="NHWC") == ""
    assert refusal("weight_grad", layout="NHWC") == ""
    assert "kernel this large" in refusal(kernel=400)
    with pytest.raises(ValueError, match="kernel this large"):
        fastconv.conv2d(np.ones((1, 2, 900, 900)), np.ones((2, 2, 400, 400)), algorithm="gemm")


def test_explain_tells_tiles_and_tasks() -> None:
    text = str(fastconv.explain((4, 64, 56, 56), (64, 64, 5, 5), padding=2))
    for word in ("gemm", "tile", "pixels", "tasks", "workspace"):
        assert word in text
    text = str(fastconv.explain((4, 64, 56, 56), (64, 64, 5, 5), padding=2, op="weight_grad"))
    for word in ("gemm", "tile", "chunk", "segments", "workspace"):
        assert word in text
