"""The gradient of a convolution with respect to its bias: the same for every algorithm."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastconv.algorithms.epilogue import quietly
from fastconv.jit import DISABLED, address_of
from fastconv.kernels.sums import channel_sums
from fastconv.threads import Prepared, task_count


@quietly
def bias_gradient(grad_output: np.ndarray, rank: int, layout: str) -> np.ndarray:
    """The sum over everything but the channels, in float64; grad_output as the user gave it."""
    channel_axis = grad_output.ndim - (rank + 1 if layout == "NCHW" else 1)
    if layout != "NCHW" or DISABLED or grad_output.size == 0:
        axes = tuple(axis for axis in range(grad_output.ndim) if axis != channel_axis)
        return np.asarray(grad_output.sum(axis=axes, dtype=np.float64), grad_output.dtype)
    channels = grad_output.shape[channel_axis]
    images = grad_output.shape[0] if channel_axis else 1
    out = np.empty(channels, grad_output.dtype)
    tasks = task_count(grad_output.size // 4, channels)
    pixels = grad_output.size // (images * channels)
    run = _prepare(grad_output.dtype, tasks, images, channels, pixels)
    run.run(address_of(grad_output), address_of(out))
    return out


@lru_cache(maxsize=1024)
def _prepare(dtype: np.dtype, tasks: int, images: int, channels: int, pixels: int) -> Prepared:
    sizes = {"images": images, "channels": channels, "pixels": pixels}
    return Prepared(channel_sums, dtype, tasks, "x sums", **sizes)
