"""Deformable convolution: its windows lowered to a matrix; see `fastconv.kernels.deformable`."""

from __future__ import annotations

import numpy as np

from fastconv.jit import address_of
from fastconv.kernels import deformable as kernels
from fastconv.shapes import ConvShape
from fastconv.threads import launch, task_count


def gather(
    x: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray | None,
    columns: np.ndarray,
    first_pixel: int,
    shape: ConvShape,
) -> None:
    """columns (C, taps, pixels), from `first_pixel` on, of one image x (C, H, W).

    offset is (offset groups, taps, 2, L), mask (offset groups, taps, L).
    """
    launch(
        kernels.samples,
        x.dtype,
        task_count(4 * columns.size, offset.shape[0] * shape.taps),
        x=address_of(x),
        offset=address_of(offset),
        mask=0 if mask is None else address_of(mask),
        columns=address_of(columns),
        channels=shape.in_channels,
        height=shape.input[1],
        width=shape.input[2],
        offset_groups=offset.shape[0],
        taps=shape.taps,
        kernel_x=shape.kernel[2],
        out_width=shape.output[2],
        out_pixels=shape.pixels,
        stride_y=shape.stride[1],
        stride_x=shape.stride[2],
        dilation_y=shape.dilation[1],
        dilation_x=shape.dilation[2],
        pad_y=shape.pad_before[1],
        pad_x=shape.pad_before[2],
        first_pixel=first_pixel,
        pixels=columns.shape[2],
    )
