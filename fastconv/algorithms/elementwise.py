"""ReLU and dropout; see `fastconv.kernels.elementwise`. Where there is no compiler, by NumPy."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.jit import DISABLED, address_of
from fastconv.kernels import elementwise as kernels
from fastconv.threads import Prepared, task_count


class Choice(NamedTuple):
    """Which elements to drop: all that there is to know, whatever their number."""

    seed: int
    salt: int
    #: share of 2^32, less than that
    dropped: int
    #: of the first element: those of a part of a batch make the choices that they make in the whole
    position: int = 0

    @property
    def scale(self) -> float:
        """What is kept is multiplied by this."""
        return kernels.HASHES / (kernels.HASHES - self.dropped)


def _run(function: int, x: np.ndarray, other: np.ndarray | None, choice: Choice | None) -> np.ndarray:
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    tasks = task_count(x.size // 4, -(-x.size // kernels.BLOCK))
    at = 0 if other is None else address_of(other)
    run = _prepare(x.dtype, tasks)
    run.run(address_of(x), at, address_of(y), x.size, function, *(choice or (0, 0, 0, 0)))
    return y


@lru_cache(maxsize=64)
def _prepare(dtype: np.dtype, tasks: int) -> Prepared:
    return Prepared(kernels.elementwise, dtype, tasks, "x other y count function seed salt dropped position")


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0); NaN stays."""
    return np.maximum(x, 0) if DISABLED else _run(kernels.RELU, x, None, None)


def where_positive(grad: np.ndarray, y: np.ndarray) -> np.ndarray:
    """grad where y > 0, else 0."""
    if DISABLED or not y.flags.c_contiguous:
        return np.asarray(np.multiply(grad, y > 0))
    return _run(kernels.WHERE_POSITIVE, grad, y, None)


def dropout(x: np.ndarray, choice: Choice) -> np.ndarray:
    """x times `scale`, or times 0, element by element."""
    if DISABLED:
        return np.asarray(x * kept(x.size, choice).reshape(x.shape) * x.dtype.type(choice.scale))
    return _run(kernels.DROPOUT, x, None, choice)


def kept(count: int, choice: Choice) -> np.ndarray:
    """Which of `count` elements a choice keeps, as the kernel finds them."""
    value = np.arange(choice.position, choice.position + count).astype(np.uint32)
    for word in (choice.seed, choice.salt):
        value ^= np.uint32(word)
        for shift, factor in kernels._SHIFTS:
            value ^= value >> np.uint32(shift)
            if factor is not None:
                value *= np.uint32(factor)
    return value >= choice.dropped
