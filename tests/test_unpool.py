"""Unpooling against the reference, the oracle and the pooling that it undoes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits
from strategies import LAYOUTS, MEMORY, SEEDS, from_layout, per_axis, to_layout, values

import fastconv
from fastconv import reference


@dataclass(frozen=True)
class Unpool:
    """A call: x (batch, channels, *size), and the size of the planes it goes to."""

    size: tuple[int, ...]
    output: tuple[int, ...]
    kernel: Any
    stride: Any
    padding: Any
    channels: int
    batch: int | None
    layout: str
    dtype: str
    integer: str
    seed: int

    @property
    def rank(self) -> int:
        return len(self.size)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, indices, of which some are alike, and a gradient of y."""
        lead = (1 if self.batch is None else self.batch, self.channels)
        x = values(self.seed, "gauss", self.dtype, (*lead, *self.size))
        rng = np.random.default_rng(self.seed + 1)
        indices = rng.integers(0, int(np.prod(self.output)), x.shape).astype(self.integer)
        return x, indices, values(self.seed + 2, "gauss", self.dtype, (*lead, *self.output))

    def give(self, array: np.ndarray) -> np.ndarray:
        array = to_layout(array, self.layout)
        return array[0] if self.batch is None else array

    def take(self, array: np.ndarray) -> np.ndarray:
        return from_layout(array[None] if self.batch is None else array, self.layout)


@st.composite
def unpools(draw: st.DrawFn) -> Unpool:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    size = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    kernel, stride = draw(per_axis(rank, 4)), draw(st.none() | per_axis(rank, 4))
    kernels = (kernel,) * rank if isinstance(kernel, int) else kernel
    strides = kernels if stride is None else (stride,) * rank if isinstance(stride, int) else stride
    padding = draw(per_axis(rank, min(kernels) // 2, least=0))
    pads = (padding,) * rank if isinstance(padding, int) else padding
    output = []
    for n, k, s, p in zip(size, kernels, strides, pads, strict=True):
        default = (n - 1) * s + k - 2 * p
        output.append(max(1, default + draw(st.integers(1 - s, s - 1))))
        if default < 1:
            output[-1] = draw(st.integers(1, max(1, default + s - 1)))
    strange = any(
        abs(o - ((n - 1) * s + k - 2 * p)) >= s
        for o, n, k, s, p in zip(output, size, kernels, strides, pads, strict=True)
    )
    if strange:  # no size would do
        padding = 0
        output = [(n - 1) * s + k for n, k, s in zip(size, kernels, strides, strict=True)]
    return Unpool(
        size=size,
        output=tuple(output),
        kernel=kernel,
        stride=stride,
        padding=padding,
        channels=draw(st.integers(1, 3)),
        batch=draw(st.sampled_from([None, 1, 2])),
        layout=draw(LAYOUTS),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        integer=draw(st.sampled_from(["int64", "int32", "uint16", ">i8"])),
        seed=draw(SEEDS),
    )


def lifted(array: np.ndarray) -> np.ndarray:
    """Three spatial axes."""
    return array.reshape(*array.shape[:2], *(1,) * (5 - array.ndim), *array.shape[2:])


@given(case=unpools())
def test_max_unpool(case: Unpool) -> None:
    x, indices, grad = case.arrays()
    forward = getattr(fastconv, f"max_unpool{case.rank}d")
    facts = {"stride": case.stride, "padding": case.padding, "layout": case.layout}
    y = forward(case.give(x), case.give(indices), case.kernel, **facts, output_size=case.output)
    assert y.dtype == case.dtype
    expected = oracles.put(x, indices, grad.shape)
    assert_same(case.take(y), expected.astype(case.dtype))
    size = lifted(grad).shape[2:]
    native = indices.astype(np.int64)
    assert_same(reference.max_unpool(lifted(x), lifted(native), size).reshape(grad.shape), expected)
    whole = case.give(grad).shape
    assert_same_bits(forward(case.give(x), case.give(indices), case.kernel, **facts, output_size=whole), y)

    backward = getattr(fastconv, f"max_unpool{case.rank}d_backward")
    grad_x = backward(case.give(grad), case.give(indices), layout=case.layout)
    assert grad_x.dtype == case.dtype
    assert_same(case.take(grad_x), oracles.pick(grad, indices))
    plain = reference.max_unpool_backward(lifted(grad), lifted(native))
    assert_same(plain.reshape(x.shape), oracles.pick(grad, indices))


@given(case=unpools())
def test_the_default_size_is_the_inverse_of_pooling(case: Unpool) -> None:
    x, _, _ = case.arrays()
    facts = (case.kernel, case.stride, case.padding)
    kernel = (case.kernel,) * case.rank if isinstance(case.kernel, int) else case.kernel
    if min((n - 1) + k for n, k in zip(case.size, kernel, strict=True)) <= 2 * np.max(case.padding):
        return  # nothing would be left
    zeros = np.zeros(x.shape, int)
    y = getattr(fastconv, f"max_unpool{case.rank}d")(x, zeros, *facts)
    pooled = getattr(fastconv, f"max_pool{case.rank}d")(y, *facts)
    assert pooled.shape == x.shape


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pooling_what_was_unpooled_gives_it_back(layout: str) -> None:
    x = to_layout(np.random.default_rng(0).random((2, 3, 7, 9)) + 1, layout)
    y, indices = fastconv.max_pool2d(x, (2, 3), return_indices=True, layout=layout)
    back = fastconv.max_unpool2d(y, indices, (2, 3), output_size=x.shape, layout=layout)
    assert back.shape == x.shape
    assert_same(np.where(back != 0, x, 0), back)
    assert np.count_nonzero(back) == y.size
    again, places = fastconv.max_pool2d(back, (2, 3), return_indices=True, layout=layout)
    assert_same_bits(again, y)
    assert_same_bits(places, indices)


def test_of_several_the_last_is_there() -> None:
    """Whatever the threads: in row-major order of x; each of them gets the gradient."""
    x = np.array([[[1.0, 2, 3, 4]]])
    indices = np.array([[[1, 0, 1, 7]]])
    assert_same(fastconv.max_unpool1d(x, indices, 2), np.array([[[2.0, 3, 0, 0, 0, 0, 0, 4]]]))
    grad_x = fastconv.max_unpool1d_backward(np.arange(8.0).reshape(1, 1, 8), indices)
    assert_same(grad_x, np.array([[[1.0, 0, 1, 7]]]))


@pytest.mark.parametrize(("index", "dtype"), [(42, np.int64), (-1, np.int8), (2**64 - 1, np.uint64)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_index_beyond_the_plane(index: int, dtype: type, layout: str) -> None:
    """Refused, not written to (as pytorch#194803 read): the kernels look."""
    indices = np.zeros((2, 3, 3, 3), dtype)
    indices[1, 2, 0, 1] = index
    x, grad = np.ones((2, 3, 3, 3), np.float32), to_layout(np.ones((2, 3, 6, 7), np.float32), layout)
    places = to_layout(indices, layout)
    with pytest.raises(ValueError, match=r"^max_unpool2d: indices .* the output plane, 0 to 41, got"):
        fastconv.max_unpool2d(x, places, 2, output_size=(6, 7), layout=layout)
    with pytest.raises(ValueError, match=r"^max_unpool2d_backward: indices .* output plane, 0 to 41, got"):
        fastconv.max_unpool2d_backward(grad, places, layout=layout)


@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_order(memory: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5))
    y, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    # NaN in the gaps of strided int64 indices does not fit: any number does
    order = MEMORY[memory](indices) if memory != "strided" else np.repeat(indices, 2, axis=-1)[..., ::2]
    expected = fastconv.max_unpool2d(y, indices, 2, output_size=(6, 5))
    assert_same_bits(fastconv.max_unpool2d(MEMORY[memory](y), order, 2, output_size=(6, 5)), expected)
    grad_x = fastconv.max_unpool2d_backward(MEMORY[memory](x), order)
    assert_same_bits(grad_x, fastconv.max_unpool2d_backward(x, indices))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    x, indices = np.ones(shape), np.ones(shape, np.int64)
    y = fastconv.max_unpool2d(x, indices, 2)
    assert y.shape == (*shape[:2], 10, 10)
    assert fastconv.max_unpool2d_backward(y, indices).shape == shape


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    "name", ["lp_pool{}d", "lp_pool{}d_backward", "max_unpool{}d", "max_unpool{}d_backward"]
)
def test_ranks_take_the_same_arguments(rank: int, name: str) -> None:
    one, two = (inspect.signature(getattr(fastconv, name.format(r))) for r in (rank, 2))
    assert str(one) == str(two)
