"""Pooling: bounded by memory, so that bytes count and not flops."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import pytest

from benchmarks import numpy_ops
from benchmarks.layers import POOL_LAYERS, POOL_OPERATIONS, PoolLayer, pool_data
from benchmarks.peers import chosen_pool, pool_line_up
from benchmarks.race import Race
from benchmarks.yardsticks import copy_of


@pytest.mark.parametrize("layer", POOL_LAYERS, ids=attrgetter("name"))
@pytest.mark.parametrize("op", POOL_OPERATIONS)
def test_float32(race: Race, op: str, layer: PoolLayer) -> None:
    layer = race.layer(layer)
    data = pool_data(layer)
    _, indices = numpy_ops.max_pool2d_with_indices(layer, data)
    # each operation reads one of x and y and writes the other
    arrays: list[np.ndarray] = list(data)
    if op in ("max_pool2d with indices", "max_pool2d_backward"):
        arrays.append(indices)
    race(
        pool_line_up(op, layer, data, indices, race.peers),
        numpy_ops.pool(op, layer, data.astype(np.float64), indices),
        np.float32,
        yardstick=copy_of(arrays),
        operation=f"{op}, float32",
        layer=layer.name,
        net=layer.net,
        shape=str(layer),
        algorithm=chosen_pool(op),
        work=sum(array.nbytes for array in arrays),
        unit="GB/s",
    )
