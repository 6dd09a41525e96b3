"""The short way to a convolution that has been done before with arrays of the same shapes.

Checking arguments and planning take ten times as long as convolving an image of 8 x 8 cells. Their outcome is
kept by all that it depends on, so that what is left is to look it up and to run the kernel. Whatever is not
plain, or not right, is left to the long way, which explains what is wrong.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from fastconv import arguments
from fastconv.algorithms import ALGORITHMS, Algorithm
from fastconv.algorithms.base import Bound
from fastconv.arguments import canonical
from fastconv.functional import run
from fastconv.functional.packed_weight import Form, PackedWeight
from fastconv.precision import get_float32_precision
from fastconv.threads import get_num_threads

#: NumPy's flags of arrays that are C-contiguous and aligned; each flag by name would take 0.05 us more.
_READABLE = 0x0001 | 0x0100
_REALS = (np.dtype(np.float32), np.dtype(np.float64))


def _is_plain(array: Any, dtype: np.dtype) -> bool:
    """Whether a kernel can read the array as it is."""
    if type(array) is not np.ndarray or array.dtype is not dtype:
        return False
    return array.flags.num & _READABLE == _READABLE


def forward(
    rank: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
    layout: Any,
    algorithm: Any,
) -> np.ndarray | None:
    """The convolution, padded with zeros, or None where it must go the long way."""
    form: Form | None = None
    memory = weight
    if type(weight) is PackedWeight:
        form, memory, weight = weight.form, weight.packed, weight.array
        if form is None:
            memory = weight
    dtype = getattr(x, "dtype", None)
    if dtype not in _REALS or not (_is_plain(x, dtype) and _is_plain(weight, dtype)):
        return None
    if bias is not None and not _is_plain(bias, dtype):
        return None
    try:
        found = _bind(
            rank,
            x.shape,
            weight.shape,
            None if bias is None else bias.shape,
            dtype,
            canonical(stride),
            canonical(padding),
            canonical(dilation),
            canonical(groups),
            activation,
            layout,
            ALGORITHMS[algorithm],
            get_num_threads(),
            get_float32_precision(),
            form,
        )
    except (TypeError, ValueError, KeyError):
        return None
    if found is None:
        return None
    y = np.empty(found[0], dtype)
    found[1](x, memory, bias, y)
    return y


@lru_cache(maxsize=4096)
def _bind(
    rank: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    dtype: np.dtype,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
    layout: Any,
    algorithm: Algorithm,
    threads: int,
    precision: str,
    form: Form | None,
) -> tuple[tuple[int, ...], Bound] | None:
    """The shape of y, and what computes it with `threads` threads; None for what is not simple, or wrong.

    Which algorithm may do so depends on `precision`, too. With a `form` it takes a weight's bytes in that
    form.
    """
    shape = run.geometry("", rank, x_shape, weight_shape, stride, padding, dilation, groups, layout)
    if activation not in (None, "relu") or bias_shape not in (None, (shape.out_channels,)):
        return None
    y_shape = run.y_shape(shape, len(x_shape))
    if 0 in x_shape or 0 in y_shape or prod(y_shape) * dtype.itemsize > arguments.LARGEST_BYTES:
        return None
    if algorithm.supports(shape, dtype, "forward") is not None:
        return None
    facts = (shape, dtype, bias_shape is not None, activation == "relu")
    bound = algorithm.bind(*facts) if form is None else form.bind(*facts, algorithm)
    return None if bound is None else (y_shape, bound)
