"""Conv, ConvTranspose, ConvInteger, QLinearConv, DeformConv and Col2Im."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fastconv.functional import col2im, conv_integer, deform_conv2d, prepack, prepack_integer, qlinear_conv
from fastconv.onnx.base import Kept, Operator, by_rank, padding

Ints = Sequence[int] | None
Results = tuple[np.ndarray, ...]


class Conv(Operator):
    """Convolution; the weight is packed once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed = Kept()

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: Ints = None,
        group: int = 1,
        kernel_shape: Ints = None,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        rank = x.ndim - 2
        _check_kernel(kernel_shape, weight)
        facts: dict[str, Any] = {
            "stride": strides or 1,
            "padding": padding(auto_pad, pads, rank),
            "dilation": dilations or 1,
            "groups": group,
        }
        conv = by_rank("conv{}d", rank)
        packed = self._packed.get([weight], x.shape[1:], lambda: prepack(weight, x_shape=x.shape, **facts))
        return (conv(x, weight if packed is None else packed, bias, **facts),)


class ConvTranspose(Operator):
    """Transposed convolution."""

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: Ints = None,
        group: int = 1,
        kernel_shape: Ints = None,
        output_padding: Ints = None,
        output_shape: Ints = None,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        rank = x.ndim - 2
        _check_kernel(kernel_shape, weight)
        stride, dilation = strides or [1] * rank, dilations or [1] * rank
        extra = output_padding or [0] * rank
        spans = [
            (n - 1) * s + d * (k - 1) + 1 + e
            for n, s, d, k, e in zip(x.shape[2:], stride, dilation, weight.shape[2:], extra, strict=True)
        ]
        before, after = _transposed_pads(auto_pad, pads, output_shape, x.shape[2:], stride, spans)
        # of the end is cut off what comes after it but the output padding, if that is less, and else added
        ends = [a - e for a, e in zip(after, extra, strict=True)]
        pairs = [(b, max(0, end)) for b, end in zip(before, ends, strict=True)]
        rest = [max(0, -end) for end in ends]
        conv = by_rank("conv_transpose{}d", rank)
        if all(r < max(s, d) for r, s, d in zip(rest, stride, dilation, strict=True)):
            return (conv(x, weight, bias, stride, pairs, rest, group, dilation),)
        # beyond what the kernel reaches there is but the bias
        y = np.pad(
            conv(x, weight, None, stride, pairs, 0, group, dilation),
            [(0, 0), (0, 0), *((0, r) for r in rest)],
        )
        if bias is not None:
            y += bias.reshape(-1, *(1,) * rank)
        return (y,)


def _transposed_pads(
    auto_pad: str | None,
    pads: Ints,
    output_shape: Ints,
    size: Sequence[int],
    stride: Sequence[int],
    spans: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Cells to cut off before and after each axis, of `spans` cells; negative to add some."""
    rank = len(size)
    if not output_shape:
        if not auto_pad or auto_pad == "NOTSET":
            pads = pads or [0] * (2 * rank)
            return list(pads[:rank]), list(pads[rank:])
        if auto_pad == "VALID":
            return [0] * rank, [0] * rank
        output_shape = [n * s for n, s in zip(size, stride, strict=True)]
    before, after = [], []
    for span, wanted in zip(spans, output_shape[-rank:], strict=True):
        # what is missing, if y shall be larger, comes at the end
        total = span - wanted
        half = max(0, total) // 2
        first = half if auto_pad == "SAME_UPPER" else max(0, total) - half
        before.append(first)
        after.append(total - first)
    return before, after


class ConvInteger(Operator):
    """Convolution of 8-bit integers; the weight is packed once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed = Kept()

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        x_zero_point: np.ndarray | None = None,
        w_zero_point: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: Ints = None,
        group: int = 1,
        kernel_shape: Ints = None,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        _check_kernel(kernel_shape, weight)
        packed = _packed_integers(self._packed, weight, w_zero_point, group)
        zero_point = 0 if x_zero_point is None else x_zero_point
        facts = (strides or 1, padding(auto_pad, pads, x.ndim - 2), dilations or 1, group)
        return (conv_integer(x, packed, zero_point, 0, *facts),)


class QLinearConv(Operator):
    """Convolution of quantised numbers; the weight is packed once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed = Kept()

    def _run(
        self,
        x: np.ndarray,
        x_scale: np.ndarray,
        x_zero_point: np.ndarray,
        weight: np.ndarray,
        w_scale: np.ndarray,
        w_zero_point: np.ndarray,
        y_scale: np.ndarray,
        y_zero_point: np.ndarray,
        bias: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: Ints = None,
        group: int = 1,
        kernel_shape: Ints = None,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        _check_kernel(kernel_shape, weight)
        packed = _packed_integers(self._packed, weight, w_zero_point, group)
        quantities = (x, x_scale, x_zero_point, packed, w_scale, 0, y_scale, y_zero_point, bias)
        facts = (strides or 1, padding(auto_pad, pads, x.ndim - 2), dilations or 1, group)
        return (qlinear_conv(*quantities, *facts),)


def _packed_integers(kept: Kept, weight: np.ndarray, zero_point: np.ndarray | None, group: int) -> Any:
    arrays = [weight] if zero_point is None else [weight, zero_point]
    points = 0 if zero_point is None else zero_point

    def make() -> Any:
        return prepack_integer(weight, points, group)

    packed = kept.get(arrays, group, make)
    return make() if packed is None else packed


class DeformConv(Operator):
    """Deformable convolution of images."""

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        offset: np.ndarray,
        bias: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        dilations: Ints = None,
        group: int = 1,
        kernel_shape: Ints = None,
        offset_group: int = 1,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        _check_kernel(kernel_shape, weight)
        if weight.shape[1] * group != x.shape[1] or offset.shape[1] != offset_group * 2 * prod(
            weight.shape[2:]
        ):
            raise ValueError(
                f"DeformConv: X {x.shape}, W {weight.shape} and offset {offset.shape} do not fit together "
                f"with group = {group} and offset_group = {offset_group}"
            )
        facts = (strides or 1, padding(None, pads, x.ndim - 2), dilations or 1)
        return (deform_conv2d(x, offset, weight, bias, *facts, mask),)


class Col2Im(Operator):
    """Columns added up to images."""

    def _run(
        self,
        columns: np.ndarray,
        image_shape: np.ndarray,
        block_shape: np.ndarray,
        dilations: Ints = None,
        pads: Ints = None,
        strides: Ints = None,
    ) -> Results:
        size, kernel = image_shape.tolist(), block_shape.tolist()
        pairs = padding(None, pads, len(size))
        return (col2im(columns, size, kernel, dilations or 1, pairs, strides or 1),)


def _check_kernel(kernel_shape: Ints, weight: np.ndarray) -> None:
    if kernel_shape and tuple(kernel_shape) != weight.shape[2:]:
        raise ValueError(
            f"kernel_shape = {list(kernel_shape)} is not that of W, which has shape {weight.shape}"
        )
