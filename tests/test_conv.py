"""Convolution and its gradients: every registered algorithm against the reference and outside oracles."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import oracles
import pytest
from harness import (
    EVERY,
    GENERAL,
    blocks_of,
    fill_forward,
    fill_input_grad,
    fill_weight_grad,
    forward_magnitude,
    geometry,
    input_grad_magnitude,
    needs,
    reference_forward,
    reference_input_grad,
    reference_weight_grad,
    refused,
    settled,
    skip_refused,
    weight_grad_magnitude,
)
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within, inner
from strategies import BLOCK_BYTES, MEMORY, Conv, convs, from_layout, to_layout, weight_to_layout

import fastconv
from fastconv import threads
from fastconv.jit import DISABLED

every_algorithm = pytest.mark.parametrize("name", EVERY)
general_algorithm = pytest.mark.parametrize("name", GENERAL)

# cases that earlier versions, or other libraries, got wrong
NAMED = {
    "kernel larger than x, all of it in the padding": Conv((1, 2), (3, 4), padding=((4, 5), (6, 4))),
    "padding larger than the kernel": Conv((4, 3), (2, 1), padding=((3, 0), (2, 4)), stride=(2, 3)),
    "stride larger than the kernel": Conv((9, 7), (2, 1), stride=(4, 3), channels=(2, 3)),
    "dilation with stride": Conv((9, 8), (3, 2), stride=2, dilation=(2, 3), padding=1),
    "stride leaves a rest": Conv((6, 8), (3, 3), stride=(2, 4)),
    "width of a group not a multiple of anything": Conv((5, 5), (3, 3), channels=(21, 35), groups=7),
    "depthwise with a multiplier": Conv((5, 6), (3, 3), channels=(4, 12), groups=4, padding="same"),
    "one cell": Conv((1,), (1,)),
    "1x1 kernel": Conv((4, 5), (1, 1), channels=(3, 5), batch=2),
    "1x1 kernel, grouped": Conv((4, 5), (1, 1), channels=(6, 4), batch=2, groups=2),
    "1x1 kernel with stride": Conv((5, 5), (1, 1), channels=(3, 2), stride=2),
    "1x1 kernel with padding": Conv((3, 3), (1, 1), channels=(3, 2), padding=1),
    "even kernel, same": Conv((5, 5), (2, 4), padding="same"),
    "even kernel, same_lower": Conv((5, 5), (2, 4), padding="same_lower"),
    "same with stride": Conv((7, 6), (3, 2), padding="same", stride=(3, 2)),
    "volume": Conv((3, 4, 5), (2, 3, 2), channels=(2, 3), padding=(1, 0, 1), stride=(1, 2, 1)),
    "signal": Conv((11,), (4,), channels=(3, 2), stride=3, dilation=2, padding=((3, 1),)),
    "channels last": Conv((5, 4), (3, 2), channels=(4, 6), groups=2, batch=2, layout="NHWC"),
}
if not DISABLED:  # sizes that blocks, tiles and vectors divide and do not divide; slow in Python
    NAMED |= {
        "more of everything than a tile": Conv((4, 70), (3, 3), channels=(5, 19), padding=1),
        "more cells under the kernel than a block": Conv((7, 9), (3, 3), channels=(70, 9), padding=1),
        "more pixels than a block": Conv((23, 49), (2, 3), channels=(3, 8), batch=2),
        "rows longer than a block": Conv((2, 530), (2, 3), channels=(2, 9), padding=1),
        "tiles across images": Conv((3, 3), (3, 3), channels=(4, 17), batch=11, padding=1),
        "whole vectors": Conv((8, 64), (1, 1), channels=(16, 32), batch=2),
        "long rows with stride 2": Conv((5, 101), (3, 3), channels=(2, 3), stride=2, padding=1),
        "long rows with stride 3": Conv((5, 101), (3, 2), channels=(2, 3), stride=3, dilation=2),
        "1x1 kernel, long rows with stride": Conv((5, 99), (1, 1), channels=(3, 9), stride=2),
        "grouped, long rows": Conv((4, 60), (3, 3), channels=(22, 26), groups=2, padding=(1, 2)),
    }


def function(case: Conv, suffix: str = "") -> Any:
    """conv2d, conv1d_backward and so on."""
    return getattr(fastconv, f"conv{case.rank}d{suffix}")


def check_forward(name: str, case: Conv) -> None:
    if refused(name, case, "forward"):
        return
    expected = reference_forward(case, case.x(), case.weight())
    scale, terms = forward_magnitude(name, case)
    bias = case.bias_values()
    if bias is not None:
        expected += bias.reshape(-1, *[1] * case.rank).astype(np.float64)
        scale += np.abs(bias).reshape(-1, *[1] * case.rank)
    if case.relu:
        expected = np.maximum(expected, 0)
    y = fill_forward(name, case)
    assert y.dtype == case.dtype
    if case.kind == "ints":
        assert_same(settled(name, y), expected)
    else:
        assert_within(y, expected, scale, terms)


def check_input_grad(name: str, case: Conv) -> None:
    if refused(name, case, "input_grad"):
        return
    grad, weight = case.grad(), case.weight()
    grad_x = fill_input_grad(name, case)
    assert grad_x.dtype == case.dtype
    expected = reference_input_grad(case, grad, weight)
    if case.kind == "ints":
        assert_same(settled(name, grad_x), expected)
    else:
        assert_within(grad_x, expected, *input_grad_magnitude(name, case))


def check_weight_grad(name: str, case: Conv) -> None:
    if refused(name, case, "weight_grad"):
        return
    grad, x = case.grad(), case.x()
    grad_weight = fill_weight_grad(name, case)
    assert grad_weight.dtype == case.dtype
    expected = reference_weight_grad(case, grad, x)
    if case.kind == "ints":
        assert_same(settled(name, grad_weight), expected)
    else:
        assert_within(grad_weight, expected, *weight_grad_magnitude(name, case))


def check_gradients(name: str, case: Conv) -> None:
    check_input_grad(name, case)
    check_weight_grad(name, case)


# --- values -------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())
def test_named_case(name: str, case: Conv) -> None:
    check_forward(name, replace(case, bias=True, relu=True, kind="ints"))
    check_forward(name, case)
    check_gradients(name, replace(case, kind="ints"))
    check_gradients(name, replace(case, dtype="float64"))


@every_algorithm
@given(case=convs(), block=BLOCK_BYTES)
def test_forward_agrees_with_reference(name: str, case: Conv, block: int) -> None:
    with blocks_of(block):
        check_forward(name, case)


@every_algorithm
@given(case=convs(), block=BLOCK_BYTES)
def test_gradients_agree_with_reference(name: str, case: Conv, block: int) -> None:
    with blocks_of(block):
        check_gradients(name, case)


@every_algorithm
@given(case=convs(kind="ints", dtype="float64"), block=BLOCK_BYTES)
def test_gradients_are_adjoint(name: str, case: Conv, block: int) -> None:
    """<conv(x, w), g> = <x, input_grad(g, w)> = <w, weight_grad(g, x)>: on integers there is no rounding."""
    case = replace(case, bias=False, relu=False)
    with blocks_of(block):
        forward = inner(fill_forward("im2col", case), case.grad())
        if not refused(name, case, "forward"):
            assert forward == inner(settled(name, fill_forward(name, case)), case.grad())
        if not refused(name, case, "input_grad"):
            assert forward == inner(settled(name, fill_input_grad(name, case)), case.x())
        if not refused(name, case, "weight_grad"):
            assert forward == inner(settled(name, fill_weight_grad(name, case)), case.weight())


@every_algorithm
@given(case=convs(), block=BLOCK_BYTES)
def test_functions_run_the_algorithm(name: str, case: Conv, block: int) -> None:
    """The public functions, given any form of argument, give what the algorithm alone gives."""
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    grad, bias = case.give(case.grad()), case.bias_values()
    options = {**case.facts, "algorithm": name}
    activation = "relu" if case.relu else None
    with blocks_of(block):
        if not refused(name, case, "forward"):
            out = np.full_like(grad, np.nan)
            y = function(case)(x, weight, bias, **options, activation=activation, out=out)
            assert y is out
            assert_same_bits(y, case.give(fill_forward(name, case)))
            assert_same_bits(function(case)(x, weight, bias, **options, activation=activation), y)

        wanted = needs(name, case)
        grads = function(case, "_backward")(grad, x, weight, **options, needs=wanted)
        assert isinstance(grads, fastconv.ConvGrads)
        if wanted[0]:
            grad_x = function(case, "_input_grad")(grad, weight, x.shape, **options)
            assert_same_bits(grad_x, case.give(fill_input_grad(name, case)))
            assert_same_bits(grads.x, grad_x)
        if wanted[1]:
            grad_weight = function(case, "_weight_grad")(grad, x, weight.shape, **options)
            assert_same_bits(grad_weight, case.give_weight(fill_weight_grad(name, case)))
            assert_same_bits(grads.weight, grad_weight)
    axes = (0, *range(2, 2 + case.rank))
    total = case.grad().astype(np.float64).sum(axis=axes)
    assert grads.bias.dtype == case.dtype
    assert_within(
        grads.bias, total, np.abs(case.grad()).astype(np.float64).sum(axis=axes), case.grad()[:, 0].size
    )


@every_algorithm
@given(case=convs().filter(lambda case: case.rank == 2))
def test_conv2d_agrees_with_scipy(name: str, case: Conv) -> None:
    if refused(name, case, "forward"):
        return
    x, weight = case.x(), case.weight()
    y = case.take(function(case)(case.give(x), case.give_weight(weight), **case.facts, algorithm=name))
    assert_within(y, oracles.correlate(x, weight, **case.geometry), *forward_magnitude(name, case))


@pytest.mark.skipif(DISABLED, reason="NUMBA_DISABLE_JIT: 15 million multiplications take Python minutes")
@pytest.mark.parametrize("size", [(40, 37), (8, 200)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_default_blocks_split(size: tuple[int, int], layout: str) -> None:
    """More than 4 MiB of columns: several blocks without shrinking them, in each of the three operations."""
    case = Conv(size, (5, 5), channels=(48, 3), groups=3, batch=2, padding=2, layout=layout, kind="ints")
    columns = 2 * 48 * 25 * size[0] * size[1] * 4
    assert columns > 2 * (4 << 20)
    check_forward("im2col", case)
    check_gradients("im2col", case)


# --- empty --------------------------------------------------------------------------------------


@every_algorithm
@given(case=convs(empty=True))
def test_empty_arrays(name: str, case: Conv) -> None:
    """N = 0 and K = 0 give empty results, C = 0 a sum over nothing; gradients are zero."""
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    grad, bias = case.give(case.grad()), case.bias_values()
    options = {**case.facts, "algorithm": name}
    if not refused(name, case, "forward"):
        y = case.take(function(case)(x, weight, bias, **options, out=np.full_like(grad, np.nan)))
        expected = np.zeros(case.grad().shape)
        if bias is not None:
            expected += bias.reshape(-1, *[1] * case.rank)
        assert_same(y, expected)
    wanted = needs(name, case)
    grads = function(case, "_backward")(grad, x, weight, **options, needs=wanted)
    for need, gradient, like in zip(wanted[:2], grads, (x, weight), strict=False):
        if need:
            assert_same(gradient, np.zeros(like.shape))
    assert grads.bias.shape == (case.channels[1],)


def test_nothing_but_padding() -> None:
    """x without cells, but padding that the kernel fits in: a sum over zeros."""
    x, weight = np.ones((2, 3, 0, 4)), np.ones((5, 3, 2, 3))
    y = fastconv.conv2d(x, weight, np.arange(5.0), padding=1)
    assert_same(y, np.broadcast_to(np.arange(5.0)[:, None, None], (2, 5, 1, 4)))
    grads = fastconv.conv2d_backward(np.ones(y.shape), x, weight, padding=1)
    assert_same(grads.x, np.zeros(x.shape))
    assert_same(grads.weight, np.zeros(weight.shape))
    assert_same(grads.bias, np.full(5, 8.0))


@general_algorithm
@pytest.mark.parametrize("empty", ["batch", "in", "out", "spatial"])
def test_algorithms_never_see_an_empty_array(name: str, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for op in ("forward", "input_grad", "weight_grad"):

        def unreachable(*args: Any, **kwargs: Any) -> None:
            pytest.fail("an algorithm was given an empty array")

        monkeypatch.setattr(type(fastconv.ALGORITHMS[name]), op, unreachable)
    n, c, k, h = 2, 3, 4, 5
    n, c, k, h = n * (empty != "batch"), c * (empty != "in"), k * (empty != "out"), h * (empty != "spatial")
    x, weight = np.ones((n, c, h, 5)), np.ones((k, c, 2, 2))
    case = Conv((h, 5), (2, 2), channels=(c, k), batch=n, padding=1, dtype="float64")
    wanted = needs(name, case)
    if refused(name, case, "forward"):
        return
    y = fastconv.conv2d(x, weight, padding=1, algorithm=name)
    grads = fastconv.conv2d_backward(np.ones(y.shape), x, weight, padding=1, algorithm=name, needs=wanted)
    assert not y.any()
    for need, gradient, like in zip(wanted[:2], grads, (x, weight), strict=False):
        if need:
            assert gradient.shape == like.shape
            assert not gradient.any()


# --- arrays -------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_order(name: str, memory: str, layout: str) -> None:
    """The same bits whatever the memory order, and no input is written to."""
    case = Conv(
        (5, 6),
        (3, 2),
        channels=(4, 6),
        groups=2,
        batch=2,
        padding=1,
        layout=layout,
        bias=True,
        dtype="float64",
    )
    plain = [case.give(case.x()), case.give_weight(case.weight()), case.bias_values()]
    given = [MEMORY[memory](array) for array in plain]
    options = {**case.facts, "algorithm": name}
    if not refused(name, case, "forward"):
        y = fastconv.conv2d(*given, **options)
        assert y.dtype == np.float64
        assert y.dtype.isnative
        assert_same_bits(y, fastconv.conv2d(*plain, **options))

    grad, wanted = case.give(case.grad()), needs(name, case)
    grads = fastconv.conv2d_backward(MEMORY[memory](grad), *given[:2], **options, needs=wanted)
    expected = fastconv.conv2d_backward(grad, *plain[:2], **options, needs=wanted)
    for need, actual, same in zip(wanted, grads, expected, strict=True):
        if need:
            assert_same_bits(actual, same)
    for array, original in zip(given, plain, strict=True):
        assert_same(array, original)


@general_algorithm
def test_results_are_fresh(name: str) -> None:
    """No result is a view of an input, or of scratch memory that the next call overwrites."""
    x, weight = np.ones((1, 1, 3, 3)), np.ones((1, 1, 1, 1))
    case = Conv((3, 3), (1, 1), dtype="float64")
    if refused(name, case, "forward"):
        return
    first = fastconv.conv2d(x, weight, algorithm=name)
    wanted = needs(name, case)
    grads = fastconv.conv2d_backward(first, x, weight, algorithm=name, needs=wanted)
    results = [first, *(g for g in grads if g is not None)]
    kept = [array.copy() for array in results]
    fastconv.conv2d_backward(5 * x, 7 * x, 9 * weight, algorithm=name, needs=wanted)
    fastconv.conv2d(5 * x, 7 * weight, algorithm=name)
    for array, before in zip(results, kept, strict=True):
        assert_same(array, before)
        assert array.flags.writeable
        assert not np.may_share_memory(array, x)
        assert not np.may_share_memory(array, weight)


def test_array_likes_are_taken() -> None:
    """Whatever offers `__array__`."""

    class Wrapped:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.array

    x, weight = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    assert_same(fastconv.conv2d(Wrapped(x), Wrapped(weight)), fastconv.conv2d(x, weight))


@every_algorithm
@given(case=convs(kind="ints"))
def test_layouts_agree(name: str, case: Conv) -> None:
    """Channels-last is channels-first with the axes moved."""
    results: dict[str, list[np.ndarray]] = {"forward": [], "input_grad": [], "weight_grad": []}
    for layout in ("NCHW", "NHWC"):
        one = replace(case, layout=layout)
        x, weight, grad = one.give(one.x()), one.give_weight(one.weight()), one.give(one.grad())
        options = {**one.facts, "algorithm": name}
        if not refused(name, one, "forward"):
            results["forward"].append(one.take(function(one)(x, weight, **options)))
        if not refused(name, one, "input_grad"):
            grad_x = function(one, "_input_grad")(grad, weight, x.shape, **options)
            results["input_grad"].append(one.take(grad_x))
        if not refused(name, one, "weight_grad"):
            grad_weight = function(one, "_weight_grad")(grad, x, weight.shape, **options)
            results["weight_grad"].append(one.take_weight(grad_weight))
    for both in results.values():
        if len(both) == 2:
            assert_same(both[1], both[0])


def test_layout_of_result() -> None:
    x, weight = np.ones((2, 5, 6, 3)), np.ones((2, 3, 3, 4))
    y = fastconv.conv2d(x, weight, layout="NHWC")
    assert y.shape == (2, 4, 4, 4)
    assert y.flags.c_contiguous
    grads = fastconv.conv2d_backward(y, x, weight, layout="NHWC")
    assert (grads.x.shape, grads.weight.shape, grads.bias.shape) == (x.shape, weight.shape, (4,))


# --- out ----------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("memory", ["fortran", "strided", "reversed", "transposed", "misaligned"])
def test_out_in_any_memory(name: str, memory: str) -> None:
    """`out` is filled where it is; the cells between its own stay as they were."""
    case = Conv((5, 6), (3, 3), channels=(3, 4), batch=2, padding=1)
    if refused(name, case, "forward"):
        return
    x, weight = case.x(), case.weight()
    expected = fastconv.conv2d(x, weight, padding=1, algorithm=name)
    out = MEMORY[memory](np.full_like(expected, np.nan))
    y = fastconv.conv2d(x, weight, padding=1, algorithm=name, out=out)
    assert y is out
    assert_same(out, expected)
    if memory == "strided":
        gaps = np.ones(out.base.shape, bool)
        gaps[::2, ::2, ::2, ::2] = False
        assert np.isnan(out.base[gaps]).all()


@every_algorithm
@pytest.mark.parametrize("overlap", ["x", "weight", "bias", "shifted"])
def test_out_overlaps_an_input(name: str, overlap: str) -> None:
    """As if `out` were elsewhere."""
    if refused(name, Conv((5, 5), (3, 3), channels=(2, 2), padding=1, dtype="float64"), "forward"):
        return
    memory = np.arange(200.0) % 7
    x = memory[:50].reshape(1, 2, 5, 5)
    weight, bias = memory[50:86].reshape(2, 2, 3, 3), memory[86:88]
    start = {"x": 0, "weight": 50, "bias": 40, "shifted": 3}[overlap]
    expected = fastconv.conv2d(x.copy(), weight.copy(), bias.copy(), padding=1, algorithm=name)
    out = memory[start : start + 50].reshape(1, 2, 5, 5)
    y = fastconv.conv2d(x, weight, bias, padding=1, algorithm=name, out=out)
    assert y is out
    assert_same(y, expected)


def test_out_keeps_its_class() -> None:
    """What was handed in comes back, a memory map for one."""

    class Mine(np.ndarray):
        pass

    out = np.zeros((1, 1, 2, 2)).view(Mine)
    y = fastconv.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), out=out)
    assert y is out
    assert_same(np.asarray(out), np.full((1, 1, 2, 2), 4.0))


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("needs", list(np.ndindex(2, 2, 2)))
def test_needs(needs: tuple[int, int, int]) -> None:
    case = Conv((5, 5), (3, 3), channels=(2, 3))
    grads = fastconv.conv2d_backward(case.grad(), case.x(), case.weight())
    some = fastconv.conv2d_backward(case.grad(), case.x(), case.weight(), needs=needs)
    for need, one, full in zip(needs, some, grads, strict=True):
        assert (one is not None) == bool(need)
        if need:
            assert_same_bits(one, full)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ranks_take_the_same_arguments(rank: int) -> None:
    """conv1d and conv3d have the parameters of conv2d, in torch's order."""
    for suffix in ("", "_backward", "_input_grad", "_weight_grad"):
        one = inspect.signature(getattr(fastconv, f"conv{rank}d{suffix}"))
        two = inspect.signature(getattr(fastconv, f"conv2d{suffix}"))
        assert str(one) == str(two)
    names = list(inspect.signature(getattr(fastconv, f"conv{rank}d")).parameters)
    assert names[:7] == ["x", "weight", "bias", "stride", "padding", "dilation", "groups"]


# --- padding modes ------------------------------------------------------------------------------

MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@st.composite
def bordered(draw: st.DrawFn) -> tuple[str, Conv]:
    """A padding mode, and a convolution whose x is large enough for it."""
    mode = draw(st.sampled_from(sorted(MODES)))
    case = draw(convs(kind="ints", dtype="float64"))
    # with a stride, "same" may need more padding for more cells
    while any(n <= max(pair) for n, pair in zip(case.size, case.geometry["pads"], strict=True)):
        pads = case.geometry["pads"]
        case = replace(
            case, size=tuple(max(n, max(pair) + 1) for n, pair in zip(case.size, pads, strict=True))
        )
    return mode, replace(case, relu=False, bias=False)


def pad_x(case: Conv, mode: str) -> np.ndarray:
    return np.pad(case.x(), [(0, 0), (0, 0), *case.geometry["pads"]], mode=MODES[mode])


@every_algorithm
@given(modes=bordered())
@example(modes=("reflect", Conv((4, 4), (3, 3), padding=((3, 0), (0, 3)), kind="ints", dtype="float64")))
@example(modes=("circular", Conv((3,), (3,), padding=((3, 3),), kind="ints", dtype="float64")))
@example(modes=("replicate", Conv((1, 2), (3, 3), padding=4, kind="ints", dtype="float64")))
@example(
    modes=("reflect", Conv((6,), (4,), padding="same", stride=2, dilation=3, kind="ints", dtype="float64"))
)
def test_padding_modes(name: str, modes: tuple[str, Conv]) -> None:
    """A convolution of x with np.pad's border; the gradient folds back, which its adjointness proves."""
    mode, case = modes
    options = {**case.facts, "algorithm": name, "padding_mode": mode}
    x, weight, grad = case.give(case.x()), case.give_weight(case.weight()), case.give(case.grad())
    none = {**case.geometry, "pads": [(0, 0)] * case.rank}
    y = oracles.conv(pad_x(case, mode), case.weight(), **none)
    bordered = replace(case, size=pad_x(case, mode).shape[2:], padding=0)  # what is left to the algorithm
    if not refused(name, bordered, "forward"):
        assert_same(settled(name, case.take(function(case)(x, weight, **options))), y)
    wanted = needs(name, bordered)
    grads = function(case, "_backward")(grad, x, weight, **options, needs=wanted)
    if wanted[0]:
        assert inner(y, case.grad()) == inner(settled(name, grads.x), x)
    if wanted[1]:
        assert inner(y, case.grad()) == inner(settled(name, grads.weight), weight)


# --- determinism --------------------------------------------------------------------------------


@every_algorithm
@given(case=convs(kind="gauss"), block=st.sampled_from([4 << 20, 2048]))
def test_same_bits_whatever_the_threads(name: str, case: Conv, block: int) -> None:
    fills = {"forward": fill_forward, "input_grad": fill_input_grad, "weight_grad": fill_weight_grad}

    def run() -> list[np.ndarray]:
        return [fill(name, case) for op, fill in fills.items() if not refused(name, case, op)]

    with blocks_of(block):
        with fastconv.num_threads(1):
            alone = run()
        with mock.patch.object(threads, "SERIAL_WORK", 0):  # small work would run on one thread
            for array, expected in zip(run() + run(), alone + alone, strict=True):
                assert_same_bits(array, expected)


# --- NaN and inf --------------------------------------------------------------------------------


@general_algorithm
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("relu", [False, True])
def test_not_finite_x(name: str, value: float, relu: bool) -> None:
    """What a cell's windows see is all that it touches; relu keeps NaN."""
    x = np.ones((2, 4, 6, 7))
    x[1, 2, 3, 0] = value
    weight = np.ones((6, 2, 3, 2))
    weight[4] = -1
    options = {"padding": 1, "stride": (1, 2), "groups": 2}
    if refused(name, Conv((6, 7), (3, 2), (4, 6), 2, **options, dtype="float64"), "forward"):
        return
    pads, one = [(1, 1), (1, 1)], (1, 1)
    expected = oracles.conv(x, weight, (1, 2), pads, one, 2)
    touched = ~np.isfinite(expected)
    assert touched.any()
    assert not touched.all()
    if relu:
        expected = np.maximum(expected, 0)
    skip_refused(name, x, weight, **options)
    y = fastconv.conv2d(x, weight, **options, activation="relu" if relu else None, algorithm=name)
    assert_same(y, expected)


@general_algorithm
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_weight_and_gradient(name: str, value: float) -> None:
    case = Conv((5, 6), (3, 2), channels=(2, 3), batch=2, dtype="float64")
    if refused(name, case, "forward"):
        return
    x, weight, grad = np.abs(case.x()), np.abs(case.weight()), np.abs(case.grad())
    weight[1, 1, 2, 0] = value
    y = fastconv.conv2d(x, weight, algorithm=name)
    assert_same(np.isnan(y), np.isnan(np.broadcast_to(weight[:, 1, 2, :1, None], y.shape)))
    assert_same(y[:, 1], np.full_like(y[:, 1], value))
    assert np.isfinite(y[:, [0, 2]]).all()

    grad[1, 2, 0, 3] = value
    wanted = needs(name, case)
    grads = fastconv.conv2d_backward(grad, x, np.abs(case.weight()), algorithm=name, needs=wanted)
    if wanted[0]:
        hit = np.zeros(x.shape, bool)
        hit[1, :, 0:3, 3:5] = True
        assert_same(grads.x[hit], np.full(hit.sum(), value))
        assert np.isfinite(grads.x[~hit]).all()
    if wanted[1]:
        assert_same(grads.weight[2], np.full_like(grads.weight[2], value))
        assert np.isfinite(grads.weight[:2]).all()
    assert_same(np.isfinite(grads.bias), np.array([True, True, False]))


@general_algorithm
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_warning_without_an_invalid_operation(name: str, dtype: str) -> None:
    """An infinite weight times positive numbers is infinite, and nothing else happens.

    BLAS multiplies it by the zeros that it pads its panels with, and raises a flag that NumPy reports.
    """
    if refused(name, Conv((5, 6), (3, 2), channels=(2, 3), batch=2, dtype=dtype), "forward"):
        return
    x, weight = np.ones((2, 2, 5, 6), dtype), np.ones((3, 2, 3, 2), dtype)
    weight[1, 1, 2, 0] = np.inf
    y = fastconv.conv2d(x, weight, algorithm=name)
    assert_same(y[:, 1], np.full_like(y[:, 1], np.inf))


# --- this file ----------------------------------------------------------------------------------


@given(case=convs())
def test_cases_are_what_they_say(case: Conv) -> None:
    """The arrays of a case go through both layouts unchanged."""
    assert_same(from_layout(to_layout(case.x(), case.layout), case.layout), case.x())
    assert_same(case.take_weight(weight_to_layout(case.weight(), case.layout)), case.weight())
    assert geometry(case).output[3 - case.rank :] == case.out
