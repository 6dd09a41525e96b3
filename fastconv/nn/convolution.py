"""Convolution layers of one, two and three spatial axes, and the transposed one of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from fastconv import functional as F
from fastconv.arguments import canonical, check_layout, per_axis
from fastconv.functional.blocks import conv_block, conv_block_backward
from fastconv.nn.activations import ReLU
from fastconv.nn.layer import Array, Fused, Layer, Rng, floating_dtype, positive, uniform

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Sizes = int | tuple[int, ...]
Padding = int | tuple[int, ...] | tuple[tuple[int, int], ...] | str


class _Convolution(Layer):
    """What convolutions and transposed ones share: the parameters and the calls.

    The function is called with the layer's `_positional` and `_keywords`, and so is its backward.
    """

    rank: ClassVar[int]
    transposed: ClassVar[bool] = False
    function: ClassVar[Callable[..., Array]]
    gradients: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        dilation: Sizes,
        groups: int,
        bias: bool,
        layout: str,
        rng: Rng,
        dtype: DTypeLike,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.in_channels = positive(name, "in_channels", in_channels)
        self.out_channels = positive(name, "out_channels", out_channels)
        self.groups = positive(name, "groups", groups)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{name}: groups must divide both channel counts, got in_channels = "
                f"{in_channels}, out_channels = {out_channels}, groups = {groups}"
            )
        self.kernel_size = per_axis(name, "kernel_size", canonical(kernel_size), self.rank)
        self.stride = per_axis(name, "stride", canonical(stride), self.rank)
        self.dilation = per_axis(name, "dilation", canonical(dilation), self.rank)
        check_layout(name, layout)
        self.layout = layout

        kind = floating_dtype(name, dtype)
        generator = np.random.default_rng(rng)
        first, second = self.out_channels, self.in_channels // self.groups
        if self.transposed:
            first, second = self.in_channels, self.out_channels // self.groups
        fan_in = second * prod(self.kernel_size)
        # drawn in PyTorch's shape, so that one seed is one network in both layouts
        weight = uniform(generator, (first, second, *self.kernel_size), fan_in, kind)
        if layout == "NHWC":
            weight = np.ascontiguousarray(weight.transpose(*range(2, weight.ndim), 1, 0))
        self._params["weight"] = weight
        if bias:
            self._params["bias"] = uniform(generator, (self.out_channels,), fan_in, kind)

    _positional: tuple[Any, ...]
    _keywords: dict[str, Any]

    def _state_views(self) -> dict[str, Array]:
        views = super()._state_views()
        if self.layout == "NHWC":
            weight = views["weight"]
            views["weight"] = weight.transpose(-1, -2, *range(weight.ndim - 2))
        return views

    def forward(self, x: Array, training: bool = False) -> Array:
        return self._forward(x, training, {})

    def _forward(self, x: Array, training: bool, more: dict[str, Any]) -> Array:
        x = self._checked(x)
        y: Array = type(self).function(
            x,
            self._params["weight"],
            self._params.get("bias"),
            *self._positional,
            **self._keywords,
            **more,
        )
        self._keep(training, x, y.shape)
        return y

    def backward(self, grad_y: Array) -> Array:
        grad_x: Array = self._backward(grad_y, need_x=True)
        return grad_x

    def backward_params(self, grad_y: Array) -> None:
        self._backward(grad_y, need_x=False)

    def _backward(self, grad_y: Array, need_x: bool) -> Any:
        x, shape = self._recall()
        self._check_grad(grad_y, shape, x.dtype)
        has_bias = "bias" in self._params
        grads = type(self).gradients(
            grad_y,
            x,
            self._params["weight"],
            *self._positional,
            **self._keywords,
            needs=(need_x, True, has_bias),
        )
        self._store(grads)
        return grads.x

    def _store(self, grads: F.ConvGrads) -> None:
        for name, grad in (("weight", grads.weight), ("bias", grads.bias)):
            if grad is not None:
                self._grads[name] = grad

    def _checked(self, x: Array) -> Array:
        x = self._floating(x)
        axis = -1 if self.layout == "NHWC" else -self.rank - 1
        if x.ndim not in (self.rank + 1, self.rank + 2):
            raise ValueError(
                f"{self!r}: x must have {self.rank + 2} axes, or {self.rank + 1} without a batch, "
                f"got shape {x.shape}"
            )
        if x.shape[axis] != self.in_channels:
            raise ValueError(
                f"{self!r}: x must have {self.in_channels} channels on axis {axis}, "
                f"got {x.shape[axis]}, shape {x.shape}"
            )
        return x

    def _describe(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        for name, plain in (
            ("stride", (ones,)),
            ("padding", (0, zeros)),
            ("output_padding", (0, zeros)),
            ("dilation", (ones,)),
            ("groups", (1,)),
            ("padding_mode", ("zeros",)),
            ("layout", ("NCHW",)),
        ):
            value = getattr(self, name, plain[0])
            if value not in plain:
                text += f", {name}={value!r}"
        return text if "bias" in self._params else f"{text}, bias=False"


class _Conv(_Convolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        layout: str = "NCHW",
        rng: Rng = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            dilation,
            groups,
            bias,
            layout,
            rng,
            dtype,
        )
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f"{type(self).__name__}: padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}"
            )
        # the pairs of "same" depend on the size of x, so padding stays as it was given
        self.padding = padding
        self.padding_mode = padding_mode
        self._positional = (self.stride, padding, self.dilation, self.groups)
        self._keywords = {"padding_mode": padding_mode, "layout": layout}
        self._block_arguments = canonical(self._positional)

    def _forward_fused(self, followers: Sequence[Layer], x: Array, training: bool) -> Fused | None:
        # a ReLU is free where the sums are still in registers; its own pass costs one over memory
        if not followers or type(followers[0]) is not ReLU or type(self).forward is not _Convolution.forward:
            return None
        relu = followers[0]
        y = self._forward(x, training, {"activation": "relu"})
        return Fused(relu.keep_output(y, training), 2, None)


class Conv1d(_Conv):
    """Convolution over one spatial axis, `fastconv.conv1d`; the arguments are those of `Conv2d`.

    x (N, C, L) to y (N, K, P).

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.Conv1d(3, 8, 5, padding="same", rng=0)
    >>> layer.forward(np.ones((2, 3, 9), np.float32)).shape
    (2, 8, 9)
    """

    rank = 1
    function = staticmethod(F.conv1d)
    gradients = staticmethod(F.conv1d_backward)


class Conv2d(_Conv):
    """Convolution over two spatial axes, `fastconv.conv2d`: x (N, C, H, W) to y (N, K, P, Q).

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation, groups
        As for `fastconv.conv2d`; `groups` must divide both channel counts.
    bias : bool
        Whether to add a learned offset to each output channel.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    layout : {"NCHW", "NHWC"}
        "NHWC" keeps channels last: x (N, H, W, C), weight (kh, kw, C // groups, K).
    rng : None, int or numpy.random.Generator
        Seed of the start values, PyTorch's U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
    dtype : float32 or float64
        Of the parameters, and so of x.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.Conv2d(3, 8, 3, padding=1, rng=0)
    >>> layer.forward(np.ones((2, 3, 9, 7), np.float32)).shape
    (2, 8, 9, 7)
    """

    rank = 2
    function = staticmethod(F.conv2d)
    gradients = staticmethod(F.conv2d_backward)

    def _forward_fused(self, followers: Sequence[Layer], x: Array, training: bool) -> Fused | None:
        plain = self.padding_mode == "zeros" and self.layout == "NCHW" and type(self) is Conv2d
        if not plain or not followers or type(followers[0]) is not ReLU:
            return super()._forward_fused(followers, x, training)
        joined = [self, followers[0]]
        if len(followers) > 1 and followers[1]._pools_pairs():
            joined.append(followers[1])
        x = self._checked(x)
        weight, bias = self._params["weight"], self._params.get("bias")
        block = None
        if x.dtype == weight.dtype:
            block = conv_block(x, weight, bias, self._block_arguments, len(joined) == 3, training)
        if block is None:
            return super()._forward_fused(followers, x, training)
        y, noted, shape = block
        for layer in joined:
            layer._keep(False)

        def backward(grad_y: Array, need_x: bool) -> Array | None:
            joined[-1]._check_grad(grad_y, y.shape, y.dtype)
            assert noted is not None  # it was a training forward
            grads = conv_block_backward(grad_y, x, weight, noted, shape, (need_x, True, bias is not None))
            self._store(grads)
            return grads.x

        return Fused(y, len(joined), backward if training else None)


class Conv3d(_Conv):
    """Convolution over three spatial axes, `fastconv.conv3d`; the arguments are those of `Conv2d`.

    x (N, C, D, H, W) to y (N, K, O, P, Q).

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.Conv3d(3, 8, (1, 3, 3), padding="same", rng=0)
    >>> layer.forward(np.ones((2, 3, 4, 5, 6), np.float32)).shape
    (2, 8, 4, 5, 6)
    """

    rank = 3
    function = staticmethod(F.conv3d)
    gradients = staticmethod(F.conv3d_backward)


class ConvTranspose2d(_Convolution):
    """Transposed convolution over two spatial axes, `fastconv.conv_transpose2d`.

    x (N, C, H, W) to y (N, K, P, Q), with P = (H - 1) * stride - pads + dilation * (kernel - 1) +
    output_padding + 1, and so Q.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, output_padding, groups, dilation
        As for `fastconv.conv_transpose2d`; `groups` must divide both channel counts.
    bias : bool
        Whether to add a learned offset to each output channel.
    layout : {"NCHW", "NHWC"}
        "NHWC" keeps channels last: x (N, H, W, C), weight (kh, kw, K // groups, C).
    rng : None, int or numpy.random.Generator
        Seed of the start values, PyTorch's U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), where a
        transposed convolution has fan_in = kh * kw * K // groups.
    dtype : float32 or float64
        Of the parameters, and so of x.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.ConvTranspose2d(3, 8, 2, stride=2, rng=0)
    >>> layer.forward(np.ones((2, 3, 5, 7), np.float32)).shape
    (2, 8, 10, 14)
    """

    rank = 2
    transposed = True
    function = staticmethod(F.conv_transpose2d)
    gradients = staticmethod(F.conv_transpose2d_backward)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Padding = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        *,
        layout: str = "NCHW",
        rng: Rng = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            dilation,
            groups,
            bias,
            layout,
            rng,
            dtype,
        )
        self.padding = padding
        self.output_padding = per_axis(
            "ConvTranspose2d", "output_padding", canonical(output_padding), self.rank, least=0
        )
        self._positional = (
            self.stride,
            padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
        self._keywords = {"layout": layout}
