"""Wrong input: each a ValueError or TypeError that names the function and the facts, and reaches no kernel.

Kernels have no bounds checks: what gets to one unchecked reads or writes memory that is not its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastconv
from fastconv import threads
from fastconv.algorithms import ALGORITHMS, OPERATIONS, POOL_ALGORITHMS

X = np.ones((2, 3, 6, 7), np.float32)
WEIGHT = np.ones((4, 3, 3, 2), np.float32)
BIAS = np.ones(4, np.float32)
Y = np.ones((2, 4, 4, 6), np.float32)  # conv2d(X, WEIGHT)
TWO = np.ones((2, 3, 3, 3), np.float32)  # a pooling of X with 2x2
INDICES = np.zeros((2, 3, 3, 3), np.int64)
DOUBLE = X.astype(np.float64)


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test fail, whatever it expects, when anything gets as far as computing."""

    def unreachable(*args: Any, **kwargs: Any) -> None:
        pytest.fail("wrong input reached a kernel")  # no Exception: `pytest.raises` does not catch it

    for launcher in (threads.Prepared, threads.Both):
        monkeypatch.setattr(launcher, "run", unreachable)
    launch = threads.launch
    for name, module in list(sys.modules.items()):
        if name.startswith("fastconv") and getattr(module, "launch", None) is launch:
            monkeypatch.setattr(module, "launch", unreachable)
    for registry, methods in (
        (ALGORITHMS, OPERATIONS),
        (POOL_ALGORITHMS, ("max_pool", "avg_pool", "avg_pool_backward", "lp_pool", "lp_pool_backward")),
    ):
        for algorithm in registry.values():
            for method in methods:
                monkeypatch.setattr(type(algorithm), method, unreachable)


@pytest.mark.parametrize(
    "right",
    [
        lambda: fastconv.conv2d(X, WEIGHT, BIAS),
        lambda: fastconv.conv2d_backward(Y, X, WEIGHT),
        lambda: fastconv.conv2d_input_grad(Y, WEIGHT, X.shape),
        lambda: fastconv.conv2d_weight_grad(Y, X, WEIGHT.shape),
        lambda: fastconv.conv_transpose2d(Y, WEIGHT),
        lambda: fastconv.conv_transpose2d_backward(X, Y, WEIGHT),
        lambda: fastconv.max_pool2d(X, 2),
        lambda: fastconv.max_pool2d_backward(TWO, INDICES, X.shape),
        lambda: fastconv.avg_pool2d(X, 2),
        lambda: fastconv.avg_pool2d_backward(TWO, X.shape, 2),
        lambda: fastconv.lp_pool2d(X, 2, 2),
        lambda: fastconv.lp_pool2d_backward(TWO, X, 2, 2),
        lambda: fastconv.max_unpool2d(TWO, INDICES, 2),
        lambda: fastconv.max_unpool2d_backward(X, INDICES),
        lambda: fastconv.adaptive_avg_pool2d(X, 3),
        lambda: fastconv.adaptive_avg_pool2d_backward(TWO, X.shape),
        lambda: fastconv.adaptive_max_pool2d(X, 3),
        lambda: fastconv.im2col(X, 2),
        lambda: fastconv.col2im(np.ones((2, 12, 30), np.float32), (6, 7), 2),
    ],
)
def test_right_input_does_reach_a_kernel(right: Callable[[], Any]) -> None:
    """Else the other tests here would prove nothing."""
    with pytest.raises(pytest.fail.Exception, match="reached a kernel"):
        right()


class Wrong(NamedTuple):
    """A call, the error that it must raise, and what the message must say after "function: "."""

    call: Callable[[], Any]
    error: type[Exception]
    message: str


class Odd:
    """Neither an array nor a number."""

    def __repr__(self) -> str:
        return "<odd>"


def check(function: str, wrong: Wrong) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        wrong.call()
    assert type(caught.value) is wrong.error, caught.value
    assert re.search(rf"^{function}: .*{wrong.message}", str(caught.value), re.DOTALL), caught.value


def table(cases: dict[str, Wrong]) -> Any:
    return pytest.mark.parametrize("wrong", cases.values(), ids=cases.keys())


def conv(x: Any = X, weight: Any = WEIGHT, bias: Any = None, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.conv2d(x, weight, bias, **options)


# --- convolution --------------------------------------------------------------------------------


@table(
    {
        "x with too few axes": Wrong(conv(X[0, 0]), ValueError, r"x must have 4 axes .* got shape \(6, 7\)"),
        "x with too many axes": Wrong(conv(X[None]), ValueError, r"x must have 4 axes .*\(1, 2, 3, 6, 7\)"),
        "weight with too few axes": Wrong(
            conv(weight=WEIGHT[0]),
            ValueError,
            r"weight must have 4 axes \(K, C // groups, \*kernel\), got .*",
        ),
        "weight of conv3d": Wrong(
            conv(weight=WEIGHT[..., None]), ValueError, r"weight must have 4 axes .*\(4, 3, 3, 2, 1\)"
        ),
        "weight with axes in the order of channels last": Wrong(
            conv(X.transpose(0, 2, 3, 1), WEIGHT[0], layout="NHWC"),
            ValueError,
            r"weight must have 4 axes \(\*kernel, C // groups, K\)",
        ),
        "more channels in x": Wrong(
            conv(np.ones((2, 5, 6, 7), np.float32)), ValueError, r"x has 5 channels, but weight takes 3"
        ),
        "channels in the other layout": Wrong(
            conv(layout="NHWC"), ValueError, r"x has 7 channels, .* layout = 'NHWC'"
        ),
        "fewer channels per group": Wrong(
            conv(groups=3), ValueError, r"x has 3 channels, but weight takes 3 per group .* groups = 3"
        ),
        "outputs do not divide into groups": Wrong(
            conv(weight=WEIGHT[:, :1], groups=3), ValueError, r"the 4 output channels .* groups = 3"
        ),
        "kernel larger than x": Wrong(
            conv(X[..., :2, :]), ValueError, r"the kernel, \(3, 2\) .*must fit in the padded input, \(2, 7\)"
        ),
        "dilated kernel larger than padded x": Wrong(
            conv(dilation=(5, 1), padding=(2, 0)),
            ValueError,
            r"the kernel, \(11, 2\) with dilation, must fit in the padded input, \(10, 7\); x.shape = ",
        ),
        "kernel without cells": Wrong(
            conv(weight=WEIGHT[..., :0]), ValueError, r"kernel must be at least 1 wide, weight.shape = "
        ),
    }
)
def test_conv_shapes(wrong: Wrong) -> None:
    check("conv2d", wrong)


@table(
    {
        "stride zero": Wrong(conv(stride=0), ValueError, "stride must be at least 1, got 0"),
        "stride negative": Wrong(conv(stride=(1, -2)), ValueError, "stride must be at least 1, got -2"),
        "stride of three axes": Wrong(conv(stride=(1, 1, 1)), ValueError, r"stride .* 2 ints .* got 3"),
        "stride a float": Wrong(conv(stride=1.5), TypeError, r"stride must be an int .*, got 1.5 \(float\)"),
        "stride None": Wrong(conv(stride=None), TypeError, "stride must be an int .*None"),
        "stride a string": Wrong(conv(stride="2"), TypeError, "stride must be an int .*'2'"),
        "stride an object": Wrong(conv(stride=Odd()), TypeError, r"stride must be an int .*<odd> \(Odd\)"),
        "dilation zero": Wrong(conv(dilation=0), ValueError, "dilation must be at least 1, got 0"),
        "dilation a bool": Wrong(conv(dilation=True), TypeError, r"dilation must be an int .*True \(bool\)"),
        "dilation huge": Wrong(conv(dilation=2**40), ValueError, "dilation must be at most 2147483647"),
        "padding negative": Wrong(conv(padding=-1), ValueError, "padding must be at least 0, got -1"),
        "padding unknown": Wrong(
            conv(padding="full"), ValueError, 'padding must be .*"same_lower", got .full'
        ),
        "padding flat": Wrong(conv(padding=(1, 1, 1, 1)), ValueError, "padding must be .*pairs.* 4 entries"),
        "padding a float": Wrong(conv(padding=0.5), TypeError, r"padding must be an int.*0.5 \(float\)"),
        "padding a dict": Wrong(conv(padding={0: 1, 1: 2}), TypeError, "padding must be an int"),
        "padding a set": Wrong(conv(padding={0, 1}), TypeError, "padding must be an int"),
        "groups zero": Wrong(conv(groups=0), ValueError, "groups must be at least 1, got 0"),
        "groups negative": Wrong(conv(groups=-1), ValueError, "groups must be at least 1, got -1"),
        "groups a tuple": Wrong(conv(groups=(1, 1)), TypeError, r"groups must be an int, got \(1, 1\)"),
        "padding_mode unknown": Wrong(
            conv(padding_mode="mirror"), ValueError, "padding_mode must be one of .*'mirror'"
        ),
        "padding_mode None": Wrong(conv(padding_mode=None), ValueError, "padding_mode must be one of .*None"),
        "padding_mode an array": Wrong(
            conv(padding_mode=np.array(["zeros", "reflect"])), ValueError, "padding_mode must be one of"
        ),
        "reflect too far": Wrong(
            conv(padding=((6, 0), (0, 0)), padding_mode="reflect"),
            ValueError,
            r"padding_mode = 'reflect' can pad an axis of size 6 by at most 5, got padding = \[\(6, 0\)",
        ),
        "circular too far": Wrong(
            conv(padding=(0, 8), padding_mode="circular"), ValueError, "axis of size 7 by at most 7"
        ),
        "replicate nothing": Wrong(
            conv(X[:, :, :0], padding=2, padding_mode="replicate"), ValueError, "axis of size 0 by at most 0"
        ),
        "activation unknown": Wrong(
            conv(activation="gelu"), ValueError, 'activation must be None or "relu", got .gelu.'
        ),
        "activation a function": Wrong(conv(activation=np.tanh), ValueError, "activation must be None or"),
        "activation an array": Wrong(conv(activation=BIAS), ValueError, "activation must be None or"),
        "layout unknown": Wrong(
            conv(layout="CHWN"), ValueError, 'layout must be "NCHW" or "NHWC", got .CHWN.'
        ),
        "layout None": Wrong(conv(layout=None), ValueError, 'layout must be "NCHW" or "NHWC", got None'),
        "layout an array": Wrong(conv(layout=BIAS), ValueError, 'layout must be "NCHW" or "NHWC"'),
        "algorithm unknown": Wrong(
            conv(algorithm="fft"),
            ValueError,
            "unknown algorithm 'fft'; there are 'auto', .*'naive'",
        ),
        "algorithm an object": Wrong(conv(algorithm=Odd()), ValueError, "unknown algorithm <odd>"),
    }
)
def test_conv_arguments(wrong: Wrong) -> None:
    check("conv2d", wrong)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@table(
    {
        "x a list": Wrong(conv([[[[1.0]]]]), TypeError, "x must be a numpy.ndarray, got list"),
        "x a number": Wrong(conv(1.0), TypeError, "x must be a numpy.ndarray, got float"),
        "x a numpy number": Wrong(conv(np.float32(1)), TypeError, "x must be a numpy.ndarray, got float32"),
        "x None": Wrong(conv(None), TypeError, "x must be a numpy.ndarray, got NoneType"),
        "x masked": Wrong(conv(np.ma.masked_array(X)), TypeError, "x is a masked array"),
        "x of integers": Wrong(
            conv(X.astype(int)), TypeError, r"x must have dtype float32 or float64, got int64; convert it"
        ),
        "x of float16 alone": Wrong(
            conv(X.astype("f2")), TypeError, "one dtype, got x float16, weight float32"
        ),
        "x of longdouble": Wrong(conv(X.astype("g")), TypeError, "x must have dtype float32 or .* got "),
        "x complex": Wrong(conv(X.astype("c8")), TypeError, "x must have dtype float32 or .* complex64"),
        "x of objects": Wrong(conv(X.astype(object)), TypeError, "x must have dtype float32 or .* object"),
        "x of records": Wrong(conv(np.zeros((2, 3, 6, 7), "f4,f4")), TypeError, "x must have dtype float32"),
        "x of strings": Wrong(conv(X.astype(str)), TypeError, "x must have dtype float32 or float64, got <U"),
        "weight None": Wrong(conv(weight=None), TypeError, "weight must be a numpy.ndarray, got NoneType"),
        "weight of integers": Wrong(
            conv(weight=WEIGHT.astype(int)), TypeError, "weight must have dtype float32"
        ),
        "x float64": Wrong(
            conv(DOUBLE), TypeError, "all arrays must have one dtype, got x float64, weight float32"
        ),
        "bias float64": Wrong(
            conv(bias=BIAS.astype("f8")), TypeError, "one dtype, got x float32, weight float32, bias float64"
        ),
        "bias too short": Wrong(conv(bias=BIAS[:3]), ValueError, r"bias must have shape \(4,\), got \(3,\)"),
        "bias with axes": Wrong(
            conv(bias=BIAS[:, None]), ValueError, r"bias must have shape \(4,\), got \(4, 1\)"
        ),
        "bias a number": Wrong(conv(bias=0.5), TypeError, "bias must be a numpy.ndarray, got float"),
        "out a list": Wrong(conv(out=[0]), TypeError, "out must be a numpy.ndarray, got list"),
        "out masked": Wrong(
            conv(out=np.ma.masked_array(Y)), TypeError, "out must be a numpy.ndarray, got Mask"
        ),
        "out of another dtype": Wrong(
            conv(out=Y.astype("f8")), TypeError, "out must have dtype float32, as x has, got float64"
        ),
        "out big-endian": Wrong(conv(out=Y.astype(">f4")), TypeError, "out must have dtype float32.* >f4"),
        "out of another shape": Wrong(
            conv(out=X.copy()), ValueError, r"out must have shape \(2, 4, 4, 6\), got \(2, 3, 6, 7\)"
        ),
        "out without N": Wrong(conv(out=Y[0].copy()), ValueError, r"out must have shape \(2, 4, 4, 6\)"),
        "out read-only": Wrong(conv(out=read_only(Y)), ValueError, "out is read-only"),
        "out a broadcast view": Wrong(
            conv(out=np.broadcast_to(Y[:1], Y.shape)), ValueError, "out is read-only"
        ),
    }
)
def test_conv_arrays(wrong: Wrong) -> None:
    check("conv2d", wrong)


# --- gradients of convolution -------------------------------------------------------------------


@table(
    {
        "grad_output of another size": Wrong(
            lambda: fastconv.conv2d_backward(Y[..., :5], X, WEIGHT),
            ValueError,
            r"grad_output must have shape \(2, 4, 4, 6\), got \(2, 4, 4, 5\)",
        ),
        "grad_output of another batch": Wrong(
            lambda: fastconv.conv2d_backward(Y[:1], X, WEIGHT), ValueError, "grad_output must have shape"
        ),
        "grad_output without N": Wrong(
            lambda: fastconv.conv2d_backward(Y[0], X, WEIGHT), ValueError, "grad_output must have shape"
        ),
        "grad_output of another dtype": Wrong(
            lambda: fastconv.conv2d_backward(Y.astype("f8"), X, WEIGHT),
            TypeError,
            "one dtype, got grad_output float64, x float32, weight float32",
        ),
        "grad_output None": Wrong(
            lambda: fastconv.conv2d_backward(None, X, WEIGHT),
            TypeError,
            "grad_output must be a numpy.ndarray",
        ),
        "x None": Wrong(
            lambda: fastconv.conv2d_backward(Y, None, WEIGHT),
            TypeError,
            "x must be a numpy.ndarray, got None",
        ),
        "needs one": Wrong(
            lambda: fastconv.conv2d_backward(Y, X, WEIGHT, needs=True),
            ValueError,
            "needs must be three bools, for x, weight and bias, got True",
        ),
        "needs two": Wrong(
            lambda: fastconv.conv2d_backward(Y, X, WEIGHT, needs=(True, True)), ValueError, "three bools"
        ),
        "needs four": Wrong(
            lambda: fastconv.conv2d_backward(Y, X, WEIGHT, needs=(1, 1, 1, 1)), ValueError, "three bools"
        ),
        "algorithm unknown": Wrong(
            lambda: fastconv.conv2d_backward(Y, X, WEIGHT, algorithm="fft"), ValueError, "unknown algorithm"
        ),
    }
)
def test_conv_backward(wrong: Wrong) -> None:
    check("conv2d_backward", wrong)


def test_unknown_algorithm_even_where_only_the_bias_is_needed() -> None:
    with pytest.raises(ValueError, match="conv2d_backward: unknown algorithm 'fft'"):
        fastconv.conv2d_backward(Y, X, WEIGHT, algorithm="fft", needs=(False, False, True))


def input_grad(shape: Any, grad: Any = Y, weight: Any = WEIGHT, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.conv2d_input_grad(grad, weight, shape, **options)


@table(
    {
        "shape of another y": Wrong(
            input_grad((2, 3, 7, 7)),
            ValueError,
            r"grad_output must have shape \(2, 4, 5, 6\), got \(2, 4, 4, 6\)",
        ),
        "shape of another batch": Wrong(input_grad((3, 3, 6, 7)), ValueError, "grad_output must have shape"),
        "shape without N": Wrong(input_grad((3, 6, 7)), ValueError, "grad_output must have shape"),
        "shape of other channels": Wrong(
            input_grad((2, 4, 6, 7)), ValueError, "x has 4 channels, but weight"
        ),
        "shape with few axes": Wrong(
            input_grad((6, 7)), ValueError, r"x must have 4 axes .*got shape \(6, 7\)"
        ),
        "shape negative": Wrong(
            input_grad((2, 3, -6, 7)), ValueError, "input_shape must be at least 0, got -6"
        ),
        "shape of floats": Wrong(
            input_grad((2, 3, 6.0, 7)), TypeError, "input_shape must be a sequence of ints"
        ),
        "shape an int": Wrong(input_grad(6), TypeError, "input_shape must be a sequence of ints, got 6"),
        "shape None": Wrong(input_grad(None), TypeError, "input_shape must be a sequence of ints, got None"),
        "shape an array like x": Wrong(input_grad(X), TypeError, "input_shape must be a sequence of ints"),
        "shape huge": Wrong(input_grad((2, 3, 2**61, 7)), ValueError, "input_shape must be at most"),
        "weight None": Wrong(input_grad(X.shape, weight=None), TypeError, "weight must be a numpy.ndarray"),
    }
)
def test_conv_input_grad(wrong: Wrong) -> None:
    check("conv2d_input_grad", wrong)


def weight_grad(shape: Any, grad: Any = Y, x: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.conv2d_weight_grad(grad, x, shape, **options)


@table(
    {
        "shape of another y": Wrong(
            weight_grad((4, 3, 3, 3)), ValueError, r"grad_output must have shape \(2, 4, 4, 5\)"
        ),
        "shape of other channels": Wrong(
            weight_grad((4, 2, 3, 2)), ValueError, "x has 3 channels, but weight"
        ),
        "shape with few axes": Wrong(weight_grad((4, 3)), ValueError, r"weight must have 4 axes"),
        "shape of strings": Wrong(weight_grad("4332"), TypeError, "weight_shape must be a sequence of ints"),
        "groups": Wrong(weight_grad((4, 3, 3, 2), groups=2), ValueError, "weight takes 3 per group"),
    }
)
def test_conv_weight_grad(wrong: Wrong) -> None:
    check("conv2d_weight_grad", wrong)


def transpose(x: Any = Y, weight: Any = WEIGHT, bias: Any = None, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.conv_transpose2d(x, weight, bias, **options)


@table(
    {
        "other channels": Wrong(transpose(X), ValueError, "x has 3 channels, but weight takes 4"),
        "groups": Wrong(transpose(groups=3), ValueError, "4 channels do not divide into groups = 3"),
        "padding by name": Wrong(transpose(padding="same"), ValueError, "padding = 'same' is not defined"),
        "too much padding": Wrong(
            transpose(padding=(3, 0)), ValueError, r"output would have spatial shape \(0, 7\)"
        ),
        "output_padding as large as stride": Wrong(
            transpose(output_padding=2, stride=2),
            ValueError,
            "output_padding must be smaller than the stride",
        ),
        "output_padding negative": Wrong(
            transpose(output_padding=-1), ValueError, "output_padding must be at least 0, got -1"
        ),
        "bias of x": Wrong(transpose(bias=BIAS), ValueError, r"bias must have shape \(3,\), got \(4,\)"),
        "mixed dtypes": Wrong(transpose(Y.astype("f8")), TypeError, "all arrays must have one dtype"),
        "x without cells": Wrong(transpose(Y[:, :, :0]), ValueError, "every axis must be at least 1"),
        "x None": Wrong(transpose(None), TypeError, "x must be a numpy.ndarray, got NoneType"),
    }
)
def test_conv_transpose(wrong: Wrong) -> None:
    check("conv_transpose2d", wrong)


def test_conv_transpose_backward() -> None:
    def call() -> Any:
        return fastconv.conv_transpose2d_backward(X[..., :6], Y, WEIGHT)

    check("conv_transpose2d_backward", Wrong(call, ValueError, r"grad_output must have shape \(2, 3, 6, 7\)"))


# --- pooling ------------------------------------------------------------------------------------


def pool(kernel_size: Any = 2, x: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.max_pool2d(x, kernel_size, **options)


@table(
    {
        "x with too few axes": Wrong(pool(x=X[0, 0]), ValueError, "x must have 4 axes"),
        "x a list": Wrong(pool(x=[[[[1.0]]]]), TypeError, "x must be a numpy.ndarray, got list"),
        "x None": Wrong(pool(x=None), TypeError, "x must be a numpy.ndarray, got NoneType"),
        "x of truth values": Wrong(pool(x=X > 0), TypeError, "x must have dtype .* integer dtype, got bool"),
        "x complex": Wrong(
            pool(x=X.astype("c8")), TypeError, "x must have dtype float32 or float64, got comp"
        ),
        "kernel zero": Wrong(pool(0), ValueError, "kernel_size must be at least 1, got 0"),
        "kernel None": Wrong(pool(None), TypeError, "kernel_size must be an int or 2 ints, got None"),
        "kernel of three axes": Wrong(pool((2, 2, 2)), ValueError, "kernel_size must be an int or 2 ints"),
        "kernel larger than x": Wrong(pool((7, 1)), ValueError, r"kernel, \(7, 1\) .* fit .*, \(6, 7\)"),
        "stride zero": Wrong(pool(stride=0), ValueError, "stride must be at least 1, got 0"),
        "stride a float": Wrong(pool(stride=2.0), TypeError, r"stride must be an int .*2.0 \(float\)"),
        "dilation negative": Wrong(pool(dilation=-1), ValueError, "dilation must be at least 1, got -1"),
        "padding as large as the kernel": Wrong(
            pool(padding=2),
            ValueError,
            r"window would lie wholly in the padding, .*padding = \(\(2, 2\), \(2, 2\)\)",
        ),
        "padding of one side as large": Wrong(
            pool(padding=((0, 0), (0, 2))), ValueError, "window would lie wholly in the padding"
        ),
        "window jumps over x": Wrong(
            pool((3, 1), X[:, :, :2], stride=1, dilation=(4, 1), padding=((4, 6), (0, 0))),
            ValueError,
            "window would lie wholly in the padding",
        ),
        "x without cells": Wrong(pool(x=X[:, :, :0], padding=1), ValueError, "window would lie wholly"),
        "ceil_mode a number": Wrong(pool(ceil_mode=1), TypeError, "ceil_mode must be True or False, got 1"),
        "layout unknown": Wrong(pool(layout="NWHC"), ValueError, "layout must be .*NWHC"),
        "algorithm of convolution": Wrong(
            pool(algorithm="gemm"), ValueError, "unknown algorithm 'gemm'; there are 'auto', 'direct'"
        ),
        "out of another shape": Wrong(
            pool(out=X.copy()), ValueError, r"out must have shape \(2, 3, 3, 3\), got \(2, 3, 6, 7\)"
        ),
        "out of another dtype": Wrong(pool(out=INDICES.copy()), TypeError, "out must have dtype float32"),
    }
)
def test_max_pool(wrong: Wrong) -> None:
    check("max_pool2d", wrong)


@table(
    {
        "divisor zero": Wrong(
            lambda: fastconv.avg_pool2d(X, 2, divisor_override=0),
            ValueError,
            "divisor_override must be at least 1",
        ),
        "divisor a float": Wrong(
            lambda: fastconv.avg_pool2d(X, 2, divisor_override=2.5),
            TypeError,
            "divisor_override must be an int",
        ),
        "divisor True": Wrong(
            lambda: fastconv.avg_pool2d(X, 2, divisor_override=True),
            TypeError,
            "divisor_override must be an int",
        ),
        "padding": Wrong(lambda: fastconv.avg_pool2d(X, 2, padding=2), ValueError, "wholly in the padding"),
        "out read-only": Wrong(
            lambda: fastconv.avg_pool2d(X, 2, out=read_only(TWO)), ValueError, "read-only"
        ),
    }
)
def test_avg_pool(wrong: Wrong) -> None:
    check("avg_pool2d", wrong)


def max_backward(
    indices: Any = INDICES, shape: Any = X.shape, grad: Any = TWO, **options: Any
) -> Callable[[], Any]:
    return lambda: fastconv.max_pool2d_backward(grad, indices, shape, **options)


@table(
    {
        "indices of floats": Wrong(
            max_backward(TWO), TypeError, "indices must have an integer dtype, got float32"
        ),
        "indices of bools": Wrong(
            max_backward(TWO > 0), TypeError, "indices must have an integer dtype, got bool"
        ),
        "indices a list": Wrong(max_backward([0]), TypeError, "indices must be a numpy.ndarray, got list"),
        "indices None": Wrong(max_backward(None), TypeError, "indices must be a numpy.ndarray, got NoneType"),
        "indices of another shape": Wrong(
            max_backward(INDICES[..., :2]),
            ValueError,
            r"indices must have shape \(2, 3, 3, 3\), got \(2, 3, 3, 2\)",
        ),
        "batch": Wrong(max_backward(shape=(3, 3, 6, 7)), ValueError, "must agree in batch and channels"),
        "channels": Wrong(max_backward(shape=(2, 4, 6, 7)), ValueError, "must agree in batch and channels"),
        "layout": Wrong(max_backward(layout="NHWC"), ValueError, "must agree in batch and channels"),
        "grad of integers": Wrong(
            max_backward(grad=INDICES), TypeError, "grad_output must have dtype float32 or float64"
        ),
        "grad without N": Wrong(max_backward(INDICES[0], grad=TWO[0]), ValueError, "must agree in batch"),
        "shape huge": Wrong(
            max_backward(shape=(2, 3, 2**40, 2**40)),
            ValueError,
            r"\(2, 3, 1099511627776, .* too large to address",
        ),
        "x without cells": Wrong(max_backward(shape=(2, 3, 0, 7)), ValueError, "indices must be positions"),
    }
)
def test_max_pool_backward(wrong: Wrong) -> None:
    check("max_pool2d_backward", wrong)


def lp(norm: Any = 2, x: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.lp_pool2d(x, norm, 2, **options)


@table(
    {
        "norm zero": Wrong(lp(0), ValueError, "norm_type must be a number but 0, got 0.0"),
        "norm NaN": Wrong(lp(float("nan")), ValueError, "norm_type must be a number but 0, got nan"),
        "norm None": Wrong(lp(None), TypeError, "norm_type must be a number, got None"),
        "norm a bool": Wrong(lp(True), TypeError, "norm_type must be a number, got True"),
        "norm a string": Wrong(lp("2"), TypeError, "norm_type must be a number, got '2'"),
        "norm an array": Wrong(lp(BIAS), TypeError, "norm_type must be a number, got array"),
        "padding": Wrong(lp(padding=2), ValueError, "wholly in the padding"),
        "ceil_mode a number": Wrong(lp(ceil_mode=1), TypeError, "ceil_mode must be True or False"),
        "algorithm": Wrong(lp(algorithm="gemm"), ValueError, "unknown algorithm 'gemm'"),
        "x of integers": Wrong(lp(x=INDICES), TypeError, "x must have dtype float32"),
    }
)
def test_lp_pool(wrong: Wrong) -> None:
    check("lp_pool2d", wrong)


@table(
    {
        "grad of another shape": Wrong(
            lambda: fastconv.lp_pool2d_backward(TWO[..., :2], X, 2, 2),
            ValueError,
            r"grad_output must have shape \(2, 3, 3, 3\), got \(2, 3, 3, 2\)",
        ),
        "mixed dtypes": Wrong(
            lambda: fastconv.lp_pool2d_backward(TWO, DOUBLE, 2, 2),
            TypeError,
            "all arrays must have one dtype",
        ),
        "norm": Wrong(lambda: fastconv.lp_pool2d_backward(TWO, X, 0, 2), ValueError, "norm_type must be"),
    }
)
def test_lp_pool_backward(wrong: Wrong) -> None:
    check("lp_pool2d_backward", wrong)


def unpool(x: Any = TWO, indices: Any = INDICES, kernel: Any = 2, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.max_unpool2d(x, indices, kernel, **options)


@table(
    {
        "indices of floats": Wrong(
            unpool(indices=TWO), TypeError, "indices must have an integer dtype, got float32"
        ),
        "indices None": Wrong(unpool(indices=None), TypeError, "indices must be a numpy.ndarray"),
        "indices of another shape": Wrong(
            unpool(indices=INDICES[..., :2]), ValueError, r"indices must have shape \(2, 3, 3, 3\), got .*2\)"
        ),
        "x of integers": Wrong(unpool(INDICES), TypeError, "x must have dtype float32"),
        "kernel zero": Wrong(unpool(kernel=0), ValueError, "kernel_size must be at least 1"),
        "stride zero": Wrong(unpool(stride=0), ValueError, "stride must be at least 1"),
        "padding by name": Wrong(unpool(padding="same"), ValueError, "padding = 'same' is not defined"),
        "too much padding": Wrong(
            unpool(padding=(3, 0)), ValueError, r"output would have spatial shape \(0, 6\)"
        ),
        "output_size an int": Wrong(
            unpool(output_size=6), TypeError, "output_size must be None or 2 ints, .* got 6"
        ),
        "output_size of three axes": Wrong(
            unpool(output_size=(6, 6, 6)), ValueError, "output_size must be None or 2 ints"
        ),
        "output_size of floats": Wrong(
            unpool(output_size=(6.0, 6)), TypeError, "output_size must be None or"
        ),
        "output_size too large": Wrong(
            unpool(output_size=(6, 8)),
            ValueError,
            r"output_size must differ from \(6, 6\) by less than the stride, \(2, 2\), got \(6, 8\)",
        ),
        "output_size too small": Wrong(unpool(output_size=(4, 6)), ValueError, "by less than the stride"),
        "output_size of another batch": Wrong(
            unpool(output_size=(1, 3, 6, 6)),
            ValueError,
            "output_size must agree with x in batch and channels",
        ),
        "output_size huge": Wrong(
            unpool(kernel=2**31 - 1), ValueError, r"\(6442450941, 6442450941\), too large to address"
        ),
        "x without cells": Wrong(unpool(TWO[:, :, :0], INDICES[:, :, :0]), ValueError, "so must those of x"),
    }
)
def test_max_unpool(wrong: Wrong) -> None:
    check("max_unpool2d", wrong)


@table(
    {
        "batch": Wrong(
            lambda: fastconv.max_unpool2d_backward(X[:1], INDICES), ValueError, "must agree in batch and"
        ),
        "layout": Wrong(
            lambda: fastconv.max_unpool2d_backward(X, INDICES, layout="NHWC"), ValueError, "must agree in"
        ),
        "without N": Wrong(
            lambda: fastconv.max_unpool2d_backward(X[0], INDICES), ValueError, "must agree in batch"
        ),
        "indices of floats": Wrong(
            lambda: fastconv.max_unpool2d_backward(X, TWO), TypeError, "indices must have an integer dtype"
        ),
        "no plane": Wrong(
            lambda: fastconv.max_unpool2d_backward(X[:, :, :0], INDICES),
            ValueError,
            "indices must be positions in the output plane",
        ),
    }
)
def test_max_unpool_backward(wrong: Wrong) -> None:
    check("max_unpool2d_backward", wrong)


@table(
    {
        "grad of another shape": Wrong(
            lambda: fastconv.avg_pool2d_backward(TWO[..., :2], X.shape, 2),
            ValueError,
            r"grad_output must have shape \(2, 3, 3, 3\), got \(2, 3, 3, 2\)",
        ),
        "shape of another x": Wrong(
            lambda: fastconv.avg_pool2d_backward(TWO, (2, 3, 8, 7), 2),
            ValueError,
            "grad_output must have shape",
        ),
        "kernel": Wrong(
            lambda: fastconv.avg_pool2d_backward(TWO, X.shape, 0), ValueError, "kernel_size must be"
        ),
        "algorithm": Wrong(
            lambda: fastconv.avg_pool2d_backward(TWO, X.shape, 2, algorithm="x"),
            ValueError,
            "unknown algorithm",
        ),
    }
)
def test_avg_pool_backward(wrong: Wrong) -> None:
    check("avg_pool2d_backward", wrong)


def adaptive(output_size: Any, x: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.adaptive_avg_pool2d(x, output_size, **options)


@table(
    {
        "size zero": Wrong(adaptive(0), ValueError, "output_size must be at least 1, got 0"),
        "size a float": Wrong(adaptive(2.0), TypeError, r"output_size must be an int, .*2.0 \(float\)"),
        "size of three axes": Wrong(adaptive((1, 2, 3)), ValueError, "output_size must be an int or 2 ints"),
        "size huge": Wrong(
            adaptive(2**31 - 1), ValueError, r"2147483647, 2147483647\), too large to address"
        ),
        "x without cells": Wrong(
            adaptive(2, X[:, :, :0]), ValueError, "every spatial axis must be at least 1"
        ),
        "x None": Wrong(adaptive(2, None), TypeError, "x must be a numpy.ndarray, got NoneType"),
        "layout": Wrong(adaptive(2, layout="nchw"), ValueError, "layout must be"),
        "layout an array": Wrong(adaptive(2, layout=np.array(["a", "b"])), ValueError, "layout must be"),
    }
)
def test_adaptive_avg_pool(wrong: Wrong) -> None:
    check("adaptive_avg_pool2d", wrong)


@table(
    {
        "batch": Wrong(
            lambda: fastconv.adaptive_avg_pool2d_backward(TWO, (1, 3, 6, 7)), ValueError, "must have shape"
        ),
        "channels": Wrong(
            lambda: fastconv.adaptive_avg_pool2d_backward(TWO, (2, 4, 6, 7)), ValueError, "must have shape"
        ),
        "grad without cells": Wrong(
            lambda: fastconv.adaptive_avg_pool2d_backward(TWO[..., :0], X.shape), ValueError, "at least 1"
        ),
        "shape huge": Wrong(
            lambda: fastconv.adaptive_avg_pool2d_backward(TWO, (2, 3, 2**40, 2**40)), ValueError, "too large"
        ),
    }
)
def test_adaptive_avg_pool_backward(wrong: Wrong) -> None:
    check("adaptive_avg_pool2d_backward", wrong)


# --- lowering and plans -------------------------------------------------------------------------


def lower(kernel_size: Any, x: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.im2col(x, kernel_size, **options)


@table(
    {
        "x with too few axes": Wrong(lower(2, X[0, 0]), ValueError, "1 to 3 spatial axes, got 0"),
        "x with too many axes": Wrong(lower(1, X[None, None]), ValueError, "1 to 3 spatial axes, got 4"),
        "kernel of too many axes": Wrong(lower((1, 1, 1, 1)), ValueError, "1 to 3 spatial axes, got 4"),
        "kernel of other axes": Wrong(lower((2,)), ValueError, "x must have 3 axes"),
        "kernel larger than x": Wrong(lower((7, 8)), ValueError, r"kernel, \(7, 8\) .*must fit"),
        "kernel a float": Wrong(lower(2.0), TypeError, r"kernel_size must be an int .*2.0"),
        "kernel None": Wrong(lower(None), TypeError, "kernel_size must be an int .*None"),
        "kernel True": Wrong(lower(True), TypeError, "kernel_size must be an int .*True"),
        "x None": Wrong(lower(2, None), TypeError, "x must be a numpy.ndarray, got NoneType"),
        "x of integers": Wrong(lower(2, INDICES), TypeError, "x must have dtype float32 or float64"),
    }
)
def test_im2col(wrong: Wrong) -> None:
    check("im2col", wrong)


def test_im2col_kernel_of_no_axes() -> None:
    """A 0-d array is an int, as everywhere else."""
    with pytest.raises(pytest.fail.Exception, match="reached a kernel"):
        fastconv.im2col(X, np.array(2))


COLUMNS = np.ones((2, 12, 30), np.float32)  # im2col(X, 2)


def fold(size: Any, kernel: Any = 2, cols: Any = COLUMNS, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.col2im(cols, size, kernel, **options)


@table(
    {
        "cols with too many axes": Wrong(fold((6, 7), cols=X), ValueError, r"cols must have shape \(N, C \*"),
        "rows do not divide": Wrong(
            fold((6, 7), (5, 1)), ValueError, "cols has 12 rows, which must be a multiple of the 5 cells"
        ),
        "other windows": Wrong(
            fold((6, 6)), ValueError, r"cols must have shape \(2, 12, 25\), got \(2, 12, 30\)"
        ),
        "kernel larger than x": Wrong(fold((1, 7)), ValueError, "must fit in the padded input"),
        "size of too many axes": Wrong(
            fold((1, 2, 3, 4)), ValueError, "output_size must have 1 to 3 entries"
        ),
        "size of no axes": Wrong(fold(()), ValueError, "output_size must have 1 to 3 entries"),
        "size a float": Wrong(fold((6.0, 7)), TypeError, "output_size must be a sequence of ints"),
        "size True": Wrong(fold(True), TypeError, "output_size must be .*True"),
        "size negative": Wrong(fold((-6, 7)), ValueError, "output_size must be at least 0, got -6"),
        "size None": Wrong(fold(None), TypeError, "output_size must be a sequence of ints, got None"),
        "cols of integers": Wrong(fold((6, 7), cols=INDICES[0]), TypeError, "cols must have dtype float32"),
    }
)
def test_col2im(wrong: Wrong) -> None:
    check("col2im", wrong)


def explain(x_shape: Any = X.shape, weight_shape: Any = WEIGHT.shape, **options: Any) -> Callable[[], Any]:
    return lambda: fastconv.explain(x_shape, weight_shape, **options)


@table(
    {
        "op unknown": Wrong(
            explain(op="backward"),
            ValueError,
            "op must be one of 'forward', 'input_grad', 'weight_grad', got",
        ),
        "op a list": Wrong(explain(op=["forward"]), ValueError, "op must be one of"),
        "dtype of integers": Wrong(
            explain(dtype=int), TypeError, "dtype must be float32 or float64, got int64"
        ),
        "dtype big-endian": Wrong(
            explain(dtype=">f4"), TypeError, "dtype must be float32 or float64, got >f4"
        ),
        "dtype unknown": Wrong(explain(dtype="real"), TypeError, "dtype must be float32 or float64"),
        "dtype an object": Wrong(explain(dtype=Odd()), TypeError, "dtype must be float32 or float64"),
        "arrays for shapes": Wrong(explain(X, WEIGHT), TypeError, "x_shape must be a sequence of ints"),
        "weight with too few axes": Wrong(
            explain(weight_shape=(4, 3)), ValueError, "weight_shape must have 3 to 5 entries"
        ),
        "channels": Wrong(explain((2, 5, 6, 7)), ValueError, "x has 5 channels, but weight takes 3"),
        "stride": Wrong(explain(stride=0), ValueError, "stride must be at least 1"),
    }
)
def test_explain(wrong: Wrong) -> None:
    check("explain", wrong)


# --- every rank ---------------------------------------------------------------------------------


RANKED = [
    "conv{}d",
    "conv{}d_backward",
    "conv{}d_input_grad",
    "conv{}d_weight_grad",
    "conv_transpose{}d",
    "conv_transpose{}d_backward",
    "max_pool{}d",
    "max_pool{}d_backward",
    "avg_pool{}d",
    "avg_pool{}d_backward",
    "lp_pool{}d",
    "lp_pool{}d_backward",
    "max_unpool{}d",
    "max_unpool{}d_backward",
    "adaptive_avg_pool{}d",
    "adaptive_avg_pool{}d_backward",
    "adaptive_max_pool{}d",
]


def test_no_function_is_left_out() -> None:
    """Of those that there are for every rank."""
    assert set(RANKED) == {name.replace("1d", "{}d") for name in fastconv.__all__ if "1d" in name}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", RANKED)
def test_messages_name_the_function_of_their_rank(name: str, rank: int) -> None:
    """An array of six axes is wrong everywhere; so is a layout that nobody knows."""
    name = name.format(rank)
    function = getattr(fastconv, name)
    six = np.ones((1,) * 6)
    if "unpool" in name:
        args: tuple[Any, ...] = (six, six.astype(int)) if "backward" in name else (six, six.astype(int), 1)
    elif "pool" in name and "max" in name and "backward" in name:
        args = (six, six.astype(int), six.shape)
    elif "lp_pool" in name:
        args = (six, six, 2, 1) if "backward" in name else (six, 2, 1)
    elif "adaptive" in name:
        args = (six, six.shape if "backward" in name else 1)
    elif "pool" in name:
        args = (six, six.shape, 1) if "backward" in name else (six, 1)
    else:
        args = {"input_grad": (six, six, six.shape), "weight_grad": (six, six, six.shape)}.get(
            name.split("d_")[-1], (six,) * (3 if "backward" in name else 2)
        )
    with pytest.raises(ValueError, match=f"^{name}: "):
        function(*args)
    with pytest.raises(ValueError, match=f'^{name}: layout must be "NCHW" or "NHWC", got .WCHN.'):
        function(*args, layout="WCHN")
