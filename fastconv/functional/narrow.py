"""Reals of 16 bits, float16 and bfloat16: stored so, computed in float32.

Kernels know float32 and float64. Where the boundary (`fastconv.functional.arrays`) finds that all arrays of a
call are of 16 bits, the call is made again with these as float32, and what it gives is rounded once, at the
end, to the dtype that came in. What is not narrow costs nothing.
bfloat16 is a dtype of the package ml_dtypes, which is not needed here: it is known by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from fastconv.arguments import check_bytes
from fastconv.functional.packed_weight import PackedWeight

Run = TypeVar("Run", bound=Callable[..., Any])


def is_narrow(dtype: np.dtype) -> bool:
    """Whether these are reals of 16 bits."""
    return dtype.itemsize == 2 and dtype.name in ("float16", "bfloat16")


class NarrowArrays(Exception):
    """All arrays of a call are of this dtype, of 16 bits."""

    def __init__(self, dtype: np.dtype) -> None:
        super().__init__(dtype)
        self.dtype = dtype


class NarrowOut:
    """What a user has given as `out` beside arrays of 16 bits; it must be of the same dtype."""

    def __init__(self, array: Any, dtype: np.dtype) -> None:
        self.array, self.dtype = array, dtype


def widens(run: Run) -> Run:
    """Decorator: arrays of 16 bits go in as float32, and results of float32 come out as narrow as these."""
    names = list(inspect.signature(run).parameters)

    @wraps(run)
    def widened(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except NarrowArrays as found:
            dtype = found.dtype

        def wide(name: str, value: Any) -> Any:
            if name == "out":
                return None if value is None else NarrowOut(value, dtype)
            return _wide(run.__name__ if run.__name__[0] != "_" else args[0], name, value, dtype)

        positional = [wide(name, value) for name, value in zip(names, args, strict=False)]
        keywords = {name: wide(name, value) for name, value in kwargs.items()}
        return _narrow(run(*positional, **keywords), dtype)

    return widened  # type: ignore[return-value]


def _wide(function: str, name: str, value: Any, dtype: np.dtype) -> Any:
    if isinstance(value, PackedWeight):
        return value.wide or value
    if not hasattr(value, "__array__") or isinstance(value, np.generic):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # the checks will say so
        return value
    if array.dtype.newbyteorder("=") != dtype:
        return value
    check_bytes(function, f"a copy of {name}", array.shape, np.dtype(np.float32))
    return array.astype(np.float32)


def _narrow(result: Any, dtype: np.dtype) -> Any:
    if isinstance(result, PackedWeight):
        return result.narrow(dtype)
    if isinstance(result, tuple):
        parts = [_narrow(part, dtype) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    if isinstance(result, np.ndarray) and result.dtype == np.float32:
        with np.errstate(over="ignore"):  # beyond the largest of them is inf, as IEEE arithmetic has it
            return result.astype(dtype)
    return result
