"""Layers: gradients against differences of forward, layouts, dtypes, what is kept, errors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastconv import nn


class Case(NamedTuple):
    """A layer to test: how to make it (the same one each time), and the shape that it takes."""

    make: Callable[[Any], nn.Layer]
    shape: tuple[int, ...]
    # of the differences: exact for any step where the layer is linear, small elsewhere
    step: float = 1.0


def frozen_batch_norm(dtype: Any) -> nn.Layer:
    layer = nn.BatchNorm2d(3, dtype=dtype)
    layer.load_state_dict(
        {
            "weight": np.array([0.5, -1.5, 2.0]),
            "bias": np.array([0.1, 0.2, 0.3]),
            "running_mean": np.array([1.0, -2.0, 0.5]),
            "running_var": np.array([0.25, 4.0, 1.5]),
            "num_batches_tracked": np.array(7),
        }
    )
    layer.frozen = True
    return layer


def small_net(dtype: Any) -> nn.Layer:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, rng=1, dtype=dtype),
        nn.BatchNorm2d(4, dtype=dtype),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(24, 5, rng=2, dtype=dtype), nn.LogSoftmax()),
    )


CASES = {
    "Conv1d": Case(lambda d: nn.Conv1d(4, 6, 3, 2, 2, 2, 2, rng=0, dtype=d), (3, 4, 11)),
    "Conv2d": Case(lambda d: nn.Conv2d(3, 5, (3, 2), padding=1, rng=0, dtype=d), (2, 3, 6, 5)),
    "Conv2d no bias": Case(
        lambda d: nn.Conv2d(4, 6, 3, 2, (1, 2), groups=2, bias=False, rng=0, dtype=d),
        (2, 4, 7, 6),
    ),
    "Conv2d circular": Case(
        lambda d: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", rng=0, dtype=d),
        (2, 2, 5, 4),
    ),
    "Conv2d NHWC": Case(
        lambda d: nn.Conv2d(4, 6, 3, padding=1, groups=2, layout="NHWC", rng=0, dtype=d),
        (2, 6, 5, 4),
    ),
    "Conv2d unbatched": Case(lambda d: nn.Conv2d(3, 5, 3, rng=0, dtype=d), (3, 6, 5)),
    "Conv3d": Case(lambda d: nn.Conv3d(2, 3, (1, 2, 3), rng=0, dtype=d), (2, 2, 3, 4, 5)),
    "ConvTranspose2d": Case(lambda d: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, rng=0, dtype=d), (2, 4, 4, 3)),
    "ConvTranspose2d NHWC": Case(
        lambda d: nn.ConvTranspose2d(3, 5, 3, 2, 1, layout="NHWC", rng=0, dtype=d), (2, 4, 3, 3)
    ),
    "ConvTranspose1d": Case(lambda d: nn.ConvTranspose1d(2, 3, 3, 2, 1, 1, rng=0, dtype=d), (2, 2, 5)),
    "ConvTranspose3d": Case(lambda d: nn.ConvTranspose3d(2, 3, (1, 2, 3), rng=0, dtype=d), (2, 2, 2, 3, 2)),
    "MaxPool1d": Case(lambda d: nn.MaxPool1d(3, 2, 1), (2, 3, 9), 1e-4),
    "MaxPool3d": Case(lambda d: nn.MaxPool3d((1, 2, 3)), (2, 2, 2, 5, 6), 1e-4),
    "AvgPool1d": Case(lambda d: nn.AvgPool1d(3, 2, 1), (2, 3, 9)),
    "AvgPool3d": Case(lambda d: nn.AvgPool3d(2, 1, ceil_mode=True), (2, 2, 2, 3, 4)),
    "LPPool1d": Case(lambda d: nn.LPPool1d(2, 3, 2), (2, 3, 9), 1e-5),
    "LPPool2d": Case(lambda d: nn.LPPool2d(2, 3, 2, True), (2, 3, 6, 7), 1e-5),
    "LPPool2d NHWC": Case(lambda d: nn.LPPool2d(4, 2, padding=1, layout="NHWC"), (2, 4, 5, 3), 1e-5),
    "LPPool3d": Case(lambda d: nn.LPPool3d(2, 2), (2, 2, 2, 3, 4), 1e-5),
    "AdaptiveAvgPool1d": Case(lambda d: nn.AdaptiveAvgPool1d(3), (2, 3, 7)),
    "AdaptiveAvgPool3d": Case(lambda d: nn.AdaptiveAvgPool3d((1, None, 2)), (2, 2, 3, 2, 5)),
    "AdaptiveMaxPool1d": Case(lambda d: nn.AdaptiveMaxPool1d(3), (2, 3, 7), 1e-4),
    "AdaptiveMaxPool2d": Case(lambda d: nn.AdaptiveMaxPool2d((2, None)), (2, 3, 7, 5), 1e-4),
    "AdaptiveMaxPool2d NHWC": Case(lambda d: nn.AdaptiveMaxPool2d(2, layout="NHWC"), (2, 7, 5, 3), 1e-4),
    "AdaptiveMaxPool3d": Case(lambda d: nn.AdaptiveMaxPool3d(2), (2, 2, 3, 2, 5), 1e-4),
    "MaxPool2d": Case(lambda d: nn.MaxPool2d(3, 2, 1), (2, 3, 7, 6), 1e-4),
    "MaxPool2d NHWC": Case(lambda d: nn.MaxPool2d(2, 1, layout="NHWC"), (2, 5, 6, 3), 1e-4),
    "AvgPool2d": Case(lambda d: nn.AvgPool2d(3, 2, 1, True, False), (2, 3, 7, 6)),
    "AvgPool2d NHWC": Case(lambda d: nn.AvgPool2d((2, 3), layout="NHWC"), (2, 6, 7, 3)),
    "AdaptiveAvgPool2d": Case(lambda d: nn.AdaptiveAvgPool2d((2, None)), (2, 3, 7, 5)),
    "AdaptiveAvgPool2d NHWC": Case(lambda d: nn.AdaptiveAvgPool2d(2, layout="NHWC"), (2, 7, 5, 3)),
    "Linear": Case(lambda d: nn.Linear(7, 4, rng=0, dtype=d), (5, 7)),
    "Linear 3 axes": Case(lambda d: nn.Linear(4, 3, bias=False, rng=0, dtype=d), (2, 5, 4)),
    "ReLU": Case(lambda d: nn.ReLU(), (3, 4, 5), 1e-4),
    "LeakyReLU": Case(lambda d: nn.LeakyReLU(0.3), (3, 4, 5), 1e-4),
    "Sigmoid": Case(lambda d: nn.Sigmoid(), (3, 4), 1e-5),
    "Tanh": Case(lambda d: nn.Tanh(), (3, 4), 1e-5),
    "Softmax": Case(lambda d: nn.Softmax(), (4, 5), 1e-5),
    "Softmax dim 1": Case(lambda d: nn.Softmax(1), (2, 4, 3), 1e-5),
    "LogSoftmax": Case(lambda d: nn.LogSoftmax(), (4, 5), 1e-5),
    "Dropout": Case(lambda d: nn.Dropout(0.4, rng=3), (6, 7)),
    "Flatten": Case(lambda d: nn.Flatten(), (3, 2, 4, 5)),
    "Flatten NHWC": Case(lambda d: nn.Flatten(layout="NHWC"), (3, 4, 5, 2)),
    "BatchNorm2d": Case(lambda d: nn.BatchNorm2d(3, dtype=d), (4, 3, 3, 2), 1e-5),
    "BatchNorm2d NHWC": Case(
        lambda d: nn.BatchNorm2d(3, affine=False, layout="NHWC", dtype=d), (4, 3, 2, 3), 1e-5
    ),
    "BatchNorm2d frozen": Case(frozen_batch_norm, (4, 3, 3, 2)),
    "Sequential": Case(small_net, (3, 2, 4, 6), 1e-5),
}

parametrized = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def distinct(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> Any:
    """Numbers around 0 whose distances from each other and from 0 are far above the steps."""
    size = int(np.prod(shape))
    values = (np.arange(size) - size / 2 + 0.25) * (4 / size)
    return np.random.default_rng(seed).permutation(values).reshape(shape).astype(dtype)


def batched(case: Case) -> Any:
    x = distinct(case.shape)
    return x[None] if case is CASES["Conv2d unbatched"] else x


def test_every_layer_is_tested() -> None:
    exported = {
        name
        for name in nn.__all__
        if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Layer)
    }
    made = {type(case.make(np.float64)).__name__ for case in CASES.values()}
    assert exported - {"Layer"} == made


@parametrized
def test_backward_is_the_derivative_of_forward(case: Case) -> None:
    """<grad_y, (f(p + h v) - f(p - h v)) / 2h> = <grad_p, v> for x and each parameter p."""
    rng = np.random.default_rng(1)
    x = distinct(case.shape)
    layer = case.make(np.float64)
    for param in layer.params.values():
        # away from the start values: ones and zeros would hide factors and sums
        param[...] += rng.uniform(0.1, 0.5, param.shape)
    state = {name: param.copy() for name, param in layer.params.items()}
    y = layer.forward(x, training=True)
    grad_y = rng.standard_normal(y.shape)
    grad_x = layer.backward(grad_y)
    assert grad_x.shape == x.shape
    assert layer.grads.keys() == layer.params.keys()

    def value(x: Any, **changed: Any) -> float:
        fresh = case.make(np.float64)
        for name, param in fresh.params.items():
            param[...] = changed.get(name, state[name])
        return float(np.vdot(grad_y, fresh.forward(x, training=True)))

    for _ in range(3):
        v = rng.standard_normal(x.shape)
        h = case.step
        difference = (value(x + h * v) - value(x - h * v)) / (2 * h)
        assert difference == pytest.approx(np.vdot(grad_x, v), rel=1e-6, abs=1e-7)
        for name, param in state.items():
            v = rng.standard_normal(param.shape)
            up, down = value(x, **{name: param + h * v}), value(x, **{name: param - h * v})
            expected = np.vdot(layer.grads[name], v)
            assert (up - down) / (2 * h) == pytest.approx(expected, rel=1e-6, abs=1e-7), name


@parametrized
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_changes_the_dtype(case: Case, dtype: Any) -> None:
    layer = case.make(dtype)
    x = distinct(case.shape, dtype)
    y = layer.forward(x, training=True)
    grad_x = layer.backward(np.ones_like(y))
    arrays = [y, layer.forward(x), grad_x, *layer.params.values(), *layer.grads.values()]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


@parametrized
def test_backward_params_gives_the_gradients_of_backward(case: Case) -> None:
    layer = case.make(np.float64)
    y = layer.forward(distinct(case.shape), training=True)
    grad_y = np.random.default_rng(0).standard_normal(y.shape)
    layer.backward(grad_y)
    expected = {name: grad.copy() for name, grad in layer.grads.items()}
    for grad in layer.grads.values():
        grad[...] = np.nan
    layer.backward_params(grad_y)
    for name, grad in layer.grads.items():
        np.testing.assert_array_equal(grad, expected[name])


@parametrized
def test_inputs_are_left_alone(case: Case) -> None:
    x = distinct(case.shape)
    x.flags.writeable = False
    layer = case.make(np.float64)
    y = layer.forward(x, training=True)
    grad_y = np.ones_like(y)
    grad_y.flags.writeable = False
    layer.backward(grad_y)


@parametrized
def test_training_then_inference_keeps_no_array(case: Case) -> None:
    layer = case.make(np.float64)
    x = distinct(case.shape)
    layer.forward(x, training=True)
    layer.forward(x)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


@parametrized
def test_backward_needs_a_training_forward(case: Case) -> None:
    layer = case.make(np.float64)
    with pytest.raises(RuntimeError, match=r"backward needs a forward\(x, training=True\)"):
        layer.backward(np.ones(3))
    x = distinct(case.shape)
    layer.forward(x, training=True)
    y = layer.forward(x)
    with pytest.raises(RuntimeError, match="inference"):
        layer.backward(y)


@parametrized
def test_backward_refuses_another_shape_or_dtype(case: Case) -> None:
    layer = case.make(np.float64)
    y = layer.forward(distinct(case.shape), training=True)
    with pytest.raises(ValueError, match=r"grad_y must have the shape of the output"):
        layer.backward(np.ones((*y.shape, 1)))
    with pytest.raises(TypeError, match=r"grad_y must have the dtype of the output, float64"):
        layer.backward(np.ones(y.shape, np.float32))
    with pytest.raises(TypeError, match=r"grad_y must be a numpy array, got list"):
        layer.backward(y.tolist())


@parametrized
def test_x_must_be_a_floating_array(case: Case) -> None:
    layer = case.make(np.float64)
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        layer.forward(np.ones(case.shape, np.int64))
    with pytest.raises(TypeError, match="numpy array, got list"):
        layer.forward(np.ones(case.shape).tolist())


@parametrized
def test_any_byte_and_memory_order(case: Case) -> None:
    x = distinct(case.shape)
    strange = np.asfortranarray(x).astype(">f8")
    y = case.make(np.float64).forward(x, training=True)
    result = case.make(np.float64).forward(strange, training=True)
    assert result.dtype.isnative
    np.testing.assert_allclose(result, y, rtol=1e-12, atol=1e-12)


@parametrized
def test_a_mask_is_not_ignored(case: Case) -> None:
    with pytest.raises(TypeError, match="must be a numpy array, got MaskedArray"):
        case.make(np.float64).forward(np.ma.masked_array(distinct(case.shape)))


@parametrized
def test_predict_is_forward_in_pieces(case: Case) -> None:
    layer = case.make(np.float64)
    x = batched(case)
    expected = layer.forward(x)
    for batch_size in (1, 2, 256):
        np.testing.assert_allclose(layer.predict(x, batch_size), expected, rtol=1e-12, atol=1e-12)


@parametrized
def test_empty_batch(case: Case) -> None:
    layer = case.make(np.float64)
    x = batched(case)
    y = layer.predict(x[:0])
    assert y.shape == (0, *layer.forward(x).shape[1:])


def test_predict_refuses_a_batch_size_of_0() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        nn.ReLU().predict(np.ones((2, 3)), batch_size=0)


# --- layouts ------------------------------------------------------------------------------------


def of_layout(layout: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2, layout=layout, rng=1, dtype=np.float64),
        nn.BatchNorm2d(8, layout=layout, dtype=np.float64),
        nn.ReLU(),
        nn.MaxPool2d(2, layout=layout),
        nn.ConvTranspose2d(8, 6, 2, 2, layout=layout, rng=2, dtype=np.float64),
        nn.AvgPool2d(3, 2, 1, layout=layout),
        nn.AdaptiveAvgPool2d((3, 2), layout=layout),
        nn.Flatten(layout=layout),
        nn.Linear(36, 5, rng=3, dtype=np.float64),
    )


def test_one_seed_is_one_network_in_both_layouts() -> None:
    first, last = of_layout("NCHW"), of_layout("NHWC")
    a, b = first.state_dict(), last.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])
    assert last.params["0.weight"].shape == (3, 3, 2, 8)
    assert last.params["4.weight"].shape == (2, 2, 6, 8)


def test_networks_of_both_layouts_agree() -> None:
    first, last = of_layout("NCHW"), of_layout("NHWC")
    x = distinct((3, 4, 8, 6))
    x_last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    y, y_last = first.forward(x, True), last.forward(x_last, True)
    np.testing.assert_allclose(y, y_last, rtol=1e-10, atol=1e-12)
    grad_y = np.random.default_rng(0).standard_normal(y.shape)
    grad_x, grad_last = first.backward(grad_y), last.backward(grad_y)
    np.testing.assert_allclose(np.moveaxis(grad_last, -1, 1), grad_x, rtol=1e-8, atol=1e-12)
    for name, grad in first.grads.items():
        other = last.grads[name]
        if other.ndim == 4:
            other = other.transpose(3, 2, 0, 1)
        np.testing.assert_allclose(other, grad, rtol=1e-8, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(first.forward(x), last.forward(x_last), rtol=1e-10, atol=1e-12)


# --- start values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(8, 64, (3, 5), groups=4, rng=0), 2 * 15),
        (nn.ConvTranspose2d(64, 32, 3, groups=4, rng=0), 8 * 9),
        (nn.Linear(50, 90, rng=0), 50),
    ],
    ids=lambda value: type(value).__name__,
)
def test_start_values_are_uniform_up_to_one_over_root_fan_in(layer: nn.Layer, fan_in: int) -> None:
    bound = fan_in**-0.5
    weight = layer.params["weight"]
    assert 0.99 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
    # 1000 and more draws: the mean of |U(-b, b)| is b / 2, with a deviation of 1 % at most
    assert np.abs(weight).mean() == pytest.approx(bound / 2, rel=0.06)
    assert abs(weight.mean()) < 0.06 * bound
    assert 0.5 * bound < np.abs(layer.params["bias"]).max() <= bound * (1 + 1e-6)


def test_seeds() -> None:
    def weight(rng: Any, dtype: Any = np.float32) -> Any:
        return nn.Conv2d(2, 3, 3, rng=rng, dtype=dtype).params["weight"]

    np.testing.assert_array_equal(weight(5), weight(5))
    np.testing.assert_array_equal(weight(5), weight(np.random.default_rng(5)))
    np.testing.assert_array_equal(weight(5), weight(5, np.float64).astype(np.float32))
    assert not np.array_equal(weight(5), weight(6))
    assert not np.array_equal(weight(None), weight(None))
    shared = np.random.default_rng(5)
    assert not np.array_equal(weight(shared), weight(shared))


# --- single layers ------------------------------------------------------------------------------

reals = st.floats(-50, 50, width=32)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=reals)


@given(matrices)
def test_softmax_sums_to_one_and_ignores_an_offset(x: Any) -> None:
    y = nn.Softmax().forward(x)
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(nn.Softmax().forward(x + 1000), y, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.exp(nn.LogSoftmax().forward(x)), y, rtol=1e-4, atol=1e-7)


@given(matrices)
def test_sigmoid_against_float64(x: Any) -> None:
    with np.errstate(all="raise", under="ignore"):
        y = nn.Sigmoid().forward(x)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-6)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.just(2), st.just(3), st.integers(2, 7), st.integers(2, 7)),
        elements=reals,
    )
)
def test_max_pooling_and_relu_commute(x: Any) -> None:
    pool, relu = nn.MaxPool2d(2, 1), nn.ReLU()
    np.testing.assert_array_equal(pool.forward(relu.forward(x)), relu.forward(pool.forward(x)))


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softmax(), nn.LogSoftmax()]
)
def test_activations_pass_nan_on(layer: nn.Layer) -> None:
    assert np.isnan(layer.forward(np.array([[np.nan, 1.0]]))[0, 0])


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.LogSoftmax(-3)])
def test_softmax_of_a_missing_axis(layer: nn.Layer) -> None:
    with pytest.raises(ValueError, match=r"x has no axis"):
        layer.forward(np.ones(3))


def test_dropout() -> None:
    x = np.ones((200, 100), np.float32)
    layer = nn.Dropout(0.25, rng=0)
    assert layer.forward(x) is x
    y = layer.forward(x, training=True)
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    # 20,000 draws: the deviation of the mean is 0.3 %
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.015)
    assert not np.array_equal(y, layer.forward(x, training=True))
    np.testing.assert_array_equal(y, nn.Dropout(0.25, rng=0).forward(x, training=True))
    np.testing.assert_array_equal(nn.Dropout(0.0).forward(x, training=True), x)
    assert not nn.Dropout(1.0).forward(x, training=True).any()
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="p must be between 0 and 1"):
            nn.Dropout(p)


def test_linear_by_hand() -> None:
    layer = nn.Linear(2, 3, dtype=np.float64)
    layer.params["weight"][:] = [[1, 2], [3, 4], [5, 6]]
    layer.params["bias"][:] = [10, 20, 30]
    x = np.array([[1.0, 0.0], [1.0, -1.0]])
    np.testing.assert_array_equal(layer.forward(x, True), [[11, 23, 35], [9, 19, 29]])
    np.testing.assert_array_equal(layer.backward(np.eye(3)[:2]), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(layer.grads["weight"], [[1, 0], [1, -1], [0, 0]])
    np.testing.assert_array_equal(layer.grads["bias"], [1, 1, 0])


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Linear(4, 2), (3, 5), r"Linear\(4, 2\): the last axis of x must have 4 features"),
        (nn.Conv2d(3, 2, 1), (1, 4, 5, 5), r"Conv2d\(3, 2, .*x must have 3 channels.*got 4"),
        (nn.Conv2d(3, 2, 1, layout="NHWC"), (1, 3, 5, 5), r"3 channels on axis -1, got 5"),
        (nn.Conv1d(3, 2, 1), (1, 3, 5, 5), r"Conv1d.*x must have 3 axes, or 2"),
        (nn.ConvTranspose2d(3, 2, 1), (1, 4, 5, 5), r"ConvTranspose2d.*3 channels"),
        (nn.BatchNorm2d(3), (1, 4, 5, 5), r"BatchNorm2d\(3\): x must have 4 axes and 3 channels"),
        (nn.BatchNorm2d(3), (3, 5, 5), r"BatchNorm2d\(3\): x must have 4 axes"),
        (nn.Flatten(), (3,), r"Flatten\(\): x must have at least 2 axes"),
        (nn.MaxPool2d(2), (3,), r"axes"),
        (nn.AvgPool2d(9), (1, 1, 3, 3), r"avg_pool2d"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Layer) else "",
)
def test_wrong_shapes(layer: nn.Layer, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.forward(np.ones(shape, np.float32))


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)])
def test_x_must_have_the_dtype_of_the_parameters(layer: nn.Layer) -> None:
    x = np.ones((1, 3) if isinstance(layer, nn.Linear) else (1, 3, 2, 2))
    with pytest.raises(TypeError, match=r"float64.*float32"):
        layer.forward(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 8, 3, groups=2), "Conv2d: groups must divide both channel counts"),
        (lambda: nn.Conv2d(0, 8, 3), "Conv2d: in_channels must be at least 1, got 0"),
        (lambda: nn.Conv2d(3, 8, 0), "Conv2d: kernel_size must be at least 1"),
        (lambda: nn.Conv2d(3, 8, (3, 3, 3)), "Conv2d: kernel_size must be an int or 2 ints"),
        (lambda: nn.Conv2d(3, 8, 3, stride=0), "Conv2d: stride must be at least 1"),
        (lambda: nn.Conv2d(3, 8, 3, layout="CHWN"), "Conv2d: layout must be"),
        (lambda: nn.Conv2d(3, 8, 3, padding_mode="mirror"), "Conv2d: padding_mode must be one of"),
        (lambda: nn.ConvTranspose2d(3, 8, 3, groups=3), "ConvTranspose2d: groups must divide"),
        (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size must be at least 1"),
        (lambda: nn.MaxPool2d(2, layout="x"), "MaxPool2d: layout must be"),
        (lambda: nn.MaxPool1d((2, 2)), "MaxPool1d: kernel_size must be an int or 1 ints"),
        (lambda: nn.AdaptiveMaxPool3d(2, layout="x"), "AdaptiveMaxPool3d: layout must be"),
        (lambda: nn.AdaptiveAvgPool2d(2, layout="x"), "AdaptiveAvgPool2d: layout must be"),
        (lambda: nn.Linear(3, 0), "Linear: out_features must be at least 1, got 0"),
        (lambda: nn.BatchNorm2d(0), "BatchNorm2d: num_features must be at least 1"),
        (lambda: nn.BatchNorm2d(3, momentum=2), "BatchNorm2d: momentum must be between 0 and 1"),
        (lambda: nn.BatchNorm2d(3, eps=-1), "BatchNorm2d: eps must not be negative"),
    ],
)
def test_wrong_arguments(make: Callable[[], nn.Layer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_argument_types() -> None:
    with pytest.raises(TypeError, match=r"Conv2d: in_channels must be an int, got 3\.0"):
        nn.Conv2d(3.0, 8, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Linear: dtype must be float32 or float64, got float16"):
        nn.Linear(3, 8, dtype=np.float16)
    with pytest.raises(TypeError, match="Sequential: argument 1 must be a Layer"):
        nn.Sequential(nn.ReLU(), np.tanh)  # type: ignore[arg-type]


# --- batch normalisation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.AdaptiveAvgPool2d(-1), ValueError, "AdaptiveAvgPool2d: output_size must be at least 1"),
        (lambda: nn.AdaptiveMaxPool3d((1, 2)), ValueError, "AdaptiveMaxPool3d: output_size must be"),
        (lambda: nn.AdaptiveAvgPool1d("x"), TypeError, "AdaptiveAvgPool1d: output_size must be an int, or"),
        (lambda: nn.Softmax(1.5), TypeError, "Softmax: dim must be an int, .* got 1.5"),
        (lambda: nn.LogSoftmax(None), TypeError, "LogSoftmax: dim must be an int"),
        (lambda: nn.LeakyReLU("x"), TypeError, "LeakyReLU: negative_slope must be a number, got 'x'"),
        (lambda: nn.save(3, "x"), TypeError, "save: net must be a Layer, got int"),
        (lambda: nn.load(3, "x"), TypeError, "load: net must be a Layer, got int"),
    ],
)  # fmt: skip
def test_refused_when_made(make: Any, error: type[Exception], message: str) -> None:
    """These failed in their first forward, or with messages that name no argument."""
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_batch_norm_by_hand() -> None:
    layer = nn.BatchNorm2d(1, eps=0.0, momentum=0.25, dtype=np.float64)
    layer.params["weight"][:] = 2
    layer.params["bias"][:] = 1
    x = np.array([1.0, 3.0, 5.0, 7.0]).reshape(4, 1, 1, 1)
    # mean 4, biased variance 5, unbiased 20 / 3
    y = layer.forward(x, training=True)
    np.testing.assert_allclose(y.ravel(), 1 + 2 * np.array([-3, -1, 1, 3]) / np.sqrt(5))
    state = layer.state_dict()
    assert state["running_mean"] == pytest.approx([0.25 * 4])
    assert state["running_var"] == pytest.approx([0.75 * 1 + 0.25 * 20 / 3])
    assert state["num_batches_tracked"] == 1
    expected = 1 + 2 * (x - state["running_mean"]) / np.sqrt(state["running_var"])
    np.testing.assert_allclose(layer.forward(x), expected)
    assert layer.state_dict()["num_batches_tracked"] == 1


def test_batch_norm_without_momentum_averages_all_batches() -> None:
    layer = nn.BatchNorm2d(1, momentum=None, dtype=np.float64)
    batches = np.random.default_rng(0).standard_normal((3, 4, 1, 2, 2))
    for batch in batches:
        layer.forward(batch, training=True)
    state = layer.state_dict()
    assert state["running_mean"] == pytest.approx(batches.mean())
    assert state["running_var"] == pytest.approx(np.mean([batch.var(ddof=1) for batch in batches]))


def test_frozen_batch_norm_changes_no_estimate() -> None:
    layer = frozen_batch_norm(np.float64)
    before = layer.state_dict()
    x = distinct((4, 3, 3, 2))
    y = layer.forward(x, training=True)
    np.testing.assert_allclose(y, layer.forward(x), rtol=1e-12)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_batch_norm_precision_on_data_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 2, 32, 32)) + 100).astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.sqrt(
        exact.var((0, 2, 3), keepdims=True) + 1e-5
    )
    for layout in ("NCHW", "NHWC"):
        layer = nn.BatchNorm2d(2, layout=layout)
        moved = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
        y = layer.forward(moved, training=True)
        y = y if layout == "NCHW" else np.moveaxis(y, -1, 1)
        # x itself carries an error of 100 * 2**-24 = 6e-6
        np.testing.assert_allclose(y, expected, atol=3e-5)


def test_batch_norm_refuses_to_train_on_one_value_per_channel() -> None:
    layer = nn.BatchNorm2d(3)
    before = layer.state_dict()
    for shape in ((1, 3, 1, 1), (0, 3, 4, 4)):
        with pytest.raises(ValueError, match="training needs more than one value per channel"):
            layer.forward(np.ones(shape, np.float32), training=True)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


# --- Sequential ---------------------------------------------------------------------------------


def test_errors_say_which_layer() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="features") as caught:
        net.forward(np.ones((2, 3), np.float32))
    notes = caught.value.__notes__
    assert notes[0].startswith("in the forward of layer 1: Linear(4, 2)")
    assert notes[1].startswith("in the forward of layer 1: Sequential(")
    net.forward(np.ones((2, 4), np.float32), training=True)
    with pytest.raises(ValueError, match="shape of the output") as caught:
        net.backward(np.ones((2, 3), np.float32))
    assert caught.value.__notes__[0].startswith("in the backward of layer 1: Linear(4, 2)")


def test_a_layer_may_occur_once() -> None:
    relu = nn.ReLU()
    with pytest.raises(ValueError, match=r"ReLU\(\) occurs twice"):
        nn.Sequential(relu, nn.Linear(2, 2), relu)
    with pytest.raises(ValueError, match="occurs twice"):
        nn.Sequential(relu, nn.Sequential(relu))


def test_an_empty_sequential_is_the_identity() -> None:
    net = nn.Sequential()
    x = np.ones((2, 3))
    assert net.forward(x, training=True) is x
    assert net.backward(x) is x
    assert net.params == {}


def test_training_does_not_ask_for_the_gradient_of_the_data() -> None:
    calls = []

    class Spy(nn.ReLU):
        def backward(self, grad_y: Any) -> Any:
            calls.append("spy")
            return super().backward(grad_y)

    net = nn.Sequential(Spy(), nn.Linear(3, 2), Spy())
    y = net.forward(np.ones((2, 3), np.float32), training=True)
    net.backward_params(np.ones_like(y))
    assert calls == ["spy"]
    net.backward(np.ones_like(y))
    assert calls == ["spy"] * 3


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_convolution_and_relu_in_one_go_are_the_two_apart(layout: str) -> None:
    conv, relu = nn.Conv2d(3, 4, 3, layout=layout, rng=0), nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 4, 3, layout=layout, rng=0), nn.ReLU())
    x = distinct((2, 5, 6, 3) if layout == "NHWC" else (2, 3, 5, 6), np.float32)
    x.flat[0] = np.nan
    y = relu.forward(conv.forward(x, training=True), training=True)
    assert np.isnan(y).any()
    assert (y == 0).any()
    np.testing.assert_array_equal(net.forward(x), y)
    np.testing.assert_array_equal(net.forward(x, training=True), y)
    grad_y = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    expected = conv.backward(relu.backward(grad_y))
    np.testing.assert_array_equal(net.backward(grad_y), expected)
    for name, grad in conv.grads.items():
        np.testing.assert_array_equal(net.grads[f"0.{name}"], grad)


def test_a_convolution_or_relu_of_ones_own_is_called() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Any, training: bool = False) -> Any:
            return 2 * super().forward(x, training)

    class Capped(nn.ReLU):
        def forward(self, x: Any, training: bool = False) -> Any:
            return np.minimum(super().forward(x, training), 1)

    x = distinct((2, 3, 5, 6), np.float32)
    plain = nn.Conv2d(3, 4, 3, rng=0)
    doubled = nn.Sequential(Doubled(3, 4, 3, rng=0), nn.ReLU())
    np.testing.assert_allclose(doubled.forward(x), 2 * np.maximum(plain.forward(x), 0), rtol=1e-6)
    capped = nn.Sequential(plain, Capped())
    np.testing.assert_allclose(capped.forward(x), np.clip(plain.forward(x), 0, 1), rtol=1e-6)


def test_repr() -> None:
    assert repr(nn.Conv2d(4, 8, 3, 2, "same", groups=2, bias=False)) == (
        "Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding='same', groups=2, bias=False)"
    )
    assert repr(nn.LPPool1d(2, 3)) == "LPPool1d(kernel_size=(3,), norm_type=2)"
    assert repr(nn.MaxPool2d(3, 2, 1)) == "MaxPool2d(kernel_size=(3, 3), stride=(2, 2), padding=1)"
    assert repr(nn.Sequential(nn.Sequential(nn.ReLU()))) == (
        "Sequential(\n  0: Sequential(\n    0: ReLU()\n  )\n)"
    )
