"""Convolution and pooling of dask arrays: the values of the functions of NumPy arrays, however x is cut."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within, inner
from strategies import SEEDS, Conv, Pool, convs, pools

import fastconv
from fastconv import reference

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")
lazy = pytest.importorskip("fastconv.dask", reason="dask is not installed")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tasks one after the other, in this thread."""
    with dask.config.set(scheduler="sync"):
        yield


def cut(array: np.ndarray, seed: int) -> Any:
    """The array in chunks of random sizes, some of them empty."""
    rng = np.random.default_rng(seed)
    chunks = []
    for size in array.shape:
        bounds = np.sort(rng.integers(0, size + 1, rng.integers(0, 4)))
        if rng.random() < 0.8:  # mostly none that is empty
            bounds = np.unique(bounds[(bounds > 0) & (bounds < size)])
        chunks.append(tuple(np.diff([0, *bounds, size]).tolist()))
    return da.from_array(array, chunks=tuple(chunks))


def computed(array: Any) -> np.ndarray:
    """The values, after a check that shape, chunks and dtype were known before."""
    result = array.compute()
    assert isinstance(result, np.ndarray)
    assert (result.shape, result.dtype) == (array.shape, array.dtype)
    blocks = array.to_delayed()
    for index in np.ndindex(blocks.shape):
        expected = tuple(chunks[number] for chunks, number in zip(array.chunks, index, strict=True))
        assert blocks[index].compute().shape == expected
    return result


def named(kind: str, case: Conv | Pool, tail: str = "") -> tuple[Any, Any]:
    """A function of dask arrays, and that of NumPy arrays."""
    name = f"{kind}{case.rank}d{tail}"
    return getattr(lazy, name), getattr(fastconv, name)


MODES = st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])


def padding_mode_for(case: Conv, mode: str) -> str:
    """The mode if x can be padded so."""
    pads = case.geometry["pads"]
    most = {"reflect": -1, "circular": 0}.get(mode)
    if most is not None and any(max(pair) > n + most for pair, n in zip(pads, case.size, strict=True)):
        return "zeros"
    return mode


@given(convs(kind="ints"), SEEDS, MODES)
# windows that lie wholly in the padding on either side, where a block has no cell of x
@example(Conv(size=(3,), kernel=(2,), padding=(6,), kind="ints"), 1, "zeros")
# cells that no window reaches, and chunks without a window
@example(Conv(size=(23,), kernel=(1,), stride=5, kind="ints"), 5, "zeros")
@example(Conv(size=(9, 8), kernel=(3, 3), padding=((4, 2), (3, 4)), stride=2, kind="ints"), 3, "reflect")
def test_conv_is_that_of_numpy_arrays(case: Conv, seed: int, mode: str) -> None:
    """Sums of small integers are exact in any order, so that all three gradients and y must be equal."""
    mode = padding_mode_for(case, mode)
    x, weight, grad = case.give(case.x()), case.give_weight(case.weight()), case.give(case.grad())
    facts = {**case.facts, "padding_mode": mode, "algorithm": "im2col"}
    mine, plain = named("conv", case)
    options = {**facts, "activation": "relu" if case.relu else None}
    y = mine(cut(x, seed), weight, case.bias_values(), **options)
    assert_same(computed(y), plain(x, weight, case.bias_values(), **options))

    mine, plain = named("conv", case, "_backward")
    expected = plain(grad, x, weight, **facts)
    found = mine(cut(grad, seed + 1), cut(x, seed), cut(weight, seed), **facts)
    for name in ("x", "weight", "bias"):
        assert_same(computed(getattr(found, name)), getattr(expected, name))

    del facts["padding_mode"]
    if mode == "zeros":
        mine, _ = named("conv", case, "_input_grad")
        assert_same(computed(mine(cut(grad, seed), weight, x.shape, **facts)), expected.x)
        mine, _ = named("conv", case, "_weight_grad")
        assert_same(computed(mine(cut(grad, seed), cut(x, seed), weight.shape, **facts)), expected.weight)


@given(pools(kinds=("gauss", "special")), SEEDS, st.booleans())
def test_max_pool_is_that_of_numpy_arrays(case: Pool, seed: int, is_local: bool) -> None:
    """The very bits, and positions in the whole plane."""
    x, grad = case.give(case.x()), np.rint(case.give(case.grad()))
    mine, plain = named("max_pool", case)
    y, indices = plain(x, return_indices=True, **case.facts)
    assert_same(computed(mine(cut(x, seed), **case.facts)), y)
    lazy_y, lazy_indices = mine(cut(x, seed), return_indices=True, **case.facts)
    assert_same(computed(lazy_y), y)
    assert_same(computed(lazy_indices), indices)

    mine, plain = named("max_pool", case, "_backward")
    facts = case.facts if is_local else {"layout": case.layout}
    grad_x = mine(cut(grad, seed), cut(indices.astype(np.int32), seed + 1), x.shape, **facts)
    assert_same(computed(grad_x), plain(grad, indices, x.shape, layout=case.layout))


@given(pools(kinds=("ints",)), SEEDS, st.booleans(), st.none() | st.integers(1, 9))
# the last window hangs over the end, and is the only one that reaches the last chunk
@example(Pool(size=(7,), kernel=2, ceil_mode=True, kind="ints"), 3, True, None)
@example(Pool(size=(13, 9), kernel=3, stride=4, padding=1, ceil_mode=True, kind="ints"), 9, False, None)
def test_avg_pool_is_that_of_numpy_arrays(
    case: Pool, seed: int, count_padding: bool, divisor: int | None
) -> None:
    """Sums of integers are exact, and so is what is divided by what; gradients add up in another order."""
    x, grad = case.give(case.x()), case.give(case.grad())
    facts = {**case.facts, "count_include_pad": count_padding, "divisor_override": divisor}
    mine, plain = named("avg_pool", case)
    assert_same(computed(mine(cut(x, seed), **facts)), plain(x, **facts))
    mine, plain = named("avg_pool", case, "_backward")
    del facts["kernel_size"]
    args = (x.shape, case.kernel)
    found = case.take(computed(mine(cut(grad, seed), *args, **facts)))
    expected = case.take(plain(grad.astype(np.float64), *args, **facts))
    magnitude = case.take(plain(np.abs(grad).astype(np.float64), *args, **facts))
    assert_within(found, expected, magnitude, int(np.prod(case.geometry["kernel"])))
