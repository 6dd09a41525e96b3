"""Adaptive pooling layers, whose windows are chosen to give a size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from fastconv import functional as F
from fastconv.arguments import adaptive_output, canonical, check_layout
from fastconv.nn.layer import Array, Layer


class _Adaptive(Layer):
    """Windows chosen to give a size."""

    function: ClassVar[Callable[..., Any]]
    gradient: ClassVar[Callable[..., Array]]

    def __init__(self, output_size: int | Sequence[int | None] | None, *, layout: str = "NCHW") -> None:
        super().__init__()
        rank = int(type(self).function.__name__[-2])
        adaptive_output(type(self).__name__, canonical(output_size), (1,) * rank)
        self.output_size = output_size
        check_layout(type(self).__name__, layout)
        self.layout = layout

    def _describe(self) -> str:
        text = f"output_size={self.output_size}"
        return text if self.layout == "NCHW" else f"{text}, layout={self.layout!r}"


class _AdaptiveAvgPool(_Adaptive):
    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        y: Array = type(self).function(x, self.output_size, layout=self.layout)
        self._keep(training, x.shape, y.shape, y.dtype)
        return y

    def backward(self, grad_y: Array) -> Array:
        x_shape, y_shape, dtype = self._recall()
        self._check_grad(grad_y, y_shape, dtype)
        return type(self).gradient(grad_y, x_shape, layout=self.layout)


class _AdaptiveMaxPool(_Adaptive):
    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        if not training:
            self._keep(False)
            y: Array = type(self).function(x, self.output_size, layout=self.layout)
            return y
        y, indices = type(self).function(x, self.output_size, True, layout=self.layout)
        self._keep(True, indices, x.shape, x.dtype)
        return y

    def backward(self, grad_y: Array) -> Array:
        indices, x_shape, dtype = self._recall()
        self._check_grad(grad_y, indices.shape, dtype)
        return type(self).gradient(grad_y, indices, x_shape, layout=self.layout)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """Mean of windows along one axis; the arguments are those of `AdaptiveAvgPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AdaptiveAvgPool1d(2).forward(np.ones((4, 3, 9), np.float32)).shape
    (4, 3, 2)
    """

    function = staticmethod(F.adaptive_avg_pool1d)
    gradient = staticmethod(F.adaptive_avg_pool1d_backward)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """Mean of windows chosen to give `output_size`, `fastconv.adaptive_avg_pool2d`.

    Parameters
    ----------
    output_size : int or (int or None, int or None)
        None keeps the size of that axis.
    layout : {"NCHW", "NHWC"}

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AdaptiveAvgPool2d(1).forward(np.ones((4, 3, 9, 7), np.float32)).shape
    (4, 3, 1, 1)
    """

    function = staticmethod(F.adaptive_avg_pool2d)
    gradient = staticmethod(F.adaptive_avg_pool2d_backward)


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """Mean of windows of a volume; the arguments are those of `AdaptiveAvgPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AdaptiveAvgPool3d((1, 2, None)).forward(np.ones((4, 3, 9, 7, 5), np.float32)).shape
    (4, 3, 1, 2, 5)
    """

    function = staticmethod(F.adaptive_avg_pool3d)
    gradient = staticmethod(F.adaptive_avg_pool3d_backward)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Largest value of windows along one axis; the arguments are those of `AdaptiveMaxPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AdaptiveMaxPool1d(2).forward(np.ones((4, 3, 9), np.float32)).shape
    (4, 3, 2)
    """

    function = staticmethod(F.adaptive_max_pool1d)
    gradient = staticmethod(F.max_pool1d_backward)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Largest value of windows chosen to give `output_size`, `fastconv.adaptive_max_pool2d`.

    Parameters
    ----------
    output_size : int or (int or None, int or None)
        None keeps the size of that axis.
    layout : {"NCHW", "NHWC"}

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AdaptiveMaxPool2d(1).forward(np.ones((4, 3, 9, 7), np.float32)).shape
    (4, 3, 1, 1)
    """

    function = staticmethod(F.adaptive_max_pool2d)
    gradient = staticmethod(F.max_pool2d_backward)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Largest value of windows of a volume; the arguments are those of `AdaptiveMaxPool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.AdaptiveMaxPool3d((1, 2, None)).forward(np.ones((4, 3, 9, 7, 5), np.float32)).shape
    (4, 3, 1, 2, 5)
    """

    function = staticmethod(F.adaptive_max_pool3d)
    gradient = staticmethod(F.max_pool3d_backward)
