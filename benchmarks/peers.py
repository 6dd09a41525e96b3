"""Who computes an operation: fastconv by each of its algorithms, and its peers.

`conv_line_up` and `pool_line_up` make the contenders for one operation on one layer. The first, "fastconv",
chooses its algorithm itself. A contender that is not installed, cannot do it or would take too long is
listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np

import fastconv
from benchmarks import jax_peer, numpy_ops, onnxruntime_peer, opencv_peer, openvino_peer, torch_peer
from benchmarks.contenders import Contender, LeftOut, LineUp, limit, line_up, load
from benchmarks.layers import ConvData, ConvLayer, PoolData, PoolLayer

#: The most flops of a call with which slow contenders are timed: NumPy's BLAS, and everything else.
NUMPY_FLOPS = 500e6
SLOW_FLOPS = 20e6
#: As SLOW_FLOPS, for poolings.
SLOW_POOL_FLOPS = 10e6

#: Why an algorithm is no contender of its own.
CHOSEN = "is what fastconv chooses"

#: Other libraries, and those of them that take part unless told otherwise: the rest compile something for
#: each case, which takes minutes.
PEERS = ("numpy", "scipy", "torch", "onnxruntime", "openvino", "opencv", "jax")
DEFAULT_PEERS = ("numpy", "scipy", "torch")


def _asked_for(makers: dict[str, Callable[[], Contender]], peers: Collection[str]) -> LineUp:
    """Of fastconv and some peers, each in all of its memory orders."""
    names = {"fastconv", *peers}
    return line_up({name: make for name, make in makers.items() if name.split()[0] in names})


# --- convolution --------------------------------------------------------------------------------


def conv_line_up(op: str, layer: ConvLayer, data: ConvData, peers: Collection[str]) -> LineUp:
    """The contenders for one of `CONV_OPERATIONS`; of `PEERS` those in `peers`."""
    makers: dict[str, Callable[[], Contender]] = {
        "fastconv": partial(fastconv_conv, op, layer, data, "auto"),
        "fastconv prepacked": partial(prepacked_conv, op, layer, data),
        "fastconv NHWC": partial(channels_last_conv, op, layer, data),
        **{
            f"fastconv {name}": partial(fastconv_conv, op, layer, data, name)
            for name in fastconv.ALGORITHMS
            if name != "auto"
        },
        **{
            name: partial(torch_peer.conv, op, layer, data, memory)
            for name, memory in torch_peer.FORMATS.items()
        },
        "torch nnpack": partial(torch_peer.nnpack, op, layer, data),
        "onnxruntime": partial(onnxruntime_peer.conv, op, layer, data),
        "openvino": partial(openvino_peer.conv, op, layer, data),
        "opencv": partial(opencv_peer.conv, op, layer, data),
        **{name: partial(jax_peer.conv, op, layer, data, axes) for name, axes in jax_peer.LAYOUTS.items()},
        "numpy": partial(numpy_conv, op, layer, data),
        "scipy": partial(scipy_conv, op, layer, data),
    }
    return _asked_for(makers, peers)


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
        limit(layer, SLOW_FLOPS)
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


def prepacked_conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    """The weight packed before the clock starts."""
    if op != "forward":
        raise LeftOut("forward only")
    facts = (layer.stride, layer.padding, 1, layer.groups)
    names = ("stride", "padding", "dilation", "groups")
    x, bias = data.x, data.bias
    weight = fastconv.prepack(data.weight, x_shape=x.shape, **dict(zip(names, facts, strict=True)))
    return Contender(lambda: fastconv.conv2d(x, weight, bias, *facts))


def channels_last_conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    """Arrays whose channels are the last axis from the start."""
    if op != "forward":
        raise LeftOut("forward only")
    facts = (layer.stride, layer.padding, 1, layer.groups)
    x = np.ascontiguousarray(np.moveaxis(data.x, 1, -1))
    weight = np.ascontiguousarray(data.weight.transpose(2, 3, 1, 0))
    return Contender(
        lambda: fastconv.conv2d(x, weight, data.bias, *facts, layout="NHWC"),
        logical=lambda y: np.moveaxis(y, -1, 1),
    )


def numpy_conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    limit(layer, NUMPY_FLOPS)
    return Contender(lambda: numpy_ops.conv(op, layer, data))


def scipy_conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    """One `scipy.signal.correlate` per image and output channel; the stride throws results away."""
    if op != "forward":
        raise LeftOut("forward only")
    limit(layer, SLOW_FLOPS)
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


# --- pooling ------------------------------------------------------------------------------------


def pool_line_up(
    op: str, layer: PoolLayer, data: PoolData, indices: np.ndarray, peers: Collection[str]
) -> LineUp:
    """The contenders for one of `POOL_OPERATIONS`; `indices` are where the largest cells are."""
    makers: dict[str, Callable[[], Contender]] = {
        "fastconv": partial(fastconv_pool, op, layer, data, indices, "auto"),
        **{
            f"fastconv {name}": partial(fastconv_pool, op, layer, data, indices, name)
            for name in fastconv.POOL_ALGORITHMS
            if name != "auto"
        },
        **{
            name: partial(torch_peer.pool, op, layer, data, indices, memory)
            for name, memory in torch_peer.FORMATS.items()
        },
        "onnxruntime": partial(onnxruntime_peer.pool, op, layer, data),
        **{name: partial(jax_peer.pool, op, layer, data, axes) for name, axes in jax_peer.LAYOUTS.items()},
        "numpy": partial(numpy_pool, op, layer, data, indices),
    }
    return _asked_for(makers, peers)


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
        limit(layer, SLOW_POOL_FLOPS)
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
    limit(layer, SLOW_POOL_FLOPS)
    return Contender(lambda: numpy_ops.pool(op, layer, data, indices))
