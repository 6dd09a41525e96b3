"""Convolution, ReLU and 2 x 2 max pooling as one step of a network, and back: what `fastconv.nn` chains.

For arrays that its layers have checked. Where there is no faster way than one after the other, it says so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.algorithms import ALGORITHMS, Auto
from fastconv.algorithms.images import POOLED, RELU, convolve, gradients
from fastconv.algorithms.shift import LEAST_IMAGES
from fastconv.functional import run
from fastconv.functional.conv import ConvGrads, conv2d_backward
from fastconv.shapes import ConvShape

#: With this many input channels, or in training input and output channels together, Winograd's algorithm and
#: what follows it one by one are faster: 1.1 to 2.3 times forward, 1.0 to 2.4 times a training step; with
#: fewer 0.7 to 1.0 and 0.4 to 0.9 times.
FEW_IN, FEW_CHANNELS = 16, 48


def conv_block(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    arguments: tuple[Any, ...],
    pool: bool,
    training: bool,
) -> tuple[np.ndarray, np.ndarray | None, ConvShape] | None:
    """max(conv2d(x), 0), and with `pool` its largest of each 2 x 2 cells.

    `arguments` are stride, padding, dilation and groups, as `canonical` makes them.

    Returns
    -------
    (y, noted, shape) or None
        What `conv_block_backward` wants to know, of which only `training` needs `noted`. None where there is
        no fast way to do it and to go back.
    """
    arrays = (x, weight) if bias is None else (x, weight, bias)
    if not all(array.flags.c_contiguous and array.flags.aligned for array in arrays):
        return None
    shape = _fast_shape(x.shape, weight.shape, x.dtype, arguments, pool, training)
    if shape is None:
        return None
    _, height, width = shape.output
    noted: np.ndarray | None
    if not pool:
        y = noted = np.empty((shape.batch, shape.out_channels, height, width), x.dtype)
        convolve(x, weight, bias, True, False, y, None, shape)
    else:
        y = np.empty((shape.batch, shape.out_channels, height // 2, width // 2), x.dtype)
        noted = np.empty(y.shape, np.uint8) if training else None
        convolve(x, weight, bias, True, True, y, noted, shape)
    return y, noted, shape


@lru_cache(maxsize=1024)
def _fast_shape(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: np.dtype,
    arguments: tuple[Any, ...],
    pool: bool,
    training: bool,
) -> ConvShape | None:
    if len(x_shape) != 4 or 0 in x_shape:
        return None
    stride, padding, dilation, groups = arguments
    facts = stride, padding, dilation, groups, "NCHW"
    shape = run.geometry("conv2d", 2, x_shape, weight_shape, *facts)
    if 0 in shape.output or (pool and min(shape.output[1:]) < 2):
        return None
    auto, shift = ALGORITHMS["auto"], ALGORITHMS["shift"]
    assert isinstance(auto, Auto)
    operations = ("forward", "input_grad", "weight_grad")
    if any(shift.supports(shape, dtype, op) for op in operations):
        return None
    chosen = [auto.choose(shape, dtype, op).algorithm for op in operations]
    if not pool:
        return shape if all(algorithm is shift for algorithm in chosen) else None
    # what the pooling saves pays for a convolution that is not the fastest, if it is not very slow
    channels, few = shape.in_channels, FEW_IN
    if training:
        channels, few = channels + shape.out_channels, FEW_CHANNELS
    if chosen[0].name == "winograd" and channels >= few:
        return None
    return None if shape.is_pointwise or shape.batch < LEAST_IMAGES else shape


def conv_block_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    noted: np.ndarray,
    shape: ConvShape,
    needs: tuple[bool, bool, bool],
) -> ConvGrads:
    """Gradients with respect to x, weight and bias, of which the weight's is always needed."""
    need_x, _, need_bias = needs
    pooled = noted.dtype == np.uint8
    grad_output = np.ascontiguousarray(grad_output)
    grad_x = np.empty_like(x) if need_x else None
    grad_weight: np.ndarray | None = np.empty_like(weight)
    grad_bias = np.empty(weight.shape[0], weight.dtype) if need_bias else None
    finite = gradients(
        grad_output,
        x,
        weight,
        shape,
        source=POOLED if pooled else RELU,
        noted=noted,
        grad_x=grad_x,
        grad_weight=grad_weight,
        grad_bias=grad_bias,
    )
    if not finite:
        whole = _unpooled(grad_output, noted, shape) if pooled else grad_output * (noted > 0)
        pads = tuple(zip(shape.pad_before[1:], shape.pad_after[1:], strict=True))
        facts = shape.stride[1:], pads, shape.dilation[1:]
        grad_weight = conv2d_backward(whole, x, weight, *facts, algorithm="gemm", needs=(False, True, False))[
            1
        ]
    return ConvGrads(grad_x, grad_weight, grad_bias)


def _unpooled(grad_output: np.ndarray, codes: np.ndarray, shape: ConvShape) -> np.ndarray:
    """Each gradient at the cell that its code names."""
    _, height, width = shape.output
    whole = np.zeros((shape.batch, shape.out_channels, height, width), grad_output.dtype)
    for code in range(4):
        cells = whole[:, :, code // 2 : height // 2 * 2 : 2, code % 2 : width // 2 * 2 : 2]
        np.copyto(cells, grad_output, where=codes == code)
    return whole
