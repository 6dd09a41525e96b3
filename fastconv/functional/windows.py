"""The steps that the pooling functions share."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.algorithms import POOL_ALGORITHMS, PoolAlgorithm
from fastconv.arguments import canonical, per_axis, shown
from fastconv.shapes import PoolShape, drop, join_shape, pool_shape


def geometry(
    function: str,
    rank: int,
    x_shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    layout: Any,
    pooling: bool = True,
) -> PoolShape:
    """`pool_shape` of arguments as the user gave them."""
    if not isinstance(ceil_mode, (bool, np.bool_)):
        raise TypeError(f"{function}: ceil_mode must be True or False, got {shown(ceil_mode)}")
    return pool_shape(
        function,
        rank,
        x_shape,
        canonical(kernel_size),
        canonical(stride),
        canonical(padding),
        canonical(dilation),
        bool(ceil_mode),
        canonical(layout),
        pooling,
    )


def y_shape(shape: PoolShape, ndim: int) -> tuple[int, ...]:
    """The shape of y as the user sees it, for x with `ndim` axes."""
    batched = ndim == shape.rank + 2
    size = drop(shape.output, shape.rank)
    return join_shape(shape.layout, batched, shape.batch, shape.channels, size)


def flag(function: str, name: str, value: Any) -> bool:
    """True or False, also as an int."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, (int, np.integer)) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{function}: {name} must be True or False, got {shown(value)}")


def positive(function: str, name: str, value: Any) -> int:
    """A single int of at least 1."""
    return per_axis(function, name, canonical(value), 1)[0]


def find_algorithm(function: str, name: Any) -> PoolAlgorithm:
    """The pooling algorithm of that name."""
    algorithm = POOL_ALGORITHMS.get(name) if isinstance(name, str) else None
    if algorithm is None:
        names = ", ".join(map(repr, POOL_ALGORITHMS))
        raise ValueError(f"{function}: unknown algorithm {shown(name)}; there are {names}")
    return algorithm
