"""PyTorch, where it is installed: the functions of the same names give the same, and refuse the same.

Values and gradients are compared with torch's for the same numbers in float64, within the bounds that hold
for any sum of that many terms; indices are equal. What is meant to differ is in `DIFFERENCES`, and checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import assert_same, assert_within
from strategies import DTYPES, LAYOUTS, SEEDS, Conv, Pool, convs, values

import fastconv

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

# torch says once in a process that "same" is not as fast as other paddings
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

few = settings(max_examples=25)


@pytest.fixture(autouse=True, scope="module")
def no_winograd() -> Iterator[None]:
    """Whose errors are bounded otherwise."""
    before = fastconv.get_float32_precision()
    fastconv.set_float32_precision("highest")
    yield
    fastconv.set_float32_precision(before)


def tensor(array: np.ndarray, grad: bool = False) -> Any:
    """The same numbers in float64."""
    return torch.from_numpy(np.array(array, np.float64)).requires_grad_(grad)


def of(name: str, rank: int) -> Any:
    """A function of torch's."""
    return getattr(F, f"{name}{rank}d")


def ours(name: str, rank: int, suffix: str = "") -> Any:
    return getattr(fastconv, f"{name}{rank}d{suffix}")


def numbers(value: Any) -> np.ndarray:
    return np.asarray(value.detach().numpy())


# --- convolution --------------------------------------------------------------------------------

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def torch_conv(case: Conv, x: Any, weight: Any, mode: str = "zeros") -> Any:
    """With torch's own padding where it has that; pairs by `torch.nn.functional.pad`, as its layers do."""
    stride, dilation = case.geometry["stride"], case.geometry["dilation"]
    padding = case.padding
    ones = stride == (1,) * case.rank
    known = isinstance(padding, int) or padding == "valid" or (padding == "same" and ones)
    known = known or (isinstance(padding, tuple) and not isinstance(padding[0], tuple))
    if mode != "zeros" or not known:
        widths = [n for pair in reversed(case.geometry["pads"]) for n in pair]
        x, padding = F.pad(x, widths, mode=MODES[mode]), 0
    return of("conv", case.rank)(x, weight, None, stride, padding, dilation, case.groups)


def check_conv(case: Conv, mode: str = "zeros") -> None:
    x, weight, grad, bias = case.x(), case.weight(), case.grad(), case.bias_values()
    facts = {**case.facts, "padding_mode": mode}
    given, filters = case.give(x), case.give_weight(weight)
    tx, tw = tensor(x, True), tensor(weight, True)
    y = torch_conv(case, tx, tw, mode)
    y.backward(tensor(grad))
    ax, aw = tensor(np.abs(x), True), tensor(np.abs(weight), True)
    size = torch_conv(case, ax, aw, mode)  # of the terms of each sum
    size.backward(tensor(np.abs(grad)))

    expected, scale = numbers(y), numbers(size)
    if bias is not None:
        column = bias.reshape(-1, *[1] * case.rank).astype(np.float64)
        expected, scale = expected + column, scale + np.abs(column)
    mine = case.take(ours("conv", case.rank)(given, filters, bias, **facts))
    assert_within(mine, expected, scale, weight[0].size)
    grads = ours("conv", case.rank, "_backward")(case.give(grad), given, filters, **facts)
    terms = grad.size + x.size + weight.size
    assert_within(case.take(grads.x), numbers(tx.grad), numbers(ax.grad), terms)
    assert_within(case.take_weight(grads.weight), numbers(tw.grad), numbers(aw.grad), terms)
    axes = (0, *range(2, 2 + case.rank))
    total, most = (array.sum(axis=axes, dtype=np.float64) for array in (grad, np.abs(grad)))
    assert_within(grads.bias, total, most, grad.size)
    if mode == "zeros":
        facts.pop("padding_mode")
        shapes = given.shape, filters.shape
        alone = ours("conv", case.rank, "_input_grad")(case.give(grad), filters, shapes[0], **facts)
        assert_within(case.take(alone), numbers(tx.grad), numbers(ax.grad), terms * 8)
        alone = ours("conv", case.rank, "_weight_grad")(case.give(grad), given, shapes[1], **facts)
        assert_within(case.take_weight(alone), numbers(tw.grad), numbers(aw.grad), terms * 8)


@few
@given(case=convs())
def test_conv(case: Conv) -> None:
    check_conv(case)


@few
@given(case=convs(), mode=st.sampled_from(["reflect", "replicate", "circular"]))
def test_conv_padding_modes(case: Conv, mode: str) -> None:
    """Gradients fold back into the cells that the border repeats."""
    room = {"reflect": 1, "circular": 0, "replicate": -(10**9)}[mode]
    pads = case.geometry["pads"]
    assume(all(max(pair) <= n - room for n, pair in zip(case.size, pads, strict=True)))
    check_conv(case, mode)


@few
@given(case=convs(), extra=st.integers(0, 2))
def test_conv_transpose(case: Conv, extra: int) -> None:
    """The weight (K, C // groups, *kernel) is that of a layer from K to C channels."""
    geometry = case.geometry
    numbers_only = tuple(pair[0] for pair in geometry["pads"])
    reach = zip(geometry["stride"], geometry["dilation"], strict=True)
    output_padding = tuple(min(extra, max(pair) - 1) for pair in reach)
    y, weight = case.grad(), case.weight()  # the input is what the convolution would give
    facts = {**case.facts, "padding": numbers_only, "output_padding": output_padding}
    layout = facts.pop("layout")
    tx, tw = tensor(y, True), tensor(weight, True)
    try:
        expected = of("conv_transpose", case.rank)(tx, tw, **facts)
    except RuntimeError:
        with pytest.raises(ValueError, match="the output would have spatial shape"):
            ours("conv_transpose", case.rank)(case.give(y), case.give_weight(weight), **facts, layout=layout)
        return
    ax, aw = tensor(np.abs(y), True), tensor(np.abs(weight), True)
    size = of("conv_transpose", case.rank)(ax, aw, **facts)
    grad = values(case.seed + 5, "gauss", case.dtype, tuple(expected.shape))
    expected.backward(tensor(grad))
    size.backward(tensor(np.abs(grad)))
    terms = y.size + weight.size + grad.size
    mine = ours("conv_transpose", case.rank)(case.give(y), case.give_weight(weight), **facts, layout=layout)
    assert_within(case.take(mine), numbers(expected), numbers(size), terms)
    grads = ours("conv_transpose", case.rank, "_backward")(
        case.give(grad), case.give(y), case.give_weight(weight), **facts, layout=layout
    )
    assert_within(case.take(grads.x), numbers(tx.grad), numbers(ax.grad), terms)
    assert_within(case.take_weight(grads.weight), numbers(tw.grad), numbers(aw.grad), terms)


# --- pooling ------------------------------------------------------------------------------------


@st.composite
def torch_pools(
    draw: st.DrawFn, dilated: bool, padded: bool = True, ranks: tuple[int, ...] = (1, 2, 2, 3)
) -> Pool:
    """Poolings as torch has them: the same padding on both sides, at most half of the kernel."""
    rank = draw(st.sampled_from(ranks))

    def axes(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    kernel, dilation = axes(1, 4), axes(1, 3) if dilated else (1,) * rank
    # of the kernel, not of the dilated one: some versions of torch allow no more
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel) if padded else (0,) * rank
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    fewest = [max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True)]
    size = tuple(n + more for n, more in zip(fewest, axes(0, 7 if rank < 3 else 3), strict=True))
    case = Pool(
        size=size,
        kernel=kernel,
        channels=draw(st.integers(1, 3)),
        batch=draw(st.sampled_from([None, 0, 1, 2])),
        stride=draw(st.none() | st.just(axes(1, 4))),
        padding=padding,
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        layout=draw(LAYOUTS),
        dtype=draw(DTYPES),
        kind="gauss",
        seed=draw(SEEDS),
    )
    assume(oracles.real_cells(case.size, **case.geometry).min() >= 1)  # see DIFFERENCES
    assume(rank < 3 or all(n >= r for n, r in zip(size, reach, strict=True)))
    return case


def strides(case: Pool) -> Any:
    return case.geometry["stride"]


def check_gradient(case: Pool, x: Any, y: Any, backward: Callable[[np.ndarray], np.ndarray]) -> None:
    """That of torch, for a random gradient of y; poolings' gradients have its sign, but for norms."""
    grad = values(case.seed + 2, "gauss", case.dtype, tuple(y.shape))
    y.backward(tensor(grad), retain_graph=True)
    expected = numbers(x.grad)
    x.grad = None
    y.backward(tensor(np.abs(grad)))
    terms = prod(y.shape[2:]) + 8
    mine = case.take(backward(case.give(grad)))
    assert_within(mine, expected, np.abs(numbers(x.grad)), terms)


@few
@given(case=torch_pools(dilated=True), kind=st.sampled_from(["gauss", "ints"]))
def test_max_pool(case: Pool, kind: str) -> None:
    case = replace(case, kind=kind)
    x = tensor(case.x(), True)
    args = (case.kernel, strides(case), case.padding, case.dilation, case.ceil_mode)
    y, indices = of("max_pool", case.rank)(x, *args, return_indices=True)
    given = case.give(case.x())
    mine, places = ours("max_pool", case.rank)(given, **case.facts, return_indices=True)
    assert_same(case.take(mine), numbers(y))
    assert_same(case.take(places), numbers(indices))

    def backward(grad: np.ndarray) -> np.ndarray:
        return ours("max_pool", case.rank, "_backward")(grad, places, given.shape, layout=case.layout)

    check_gradient(case, x, y, backward)


@few
@given(case=torch_pools(dilated=False), count=st.booleans(), divisor=st.none() | st.integers(1, 5))
def test_avg_pool(case: Pool, count: bool, divisor: int | None) -> None:
    x = tensor(case.x(), True)
    args = [case.kernel, strides(case), case.padding, case.ceil_mode, count]
    if case.rank > 1:  # torch's avg_pool1d has no divisor
        args.append(divisor)
    else:
        divisor = None
    y = of("avg_pool", case.rank)(x, *args)
    scale = of("avg_pool", case.rank)(tensor(np.abs(case.x())), *args)
    facts = {**case.facts, "count_include_pad": count, "divisor_override": divisor}
    given = case.give(case.x())
    mine = ours("avg_pool", case.rank)(given, **facts)
    assert_within(case.take(mine), numbers(y), numbers(scale), prod(case.kernel))
    backward = ours("avg_pool", case.rank, "_backward")
    check_gradient(case, x, y, lambda grad: backward(grad, given.shape, **facts))


@few
@given(
    case=torch_pools(dilated=False, padded=False),
    norm=st.sampled_from([1, 2, 3, 4, 1.5, 0.5, -1, float("inf"), -float("inf")]),
)
def test_lp_pool(case: Pool, norm: float) -> None:
    positive = np.abs(case.x()) + np.asarray(0.1, case.dtype)
    array = case.x() if norm in (2, 4) or np.isinf(norm) else positive
    x = tensor(array, True)
    # torch's lp_pool1d takes no sequences
    args = (case.kernel, strides(case)) if case.rank > 1 else (case.kernel[0], strides(case)[0])
    y = of("lp_pool", case.rank)(x, norm, *args, case.ceil_mode)
    facts = {**case.facts}
    mine = case.take(ours("lp_pool", case.rank)(case.give(array), norm, **facts))
    scale = np.abs(numbers(y)) * max(1, 1 / abs(norm))
    assert_within(mine, numbers(y), scale, prod(case.kernel) + 8)

    grad = values(case.seed + 2, "gauss", case.dtype, tuple(y.shape))
    y.backward(tensor(grad), retain_graph=True)
    expected = numbers(x.grad)
    x.grad = None
    # the terms of a gradient have the sign of grad * x
    y.backward(tensor(np.abs(grad)))
    terms = (prod(case.kernel) + 16) * (1 + (0 if np.isinf(norm) else abs(1 - norm) / abs(norm)))
    found = case.take(
        ours("lp_pool", case.rank, "_backward")(case.give(grad), case.give(array), norm, **facts)
    )
    assert_within(found, expected, np.abs(numbers(x.grad)), int(terms) + prod(case.out))


@st.composite
def adaptive(draw: st.DrawFn) -> tuple[Pool, Any]:
    case = draw(torch_pools(dilated=False, padded=False))
    one = st.integers(1, 7)
    return case, draw(one | st.tuples(*[one] * case.rank))


@few
@given(drawn=adaptive())
def test_adaptive_pools(drawn: tuple[Pool, Any]) -> None:
    case, wanted = drawn
    given = case.give(case.x())
    x = tensor(case.x(), True)
    y = of("adaptive_avg_pool", case.rank)(x, wanted)
    scale = of("adaptive_avg_pool", case.rank)(tensor(np.abs(case.x())), wanted)
    mine = ours("adaptive_avg_pool", case.rank)(given, wanted, layout=case.layout)
    assert_within(case.take(mine), numbers(y), numbers(scale), prod(case.size))
    backward = ours("adaptive_avg_pool", case.rank, "_backward")
    check_gradient(case, x, y, lambda grad: backward(grad, given.shape, layout=case.layout))

    x = tensor(case.x(), True)
    y, indices = of("adaptive_max_pool", case.rank)(x, wanted, return_indices=True)
    mine, places = ours("adaptive_max_pool", case.rank)(given, wanted, True, layout=case.layout)
    assert_same(case.take(mine), numbers(y))
    assert_same(case.take(places), numbers(indices))
    scatter = ours("max_pool", case.rank, "_backward")
    check_gradient(case, x, y, lambda grad: scatter(grad, places, given.shape, layout=case.layout))


@few
@given(case=torch_pools(dilated=False), data=st.data())
def test_max_unpool(case: Pool, data: st.DataObject) -> None:
    stride, kernel, padding = strides(case), case.geometry["kernel"], case.padding
    facts = zip(case.size, kernel, stride, padding, strict=True)
    default = [(n - 1) * s + k - 2 * p for n, k, s, p in facts]
    ranges = zip(default, stride, strict=True)
    size = tuple(data.draw(st.integers(max(1, n - s + 1), max(1, n + s - 1))) for n, s in ranges)
    assume(all(abs(n - d) < s for n, d, s in zip(size, default, stride, strict=True)))
    x = case.x()
    # of several values for one cell torch may keep any: each cell at most once
    assume(prod(size) >= prod(case.size))
    rng = np.random.default_rng(case.seed)
    places = [rng.permutation(prod(size))[: prod(case.size)] for _ in range(x.shape[0] * x.shape[1])]
    indices = np.array(places, np.int64).reshape(x.shape)
    tx = tensor(x, True)
    args = (case.kernel, strides(case), case.padding)
    y = of("max_unpool", case.rank)(tx, torch.from_numpy(indices), *args, output_size=size)
    run = ours("max_unpool", case.rank)
    mine = run(case.give(x), case.give(indices), *args, output_size=size, layout=case.layout)
    assert_same(case.take(mine), numbers(y))
    if min(default) > 0 and prod(default) >= indices.max(initial=0) + 1:
        plain = of("max_unpool", case.rank)(tx, torch.from_numpy(indices), *args)
        mine = run(case.give(x), case.give(indices), *args, layout=case.layout)
        assert_same(case.take(mine), numbers(plain))
    backward = ours("max_unpool", case.rank, "_backward")
    check_gradient(case, tx, y, lambda grad: backward(grad, case.give(indices), layout=case.layout))


@few
@given(case=torch_pools(dilated=True, ranks=(2,)))
def test_unfold_and_fold(case: Pool) -> None:
    """Of images: torch has no others."""
    assume(case.batch != 0)
    x = tensor(case.x(), True)
    args = (case.kernel, case.dilation, case.padding, strides(case))
    columns = F.unfold(x, *args)
    assert_same(fastconv.im2col(case.x(), *args), numbers(columns))
    grad = values(case.seed + 2, "ints", case.dtype, tuple(columns.shape))
    columns.backward(tensor(grad))
    assert_same(fastconv.col2im(grad, case.size, *args), numbers(x.grad))  # the one is the other's gradient
    cols = tensor(grad, True)
    image = F.fold(cols, case.size, *args)
    assert_same(fastconv.col2im(grad, case.size, *args), numbers(image))
    image.backward(x.detach())
    assert_same(fastconv.im2col(case.x(), *args), numbers(cols.grad))


# --- the same calls are refused -----------------------------------------------------------------

REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError)


def refuses(call: Callable[[], Any], errors: tuple[type[Exception], ...]) -> str | None:
    try:
        call()
    except errors as error:
        return f"{type(error).__name__}: {error}"
    return None


class Difference(NamedTuple):
    """A call that one side refuses and the other does not."""

    refuses: str
    mine: Callable[[], Any]
    theirs: Callable[[], Any]


ONE, NONE = np.ones((1, 1, 1, 1)), np.ones((1, 1, 0, 3))
KERNEL, FOUR = np.ones((1, 1, 3, 3)), np.ones((1, 1, 4, 4))

#: What is meant to differ.
DIFFERENCES = {
    # as TensorFlow and ONNX have it: the output is ceil(size / stride)
    "same with a stride": Difference(
        "torch",
        lambda: fastconv.conv2d(FOUR, KERNEL, stride=2, padding="same"),
        lambda: F.conv2d(tensor(FOUR), tensor(KERNEL), stride=2, padding="same"),
    ),
    # a sum over nothing is 0
    "nothing but padding": Difference(
        "torch",
        lambda: fastconv.conv2d(NONE, KERNEL, padding=2),
        lambda: F.conv2d(tensor(NONE), tensor(KERNEL), padding=2),
    ),
    # ONNX has models with more than half; each window still has a cell
    "padding of more than half the kernel": Difference(
        "torch",
        lambda: fastconv.max_pool2d(FOUR, 3, padding=2),
        lambda: F.max_pool2d(tensor(FOUR), 3, padding=2),
    ),
    # torch says -inf, with an index of a cell that is not in the window
    "a window without a cell": Difference(
        "fastconv",
        lambda: fastconv.max_pool2d(ONE, 2, padding=1, dilation=2),
        lambda: F.max_pool2d(tensor(ONE), 2, padding=1, dilation=2),
    ),
    # torch says NaN
    "the mean of a plane without cells": Difference(
        "fastconv",
        lambda: fastconv.adaptive_avg_pool2d(NONE, 1),
        lambda: F.adaptive_avg_pool2d(tensor(NONE), 1),
    ),
    "a result without cells": Difference(
        "fastconv",
        lambda: fastconv.adaptive_max_pool2d(ONE, 0),
        lambda: F.adaptive_max_pool2d(tensor(ONE), 0),
    ),
    # here as in two dimensions: what counts is the padded plane
    "a window larger than x, in three dimensions": Difference(
        "torch",
        lambda: fastconv.avg_pool3d(ONE, 2, padding=1),
        lambda: F.avg_pool3d(tensor(ONE), 2, padding=1),
    ),
    # torch lowers images alone
    "windows of three axes": Difference(
        "torch",
        lambda: fastconv.im2col(FOUR, (1, 1, 1)),
        lambda: F.unfold(tensor(FOUR), (1, 1, 1)),
    ),
    "no channels": Difference(
        "torch",
        lambda: fastconv.max_pool2d(np.ones((1, 0, 4, 4)), 2),
        lambda: F.max_pool2d(torch.ones(1, 0, 4, 4), 2),
    ),
    "indices of any integers": Difference(
        "torch",
        lambda: fastconv.max_unpool2d(ONE, np.zeros(ONE.shape, np.int32), 2),
        lambda: F.max_unpool2d(tensor(ONE), torch.zeros(ONE.shape, dtype=torch.int32), 2),
    ),
    # a sequence has one entry per axis
    "a sequence of one": Difference(
        "fastconv",
        lambda: fastconv.conv2d(FOUR, KERNEL, stride=(1,)),
        lambda: F.conv2d(tensor(FOUR), tensor(KERNEL), stride=(1,)),
    ),
    "a negative divisor": Difference(
        "fastconv",
        lambda: fastconv.avg_pool2d(FOUR, 2, divisor_override=-1),
        lambda: F.avg_pool2d(tensor(FOUR), 2, divisor_override=-1),
    ),
}


@pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_refusals_that_differ(difference: Difference) -> None:
    own = refuses(difference.mine, (ValueError, TypeError))
    other = refuses(difference.theirs, REFUSALS)
    if difference.refuses == "torch":
        assert own is None
        assert other is not None
    else:
        assert own is not None
        assert other is None


def test_values_that_differ() -> None:
    """Of several NaNs here the first wins, as everywhere among equals; in torch the last."""
    x = np.array([[[np.nan, 1, np.nan, 2]]])
    assert fastconv.max_pool1d(x, 4, return_indices=True)[1] == 0
    assert F.max_pool1d(tensor(x), 4, return_indices=True)[1] == 2
    # the gradient of a power average that is 0 is 0; in torch so for powers of 1 and more
    zero = np.zeros((1, 1, 2))
    assert_same(fastconv.lp_pool1d_backward(np.ones((1, 1, 1)), zero, 0.5, 2), zero)
    given = tensor(zero, True)
    F.lp_pool1d(given, 0.5, 2).sum().backward()
    assert np.isnan(numbers(given.grad)).all()


def check_refusal(mine: Callable[[], Any], theirs: Callable[[], Any], *differs: str) -> None:
    """Either both give a result or both refuse; of `DIFFERENCES` that come in, one side may refuse alone."""
    own, other = refuses(mine, (ValueError, TypeError)), refuses(theirs, REFUSALS)
    alone = {DIFFERENCES[name].refuses for name in differs}
    facts = f"fastconv: {own}; torch: {other}"
    if "torch" not in alone:
        assert own is not None or other is None, facts
    if "fastconv" not in alone:
        assert own is None or other is not None, facts


# arguments of which about half are wrong
SMALL = st.integers(-1, 4)
ARGUMENT = SMALL | st.tuples(SMALL, SMALL) | st.tuples(SMALL, SMALL, SMALL)
SIDES = st.integers(0, 6)
RIGHT = st.integers(1, 3)


def pair(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value, value)


@few
@given(
    size=st.tuples(SIDES, SIDES),
    kernel=st.tuples(RIGHT, RIGHT),
    channels=st.tuples(RIGHT, RIGHT),
    stride=ARGUMENT,
    padding=ARGUMENT | st.sampled_from(["same", "valid", "full"]),
    dilation=ARGUMENT,
    groups=SMALL,
)
def test_conv_refuses_the_same(
    size: tuple[int, int],
    kernel: tuple[int, int],
    channels: tuple[int, int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> None:
    x, weight = np.ones((1, 2 * channels[0], *size)), np.ones((channels[1], channels[0], *kernel))
    args = (stride, padding, dilation, groups)
    differs = ["same with a stride"] if padding == "same" and pair(stride) != (1, 1) else []
    differs += ["nothing but padding"] if 0 in size else []
    check_refusal(
        lambda: fastconv.conv2d(x, weight, None, *args),
        lambda: F.conv2d(tensor(x), tensor(weight), None, *args),
        *differs,
    )


@few
@given(
    size=st.tuples(SIDES, SIDES),
    stride=ARGUMENT,
    padding=ARGUMENT,
    output_padding=ARGUMENT,
    groups=SMALL,
    dilation=ARGUMENT,
)
def test_conv_transpose_refuses_the_same(
    size: tuple[int, int], stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any
) -> None:
    x, weight = np.ones((1, 2, *size)), np.ones((2, 3, 3, 2))
    args = (stride, padding, output_padding, groups, dilation)
    check_refusal(
        lambda: fastconv.conv_transpose2d(x, weight, None, *args),
        lambda: F.conv_transpose2d(tensor(x), tensor(weight), None, *args),
    )


@few
@given(
    size=st.tuples(SIDES, SIDES),
    kernel=ARGUMENT,
    stride=st.none() | ARGUMENT,
    padding=ARGUMENT,
    dilation=ARGUMENT,
    ceil_mode=st.booleans(),
)
def test_max_pool_refuses_the_same(
    size: tuple[int, int], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> None:
    x = np.ones((1, 2, *size))
    args = (kernel, stride, padding, dilation, ceil_mode)
    differs = []
    if any(p > 0 for p in pair(padding)):
        differs = ["padding of more than half the kernel", "a window without a cell"]
    check_refusal(
        lambda: fastconv.max_pool2d(x, *args),
        lambda: F.max_pool2d(tensor(x), *args),
        *differs,
    )


@few
@given(
    size=st.tuples(SIDES, SIDES),
    kernel=ARGUMENT,
    stride=st.none() | ARGUMENT,
    padding=ARGUMENT,
    divisor=st.none() | st.integers(0, 2),
)
def test_avg_pool_refuses_the_same(
    size: tuple[int, int], kernel: Any, stride: Any, padding: Any, divisor: Any
) -> None:
    x = np.ones((1, 2, *size))
    args = (kernel, stride, padding, False, True, divisor)
    differs = ["padding of more than half the kernel"] if any(p > 0 for p in pair(padding)) else []
    check_refusal(
        lambda: fastconv.avg_pool2d(x, *args),
        lambda: F.avg_pool2d(tensor(x), *args),
        *differs,
    )
    check_refusal(
        lambda: fastconv.lp_pool2d(x, 2, kernel, stride),
        lambda: F.lp_pool2d(tensor(x), 2, kernel, stride),
    )


@few
@given(size=st.tuples(SIDES, SIDES), output=ARGUMENT | st.tuples(st.none(), SMALL))
def test_adaptive_pools_refuse_the_same(size: tuple[int, int], output: Any) -> None:
    x = np.ones((1, 2, *size))
    differs = ["the mean of a plane without cells"] if 0 in size else []
    differs += ["a result without cells"] if 0 in pair(output) else []
    for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        check_refusal(
            lambda name=name: getattr(fastconv, name)(x, output),
            lambda name=name: getattr(F, name)(tensor(x), output),
            *differs,
        )


@few
@given(
    size=st.tuples(SIDES, SIDES),
    kernel=ARGUMENT,
    stride=st.none() | ARGUMENT,
    padding=ARGUMENT,
    output=st.none() | st.tuples(SIDES, SIDES) | st.just((1, 2, 4, 4)),
    place=st.integers(-1, 3),
)
def test_max_unpool_refuses_the_same(
    size: tuple[int, int], kernel: Any, stride: Any, padding: Any, output: Any, place: int
) -> None:
    x = np.ones((1, 2, *size))
    indices = np.full(x.shape, place)
    args = (kernel, stride, padding, output)
    check_refusal(
        lambda: fastconv.max_unpool2d(x, indices, *args),
        lambda: F.max_unpool2d(tensor(x), torch.from_numpy(indices), *args),
        "a result without cells",
    )


@few
@given(size=st.tuples(SIDES, SIDES), kernel=ARGUMENT, dilation=ARGUMENT, padding=ARGUMENT, stride=ARGUMENT)
def test_unfold_and_fold_refuse_the_same(
    size: tuple[int, int], kernel: Any, dilation: Any, padding: Any, stride: Any
) -> None:
    x, columns = np.ones((1, 2, *size)), np.ones((1, 4, 6))
    args = (kernel, dilation, padding, stride)
    differs = ["nothing but padding"] if 0 in size else []
    differs += ["windows of three axes"] if len(pair(kernel)) == 3 else []
    check_refusal(lambda: fastconv.im2col(x, *args), lambda: F.unfold(tensor(x), *args), *differs)
    check_refusal(
        lambda: fastconv.col2im(columns, size, *args), lambda: F.fold(tensor(columns), size, *args), *differs
    )
