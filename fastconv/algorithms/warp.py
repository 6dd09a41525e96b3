"""Images turned, moved and scaled, each in its own way; see `fastconv.kernels.warp`."""

from __future__ import annotations

import numpy as np

from fastconv.jit import address_of
from fastconv.kernels import warp as kernels
from fastconv.threads import launch, task_count


def warp(x: np.ndarray, maps: np.ndarray, fill: float) -> np.ndarray:
    """x (N, C, H, W) read at the places that maps (N, 2, 3) take each cell (i, j, 1) to; `fill` around it."""
    x, maps = np.ascontiguousarray(x), np.ascontiguousarray(maps, np.float64)
    images, channels, height, width = x.shape
    if maps.shape != (images, 2, 3):
        raise ValueError(f"warp: maps must have shape ({images}, 2, 3), got {maps.shape}")
    y, around = np.empty_like(x), np.array([fill], np.float64)
    if x.size == 0:
        return y
    launch(
        kernels.warp,
        x.dtype,
        task_count(8 * x.size, images),
        x=address_of(x),
        y=address_of(y),
        maps=address_of(maps),
        around=address_of(around),
        images=images,
        channels=channels,
        height=height,
        width=width,
    )
    return y
