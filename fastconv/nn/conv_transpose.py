"""Transposed convolution layers of one, two and three spatial axes."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from fastconv import functional as F
from fastconv.arguments import canonical, per_axis
from fastconv.nn.convolution import Convolution, Padding, Sizes
from fastconv.nn.layer import Rng


class _ConvTranspose(Convolution):
    transposed = True

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
            type(self).__name__, "output_padding", canonical(output_padding), self.rank, least=0
        )
        self._positional = (
            self.stride,
            padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
        self._keywords = {"layout": layout}


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution over one spatial axis; the arguments are those of `ConvTranspose2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.ConvTranspose1d(3, 8, 2, stride=2, rng=0)
    >>> layer.forward(np.ones((2, 3, 5), np.float32)).shape
    (2, 8, 10)
    """

    rank = 1
    function = staticmethod(F.conv_transpose1d)
    gradients = staticmethod(F.conv_transpose1d_backward)


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution over two spatial axes, `fastconv.conv_transpose2d`.

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
    function = staticmethod(F.conv_transpose2d)
    gradients = staticmethod(F.conv_transpose2d_backward)


class ConvTranspose3d(_ConvTranspose):
    """Transposed convolution over three spatial axes; the arguments are those of `ConvTranspose2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.ConvTranspose3d(3, 8, 2, stride=2, rng=0)
    >>> layer.forward(np.ones((2, 3, 5, 4, 3), np.float32)).shape
    (2, 8, 10, 8, 6)
    """

    rank = 3
    function = staticmethod(F.conv_transpose3d)
    gradients = staticmethod(F.conv_transpose3d_backward)
