"""Convolution: forward, its gradients, and calls so small that overhead decides."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np
import pytest

from benchmarks import numpy_ops
from benchmarks.layers import CONV_LAYERS, CONV_OPERATIONS, TINY_LAYERS, ConvData, ConvLayer, conv_data
from benchmarks.peers import chosen_conv, conv_line_up
from benchmarks.race import Race
from benchmarks.yardsticks import fma_peak


def traffic(op: str, data: ConvData) -> int:
    """Bytes that have to be read and written, each once, whatever the algorithm.

    >>> data = ConvData(*(np.zeros(size, np.float32) for size in (100, 10, 1, 1000)))
    >>> traffic("forward", data), traffic("backward", data)
    (4440, 4880)
    """
    once = data.x.nbytes + data.weight.nbytes + data.grad_output.nbytes
    return once + (data.x.nbytes + data.weight.nbytes if op == "backward" else 0)


def run(race: Race, op: str, layer: ConvLayer, dtype: Any, operation: str) -> None:
    layer = race.layer(layer)
    data = conv_data(layer, dtype)
    race(
        conv_line_up(op, layer, data, race.peers),
        numpy_ops.conv(op, layer, data.astype(np.float64)),
        dtype,
        yardstick=fma_peak(dtype),
        operation=operation,
        layer=layer.name,
        net=layer.net,
        shape=str(layer),
        algorithm=chosen_conv(op, layer, dtype),
        work=layer.flops * (2 if op == "backward" else 1),
        unit="GFLOP/s",
        traffic=traffic(op, data),
    )


@pytest.mark.parametrize("layer", CONV_LAYERS, ids=attrgetter("name"))
@pytest.mark.parametrize("op", CONV_OPERATIONS)
def test_float32(race: Race, op: str, layer: ConvLayer) -> None:
    run(race, op, layer, np.float32, f"conv2d {op}, float32")


@pytest.mark.parametrize("layer", CONV_LAYERS, ids=attrgetter("name"))
def test_float64_forward(race: Race, layer: ConvLayer) -> None:
    run(race, "forward", layer, np.float64, "conv2d forward, float64")


@pytest.mark.parametrize("layer", TINY_LAYERS, ids=attrgetter("name"))
def test_tiny_forward(race: Race, layer: ConvLayer) -> None:
    run(race, "forward", layer, np.float32, "conv2d forward, float32, tiny")
