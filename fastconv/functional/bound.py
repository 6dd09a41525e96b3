"""The short way to a convolution that has been done before with arrays of the same shapes.

Checking arguments and planning take ten times as long as convolving an image of 8 x 8 cells. Their outcome is
kept by all that it depends on, so that what is left is to look it up and to run the kernel. Whatever is not
plain, or not right, is left to the long way, which explains what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from fastconv import arguments
from fastconv.algorithms import ALGORITHMS, Algorithm
from fastconv.arguments import canonical
from fastconv.functional import run
from fastconv.functional.packed_weight import Form, PackedWeight
from fastconv.precision import get_float32_precision
from fastconv.threads import get_num_threads

#: NumPy's flags of arrays that are C-contiguous and aligned; each flag by name would take 0.05 us more.
_READABLE = 0x0001 | 0x0100
_REALS = (np.dtype(np.float32), np.dtype(np.float64))


def _is_plain(array: Any, dtype: Any) -> bool:
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
            "forward",
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


def gradient(
    op: str,
    rank: int,
    grad_output: Any,
    other: Any,
    wanted: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: Any,
    algorithm: Any,
) -> np.ndarray | None:
    """The gradient `op` of what has the shape `wanted`, or None where it must go the long way.

    `other` is the weight for the gradient of x, and x for that of the weight.
    """
    dtype = getattr(grad_output, "dtype", None)
    if dtype not in _REALS or not (_is_plain(grad_output, dtype) and _is_plain(other, dtype)):
        return None
    try:
        size = canonical(wanted)
        found = _bind(
            op,
            rank,
            *((size, other.shape) if op == "input_grad" else (other.shape, size)),
            grad_output.shape,
            dtype,
            canonical(stride),
            canonical(padding),
            canonical(dilation),
            canonical(groups),
            None,
            layout,
            ALGORITHMS[algorithm],
            get_num_threads(),
            get_float32_precision(),
            None,
        )
    except (TypeError, ValueError, KeyError):
        return None
    if found is None:
        return None
    out = np.empty(found[0], dtype)
    found[1](grad_output, other, out)
    return out


def gradients(
    rank: int,
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: Any,
    algorithm: Any,
    need_x: bool,
    need_weight: bool,
) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """The gradients of x and of the weight that are needed, or None where they must go the long way."""
    dtype = getattr(grad_output, "dtype", None)
    if not ((need_x or need_weight) and _is_plain(x, dtype) and _is_plain(weight, dtype)):
        return None
    args = (stride, padding, dilation, groups, layout, algorithm)
    grad_x = grad_weight = None
    if need_x:
        grad_x = gradient("input_grad", rank, grad_output, weight, x.shape, *args)
        if grad_x is None:
            return None
    if need_weight:
        grad_weight = gradient("weight_grad", rank, grad_output, x, weight.shape, *args)
        if grad_weight is None:
            return None
    return grad_x, grad_weight


@lru_cache(maxsize=4096)
def _bind(
    op: str,
    rank: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    third_shape: tuple[int, ...] | None,
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
) -> tuple[tuple[int, ...], Callable[..., None]] | None:
    """The shape of the result, and what computes it with `threads` threads; None for what is not simple, or
    wrong.

    The third shape is that of the bias, or of grad_output. Which algorithm may do so depends on `precision`,
    too. With a `form` it takes a weight's bytes in that form.
    """
    for size in (x_shape, weight_shape):  # one of them may be whatever the user says
        if not (isinstance(size, tuple) and all(type(item) is int and item > 0 for item in size)):
            return None
    shape = run.geometry("", rank, x_shape, weight_shape, stride, padding, dilation, groups, layout)
    y_shape = run.y_shape(shape, len(x_shape))
    result = {"forward": y_shape, "input_grad": x_shape, "weight_grad": weight_shape}[op]
    if 0 in y_shape or prod(result) * dtype.itemsize > arguments.LARGEST_BYTES:
        return None
    if algorithm.supports(shape, dtype, op) is not None:
        return None
    if op != "forward":
        return (result, algorithm.bind_gradient(shape, dtype, op)) if third_shape == y_shape else None
    if activation not in (None, "relu") or third_shape not in (None, (shape.out_channels,)):
        return None
    facts = (shape, dtype, third_shape is not None, activation == "relu")
    bound = algorithm.bind(*facts) if form is None else form.bind(*facts, algorithm)
    return None if bound is None else (result, bound)
