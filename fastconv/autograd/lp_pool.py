"""Power averages: not linear, but made of powers and of a map that is."""

from __future__ import annotations

from math import inf, prod
from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
from autograd.extend import defjvp, defvjp, primitive
from autograd.tracer import getval

from fastconv import functional as F
from fastconv.arguments import Ints, Padding, canonical, per_axis
from fastconv.autograd import linear
from fastconv.autograd.common import Boxed, Function, like, of_rank
from fastconv.autograd.linear import Linear, adjoint, apply

__all__ = [
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
]


class _Norm(NamedTuple):
    """y = sums(x ** p) ** (1 / p) over windows."""

    p: float
    forward: Any
    sums: Linear


@primitive
def _lp_pool(x: Boxed, op: _Norm) -> Any:
    return op.forward(x)


def _outer(y: Boxed, p: float) -> Boxed:
    """The derivative of a sum's root by the sum, times p: y ** (1 - p), but 0 where y is."""
    zero = y == 0
    return anp.where(zero, np.zeros((), y.dtype), anp.where(zero, np.ones((), y.dtype), y) ** (1 - float(p)))


def _inner(x: Boxed, p: float) -> Boxed:
    """The derivative of a power, divided by p."""
    return x ** (float(p) - 1)


defvjp(
    _lp_pool,
    lambda ans, x, op: lambda g: _inner(x, op.p) * adjoint(like(g, ans) * _outer(ans, op.p), op.sums),
)
defjvp(_lp_pool, lambda t, ans, x, op: _outer(ans, op.p) * apply(t * _inner(x, op.p), op.sums))


def _make_lp_pool(rank: int, name: str) -> Function:
    numeric, max_pool = getattr(F, name), getattr(linear, f"max_pool{rank}d")
    avg, avg_backward = getattr(F, f"avg_pool{rank}d"), getattr(F, f"avg_pool{rank}d_backward")

    def lp_pool(
        x: Boxed,
        norm_type: float,
        kernel_size: Ints,
        stride: Ints | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        dilation: Ints = 1,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> Boxed:
        shape, keys = np.shape(getval(x)), {"layout": layout, "algorithm": algorithm, "dilation": dilation}
        if norm_type in (inf, -inf) and getval(x) is not x:
            sign = 1 if norm_type > 0 else -1
            facts = (kernel_size, stride, padding)
            return sign * max_pool(sign * anp.abs(x), *facts, ceil_mode=ceil_mode, **keys)
        windows = (kernel_size, stride, padding, ceil_mode)

        def forward(plain: np.ndarray) -> Any:
            return numeric(plain, norm_type, kernel_size, stride, ceil_mode, padding=padding, **keys)

        # means times taps: in ceil mode what lies beyond the padding counts as the rest does on average
        def sums(plain: np.ndarray) -> Any:
            return taps() * avg(plain, *windows, **keys)

        def spread(g: np.ndarray) -> Any:
            return taps() * avg_backward(g, shape, *windows, **keys)

        def taps() -> int:
            return prod(per_axis(name, "kernel_size", canonical(kernel_size), rank))

        return _lp_pool(x, _Norm(norm_type, forward, Linear(sums, spread)))

    return lp_pool


lp_pool1d, lp_pool2d, lp_pool3d = of_rank("lp_pool{}d", _make_lp_pool)
