"""Pooling and lowering: linear maps, once max pooling has chosen its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from autograd.extend import defjvp, defvjp, primitive
from autograd.tracer import getval

from fastconv import functional as F
from fastconv.arguments import Ints, Padding, canonical, per_axis
from fastconv.autograd.common import Boxed, Function, like, of_rank

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "col2im",
    "im2col",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]


class Linear(NamedTuple):
    """A linear map of plain arrays and its adjoint."""

    apply: Callable[[np.ndarray], np.ndarray]
    adjoint: Callable[[np.ndarray], np.ndarray]


@primitive
def apply(x: Boxed, op: Linear) -> Any:
    return op.apply(x)


@primitive
def adjoint(g: Boxed, op: Linear) -> Any:
    return op.adjoint(g)


@primitive
def _chosen(x: Boxed, y: np.ndarray, op: Linear) -> Any:
    """`apply` with the result y at hand."""
    return y


defvjp(apply, lambda ans, x, op: lambda g: adjoint(like(g, ans), op))
defvjp(adjoint, lambda ans, g, op: lambda gg: apply(like(gg, ans), op))
defvjp(_chosen, lambda ans, x, y, op: lambda g: adjoint(like(g, ans), op), argnums=(0,))
defjvp(apply, "same")
defjvp(adjoint, "same")
defjvp(_chosen, lambda t, ans, x, y, op: apply(t, op), argnums=(0,))


def _choose(
    rank: int, x: Boxed, layout: str, return_indices: bool, choose: Callable[[np.ndarray, bool], Any]
) -> Any:
    """Max pooling: `choose(x, return_indices)` on the plain x, and a linear map where it is followed."""
    plain = getval(x)
    if plain is x:
        return choose(x, return_indices)
    y, indices = choose(plain, True)
    scatter = partial(getattr(F, f"max_pool{rank}d_backward"), layout=layout)
    op = Linear(
        lambda values: _gather(values, indices, rank, layout),
        lambda g: scatter(g, indices, plain.shape),
    )
    y = _chosen(x, y, op)
    return (y, indices) if return_indices else y


def _gather(values: np.ndarray, indices: np.ndarray, rank: int, layout: str) -> np.ndarray:
    """The cells of each plane that `indices` names."""
    last = layout == "NHWC"
    first = values.ndim - rank - last  # of the spatial axes
    lead, tail = values.shape[:first], values.shape[first + rank :]
    flat = np.take_along_axis(values.reshape(*lead, -1, *tail), indices.reshape(*lead, -1, *tail), first)
    return flat.reshape(indices.shape)


def _make_max_pool(rank: int, name: str) -> Function:
    numeric = getattr(F, name)

    def max_pool(
        x: Boxed,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
        *,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> Any:
        facts = (kernel_size, stride, padding, dilation, ceil_mode)
        keys = {"layout": layout, "algorithm": algorithm}
        return _choose(
            rank, x, layout, return_indices, lambda plain, noted: numeric(plain, *facts, noted, **keys)
        )

    return max_pool


def _make_adaptive_max_pool(rank: int, name: str) -> Function:
    numeric = getattr(F, name)

    def adaptive_max_pool(
        x: Boxed, output_size: Any, return_indices: bool = False, *, layout: str = "NCHW"
    ) -> Any:
        return _choose(
            rank,
            x,
            layout,
            return_indices,
            lambda plain, noted: numeric(plain, output_size, noted, layout=layout),
        )

    return adaptive_max_pool


def _make_max_unpool(rank: int, name: str) -> Function:
    numeric, numeric_backward = getattr(F, name), getattr(F, f"{name}_backward")

    def max_unpool(
        x: Boxed,
        indices: np.ndarray,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        output_size: Sequence[int] | None = None,
        *,
        layout: str = "NCHW",
    ) -> Boxed:
        facts = (indices, kernel_size, stride, padding, output_size)
        op = Linear(
            lambda plain: numeric(plain, *facts, layout=layout),
            lambda g: numeric_backward(g, indices, layout=layout),
        )
        return apply(x, op)

    return max_unpool


def _make_avg_pool(rank: int, name: str) -> Function:
    numeric, numeric_backward = getattr(F, name), getattr(F, f"{name}_backward")

    def avg_pool(
        x: Boxed,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        dilation: Ints = 1,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> Boxed:
        facts = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        keys = {"dilation": dilation, "layout": layout, "algorithm": algorithm}
        shape = np.shape(getval(x))
        op = Linear(
            lambda plain: numeric(plain, *facts, **keys),
            lambda g: numeric_backward(g, shape, *facts, **keys),
        )
        return apply(x, op)

    return avg_pool


def _make_adaptive_avg_pool(rank: int, name: str) -> Function:
    numeric, numeric_backward = getattr(F, name), getattr(F, f"{name}_backward")

    def adaptive_avg_pool(x: Boxed, output_size: Any, *, layout: str = "NCHW") -> Boxed:
        shape = np.shape(getval(x))
        op = Linear(
            lambda plain: numeric(plain, output_size, layout=layout),
            lambda g: numeric_backward(g, shape, layout=layout),
        )
        return apply(x, op)

    return adaptive_avg_pool


max_pool1d, max_pool2d, max_pool3d = of_rank("max_pool{}d", _make_max_pool)
max_unpool1d, max_unpool2d, max_unpool3d = of_rank("max_unpool{}d", _make_max_unpool)
avg_pool1d, avg_pool2d, avg_pool3d = of_rank("avg_pool{}d", _make_avg_pool)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = of_rank(
    "adaptive_max_pool{}d", _make_adaptive_max_pool
)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = of_rank(
    "adaptive_avg_pool{}d", _make_adaptive_avg_pool
)


def im2col(x: Boxed, kernel_size: Ints, dilation: Ints = 1, padding: Padding = 0, stride: Ints = 1) -> Boxed:
    """`fastconv.im2col`, for autograd."""
    sizes, shape = canonical(kernel_size), np.shape(getval(x))
    rank = len(sizes) if isinstance(sizes, tuple) else len(shape) - 2
    facts = (kernel_size, dilation, padding, stride)
    return apply(
        x,
        Linear(
            lambda plain: F.im2col(plain, *facts),
            lambda g: F.col2im(g, shape[len(shape) - rank :], *facts),
        ),
    )


def col2im(
    cols: Boxed,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
) -> Boxed:
    """`fastconv.col2im`, for autograd."""

    def gather(x: np.ndarray) -> np.ndarray:
        # one entry per axis: an int would not tell an x without N
        kernel = per_axis("col2im", "kernel_size", canonical(kernel_size), x.ndim - np.ndim(getval(cols)) + 1)
        return F.im2col(x, kernel, dilation, padding, stride)

    facts = (kernel_size, dilation, padding, stride)
    return apply(cols, Linear(lambda plain: F.col2im(plain, output_size, *facts), gather))
