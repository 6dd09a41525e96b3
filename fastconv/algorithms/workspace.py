"""Scratch memory, kept from call to call.

Fresh memory costs a page fault for every 4 KiB touched, which is more than what many layers compute.
So each Python thread keeps one buffer, as large as its largest call needed; algorithms bound that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate
from math import prod

import numpy as np

from fastconv.jit import address_of

_ALIGNMENT = 64  # a cache line, and a vector of the widest kind
_local = threading.local()


def scratch(size: int) -> int:
    """The address of `size` bytes, contents arbitrary, valid until this thread asks again."""
    if getattr(_local, "size", 0) < size:
        _local.buffer = None  # let go of the old one before asking for more
        _local.size = 0
        _local.buffer = np.empty(size + _ALIGNMENT, np.uint8)
        _local.size = size
        _local.address = _aligned(address_of(_local.buffer))
    address: int = _local.address
    return address


def _aligned(value: int) -> int:
    return -(-value // _ALIGNMENT) * _ALIGNMENT


def places(sizes: Sequence[int]) -> list[int]:
    """Where in a workspace each of some blocks begins, given their sizes in bytes; and where the last ends.

    >>> places([10, 64, 1])
    [0, 64, 128, 192]
    """
    return list(accumulate((_aligned(size) for size in sizes), initial=0))


def workspace(dtype: np.dtype, *shapes: Sequence[int]) -> list[np.ndarray]:
    """Arrays of the given shapes, contents arbitrary, valid until this thread asks again.

    >>> first, second = workspace(np.dtype(np.float32), (2, 3), (4,))
    >>> first.shape, second.shape, np.shares_memory(first, second)
    ((2, 3), (4,), False)
    """
    *starts, end = places([prod(shape) * dtype.itemsize for shape in shapes])
    skip = scratch(end) - address_of(_local.buffer)
    return [
        np.ndarray(shape, dtype, _local.buffer, skip + start)
        for shape, start in zip(shapes, starts, strict=True)
    ]
