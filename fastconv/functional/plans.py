"""Ask for the plan without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.algorithms import OPERATIONS
from fastconv.arguments import Ints, Padding, shape_argument, shown
from fastconv.functional import run
from fastconv.functional.narrow import is_narrow
from fastconv.plan import Plan, make_plan
from fastconv.precision import get_float32_precision
from fastconv.threads import get_num_threads

__all__ = [
    "explain",
]


def explain(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dtype: Any = np.float32,
    layout: str = "NCHW",
    op: str = "forward",
) -> Plan:
    """How a convolution would be computed, and why so.

    Parameters
    ----------
    x_shape, weight_shape : sequence of int
        The shapes that x and weight would have.
    stride, padding, dilation, groups, layout
        As in `conv2d`.
    dtype : float32 or float64
        float16 and bfloat16 are computed as float32.
    op : "forward", "input_grad" or "weight_grad"

    Returns
    -------
    Plan
        Printable: algorithm, reason, block sizes, bytes of workspace, flops, why the others were not chosen.

    Raises
    ------
    ValueError, TypeError
        As the convolution itself.

    Examples
    --------
    >>> plan = explain((8, 3, 32, 32), (16, 3, 3, 3), padding="same")
    >>> plan.algorithm, plan.flops
    ('direct', 7077888)
    """
    if not isinstance(op, str) or op not in OPERATIONS:
        names = ", ".join(map(repr, OPERATIONS))
        raise ValueError(f"explain: op must be one of {names}, got {shown(op)}")
    try:
        real = np.dtype(dtype)
    except (TypeError, ValueError, RecursionError):  # a list in itself
        raise TypeError(f"explain: dtype must be float32 or float64, got {shown(dtype)}") from None
    if is_narrow(real):
        real = np.dtype(np.float32)
    if real not in (np.float32, np.float64):
        raise TypeError(f"explain: dtype must be float32 or float64, got {real}")
    x = shape_argument("explain", "x_shape", x_shape)
    weight = shape_argument("explain", "weight_shape", weight_shape)
    rank = len(weight) - 2
    if not 1 <= rank <= 3:
        raise ValueError(f"explain: weight_shape must have 3 to 5 entries, got {weight}")
    shape = run.geometry("explain", rank, x, weight, stride, padding, dilation, groups, layout)
    return make_plan(shape, real, op, get_float32_precision(), get_num_threads())
