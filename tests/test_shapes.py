"""Sizes: the one formula, every form of every argument, and what each error says."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Conv, Pool, convs, pools

import fastconv
from fastconv import arguments, shapes
from fastconv.arguments import canonical, padding_pairs, per_axis
from fastconv.functional import run, windows
from fastconv.shapes import output_size

small = st.integers(1, 6)


# --- the formula --------------------------------------------------------------------------------


@given(
    size=st.integers(0, 20),
    kernel=small,
    stride=small,
    dilation=small,
    before=st.integers(0, 9),
    data=st.data(),
)
def test_output_size_counts_windows(
    size: int, kernel: int, stride: int, dilation: int, before: int, data: st.DataObject
) -> None:
    after = data.draw(st.integers(0, 9))
    starts = oracles.window_starts(size, kernel, stride, dilation, (before, after))
    assert output_size(size, kernel, stride, dilation, before, after) == len(starts)


@given(size=st.integers(1, 20), kernel=small, stride=small, dilation=small, data=st.data())
def test_output_size_in_ceil_mode(
    size: int, kernel: int, stride: int, dilation: int, data: st.DataObject
) -> None:
    """With padding smaller than the dilated kernel, as pooling wants it."""
    pad = st.integers(0, dilation * (kernel - 1))
    before, after = data.draw(pad), data.draw(pad)
    starts = oracles.window_starts(size, kernel, stride, dilation, (before, after), ceil_mode=True)
    count = output_size(size, kernel, stride, dilation, before, after, ceil_mode=True)
    assert count == len(starts)
    assert not starts or starts[-1] < size  # none begins in the padding at the end
    plain = output_size(size, kernel, stride, dilation, before, after)
    assert plain <= count <= plain + 1


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "expected"),
    [
        (5, 3, 1, 0, 3),
        (5, 3, 2, 0, 2),
        (5, 3, 1, 1, 5),
        (32, 5, 1, 0, 28),
        (32, 3, 1, 0, 30),
        (6, 3, 1, 0, 4),
        (28, 3, 1, 1, 28),
        (227, 11, 4, 0, 55),
        (224, 7, 2, 3, 112),
        (2, 3, 1, 0, 0),
    ],
)
def test_output_size_by_hand(size: int, kernel: int, stride: int, pad: int, expected: int) -> None:
    assert output_size(size, kernel, stride, 1, pad, pad) == expected


def test_last_window_may_not_begin_in_the_padding() -> None:
    """ceil((3 + 2 - 2) / 2) + 1 = 3 windows at -1, 1 and 3, the last without a cell: 2."""
    assert output_size(3, 2, 2, 1, 1, 1, ceil_mode=True) == 2
    assert output_size(4, 2, 2, 1, 1, 1, ceil_mode=True) == 3


def test_sizes_are_exact_beyond_any_machine_word() -> None:
    assert output_size(2**70, 2**40, 1, 2**30, 0, 0) == 2**70 - 2**30 * (2**40 - 1)
    assert output_size(10**30, 1, 7, 1, 0, 0, ceil_mode=True) == -(-(10**30 - 1) // 7) + 1


@given(case=convs())
def test_conv_shape(case: Conv) -> None:
    """Every form of every argument, lifted to three axes."""
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    shape = run.geometry("conv", case.rank, x.shape, weight.shape, *case.facts.values())
    g, missing = case.geometry, 3 - case.rank
    assert shape.input == (1,) * missing + case.size
    assert shape.kernel == (1,) * missing + case.kernel
    assert shape.output == (1,) * missing + case.out
    assert shape.stride == (1,) * missing + g["stride"]
    assert shape.dilation == (1,) * missing + g["dilation"]
    assert list(zip(shape.pad_before, shape.pad_after, strict=True)) == [(0, 0)] * missing + g["pads"]
    assert (shape.in_channels, shape.out_channels) == case.channels
    assert (shape.rank, shape.layout, shape.groups) == (case.rank, case.layout, case.groups)
    assert shape.batch == x.shape[0] if case.batch is not None else shape.batch == 1
    macs = case.grad().size * case.weight()[0].size
    assert shape.flops == 2 * macs
    assert run.y_shape(shape, x.ndim) == case.give(case.grad()).shape


@given(case=pools())
def test_pool_shape(case: Pool) -> None:
    x = case.give(case.x())
    shape = windows.geometry("pool", case.rank, x.shape, **case.facts)
    assert shape.output == (1,) * (3 - case.rank) + case.out
    assert shape.taps == np.prod(case.geometry["kernel"])
    assert windows.y_shape(shape, x.ndim) == case.give(case.grad()).shape


@given(
    size=st.integers(1, 6),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 7),
    before=st.integers(0, 12),
    after=st.integers(0, 12),
    ceil_mode=st.booleans(),
)
def test_pooling_refuses_just_the_windows_without_a_cell(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int, ceil_mode: bool
) -> None:
    pads = (before, after)
    geometry = ([size], [kernel], [stride], [pads], [dilation], ceil_mode)
    starts = oracles.window_starts(size, kernel, stride, dilation, pads, ceil_mode)
    args = ("pool", 1, (1, 1, size), kernel, stride, (pads,), dilation, ceil_mode, "NCHW")
    smaller = max(pads) <= dilation * (kernel - 1)
    if starts and smaller and oracles.real_cells(*geometry).min() >= 1:
        assert windows.geometry(*args).output == (1, 1, len(starts))
    else:
        with pytest.raises(ValueError, match=r"pool: .*(padding|padded input)"):
            windows.geometry(*args)


# --- padding ------------------------------------------------------------------------------------


@given(size=st.integers(1, 30), kernel=small, stride=small, dilation=small)
def test_same_padding(size: int, kernel: int, stride: int, dilation: int) -> None:
    """ceil(size / stride) windows, with no more padding than that takes, the odd cell at the end."""
    args = ("conv", "same", [size], [kernel], [stride], [dilation])
    ((before, after),) = padding_pairs(*args)
    ((lower_before, lower_after),) = padding_pairs("conv", "same_lower", *args[2:])
    assert (lower_before, lower_after) == (after, before)
    assert before <= after <= before + 1
    assert output_size(size, kernel, stride, dilation, before, after) == -(-size // stride)
    if after:
        assert output_size(size, kernel, stride, dilation, before, after - 1) < -(-size // stride)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (0, ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        ((1, 3), ((1, 1), (3, 3))),
        ([1, 3], ((1, 1), (3, 3))),
        (np.array([1, 3]), ((1, 1), (3, 3))),
        (((0, 1), (2, 3)), ((0, 1), (2, 3))),
        ([[0, 1], [2, 3]], ((0, 1), (2, 3))),
        (np.array([[0, 1], [2, 3]]), ((0, 1), (2, 3))),
        ((1, (2, 3)), ((1, 1), (2, 3))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (0, 1))),
        ("same_lower", ((1, 1), (1, 0))),
        (np.int64(2), ((2, 2), (2, 2))),
    ],
)
def test_forms_of_padding(padding: Any, expected: Any) -> None:
    assert padding_pairs("conv", canonical(padding), (6, 5), (3, 2), (1, 1), (1, 1)) == expected


@pytest.mark.parametrize(
    "padding",
    [
        "full",
        "SAME",
        "",
        (1,),
        (1, 2, 3),
        (1, 1, 1, 1),
        ((1, 2),),
        ((1, 2, 3), (1, 2)),
        ((), ()),
        -1,
        (0, -1),
    ],
)
def test_wrong_padding(padding: Any) -> None:
    with pytest.raises(ValueError, match=r"^conv9d: padding must be .*, got "):
        padding_pairs("conv9d", canonical(padding), (6, 5), (3, 2), (1, 1), (1, 1))


@pytest.mark.parametrize(
    "padding", [1.0, None, True, (1, 1.5), ((1, 2), (1, None)), ("same", "same"), b"same"]
)
def test_padding_of_a_wrong_type(padding: Any) -> None:
    with pytest.raises(TypeError, match=r"^conv9d: padding must be an int, 2 ints, .*, got "):
        padding_pairs("conv9d", canonical(padding), (6, 5), (3, 2), (1, 1), (1, 1))


# --- one argument at a time ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (np.int32(3), 3),
        (np.uint8(3), 3),
        (np.array(3), 3),
        ([1, 2], (1, 2)),
        (np.array([1, 2]), (1, 2)),
        (range(2), (0, 1)),
        ([[1, 2], (3, 4)], ((1, 2), (3, 4))),
        ("same", "same"),
        (None, None),
        (2**100, 2**100),
    ],
)
def test_canonical(value: Any, expected: Any) -> None:
    """Hashable, and of plain ints."""
    result = canonical(value)
    assert result == expected
    assert type(result) is type(expected)
    hash(result)


@pytest.mark.parametrize("value", [1.0, True, np.bool_(True), np.float32(1), 1 + 0j, b"1"])
def test_canonical_tells_what_equals_1_from_1(value: Any) -> None:
    """Else 1.0 and True would find what is kept for 1."""
    assert canonical(value) != 1
    assert canonical([value]) != (1,)
    with pytest.raises(TypeError, match=r"f: stride must be an int or 2 ints, got .*\(\w+\)"):
        per_axis("f", "stride", canonical(value), 2)


def test_what_equals_1_is_refused_after_1_was_accepted() -> None:
    x, weight = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    for value in (1, np.int64(1), (1, 1)):
        assert fastconv.conv2d(x, weight, stride=value, dilation=value).shape == (1, 1, 2, 2)
    for wrong in (1.0, True, np.bool_(True), (1, True), (1.0, 1)):
        for name in ("stride", "dilation", "padding", "groups"):
            with pytest.raises(TypeError, match=f"conv2d: {name} must be an int"):
                fastconv.conv2d(x, weight, **{name: wrong})


@given(value=st.integers(1, 9), rank=st.integers(1, 3))
def test_per_axis(value: int, rank: int) -> None:
    assert per_axis("f", "stride", value, rank) == (value,) * rank
    assert per_axis("f", "stride", (value,) * rank, rank) == (value,) * rank


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "f: stride must be at least 1, got 0"),
        (-3, "f: stride must be at least 1, got -3"),
        ((1, 0), "f: stride must be at least 1, got 0"),
        (2**31, "f: stride must be at most 2147483647, got 2147483648"),
        ((1, 2, 3), r"f: stride must be an int or 2 ints \(one per spatial axis\), got 3: \(1, 2, 3\)"),
        ((), r"f: stride must be an int or 2 ints \(one per spatial axis\), got 0: \(\)"),
    ],
)
def test_per_axis_out_of_range(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        per_axis("f", "stride", value, 2)


# --- x and weight -------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("layout", arguments.LAYOUTS)
@pytest.mark.parametrize("batched", [True, False])
def test_array_shape_and_back(rank: int, layout: str, batched: bool) -> None:
    spatial = (7, 8, 9)[:rank]
    shape = shapes.join_shape(layout, batched, 5, 3, spatial)
    assert len(shape) == rank + 1 + batched
    assert shape[-1 if layout == "NHWC" else batched] == 3
    facts = shapes.array_shape("f", "x", shape, rank, layout)
    assert facts == (batched, 5 if batched else 1, 3, spatial)


@pytest.mark.parametrize(("rank", "ndims"), [(1, (0, 1, 4)), (2, (0, 2, 5)), (3, (3, 6))])
def test_wrong_number_of_axes(rank: int, ndims: tuple[int, ...]) -> None:
    for ndim in ndims:
        with pytest.raises(ValueError, match=f"f: x must have {rank + 2} axes .*, or {rank + 1} without N"):
            shapes.array_shape("f", "x", (2,) * ndim, rank, "NCHW")


@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_lift_and_drop(values: list[int]) -> None:
    lifted = shapes.lift(values, fill=7)
    assert lifted == (7,) * (3 - len(values)) + tuple(values)
    assert shapes.drop(lifted, len(values)) == tuple(values)
