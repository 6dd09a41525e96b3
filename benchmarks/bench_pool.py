"""Pooling: bounded by memory, so that bytes count and not flops."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import pytest

from benchmarks import numpy_ops
from benchmarks.layers import POOL_LAYERS, POOL_OPERATIONS, PoolLayer, pool_data
from benchmarks.peers import chosen_pool, pool_line_up
from benchmarks.race import Race


@pytest.mark.parametrize("layer", POOL_LAYERS, ids=attrgetter("name"))
@pytest.mark.parametrize("op", POOL_OPERATIONS)
def test_float32(race: Race, op: str, layer: PoolLayer) -> None:
    layer = race.layer(layer)
    data = pool_data(layer)
    _, indices = numpy_ops.max_pool2d_with_indices(layer, data)
    # each operation reads one of x and y and writes the other
    moved = data.x.nbytes + data.grad_output.nbytes
    if op in ("max_pool2d with indices", "max_pool2d_backward"):
        moved += indices.nbytes
    race(
        pool_line_up(op, layer, data, indices),
        numpy_ops.pool(op, layer, data.astype(np.float64), indices),
        np.float32,
        operation=f"{op}, float32",
        layer=layer.name,
        net=layer.net,
        shape=str(layer),
        algorithm=chosen_pool(op),
        work=moved,
        unit="GB/s",
    )
