"""Scratch memory, kept from call to call.

Fresh memory costs a page fault for every 4 KiB touched, which is more than what many layers compute.
So each Python thread keeps one buffer, as large as its largest call needed; algorithms bound that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod

import numpy as np

_ALIGNMENT = 64  # a cache line, and a vector of the widest kind
_local = threading.local()


def workspace(dtype: np.dtype, *shapes: Sequence[int]) -> list[np.ndarray]:
    """Arrays of the given shapes, contents arbitrary, valid until this thread asks again.

    >>> first, second = workspace(np.dtype(np.float32), (2, 3), (4,))
    >>> first.shape, second.shape, np.shares_memory(first, second)
    ((2, 3), (4,), False)
    """
    sizes = [-(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for shape in shapes]
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.nbytes < sum(sizes):
        _local.buffer = None  # let go of the old one before asking for more
        raw = np.empty(sum(sizes) + _ALIGNMENT, np.uint8)
        skip = -raw.__array_interface__["data"][0] % _ALIGNMENT
        _local.buffer = buffer = raw[skip : skip + sum(sizes)]
    arrays = []
    start = 0
    for shape, size in zip(shapes, sizes, strict=True):
        cells = buffer[start : start + prod(shape) * dtype.itemsize].view(dtype)
        arrays.append(cells.reshape(shape))
        start += size
    return arrays
