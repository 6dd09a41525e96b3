"""Direct convolution of channels-last arrays: its tiles and blocks, and when auto takes it."""

from __future__ import annotations

import sys
import threading
from unittest import mock

import pytest
from harness import fill_forward
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits
from processes import python
from strategies import Conv
from test_bounds import PAGES
from test_conv import check_forward

import fastconv
from fastconv import jit, threads
from fastconv.algorithms import direct_channels, workspace
from fastconv.functional import bound
from fastconv.kernels.direct_channels import NARROW
from fastconv.kernels.simd import LANES

pytestmark = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: its kernel needs the compiler")


def forget() -> None:
    """Drop what was prepared with other sizes of blocks."""
    for cached in (direct_channels.cut, direct_channels.prepare, bound._bind):
        cached.cache_clear()


@given(
    rows=st.sampled_from([1, 2000, 10**6]),
    channels=st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 5, 7, 8, 9, 16, 17, 33, 50, 70])),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 60)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.integers(0, 4),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_agrees_with_reference_in_any_blocks(
    rows: int,
    channels: tuple[int, int],
    stride: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    padding: int,
    dtype: str,
) -> None:
    case = Conv(
        (size[0] + 3, size[1] + 3),
        kernel,
        channels=channels,
        batch=2,
        stride=stride,
        padding=padding,
        kind="ints",
        bias=True,
        relu=padding > 2,
        layout="NHWC",
        dtype=dtype,
    )
    with (
        mock.patch.object(direct_channels, "ROWS_BYTES", rows),
        mock.patch.object(threads, "SERIAL_WORK", 0),
    ):
        forget()
        check_forward("direct", case)
    forget()


@pytest.mark.parametrize("group_out", range(1, 10))
@pytest.mark.parametrize("width", [5, 6, 40])
def test_one_channel_to_few(group_out: int, width: int) -> None:
    """Pixels on the lanes, in rows of odd and even lengths."""
    check_forward(
        "direct", Conv((7, width), (3, 3), channels=(1, group_out), padding=1, bias=True, layout="NHWC")
    )


@pytest.mark.parametrize("channels", [(1, 6), (3, 40)])
def test_same_bits_for_any_number_of_threads(channels: tuple[int, int]) -> None:
    case = Conv((20, 21), (3, 3), channels=channels, batch=3, padding=1, layout="NHWC")
    with fastconv.num_threads(1):
        one = fill_forward("direct", case)
    with mock.patch.object(threads, "SERIAL_WORK", 0):
        for count in range(1, fastconv.get_num_threads() + 1):
            forget()
            with fastconv.num_threads(count):
                assert_same_bits(one, fill_forward("direct", case))
    forget()


def test_what_auto_chooses() -> None:
    def chosen(c: int, h: int, k: int, kernel: int, **more: object) -> fastconv.Plan:
        weight = (kernel, kernel, c, k)
        return fastconv.explain((8, h, h, c), weight, padding=kernel // 2, layout="NHWC", **more)

    few = chosen(1, 28, 8, 3)
    assert few.algorithm == chosen(3, 224, 64, 7, stride=2).algorithm == "direct"
    assert ("transposed" in str(few.details["tile"])) == (LANES[32] >= NARROW)
    assert "as fast" in chosen(64, 28, 64, 3, stride=2).rejected["direct"]
    assert "pointwise" in chosen(3, 28, 64, 1).rejected["direct"]
    assert "forward pass without groups" in chosen(4, 28, 8, 3, op="input_grad").rejected["direct"]


def test_a_thread_may_ask_for_no_scratch_memory_first() -> None:
    addresses: list[int] = []
    thread = threading.Thread(target=lambda: addresses.append(workspace.scratch(0)))
    thread.start()
    thread.join()
    assert len(addresses) == 1


FENCED = """
from fastconv.algorithms import direct_channels
from fastconv import threads

threads.SERIAL_WORK = 0
fences = {}

def scratch(size):
    '''The workspace, in pages of its own.'''
    size = -(-size // 64) * 64
    if (size, at_end) not in fences:
        fences[size, at_end] = fenced(np.full(size, 255, np.uint8), at_end)
    return fences[size, at_end].ctypes.data

direct_channels.scratch = scratch
rng = np.random.default_rng(0)
for number in range(60):
    dtype = ("f4", "f8")[number % 2]
    c, k = (1, rng.integers(1, 10)) if number % 3 else rng.integers(1, 60, 2)
    padding, kernel = rng.integers(0, 5, 2), rng.integers(1, 5, 2)
    stride = rng.integers(1, 3) if number % 4 == 0 else 1
    size = 4 + rng.integers(0, 20), 4 + rng.integers(0, 40)
    x = rng.standard_normal((rng.integers(1, 4), *size, c)).astype(dtype)
    weight = rng.standard_normal((*kernel, c, k)).astype(dtype)
    shape = run.geometry("conv2d", 2, x.shape, weight.shape, int(stride), padding.tolist(), 1, 1, "NHWC")
    y = rng.standard_normal(run.y_shape(shape, 4)).astype(dtype)
    bias = rng.standard_normal(k).astype(dtype)
    direct_channels.ROWS_BYTES = (96 << 10, 1)[number // 5 % 2]
    for at_end in (True, False):
        for count in (1, fastconv.get_num_threads()):
            with fastconv.num_threads(count):
                direct_channels.cut.cache_clear()
                direct_channels.prepare.cache_clear()
                fx, fy = (lift_like_x("", "", fenced(a, at_end), 2, "NHWC") for a in (x, y))
                fw = lift_weight(fenced(weight, at_end), 2, "NHWC")
                ALGORITHMS["direct"].forward(fx, fw, fenced(bias, at_end), False, fy, shape)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages")
def test_stays_in_its_arrays_and_its_workspace() -> None:
    assert python(PAGES + FENCED).strip() == "done"
