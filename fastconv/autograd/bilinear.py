"""Convolutions: bilinear in x and weight, and so are their two gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
from autograd.extend import defjvp, defvjp, defvjp_argnums, primitive

from fastconv import functional as F
from fastconv.arguments import Ints, Padding
from fastconv.autograd.common import Boxed, Function, like, of_rank

__all__ = [
    "conv1d",
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_input_grad",
    "conv3d_weight_grad",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]


class _Bilinear(NamedTuple):
    """A bilinear map y = forward(x, weight) and its adjoints in either argument, on plain arrays."""

    forward: Callable[..., np.ndarray]  # (x, weight, bias=None, relu=False)
    grad_x: Callable[..., np.ndarray]  # (grad_y, weight, the shape of x)
    grad_weight: Callable[..., np.ndarray]  # (grad_y, x, the shape of weight)
    rank: int
    layout: str

    def grad_bias(self, grad_y: Boxed) -> Boxed:
        """The sum over all but the channels."""
        ndim = anp.ndim(grad_y)
        channels = ndim - 1 if self.layout == "NHWC" else ndim - 1 - self.rank
        return anp.sum(grad_y, tuple(axis for axis in range(ndim) if axis != channels))

    def spread(self, bias: Boxed, like: Boxed) -> Boxed:
        """The adjoint of `grad_bias`."""
        shape = (-1,) if self.layout == "NHWC" else (-1,) + (1,) * self.rank
        return anp.reshape(bias, shape) + np.zeros(anp.shape(like), bias.dtype)


@primitive
def _forward(x: Boxed, weight: Boxed, bias: Boxed, op: _Bilinear, relu: bool) -> Any:
    return op.forward(x, weight, bias, relu)


@primitive
def _grad_x(g: Boxed, weight: Boxed, op: _Bilinear, shape: tuple[int, ...]) -> Any:
    return op.grad_x(g, weight, shape)


@primitive
def _grad_weight(g: Boxed, x: Boxed, op: _Bilinear, shape: tuple[int, ...]) -> Any:
    return op.grad_weight(g, x, shape)


def _linear_forward(x: Boxed, weight: Boxed, op: _Bilinear) -> Boxed:
    return _forward(x, weight, None, op, False)


def _forward_vjp(argnums: Sequence[int], ans: Boxed, args: Any, _: Any) -> Callable[[Boxed], Any]:
    x, weight, _bias, op, relu = args

    def vjp(g: Boxed) -> tuple[Boxed, ...]:
        g = like(g, ans)
        if relu:
            g = g * (ans > 0)
        grads = (
            lambda: _grad_x(g, weight, op, anp.shape(x)),
            lambda: _grad_weight(g, x, op, weight.shape),
            lambda: op.grad_bias(g),
        )
        return tuple(grads[argnum]() for argnum in argnums)

    return vjp


defvjp_argnums(_forward, _forward_vjp)
defvjp(
    _grad_x,
    lambda ans, g, weight, op, shape: lambda gg: _linear_forward(like(gg, ans), weight, op),
    lambda ans, g, weight, op, shape: lambda gg: _grad_weight(g, like(gg, ans), op, weight.shape),
)
defvjp(
    _grad_weight,
    lambda ans, g, x, op, shape: lambda gg: _linear_forward(x, like(gg, ans), op),
    lambda ans, g, x, op, shape: lambda gg: _grad_x(g, like(gg, ans), op, anp.shape(x)),
)


def _through(t: Boxed, ans: Boxed, relu: bool) -> Boxed:
    """A tangent behind the activation."""
    return t * (ans > 0) if relu else t


defjvp(
    _forward,
    lambda t, ans, x, weight, bias, op, relu: _through(_linear_forward(t, weight, op), ans, relu),
    lambda t, ans, x, weight, bias, op, relu: _through(_linear_forward(x, t, op), ans, relu),
    lambda t, ans, x, weight, bias, op, relu: _through(op.spread(t, ans), ans, relu),
)
defjvp(_grad_x, "same", "same")
defjvp(_grad_weight, "same", "same")


def _convolution(
    rank: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: str,
    algorithm: str,
    padding_mode: str = "zeros",
) -> _Bilinear:
    facts = (stride, padding, dilation, groups)
    keys: dict[str, Any] = {"layout": layout, "algorithm": algorithm}
    convolve = getattr(F, f"conv{rank}d")

    def forward(x: np.ndarray, weight: np.ndarray, bias: Any = None, relu: bool = False) -> Any:
        activation = "relu" if relu else None
        return convolve(x, weight, bias, *facts, padding_mode=padding_mode, activation=activation, **keys)

    if padding_mode == "zeros":
        grad_x = partial(getattr(F, f"conv{rank}d_input_grad"), **keys)
        grad_weight = partial(getattr(F, f"conv{rank}d_weight_grad"), **keys)
        return _Bilinear(
            forward,
            lambda g, weight, shape: grad_x(g, weight, shape, *facts),
            lambda g, x, shape: grad_weight(g, x, shape, *facts),
            rank,
            layout,
        )
    # the gradients one by one know about zeros alone; here what is not needed is there for its shape
    backward = partial(getattr(F, f"conv{rank}d_backward"), padding_mode=padding_mode, **keys)
    return _adjoints(backward, facts, forward, rank, layout)


def _adjoints(
    backward: Callable[..., Any], facts: tuple[Any, ...], forward: Any, rank: int, layout: str
) -> _Bilinear:
    """A bilinear map with the adjoints that a function for all gradients computes, one at a time."""
    x_alone, weight_alone = (True, False, False), (False, True, False)
    return _Bilinear(
        forward,
        lambda g, weight, shape: backward(g, np.empty(shape, g.dtype), weight, *facts, needs=x_alone).x,
        lambda g, x, shape: backward(g, x, np.empty(shape, g.dtype), *facts, needs=weight_alone).weight,
        rank,
        layout,
    )


def _make_conv(rank: int, name: str) -> Function:
    def conv(
        x: Boxed,
        weight: Boxed,
        bias: Boxed = None,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        activation: str | None = None,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> Boxed:
        if activation not in (None, "relu"):
            raise ValueError(f'{name}: activation must be None or "relu", got {activation!r}')
        op = _convolution(rank, stride, padding, dilation, groups, layout, algorithm, padding_mode)
        return _forward(x, weight, bias, op, activation == "relu")

    return conv


def _make_input_grad(rank: int, name: str) -> Function:
    def input_grad(
        grad_output: Boxed,
        weight: Boxed,
        input_shape: Sequence[int],
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> Boxed:
        op = _convolution(rank, stride, padding, dilation, groups, layout, algorithm)
        return _grad_x(grad_output, weight, op, input_shape)

    return input_grad


def _make_weight_grad(rank: int, name: str) -> Function:
    def weight_grad(
        grad_output: Boxed,
        x: Boxed,
        weight_shape: Sequence[int],
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> Boxed:
        op = _convolution(rank, stride, padding, dilation, groups, layout, algorithm)
        return _grad_weight(grad_output, x, op, weight_shape)

    return weight_grad


def _make_conv_transpose(rank: int, name: str) -> Function:
    numeric = getattr(F, name)
    numeric_backward = getattr(F, f"{name}_backward")

    def conv_transpose(
        x: Boxed,
        weight: Boxed,
        bias: Boxed = None,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        dilation: Ints = 1,
        *,
        layout: str = "NCHW",
        algorithm: str = "auto",
    ) -> Boxed:
        facts = (stride, padding, output_padding, groups, dilation)
        keys = {"layout": layout, "algorithm": algorithm}

        def forward(x: np.ndarray, weight: np.ndarray, bias: Any = None, relu: bool = False) -> Any:
            assert not relu
            return numeric(x, weight, bias, *facts, **keys)

        op = _adjoints(partial(numeric_backward, **keys), facts, forward, rank, layout)
        return _forward(x, weight, bias, op, False)

    return conv_transpose


conv1d, conv2d, conv3d = of_rank("conv{}d", _make_conv)
conv1d_input_grad, conv2d_input_grad, conv3d_input_grad = of_rank("conv{}d_input_grad", _make_input_grad)
conv1d_weight_grad, conv2d_weight_grad, conv3d_weight_grad = of_rank("conv{}d_weight_grad", _make_weight_grad)
conv_transpose1d, conv_transpose2d, conv_transpose3d = of_rank("conv_transpose{}d", _make_conv_transpose)
