"""`fastconv.autograd`: the values and gradients are fastconv's own, and derivatives of them are right again.

Where sums are of small integers everything is exact, so identities are checked by equality; where a function
is not linear, by autograd's own checks against finite differences.
"""

from __future__ import annotations

import inspect
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.extend import Box
from autograd.test_util import check_grads
from harness import reference_forward, reference_input_grad, reference_weight_grad
from hypothesis import given
from oracles import assert_same, assert_same_bits, inner
from strategies import Conv, Pool, convs, pools, values

import fastconv
import fastconv.autograd as followed

#: What is not differentiated: gradients of what is, and what computes nothing.
BACKWARD = [name for name in fastconv.__all__ if name.endswith("_backward")]
DIFFERENTIABLE = sorted(set(followed.__all__))


def gauss(seed: int, *shape: int) -> np.ndarray:
    return values(seed, "gauss", "float64", shape)


def check(function: Any, *arrays: np.ndarray, modes: tuple[str, ...] = ("fwd", "rev")) -> None:
    """First and second derivatives against differences."""
    np.random.seed(0)  # noqa: NPY002 - the directions that autograd draws
    check_grads(function, modes=list(modes), order=2)(*arrays)


# --- names and arguments --------------------------------------------------------------------------


def test_every_differentiable_function_is_there() -> None:
    names = {name for name in fastconv.__all__ if "pool" in name or "conv" in name or "col" in name}
    names -= {"ConvGrads", *BACKWARD}
    names -= {"conv_integer", "qlinear_conv", "deform_conv2d"}  # which have no gradients here
    assert set(followed.__all__) == names


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_arguments_are_those_of_fastconv(name: str) -> None:
    theirs = inspect.signature(getattr(fastconv, name)).parameters
    mine = inspect.signature(getattr(followed, name)).parameters
    expected = [(p.name, p.kind, p.default) for p in theirs.values() if p.name != "out"]
    assert [(p.name, p.kind, p.default) for p in mine.values()] == expected
    assert getattr(followed, name).__name__ == name
    assert f"`fastconv.{name}`" in getattr(followed, name).__doc__


# --- convolution ----------------------------------------------------------------------------------


def conv(case: Conv, **options: Any) -> Any:
    """The function of x and weight, by sums that are exact for integers."""
    function = getattr(followed, f"conv{case.rank}d")
    return lambda x, weight, bias=None: function(x, weight, bias, **case.facts, algorithm="im2col", **options)


@given(case=convs(kind="ints", dtype="float64"))
def test_convolution(case: Conv) -> None:
    """First derivatives, and the mixed second ones, which are convolutions, too."""
    x, weight, u = case.give(case.x()), case.give_weight(case.weight()), case.give(case.grad())
    bias = values(7, "ints", "float64", (case.channels[1],))
    run = conv(case)

    def s(x: Any, weight: Any, bias: Any) -> Any:
        return anp.sum(run(x, weight, bias) * u)

    by_x, by_weight, by_bias = (autograd.grad(s, i) for i in range(3))
    input_grad = case.give(reference_input_grad(case, case.grad(), case.weight()))
    weight_grad = case.give_weight(reference_weight_grad(case, case.grad(), case.x()))
    assert_same(by_x(x, weight, bias), input_grad)
    assert_same(by_weight(x, weight, bias), weight_grad)
    assert_same(by_bias(x, weight, bias), case.grad().sum(axis=(0, *range(2, case.rank + 2))))
    assert s(x, weight, bias) == inner(
        case.take(u), reference_forward(case, case.x(), case.weight())
    ) + inner(by_bias(x, weight, bias), bias)

    v, q = values(8, "ints", "float64", x.shape), values(9, "ints", "float64", weight.shape)
    mixed = autograd.grad(lambda weight: anp.sum(by_x(x, weight, bias) * v))(weight)
    assert_same(mixed, autograd.grad(s, 1)(v, weight, bias))
    mixed = autograd.grad(lambda x: anp.sum(by_weight(x, weight, bias) * q))(x)
    assert_same(mixed, autograd.grad(s, 0)(x, q, bias))

    value, tangent = autograd.make_jvp(lambda x: run(x, weight, bias))(x)(v)
    assert_same(value, run(x, weight, bias))
    assert_same(tangent, run(v, weight))
    assert_same(autograd.make_jvp(lambda weight: run(x, weight, bias))(weight)(q)[1], run(x, q))
    ones = autograd.make_jvp(lambda bias: run(x, weight, bias))(bias)(np.ones_like(bias))[1]
    assert_same(ones, np.ones_like(u))


CASES = [
    Conv((9,), (3,), (2, 3), batch=2, stride=2, padding=((2, 1),), dtype="float64", kind="ints"),
    Conv((5, 6), (3, 2), (4, 2), batch=None, padding="same", groups=2, dtype="float64", kind="ints"),
    Conv((5, 6), (2, 3), (2, 4), batch=2, padding=1, layout="NHWC", dtype="float64", kind="ints"),
    Conv((3, 4, 4), (2, 2, 3), (1, 2), batch=1, dilation=(1, 2, 1), dtype="float64", kind="ints"),
]


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_padding_modes(case: Conv, padding_mode: str) -> None:
    x, weight, u = case.give(case.x()), case.give_weight(case.weight()), case.give(case.grad())
    run = conv(case, padding_mode=padding_mode)
    backward = getattr(fastconv, f"conv{case.rank}d_backward")
    expected = backward(u, x, weight, **case.facts, padding_mode=padding_mode, algorithm="im2col")
    gradients = [autograd.grad(lambda x, w: anp.sum(run(x, w) * u), i) for i in (0, 1)]
    assert_same(gradients[0](x, weight), expected.x)
    assert_same(gradients[1](x, weight), expected.weight)
    check(run, x, weight)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_derivatives(case: Conv, activation: str | None) -> None:
    x = case.give(gauss(1, *case.x().shape))
    weight = case.give_weight(gauss(2, *case.weight().shape))
    run = conv(case, activation=activation)
    check(run, x, weight, gauss(3, case.channels[1]))


def test_relu_is_that_of_numpy() -> None:
    x, weight, bias = gauss(0, 2, 3, 6, 6), gauss(1, 4, 3, 3, 3), gauss(2, 4)

    def fused(*arrays: Any) -> Any:
        return anp.sum(followed.conv2d(*arrays, padding=1, activation="relu") ** 2)

    def apart(*arrays: Any) -> Any:
        return anp.sum(anp.maximum(followed.conv2d(*arrays, padding=1), 0) ** 2)

    for i in range(3):
        np.testing.assert_allclose(
            autograd.grad(fused, i)(x, weight, bias), autograd.grad(apart, i)(x, weight, bias), rtol=1e-12
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_as_functions(case: Conv) -> None:
    """`conv{n}d_input_grad` and `conv{n}d_weight_grad`, which are linear in each argument."""
    facts = {**case.facts, "algorithm": "im2col"}
    x, weight, u = case.give(case.x()), case.give_weight(case.weight()), case.give(case.grad())
    for name, other, shape in (("input_grad", weight, x.shape), ("weight_grad", x, weight.shape)):
        full = f"conv{case.rank}d_{name}"
        numeric, function = getattr(fastconv, full), getattr(followed, full)
        assert_same_bits(function(u, other, shape, **facts), numeric(u, other, shape, **facts))
        check(lambda u, other, f=function, s=shape: f(u, other, s, **facts), u, other)


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 5), (3, 2, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((4, 3, 4), (4, 1, 3, 2), {"groups": 2, "dilation": 2}),
    # a convolution of y with this output padding would have more cells than x
    ((2, 3, 4, 3), (3, 2, 2, 2), {"dilation": 3, "output_padding": 2}),
    ((1, 4, 3, 2), (3, 2, 4, 2), {"stride": (1, 2), "padding": ((1, 0), (0, 1)), "layout": "NHWC"}),
    ((1, 2, 2, 3, 2), (2, 2, 1, 2, 3), {"stride": 2}),
]


@pytest.mark.parametrize(("x_shape", "weight_shape", "facts"), TRANSPOSED)
def test_transposed(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], facts: dict[str, Any]) -> None:
    name = f"conv_transpose{len(weight_shape) - 2}d"
    function, numeric = getattr(followed, name), getattr(fastconv, name)
    channels = weight_shape[-2] if facts.get("layout") == "NHWC" else weight_shape[1]
    x, weight, bias = gauss(0, *x_shape), gauss(1, *weight_shape), gauss(2, channels * facts.get("groups", 1))
    y = numeric(x, weight, bias, **facts)
    assert_same_bits(function(x, weight, bias, **facts), y)
    u = gauss(3, *y.shape)
    expected = getattr(fastconv, f"{name}_backward")(u, x, weight, **facts)
    for i, gradient in enumerate(expected):
        run = autograd.grad(lambda *arrays: anp.sum(function(*arrays, **facts) * u), i)
        np.testing.assert_allclose(run(x, weight, bias), gradient, rtol=1e-12)
    check(lambda *arrays: function(*arrays, **facts), x, weight, bias)


# --- pooling and lowering -------------------------------------------------------------------------


@given(case=pools(kinds=("ints",), dtype="float64"))
def test_max_pool(case: Pool) -> None:
    """Integers have many ties: the first maximum gets everything, in every derivative."""
    x, u = case.give(case.x()), case.give(case.grad())
    function = getattr(followed, f"max_pool{case.rank}d")
    scatter = getattr(fastconv, f"max_pool{case.rank}d_backward")
    y, indices = getattr(fastconv, f"max_pool{case.rank}d")(x, **case.facts, return_indices=True)

    def s(x: Any, u: Any) -> Any:
        pooled, found = function(x, **case.facts, return_indices=True)
        assert isinstance(pooled, Box)
        assert_same(found, indices)
        return anp.sum(pooled * u)

    assert_same(function(x, **case.facts), y)
    by_x = autograd.grad(s)
    assert_same(by_x(x, u), scatter(u, indices, x.shape, layout=case.layout))
    v = values(8, "ints", "float64", x.shape)
    chosen = autograd.grad(lambda u: anp.sum(by_x(x, u) * v))(u)
    assert inner(chosen, u) == inner(v, by_x(x, u))
    assert_same(autograd.make_jvp(lambda x: function(x, **case.facts))(x)(v)[1], chosen)


@given(case=pools(kinds=("gauss",), dtype="float64"))
def test_avg_pool(case: Pool) -> None:
    x, u = case.give(case.x()), case.give(case.grad())
    name = f"avg_pool{case.rank}d"
    facts = {**case.facts, "count_include_pad": False}
    function = getattr(followed, name)
    expected = getattr(fastconv, f"{name}_backward")(u, x.shape, **facts)
    by_x = autograd.grad(lambda x, u: anp.sum(function(x, **facts) * u))
    assert_same_bits(function(x, **facts), getattr(fastconv, name)(x, **facts))
    assert_same_bits(by_x(x, u), expected)
    v = values(8, "gauss", "float64", x.shape)
    assert_same_bits(autograd.grad(lambda u: anp.sum(by_x(x, u) * v))(u), function(v, **facts))
    assert_same_bits(autograd.make_jvp(lambda x: function(x, **facts))(x)(v)[1], function(v, **facts))


#: Where max pooling of 2 x 2 could have found cells, all different.
PLACES = np.arange(24).reshape(2, 2, 2, 3) % 6

POOLED: dict[str, Any] = {
    "max 1d": (lambda x: followed.max_pool1d(x, 2, ceil_mode=True), (2, 3, 5)),
    "max 2d": (lambda x: followed.max_pool2d(x, 3, 2, 1), (2, 3, 5, 6)),
    "max 2d, channels last, no batch": (lambda x: followed.max_pool2d(x, 2, layout="NHWC"), (5, 6, 3)),
    "max 3d": (lambda x: followed.max_pool3d(x, 2), (1, 2, 4, 4, 5)),
    "avg 2d": (lambda x: followed.avg_pool2d(x, 2, divisor_override=3), (2, 2, 4, 5)),
    "adaptive avg 1d": (lambda x: followed.adaptive_avg_pool1d(x, 3), (2, 2, 7)),
    "adaptive avg 2d": (lambda x: followed.adaptive_avg_pool2d(x, (3, None), layout="NHWC"), (2, 5, 4, 2)),
    "adaptive avg 3d": (lambda x: followed.adaptive_avg_pool3d(x, 2), (1, 2, 3, 4, 5)),
    "adaptive max 1d": (lambda x: followed.adaptive_max_pool1d(x, 3), (2, 7)),
    "adaptive max 2d": (lambda x: followed.adaptive_max_pool2d(x, (2, 3)), (2, 2, 5, 4)),
    "adaptive max 3d": (lambda x: followed.adaptive_max_pool3d(x, 2, layout="NHWC"), (1, 3, 4, 5, 2)),
    "im2col 1d": (lambda x: followed.im2col(x, (3,), padding=1), (2, 5)),
    "im2col 2d": (lambda x: followed.im2col(x, 3, 1, 1, 2), (2, 3, 5, 6)),
    "im2col 2d, no batch": (lambda x: followed.im2col(x, (2, 3), padding="same"), (3, 5, 6)),
    "im2col 3d": (lambda x: followed.im2col(x, 2), (1, 2, 3, 4, 3)),
    "lp 1d": (lambda x: followed.lp_pool1d(x**2 + 1, 3, 2, ceil_mode=True), (2, 2, 5)),
    "lp 2d": (lambda x: followed.lp_pool2d(x, 2, 3, 2, padding=1, ceil_mode=True), (2, 2, 4, 6)),
    "lp 2d of a fraction": (lambda x: followed.lp_pool2d(x**2 + 1, np.float64(1.5), 2), (2, 2, 4, 5)),
    "lp 3d": (lambda x: followed.lp_pool3d(x, -np.inf, 2, layout="NHWC"), (1, 3, 4, 4, 2)),
    "unpool 1d": (lambda x: followed.max_unpool1d(x, PLACES[:, :, 0], 2), (2, 2, 3)),
    "unpool 2d": (lambda x: followed.max_unpool2d(x, PLACES, 2, output_size=(5, 6)), (2, 2, 2, 3)),
    "unpool 3d": (lambda x: followed.max_unpool3d(x, PLACES[:, :, None], 2), (2, 2, 1, 2, 3)),
    "col2im 1d": (lambda x: followed.col2im(x, (6,), 3), (2, 3, 4)),
    "col2im 2d": (lambda x: followed.col2im(x, 4, 2, stride=2), (2, 8, 4)),
    "col2im 2d, no batch": (lambda x: followed.col2im(x, (3, 4), 2), (4, 6)),
}


@pytest.mark.parametrize("name", POOLED)
def test_derivatives_of_linear_maps(name: str) -> None:
    function, shape = POOLED[name]
    x = gauss(0, *shape)
    check(function, x)
    check(lambda x: anp.sin(function(x)), x)


@pytest.mark.parametrize("norm", [1, 2.0, 3, -2, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lp_pool(norm: float, dtype: str) -> None:
    x = gauss(0, 2, 3, 5, 7).astype(dtype)
    x = np.abs(x) + 1 if norm == 3 else x
    if norm == 2.0:
        x[:, :, :2, :2] = 0  # a window of value 0
    facts = {"kernel_size": 2, "ceil_mode": True, "padding": ((0, 0), (1, 0))}
    if norm < 0:
        facts = {"kernel_size": 2}  # zeros of the padding have no such powers
    y = fastconv.lp_pool2d(x, norm, **facts)
    u = gauss(1, *y.shape).astype(dtype)
    value, gradient = autograd.value_and_grad(lambda x: anp.sum(followed.lp_pool2d(x, norm, **facts) * u))(x)
    np.testing.assert_allclose(value, np.sum(y * u), rtol=1e-4)
    assert gradient.dtype == dtype
    expected = fastconv.lp_pool2d_backward(u, x, norm, **facts)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_pooled_values_are_fastconvs() -> None:
    x = gauss(0, 2, 3, 6, 7)
    cols = fastconv.im2col(x, 3)
    for name, args in (
        ("lp_pool2d", (x, 2, 3)),
        ("max_unpool2d", (x, np.zeros(x.shape, int), 2)),
        ("adaptive_avg_pool2d", (x, 3)),
        ("adaptive_max_pool2d", (x, 3)),
        ("im2col", (x, 3)),
        ("col2im", (cols, (6, 7), 3)),
    ):
        assert_same_bits(getattr(followed, name)(*args), getattr(fastconv, name)(*args))


# --- together -------------------------------------------------------------------------------------


def net(parameters: list[Any], x: Any) -> Any:
    """Two convolutions, of which one is transposed, and both kinds of pooling."""
    first, bias, second = parameters
    hidden = followed.max_pool2d(anp.tanh(followed.conv2d(x, first, bias, padding="same")), 2)
    hidden = followed.avg_pool2d(anp.tanh(followed.conv_transpose2d(hidden, second, stride=2)), 2)
    return anp.sum(hidden**2)


def test_a_network() -> None:
    parameters, x = [gauss(0, 3, 2, 3, 3), gauss(1, 3), gauss(2, 3, 2, 2, 2)], gauss(3, 2, 2, 6, 6)
    check(net, parameters, x, modes=("rev",))


def test_hessian_vector_product() -> None:
    """Against the difference of two gradients."""
    x, first, bias = gauss(3, 2, 2, 6, 6), gauss(0, 3, 2, 3, 3), gauss(1, 3)
    second, direction = gauss(2, 3, 2, 2, 2), gauss(4, 3, 2, 3, 3)

    def loss(weight: Any) -> Any:
        return net([weight, bias, second], x)

    gradient, step = autograd.grad(loss), 1e-5
    product = autograd.hessian_vector_product(loss)(first, direction)
    difference = (gradient(first + step * direction) - gradient(first - step * direction)) / (2 * step)
    np.testing.assert_allclose(product, difference, rtol=1e-6, atol=1e-7)


def test_float32_stays_float32() -> None:
    """Also where the loss is taken in float64, and so its derivatives come back in that."""
    x, weight, factor = gauss(0, 2, 3, 6, 6), gauss(1, 2, 3, 3, 3), gauss(2, 2, 2, 2, 2)

    def loss(x: Any, weight: Any) -> Any:
        hidden = followed.avg_pool2d(followed.conv2d(x, weight), 2, 1)
        hidden = followed.max_pool2d(followed.conv_transpose2d(hidden, weight), 2, 2)
        assert hidden.dtype == x.dtype
        return anp.sum(followed.adaptive_avg_pool2d(hidden, 2)[:, :2] * factor)

    for i in (0, 1):
        gradient = autograd.grad(loss, i)
        single = gradient(x.astype(np.float32), weight.astype(np.float32))
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, gradient(x, weight), rtol=1e-3, atol=1e-4)


def test_arrays_by_name() -> None:
    """autograd looks for what it follows among positional arguments alone; the functions here see to that."""
    x, weight = gauss(0, 1, 2, 4, 4), gauss(1, 3, 2, 3, 3)
    gradient = autograd.grad(lambda w: anp.sum(followed.conv2d(x=x, weight=w, bias=w[:, 0, 0, 0])))(weight)
    expected = fastconv.conv2d_backward(np.ones((1, 3, 2, 2)), x, weight)
    expected.weight[:, 0, 0, 0] += expected.bias
    np.testing.assert_allclose(gradient, expected.weight, rtol=1e-12)


def test_packed_weight() -> None:
    """It goes wherever a weight goes, and x is followed through it."""
    x, weight = gauss(0, 2, 8, 9, 9), gauss(1, 8, 8, 3, 3)
    packed = fastconv.prepack(weight, x_shape=x.shape, padding=1)
    plain, with_packed = (
        autograd.grad(lambda x, w=w: anp.sum(followed.conv2d(x, w, padding=1) ** 2))(x)
        for w in (weight, packed)
    )
    np.testing.assert_allclose(with_packed, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: followed.conv2d(x, np.ones((1, 2, 3, 3))), ValueError, "conv2d: .*channels"),
        (lambda x: followed.conv2d(x, np.ones((1, 1, 3, 3), np.float32)), TypeError, "one dtype"),
        (lambda x: followed.conv2d(x, np.ones((1, 1, 3, 3)), activation="tanh"), ValueError, "activation"),
        (lambda x: followed.max_pool2d(x, 9), ValueError, "max_pool2d"),
        (lambda x: followed.im2col(x, (2, 2, 2)), ValueError, "im2col"),
    ],
)
def test_errors_are_fastconvs(call: Any, error: Any, message: str) -> None:
    x = np.ones((1, 1, 5, 5))
    with pytest.raises(error, match=message):
        call(x)
    with pytest.raises(error, match=message):
        autograd.grad(lambda x: anp.sum(call(x)))(x)
