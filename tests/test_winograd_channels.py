"""Winograd's minimal filtering of channels-last arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from harness import fill_forward, fill_input_grad
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import assert_same_bits
from processes import python
from strategies import Conv
from test_bounds import PAGES
from test_winograd import NAMED, cases, check

import fastconv
from fastconv import jit, threads
from fastconv.algorithms import winograd, winograd_blocks, winograd_channels
from fastconv.algorithms.winograd_blocks import Tiling
from fastconv.shapes import ConvShape

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: there is no such kernel")


@contextmanager
def cut_as(tile: int, **limits: int) -> Iterator[None]:
    """Tiles of that size, and other limits of the blocks."""

    def tiling_of(shape: ConvShape, dtype: np.dtype, op: str) -> Tiling:
        return Tiling(winograd._convolution(shape, op), tile)

    def forget() -> None:
        for cached in (winograd_channels.cut, winograd_channels.prepare):
            cached.cache_clear()

    forget()
    with (
        mock.patch.object(winograd, "tiling_of", tiling_of),
        mock.patch.multiple(winograd_channels, **{"TILES": 64, **limits}),
        mock.patch.object(threads, "SERIAL_WORK", 0),  # small work would run on one thread
    ):
        yield
    forget()


def channels_last(case: Conv) -> Conv:
    """The case channels last, without groups, in steps of one."""
    return replace(case, layout="NHWC", groups=1, stride=1)


#: The threads share the tiles, or the output channels, and then transform the weight when it is used.
SHARED = {"FEW_UNITS": 10**9, "LEAST_VECTORS": 0, "LEAST_PANELS": 0, "BLOCK_CHANNELS": 16}
BLOCKS = st.fixed_dictionaries(
    {
        "TILES": st.sampled_from([8, 16, 64]),
        "FEW_UNITS": st.sampled_from([0, 10**9]),
        "LEAST_VECTORS": st.sampled_from([0, 1]),
        "LEAST_PANELS": st.sampled_from([0, 2]),
        "BLOCK_CHANNELS": st.sampled_from([3, 16, 64]),
    }
)


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("limits", [{"FEW_UNITS": 0}, SHARED], ids=["by tiles", "by channels"])
@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())
def test_named_case(case: Conv, limits: dict[str, int], tile: int) -> None:
    case = channels_last(case)
    with cut_as(tile, **limits):
        check(case)
        check(replace(case, dtype="float64", bias=True))
        with fastconv.num_threads(1):
            check(replace(case, kind="ints", bias=True, relu=True))


@given(case=cases(), tile=st.sampled_from([2, 4]), blocks=BLOCKS)
def test_agrees_with_reference(case: Conv, tile: int, blocks: dict[str, int]) -> None:
    with cut_as(tile, **blocks):
        check(channels_last(case))


@given(case=cases(), tile=st.sampled_from([2, 4]), blocks=BLOCKS)
@example(Conv((14, 14), (3, 3), channels=(64, 64), padding=1), 4, {"TILES": 8})
@example(Conv((8, 8), (3, 3), channels=(70, 120), padding=1), 4, SHARED)
def test_same_bits_whatever_threads_and_blocks(case: Conv, tile: int, blocks: dict[str, int]) -> None:
    case = channels_last(case)
    with cut_as(tile), fastconv.num_threads(1):
        one = fill_forward("winograd", case), fill_input_grad("winograd", case)
    with cut_as(tile, **blocks):
        other = fill_forward("winograd", case), fill_input_grad("winograd", case)
    for first, second in zip(one, other, strict=True):
        assert_same_bits(first, second)


@pytest.mark.parametrize("relu", [None, "relu"])
@pytest.mark.parametrize("size", [(4, 28, 33, 50), (1, 9, 70, 300)], ids=["many tiles", "few tiles"])
def test_prepacked_weight(size: tuple[int, int, int, int], relu: str | None) -> None:
    n, h, c, k = size
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, h, h, c)).astype(np.float32)
    weight = rng.standard_normal((3, 3, c, k)).astype(np.float32)
    facts = {"padding": 1, "layout": "NHWC", "algorithm": "winograd"}
    packed = fastconv.prepack(weight, x_shape=x.shape, **facts)
    assert packed.form is not None
    y = fastconv.conv2d(x, packed, activation=relu, **facts)
    np.testing.assert_array_equal(y, fastconv.conv2d(x, weight, activation=relu, **facts))


@pytest.mark.parametrize("channels", [256, 512])
def test_a_weight_that_would_leave_the_cache_is_not_prepacked(channels: int) -> None:
    weight = np.zeros((3, 3, channels, channels), np.float32)
    packed = fastconv.prepack(weight, x_shape=(1, 14, 14, channels), padding=1, layout="NHWC")
    assert (packed.form is None) == (channels == 512)


def test_what_auto_chooses() -> None:
    def chosen(n: int, c: int, h: int, k: int, **more: object) -> str:
        return fastconv.explain((n, h, h, c), (3, 3, c, k), padding=1, layout="NHWC", **more).algorithm

    assert chosen(4, 64, 56, 64) == chosen(4, 128, 28, 128) == "winograd"
    assert chosen(1, 512, 14, 512) == chosen(4, 512, 7, 512) == "winograd"
    assert chosen(1, 3, 224, 64) == "direct"
    assert chosen(4, 64, 56, 64, op="input_grad") == "winograd"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", [(4, 64, 56, 64), (1, 64, 224, 64), (1, 256, 56, 256)])
def test_scratch_is_bounded(layer: tuple[int, int, int, int], dtype: str) -> None:
    n, c, h, k = layer
    plan = fastconv.explain((n, h, h, c), (3, 3, c, k), padding=1, layout="NHWC", dtype=dtype)
    tiling = winograd.tiling_of(plan.shape, plan.dtype, "forward")
    packed = winograd_channels.filters_of(tiling, plan.dtype).size
    with fastconv.num_threads(1):
        run = winograd_channels.prepare(tiling, plan.dtype, False, winograd_blocks.tasks_of(tiling))
    assert packed < run.workspace_bytes <= packed + (16 << 20)


FENCED = """
from fastconv.algorithms import winograd, winograd_channels
from fastconv.algorithms.winograd_blocks import Tiling
from fastconv import threads

threads.SERIAL_WORK = 0
fences = {}

def scratch(size):
    '''The workspace, in pages of its own.'''
    size = -(-size // 64) * 64
    if (size, at_end) not in fences:
        fences[size, at_end] = fenced(np.full(size, 255, np.uint8), at_end)
    return fences[size, at_end].ctypes.data

winograd_channels.scratch = scratch
rng = np.random.default_rng(0)
for number in range(60):
    dtype, tile = ("f4", "f8")[number % 2], (2, 4)[number // 2 % 2]
    winograd.tiling_of = lambda shape, dtype, op: Tiling(winograd._convolution(shape, op), tile)
    c, k = rng.integers(1, 40), rng.integers(1, 60)
    padding = rng.integers(0, 5, 2)
    size = 3 + rng.integers(0, 20), 3 + rng.integers(0, 40)
    x = rng.standard_normal((rng.integers(1, 4), *size, c)).astype(dtype)
    weight = rng.standard_normal((3, 3, c, k)).astype(dtype)
    shape = run.geometry("conv2d", 2, x.shape, weight.shape, 1, padding.tolist(), 1, 1, "NHWC")
    y = rng.standard_normal(run.y_shape(shape, 4)).astype(dtype)
    bias = rng.standard_normal(k).astype(dtype)
    winograd_channels.FEW_UNITS = (0, 10**9)[number // 4 % 2]
    winograd_channels.LEAST_VECTORS = winograd_channels.LEAST_PANELS = 0
    for at_end in (True, False):
        for count in (1, fastconv.get_num_threads()):
            with fastconv.num_threads(count):
                winograd_channels.cut.cache_clear()
                winograd_channels.prepare.cache_clear()
                fx, fy = (lift_like_x("", "", fenced(a, at_end), 2, "NHWC") for a in (x, y))
                fw = lift_weight(fenced(weight, at_end), 2, "NHWC")
                ALGORITHMS["winograd"].forward(fx, fw, fenced(bias, at_end), False, fy, shape)
                ALGORITHMS["winograd"].input_grad(fy, fw, fx, shape)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages")
def test_stays_in_its_arrays_and_its_workspace() -> None:
    assert python(PAGES + FENCED).strip() == "done"
