"""Pooling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv import functional as F
from fastconv.arguments import canonical, check_layout, per_axis
from fastconv.nn.convolution import Padding, Sizes
from fastconv.nn.layer import Array, Layer


class _Pool(Layer):
    """The window's arguments, and how they print."""

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None,
        padding: Padding,
        dilation: Sizes,
        ceil_mode: bool,
        layout: str,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = per_axis(name, "kernel_size", canonical(kernel_size), 2)
        self.stride = self.kernel_size
        if stride is not None:
            self.stride = per_axis(name, "stride", canonical(stride), 2)
        self.padding = padding
        self.dilation = per_axis(name, "dilation", canonical(dilation), 2)
        self.ceil_mode = ceil_mode
        check_layout(name, layout)
        self.layout = layout

    def _describe(self) -> str:
        text = f"kernel_size={self.kernel_size}"
        for name, plain in (
            ("stride", (self.kernel_size,)),
            ("padding", (0, (0, 0))),
            ("dilation", ((1, 1),)),
            ("ceil_mode", (False,)),
            ("count_include_pad", (True,)),
            ("divisor_override", (None,)),
            ("layout", ("NCHW",)),
        ):
            value = getattr(self, name, plain[0])
            if value not in plain:
                text += f", {name}={value!r}"
        return text


class MaxPool2d(_Pool):
    """Largest value of each window, `fastconv.max_pool2d`; the gradient goes to the first largest.

    x (N, C, H, W) to y (N, C, P, Q).

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As for `fastconv.max_pool2d`.
    layout : {"NCHW", "NHWC"}

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.MaxPool2d(2).forward(np.ones((4, 3, 8, 6), np.float32)).shape
    (4, 3, 4, 3)
    """

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Padding = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        *,
        layout: str = "NCHW",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, layout)

    def _pools_pairs(self) -> bool:
        return (
            type(self) is MaxPool2d
            and self.kernel_size == self.stride == (2, 2)
            and self.padding in (0, (0, 0), "valid")
            and self.dilation == (1, 1)
            and not self.ceil_mode
            and self.layout == "NCHW"
        )

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        # inference does without the indices
        result: Any = F.max_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            training,
            layout=self.layout,
        )
        if not training:
            self._keep(False)
            y: Array = result
            return y
        y, indices = result
        self._keep(True, indices, x.shape, x.dtype)
        return y

    def backward(self, grad_y: Array) -> Array:
        indices, x_shape, dtype = self._recall()
        self._check_grad(grad_y, indices.shape, dtype)
        grad_x: Array = F.max_pool2d_backward(grad_y, indices, x_shape, layout=self.layout)
        return grad_x


class AvgPool2d(_Pool):
    """Mean of each window, `fastconv.avg_pool2d`: x (N, C, H, W) to y (N, C, P, Q).

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As for `fastconv.avg_pool2d`.
    layout : {"NCHW", "NHWC"}

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AvgPool2d(3, stride=2).forward(np.ones((4, 3, 9, 7), np.float32)).shape
    (4, 3, 4, 3)
    """

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        dilation: Sizes = 1,
        layout: str = "NCHW",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, layout)
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        y: Array = F.avg_pool2d(x, *self._positional(), **self._keywords())
        self._keep(training, x.shape, y.shape, y.dtype)
        return y

    def backward(self, grad_y: Array) -> Array:
        x_shape, y_shape, dtype = self._recall()
        self._check_grad(grad_y, y_shape, dtype)
        grad_x: Array = F.avg_pool2d_backward(grad_y, x_shape, *self._positional(), **self._keywords())
        return grad_x

    def _positional(self) -> tuple[Any, ...]:
        return (
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def _keywords(self) -> dict[str, Any]:
        return {"dilation": self.dilation, "layout": self.layout}


class AdaptiveAvgPool2d(Layer):
    """Mean of windows chosen to give `output_size`, `fastconv.adaptive_avg_pool2d`.

    x (N, C, H, W) to y (N, C, *output_size).

    Parameters
    ----------
    output_size : int or (int or None, int or None)
        None keeps the size of that axis.
    layout : {"NCHW", "NHWC"}

    Raises
    ------
    ValueError
        Where the layout is none of these. A wrong `output_size` is refused by `forward`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AdaptiveAvgPool2d(1).forward(np.ones((4, 3, 9, 7), np.float32)).shape
    (4, 3, 1, 1)
    """

    def __init__(self, output_size: int | Sequence[int | None] | None, *, layout: str = "NCHW") -> None:
        super().__init__()
        self.output_size = output_size
        check_layout("AdaptiveAvgPool2d", layout)
        self.layout = layout

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        y: Array = F.adaptive_avg_pool2d(x, self.output_size, layout=self.layout)
        self._keep(training, x.shape, y.shape, y.dtype)
        return y

    def backward(self, grad_y: Array) -> Array:
        x_shape, y_shape, dtype = self._recall()
        self._check_grad(grad_y, y_shape, dtype)
        grad_x: Array = F.adaptive_avg_pool2d_backward(grad_y, x_shape, layout=self.layout)
        return grad_x

    def _describe(self) -> str:
        text = f"output_size={self.output_size}"
        return text if self.layout == "NCHW" else f"{text}, layout={self.layout!r}"
