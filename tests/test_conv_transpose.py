"""Transposed convolution: against a scatter by hand, and as the adjoint of the convolution."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import oracles
import pytest
from harness import COMPLETE, blocks_of
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within, inner
from strategies import (
    BLOCK_BYTES,
    DTYPES,
    LAYOUTS,
    MEMORY,
    SEEDS,
    Conv,
    explicit_pads,
    paddings,
    per_axis,
    to_layout,
    values,
    weight_to_layout,
)

import fastconv

every_algorithm = pytest.mark.parametrize("name", COMPLETE)


@dataclass(frozen=True)
class Transpose:
    """A transposed convolution; fields as those of `strategies.Conv`."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: tuple[int, int] = (1, 1)
    batch: int | None = 1
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    layout: str = "NCHW"
    dtype: str = "float32"
    kind: str = "gauss"
    seed: int = 0

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "layout": self.layout,
        }

    @property
    def geometry(self) -> dict[str, Any]:
        def each(value: Any) -> tuple[int, ...]:
            return (value,) * self.rank if isinstance(value, int) else value

        stride, dilation = each(self.stride), each(self.dilation)
        return {
            "stride": stride,
            "pads": explicit_pads(self.padding, self.size, self.kernel, stride, dilation),
            "output_padding": each(self.output_padding),
            "dilation": dilation,
            "groups": self.groups,
        }

    def x(self) -> np.ndarray:
        n = 1 if self.batch is None else self.batch
        return values(self.seed, self.kind, self.dtype, (n, self.channels[0], *self.size))

    def weight(self) -> np.ndarray:
        group_out = self.channels[1] // self.groups
        return values(self.seed + 1, self.kind, self.dtype, (self.channels[0], group_out, *self.kernel))

    def bias(self) -> np.ndarray:
        return values(self.seed + 2, self.kind, self.dtype, (self.channels[1],))

    give = Conv.give
    take = Conv.take
    give_weight = Conv.give_weight
    take_weight = Conv.take_weight

    def y(self, name: str = "auto", bias: np.ndarray | None = None) -> np.ndarray:
        """The result, as the function gives it."""
        function = getattr(fastconv, f"conv_transpose{self.rank}d")
        x, weight = self.give(self.x()), self.give_weight(self.weight())
        return function(x, weight, bias, **self.facts, algorithm=name)


@st.composite
def transposes(draw: st.DrawFn, kind: str | None = None, dtype: str | None = None) -> Transpose:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank))
    stride, dilation = draw(per_axis(rank, 3)), draw(per_axis(rank, 3))
    steps = [
        max(pair)
        for pair in zip(
            *(v if isinstance(v, tuple) else (v,) * rank for v in (stride, dilation)), strict=True
        )
    ]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    case = Transpose(
        size=draw(st.tuples(*[st.integers(1, 4)] * rank)),
        kernel=kernel,
        channels=(groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))),
        batch=draw(st.sampled_from([None, 1, 2])),
        stride=stride,
        padding=draw(paddings((3,) * rank).filter(lambda p: p not in ("same", "same_lower"))),
        output_padding=draw(per_axis(rank, min(steps) - 1, least=0)),
        dilation=dilation,
        groups=groups,
        layout=draw(LAYOUTS),
        dtype=dtype or draw(DTYPES),
        kind=kind or draw(st.sampled_from(["gauss", "ints"])),
        seed=draw(SEEDS),
    )
    g = case.geometry
    for n, k, s, d, (before, after), extra in zip(
        case.size, kernel, g["stride"], g["dilation"], g["pads"], g["output_padding"], strict=True
    ):
        assume((n - 1) * s + d * (k - 1) + 1 + extra - before - after >= 1)
    return case


@every_algorithm
@given(case=transposes(), block=BLOCK_BYTES, with_bias=st.booleans())
def test_against_scatter(name: str, case: Transpose, block: int, with_bias: bool) -> None:
    x, weight = case.x(), case.weight()
    expected = oracles.conv_transpose(x, weight, **case.geometry)
    scale = oracles.conv_transpose(np.abs(x), np.abs(weight), **case.geometry)
    bias = case.bias() if with_bias else None
    if bias is not None:
        expected += bias.reshape(-1, *[1] * case.rank)
        scale += np.abs(bias).reshape(-1, *[1] * case.rank)
    with blocks_of(block):
        y = case.take(case.y(name, bias))
    assert y.dtype == case.dtype
    if case.kind == "ints":
        assert_same(y, expected)
    else:
        assert_within(y, expected, scale, weight[:, 0].size)


@every_algorithm
@given(case=transposes(kind="ints", dtype="float64"), block=BLOCK_BYTES)
def test_gradients_are_adjoint(name: str, case: Transpose, block: int) -> None:
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    backward = getattr(fastconv, f"conv_transpose{case.rank}d_backward")
    with blocks_of(block):
        y = case.y(name)
        grad = values(case.seed + 3, "ints", case.dtype, y.shape)
        grads = backward(grad, x, weight, **case.facts, algorithm=name)
    assert inner(y, grad) == inner(grads.x, x) == inner(grads.weight, weight)
    assert_same(grads.bias, case.take(grad).sum(axis=(0, *range(2, 2 + case.rank))))


@every_algorithm
@given(case=transposes(kind="ints", dtype="float64").filter(lambda case: case.output_padding == 0))
def test_is_the_input_gradient_of_the_convolution(name: str, case: Transpose) -> None:
    """<conv(a), x> = <a, conv_transpose(x)>, and the same bits as conv{n}d_input_grad."""
    facts = {k: v for k, v in case.facts.items() if k != "output_padding"}
    x, weight, y = case.give(case.x()), case.give_weight(case.weight()), case.y(name)
    a = values(case.seed + 4, "ints", case.dtype, y.shape)
    conv = getattr(fastconv, f"conv{case.rank}d")
    assert inner(conv(a, weight, **facts, algorithm=name), x) == inner(a, y)
    input_grad = getattr(fastconv, f"conv{case.rank}d_input_grad")
    assert_same_bits(input_grad(x, weight, y.shape, **facts, algorithm=name), y)


@pytest.mark.parametrize(
    ("size", "kernel", "options", "expected"),
    [
        (7, 3, {}, 9),
        (7, 3, {"stride": 2}, 15),
        (7, 3, {"stride": 2, "padding": 1}, 13),
        (7, 3, {"stride": 2, "padding": 1, "output_padding": 1}, 14),
        (7, 4, {"stride": 2, "padding": 1}, 14),
        (4, 2, {"stride": 3}, 11),
        (4, 3, {"dilation": 2}, 8),
        (4, 3, {"dilation": 3, "output_padding": 2}, 12),
        (5, 3, {"padding": ((1, 0),)}, 6),
        (1, 1, {}, 1),
    ],
)
def test_output_size(size: int, kernel: int, options: dict[str, Any], expected: int) -> None:
    y = fastconv.conv_transpose1d(np.ones((2, 3, size)), np.ones((3, 4, kernel)), **options)
    assert y.shape == (2, 4, expected)


def test_by_hand() -> None:
    """Two cells, stride 2: copies of the kernel that overlap in one cell; torch says the same."""
    x, weight = np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]])
    y = fastconv.conv_transpose1d(x, weight, stride=2)
    assert_same(y, np.array([[[1.0, 2.0, 3.0 + 10.0, 20.0, 30.0]]]))
    y = fastconv.conv_transpose1d(x, weight, np.array([0.5]), stride=2, padding=1, output_padding=1)
    assert_same(y, np.array([[[2.5, 13.5, 20.5, 30.5]]]))


@pytest.mark.parametrize("needs", list(np.ndindex(2, 2, 2)))
def test_needs(needs: tuple[int, int, int]) -> None:
    case = Transpose((3, 4), (2, 3), channels=(2, 3))
    args = (case.y(), case.x(), case.weight())
    full = fastconv.conv_transpose2d_backward(*args)
    some = fastconv.conv_transpose2d_backward(*args, needs=needs)
    for need, one, wanted in zip(needs, some, full, strict=True):
        assert (one is not None) == bool(need)
        if need:
            assert_same_bits(one, wanted)


@pytest.mark.parametrize("empty", ["batch", "in", "out"])
@every_algorithm
def test_empty_arrays(name: str, empty: str) -> None:
    n, c, k = 2 * (empty != "batch"), 3 * (empty != "in"), 4 * (empty != "out")
    x, weight, bias = np.ones((n, c, 3, 3)), np.ones((c, k, 2, 2)), np.arange(1.0 * k)
    y = fastconv.conv_transpose2d(x, weight, bias, algorithm=name)
    assert_same(y, np.broadcast_to(bias.reshape(k, 1, 1), (n, k, 4, 4)))
    grads = fastconv.conv_transpose2d_backward(y, x, weight, algorithm=name)
    assert_same(grads.x, np.zeros(x.shape))
    assert_same(grads.weight, np.zeros(weight.shape))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_order(memory: str, layout: str) -> None:
    case = Transpose((3, 4), (2, 3), channels=(4, 6), groups=2, batch=2, stride=2, layout=layout)
    plain = [to_layout(case.x(), layout), weight_to_layout(case.weight(), layout), case.bias()]
    given = [MEMORY[memory](array) for array in plain]
    expected = fastconv.conv_transpose2d(*plain, **case.facts)
    assert_same_bits(fastconv.conv_transpose2d(*given, **case.facts), expected)
    for array, original in zip(given, plain, strict=True):
        assert_same(array, original)


def test_layouts_agree() -> None:
    case = Transpose((3, 4), (2, 3), channels=(4, 6), groups=2, batch=2, stride=2, kind="ints")
    last = replace(case, layout="NHWC")
    assert last.y().shape == (2, 6, 9, 6)
    assert_same(last.take(last.y()), case.y())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_take_the_same_arguments(rank: int) -> None:
    for suffix in ("", "_backward"):
        one = inspect.signature(getattr(fastconv, f"conv_transpose{rank}d{suffix}"))
        assert str(one) == str(inspect.signature(getattr(fastconv, f"conv_transpose2d{suffix}")))
    names = list(inspect.signature(getattr(fastconv, f"conv_transpose{rank}d")).parameters)
    torch = ["x", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"]
    assert names[: len(torch)] == torch
