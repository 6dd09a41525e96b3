"""MaxPool, AveragePool, LpPool, the global ones of these, and MaxUnpool."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fastconv.arguments import padding_pairs
from fastconv.onnx.base import Operator, by_rank, padding
from fastconv.shapes import output_size

Ints = Sequence[int] | None
Results = tuple[np.ndarray, ...]


class MaxPool(Operator):
    """Largest cells of windows, and where they are in the whole of x."""

    def _run(
        self,
        x: np.ndarray,
        auto_pad: str | None = None,
        ceil_mode: int = 0,
        dilations: Ints = None,
        kernel_shape: Ints = None,
        pads: Ints = None,
        storage_order: int = 0,
        strides: Ints = None,
    ) -> Results:
        rank = x.ndim - 2
        pool = by_rank("max_pool{}d", rank)
        pairs = padding(auto_pad, pads, rank)
        with_indices = len(self.output) > 1
        facts = (kernel_shape, strides or 1, pairs, dilations or 1, bool(ceil_mode), with_indices)
        if not with_indices:
            return (pool(x, *facts),)
        y, places = pool(x, *facts)
        size = x.shape[2:]
        if storage_order:  # the first axis runs fastest
            places = np.ravel_multi_index(np.unravel_index(places, size), size, order="F").astype(np.int64)
        return y, places + _plane_starts(x.shape, size)


class AveragePool(Operator):
    """Means of windows."""

    def _run(
        self,
        x: np.ndarray,
        auto_pad: str | None = None,
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Ints = None,
        kernel_shape: Ints = None,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        rank = x.ndim - 2
        pool = by_rank("avg_pool{}d", rank)
        facts = (kernel_shape, strides or 1, padding(auto_pad, pads, rank), bool(ceil_mode))
        return (pool(x, *facts, bool(count_include_pad), dilation=dilations or 1),)


class LpPool(Operator):
    """Norms of windows."""

    def _run(
        self,
        x: np.ndarray,
        auto_pad: str | None = None,
        ceil_mode: int = 0,
        dilations: Ints = None,
        kernel_shape: Ints = None,
        p: float = 2,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        rank = x.ndim - 2
        size, kernel = x.shape[2:], tuple(kernel_shape or ())
        stride, dilation = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        given = padding(auto_pad, pads, rank)
        pairs = padding_pairs(
            "LpPool", given if isinstance(given, (int, str)) else tuple(given), size, kernel, stride, dilation
        )
        if ceil_mode:
            # torch, and so lp_pool, scales the norm of a window that hangs over the end; ONNX does not: make
            # padding of what it hangs over
            axes = zip(size, kernel, stride, dilation, pairs, strict=True)
            pairs = tuple(_covering(*axis) for axis in axes)
        pool = by_rank("lp_pool{}d", rank)
        return (pool(np.abs(x), float(p), kernel, stride, padding=pairs, dilation=dilation),)


def _covering(n: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> tuple[int, int]:
    """Padding under the last window, too, that there is in ceil mode."""
    count = output_size(n, kernel, stride, dilation, *pads, ceil_mode=True)
    needed = (count - 1) * stride + dilation * (kernel - 1) + 1 - n - pads[0]
    return pads[0], max(pads[1], needed)


class GlobalAveragePool(Operator):
    """Means of planes."""

    def _run(self, x: np.ndarray) -> Results:
        return (by_rank("adaptive_avg_pool{}d", x.ndim - 2)(x, 1),)


class GlobalMaxPool(Operator):
    """Largest cells of planes."""

    def _run(self, x: np.ndarray) -> Results:
        return (by_rank("max_pool{}d", x.ndim - 2)(x, x.shape[2:]),)


class GlobalLpPool(Operator):
    """Norms of planes."""

    def _run(self, x: np.ndarray, p: float = 2) -> Results:
        return (by_rank("lp_pool{}d", x.ndim - 2)(np.abs(x), float(p), x.shape[2:]),)


class MaxUnpool(Operator):
    """Cells put back where MaxPool found them."""

    def _run(
        self,
        x: np.ndarray,
        indices: np.ndarray,
        output_shape: np.ndarray | None = None,
        kernel_shape: Ints = None,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        rank = x.ndim - 2
        kernel, stride = kernel_shape or (), strides or (1,) * rank
        pairs = padding_pairs("MaxUnpool", _pairs(pads, rank), x.shape[2:], kernel, stride, (1,) * rank)
        axes = zip(x.shape[2:], kernel, stride, pairs, strict=True)
        size = tuple((n - 1) * s - sum(pad) + k for n, k, s, pad in axes)
        places = indices - _plane_starts((*x.shape[:2], *size), size)
        y = by_rank("max_unpool{}d", rank)(x, places, kernel, stride, pairs)
        if output_shape is None:
            return (y,)
        # indices count in the size without it; what it has more is zero
        larger = np.zeros(tuple(output_shape.tolist()), y.dtype)
        common = tuple(slice(0, min(pair)) for pair in zip(y.shape, larger.shape, strict=True))
        larger[common] = y[common]
        return (larger,)


def _pairs(pads: Ints, rank: int) -> Any:
    pairs = padding(None, pads, rank)
    return pairs if isinstance(pairs, int) else tuple(pairs)


def _plane_starts(shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Where in a whole array each plane begins, to be added to places in planes."""
    planes = np.arange(shape[0] * shape[1], dtype=np.int64) * prod(size)
    return planes.reshape(shape[0], shape[1], *(1,) * len(size))
