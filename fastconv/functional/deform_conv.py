"""Deformable convolution, version 2: windows whose cells move, each with a weight of its own."""

from __future__ import annotations

import numpy as np

from fastconv.algorithms import deformable
from fastconv.algorithms.im2col import BLOCK_BYTES
from fastconv.arguments import Ints, Padding
from fastconv.functional import run
from fastconv.functional.arrays import check_shape, empty, real_arrays
from fastconv.functional.narrow import widens
from fastconv.shapes import drop

__all__ = [
    "deform_conv2d",
]


@widens
def deform_conv2d(
    input: np.ndarray,
    offset: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Convolution of images with windows whose cells are moved by `offset` and weighted by `mask`.

    With x the input, zero outside its borders and linear between its cells, in both directions::

        y[n, k, i, j] = bias[k] + sum over c, r, s of weight[k, c, r, s] * mask[n, (r, s), i, j] * x[n, c,
            i * stride - pad + r * dilation + offset[n, (r, s, 0), i, j],
            j * stride - pad + s * dilation + offset[n, (r, s, 1), i, j]]

    Channels are cut into offset groups, each of which has its own offsets and mask.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W)
        float32 or float64, float16 or bfloat16.
    offset : ndarray, (N, offset groups * R * S * 2, P, Q)
        For each kernel cell how far down, and how far to the right. Its shape tells the number of offset
        groups.
    weight : ndarray, (K, C // groups, R, S)
        Its shape tells the number of groups.
    bias : ndarray, (K,), optional
    stride, padding, dilation
        As in `conv2d`.
    mask : ndarray, (N, offset groups * R * S, P, Q), optional
        Factors, all 1 where there is none.

    Returns
    -------
    y : ndarray, (N, K, P, Q)

    Raises
    ------
    ValueError
        Shapes or values that do not fit together.
    TypeError
        Another dtype than float32 or float64, or several.

    Notes
    -----
    Names and order of the arguments are those of ``torchvision.ops.deform_conv2d``; forward only. At a place
    that is NaN x is NaN. J. Dai et al., "Deformable Convolutional Networks" (2017); X. Zhu et al.,
    "Deformable ConvNets v2" (2019), which adds the mask.

    Examples
    --------
    >>> import numpy as np
    >>> x, weight = np.ones((2, 4, 9, 9)), np.ones((6, 4, 3, 3))
    >>> offset = np.zeros((2, 18, 7, 7))
    >>> deform_conv2d(x, offset, weight).shape
    (2, 6, 7, 7)
    """
    function = "deform_conv2d"
    given = {"input": input, "offset": offset, "weight": weight}
    if mask is not None:
        given["mask"] = mask
    dtype, (x, offset, weight, *masks, bias) = real_arrays(function, **given, bias=bias)
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(
            f"{function}: weight must have 4 axes (K, C // groups, R, S), none of them empty, "
            f"got shape {weight.shape}"
        )
    channels = x.shape[-3] if x.ndim >= 3 else 0
    groups = max(1, channels // weight.shape[1])
    facts = (stride, padding, dilation, groups, "NCHW")
    shape = run.geometry(function, 2, x.shape, weight.shape, *facts)
    lead, size = x.shape[:-3], drop(shape.output, 2)
    offset_groups = _offset_groups(function, offset, shape.in_channels, shape.taps)
    check_shape(function, "offset", offset, (*lead, offset_groups * shape.taps * 2, *size))
    if masks:
        check_shape(function, "mask", masks[0], (*lead, offset_groups * shape.taps, *size))
    if bias is not None:
        check_shape(function, "bias", bias, (shape.out_channels,))

    y = empty(function, "the result", (shape.batch, shape.out_channels, shape.pixels), dtype)
    # each window a pixel of an image with a channel for each of its cells, for a 1 x 1 kernel
    depth = shape.in_channels * shape.taps
    pointwise = weight.reshape(weight.shape[0], -1, 1)
    images = x.reshape(shape.batch, shape.in_channels, *shape.input[1:])
    offsets = offset.reshape(shape.batch, offset_groups, shape.taps, 2, shape.pixels)
    factors = [part.reshape(shape.batch, offset_groups, shape.taps, shape.pixels) for part in masks]
    part = max(1, min(shape.pixels, BLOCK_BYTES // (depth * dtype.itemsize)))
    for n in range(shape.batch):
        for first in range(0, shape.pixels, part):
            count = min(part, shape.pixels - first)
            columns = np.empty((shape.in_channels, shape.taps, count), dtype)
            factor = factors[0][n] if factors else None
            deformable.gather(images[n], offsets[n], factor, columns, first, shape)
            pixels = columns.reshape(1, depth, count)
            whole = count == shape.pixels
            out = y[n : n + 1] if whole else np.empty((1, shape.out_channels, count), dtype)
            facts = (1, 0, 1, groups, "NCHW")
            product = run.geometry(function, 1, pixels.shape, pointwise.shape, *facts)
            run.forward(function, pixels, pointwise, bias, False, out, product, "auto")
            if not whole:
                y[n, :, first : first + count] = out[0]
    return y.reshape(*lead, shape.out_channels, *size)


def _offset_groups(function: str, offset: np.ndarray, channels: int, taps: int) -> int:
    """How many there are, by the channels of `offset`."""
    numbers = offset.shape[-3] if offset.ndim >= 3 else 0
    groups, rest = divmod(numbers, 2 * taps)
    if rest or groups < 1 or channels % groups:
        raise ValueError(
            f"{function}: offset must have 2 channels for each of the {taps} kernel cells and each of some "
            f"offset groups that divide the {channels} channels of input, got shape {offset.shape}"
        )
    return groups
