"""Geometry: every size argument normalised and checked in one place, in Python ints.

Whatever the rank (1, 2 or 3), a shape is described with three spatial axes, depth, height and width;
missing ones in front have size 1. So every algorithm is written once, for three axes.
Python ints do not overflow, and the kernels have no bounds checks: nothing that this module has not
accepted may reach one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from fastconv.arguments import (
    LARGEST_ARGUMENT,
    Pairs,
    check_layout,
    check_size,
    integer,
    padding_pairs,
    per_axis,
    shown,
)

Triple = tuple[int, int, int]

#: Strides up to this one are taken as they are given.
_USUAL_STRIDE = 4096


class ConvShape(NamedTuple):
    """Geometry of one convolution, with three spatial axes.

    The gradients share it: ``input`` is always the size of x, ``output`` the size of y.
    """

    rank: int
    layout: str
    batch: int
    in_channels: int
    out_channels: int
    groups: int
    input: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    pad_before: Triple
    pad_after: Triple
    output: Triple

    @property
    def taps(self) -> int:
        """Cells of the kernel: T."""
        return prod(self.kernel)

    @property
    def pixels(self) -> int:
        """Cells of one output plane: L."""
        return prod(self.output)

    @property
    def group_in(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiplication and an addition per tap; padding counts."""
        return 2 * self.batch * self.out_channels * self.pixels * self.group_in * self.taps

    @property
    def is_empty(self) -> bool:
        """Whether x or weight has no cells: there is nothing to compute."""
        return 0 in (self.batch, self.in_channels, self.out_channels, *self.input)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output cell reads just the input cell at its own place."""
        return (
            self.kernel == self.stride == (1, 1, 1)
            and self.pad_before == self.pad_after == (0, 0, 0)
            and self.input == self.output
        )


class PoolShape(NamedTuple):
    """Geometry of windows that slide over each channel by itself: pooling and im2col."""

    rank: int
    layout: str
    batch: int
    channels: int
    input: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    pad_before: Triple
    pad_after: Triple
    output: Triple

    @property
    def taps(self) -> int:
        """Cells of the window: T."""
        return prod(self.kernel)

    @property
    def pixels(self) -> int:
        """Cells of one output plane: L."""
        return prod(self.output)


class ArrayShape(NamedTuple):
    """An array's shape taken apart: (N, C, *spatial) or (N, *spatial, C)."""

    batched: bool
    batch: int
    channels: int
    spatial: tuple[int, ...]


def output_size(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    pad_before: int,
    pad_after: int,
    ceil_mode: bool = False,
) -> int:
    """Number of window positions along one axis; below 1 where the window does not fit.

    With `ceil_mode` the last window may hang over the end, but one that would start in the
    right-hand padding is dropped.

    >>> output_size(5, 3, 1, 1, 0, 0), output_size(5, 3, 2, 1, 0, 0), output_size(5, 3, 1, 1, 1, 1)
    (3, 2, 5)
    >>> output_size(6, 3, 2, 1, 0, 0), output_size(6, 3, 2, 1, 0, 0, ceil_mode=True)
    (2, 3)
    """
    span = size + pad_before + pad_after - dilation * (kernel - 1) - 1
    if span < 0:
        return 0
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    if (count - 1) * stride >= size + pad_before:
        count -= 1
    return count


# --- arrays -----------------------------------------------------------------------------------------


def array_shape(function: str, name: str, shape: tuple[int, ...], rank: int, layout: str) -> ArrayShape:
    """Take the shape of x (or of an array like it) apart; one axis fewer means unbatched."""
    if len(shape) not in (rank + 1, rank + 2):
        axes = "(N, C, *spatial)" if layout == "NCHW" else "(N, *spatial, C)"
        raise ValueError(
            f"{function}: {name} must have {rank + 2} axes {axes}, or {rank + 1} without N, got shape {shape}"
        )
    batched = len(shape) == rank + 2
    batch = shape[0] if batched else 1
    rest = shape[1:] if batched else shape
    if layout == "NCHW":
        return ArrayShape(batched, batch, rest[0], rest[1:])
    return ArrayShape(batched, batch, rest[-1], rest[:-1])


def join_shape(layout: str, batched: bool, batch: int, channels: int, spatial: Any) -> tuple[int, ...]:
    """The inverse of `array_shape`."""
    lead = (batch,) if batched else ()
    if layout == "NCHW":
        return (*lead, channels, *spatial)
    return (*lead, *spatial, channels)


def lift(values: Sequence[int], fill: int = 1) -> Triple:
    """Values per axis lifted to three spatial axes.

    >>> lift((5, 6)), lift((1,), fill=0)
    ((1, 5, 6), (0, 0, 1))
    """
    depth, height, width = (*((fill,) * (3 - len(values))), *values)
    return depth, height, width


def drop(values: Sequence[int], rank: int) -> tuple[int, ...]:
    """The inverse of `lift`."""
    return tuple(values[3 - rank :])


# --- whole operations ---------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def conv_shape(
    function: str,
    rank: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: str,
) -> ConvShape:
    """Check the sizes of a convolution and derive the rest; arguments in `canonical` form."""
    check_layout(function, layout)
    x = array_shape(function, "x", x_shape, rank, layout)
    out_channels, group_in, kernel = _weight_shape(function, weight_shape, rank, layout, ("K", "C // groups"))
    groups = integer(function, "groups", groups, 1, LARGEST_ARGUMENT, "an int")
    strides = per_axis(function, "stride", stride, rank)
    dilations = per_axis(function, "dilation", dilation, rank)
    facts = f"x.shape = {x_shape}, weight.shape = {weight_shape}, layout = {layout!r}"
    if group_in * groups != x.channels:
        raise ValueError(
            f"{function}: x has {x.channels} channels, but weight takes {group_in} per group times "
            f"groups = {groups}, that is {group_in * groups}; {facts}"
        )
    if out_channels % groups:
        raise ValueError(
            f"{function}: the {out_channels} output channels of weight do not divide into "
            f"groups = {groups}; {facts}"
        )
    pads = padding_pairs(function, padding, x.spatial, kernel, strides, dilations)
    output = _output(function, x.spatial, kernel, strides, dilations, pads, False, facts)
    check_size(function, "the output", (x.batch, out_channels, *output))
    strides = _strides_taken(strides, x.spatial, output)
    return ConvShape(
        rank,
        layout,
        x.batch,
        x.channels,
        out_channels,
        groups,
        lift(x.spatial),
        lift(kernel),
        lift(strides),
        lift(dilations),
        lift([before for before, _ in pads], fill=0),
        lift([after for _, after in pads], fill=0),
        lift(output),
    )


@lru_cache(maxsize=1024)
def conv_transpose_shape(
    function: str,
    rank: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    layout: str,
) -> ConvShape:
    """The convolution whose input gradient is this transposed convolution.

    Its ``input`` is what the transposed convolution gives, its ``output`` what it takes.
    """
    check_layout(function, layout)
    x = array_shape(function, "x", x_shape, rank, layout)
    weight_in, group_out, kernel = _weight_shape(function, weight_shape, rank, layout, ("C", "K // groups"))
    groups = integer(function, "groups", groups, 1, LARGEST_ARGUMENT, "an int")
    strides = per_axis(function, "stride", stride, rank)
    dilations = per_axis(function, "dilation", dilation, rank)
    extra = per_axis(function, "output_padding", output_padding, rank, least=0)
    facts = f"x.shape = {x_shape}, weight.shape = {weight_shape}, layout = {layout!r}"
    if weight_in != x.channels:
        raise ValueError(f"{function}: x has {x.channels} channels, but weight takes {weight_in}; {facts}")
    if x.channels % groups:
        raise ValueError(f"{function}: {x.channels} channels do not divide into groups = {groups}; {facts}")
    if padding in ("same", "same_lower"):
        raise ValueError(f"{function}: padding = {shown(padding)} is not defined here; give numbers")
    for e, s, d in zip(extra, strides, dilations, strict=True):
        if e >= max(s, d):
            raise ValueError(
                f"{function}: output_padding must be smaller than the stride or the dilation, "
                f"got output_padding = {extra}, stride = {strides}, dilation = {dilations}"
            )
    pads = padding_pairs(function, padding, x.spatial, kernel, strides, dilations)
    result = tuple(
        (n - 1) * s - before - after + d * (k - 1) + e + 1
        for n, k, s, d, (before, after), e in zip(
            x.spatial, kernel, strides, dilations, pads, extra, strict=True
        )
    )
    if min(*result, *x.spatial) < 1:
        raise ValueError(
            f"{function}: the output would have spatial shape {result}; every axis must be at "
            f"least 1, and so must those of x; padding = {pads}, {facts}"
        )
    check_size(function, "the output", (x.batch, group_out * groups, *result))
    strides = _strides_taken(strides, result, x.spatial)
    return ConvShape(
        rank,
        layout,
        x.batch,
        group_out * groups,
        x.channels,
        groups,
        lift(result),
        lift(kernel),
        lift(strides),
        lift(dilations),
        lift([before for before, _ in pads], fill=0),
        lift([after for _, after in pads], fill=0),
        lift(x.spatial),
    )


@lru_cache(maxsize=4096)
def pool_shape(
    function: str,
    rank: int,
    x_shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    layout: str,
    pooling: bool = True,
) -> PoolShape:
    """Check the sizes of a sliding window and derive the rest; arguments in `canonical` form."""
    check_layout(function, layout)
    x = array_shape(function, "x", x_shape, rank, layout)
    kernel = per_axis(function, "kernel_size", kernel_size, rank)
    strides = kernel if stride is None else per_axis(function, "stride", stride, rank)
    dilations = per_axis(function, "dilation", dilation, rank)
    pads = padding_pairs(function, padding, x.spatial, kernel, strides, dilations)
    facts = f"x.shape = {x_shape}, kernel_size = {kernel}, layout = {layout!r}"
    output = _output(function, x.spatial, kernel, strides, dilations, pads, ceil_mode, facts)
    if pooling:
        axes = zip(x.spatial, kernel, strides, dilations, pads, output, strict=True)
        if any(_has_empty_window(*axis) for axis in axes):
            raise ValueError(
                f"{function}: a window would lie wholly in the padding, which must be smaller than "
                f"the dilated kernel; padding = {pads}, dilation = {dilations}, {facts}"
            )
    check_size(function, "the output", (x.batch, x.channels, *output))
    strides = _strides_taken(strides, x.spatial, output)
    return PoolShape(
        rank,
        layout,
        x.batch,
        x.channels,
        lift(x.spatial),
        lift(kernel),
        lift(strides),
        lift(dilations),
        lift([before for before, _ in pads], fill=0),
        lift([after for _, after in pads], fill=0),
        lift(output),
    )


def _strides_taken(strides: tuple[int, ...], size: Sequence[int], output: Sequence[int]) -> tuple[int, ...]:
    """Strides no larger than x, or than usual, where there is but one window: scratch grows with them."""
    axes = zip(strides, size, output, strict=True)
    return tuple(min(s, max(n, _USUAL_STRIDE)) if windows == 1 else s for s, n, windows in axes)


def _has_empty_window(
    size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], output: int
) -> bool:
    """Whether some window along an axis has no cell of x."""
    if max(pads) > dilation * (kernel - 1) or size == 0:
        return True
    if dilation <= size:  # taps are too close together to jump over x
        return False
    starts = range(-pads[0], output * stride - pads[0], stride)
    return any(start < 0 and start + -(start // dilation) * dilation >= size for start in starts)


def _weight_shape(
    function: str, shape: tuple[int, ...], rank: int, layout: str, channels: tuple[str, str]
) -> tuple[int, int, tuple[int, ...]]:
    """The first and second channel count and the kernel of a weight."""
    if len(shape) != rank + 2:
        first, second = channels
        axes = f"({first}, {second}, *kernel)" if layout == "NCHW" else f"(*kernel, {second}, {first})"
        raise ValueError(f"{function}: weight must have {rank + 2} axes {axes}, got shape {tuple(shape)}")
    kernel = shape[2:] if layout == "NCHW" else shape[:-2]
    if min(kernel) < 1:
        raise ValueError(f"{function}: the kernel must be at least 1 wide, weight.shape = {shape}")
    if layout == "NCHW":
        return shape[0], shape[1], kernel
    return shape[-1], shape[-2], kernel


def _output(
    function: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Pairs,
    ceil_mode: bool,
    facts: str,
) -> tuple[int, ...]:
    output = tuple(
        output_size(n, k, s, d, before, after, ceil_mode)
        for n, k, s, d, (before, after) in zip(size, kernel, stride, dilation, pads, strict=True)
    )
    if min(output) < 1:
        dilated = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
        padded = tuple(n + before + after for n, (before, after) in zip(size, pads, strict=True))
        raise ValueError(
            f"{function}: the kernel, {dilated} with dilation, must fit in the padded input, "
            f"{padded}; {facts}"
        )
    return output
