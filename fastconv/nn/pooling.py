"""Pooling layers of one, two and three spatial axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from fastconv import functional as F
from fastconv.arguments import canonical, check_layout, per_axis
from fastconv.nn.convolution import Padding, Sizes
from fastconv.nn.layer import Array, Layer


class _Pool(Layer):
    """The window's arguments, and how they print.

    `function` and `gradient` are those of the layer's rank.
    """

    rank: ClassVar[int]
    function: ClassVar[Callable[..., Any]]
    gradient: ClassVar[Callable[..., Array]]

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
        self.kernel_size = per_axis(name, "kernel_size", canonical(kernel_size), self.rank)
        self.stride = self.kernel_size
        if stride is not None:
            self.stride = per_axis(name, "stride", canonical(stride), self.rank)
        self.padding = padding
        self.dilation = per_axis(name, "dilation", canonical(dilation), self.rank)
        self.ceil_mode = ceil_mode
        check_layout(name, layout)
        self.layout = layout

    def _describe(self) -> str:
        text = f"kernel_size={self.kernel_size}"
        for name, plain in (
            ("norm_type", (None,)),
            ("stride", (self.kernel_size,)),
            ("padding", (0, (0,) * self.rank)),
            ("dilation", ((1,) * self.rank,)),
            ("ceil_mode", (False,)),
            ("count_include_pad", (True,)),
            ("divisor_override", (None,)),
            ("layout", ("NCHW",)),
        ):
            value = getattr(self, name, plain[0])
            if value not in plain:
                text += f", {name}={value!r}"
        return text


class _MaxPool(_Pool):
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

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        # inference does without the indices
        result: Any = type(self).function(
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
        return type(self).gradient(grad_y, indices, x_shape, layout=self.layout)


class MaxPool1d(_MaxPool):
    """Largest value of each window along one axis; the arguments are those of `MaxPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.MaxPool1d(2).forward(np.ones((4, 3, 8), np.float32)).shape
    (4, 3, 4)
    """

    rank = 1
    function = staticmethod(F.max_pool1d)
    gradient = staticmethod(F.max_pool1d_backward)


class MaxPool2d(_MaxPool):
    """Largest value of each window, `fastconv.max_pool2d`; the gradient goes to the first largest.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, ceil_mode
        As for `fastconv.max_pool2d`.
    layout : {"NCHW", "NHWC"}

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.MaxPool2d(2).forward(np.ones((4, 3, 8, 6), np.float32)).shape
    (4, 3, 4, 3)
    """

    rank = 2
    function = staticmethod(F.max_pool2d)
    gradient = staticmethod(F.max_pool2d_backward)

    def _pools_pairs(self) -> bool:
        return (
            type(self) is MaxPool2d
            and self.kernel_size == self.stride == (2, 2)
            and self.padding in (0, (0, 0), "valid")
            and self.dilation == (1, 1)
            and not self.ceil_mode
            and self.layout == "NCHW"
        )


class MaxPool3d(_MaxPool):
    """Largest value of each window of a volume; the arguments are those of `MaxPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.MaxPool3d(2).forward(np.ones((4, 3, 8, 6, 4), np.float32)).shape
    (4, 3, 4, 3, 2)
    """

    rank = 3
    function = staticmethod(F.max_pool3d)
    gradient = staticmethod(F.max_pool3d_backward)


class _AvgPool(_Pool):
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
        y: Array = type(self).function(x, *self._positional(), **self._keywords())
        self._keep(training, x.shape, y.shape, y.dtype)
        return y

    def backward(self, grad_y: Array) -> Array:
        x_shape, y_shape, dtype = self._recall()
        self._check_grad(grad_y, y_shape, dtype)
        return type(self).gradient(grad_y, x_shape, *self._positional(), **self._keywords())

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


class AvgPool1d(_AvgPool):
    """Mean of each window along one axis; the arguments are those of `AvgPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AvgPool1d(3, stride=2).forward(np.ones((4, 3, 9), np.float32)).shape
    (4, 3, 4)
    """

    rank = 1
    function = staticmethod(F.avg_pool1d)
    gradient = staticmethod(F.avg_pool1d_backward)


class AvgPool2d(_AvgPool):
    """Mean of each window, `fastconv.avg_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As for `fastconv.avg_pool2d`.
    layout : {"NCHW", "NHWC"}

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AvgPool2d(3, stride=2).forward(np.ones((4, 3, 9, 7), np.float32)).shape
    (4, 3, 4, 3)
    """

    rank = 2
    function = staticmethod(F.avg_pool2d)
    gradient = staticmethod(F.avg_pool2d_backward)


class AvgPool3d(_AvgPool):
    """Mean of each window of a volume; the arguments are those of `AvgPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AvgPool3d(3, stride=2).forward(np.ones((4, 3, 9, 7, 5), np.float32)).shape
    (4, 3, 4, 3, 2)
    """

    rank = 3
    function = staticmethod(F.avg_pool3d)
    gradient = staticmethod(F.avg_pool3d_backward)


class _LPPool(_Pool):
    def __init__(
        self,
        norm_type: float,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        dilation: Sizes = 1,
        layout: str = "NCHW",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, layout)
        self.norm_type = norm_type

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        y: Array = type(self).function(x, *self._positional(), **self._keywords())
        self._keep(training, x, y.shape, y.dtype)
        return y

    def backward(self, grad_y: Array) -> Array:
        x, y_shape, dtype = self._recall()
        self._check_grad(grad_y, y_shape, dtype)
        return type(self).gradient(grad_y, x, *self._positional(), **self._keywords())

    def _positional(self) -> tuple[Any, ...]:
        return (self.norm_type, self.kernel_size, self.stride, self.ceil_mode)

    def _keywords(self) -> dict[str, Any]:
        return {"padding": self.padding, "dilation": self.dilation, "layout": self.layout}


class LPPool1d(_LPPool):
    """Power average of each window along one axis; the arguments are those of `LPPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.LPPool1d(2, 3).forward(np.ones((4, 3, 9), np.float32)).shape
    (4, 3, 3)
    """

    rank = 1
    function = staticmethod(F.lp_pool1d)
    gradient = staticmethod(F.lp_pool1d_backward)


class LPPool2d(_LPPool):
    """Power average of each window, `fastconv.lp_pool2d`.

    Parameters
    ----------
    norm_type, kernel_size, stride, ceil_mode, padding, dilation
        As for `fastconv.lp_pool2d`.
    layout : {"NCHW", "NHWC"}

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.LPPool2d(2, 3).forward(np.ones((4, 3, 9, 6), np.float32)).shape
    (4, 3, 3, 2)
    """

    rank = 2
    function = staticmethod(F.lp_pool2d)
    gradient = staticmethod(F.lp_pool2d_backward)


class LPPool3d(_LPPool):
    """Power average of each window of a volume; the arguments are those of `LPPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.LPPool3d(2, 3).forward(np.ones((4, 3, 9, 6, 3), np.float32)).shape
    (4, 3, 3, 2, 1)
    """

    rank = 3
    function = staticmethod(F.lp_pool3d)
    gradient = staticmethod(F.lp_pool3d_backward)
