"""Who computes an operation: fastconv by each of its algorithms, NumPy, scipy and torch.

`conv_line_up` and `pool_line_up` make the contenders for one operation on one layer. The first, "fastconv",
chooses its algorithm itself. A contender that is not installed, cannot do it or would take too long is
listed with the reason.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import fastconv
from benchmarks import numpy_ops
from benchmarks.layers import ConvData, ConvLayer, PoolData, PoolLayer

#: The most flops of a call with which slow contenders are timed: NumPy's BLAS, and everything else.
NUMPY_FLOPS = 500e6
SLOW_FLOPS = 20e6
#: As SLOW_FLOPS, for poolings.
SLOW_POOL_FLOPS = 10e6

#: Why an algorithm is no contender of its own.
CHOSEN = "is what fastconv chooses"

#: Memory orders of images in torch, by the name of the contender.
TORCH_FORMATS = {"torch": "contiguous_format", "torch channels_last": "channels_last"}


class LeftOut(Exception):
    """Why a contender does not take part."""


class Contender(NamedTuple):
    """Something that computes an operation; its results are arrays or tensors, NCHW in logical order."""

    call: Callable[[], Any]
    #: entered around many calls: settings that belong to the contender
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


class LineUp(NamedTuple):
    """The contenders of one case by name, and for each other the reason why not."""

    contenders: dict[str, Contender]
    left_out: dict[str, str]


def line_up(makers: Mapping[str, Callable[[], Contender]]) -> LineUp:
    """Make each contender.

    >>> def absent():
    ...     raise LeftOut("not installed")
    >>> line_up({"here": lambda: Contender(int), "there": absent}).left_out
    {'there': 'not installed'}
    """
    result = LineUp({}, {})
    for name, make in makers.items():
        try:
            result.contenders[name] = make()
        except LeftOut as reason:
            result.left_out[name] = str(reason)
    return result


def load(module: str) -> Any:
    """An optional module."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LeftOut("not installed") from None


@cache
def load_torch() -> Any:
    """torch, with as many threads as fastconv."""
    torch = load("torch")
    torch.set_num_threads(fastconv.get_num_threads())
    return torch


def _limit(layer: ConvLayer | PoolLayer, flops: float) -> None:
    if layer.flops > flops:
        raise LeftOut(f"slow: not timed above {flops / 1e6:,.0f} MFLOP")


# --- convolution --------------------------------------------------------------------------------


def conv_line_up(op: str, layer: ConvLayer, data: ConvData) -> LineUp:
    """The contenders for one of `CONV_OPERATIONS`."""
    makers: dict[str, Callable[[], Contender]] = {
        "fastconv": partial(fastconv_conv, op, layer, data, "auto"),
        **{
            f"fastconv {name}": partial(fastconv_conv, op, layer, data, name)
            for name in fastconv.ALGORITHMS
            if name != "auto"
        },
        **{name: partial(torch_conv, op, layer, data, memory) for name, memory in TORCH_FORMATS.items()},
        "numpy": partial(numpy_conv, op, layer, data),
        "scipy": partial(scipy_conv, op, layer, data),
    }
    return line_up(makers)


def _plans(op: str, layer: ConvLayer, dtype: Any) -> list[fastconv.Plan]:
    parts = ("input_grad", "weight_grad") if op == "backward" else (op,)
    facts = (layer.x_shape, layer.weight_shape, layer.stride, layer.padding, 1, layer.groups)
    return [fastconv.explain(*facts, dtype=dtype, op=part) for part in parts]


def chosen_conv(op: str, layer: ConvLayer, dtype: Any) -> str:
    """The algorithm that "fastconv" chooses; several for "backward" if its parts differ."""
    return ", ".join(sorted({plan.algorithm for plan in _plans(op, layer, dtype)}))


def fastconv_conv(op: str, layer: ConvLayer, data: ConvData, algorithm: str) -> Contender:
    x, weight, bias, grad_output = data
    facts = (layer.stride, layer.padding, 1, layer.groups)
    if algorithm == chosen_conv(op, layer, x.dtype):
        raise LeftOut(CHOSEN)
    if algorithm == "naive":
        _limit(layer, SLOW_FLOPS)
    for plan in _plans(op, layer, x.dtype):
        reason = fastconv.ALGORITHMS[algorithm].supports(plan.shape, plan.dtype, plan.op)
        if reason is not None:
            raise LeftOut(reason)
    calls = {
        "forward": lambda: fastconv.conv2d(x, weight, bias, *facts, algorithm=algorithm),
        "input_grad": lambda: fastconv.conv2d_input_grad(
            grad_output, weight, x.shape, *facts, algorithm=algorithm
        ),
        "weight_grad": lambda: fastconv.conv2d_weight_grad(
            grad_output, x, weight.shape, *facts, algorithm=algorithm
        ),
        "backward": lambda: fastconv.conv2d_backward(grad_output, x, weight, *facts, algorithm=algorithm),
    }
    return Contender(calls[op])


def numpy_conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    _limit(layer, NUMPY_FLOPS)
    return Contender(lambda: numpy_ops.conv(op, layer, data))


def scipy_conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    """One `scipy.signal.correlate` per image and output channel; the stride throws results away."""
    if op != "forward":
        raise LeftOut("forward only")
    _limit(layer, SLOW_FLOPS)
    correlate = load("scipy.signal").correlate
    x, weight, bias, _ = data
    group_in, group_out = weight.shape[1], layer.out_channels // layer.groups
    border = (layer.padding, layer.padding)

    def call() -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), border, border))
        y = np.empty(layer.y_shape, x.dtype)
        for k, taps in enumerate(weight):
            first = k // group_out * group_in
            for image, plane in zip(padded, y[:, k], strict=True):
                full = correlate(image[first : first + group_in], taps, mode="valid")
                np.add(full[0, :: layer.stride, :: layer.stride], bias[k], out=plane)
        return y

    return Contender(call)


def torch_conv(op: str, layer: ConvLayer, data: ConvData, memory: str) -> Contender:
    torch = load_torch()
    order = getattr(torch, memory)
    x, weight, grad_output = (
        torch.from_numpy(array).contiguous(memory_format=order)
        for array in (data.x, data.weight, data.grad_output)
    )
    bias = torch.from_numpy(data.bias)
    strides, paddings = [layer.stride] * 2, [layer.padding] * 2

    def gradients(mask: list[bool]) -> Callable[[], Any]:
        facts = (strides, paddings, [1, 1], False, [0, 0], layer.groups, mask)
        return lambda: torch.ops.aten.convolution_backward(
            grad_output, x, weight, [layer.out_channels], *facts
        )

    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: torch.nn.functional.conv2d(x, weight, bias, strides, paddings, 1, layer.groups),
        "input_grad": gradients([True, False, False]),
        "weight_grad": gradients([False, True, False]),
        "backward": gradients([True, True, True]),
    }
    return Contender(calls[op], torch.inference_mode)


# --- pooling ------------------------------------------------------------------------------------


def pool_line_up(op: str, layer: PoolLayer, data: PoolData, indices: np.ndarray) -> LineUp:
    """The contenders for one of `POOL_OPERATIONS`; `indices` are where the largest cells are."""
    makers: dict[str, Callable[[], Contender]] = {
        "fastconv": partial(fastconv_pool, op, layer, data, indices, "auto"),
        **{
            f"fastconv {name}": partial(fastconv_pool, op, layer, data, indices, name)
            for name in fastconv.POOL_ALGORITHMS
            if name != "auto"
        },
        **{
            name: partial(torch_pool, op, layer, data, indices, memory)
            for name, memory in TORCH_FORMATS.items()
        },
        "numpy": partial(numpy_pool, op, layer, data, indices),
    }
    return line_up(makers)


def chosen_pool(op: str) -> str:
    """The algorithm that "fastconv" chooses."""
    return "direct" if op == "max_pool2d_backward" else fastconv.POOL_ALGORITHMS["auto"].name


def fastconv_pool(
    op: str, layer: PoolLayer, data: PoolData, indices: np.ndarray, algorithm: str
) -> Contender:
    x, grad_output = data
    facts = (layer.kernel, layer.stride, layer.padding)
    if algorithm != "auto":
        if op == "max_pool2d_backward":
            raise LeftOut("has no algorithms to choose from")
        if algorithm == chosen_pool(op):
            raise LeftOut(CHOSEN)
        _limit(layer, SLOW_POOL_FLOPS)
    calls: dict[str, Callable[[], Any]] = {
        "max_pool2d": lambda: fastconv.max_pool2d(x, *facts, algorithm=algorithm),
        "max_pool2d with indices": lambda: fastconv.max_pool2d(
            x, *facts, return_indices=True, algorithm=algorithm
        ),
        "max_pool2d_backward": lambda: fastconv.max_pool2d_backward(grad_output, indices, x.shape),
        "avg_pool2d": lambda: fastconv.avg_pool2d(x, *facts, algorithm=algorithm),
        "avg_pool2d_backward": lambda: fastconv.avg_pool2d_backward(
            grad_output, x.shape, *facts, algorithm=algorithm
        ),
    }
    return Contender(calls[op])


def numpy_pool(op: str, layer: PoolLayer, data: PoolData, indices: np.ndarray) -> Contender:
    _limit(layer, SLOW_POOL_FLOPS)
    return Contender(lambda: numpy_ops.pool(op, layer, data, indices))


def torch_pool(op: str, layer: PoolLayer, data: PoolData, indices: np.ndarray, memory: str) -> Contender:
    torch = load_torch()
    order = getattr(torch, memory)
    x, grad_output, places = (
        torch.from_numpy(array).contiguous(memory_format=order) for array in (*data, indices)
    )
    facts = [layer.kernel] * 2, [layer.stride] * 2, [layer.padding] * 2
    functional, aten = torch.nn.functional, torch.ops.aten
    calls: dict[str, Callable[[], Any]] = {
        "max_pool2d": lambda: functional.max_pool2d(x, *facts),
        "max_pool2d with indices": lambda: functional.max_pool2d(x, *facts, return_indices=True),
        "max_pool2d_backward": lambda: aten.max_pool2d_with_indices_backward(
            grad_output, x, *facts, [1, 1], False, places
        ),
        "avg_pool2d": lambda: functional.avg_pool2d(x, *facts),
        "avg_pool2d_backward": lambda: aten.avg_pool2d_backward(grad_output, x, *facts, False, True, None),
    }
    return Contender(calls[op], torch.inference_mode)
