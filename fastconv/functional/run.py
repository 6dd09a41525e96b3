"""The steps that the convolution functions share, once their arrays are plain.

Each takes arrays as `real_arrays` returns them, allocates the result, and has the algorithm fill it.
Empty arrays are dealt with here: algorithms never see one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.arguments import canonical, check_bytes, shown
from fastconv.functional.arrays import lift_like_x, lift_weight
from fastconv.functional.packed_weight import PackedWeight
from fastconv.plan import find_algorithm, named_algorithm
from fastconv.shapes import ConvShape, conv_shape, drop, join_shape


def geometry(
    function: str,
    rank: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: Any,
) -> ConvShape:
    """`conv_shape` of arguments as the user gave them."""
    return conv_shape(
        function,
        rank,
        x_shape,
        weight_shape,
        canonical(stride),
        canonical(padding),
        canonical(dilation),
        canonical(groups),
        canonical(layout),
    )


def y_shape(shape: ConvShape, ndim: int) -> tuple[int, ...]:
    """The shape of y as the user sees it, for x with `ndim` axes."""
    batched = ndim == shape.rank + 2
    size = drop(shape.output, shape.rank)
    return join_shape(shape.layout, batched, shape.batch, shape.out_channels, size)


def forward(
    function: str,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
    shape: ConvShape,
    algorithm: str,
    packed: PackedWeight | None = None,
) -> None:
    """Fill y with the convolution; `packed` is the weight once more, if it is packed."""
    chosen = find_algorithm(function, algorithm, shape, y.dtype, "forward")
    if y.size == 0:
        return
    out = lift_like_x(function, "out", y, shape.rank, shape.layout)
    if x.size and packed is not None and packed.form is not None:
        bound = packed.form.bind(shape, y.dtype, bias is not None, relu, chosen)
        if bound is not None:
            bound(x, packed.packed, bias, y)
            return
    if x.size:
        lifted = lift_like_x(function, "x", x, shape.rank, shape.layout)
        chosen.forward(lifted, lift_weight(weight, shape.rank, shape.layout), bias, relu, out, shape)
        return
    # no input channels, or nothing but padding: a sum over nothing
    out[...] = 0 if bias is None else bias.reshape(-1, 1, 1, 1)
    if relu:
        np.maximum(out, 0, out=out)


def input_grad(
    function: str,
    grad_output: np.ndarray,
    weight: np.ndarray,
    x_shape: tuple[int, ...],
    shape: ConvShape,
    algorithm: str,
) -> np.ndarray:
    """The gradient with respect to x."""
    check_bytes(function, "the result", x_shape, grad_output.dtype)  # planning takes longer, the larger it is
    chosen = find_algorithm(function, algorithm, shape, grad_output.dtype, "input_grad")
    if grad_output.size == 0 or 0 in x_shape:
        return np.zeros(x_shape, grad_output.dtype)
    grad_x = np.empty(x_shape, grad_output.dtype)
    chosen.input_grad(
        lift_like_x(function, "grad_output", grad_output, shape.rank, shape.layout),
        lift_weight(weight, shape.rank, shape.layout),
        lift_like_x(function, "grad_x", grad_x, shape.rank, shape.layout),
        shape,
    )
    return grad_x


def weight_grad(
    function: str,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    shape: ConvShape,
    algorithm: str,
) -> np.ndarray:
    """The gradient with respect to weight."""
    check_bytes(function, "the result", weight_shape, grad_output.dtype)
    chosen = find_algorithm(function, algorithm, shape, grad_output.dtype, "weight_grad")
    if grad_output.size == 0 or x.size == 0:
        return np.zeros(weight_shape, grad_output.dtype)
    grad_weight = np.empty(weight_shape, grad_output.dtype)
    chosen.weight_grad(
        lift_like_x(function, "grad_output", grad_output, shape.rank, shape.layout),
        lift_like_x(function, "x", x, shape.rank, shape.layout),
        lift_weight(grad_weight, shape.rank, shape.layout),
        shape,
    )
    return grad_weight


def check_needs(function: str, needs: Sequence[bool], algorithm: str) -> tuple[bool, bool, bool]:
    """Which of three gradients to compute; that of bias needs no algorithm, but a wrong name is a slip."""
    named_algorithm(function, algorithm)
    try:
        need_x, need_weight, need_bias = (bool(need) for need in needs)
    except (TypeError, ValueError):
        raise ValueError(
            f"{function}: needs must be three bools, for x, weight and bias, got {shown(needs)}"
        ) from None
    return need_x, need_weight, need_bias
