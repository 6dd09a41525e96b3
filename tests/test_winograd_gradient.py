"""What is particular to the weight gradient by Winograd's minimal filtering: transforms, blocks, segments."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any
from unittest import mock

import numpy as np
import pytest
from harness import fill_weight_grad, reference_weight_grad, settled, weight_grad_magnitude
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within
from processes import python
from strategies import Conv
from test_bounds import PAGES
from test_winograd import LAYERS, NAMED, cases, times

import fastconv
from fastconv import jit, threads
from fastconv.algorithms import winograd_gradient
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_points import POINTS, TAPS, Root2, matrices
from fastconv.shapes import conv_shape

compiled = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: Winograd needs the compiler")
LAYOUTS = ["NCHW", "NHWC"]


@pytest.mark.parametrize("tile", POINTS)
def test_the_identity_holds_exactly(tile: int) -> None:
    """G' [(A e) * (B' d)] is the correlation of d with e, for every d and e of units, and so for all."""
    a, g, b = matrices(POINTS[tile], tile)
    outer = [list(column) for column in zip(*a, strict=True)]
    back = [list(column) for column in zip(*g, strict=True)]
    for output in range(tile):
        for place in range(tile + TAPS - 1):
            gradients = times(outer, [int(i == output) for i in range(tile)])
            inputs = times(b, [int(i == place) for i in range(tile + TAPS - 1)])
            taps = times(back, [e * d for e, d in zip(gradients, inputs, strict=True)])
            assert [Root2() + tap for tap in taps] == [Root2(int(place - output == i)) for i in range(TAPS)]


@contextmanager
def cut_as(**limits: int) -> Iterator[None]:
    """Blocks of those sizes."""

    def forget() -> None:
        winograd_gradient.cut.cache_clear()
        winograd_gradient.prepare.cache_clear()

    forget()
    with (
        mock.patch.multiple(winograd_gradient, **{"MOST_SEGMENTS": 16, **limits}),
        mock.patch.object(threads, "SERIAL_WORK", 0),  # small work would run on one thread
    ):
        yield
    forget()


#: Segments of the tiles; one chunk for all tasks; many chunks, whose sums wait; and those in several passes.
WAYS = {
    "segments": {"SEGMENT_BYTES": 1 << 30, "SUMS_BYTES": 1 << 30, "CHUNK_BYTES": 1},
    "one chunk": {"SEGMENT_BYTES": 0},
    "chunks": {"SEGMENT_BYTES": 0, "SHARED_BYTES": 1},
    "passes": {"SEGMENT_BYTES": 0, "SHARED_BYTES": 1, "WAITING_BYTES": 1, "UNIT_BYTES": 1},
}
BLOCKS = st.fixed_dictionaries(
    {
        "UNIT_BYTES": st.sampled_from([1, 10**5]),
        "SEGMENT_BYTES": st.sampled_from([0, 10**9]),
        "CHUNK_BYTES": st.sampled_from([1, 10**5]),
        "MOST_SEGMENTS": st.sampled_from([1, 4]),
        "SHARED_BYTES": st.sampled_from([1, 10**6]),
        "WAITING_BYTES": st.sampled_from([1, 10**6]),
    }
)


def in_steps_of_one(case: Conv, layout: str) -> Conv:
    return replace(case, stride=1, layout=layout)


def check(case: Conv) -> None:
    grad, x = case.grad(), case.x()
    grad_weight = fill_weight_grad("winograd", case)
    expected = reference_weight_grad(case, grad, x)
    if case.kind == "ints":
        assert_same(settled("winograd", grad_weight), expected)
    elif case.rank == 2:
        assert_within(grad_weight, expected, *weight_grad_magnitude("winograd", case))


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("limits", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())
def test_named_case(case: Conv, limits: dict[str, int], layout: str) -> None:
    case = in_steps_of_one(case, layout)
    with cut_as(**limits):
        check(case)
        check(replace(case, dtype="float64"))
        with fastconv.num_threads(1):
            check(replace(case, kind="ints"))


@compiled
@given(case=cases(), layout=st.sampled_from(LAYOUTS), blocks=BLOCKS)
def test_agrees_with_reference(case: Conv, layout: str, blocks: dict[str, int]) -> None:
    with cut_as(**blocks):
        check(in_steps_of_one(case, layout))


@compiled
@given(case=cases(), layout=st.sampled_from(LAYOUTS), blocks=BLOCKS)
@example(Conv((14, 14), (3, 3), channels=(64, 64), padding=1), "NCHW", WAYS["passes"])
@example(Conv((60, 60), (3, 3), channels=(20, 17), padding=1), "NHWC", WAYS["segments"])
def test_same_bits_whatever_the_threads(case: Conv, layout: str, blocks: dict[str, int]) -> None:
    case = in_steps_of_one(case, layout)
    with cut_as(**blocks):
        with fastconv.num_threads(1):
            alone = fill_weight_grad("winograd", case)
        assert_same_bits(fill_weight_grad("winograd", case), alone)


@compiled
def test_not_finite_numbers_stay_in_their_channels() -> None:
    """Where the definition is not finite, neither is this, nor need be the other taps of those channels."""
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, 3, 9, 9)), rng.standard_normal((2, 4, 9, 9))
    x[1, 2, 4, 4], grad[0, 1, 0, 0] = np.nan, np.inf
    found, expected = (
        fastconv.conv2d_weight_grad(grad, x, (4, 3, 3, 3), padding=1, algorithm=name)
        for name in ("winograd", "naive")
    )
    lost = ~np.isfinite(expected)
    assert (~np.isfinite(found))[lost].all()
    kept = ~lost.any(axis=(2, 3))
    assert kept.sum() == 6
    np.testing.assert_allclose(found[kept], expected[kept])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", [*LAYERS, (32, 512, 28, 512), (8, 1024, 14, 1024)])
def test_workspace_is_bounded(layer: tuple[int, ...], layout: str, dtype: str) -> None:
    """Whatever the number of images: inputs and gradients of a chunk, and sums."""
    n, c, h, k = layer
    x, weight = ((n, c, h, h), (k, c, 3, 3)) if layout == "NCHW" else ((n, h, h, c), (3, 3, c, k))
    shape = conv_shape("conv2d", 2, x, weight, 1, 1, 1, 1, layout)
    assert winograd_gradient.prepare(shape, np.dtype(dtype), 2).workspace_bytes <= 64 << 20


FENCED = """
from fastconv.algorithms import winograd_gradient
from fastconv import threads

threads.SERIAL_WORK = 0
fences = {}

def scratch(size):
    '''The workspace, in pages of its own.'''
    size = -(-size // 64) * 64
    if (size, at_end) not in fences:
        fences[size, at_end] = fenced(np.full(size, 255, np.uint8), at_end)
    return fences[size, at_end].ctypes.data

winograd_gradient.scratch = scratch
rng = np.random.default_rng(0)
for number in range(60):
    dtype, layout = ("f4", "f8")[number % 2], ("NCHW", "NHWC")[number // 2 % 2]
    winograd_gradient.SEGMENT_BYTES = (0, 1 << 30)[number // 4 % 2]
    winograd_gradient.SHARED_BYTES = 10 ** int(rng.integers(3, 7))
    winograd_gradient.CHUNK_BYTES = 10 ** int(rng.integers(3, 6))
    winograd_gradient.UNIT_BYTES = 10 ** int(rng.integers(3, 6))
    groups = int(rng.integers(1, 3))
    c, k = groups * int(rng.integers(1, 40)), groups * int(rng.integers(1, 60))
    padding = rng.integers(0, 5, 2).tolist()
    size = 3 + int(rng.integers(0, 20)), 3 + int(rng.integers(0, 90))
    n = int(rng.integers(1, 4))
    x_shape, weight_shape = (n, c, *size), (k, c // groups, 3, 3)
    if layout == "NHWC":
        x_shape, weight_shape = (n, *size, c), (3, 3, c // groups, k)
    shape = run.geometry("conv2d", 2, x_shape, weight_shape, 1, padding, 1, groups, layout)
    x = rng.standard_normal(x_shape).astype(dtype)
    grad = rng.standard_normal(run.y_shape(shape, 4)).astype(dtype)
    for at_end in (True, False):
        for count in (1, fastconv.get_num_threads()):
            with fastconv.num_threads(count):
                winograd_gradient.cut.cache_clear()
                winograd_gradient.prepare.cache_clear()
                fx, fg = (lift_like_x("", "", fenced(a, at_end), 2, layout) for a in (x, grad))
                out = lift_weight(fenced(np.zeros(weight_shape, dtype), at_end), 2, layout)
                ALGORITHMS["winograd"].weight_grad(fg, fx, out, shape)
print("done")
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages")
def test_stays_in_its_arrays_and_its_workspace() -> None:
    assert python(PAGES + FENCED).strip() == "done"


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_auto_chooses(layout: str) -> None:
    def plan(n: int, c: int, h: int, k: int, **more: Any) -> fastconv.Plan:
        groups = more.get("groups", 1)
        x, weight = (n, c, h, h), (k, c // groups, 3, 3)
        if layout == "NHWC":
            x, weight = (n, h, h, c), (3, 3, c // groups, k)
        return fastconv.explain(x, weight, padding=1, layout=layout, op="weight_grad", **more)

    for layer in LAYERS:
        assert plan(*layer).algorithm == "winograd"
    assert "segments" in str(plan(4, 64, 56, 64).details["tasks"])
    assert "share 1 chunks" in str(plan(4, 512, 7, 512).details["tasks"])
    assert "do not pay" in plan(32, 3, 56, 64).rejected["winograd"]
    assert "operations" in plan(1, 12, 12, 12).rejected["winograd"]
    assert "fit" in plan(16, 128, 2, 128).rejected["winograd"]
    groups = 4
    for vectors, algorithm in ((1, "gemm"), (2, "winograd")):  # of a group's channels
        channels = groups * vectors * LANES[32]
        chosen = plan(8, channels, 28, channels, groups=groups)
        if channels >= 12 * groups:
            assert chosen.algorithm == algorithm
            assert algorithm == "winograd" or "lanes" in chosen.rejected["winograd"]
    try:
        fastconv.set_float32_precision("highest")
        assert "highest" in plan(*LAYERS[0]).rejected["winograd"]
    finally:
        fastconv.set_float32_precision("high")


def test_pieces_cover_every_tile() -> None:
    """Equal but for one tile, none of more than there is room for."""
    for width in chain(range(1, 70), [224, 1000]):
        shape = conv_shape("conv2d", 2, (1, 8, 9, width + 2), (8, 8, 3, 3), 1, (1, 0), 1, 1, "NCHW")
        blocks = winograd_gradient.cut(shape, 4)
        rows, _, tiles = winograd_gradient.grid(shape)
        ends = [part * tiles // blocks.row_pieces for part in range(blocks.row_pieces + 1)]
        sizes = np.diff(ends)
        assert (rows, sizes.sum()) == (3, -(-width // winograd_gradient.TILE))
        assert 1 <= sizes.min() >= sizes.max() - 1
        assert sizes.max() <= winograd_gradient.PIECE
        assert blocks.chunk_pieces * sizes.max() <= blocks.chunk_tiles
