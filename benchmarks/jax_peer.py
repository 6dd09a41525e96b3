"""JAX on the CPU as a contender, compiled, in both memory orders. Its weights are not prepacked."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import fastconv
from benchmarks.contenders import Contender, LeftOut, load
from benchmarks.layers import ConvData, ConvLayer, PoolData, PoolLayer

#: Axes of x, weight and y, by the name of the contender.
LAYOUTS = {"jax": ("NCHW", "OIHW", "NCHW"), "jax channels_last": ("NHWC", "HWIO", "NHWC")}


@cache
def load_jax() -> Any:
    """jax, with as many threads as fastconv: it makes them once, as many as NPROC says."""
    jax = load("jax")
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = str(fastconv.get_num_threads())
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        jax.devices()
    finally:
        if before is None:
            del os.environ["NPROC"]
        else:
            os.environ["NPROC"] = before
    return jax


def _reordered(array: np.ndarray, axes_from: str, axes_to: str) -> np.ndarray:
    """
    >>> _reordered(np.ones((1, 2, 3, 4)), "NCHW", "NHWC").shape
    (1, 3, 4, 2)
    """
    return np.ascontiguousarray(array.transpose([axes_from.index(axis) for axis in axes_to]))


def _contender(function: Callable[..., Any], arrays: list[np.ndarray], axes: tuple[str, ...]) -> Contender:
    """`function` of arrays, whose results have these axes; a bias keeps its one."""
    jax = load_jax()
    compiled = jax.jit(function)
    placed = [jax.device_put(array) for array in arrays]

    def logical(results: Any) -> list[np.ndarray]:
        orders = {"NHWC": "NCHW", "HWIO": "OIHW"}
        return [
            _reordered(np.asarray(result), order, orders.get(order, order)) if result.ndim == 4 else result
            for result, order in zip(results, axes, strict=True)
        ]

    return Contender(lambda: jax.block_until_ready(compiled(*placed)), logical=logical)


def conv(op: str, layer: ConvLayer, data: ConvData, layout: tuple[str, str, str]) -> Contender:
    jax = load_jax()
    images, taps, _ = layout
    x, grad_output = (_reordered(array, "NCHW", images) for array in (data.x, data.grad_output))
    weight = _reordered(data.weight, "OIHW", taps)
    channels = [1 if axis == "N" else -1 if axis == "C" else 1 for axis in images]

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            (layer.stride,) * 2,
            ((layer.padding,) * 2,) * 2,
            dimension_numbers=layout,
            feature_group_count=layer.groups,
        )
        return y + bias.reshape(channels)

    def gradients(x: Any, weight: Any, grad_output: Any) -> Any:
        bias = jax.numpy.zeros(layer.out_channels, x.dtype)
        return jax.vjp(forward, x, weight, bias)[1](grad_output)

    if op == "forward":
        return _contender(lambda *arrays: (forward(*arrays),), [x, weight, data.bias], (images,))
    wanted = {"input_grad": slice(0, 1), "weight_grad": slice(1, 2), "backward": slice(0, 3)}[op]
    return _contender(
        lambda *arrays: gradients(*arrays)[wanted],
        [x, weight, grad_output],
        (images, taps, "K")[wanted],
    )


def pool(op: str, layer: PoolLayer, data: PoolData, layout: tuple[str, str, str]) -> Contender:
    """`max_pool2d_backward` looks for the largest cells itself: jax has no indices to give it."""
    if op == "max_pool2d with indices":
        raise LeftOut("has no indices")
    jax = load_jax()
    images = layout[0]
    x, grad_output = (_reordered(array, "NCHW", images) for array in data)

    def per_axis(value: Any, other: Any) -> tuple[Any, ...]:
        return tuple(value if axis in "HW" else other for axis in images)

    window, strides = per_axis(layer.kernel, 1), per_axis(layer.stride, 1)
    padding = per_axis((layer.padding,) * 2, (0, 0))

    def max_pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, strides, padding)

    def avg_pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, padding) / layer.kernel**2

    forward = max_pool if op.startswith("max") else avg_pool
    if op.endswith("backward"):
        return _contender(lambda x, grad: jax.vjp(forward, x)[1](grad), [x, grad_output], (images,))
    return _contender(lambda x: (forward(x),), [x], (images,))
