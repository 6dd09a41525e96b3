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
from fastconv.algorithms import ALGORITHMS, gemm
from fastconv.shapes import conv_shape

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: implicit GEMM needs the compiler")

FLOAT32 = np.dtype(np.float32)


def run(x: np.ndarray, weight: np.ndarray, threads: int) -> np.ndarray:
    with fastconv.num_threads(threads):
        return fastconv.conv2d(x, weight, padding=1, algorithm="gemm")


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
    with mock.patch.multiple(gemm, **limits):
        gemm.cut.cache_clear()
        y = run(x, weight, min(2, fastconv.get_num_threads()))
    gemm.cut.cache_clear()
    assert_same_bits(y, fastconv.conv2d(x, weight, padding=1, algorithm="naive"))


@pytest.mark.parametrize("size", [(4, 64, 20, 20), (1, 512, 7, 7), (40, 1, 30, 30)])
def test_same_bits_for_any_number_of_threads(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(size).astype(np.float32)
    weight = rng.standard_normal((64, size[1], 3, 3)).astype(np.float32)
    one = run(x, weight, 1)
    for threads in range(2, fastconv.get_num_threads() + 1):
        assert_same_bits(run(x, weight, threads), one)


# (N, C, H, K, kernel, stride, padding) of ResNet-50 and VGG-16
LAYERS = [
    (1, 64, 224, 64, 3, 1, 1),
    (1, 512, 14, 512, 3, 1, 1),
    (4, 3, 224, 64, 7, 2, 3),
    (4, 512, 7, 512, 3, 1, 1),
    (4, 2048, 7, 512, 1, 1, 0),
    (4, 256, 56, 512, 1, 2, 0),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_scratch_of_a_task_is_bounded(layer: tuple[int, ...]) -> None:
    n, c, h, k, r, stride, padding = layer
    shape = conv_shape("conv2d", 2, (n, c, h, h), (k, c, r, r), stride, padding, 1, 1, "NCHW")
    for tasks in (1, 2, 16):
        blocks = gemm.cut(shape, 4, tasks)
        assert blocks.scratch_bytes <= gemm.SCRATCH_BYTES
        assert blocks.pixel_tasks * blocks.panel_tasks <= tasks
    packed = 4 * gemm._packed_size(shape)
    workspace = ALGORITHMS["gemm"].workspace(shape, FLOAT32, "forward")
    assert packed < workspace <= packed + fastconv.get_num_threads() * gemm.SCRATCH_BYTES


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
    assert refusal() == refusal("input_grad") == ""
    assert "channels-first" in refusal(layout="NHWC")
    assert "weight" in refusal("weight_grad") or "forward" in refusal("weight_grad")
    assert "stride 1" in refusal("input_grad", stride=2)
    assert "padding" in refusal("input_grad", padding=3)
    assert "kernel this large" in refusal(kernel=400)
    with pytest.raises(ValueError, match="channels-first"):
        fastconv.conv2d(np.ones((1, 5, 5, 2)), np.ones((3, 3, 2, 2)), layout="NHWC", algorithm="gemm")


def test_explain_tells_tiles_and_tasks() -> None:
    text = str(fastconv.explain((4, 64, 56, 56), (64, 64, 3, 3), padding=1))
    for word in ("gemm", "tile", "pixels", "tasks", "workspace"):
        assert word in text
