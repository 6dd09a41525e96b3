"""Winograd's minimal filtering: 3 x 3 kernels with 36 products for 16 outputs, with stride 2 81, not 144."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from fastconv.algorithms import winograd_blocks, winograd_channels, winograd_gradient
from fastconv.algorithms.base import Algorithm, Bound, Packing
from fastconv.algorithms.direct import product_cycles
from fastconv.algorithms.gemm import forward_convolution, input_grad_convolutions
from fastconv.algorithms.implicit_gemm import Convolution
from fastconv.algorithms.winograd_blocks import Tiling, prepare, tasks_of
from fastconv.jit import DISABLED
from fastconv.kernels.microkernel import ROWS
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_gradient import POINTS, TILE
from fastconv.kernels.winograd_points import TAPS
from fastconv.precision import get_float32_precision
from fastconv.shapes import ConvShape
from fastconv.threads import get_num_threads

#: Most scratch memory of a task, and for the weight gradient what the tasks share.
SCRATCH_BYTES = 8 << 20
GRADIENT_BYTES = 24 << 20

#: With fewer input channels than this it is not worth it: 0.3 to 1.4 times as fast.
FEW_CHANNELS = 4
#: Nor with fewer than this in groups: with 8 in each of 32, 0.7 to 1.2 times.
MANY_CHANNELS = 12

# What "auto" goes by with channels first and stride 1: multiply-adds of a vector, and how many take as long
# as the rest of the work. Fitted to 7,000 measurements: maps of 3 to 56 cells a side, 2 to 24 channels, up to
# 32 groups. What is chosen takes 1 to 2 % longer on average than the better of this and direct convolution,
# on one thread and on two. The number of threads has no part in it, so that results do not depend on it.
#: Transforming the inputs of a vector of tiles of 4 x 4 cells, a channel.
INPUT_CYCLES = 300
#: Transforming their sums and storing them, an output channel.
SUM_CYCLES = 350
#: Starting one kernel more.
START_CYCLES = 15_000
#: Direct convolution: copying a vector of x.
DIRECT_COPY_CYCLES = 8

# Otherwise, measured against implicit GEMM on 2 cores with AVX-512, maps of 1 to 224 cells a side.
# From MANY_CHANNELS on their products outweigh the transforms: 1.0 to 4 times as fast.
#: With fewer, output channels for each input channel: up to here 0.9 to 1.8 times as fast, beyond, where
#: each sum has too few products for its transform, 0.5 to 1.3 times.
MOST_OUTPUTS = 2
#: Operations below which starting kernels takes the time: 0.5 to 1.4 times as fast, then 1.0 to 2 times.
LEAST_FLOPS = 3_000_000
#: How many times fewer multiplications it must need. One image of 7 x 7 cells has 2.2 times fewer, and is
#: done 1.9 times as fast; one of 4 x 4 has 1.8 times more.
LEAST_SAVING = 1.5
#: The same with stride 2, whose products are at best 1.8 times fewer: 14 x 14 outputs, with 1.4 times fewer,
#: are done 1.0 to 1.3 times as fast, 28 x 28 1.2 to 1.4 times.
LEAST_STRIDED_SAVING = 1.3
#: Input channels from which on stride 2 is worth it: 1.0 to 1.5 times as fast; with 16 0.9 to 1.0 times.
STRIDED_CHANNELS = 24
#: How many products it takes as long as to transform a sum back. One image of 7 x 7 cells is 1.1 to 2.3 times
#: as fast; but implicit GEMM of channels last has no such end, and is as fast or 1.2 times as fast there.
FINISH_PRODUCTS = {"NCHW": 60, "NHWC": 200}


def _convolution(shape: ConvShape, op: str) -> Convolution:
    if op == "forward":
        return forward_convolution(shape)
    (conv,) = input_grad_convolutions(shape)  # one for each phase of the stride
    return conv


@lru_cache(maxsize=1024)
def tiling_of(shape: ConvShape, dtype: np.dtype, op: str) -> Tiling:
    """The convolution and the size of its tiles: that which needs fewer multiplications.

    Mostly 4, which is 1.3 to 1.6 times as fast. But an image of 7 x 7 cells is 4 tiles of 4 x 4 cells, a
    quarter of a vector, or 16 of 2 x 2, a whole one: 1.3 instead of 2.7 ms with 512 channels.
    """
    conv = _convolution(shape, op)
    tiles = (2, 4) if conv.stride[2] == 1 else (4,)
    return min((Tiling(conv, tile) for tile in tiles), key=lambda tiling: _products(tiling, shape, dtype))


def _products(tiling: Tiling, shape: ConvShape, dtype: np.dtype) -> int:
    """Multiplications for each pair of channels, of as many tiles at a time as are done together."""
    return tiling.points * -(-tiling.tiles // _together(shape, dtype))


def _together(shape: ConvShape, dtype: np.dtype) -> int:
    """Tiles of a vector, or with channels last rows of the micro-kernel."""
    return ROWS if shape.layout == "NHWC" else LANES[8 * dtype.itemsize]


def _cycles(tiling: Tiling, dtype: np.dtype) -> float:
    """About how many multiply-adds of vectors take as long, with channels first."""
    conv = tiling.conv
    vectors = -(-tiling.tiles // LANES[8 * dtype.itemsize])
    products = conv.group_in * conv.panels * ROWS
    transforms = (INPUT_CYCLES * conv.group_in + SUM_CYCLES * conv.group_out) / 36
    return START_CYCLES + conv.groups * vectors * tiling.points * (products + transforms)


def _direct_cycles(conv: Convolution, dtype: np.dtype) -> float:
    """The same of direct convolution."""
    vectors = conv.images * -(-conv.pixels // LANES[8 * dtype.itemsize])
    cell = conv.taps * product_cycles(conv.group_out) + DIRECT_COPY_CYCLES
    return conv.groups * vectors * conv.group_in * cell


def _drawback_by_tiles(tiling: Tiling, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
    conv = tiling.conv
    if conv.group_in < MANY_CHANNELS and conv.group_out > MOST_OUTPUTS * conv.group_in:
        return f"sums over {conv.group_in} channels are too short to pay for the transforms"
    if op == "input_grad" and conv.group_out <= ROWS // 2:
        return f"it would compute {ROWS} input channels where there are {conv.group_out}"
    if conv.flops < LEAST_FLOPS:
        return f"the transforms do not pay for less than {LEAST_FLOPS:,} operations"
    direct = conv.taps * -(-conv.images * conv.pixels // _together(shape, dtype))
    saving = LEAST_STRIDED_SAVING if tiling.stride == 2 else LEAST_SAVING
    if direct < saving * _products(tiling, shape, dtype):
        return f"tiles of {tiling.tile} x {tiling.tile} cells do not fit {conv.output[1:]} well"
    return None


def _run_of(
    tiling: Tiling, shape: ConvShape, dtype: np.dtype, relu: bool, packed: bool
) -> winograd_blocks.Run | winograd_channels.Run:
    """What computes it, for arrays in the shape's layout."""
    if shape.layout == "NHWC":
        return winograd_channels.prepare(tiling, dtype, relu, tasks_of(tiling), packed)
    return prepare(tiling, dtype, relu, tasks_of(tiling), packed)


def _drawback_of_gradient(shape: ConvShape, dtype: np.dtype) -> str | None:
    """That of the weight gradient, measured as the others."""
    if shape.group_in < MANY_CHANNELS:
        # 8 take 0.8 to 1.3 times as long, 12 take 0.4 to 0.7 times
        return f"the transforms of {shape.group_in} channels do not pay"
    if shape.groups > 1 and shape.group_in + shape.group_out < 3 * LANES[8 * dtype.itemsize]:
        # 32 groups of 16 channels take 0.5 to 1.5 times as long, 8 of 32 channels 0.5 to 1.05 times
        return f"groups of {shape.group_in} channels fill too few lanes"
    if shape.flops < LEAST_FLOPS:
        return f"the transforms do not pay for less than {LEAST_FLOPS:,} operations"
    rows, _, row_tiles = winograd_gradient.grid(shape)
    products = POINTS * rows * row_tiles + FINISH_PRODUCTS[shape.layout]
    if TAPS**2 * shape.batch * shape.pixels < LEAST_SAVING * products:
        return f"tiles of {TILE} x {TILE} cells do not fit {shape.output[1:]} well"
    return None


class Winograd(Algorithm):
    name = "winograd"
    summary = "minimal filtering: tiles and kernels transformed, multiplied point by point"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if DISABLED:
            return "it needs the compiler, which NUMBA_DISABLE_JIT turns off"
        if get_float32_precision() == "highest":
            return 'set_float32_precision("highest") rules it out'
        if shape.layout == "NHWC" and shape.groups > 1 and op != "weight_grad":
            return "of channels-last arrays it does those without groups only"
        if shape.kernel != (1, 3, 3):
            return "it is made for kernels of 3 x 3 cells"
        if shape.stride not in ((1, 1, 1), (1, 2, 2)) or shape.dilation[1:] != (1, 1):
            return "it is made for stride 1 or 2, and dilation 1"
        if shape.stride[2] == 2 and (op != "forward" or shape.layout == "NHWC"):
            return "with stride 2 it does the forward pass of channels-first arrays only"
        if shape.pad_before[0] or shape.pad_after[0]:
            return "it pads height and width only"
        if shape.is_empty:
            return None
        if op == "weight_grad":
            if winograd_gradient.cut(shape, dtype.itemsize).shared_bytes > GRADIENT_BYTES:
                return f"so many channels need more than {GRADIENT_BYTES >> 20} MiB"
        else:
            room = winograd_channels if shape.layout == "NHWC" else winograd_blocks
            blocks = room.cut(tiling_of(shape, dtype, op), dtype, get_num_threads())
            if blocks.scratch_bytes > SCRATCH_BYTES:
                return f"so many channels need more than {SCRATCH_BYTES >> 20} MiB a thread"
        return None

    def drawback(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if shape.is_empty:
            return "there is nothing to compute"
        if op == "weight_grad":
            return _drawback_of_gradient(shape, dtype)
        tiling = tiling_of(shape, dtype, op)
        channels = tiling.conv.group_in
        least = (
            STRIDED_CHANNELS if tiling.stride == 2 else FEW_CHANNELS if shape.groups == 1 else MANY_CHANNELS
        )
        if channels < least:
            return f"sums over {channels} channels are too short to pay for the transforms"
        if shape.layout == "NHWC" or tiling.stride == 2:
            return _drawback_by_tiles(tiling, shape, dtype, op)
        own, direct = _cycles(tiling, dtype), _direct_cycles(tiling.conv, dtype)
        if own > direct:
            return f"with the transforms it takes {own / direct:.2g} times the multiply-adds of doing without"
        return None

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if shape.is_empty:
            return 0
        if op == "weight_grad":
            return winograd_gradient.prepare(shape, dtype, get_num_threads()).workspace_bytes
        tiling = tiling_of(shape, dtype, op)
        return _run_of(tiling, shape, dtype, False, False).workspace_bytes

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        if shape.is_empty:
            return {}
        if op == "weight_grad":
            return winograd_gradient.details(shape, dtype.itemsize)
        tiling = tiling_of(shape, dtype, op)
        tile = tiling.tile
        stride = " of stride 2" if tiling.stride == 2 else ""
        name = f"F({tile} x {tile}, 3 x 3){stride}: {tiling.points} products for {tile**2} x 9"
        if shape.layout == "NHWC":
            parts = winograd_channels.cut(tiling, dtype, tasks_of(tiling))
            return {
                "tile": name,
                "lanes": f"{LANES[8 * dtype.itemsize]} channels",
                "block": f"{parts.block_tiles} of {tiling.tiles} tiles",
                "tasks": f"{parts.tile_tasks} over tiles x {parts.panel_tasks} over output channels",
                "weight": f"transformed {'panel by panel, when used' if parts.fused else 'before'}",
            }
        cut = winograd_blocks.cut(tiling, dtype, tasks_of(tiling))
        lanes = LANES[8 * dtype.itemsize]
        return {
            "tile": name,
            "lanes": f"{lanes} tiles",
            "block": f"{cut.block_tiles} of {tiling.tiles} tiles x {cut.block_channels} input channels x "
            f"{cut.block_panels * ROWS} output channels",
            "tasks": f"{cut.tile_tasks} over tiles x {cut.panel_tasks} over output channels",
            "weight": f"transformed {'panel by panel, when used' if cut.fused else 'before'}, "
            f"{tiling.packing(dtype).size:,} bytes in all",
        }

    def packing(self, shape: ConvShape, dtype: np.dtype) -> Packing | None:
        tiling = tiling_of(shape, dtype, "forward")
        if shape.layout == "NHWC":
            return winograd_channels.packing(tiling, dtype, tasks_of(tiling))
        fused = winograd_blocks.cut(tiling, dtype, tasks_of(tiling)).fused
        return None if fused else tiling.packing(dtype)

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, packed: bool = False
    ) -> Bound:
        tiling = tiling_of(shape, dtype, "forward")
        run = _run_of(tiling, shape, dtype, relu, packed)
        return run.run_packed if packed else run.run

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        tiling = tiling_of(shape, out.dtype, "input_grad")
        _run_of(tiling, shape, out.dtype, False, False).run(grad_output, weight, None, out)

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        winograd_gradient.prepare(shape, out.dtype, get_num_threads()).run(grad_output, x, out)
