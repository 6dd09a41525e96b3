"""Scratch memory: a fixed amount, however large the arrays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import Conv, convs

import fastconv
from fastconv.algorithms import OPERATIONS, im2col, workspace
from fastconv.functional import run
from fastconv.jit import DISABLED

#: Small objects: plans, records, views.
SLACK = 1 << 20

not_interpreted = pytest.mark.skipif(DISABLED, reason="NUMBA_DISABLE_JIT: GFLOPs in Python take hours")


def peak(function: Callable[..., Any], *args: Any, **options: Any) -> int:
    """Most bytes that a call holds at once beyond what was there, its result included."""
    workspace._local.buffer = None  # what an earlier call needed counts as well
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = function(*args, **options)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.size
    return most - before


@pytest.fixture(scope="module")
def compiled() -> None:
    """A first call of everything."""
    case = Conv((4, 4), (3, 3))
    fastconv.conv2d_backward(fastconv.conv2d(case.x(), case.weight()), case.x(), case.weight())


def most_and_output(op: str, x_shape: Any, weight_shape: Any, y_shape: Any, layout: str) -> tuple[int, int]:
    """Peak memory of an operation on float32 arrays of ones, and the bytes of its result."""
    shapes = {"forward": y_shape, "input_grad": x_shape, "weight_grad": weight_shape}
    x, weight, grad = (
        np.ones(s, np.float32) if s != shapes[op] else s for s in (x_shape, weight_shape, y_shape)
    )
    options = {"padding": 1, "layout": layout, "algorithm": "im2col"}
    if op == "forward":
        most = peak(fastconv.conv2d, x, weight, **options)
    elif op == "input_grad":
        most = peak(fastconv.conv2d_input_grad, grad, weight, x, **options)
    else:
        most = peak(fastconv.conv2d_weight_grad, grad, x, weight, **options)
    return most, 4 * prod(shapes[op])


@not_interpreted
@pytest.mark.parametrize(("op", "batch"), [("forward", 64), ("input_grad", 16), ("weight_grad", 16)])
def test_large_batch(op: str, batch: int, compiled: None) -> None:
    """x (64, 64, 112, 112) of float32 has 206 MB, and its lowered matrix would have 1.8 GB."""
    shapes = (batch, 64, 112, 112), (8, 64, 3, 3), (batch, 8, 112, 112)
    most, output = most_and_output(op, *shapes, "NCHW")
    assert output < most <= output + im2col.WORKSPACE_BYTES + SLACK


@not_interpreted
@pytest.mark.parametrize("op", OPERATIONS)
def test_large_weight(op: str, compiled: None) -> None:
    """1024 to 512 channels, 3 x 3: 19 MB of weight."""
    shapes = (1, 1024, 4, 4), (512, 1024, 3, 3), (1, 512, 4, 4)
    most, output = most_and_output(op, *shapes, "NCHW")
    assert output < most <= output + im2col.WORKSPACE_BYTES + SLACK


@not_interpreted
@pytest.mark.parametrize("op", OPERATIONS)
def test_large_weight_channels_last(op: str, compiled: None) -> None:
    """The weight is copied once, into the order of the rows."""
    shapes = (1, 4, 4, 1024), (3, 3, 1024, 512), (1, 4, 4, 512)
    most, output = most_and_output(op, *shapes, "NHWC")
    assert output < most <= output + im2col.WORKSPACE_BYTES + 4 * prod(shapes[1]) + SLACK


def test_what_the_workspace_is_stated_to_be() -> None:
    assert im2col.BLOCK_BYTES == 4 << 20
    assert im2col.WORKSPACE_BYTES == 8 << 20
    assert "4 MiB" in im2col.Im2col.summary


sides = st.integers(1, 5000)


@given(
    batch=st.integers(1, 300),
    groups=st.integers(1, 300),
    group_in=sides,
    group_out=sides,
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    kernel=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    padding=st.integers(0, 40),
    op=st.sampled_from(OPERATIONS),
    dtype=st.sampled_from(["float32", "float64"]),
)
@example(1, 1, 2048, 20000, (12, 12), (3, 3), 1, "forward", "float32")
@example(1, 1, 2048, 20000, (12, 12), (3, 3), 1, "weight_grad", "float64")
@example(256, 1, 1, 1, (300, 300), (30, 30), 0, "weight_grad", "float64")
def test_workspace_is_bounded(
    batch: int,
    groups: int,
    group_in: int,
    group_out: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    padding: int,
    op: str,
    dtype: str,
) -> None:
    kernel = tuple(min(k, n + 2 * padding) for k, n in zip(kernel, size, strict=True))
    shape = run.geometry(
        "test",
        2,
        (batch, groups * group_in, *size),
        (groups * group_out, group_in, *kernel),
        1,
        padding,
        1,
        groups,
        "NCHW",
    )
    workspace = fastconv.ALGORITHMS["im2col"].workspace(shape, np.dtype(dtype), op)
    assert 0 <= workspace <= im2col.WORKSPACE_BYTES


@given(case=convs())
def test_workspace_is_what_is_used(case: Conv) -> None:
    """A call asks for no more scratch memory than its plan says, rounded up to cache lines."""
    asked: list[int] = []
    real = im2col.workspace

    def record(dtype: np.dtype, *shapes: Any) -> list[np.ndarray]:
        asked.append(sum(int(np.prod(shape)) * dtype.itemsize for shape in shapes))
        return real(dtype, *shapes)

    x, weight = case.give(case.x()), case.give_weight(case.weight())
    grad = case.give(case.grad())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(im2col, "workspace", record)
        for op in OPERATIONS:
            asked.clear()
            shape = fastconv.explain(x.shape, weight.shape, **case.facts, dtype=case.dtype, op=op).shape
            planned = fastconv.ALGORITHMS["im2col"].workspace(shape, np.dtype(case.dtype), op)
            suffix = "" if op == "forward" else f"_{op}"
            args = {
                "forward": (x, weight),
                "input_grad": (grad, weight, x.shape),
                "weight_grad": (grad, x, weight.shape),
            }[op]
            getattr(fastconv, f"conv{case.rank}d{suffix}")(*args, **case.facts, algorithm="im2col")
            assert sum(asked) <= planned


def test_scratch_memory_is_kept_and_shared() -> None:
    """One buffer, as large as its largest use, in each thread."""
    real = np.dtype(np.float32)
    workspace._local.buffer, workspace._local.size = None, 0
    (first,) = workspace.workspace(real, (1000,))
    buffer = workspace._local.buffer
    second, third = workspace.workspace(real, (10, 5), (3,))
    assert workspace._local.buffer is buffer
    assert np.shares_memory(first, second)
    assert not np.shares_memory(second, third)
    assert (second.shape, third.shape) == ((10, 5), (3,))
    (larger,) = workspace.workspace(np.dtype(np.float64), (5000,))
    assert workspace._local.buffer is not buffer
    assert larger.flags.aligned
    for array in (first, second, third, larger):
        assert array.__array_interface__["data"][0] % 64 == 0
