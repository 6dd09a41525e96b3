"""What is particular to direct convolution: its tiles and blocks, and when auto takes it."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits
from strategies import Conv
from test_conv import check_forward, check_input_grad

import fastconv
from fastconv import jit
from fastconv.algorithms import direct
from fastconv.algorithms.gemm import forward_convolution, input_grad_convolutions
from fastconv.algorithms.implicit_gemm import Convolution
from fastconv.functional import bound
from fastconv.kernels.direct import TILES
from fastconv.kernels.simd import LANES
from fastconv.shapes import conv_shape

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: its kernel needs the compiler")


def forget() -> None:
    """Drop what was prepared with other sizes of blocks."""
    for cached in (direct.cut, direct.prepare, bound._bind):
        cached.cache_clear()


@given(
    st.sampled_from([(1, 1), (2000, 20_000), (10**6, 10**6)]),
    st.sampled_from([(1, 1), (3, 2), (4, 1), (5, 8), (2, 11)]),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 60),
    st.integers(1, 9),
)
def test_blocks_do_not_change_the_result(
    most: tuple[int, int], channels: tuple[int, int], stride: int, width: int, height: int
) -> None:
    group_in, group_out = channels
    case = Conv(
        (height, width),
        (3, 3),
        channels=(2 * group_in, 2 * group_out),
        batch=2,
        groups=2,
        stride=stride,
        padding=1,
        kind="ints",
        bias=True,
    )
    with mock.patch.multiple(direct, ROWS_BYTES=most[0], FLAT_BYTES=most[1]):
        forget()
        check_forward("direct", case)
        check_input_grad("direct", case)
    forget()


@pytest.mark.parametrize("group_out", range(1, 18))
@pytest.mark.parametrize("height", [1, 4, 7])
def test_every_tile(group_out: int, height: int) -> None:
    """Numbers of channels and of vectors that tiles divide and do not divide."""
    for width in (5, 40):
        case = Conv((height, width), (3, 3), channels=(4, 2 * group_out), groups=2, padding=1, bias=True)
        check_forward("direct", case)


def test_tiles_waste_little() -> None:
    for channels in range(1, 40):
        rows = direct._tile_rows(channels)
        assert rows in TILES
        assert rows <= 2 or -(-channels // rows) * rows < 2 * channels


@pytest.mark.parametrize("size", [(3, 32, 20, 20), (1, 16, 9, 40), (20, 4, 7, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_bits_for_any_number_of_threads(size: tuple[int, ...], stride: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(size).astype(np.float32)
    weight = rng.standard_normal((32, size[1] // 4, 3, 3)).astype(np.float32)
    facts = {"stride": stride, "padding": 1, "groups": 4, "algorithm": "direct"}

    def results(threads: int) -> list[np.ndarray]:
        with fastconv.num_threads(threads):
            y = fastconv.conv2d(x, weight, **facts)
            return [y, fastconv.conv2d_input_grad(np.cos(y), weight, x.shape, **facts)]

    one = results(1)
    for threads in range(2, fastconv.get_num_threads() + 1):
        for result, expected in zip(results(threads), one, strict=True):
            assert_same_bits(result, expected)


NARROW = [
    Conv((14, 14), (5, 5), channels=(6, 16), batch=3, kind="ints", bias=True, relu=True),
    Conv((7, 5), (3, 3), channels=(4, 24), batch=2, padding=1, kind="ints"),
    Conv((6, 19), (2, 3), channels=(6, 16), padding=((0, 2), (3, 1)), groups=2, kind="ints", bias=True),
    Conv((11, 21), (3, 2), channels=(3, 9), dilation=(2, 3), padding=2, batch=2, kind="ints"),
    Conv((1, 17), (1, 4), channels=(2, 8), batch=2, kind="ints"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("flat_bytes", [direct.FLAT_BYTES, 4000])
@pytest.mark.parametrize("case", NARROW)
def test_vectors_run_on_from_row_to_row(case: Conv, flat_bytes: int, dtype: str) -> None:
    """Where the maps are narrow; also in blocks of few rows, and whatever the estimate of the cost says."""

    def is_flat(conv: Convolution, *_: int) -> bool:
        return conv.y.axes[1:] == (conv.output[2], 1)

    case = replace(case, dtype=dtype)
    forced = mock.Mock(side_effect=is_flat)
    with mock.patch.multiple(direct, FLAT_BYTES=flat_bytes, _is_flat=forced):
        forget()
        check_forward("direct", case)
        check_input_grad("direct", case)
    assert forced.called
    forget()


def test_which_maps_are_narrow() -> None:
    def is_flat(width: int, kernel: int, outputs: int, stride: int = 1) -> bool:
        x, weight = (4, 6, width, width), (outputs, 6, kernel, kernel)
        shape = conv_shape("conv2d", 2, x, weight, stride, 0, 1, 1, "NCHW")
        return bool(direct.cut(forward_convolution(shape), 4, 1).flat)

    lanes = LANES[32]
    if lanes < 8:
        pytest.skip("vectors too short to run on")
    assert is_flat(lanes // 2 + 6, 5, 16)
    assert is_flat(lanes + 3, 3, 64)
    assert not is_flat(lanes + 2, 3, 64)  # rows are whole vectors
    assert not is_flat(lanes + 3, 3, 64, stride=2)
    assert not is_flat(4 * lanes - 2, 3, 2)  # copying would take longer than what it saves


# (N, C, H, K, groups, stride) of ResNeXt-50, and of nets without groups
LAYERS = [
    (4, 128, 56, 128, 32, 1),
    (4, 256, 28, 256, 32, 1),
    (4, 256, 56, 256, 32, 2),
    (32, 2, 28, 8, 1, 1),
    (1, 16, 112, 32, 1, 2),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_auto_takes_it_and_its_scratch_is_bounded(layer: tuple[int, ...]) -> None:
    n, c, h, k, groups, stride = layer
    shape = conv_shape("conv2d", 2, (n, c, h, h), (k, c // groups, 3, 3), stride, 1, 1, groups, "NCHW")
    for op in ("forward", "input_grad"):
        plan = fastconv.explain((n, c, h, h), (k, c // groups, 3, 3), stride, 1, 1, groups, op=op)
        assert plan.algorithm == "direct"
        assert plan.workspace <= fastconv.get_num_threads() * direct.SCRATCH_BYTES
        assert "vectors" in str(plan.details["tile"])
    for conv in (forward_convolution(shape), *input_grad_convolutions(shape)):
        for tasks in (1, 2, 16):
            assert direct.cut(conv, 4, tasks).scratch_bytes <= direct.SCRATCH_BYTES


@pytest.mark.parametrize(
    ("op", "reason", "x", "weight", "facts"),
    [
        ("forward", "pointwise", (1, 8, 9, 9), (8, 8, 1, 1), {}),
        ("forward", "as fast", (1, 128, 32, 32), (8, 128, 3, 3), {}),
        ("forward", "69% of their vectors", (1, 32, 23, 23), (8, 32, 3, 3), {"stride": 2}),
        ("input_grad", "scattered", (1, 3, 64, 64), (8, 3, 3, 3), {"stride": 2}),
        ("forward", "no third axis", (1, 8, 2, 9, 9), (8, 8, 1, 3, 3), {}),
        ("weight_grad", "no weight gradient", (1, 8, 9, 9), (8, 8, 3, 3), {}),
        ("forward", "MiB a thread", (1, 600, 9, 9), (600, 600, 3, 3), {}),
    ],
)
def test_reasons_not_to_take_it(
    op: str, reason: str, x: tuple[int, ...], weight: tuple[int, ...], facts: dict[str, int]
) -> None:
    if "%" in reason and fastconv.kernels.simd.LANES[32] != 16:
        pytest.skip("vectors of another length")
    assert reason in fastconv.explain(x, weight, op=op, **facts).rejected["direct"]
