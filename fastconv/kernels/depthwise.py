"""Depthwise convolution: each output channel reads one input channel, by a small square kernel.

A unit is a plane, of y or of x, or for the weight gradient a channel; see `fastconv.kernels.depthwise_rows`
for what is done to it. The kernels are made for each side and stride that is common, and compiled when
the first such layer is met: unrolled code is what makes them fast.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from fastconv.jit import Kernel, fields, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.depthwise_rows import slide_down, spread_down, sum_down, total_of_halves
from fastconv.kernels.simd import LANES

#: Sides of the kernel, and strides, that there are kernels for.
SIDES = (3, 5, 7)
STRIDES = (1, 2)

FORWARD = record(
    # addresses; bias is 0 where there is none
    "x weight bias y relu "
    # output channels, and how many of them share an input channel
    "images channels multiplier "
    "height width out_height out_width pad_y pad_x"
)


def _slide(side: int, stride: int, flip: int) -> Callable[[int], Callable[..., None]]:
    def depthwise_slide(bits: int) -> Any:
        """y = conv(x, weight) + bias, and no less than 0 with `relu`."""
        lanes, size = LANES[bits], bits // 8

        def depthwise_slide(params, t, tasks):
            p = fields(params, FORWARD)
            zero = simd.splat(0.0, bits)
            none = simd.total(zero)
            # read once: to the compiler any store may change the record
            height, width, out_height, out_width = p.height, p.width, p.out_height, p.out_width
            pad_y, pad_x, channels, multiplier, bias = p.pad_y, p.pad_x, p.channels, p.multiplier, p.bias
            xs, ys, weights, least = p.x, p.y, p.weight, 0.0 if p.relu else -inf
            x_row, y_row = width * size, out_width * size
            units = p.images * channels
            if out_width <= lanes:
                for unit in range(t * units // tasks, (t + 1) * units // tasks):
                    channel = unit % channels
                    x = xs + unit // multiplier * height * x_row
                    y = ys + unit * out_height * y_row
                    weight = weights + channel * side * side * size
                    start = reals(bias, bits)[channel] if bias else none
                    slide_down(
                        x,
                        x_row,
                        height,
                        width,
                        weight,
                        y,
                        y_row,
                        out_height,
                        out_width,
                        pad_y,
                        -pad_x,
                        start,
                        least,
                        1,
                        side,
                        stride,
                        flip,
                        zero,
                    )
                return
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                channel = unit % channels
                x = xs + unit // multiplier * height * x_row
                y = ys + unit * out_height * y_row
                weight = weights + channel * side * side * size
                start = reals(bias, bits)[channel] if bias else none
                # strips of two vectors; the last may lie over the one before
                vectors = (out_width + lanes - 1) // lanes
                for vector in range(0, vectors, 2):
                    ox = min(vector, vectors - 2) * lanes
                    slide_down(
                        x,
                        x_row,
                        height,
                        width,
                        weight,
                        y + ox * size,
                        y_row,
                        out_height,
                        min(2 * lanes, out_width - ox),
                        pad_y,
                        ox * stride - pad_x,
                        start,
                        least,
                        2,
                        side,
                        stride,
                        flip,
                        zero,
                    )

        return depthwise_slide

    return depthwise_slide


#: By side, stride and whether the kernel is turned by half a circle, as the input gradient wants it.
slide: dict[tuple[int, int, int], Kernel] = {
    (side, stride, flip): kernel(FORWARD)(_slide(side, stride, flip))
    for side in SIDES
    for stride, flip in ((1, 0), (2, 0), (1, 1))
}


SPREAD = record(
    # addresses
    "grad_output weight grad_x images channels height width out_height out_width pad_y pad_x"
)


def _spread(side: int) -> Callable[[int], Callable[..., None]]:
    def depthwise_spread(bits: int) -> Any:
        """grad_x of a convolution with a stride of 2, one output channel for each input channel."""
        lanes, size = LANES[bits], bits // 8

        def depthwise_spread(params, t, tasks):
            p = fields(params, SPREAD)
            zero = simd.splat(0.0, bits)
            height, width, out_height, out_width = p.height, p.width, p.out_height, p.out_width
            pad_y, pad_x, channels = p.pad_y, p.pad_x, p.channels
            gs, xs, weights = p.grad_output, p.grad_x, p.weight
            x_row, g_row = width * size, out_width * size
            units = p.images * channels
            # columns of x by twos, each pair as many as read the same cells
            pairs = (width - 1 + pad_x) // 2 + 1
            vectors = (pairs + lanes - 1) // lanes
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                grad = gs + unit * out_height * g_row
                x = xs + unit * height * x_row
                weight = weights + unit % channels * side * side * size
                for vector in range(vectors):
                    spread_down(
                        grad,
                        g_row,
                        out_height,
                        out_width,
                        weight,
                        x,
                        x_row,
                        height,
                        width,
                        pad_y,
                        pad_x,
                        vector * lanes,
                        1,
                        side,
                        zero,
                    )

        return depthwise_spread

    return depthwise_spread


#: By side.
spread: dict[int, Kernel] = {side: kernel(SPREAD)(_spread(side)) for side in SIDES}

WEIGHT = record(
    # addresses; a task's scratch is a vector for each cell of the kernel
    "x grad_output grad_weight scratch scratch_bytes "
    # output channels, and how many of them share an input channel
    "images channels multiplier "
    "height width out_height out_width pad_y pad_x"
)


def _weight(side: int, stride: int) -> Callable[[int], Callable[..., None]]:
    taps = side * side

    def depthwise_weight(bits: int) -> Any:
        """grad_weight; the images of a channel are added one after the other."""
        lanes, size = LANES[bits], bits // 8

        def depthwise_weight(params, t, tasks):
            p = fields(params, WEIGHT)
            zero = simd.splat(0.0, bits)
            height, width, out_height, out_width = p.height, p.width, p.out_height, p.out_width
            pad_y, pad_x, channels, multiplier = p.pad_y, p.pad_x, p.channels, p.multiplier
            xs, gs, sums, images = p.x, p.grad_output, p.scratch + t * p.scratch_bytes, p.images
            x_row, g_row = width * size, out_width * size
            grad_weight = reals(p.grad_weight, bits)
            for channel in range(t * channels // tasks, (t + 1) * channels // tasks):
                for tap in range(taps):
                    simd.store(sums + tap * lanes * size, zero)
                for n in range(images):
                    plane = n * channels + channel
                    x = xs + plane // multiplier * height * x_row
                    grad = gs + plane * out_height * g_row
                    for ox in range(0, out_width, lanes):
                        sum_down(
                            x,
                            x_row,
                            height,
                            width,
                            grad + ox * size,
                            g_row,
                            out_height,
                            out_width - ox,
                            pad_y,
                            ox * stride - pad_x,
                            sums,
                            side,
                            stride,
                            zero,
                        )
                for tap in range(taps):
                    total = total_of_halves(simd.load(sums + tap * lanes * size, zero))
                    grad_weight[channel * taps + tap] = total

        return depthwise_weight

    return depthwise_weight


#: By side and stride.
weight_sums: dict[tuple[int, int], Kernel] = {
    (side, stride): kernel(WEIGHT)(_weight(side, stride)) for side in SIDES for stride in STRIDES
}
