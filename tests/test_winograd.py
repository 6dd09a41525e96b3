"""What is particular to Winograd convolution: transforms, blocks and tiles, precision, what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import Any
from unittest import mock

import numpy as np
import pytest
from harness import (
    fill_forward,
    fill_input_grad,
    forward_magnitude,
    input_grad_magnitude,
    reference_forward,
    reference_input_grad,
    settled,
)
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within
from processes import python
from strategies import DTYPES, SEEDS, Conv
from test_bounds import PAGES

import fastconv
from fastconv import jit, threads
from fastconv.algorithms import ALGORITHMS, winograd, winograd_blocks
from fastconv.algorithms.gemm import forward_convolution, input_grad_convolutions
from fastconv.algorithms.winograd_blocks import Tiling
from fastconv.jit import address_of
from fastconv.kernels.winograd_points import POINTS, TAPS, Root2, float_matrices, matrices
from fastconv.shapes import ConvShape, conv_shape

compiled = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: Winograd needs the compiler")
WINOGRAD = ALGORITHMS["winograd"]
FLOAT32 = np.dtype(np.float32)


# --- the matrices -------------------------------------------------------------------------------

RATIONAL = {
    2: [0, 1, -1],
    3: [0, 1, -1, 2],
    4: [0, 1, -1, 2, -2],
    6: [0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2)],
}
FIELDS: list[Any] = [(tile, [Fraction(p) for p in points]) for tile, points in RATIONAL.items()]
FIELDS += POINTS.items()


def times(matrix: list[list[Any]], vector: list[Any]) -> list[Any]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), start=0) for row in matrix]


@pytest.mark.parametrize(("tile", "points"), FIELDS)
def test_the_identity_holds_exactly(tile: int, points: list[Any]) -> None:
    """A' [(G g) * (B' d)] is the correlation of d with g, for every d and g of units, and so for all."""
    a, g, b = matrices(points, tile)
    span = tile + TAPS - 1
    for tap in range(TAPS):
        for place in range(span):
            filters = times(g, [int(i == tap) for i in range(TAPS)])
            inputs = times(b, [int(i == place) for i in range(span)])
            y = times(a, [f * d for f, d in zip(filters, inputs, strict=True)])
            assert [Root2() + x if isinstance(x, Root2) else x for x in y] == [
                points[0] * 0 + int(place - tap == i) for i in range(tile)
            ]


@pytest.mark.parametrize("tile", POINTS)
def test_rounded_matrices(tile: int) -> None:
    """Each entry is the float64 nearest to the exact one, whose square is rational."""
    for rounded, exact in zip(float_matrices(tile), matrices(POINTS[tile], tile), strict=True):
        for x, y in zip(chain(*rounded), chain(*exact), strict=True):
            y = Root2() + y
            assert 0 in (y.rational, y.root)
            square = Fraction(y.rational**2 + 2 * y.root**2)
            if x == 0:
                assert square == 0
                continue
            assert (x > 0) == (y.rational + y.root > 0)
            half = np.spacing(abs(x)) / 2
            low, high = Fraction(abs(x)) - Fraction(half), Fraction(abs(x)) + Fraction(half)
            assert low**2 <= square <= high**2


# --- values -------------------------------------------------------------------------------------


def forget() -> None:
    """Drop what was prepared with other sizes of blocks."""
    winograd_blocks.cut.cache_clear()
    winograd_blocks.prepare.cache_clear()


@contextmanager
def cut_as(tile: int, FEW_TILES: int = winograd_blocks.FEW_TILES, **limits: int) -> Iterator[None]:
    """Tiles of that size, and blocks of that size."""

    def tiling_of(shape: ConvShape, dtype: np.dtype, op: str) -> Tiling:
        return Tiling(winograd._convolution(shape, op), tile)

    forget()
    with (
        mock.patch.object(winograd, "tiling_of", tiling_of),
        mock.patch.multiple(winograd_blocks, FEW_TILES=FEW_TILES, **limits),
        mock.patch.object(threads, "SERIAL_WORK", 0),  # small work would run on one thread
    ):
        yield
    forget()


#: How many tiles are few: any number, as it is, none.
FEW = [0, winograd_blocks.FEW_TILES, 10**9]
BLOCKS = st.fixed_dictionaries(
    {
        "FEW_TILES": st.sampled_from(FEW),
        "INPUT_BYTES": st.sampled_from([1, 10**4, 10**6]),
        "SUM_BYTES": st.sampled_from([1, 10**5, 10**7]),
        "TASK_BYTES": st.sampled_from([1, 10**6]),
    }
)


@st.composite
def cases(draw: st.DrawFn) -> Conv:
    """What Winograd can do: widths of several vectors, any padding, groups, planes of volumes."""
    pads = [(draw(st.integers(0, 5)), draw(st.integers(0, 5))) for _ in range(2)]
    size = [draw(st.integers(max(1, 3 - sum(pad)), 11)) for pad in pads]
    axis = draw(st.integers(0, 1))
    size[axis] += draw(st.sampled_from([0, 20, 70]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    volume = draw(st.sampled_from([False, False, True]))
    return Conv(
        (draw(st.integers(1, 3)), *size) if volume else tuple(size),
        (1, 3, 3) if volume else (3, 3),
        channels=(groups * draw(st.integers(1, 11)), groups * draw(st.integers(1, 19))),
        batch=draw(st.sampled_from([None, 1, 2, 5])),
        padding=((0, 0), *pads) if volume else tuple(pads),
        groups=groups,
        dtype=draw(DTYPES),
        kind=draw(st.sampled_from(["gauss", "ints"])),
        seed=draw(SEEDS),
        bias=draw(st.booleans()),
        relu=draw(st.booleans()),
    )


def flat(case: Conv) -> Conv:
    """The case with the planes of a volume as images, which the bound of errors is written for."""
    if case.rank == 2:
        return case
    return replace(case, size=case.size[1:], kernel=(3, 3), padding=case.padding[1:])


def check(case: Conv) -> None:
    x, weight, grad, bias = case.x(), case.weight(), case.grad(), case.bias_values()
    expected = reference_forward(case, x, weight)
    if bias is not None:
        expected += bias.reshape(-1, *[1] * case.rank)
    if case.relu:
        expected = np.maximum(expected, 0)
    y, grad_x = fill_forward("winograd", case), fill_input_grad("winograd", case)
    expected_grad = reference_input_grad(case, grad, weight)
    if case.kind == "ints":
        assert_same(settled("winograd", y), expected)
        assert_same(settled("winograd", grad_x), expected_grad)
    elif case.rank == 2:
        scale, terms = forward_magnitude("winograd", case)
        if bias is not None:
            scale += np.abs(bias).reshape(-1, 1, 1)
        assert_within(y, expected, scale, terms)
        assert_within(grad_x, expected_grad, *input_grad_magnitude("winograd", case))


NAMED = {
    "one tile": Conv((4, 4), (3, 3), channels=(2, 3), padding=1),
    "one cell, all else padding": Conv((1, 1), (3, 3), channels=(2, 3), padding=((2, 0), (0, 2))),
    "no tile is whole": Conv((3, 203), (3, 3), channels=(3, 9), padding=1),
    "a row of whole vectors": Conv((9, 130), (3, 3), channels=(3, 9)),
    "padding larger than the kernel": Conv((5, 6), (3, 3), channels=(3, 9), padding=((5, 3), (4, 6))),
    "vectors across images": Conv((5, 5), (3, 3), channels=(5, 17), batch=11, padding=1),
    "more tiles than blocks, one thread": Conv((40, 60), (3, 3), channels=(1, 9), padding=1),
    "weights in many blocks": Conv((8, 8), (3, 3), channels=(70, 9), padding=1),
    "groups whose panels are not whole": Conv((13, 14), (3, 3), channels=(6, 33), groups=3, padding=1),
    "planes of volumes": Conv((3, 7, 9), (1, 3, 3), channels=(4, 5), batch=2, padding=(0, 1, 2)),
}


@compiled
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())
def test_named_case(case: Conv, few: int, tile: int) -> None:
    with cut_as(tile, FEW_TILES=few):
        check(case)
        check(replace(case, dtype="float64", bias=True))
        with fastconv.num_threads(1):
            check(replace(case, kind="ints", bias=True, relu=True))


@compiled
@given(case=cases(), tile=st.sampled_from([2, 4]), blocks=BLOCKS)
def test_agrees_with_reference(case: Conv, tile: int, blocks: dict[str, int]) -> None:
    with cut_as(tile, **blocks):
        check(case)


@compiled
@given(case=cases(), tile=st.sampled_from([2, 4]), blocks=BLOCKS)
@example(Conv((14, 14), (3, 3), channels=(64, 64), padding=1), 4, {"FEW_TILES": 0})
def test_same_bits_whatever_threads_and_blocks(case: Conv, tile: int, blocks: dict[str, int]) -> None:
    with cut_as(tile), fastconv.num_threads(1):
        one = fill_forward("winograd", case), fill_input_grad("winograd", case)
    with cut_as(tile, **blocks):
        other = fill_forward("winograd", case), fill_input_grad("winograd", case)
    for first, second in zip(one, other, strict=True):
        assert_same_bits(first, second)


@compiled
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_numbers_stay_in_their_tiles(value: float) -> None:
    """They reach what their windows see, and may reach the rest of the tiles that read them, as NaN."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 2, 16, 16)), rng.standard_normal((3, 2, 3, 3))
    x[0, 1, 6, 9] = value
    y = fastconv.conv2d(x, weight, padding=1, activation="relu", algorithm="winograd")
    expected = fastconv.conv2d(x, weight, padding=1, activation="relu", algorithm="naive")
    touched = ~np.isfinite(y)
    assert touched[np.isnan(expected)].all()
    touched[:, :, 4:8, 8:12] = False
    assert not touched.any()


@compiled
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_prepacked_weight(tile: int, groups: int) -> None:
    """Transformed once and kept: the same bits."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 10, 21, 30)).astype(np.float32)
    weight = rng.standard_normal((22, 10 // groups, 3, 3)).astype(np.float32)
    shape = conv_shape("conv2d", 2, x.shape, weight.shape, 1, 1, 1, groups, "NCHW")
    tiling = Tiling(forward_convolution(shape), tile)
    y = np.empty((2, 3, 22, 21, 30), np.float32)
    winograd_blocks.prepare(tiling, FLOAT32, False, 2).run(x, weight, None, y[0])
    packing = tiling.packing(FLOAT32)
    memory = np.empty(packing.size, np.uint8)
    packing.pack(weight, address_of(memory))
    winograd_blocks.prepare(tiling, FLOAT32, False, 2, True).run_packed(x, memory, None, y[1])
    assert_same_bits(y[0], y[1])


@compiled
def test_prepack_for_any_batch() -> None:
    """Of few tiles, or of others than it was made for, a convolution takes the weight itself."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 64, 14, 14)).astype(np.float32)
    weight = rng.standard_normal((128, 64, 3, 3)).astype(np.float32)
    for batch in (1, 9):
        packed = fastconv.prepack(weight, x_shape=(batch, 64, 14, 14), padding=1)
        assert packed.algorithm == "winograd"
        assert (packed.form is None) == (batch == 1)
        for images in (1, 2, 9):
            y = fastconv.conv2d(x[:images], packed, padding=1)
            assert_same_bits(y, fastconv.conv2d(x[:images], weight, padding=1))


# --- memory -------------------------------------------------------------------------------------

# (N, C, H, K) of ResNet-50 and VGG-16
LAYERS = [
    (1, 64, 224, 64),
    (1, 256, 56, 256),
    (1, 512, 28, 512),
    (1, 512, 14, 512),
    (4, 64, 56, 64),
    (4, 128, 28, 128),
    (4, 256, 14, 256),
    (4, 512, 7, 512),
    (32, 512, 7, 512),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS)
def test_scratch_is_bounded(layer: tuple[int, ...], dtype: str) -> None:
    n, c, h, k = layer
    shape = conv_shape("conv2d", 2, (n, c, h, h), (k, c, 3, 3), 1, 1, 1, 1, "NCHW")
    for conv in (forward_convolution(shape), *input_grad_convolutions(shape)):
        for tile in (2, 4):
            tiling = Tiling(conv, tile)
            with fastconv.num_threads(1):
                run = winograd_blocks.prepare(tiling, np.dtype(dtype), False, 1)
            packed = 0 if run.pack is None else tiling.packing(np.dtype(dtype)).size
            assert packed < run.workspace_bytes <= packed + (17 << 20)
            for tasks in (1, 2, 16):
                blocks = winograd_blocks.cut(tiling, np.dtype(dtype), tasks)
                assert blocks.scratch_bytes <= 10 << 20
                assert blocks.tile_tasks * blocks.panel_tasks <= tasks


FENCED = """
from fastconv.algorithms import winograd, winograd_blocks
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

winograd_blocks.scratch = scratch
rng = np.random.default_rng(0)
for number in range(60):
    dtype, tile = ("f4", "f8")[number % 2], (2, 4)[number // 2 % 2]
    winograd.tiling_of = lambda shape, dtype, op: Tiling(winograd._convolution(shape, op), tile)
    winograd_blocks.FEW_TILES = (0, 4, 10**9)[number % 3]
    winograd_blocks.INPUT_BYTES = 10 ** rng.integers(3, 7)
    groups = rng.integers(1, 3)
    c, k = groups * rng.integers(1, 40), groups * rng.integers(1, 20)
    padding = rng.integers(0, 5, 2)
    size = 3 + rng.integers(0, 20), 3 + rng.integers(0, 90)
    x = rng.standard_normal((rng.integers(1, 4), c, *size)).astype(dtype)
    weight = rng.standard_normal((k, c // groups, 3, 3)).astype(dtype)
    shape = run.geometry("conv2d", 2, x.shape, weight.shape, 1, padding.tolist(), 1, int(groups), "NCHW")
    grad = rng.standard_normal(run.y_shape(shape, 4)).astype(dtype)
    bias = rng.standard_normal(k).astype(dtype)
    for at_end in (True, False):
        for count in (1, fastconv.get_num_threads()):
            with fastconv.num_threads(count):
                winograd_blocks.cut.cache_clear()
                winograd_blocks.prepare.cache_clear()
                arrays = [
                    lift_like_x("", "", fenced(a, at_end), 2, "NCHW") for a in (x, grad, 0 * grad, 0 * x)
                ]
                fw = lift_weight(fenced(weight, at_end), 2, "NCHW")
                algorithm = ALGORITHMS["winograd"]
                algorithm.forward(arrays[0], fw, fenced(bias, at_end), False, arrays[2], shape)
                algorithm.input_grad(arrays[1], fw, arrays[3], shape)
print("done")
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages")
def test_stays_in_its_arrays_and_its_workspace() -> None:
    assert python(PAGES + FENCED).strip() == "done"


# --- what runs ----------------------------------------------------------------------------------


def shape_of(*sizes: int, kernel: Any = (3, 3), stride: int = 1, dilation: int = 1, **more: Any) -> ConvShape:
    n, c, h, k = sizes
    groups = more.get("groups", 1)
    x, weight = (n, c, h, h), (k, c // groups, *kernel)
    if more.get("layout") == "NHWC":
        x, weight = (n, h, h, c), (*kernel, c // groups, k)
    return conv_shape("conv2d", 2, x, weight, stride, 1, dilation, groups, more.get("layout", "NCHW"))


@compiled
def test_refusals_say_why() -> None:
    def refusal(*sizes: int, op: str = "forward", **more: Any) -> str:
        return WINOGRAD.supports(shape_of(*(sizes or (1, 8, 14, 8)), **more), FLOAT32, op) or ""

    assert refusal() == refusal(op="input_grad") == ""
    assert "3 x 3" in refusal(kernel=(3, 1))
    assert "3 x 3" in refusal(kernel=(5, 5))
    assert "stride 1" in refusal(stride=2)
    assert "dilation 1" in refusal(dilation=2)
    assert refusal(layout="NHWC") == ""
    assert refusal(layout="NHWC", op="input_grad") == ""
    assert "without groups" in refusal(layout="NHWC", groups=2)
    assert refusal(op="weight_grad") == refusal(op="weight_grad", layout="NHWC", groups=2) == ""
    assert "MiB a thread" in refusal(1, 20_000, 14, 8)
    assert "more than 24 MiB" in refusal(1, 80_000, 14, 8, op="weight_grad")
    with pytest.raises(ValueError, match=r"cannot compute this forward: it is made for kernels of 3 x 3"):
        fastconv.conv2d(np.ones((1, 1, 5, 5)), np.ones((1, 1, 2, 2)), algorithm="winograd")
    signal = conv_shape("conv1d", 1, (1, 1, 9), (1, 1, 3), 1, 1, 1, 1, "NCHW")
    assert "3 x 3" in (WINOGRAD.supports(signal, FLOAT32, "forward") or "")
    volume = conv_shape("conv3d", 3, (1, 1, 9, 9, 9), (1, 1, 1, 3, 3), 1, 1, 1, 1, "NCHW")
    assert "height and width" in (WINOGRAD.supports(volume, FLOAT32, "forward") or "")


@compiled
@pytest.mark.parametrize("op", ["forward", "input_grad"])
def test_what_auto_chooses(op: str) -> None:
    def chosen(n: int, c: int, h: int, k: int) -> str:
        return fastconv.explain((n, c, h, h), (k, c, 3, 3), padding=1, op=op).algorithm

    for layer in LAYERS:
        assert chosen(*layer) == "winograd"
    assert chosen(1, 3, 224, 64) != "winograd"  # too few channels
    assert chosen(1, 8, 14, 8) != "winograd"  # too little work
    assert chosen(1, 512, 4, 512) != "winograd"  # no vector of tiles is full
    depthwise = fastconv.explain((4, 64, 56, 56), (64, 1, 3, 3), padding=1, groups=64, op=op)
    assert "too short" in depthwise.rejected["winograd"]


def test_tiles_fit_the_map() -> None:
    assert winograd.tiling_of(shape_of(4, 64, 56, 64), FLOAT32, "forward").tile == 4
    assert winograd.tiling_of(shape_of(1, 512, 2, 512), FLOAT32, "forward").tile == 2


@compiled
def test_explain_tells_tiles_and_tasks() -> None:
    text = str(fastconv.explain((4, 64, 56, 56), (64, 64, 3, 3), padding=1))
    for word in ("winograd", "F(4 x 4, 3 x 3)", "36 products", "tiles", "tasks", "workspace", "before"):
        assert word in text
    assert "when used" in str(fastconv.explain((1, 512, 14, 14), (512, 512, 3, 3), padding=1))


# --- precision ----------------------------------------------------------------------------------


@pytest.fixture
def precision() -> Iterator[None]:
    yield
    fastconv.set_float32_precision("high")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_highest_precision_rules_it_out(precision: None, dtype: str) -> None:
    """At once, and no longer than it is set, though decisions are kept."""
    x, weight = np.ones((1, 64, 20, 20), dtype), np.ones((64, 64, 3, 3), dtype)
    rng = np.random.default_rng(0)
    x[...] = rng.standard_normal(x.shape)
    fast = fastconv.conv2d(x, weight)
    assert fastconv.explain(x.shape, weight.shape, dtype=dtype).algorithm == "winograd"
    fastconv.set_float32_precision("highest")
    assert fastconv.get_float32_precision() == "highest"
    plan = fastconv.explain(x.shape, weight.shape, dtype=dtype)
    assert plan.algorithm != "winograd"
    assert_same_bits(fastconv.conv2d(x, weight), fastconv.conv2d(x, weight, algorithm=plan.algorithm))
    assert "highest" in plan.rejected["winograd"]
    for _ in range(2):
        with pytest.raises(ValueError, match=r'set_float32_precision\("highest"\) rules it out'):
            fastconv.conv2d(x, weight, algorithm="winograd")
    with pytest.raises(ValueError, match="highest"):
        fastconv.conv2d_input_grad(fast, weight, x.shape, algorithm="winograd")
    fastconv.set_float32_precision("high")
    assert_same_bits(fastconv.conv2d(x, weight), fast)


@pytest.mark.parametrize("value", ["low", "HIGH", None, 1, ["high"]])
def test_precisions_are_two(value: Any) -> None:
    with pytest.raises(ValueError, match=r'precision must be "high" or "highest"'):
        fastconv.set_float32_precision(value)
    assert fastconv.get_float32_precision() == "high"


@compiled
@pytest.mark.parametrize("tile", [2, 4])
def test_errors_are_small(tile: int) -> None:
    """As measured, with room: 256 channels, the errors relative to the results' standard deviation."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 256, 28, 28)), rng.standard_normal((64, 256, 3, 3))
    exact = fastconv.conv2d(x, weight, padding=1, algorithm="im2col")
    for dtype, eps in ((np.float32, 2**-24), (np.float64, 2**-53)):
        with cut_as(tile):
            shape = shape_of(1, 256, 28, 64)
            y = np.empty((1, 64, 1, 28, 28), dtype)
            WINOGRAD.forward(
                x[:, :, None].astype(dtype), weight[:, :, None].astype(dtype), None, False, y, shape
            )
        error = (y[:, :, 0] - exact) / exact.std()
        assert abs(error).max() < (500 if tile == 4 else 200) * eps
        assert np.sqrt((error**2).mean()) < (60 if tile == 4 else 30) * eps
