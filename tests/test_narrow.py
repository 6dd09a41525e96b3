"""float16 and bfloat16: every function gives what it gives for float32, rounded once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import assert_same, assert_same_bits
from strategies import MEMORY

import fastconv


@pytest.fixture(params=["float16", "bfloat16"])
def narrow(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """The dtypes of 16 bits; the second needs a package of its own."""
    if request.param == "float16":
        return np.dtype(np.float16)
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def gauss(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


# in two dimensions; `a` rounds an array of float32 as the test wants it
X, WEIGHT, BIAS = gauss(2, 4, 7, 6), gauss(6, 2, 3, 3), gauss(6)
Y, POOLED, WHOLE = gauss(2, 6, 5, 4), gauss(2, 4, 3, 3), gauss(2, 4, 1, 1)
COLUMNS, OFFSET = gauss(2, 8, 12), gauss(2, 18, 5, 4)
PLACES = np.random.default_rng(0).integers(0, 36, POOLED.shape)
Round = Callable[[np.ndarray], np.ndarray]
CALLS: dict[str, Callable[[Round], Any]] = {
    "conv": lambda a: fastconv.conv2d(a(X), a(WEIGHT), a(BIAS), groups=2),
    "conv_backward": lambda a: fastconv.conv2d_backward(a(Y), a(X), a(WEIGHT), groups=2),
    "conv_input_grad": lambda a: fastconv.conv2d_input_grad(a(Y), a(WEIGHT), X.shape, groups=2),
    "conv_weight_grad": lambda a: fastconv.conv2d_weight_grad(a(Y), a(X), WEIGHT.shape, groups=2),
    "conv_transpose": lambda a: fastconv.conv_transpose2d(a(Y), a(WEIGHT), groups=2),
    "conv_transpose_backward": lambda a: fastconv.conv_transpose2d_backward(a(X), a(Y), a(WEIGHT), groups=2),
    "max_pool": lambda a: fastconv.max_pool2d(a(X), 3, 2, 1, return_indices=True),
    "max_pool_backward": lambda a: fastconv.max_pool2d_backward(a(POOLED), PLACES, X.shape),
    "avg_pool": lambda a: fastconv.avg_pool2d(a(X), 2),
    "avg_pool_backward": lambda a: fastconv.avg_pool2d_backward(a(POOLED), X.shape, 2),
    "lp_pool": lambda a: fastconv.lp_pool2d(a(X), 2, 2),
    "lp_pool_backward": lambda a: fastconv.lp_pool2d_backward(a(POOLED), a(X), 2, 2),
    "adaptive_avg_pool": lambda a: fastconv.adaptive_avg_pool2d(a(X), 1),
    "adaptive_avg_pool_backward": lambda a: fastconv.adaptive_avg_pool2d_backward(a(WHOLE), X.shape),
    "adaptive_max_pool": lambda a: fastconv.adaptive_max_pool2d(a(X), 3, return_indices=True),
    "max_unpool": lambda a: fastconv.max_unpool2d(a(POOLED), PLACES, 2),
    "max_unpool_backward": lambda a: fastconv.max_unpool2d_backward(a(X), PLACES),
    "im2col": lambda a: fastconv.im2col(a(X), 3),
    "col2im": lambda a: fastconv.col2im(a(COLUMNS), (5, 4), 2),
    "deform_conv": lambda a: fastconv.deform_conv2d(a(X), a(OFFSET), a(WEIGHT), a(BIAS)),
    "prepack": lambda a: fastconv.conv2d(
        a(X), fastconv.prepack(a(WEIGHT), x_shape=X.shape, groups=2), groups=2
    ),
}


def arrays(result: Any) -> list[np.ndarray]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("name", CALLS)
def test_is_float32_rounded_once(name: str, narrow: np.dtype[Any]) -> None:
    found = arrays(CALLS[name](lambda array: array.astype(narrow)))
    wide = arrays(CALLS[name](lambda array: array.astype(narrow).astype(np.float32)))
    assert found[0].dtype == narrow
    for array, expected in zip(found, wide, strict=True):
        if expected.dtype == np.float32:
            assert_same_bits(array, expected.astype(narrow))
        else:  # indices
            assert_same_bits(array, expected)


def test_no_function_is_left_out() -> None:
    """Of those that take arrays. Ranks share their code."""
    others = {"explain", "warmup", "show_config", "num_threads", "get_num_threads", "set_num_threads"}
    others |= {"get_float32_precision", "set_float32_precision"}
    others |= {"conv_integer", "qlinear_conv", "prepack_integer"}  # of 8-bit integers
    functions = {name for name in fastconv.__all__ if inspect.isfunction(getattr(fastconv, name))}
    families = {name.replace("1d", "").replace("2d", "").replace("3d", "") for name in functions - others}
    assert families == set(CALLS)


@pytest.mark.parametrize("memory", ["fortran", "strided", "reversed", "transposed", "read-only"])
def test_any_memory_order(memory: str, narrow: np.dtype[Any]) -> None:
    x, weight = X[:, :2].astype(narrow), WEIGHT.astype(narrow)
    y = fastconv.conv2d(MEMORY[memory](x), MEMORY[memory](weight))
    assert_same_bits(y, fastconv.conv2d(x, weight))


def test_big_endian() -> None:
    x, weight = X[:, :2].astype(np.float16), WEIGHT.astype(np.float16)
    y = fastconv.conv2d(x.astype(">f2"), weight.astype(">f2"))
    assert_same_bits(y, fastconv.conv2d(x, weight))


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_out(kind: str, narrow: np.dtype[Any]) -> None:
    run = getattr(fastconv, f"{kind}_pool2d")
    x = X.astype(narrow)
    memory = np.zeros((2, 4, 3, 6), narrow)
    for out in (memory[..., :3], x[:, :, :3, :3]):  # with gaps; a part of x itself
        expected = run(x.copy(), 2)
        assert run(x, 2, out=out) is out
        assert_same(out.astype(np.float32), expected.astype(np.float32))


def test_out_of_another_dtype(narrow: np.dtype[Any]) -> None:
    out = np.empty((2, 6, 5, 4), np.float32)
    with pytest.raises(TypeError, match=f"^conv2d: out must have dtype {narrow}, as x has, got float32"):
        fastconv.conv2d(X[:, :2].astype(narrow), WEIGHT.astype(narrow), out=out)


@pytest.mark.parametrize("other", ["float32", "float64"])
def test_all_arrays_have_one_dtype(other: str, narrow: np.dtype[Any]) -> None:
    x, weight = X[:, :2].astype(other), WEIGHT.astype(narrow)
    with pytest.raises(TypeError, match=f"one dtype, got x {other}, weight {narrow}"):
        fastconv.conv2d(x, weight)
    packed = fastconv.prepack(weight, x_shape=x.shape)
    assert packed.dtype == narrow
    assert np.asarray(packed).dtype == narrow
    with pytest.raises(TypeError, match=f"one dtype, got x {other}, weight {narrow}"):
        fastconv.conv2d(x, packed)
    with pytest.raises(TypeError, match="one dtype, got x"):
        fastconv.conv2d(x.astype(narrow), fastconv.prepack(WEIGHT, x_shape=x.shape))


def test_beyond_the_largest_is_infinity() -> None:
    """As IEEE arithmetic has it, and without a warning; sums inside may be larger than float16 holds."""
    x = np.full((1, 1, 1, 4), 60000, np.float16)
    assert_same(fastconv.lp_pool2d(x, 1, (1, 2)), np.full((1, 1, 1, 2), np.inf))
    assert_same(fastconv.avg_pool2d(x, (1, 4)), x[..., :1])


def test_plans_are_those_of_float32(narrow: np.dtype[Any]) -> None:
    shapes = (1, 8, 16, 16), (8, 8, 3, 3)
    assert str(fastconv.explain(*shapes, dtype=narrow)) == str(fastconv.explain(*shapes))


def test_refusals_stay_the_same(narrow: np.dtype[Any]) -> None:
    with pytest.raises(ValueError, match=r"^conv2d: x has 4 channels, but weight takes 2"):
        fastconv.conv2d(X.astype(narrow), WEIGHT.astype(narrow))
    with pytest.raises(TypeError, match=r"^max_pool2d: kernel_size must be an int"):
        fastconv.max_pool2d(X.astype(narrow), None)
