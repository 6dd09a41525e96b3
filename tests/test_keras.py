"""`fastconv.keras`: against the oracles, with Keras's rules said once more, and against Keras with NumPy.

That backend computes with JAX. Both are in the extra `peers`; without them the last part is skipped.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_same, assert_within, same_pads
from strategies import values

from fastconv import keras


class Case(NamedTuple):
    """Arguments of any of the functions; those of convolutions have the stride and dilation."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    batch: int
    channels: int
    filters: int
    groups: int
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    data_format: str
    seed: int

    @property
    def rank(self) -> int:
        return len(self.size)

    def x(self, kind: str = "ints") -> np.ndarray:
        """Channels first."""
        return values(self.seed, kind, "float32", (self.batch, self.channels * self.groups, *self.size))

    def array(self, number: int, *shape: int) -> np.ndarray:
        return values(self.seed + number, "ints", "float32", shape)

    def give(self, x: np.ndarray) -> np.ndarray:
        return x if self.data_format == "channels_first" else np.moveaxis(x, 1, -1)

    def take(self, y: np.ndarray) -> np.ndarray:
        return y if self.data_format == "channels_first" else np.moveaxis(y, -1, 1)

    def pads(self, dilation: tuple[int, ...]) -> Any:
        """What "same" and "valid" mean."""
        if self.padding.lower() == "valid":
            return [(0, 0)] * self.rank
        return same_pads(self.size, self.kernel, self.strides, dilation)

    def options(self) -> dict[str, Any]:
        return {"strides": self.strides, "padding": self.padding, "data_format": self.data_format}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.sampled_from([1, 2, 2, 3]))

    def each(most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(1, most)) for _ in range(rank))

    kernel, dilation = each(4 if rank < 3 else 3), each(2)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = draw(st.sampled_from(["valid", "same", "SAME"]))
    fewest = reach if padding == "valid" else (1,) * rank
    return Case(
        size=tuple(n + draw(st.integers(0, 5 if rank < 3 else 2)) for n in fewest),
        kernel=kernel,
        batch=draw(st.integers(1, 2)),
        channels=draw(st.integers(1, 3)),
        filters=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 2)),
        strides=each(3),
        dilation=dilation,
        padding=padding,
        data_format=draw(st.sampled_from(["channels_last", "channels_first"])),
        seed=draw(st.integers(0, 2**16)),
    )


def first(kernel: np.ndarray) -> np.ndarray:
    """A kernel (*spatial, in, out) as the oracles have it."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


# --- against the oracles ----------------------------------------------------------------------------


@given(case=cases())
def test_conv(case: Case) -> None:
    x, kernel = case.x(), case.array(1, *case.kernel, case.channels, case.filters * case.groups)
    y = keras.conv(case.give(x), kernel, **case.options(), dilation_rate=case.dilation)
    args = (case.strides, case.pads(case.dilation), case.dilation, case.groups)
    assert_same(np.rint(case.take(y)), oracles.conv(x, first(kernel), *args))


@given(case=cases())
def test_depthwise_and_separable(case: Case) -> None:
    x = case.x()
    channels = x.shape[1]
    depthwise = case.array(1, *case.kernel, channels, case.filters)
    pointwise = case.array(2, *(1,) * case.rank, channels * case.filters, 3)
    options = {**case.options(), "dilation_rate": case.dilation}
    apart = first(depthwise.reshape(*case.kernel, 1, -1))
    hidden = oracles.conv(x, apart, case.strides, case.pads(case.dilation), case.dilation, channels)
    y = keras.depthwise_conv(case.give(x), depthwise, **options)
    assert_same(np.rint(case.take(y)), hidden)
    y = keras.separable_conv(case.give(x), depthwise, pointwise, **options)
    expected = np.einsum("nc...,ck->nk...", hidden, pointwise.reshape(-1, 3))
    assert_same(np.rint(case.take(y)), expected)


@given(case=cases())
def test_conv_transpose_is_adjoint(case: Case) -> None:
    """With the default output padding: of the convolution with this padding that has `inputs` as result."""
    x, kernel = case.x(), case.array(1, *case.kernel, case.filters, case.channels * case.groups)
    options = {**case.options(), "dilation_rate": case.dilation}
    y = case.take(keras.conv_transpose(case.give(x), kernel, **options))
    reach = [d * (k - 1) + 1 for k, d in zip(case.kernel, case.dilation, strict=True)]
    axes = zip(case.size, case.strides, reach, strict=True)
    same = case.padding.lower() == "same"
    assert y.shape[2:] == tuple(n * s if same else (n - 1) * s + max(r, s) for n, s, r in axes)
    z = case.array(2, *y.shape)
    pads = same_pads(y.shape[2:], case.kernel, case.strides, case.dilation) if same else [(0, 0)] * case.rank
    weight = np.moveaxis(kernel, (-1, -2), (0, 1))
    convolved = oracles.conv(z, weight, case.strides, pads, case.dilation)
    assert oracles.inner(z, np.rint(y)) == oracles.inner(convolved, x)


@given(case=cases(), cells=st.tuples(*[st.integers(0, 2)] * 3))
def test_conv_transpose_with_output_padding(case: Case, cells: tuple[int, ...]) -> None:
    """The result is a part of the whole, with zeros where that ends."""
    strides = tuple(max(s, c + 1) for s, c in zip(case.strides, cells, strict=False))
    case = case._replace(strides=strides)
    same = case.padding.lower() == "same"
    cells = cells[: case.rank]
    x, kernel = case.x(), case.array(1, *case.kernel, case.filters, case.channels * case.groups)
    whole = oracles.conv_transpose(
        x, first(kernel), strides, [(0, 0)] * case.rank, (0,) * case.rank, case.dilation
    )
    window = []
    for n, k, s, d, c in zip(case.size, case.kernel, strides, case.dilation, cells, strict=True):
        reach = d * (k - 1) + 1
        size = (n - 1) * s + (reach % 2 if same else reach) + c
        cut = (n - 1) * s + reach - size
        window.append(slice(max(0, cut // 2), max(0, cut // 2) + size))
    options = {**case.options(), "output_padding": cells, "dilation_rate": case.dilation}
    if any(part.start == part.stop for part in window):
        with pytest.raises(ValueError, match="at least 1"):
            keras.conv_transpose(case.give(x), kernel, **options)
        return
    y = keras.conv_transpose(case.give(x), kernel, **options)
    longer = np.pad(whole, [(0, 0), (0, 0), *[(0, 3)] * case.rank])
    assert_same(np.rint(case.take(y)), longer[(slice(None), slice(None), *window)])


@given(case=cases(), has_strides=st.booleans())
def test_pooling(case: Case, has_strides: bool) -> None:
    x = case.x()
    strides = case.strides if has_strides else None
    case = case._replace(strides=case.strides if has_strides else case.kernel)
    ones = (1,) * case.rank
    args = (case.kernel, case.strides, case.pads(ones), ones)
    options = {**case.options(), "strides": strides}
    y = keras.max_pool(case.give(x), case.kernel, **options)
    assert_same(case.take(y), oracles.max_pool(x, *args).y)
    y = keras.average_pool(case.give(x), case.kernel, **options)
    expected = oracles.avg_pool(x, *args, count_padding=False)
    magnitude = oracles.avg_pool(np.abs(x), *args, count_padding=False)
    assert_within(case.take(y), expected, magnitude, int(np.prod(case.kernel)))


@given(case=cases())
def test_adaptive_pooling(case: Case) -> None:
    x, output = case.x(), tuple(min(n, k) for n, k in zip(case.size, case.kernel, strict=True))
    y = keras.adaptive_max_pool(case.give(x), output, case.data_format)
    assert_same(case.take(y), oracles.adaptive_max_pool(x, output).y)
    y = keras.adaptive_average_pool(case.give(x), output, data_format=case.data_format)
    magnitude = oracles.adaptive_avg_pool(np.abs(x), output)
    assert_within(case.take(y), oracles.adaptive_avg_pool(x, output), magnitude, x[0, 0].size)


def test_int_arguments_and_default_format() -> None:
    x, kernel = values(0, "gauss", "float64", (2, 6, 7, 3)), values(1, "gauss", "float64", (3, 2, 3, 4))
    options = {"strides": 2, "padding": "same", "data_format": "channels_last"}
    assert_same(
        keras.conv(x, kernel, strides=(2, 2), padding="same", data_format=None),
        keras.conv(x, kernel, **options),
    )
    assert_same(keras.max_pool(x, 2), keras.max_pool(x, [2, 2], (2, 2), "valid", "channels_last"))
    assert_same(keras.adaptive_max_pool(x, 2), keras.adaptive_max_pool(x, (2, 2)))
    back = np.swapaxes(kernel, -1, -2)
    assert_same(
        keras.conv_transpose(x, back, 3, output_padding=1),
        keras.conv_transpose(x, back, (3, 3), output_padding=[1, 1]),
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, k: keras.conv(x[0, 0], k), ValueError, "conv: inputs must have a batch axis"),
        (lambda x, k: keras.conv(x, k[0]), ValueError, "conv: kernel must have 2 spatial axes"),
        (
            lambda x, k: keras.conv(x, k[:, :, :2]),
            ValueError,
            "conv: the 3 channels of inputs must be a multiple",
        ),
        (
            lambda x, k: keras.conv(x, k[:, :, :0]),
            ValueError,
            "conv: the 3 channels of inputs must be a multiple",
        ),
        (
            lambda x, k: keras.conv(x, k, padding="causal"),
            ValueError,
            'conv: padding must be "valid" or "same"',
        ),
        (lambda x, k: keras.conv(x, k, padding=1), ValueError, 'conv: padding must be "valid" or "same"'),
        (lambda x, k: keras.conv(x, k, data_format="NHWC"), ValueError, "conv: data_format must be one of"),
        (lambda x, k: keras.conv(x, k.astype(np.float32)), TypeError, "one dtype"),
        (lambda x, k: keras.conv(x[:, :2], k), ValueError, "must fit in the padded input"),
        (lambda x, k: keras.depthwise_conv(x[..., :2], k), ValueError, "as many channels, got 2 and 3"),
        (
            lambda x, k: keras.separable_conv(x, k, k),
            ValueError,
            r"pointwise_kernel must have shape \(1, 1, 12",
        ),
        (lambda x, k: keras.conv_transpose(x, k), ValueError, "x has 3 channels"),
        (
            lambda x, k: keras.conv_transpose(x, np.swapaxes(k, 2, 3), 2, output_padding=2),
            ValueError,
            "output_padding must be smaller than strides",
        ),
        (lambda x, k: keras.max_pool(x, 7), ValueError, "max_pool2d"),
        (lambda x, k: keras.adaptive_max_pool(x, (2, 2, 2)), ValueError, "output_size"),
        (lambda x, k: keras.average_pool(x.astype(int), 2), TypeError, "float32 or float64"),
    ],
)
def test_errors(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones((2, 6, 6, 3)), np.ones((3, 3, 3, 4)))


# --- against Keras --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ops() -> Any:
    """`keras.ops` with its NumPy backend."""
    pytest.importorskip("jax")
    with mock.patch.dict(os.environ, {"KERAS_BACKEND": "numpy"}):
        pytest.importorskip("keras", exc_type=ImportError)
        import keras as theirs
    if theirs.backend.backend() != "numpy":
        pytest.skip(f"keras computes with {theirs.backend.backend()}, which was loaded before")
    return theirs.ops


@pytest.mark.parametrize("name", keras.__all__)
def test_arguments_are_those_of_keras(ops: Any, name: str) -> None:
    mine = inspect.signature(getattr(keras, name)).parameters.values()
    expected = inspect.signature(getattr(ops, name)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in expected]


@settings(max_examples=10, derandomize=True)
@given(case=cases(), cells=st.tuples(*[st.integers(0, 2)] * 3))
def test_all_as_keras(ops: Any, case: Case, cells: tuple[int, ...]) -> None:
    """Integers: Keras's results are exact, too."""
    x = case.give(case.x())
    channels = case.channels * case.groups
    options = {**case.options(), "dilation_rate": case.dilation}
    kernel = case.array(1, *case.kernel, case.channels, case.filters * case.groups)
    assert_same(np.rint(keras.conv(x, kernel, **options)), ops.conv(x, kernel, **options))
    separable = case.array(2, *case.kernel, channels, 2), case.array(3, *(1,) * case.rank, 2 * channels, 3)
    expected = ops.separable_conv(x, *separable, **options)
    assert_same(np.rint(keras.separable_conv(x, *separable, **options)), expected)
    back = case.array(4, *case.kernel, case.filters, channels)
    strides = tuple(max(s, c + 1) for s, c in zip(case.strides, cells, strict=False))
    for more in ({}, {"output_padding": cells[: case.rank], "strides": strides}):
        if min(case.size) == 1:  # of which XLA makes something that it then aborts the process for
            continue
        expected = ops.conv_transpose(x, back, **options | more)
        if expected.size:
            assert_same(np.rint(keras.conv_transpose(x, back, **options | more)), expected)
    pool = case.options()
    assert_same(keras.max_pool(x, case.kernel, **pool), ops.max_pool(x, case.kernel, **pool))
    expected = ops.average_pool(x, case.kernel, **pool)
    np.testing.assert_allclose(keras.average_pool(x, case.kernel, **pool), expected, rtol=1e-5, atol=1e-6)
    output = tuple(min(n, k) for n, k in zip(case.size, case.kernel, strict=True))
    adaptive = {"output_size": output, "data_format": case.data_format}
    assert_same(keras.adaptive_max_pool(x, **adaptive), ops.adaptive_max_pool(x, **adaptive))
    expected = ops.adaptive_average_pool(x, **adaptive)
    np.testing.assert_allclose(keras.adaptive_average_pool(x, **adaptive), expected, rtol=1e-5, atol=1e-6)
