"""What training does besides convolution: products, element by element, optimiser steps; against NumPy."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from harness import framed
from hypothesis import given
from hypothesis import strategies as st
from processes import python
from test_bounds import PAGES
from test_bounds import pytestmark as needs_pages

import fastconv
from fastconv import jit, nn
from fastconv.algorithms import elementwise, normalization, products
from fastconv.algorithms.elementwise import Choice
from fastconv.nn import optim

compiles = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: NumPy does it")
sizes = st.integers(1, 70)


@compiles
@given(sizes, st.integers(1, 700), sizes, st.sampled_from(["f4", "f8"]), st.booleans(), st.booleans())
def test_products(n: int, k: int, o: int, dtype: str, relu: bool, has_bias: bool) -> None:
    rng = np.random.default_rng(n + k)
    x, weight = (framed(rng.standard_normal((rows, k)).astype(dtype)) for rows in (n, o))
    bias = framed(rng.standard_normal(o).astype(dtype)) if has_bias else None
    grad = framed(rng.standard_normal((n, o)).astype(dtype))
    with mock.patch.object(products, "LEAST_WORK", 0):
        y = products.times_transposed(x, weight, bias, relu)
        grad_x, grad_weight = products.times(grad, weight), products.times(grad.T, x)
    exact = x.astype("f8") @ weight.T.astype("f8") + (0 if bias is None else bias)
    pairs = [
        (y, np.maximum(exact, 0) if relu else exact, abs(x) @ abs(weight.T) + 3),
        (grad_x, grad.astype("f8") @ weight.astype("f8"), abs(grad) @ abs(weight)),
        (grad_weight, grad.T.astype("f8") @ x.astype("f8"), abs(grad.T) @ abs(x)),
    ]
    for got, expected, scale in pairs:
        assert got is not None
        assert got.dtype == dtype
        assert (abs(got - expected) <= (max(n, k, o) + 2) * np.finfo(dtype).eps * scale).all()


@compiles
def test_large_and_strided_products_are_numpys() -> None:
    x, weight = np.ones((600, 600), np.float32), np.ones((600, 600), np.float32)
    assert products.times_transposed(x, weight, None, False) is None
    assert products.times_transposed(x[:100, ::2], weight[:, ::2], None, False) is None
    assert products.times(x, weight) is None


@given(st.integers(0, 9000), st.sampled_from(["f4", "f8"]))
def test_relu(count: int, dtype: str) -> None:
    x = framed(np.random.default_rng(count).standard_normal(count).astype(dtype))
    if count > 3:
        x[1:4] = np.nan, -np.inf, np.inf
    np.testing.assert_array_equal(elementwise.relu(x), np.maximum(x, 0))
    grad = framed(np.random.default_rng(1).standard_normal(count).astype(dtype))
    np.testing.assert_array_equal(elementwise.where_positive(grad, x), np.where(x > 0, grad, 0))


@given(st.integers(0, 9000), st.sampled_from(["f4", "f8"]), st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_dropout(count: int, dtype: str, p: float) -> None:
    """The choices are those that NumPy makes of the same hash, and those for any number of threads."""
    choice = Choice(12345, 678, round(p * 2**32))
    x = framed(np.random.default_rng(count).standard_normal(count).astype(dtype))
    expected = x * elementwise.kept(count, choice) * x.dtype.type(choice.scale)
    np.testing.assert_array_equal(elementwise.dropout(x, choice), expected)
    with fastconv.num_threads(1):
        np.testing.assert_array_equal(elementwise.dropout(x, choice), expected)


@given(st.integers(0, 9000), st.integers(0, 2**33), st.sampled_from(["f4", "f8"]))
def test_a_part_is_dropped_as_in_the_whole(count: int, position: int, dtype: str) -> None:
    """What is known of an element is its position: that of a part's first one counts."""
    choice = Choice(12345, 678, 1 << 31)
    x = framed(np.random.default_rng(count).standard_normal(count).astype(dtype))
    part = elementwise.dropout(x, choice._replace(position=position))
    expected = x * elementwise.kept(count, choice._replace(position=position)) * x.dtype.type(2)
    np.testing.assert_array_equal(part, expected)
    cut = count // 3
    whole = elementwise.dropout(x, choice)
    np.testing.assert_array_equal(
        elementwise.dropout(x[cut:].copy(), choice._replace(position=cut)), whole[cut:]
    )


def test_the_hash_is_as_good_as_random() -> None:
    """Shares, neighbours, and the choices of other seeds, within four standard deviations."""
    count = 1 << 20
    bound = 4 / np.sqrt(count)
    signs = []
    for seed, salt in ((0, 0), (1, 0), (0, 1), (12345, 678)):
        sign = 2.0 * elementwise.kept(count, Choice(seed, salt, 1 << 31)) - 1
        assert abs(sign.mean()) < bound
        for lag in (1, 2, 16, 28, 784):
            assert abs((sign[lag:] * sign[:-lag]).mean()) < bound
        assert all(abs((sign * other).mean()) < bound for other in signs)
        signs.append(sign)
    assert abs(elementwise.kept(count, Choice(5, 6, round(0.1 * 2**32))).mean() - 0.9) < bound


RULES = {
    "sgd": lambda net: nn.SGD(net, 0.1),
    "decay": lambda net: nn.SGD(net, 0.1, weight_decay=0.1),
    "momentum": lambda net: nn.SGD(net, 0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "nesterov": lambda net: nn.SGD(net, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda net: nn.Adam(net, 0.1, weight_decay=0.1),
    "adamw": lambda net: nn.AdamW(net, 0.1, weight_decay=0.1),
}


@compiles
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_steps_are_numpys(rule: str, dtype: str) -> None:
    """The fused step against the one array by array; a switch between them halfway changes nothing."""
    nets = [nn.Sequential(nn.Linear(190, 100, rng=0, dtype=dtype), nn.Linear(100, 3, rng=1, dtype=dtype))] * 3
    nets = [
        nn.Sequential(*(nn.Linear(a, b, rng=a, dtype=dtype) for a, b in ((190, 100), (100, 3)))) for _ in nets
    ]
    optimizers = [RULES[rule](net) for net in nets]
    rng = np.random.default_rng(0)
    for step in range(6):
        for net, optimizer, fused in zip(nets, optimizers, (True, False, step % 3 != 0), strict=True):
            rng = np.random.default_rng(step)
            for layer in net.layers:
                for name, param in layer.params.items():
                    layer.grads[name] = framed(rng.standard_normal(param.shape).astype(dtype))
            with mock.patch.object(optim, "update", optim.update if fused else lambda *_: False):
                optimizer.step()
    rtol = 1e-5 if dtype == "f4" else 1e-12
    for other in nets[1:]:
        for mine, theirs in zip(nets[0].params.values(), other.params.values(), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=rtol)


@compiles
def test_a_step_takes_what_is_not_contiguous() -> None:
    net = nn.Linear(6, 4, rng=0)
    before = net.params["weight"].copy()
    net.grads["weight"] = np.ones((6, 4), np.float32).T
    net.grads["bias"] = np.ones(4, np.float32)
    nn.SGD(net, 0.5, momentum=0.9).step()
    np.testing.assert_allclose(net.params["weight"], before - 0.5, atol=1e-6)


@compiles
@given(
    st.tuples(*[st.integers(1, most) for most in (5, 9, 9, 40)]), st.sampled_from(["f4", "f8"]), st.booleans()
)
def test_batch_norm(shape: tuple[int, ...], dtype: str, relu: bool) -> None:
    """Against NumPy's way, which serves channels-last arrays."""
    if shape[0] * shape[2] * shape[3] < 2:
        return
    rng = np.random.default_rng(shape[3])
    x = framed((rng.standard_normal(shape) * 3 + 50).astype(dtype))
    grad = framed(rng.standard_normal(shape).astype(dtype))
    results = []
    for layout in ("NCHW", "NHWC"):
        layer = nn.BatchNorm2d(shape[1], layout=layout, dtype=dtype)
        layer.params["weight"][:] = np.linspace(-2, 3, shape[1])
        layer.params["bias"][:] = np.linspace(-1, 1, shape[1])
        net = nn.Sequential(layer, *([nn.ReLU()] * relu))
        turned = (0, 1, 2, 3) if layout == "NCHW" else (0, 2, 3, 1)
        back = np.argsort(turned)
        y = net.forward(x.transpose(turned), training=True).transpose(back)
        grad_x = net.backward(np.ascontiguousarray(grad.transpose(turned))).transpose(back)
        rest = net.forward(x.transpose(turned)).transpose(back)
        results.append([y, grad_x, rest, *net.grads.values(), *net.state_dict().values()])
    if relu and ((results[0][0] > 0) != (results[1][0] > 0)).any():
        return  # a value so near 0 that rounding decides
    atol = 2e-4 if dtype == "f4" else 1e-11
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=atol, atol=atol * max(1, abs(theirs).max()))


FENCED = """
from unittest import mock
from fastconv import nn
from fastconv.algorithms import elementwise, products, updates
from fastconv.functional.blocks import conv_block, conv_block_backward
rng = np.random.default_rng(0)
products.LEAST_WORK = 0
for number in range(120):
    dtype, at_end = ("f4", "f8")[number % 2], bool(number & 2)
    draw = lambda *shape: fenced(rng.standard_normal(shape).astype(dtype), at_end)
    empty = np.empty_like
    with mock.patch.object(np, "empty", lambda s, d=float: fenced(np.zeros(s, d), at_end)):
        with mock.patch.object(np, "empty_like", lambda a: fenced(np.zeros(a.shape, a.dtype), at_end)):
            n, k, o = rng.integers(1, 60, 3).tolist()
            x, weight, grad = draw(n, k), draw(o, k), draw(n, o)
            products.times_transposed(x, weight, draw(o), True)
            products.times(grad, weight)
            products.times(grad.T, x)
            elementwise.where_positive(elementwise.relu(x), x)
            elementwise.dropout(x, elementwise.Choice(1, 2, 3))
            updates.update(updates.ADAM, [(x, draw(n, k), draw(n, k), draw(n, k))], (0.1,) * 7)
            z = draw(3, 4, *rng.integers(1, 20, 2))
            layer = nn.Sequential(nn.BatchNorm2d(4, dtype=dtype), nn.ReLU())
            layer.forward(z, training=True)
            layer.backward(draw(*z.shape))
            if number % 4 == 0:
                c, k = rng.integers(1, 12, 2).tolist()
                x, weight, pool = draw(9, c, *rng.integers(6, 40, 2)), draw(k, c, 3, 3), bool(number & 8)
                block = conv_block(x, weight, draw(k), (1, number // 8 % 3, 1, 1), pool, True)
                if block is not None:
                    y, noted, shape = block
                    conv_block_backward(draw(*y.shape), x, weight, noted, shape, (True, True, True))
print("done")
"""


@compiles
def test_they_stay_in_their_arrays() -> None:
    for mark in needs_pages:
        if mark.name == "skipif" and mark.args[0]:
            pytest.skip(mark.kwargs["reason"])
    assert python(PAGES + FENCED).strip() == "done"


@compiles
def test_batch_norm_takes_eps_of_any_dtype() -> None:
    """The kernels read float64: an eps in float32 was read as half of another number."""
    rng = np.random.default_rng(0)
    x, grad = (rng.standard_normal((2, 3, 4, 5)) for _ in range(2))
    mean, var, weight = x.mean((0, 2, 3)), x.var((0, 2, 3)), np.ones(3)
    results = [
        [
            normalization.batch_norm(x, mean, var, weight, None, eps, known=True, relu=False),
            *normalization.batch_norm_backward(grad, x, None, mean, var, weight, eps),
        ]
        for eps in (0.5, np.float32(0.5))
    ]
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected)
