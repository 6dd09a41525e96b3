"""Convolution and pooling of dask arrays: the values of the functions of NumPy arrays, however x is cut."""

from __future__ import annotations

import math
import multiprocessing
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, assert_within
from processes import python
from strategies import SEEDS, Conv, Pool, convs, pools

import fastconv
from fastconv import functional

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")
lazy = pytest.importorskip("fastconv.dask", reason="dask is not installed")
shares = pytest.importorskip("fastconv.dask.shares", reason="dask is not installed")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tasks one after the other, in this thread."""
    with dask.config.set(scheduler="sync"):
        yield


def cut(array: np.ndarray, seed: int) -> Any:
    """The array in chunks of random sizes, some of them empty."""
    rng = np.random.default_rng(seed)
    chunks: dict[int, tuple[int, ...]] = {}
    for axis in rng.permutation(array.ndim).tolist():
        size = array.shape[axis]
        few = math.prod(map(len, chunks.values())) < 10
        bounds = np.sort(rng.integers(0, size + 1, rng.integers(0, 4 if few else 1)))
        if rng.random() < 0.8:  # mostly none that is empty
            bounds = np.unique(bounds[(bounds > 0) & (bounds < size)])
        chunks[axis] = tuple(np.diff([0, *bounds, size]).tolist())
    return da.from_array(array, chunks=tuple(chunks[axis] for axis in range(array.ndim)))


def computed(array: Any) -> np.ndarray:
    """The values, after a check that shape, chunks and dtype were known before."""
    result = array.compute()
    assert isinstance(result, np.ndarray)
    assert (result.shape, result.dtype) == (array.shape, array.dtype)
    delayed = array.to_delayed()
    blocks = dask.compute(*delayed.ravel())
    for block, index in zip(blocks, np.ndindex(delayed.shape), strict=True):
        assert block.shape == tuple(along[i] for along, i in zip(array.chunks, index, strict=True))
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


@settings(max_examples=10)
@given(convs(kind="gauss"), SEEDS)
def test_windows_are_the_same_to_the_last_bit(case: Conv, seed: int) -> None:
    """The reference adds up each window in one order, whatever is around it: so must the blocks."""
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    mine, plain = named("conv", case)
    facts = {**case.facts, "algorithm": "naive"}
    assert_same_bits(computed(mine(cut(x, seed), weight, **facts)), plain(x, weight, **facts))


@settings(max_examples=10)
@given(convs(kind="ints", empty=True), SEEDS)
def test_empty_arrays(case: Conv, seed: int) -> None:
    x, weight, grad = case.give(case.x()), case.give_weight(case.weight()), case.give(case.grad())
    mine, plain = named("conv", case)
    assert_same(computed(mine(cut(x, seed), weight, **case.facts)), plain(x, weight, **case.facts))
    mine, plain = named("conv", case, "_backward")
    found = mine(cut(grad, seed), cut(x, seed), weight, **case.facts)
    for mine_one, plain_one in zip(found, plain(grad, x, weight, **case.facts), strict=True):
        assert_same(computed(mine_one), plain_one)


# --- laziness ---------------------------------------------------------------------------------------


def image(shape: tuple[int, ...] = (2, 3, 16, 12), chunks: Any = (1, 3, 5, 4), dtype: str = "f4") -> Any:
    return da.from_array(np.random.default_rng(0).standard_normal(shape).astype(dtype), chunks=chunks)


def weights(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("computed")

    x = image().map_blocks(fail, meta=np.empty((0, 0, 0, 0), "f4"))
    y = lazy.conv2d(x, weights(4, 3, 3, 3), weights(4), padding="same", stride=2)
    assert (y.shape, y.dtype) == ((2, 4, 8, 6), np.float32)
    pooled, indices = lazy.max_pool2d(y, 2, return_indices=True)
    assert (pooled.shape, indices.dtype) == ((2, 4, 4, 3), np.int64)
    back = lazy.max_pool2d_backward(pooled, indices, y.shape, kernel_size=2)
    grads = lazy.conv2d_backward(back, x, weights(4, 3, 3, 3), padding="same", stride=2)
    assert [grad.shape for grad in grads] == [x.shape, (4, 3, 3, 3), (4,)]
    assert type(grads) is lazy.ConvGrads
    with pytest.raises(RuntimeError, match="computed"):
        grads.bias.compute()


def test_same_padding_keeps_the_chunks() -> None:
    """So that x and y can be added without moving anything; also where the kernel is wider than a chunk."""
    x = image((2, 3, 30, 12), (1, 3, 7, (1, 5, 2, 4)))
    for size in (1, 2, 3, 4, 9):
        y = lazy.conv2d(x, weights(3, 3, size, size), padding="same")
        assert y.chunks == x.chunks
        assert (
            lazy.conv2d_input_grad(y, weights(3, 3, size, size), x.shape, padding="same").chunks == x.chunks
        )
    assert lazy.max_pool2d(image((1, 1, 32, 32), (1, 1, 8, 16)), 2).chunks == ((1,), (1,), (4,) * 4, (8, 8))


def test_the_same_call_has_the_same_name_and_another_one_another() -> None:
    x, weight = image(), weights(4, 3, 3, 3)
    first = lazy.conv2d(x, weight, padding=1)
    assert first.name == lazy.conv2d(x, weight.copy(), padding=1).name
    others = [
        lazy.conv2d(x, weight, padding=1, activation="relu"),
        lazy.conv2d(x, weight + 1, padding=1),
        lazy.conv2d(x + 1, weight, padding=1),
        lazy.conv2d(x, weight, padding=1, padding_mode="circular"),
        lazy.conv2d(x, weight, weights(4), padding=1),
    ]
    assert len({first.name, *(other.name for other in others)}) == 6
    # one graph holds them all
    total = sum(other.sum() for other in (first, *others))
    assert np.isfinite(total.compute())


def test_a_halo_is_cut_out_where_it_lies() -> None:
    """What a task takes from its neighbours are the rows that it needs, and nothing that holds the rest."""
    x = image((1, 1, 64, 8), (1, 1, 16, 8))
    y = lazy.conv2d(x, weights(1, 1, 3, 3), padding=1)
    layer = y.dask.layers[y.name]
    halos = {key: task for key, task in layer.items() if "halo" in key[0]}
    assert len(halos) == 6
    whole = np.ones((1, 1, 16, 8), np.float32)
    for call, key in halos.values():
        assert key[0] == x.name
        strip = call(whole)
        assert strip.shape == (1, 1, 1, 8)
        assert strip.base is None


def test_weights_are_copied_and_may_be_lazy() -> None:
    x, weight, bias = image(), weights(4, 3, 3, 3), weights(4)
    expected = fastconv.conv2d(x.compute(), weight, bias)
    args = [
        lazy.conv2d(x, weight, bias),
        lazy.conv2d(
            x, da.from_array(weight.copy(), chunks=(2, 1, 2, 3)), da.from_array(bias.copy(), chunks=1)
        ),
        lazy.conv2d(x, fastconv.prepack(weight, x_shape=x.shape), bias),
        lazy.conv2d(x.astype(">f4"), weight.astype(">f4"), bias),
    ]
    weight[:] = bias[:] = 0
    for y in args:
        np.testing.assert_allclose(computed(y), expected, rtol=1e-5, atol=1e-5)


def test_sums_do_not_depend_on_who_is_done_first() -> None:
    x = image((5, 3, 40, 30), (1, 3, 9, 7))
    grad = image((5, 4, 38, 28), (1, 4, 9, 7))
    grads = lazy.conv2d_backward(grad, x, weights(4, 3, 3, 3))
    first = dask.compute(grads.weight, grads.bias)
    for scheduler in ("sync", "threads", "threads"):
        again = dask.compute(grads.weight, grads.bias, scheduler=scheduler)
        for one, other in zip(first, again, strict=True):
            assert_same_bits(one, other)


# --- errors -----------------------------------------------------------------------------------------

X, WEIGHT, GRAD = (2, 3, 8, 8), (4, 3, 3, 3), (2, 4, 6, 6)
WRONG: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("conv2d", [X, (4, 2, 3, 3)], {}),
    ("conv2d", [X, WEIGHT, (5,)], {}),
    ("conv2d", [X, WEIGHT], {"stride": 0}),
    ("conv2d", [X, WEIGHT], {"stride": 1.0}),
    ("conv2d", [X, WEIGHT], {"padding": "some"}),
    ("conv2d", [X, WEIGHT], {"groups": 2}),
    ("conv2d", [X, WEIGHT], {"dilation": 9}),
    ("conv2d", [X, WEIGHT], {"layout": "CHWN"}),
    ("conv2d", [X, WEIGHT], {"activation": "tanh"}),
    ("conv2d", [X, WEIGHT], {"algorithm": "fastest"}),
    ("conv2d", [X, WEIGHT], {"algorithm": "depthwise"}),
    ("conv2d", [X, WEIGHT], {"padding": 8, "padding_mode": "reflect"}),
    ("conv2d", [(8,), WEIGHT], {}),
    ("conv2d_backward", [(2, 4, 6, 5), X, WEIGHT], {}),
    ("conv2d_backward", [GRAD, X, WEIGHT], {"needs": (True,)}),
    ("conv2d_backward", [GRAD, X, WEIGHT], {"algorithm": "direct", "stride": 1}),
    ("conv2d_input_grad", [GRAD, WEIGHT, [2, 3, 9, 8]], {}),
    ("conv2d_weight_grad", [GRAD, X, [4, 3, 3, 2]], {}),
    ("max_pool2d", [X, 0], {}),
    ("max_pool2d", [X, 2], {"padding": 2}),
    ("max_pool2d", [X, 2], {"ceil_mode": 1}),
    ("max_pool2d", [X, 2], {"algorithm": "winograd"}),
    ("avg_pool2d", [X, 2], {"divisor_override": 0}),
    ("avg_pool2d_backward", [GRAD, [2, 4, 9, 9], 2], {}),
]


def given_as(kind: Any, function: str, args: list[Any]) -> list[Any]:
    """Tuples made arrays, of the kind where the function takes data."""
    data = 2 if function in ("conv2d_backward", "conv2d_weight_grad") else 1
    arrays = [np.zeros(arg, np.float32) if isinstance(arg, tuple) else arg for arg in args]
    return [kind(array) for array in arrays[:data]] + arrays[data:]


@pytest.mark.parametrize(("function", "args", "options"), WRONG)
def test_errors_are_those_of_numpy_arrays(function: str, args: list[Any], options: dict[str, Any]) -> None:
    """The same class and the same words, before anything is computed."""
    with pytest.raises((ValueError, TypeError)) as plain:
        getattr(fastconv, function)(*given_as(np.asarray, function, args), **options)
    with pytest.raises(type(plain.value)) as mine:
        getattr(lazy, function)(*given_as(da.from_array, function, args), **options)
    assert str(mine.value) == str(plain.value)


def test_dtypes_and_kinds_of_arrays_are_checked() -> None:
    x, weight = image(), weights(4, 3, 3, 3)
    with pytest.raises(TypeError, match="conv2d: x must have dtype float32 or float64, got int64"):
        lazy.conv2d(x.astype("i8"), weight)
    with pytest.raises(
        TypeError, match="conv2d: all arrays must have one dtype, got x float32, weight float64"
    ):
        lazy.conv2d(x, weight.astype("f8"))
    with pytest.raises(TypeError, match=re.escape("got ndarray; for NumPy arrays there is fastconv.conv2d")):
        lazy.conv2d(x.compute(), weight)
    with pytest.raises(TypeError, match=r"conv2d: x must be a dask\.array\.Array, got list"):
        lazy.conv2d([[1.0]], weight)
    with pytest.raises(TypeError, match="masked array"):
        lazy.conv2d(da.ma.masked_array(x, x > 0), weight)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        lazy.conv2d(x[x[:, 0, 0, 0] > 0], weight)
    with pytest.raises(
        TypeError, match="max_pool2d_backward: indices must have an integer dtype, got float32"
    ):
        lazy.max_pool2d_backward(x, x, (2, 3, 32, 24))


def test_indices_are_checked_where_they_are_computed() -> None:
    grad = da.ones((1, 1, 4, 4), chunks=(1, 1, 2, 4))
    for wrong in (-1, 64, 10_000):
        indices = da.full((1, 1, 4, 4), wrong, chunks=(1, 1, 2, 4))
        for facts in ({}, {"kernel_size": 2}):
            grad_x = lazy.max_pool2d_backward(grad, indices, (1, 1, 8, 8), **facts)
            with pytest.raises(ValueError, match="max_pool2d_backward: indices must be positions"):
                grad_x.compute()
    # in the plane, but not under its window
    indices = da.full((1, 1, 4, 4), 63, chunks=(1, 1, 2, 4))
    with pytest.raises(ValueError, match="under their windows"):
        lazy.max_pool2d_backward(grad, indices, (1, 1, 8, 8), kernel_size=2).compute()
    with pytest.raises(ValueError, match="need a kernel_size"):
        lazy.max_pool2d_backward(grad, indices, (1, 1, 8, 8), stride=2)


# --- threads ----------------------------------------------------------------------------------------


def test_each_task_has_its_share_of_the_threads(monkeypatch: Any) -> None:
    """As many as fastconv has, over the tasks that run at a time: seen from inside the tasks."""
    seen: set[tuple[int, bool]] = set()
    main = threading.current_thread()

    def conv2d(x: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
        seen.add((fastconv.get_num_threads(), threading.current_thread() is main))
        return fastconv.conv2d(x, *args, **options)

    monkeypatch.setattr(functional, "conv2d", conv2d)
    y = lazy.conv2d(image(), weights(4, 3, 3, 3))
    most = fastconv.get_num_threads()

    def threads_in(**options: Any) -> set[tuple[int, bool]]:
        seen.clear()
        y.compute(**options)
        return set(seen)

    assert threads_in(scheduler="sync") == {(most, True)}
    for workers in (1, 2, 3):
        share = max(1, most // workers)
        assert threads_in(scheduler="threads", num_workers=workers) == {(share, False)}
        with dask.config.set(num_workers=workers):
            assert threads_in(scheduler="threads") == {(share, False)}
        with ThreadPoolExecutor(workers) as pool, dask.config.set(pool=pool):
            assert threads_in(scheduler="threads") == {(share, False)}
        with ThreadPool(workers) as pool, dask.config.set(pool=pool):
            assert threads_in(scheduler="threads") == {(share, False)}
    # what the user has set is what is shared
    before = fastconv.get_num_threads()
    fastconv.set_num_threads(1)
    try:
        assert threads_in(scheduler="sync") == {(1, True)}
        assert threads_in(scheduler="threads", num_workers=2) == {(1, False)}
    finally:
        fastconv.set_num_threads(before)


def test_processes_of_one_thread_each_share_the_machine(monkeypatch: Any) -> None:
    """With dask's scheduler of processes: there is no telling how many work, but how many there may be."""
    assert shares.tasks_at_a_time() == 1
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    assert shares.tasks_at_a_time() == dask.system.CPU_COUNT
    with dask.config.set(num_workers=3):
        assert shares.tasks_at_a_time() == 3
        assert shares.share() == max(1, fastconv.get_num_threads() // 3)


# --- memory -----------------------------------------------------------------------------------------


def test_an_image_is_filtered_in_far_less_memory_than_it_has() -> None:
    """Of 256 MiB, in chunks of 1 MiB, filtered and pooled within 64 MiB more than the process had."""
    grown = python(
        """
        import resource
        import dask, dask.array as da, numpy as np
        from fastconv.dask import avg_pool2d, conv2d

        dask.config.set(scheduler="threads", num_workers=2)

        def mean(size):
            image = da.ones((1, 1, size, size), chunks=(1, 1, 512, 512), dtype="f4")
            y = conv2d(image, np.full((1, 1, 5, 5), 0.04, "f4"), padding=2, padding_mode="replicate")
            return float(avg_pool2d(y, 2).mean().compute())

        peaks = []
        for size in (1024, 8192):
            assert abs(mean(size) - 1) < 1e-5
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(peaks[1] - peaks[0])
        """
    )
    assert int(grown) < 64 * 1024
