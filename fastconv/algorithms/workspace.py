"""Scratch memory, kept from call to call.

Fresh memory costs a page fault for every 4 KiB touched, which is more than what many layers compute.
So each Python thread keeps one buffer, as large as its largest call needed; algorithms bound that.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
import weakref
from collections.abc import Sequence
from itertools import accumulate
from math import prod

import numpy as np

from fastconv.jit import address_of

_ALIGNMENT = 64  # a cache line, and a vector of the widest kind
_local = threading.local()
#: The buffer of each thread, by its ident; for the end of the process.
_every: dict[int, weakref.ref[np.ndarray]] = {}
_leaving = False


def _keep(buffer: np.ndarray) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(buffer))


@atexit.register
def _keep_every() -> None:
    """A daemon thread may be in a kernel when Python takes the threads' data away: let it write on."""
    global _leaving
    _leaving = True
    for reference in list(_every.values()):
        buffer = reference()
        if buffer is not None:
            _keep(buffer)


def scratch(size: int) -> int:
    """The address of `size` bytes, contents arbitrary, valid until this thread asks again."""
    if getattr(_local, "size", -1) < size:
        _local.buffer = None  # let go of the old one before asking for more
        _local.size = 0
        _local.buffer = np.empty(size + _ALIGNMENT, np.uint8)
        _local.size = size
        _every[threading.get_ident()] = weakref.ref(_local.buffer)
        if _leaving:
            _keep(_local.buffer)
        _local.address = round_up(address_of(_local.buffer), _ALIGNMENT)
    address: int = _local.address
    return address


def round_up(value: int, multiple: int) -> int:
    """The next multiple.

    >>> round_up(17, 16), round_up(32, 16)
    (32, 32)
    """
    return -(-value // multiple) * multiple


def odd_lines(size: int) -> int:
    """At least `size` bytes: an odd number of cache lines, so that what is that far apart shares no sets.

    >>> odd_lines(1), odd_lines(65), odd_lines(192)
    (64, 192, 192)
    """
    return (-(-size // _ALIGNMENT) | 1) * _ALIGNMENT


def places(sizes: Sequence[int]) -> list[int]:
    """Where in a workspace each of some blocks begins, given their sizes in bytes; and where the last ends.

    >>> places([10, 64, 1])
    [0, 64, 128, 192]
    """
    return list(accumulate((round_up(size, _ALIGNMENT) for size in sizes), initial=0))


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
