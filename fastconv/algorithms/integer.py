"""Exact convolution of 8-bit integers; see `fastconv.kernels.integer`. Where there is no compiler, by NumPy.

Memory beyond x, weight and y: x once more in 16 bits, with its padding, and the same of weight.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from fastconv.algorithms.im2col import Im2col
from fastconv.algorithms.workspace import round_up, scratch
from fastconv.jit import DISABLED, address_of
from fastconv.kernels import integer as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.shapes import ConvShape
from fastconv.threads import launch, task_count

#: What sums are made in. The kernels have no other form.
_SUMS = np.dtype(np.int32)


def pack(weight: np.ndarray, groups: int) -> np.ndarray:
    """A weight (K, C // groups, T, R, S) of differences from the zero point, as the kernel reads it.

    Without a compiler as it is, in float64.
    """
    if DISABLED:
        return weight.astype(np.float64)
    rows, depth = weight.shape[0] // groups, prod(weight.shape[1:])
    panels = np.zeros((groups, round_up(rows, ROWS), round_up(depth, 2)), np.int16)
    panels[:, :rows, :depth] = weight.reshape(groups, rows, depth)
    # (group, panel, row, pair, half) -> (group, panel, pair, row, half)
    split = panels.reshape(groups, -1, ROWS, panels.shape[2] // 2, 2)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4))


def padded_shape(shape: ConvShape) -> tuple[int, ...]:
    """Of x (N, C, D, H, W) with its padding."""
    size = (n + a + b for n, a, b in zip(shape.input, shape.pad_before, shape.pad_after, strict=True))
    return (shape.batch, shape.in_channels, *size)


@lru_cache(maxsize=256)
def _tables(shape: ConvShape) -> tuple[np.ndarray, np.ndarray]:
    """Where cells of a window lie from its first, and where windows lie in an image."""
    size = padded_shape(shape)[2:]
    steps = np.array([size[1] * size[2], size[2], 1])
    taps = np.indices(shape.kernel).reshape(3, -1).T * shape.dilation @ steps
    channels = np.arange(shape.group_in) * prod(size)
    cells = (channels[:, None] + taps).ravel()
    if len(cells) % 2:
        cells = np.append(cells, 0)  # its weight is 0
    windows = np.indices(shape.output).reshape(3, -1).T * shape.stride @ steps
    return cells, windows


def _run(shape: ConvShape) -> int:
    """How many pixels after each other have windows side by side."""
    if shape.is_pointwise:
        return shape.pixels
    return shape.output[2] if shape.stride[2] == 1 else 1


def conv_integer(
    x: np.ndarray, packed: np.ndarray, y: np.ndarray, x_zero_point: int, shape: ConvShape
) -> None:
    """y (N, K, D, H, W), in int32, = conv(x - x_zero_point, weight)."""
    if DISABLED:
        plain = Im2col()
        result = np.empty(y.shape)
        plain.forward(x.astype(np.float64) - x_zero_point, packed, None, False, result, shape)
        y[...] = result.astype(np.int64).astype(np.int32)
        return
    cells, windows = _tables(shape)
    padded = np.zeros(padded_shape(shape), np.int16)
    size = padded.shape[2:]
    inside = tuple(slice(a, a + n) for a, n in zip(shape.pad_before, shape.input, strict=True))
    np.subtract(x, np.int16(x_zero_point), out=padded[:, :, *inside], dtype=np.int16)
    panels, pairs = packed.shape[1], packed.shape[2]
    panel = VECTORS * LANES[32]
    tiles = shape.batch * shape.groups * -(-shape.pixels // panel)
    work = shape.flops // 2
    tasks = task_count(work, tiles * panels)
    # few tiles: several tasks share one, each with its own output channels, and each packs it
    parts = 1 if tiles >= 4 * tasks else min(panels, tasks)
    tasks = min(tasks, tiles * parts)
    task_bytes = round_up((pairs + ROWS) * panel * 4, 64)
    launch(
        kernels.conv_integer,
        _SUMS,
        tasks,
        x=address_of(padded),
        weight=address_of(packed),
        y=address_of(y),
        scratch=scratch(tasks * task_bytes),
        scratch_bytes=task_bytes,
        cells=address_of(cells),
        windows=address_of(windows),
        x_n=shape.in_channels * prod(size),
        x_group=shape.group_in * prod(size),
        panels=panels,
        panel_bytes=packed[0, 0].nbytes,
        rows=shape.group_out,
        pairs=pairs,
        images=shape.batch,
        groups=shape.groups,
        pixels=shape.pixels,
        parts=parts,
        run=_run(shape),
    )


def requantize(
    sums: np.ndarray, bias: np.ndarray | None, factors: np.ndarray, zero_point: int, y: np.ndarray
) -> None:
    """y = (sums + bias) * factors, rounded half to even, plus the zero point, saturated.

    `sums` are int32 (N, K, ...), y int8 or uint8 of the same shape; bias (K,) and factors (K,) or (1,).
    """
    channels = sums.shape[1]
    limits = np.iinfo(y.dtype)
    offsets = np.zeros(channels, np.int64) if bias is None else bias.astype(np.int64)
    scales = np.ascontiguousarray(np.broadcast_to(factors, (channels,)), np.float64)
    if DISABLED:
        ones = (1,) * (sums.ndim - 2)
        real = (sums.astype(np.int64) + offsets.reshape(-1, *ones)) * scales.reshape(-1, *ones)
        y[...] = np.clip(np.rint(real) + zero_point, limits.min, limits.max)
        return
    planes = sums.shape[0] * channels
    launch(
        kernels.requantize,
        _SUMS,
        task_count(sums.size, planes),
        sums=address_of(sums),
        y=address_of(y),
        biases=address_of(offsets),
        factors=address_of(scales),
        planes=planes,
        channels=channels,
        pixels=prod(sums.shape[2:]),
        zero_point=zero_point,
        lowest=int(limits.min),
        highest=int(limits.max),
    )
