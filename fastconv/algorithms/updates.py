"""Steps of optimisers over many arrays at once; see `fastconv.kernels.updates` for the rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fastconv.jit import DISABLED, address_of
from fastconv.kernels import updates as kernels
from fastconv.kernels.updates import ADAM, MOMENTUM, NESTEROV, SGD
from fastconv.threads import Prepared, task_count

__all__ = ["ADAM", "MOMENTUM", "NESTEROV", "SGD", "update"]

#: Numbers of a block: the four arrays that it reads and writes fill a part of L2.
BLOCK = 16_384

#: A parameter, its gradient, and what is remembered of it; fewer than two arrays where the rule needs fewer.
Tensor = tuple[np.ndarray, ...]


def update(rule: int, tensors: Sequence[Tensor], numbers: Sequence[float]) -> bool:
    """Change the parameters, and what is remembered of them, in place; or return False where NumPy must."""
    if DISABLED or not tensors:
        return False
    dtype = tensors[0][0].dtype
    for tensor in tensors:
        shape = tensor[0].shape
        for array in tensor:
            flags = array.flags
            if array.dtype != dtype or array.shape != shape or not (flags.c_contiguous and flags.aligned):
                return False
    if not dtype.isnative or dtype.kind != "f" or dtype.itemsize not in (4, 8):
        return False
    blocks, prepared = _prepare(dtype, rule, tuple(tensor[0].size for tensor in tensors))
    table = np.zeros((len(tensors), kernels.TENSOR_FIELDS), np.int64)
    for row, tensor in zip(table, tensors, strict=True):
        row[: len(tensor)] = [address_of(array) for array in tensor]
    coefficients = np.zeros(8)
    coefficients[: len(numbers)] = numbers
    prepared.run(address_of(table), address_of(blocks), len(blocks), address_of(coefficients))
    return True


@lru_cache(maxsize=64)
def _prepare(dtype: np.dtype, rule: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, Prepared]:
    """The table of blocks, and the kernel."""
    blocks = np.array(
        [
            (tensor, first, min(first + BLOCK, size))
            for tensor, size in enumerate(sizes)
            for first in range(0, size, BLOCK)
        ],
        np.int64,
    ).reshape(-1, kernels.BLOCK_FIELDS)
    tasks = task_count(sum(sizes), len(blocks))
    return blocks, Prepared(kernels.update, dtype, tasks, "tensors blocks count numbers", rule=rule)
