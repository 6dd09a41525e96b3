"""PyTorch as a contender, in both of its memory orders. Its weights are not prepacked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import fastconv
from benchmarks.contenders import Contender, LeftOut, load
from benchmarks.layers import ConvData, ConvLayer, PoolData, PoolLayer

#: Memory orders of images, by the name of the contender.
FORMATS = {"torch": "contiguous_format", "torch channels_last": "channels_last"}


@cache
def load_torch() -> Any:
    """torch, with as many threads as fastconv."""
    torch = load("torch")
    torch.set_num_threads(fastconv.get_num_threads())
    return torch


def conv(op: str, layer: ConvLayer, data: ConvData, memory: str) -> Contender:
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


def nnpack(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    """NNPACK as PyTorch has it: kernels of its own, Winograd's and Fourier's among them."""
    torch = load_torch()
    if not torch.backends.nnpack.is_available():
        raise LeftOut("not in this PyTorch")
    if op != "forward":
        raise LeftOut("forward only")
    if layer.groups != 1 or data.x.dtype != np.float32:
        raise LeftOut("float32 without groups only")
    x, weight, bias = (torch.from_numpy(array) for array in (data.x, data.weight, data.bias))
    facts = [layer.padding] * 2, [layer.stride] * 2
    return Contender(lambda: torch._nnpack_spatial_convolution(x, weight, bias, *facts), torch.inference_mode)


def pool(op: str, layer: PoolLayer, data: PoolData, indices: np.ndarray, memory: str) -> Contender:
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
