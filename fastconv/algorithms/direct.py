"""Direct convolution of few channels: how it is cut; see `fastconv.kernels.direct` for what is done.

The forward pass is one convolution, the input gradient one for each phase of the stride: those of implicit
GEMM, computed in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms import direct_channels
from fastconv.algorithms.base import Algorithm, Bound
from fastconv.algorithms.gemm import forward_convolution, input_grad_convolutions
from fastconv.algorithms.implicit_gemm import Convolution
from fastconv.algorithms.workspace import odd_lines, places, round_up, scratch
from fastconv.jit import DISABLED, address_of
from fastconv.kernels import direct as kernels
from fastconv.kernels.direct import PLACES, TILES
from fastconv.kernels.microkernel import ROWS
from fastconv.kernels.simd import LANES
from fastconv.shapes import ConvShape
from fastconv.threads import Prepared, task_count

#: Bytes of the rows of x that a block reads, in L2: 24 KiB took 1.15 times as long, for what blocks share.
ROWS_BYTES = 96 << 10
#: The same where x is copied for each column of the kernel: with 96 KiB a block shares too much with the next
#: one, 192 KiB took up to 1.2 times as long.
FLAT_BYTES = 384 << 10
#: Multiply-adds that take as long as copying a vector of x.
COPY_CYCLES = 5
#: Most products in a sum without groups, for which it is worth not to pack: 64 channels of 3 x 3 cells.
DEPTH = 576
#: And of channels-last arrays, which implicit GEMM need not pack: with 150 products 0.6 to 0.9 of its time,
#: 300 0.99, 576 1.05 to 1.16.
CHANNELS_LAST_DEPTH = 300
#: Why not to take it beyond that.
AS_FAST = "with this many channels implicit GEMM is as fast, and may have its weight packed before"
#: Most scratch memory of a task.
SCRATCH_BYTES = 1 << 20


class Blocks(NamedTuple):
    """How the work is cut, and what of a task's scratch memory is where, in bytes."""

    tile_rows: int
    block_rows: int
    flat: int
    phase_size: int
    row_size: int
    channel_size: int
    at_rows: int
    at_packed: int
    at_bias: int
    at_offsets: int
    at_places: int
    at_tile: int
    scratch_bytes: int


def _tile_rows(group_out: int) -> int:
    """Output channels of a tile: those that take the least time, and the most of such."""
    return min(TILES, key=lambda rows: (-(-group_out // rows) * _cycles(rows), -rows))


def _cycles(tile_rows: int) -> float:
    """For a vector of a tile: a load, which most often crosses a cache line, takes 5/3 multiply-adds."""
    return max(tile_rows, 5 / 3)


def product_cycles(group_out: int) -> float:
    """Multiply-adds, or what takes as long, of a vector of x with a cell of the kernel."""
    rows = _tile_rows(group_out)
    return -(-group_out // rows) * _cycles(rows)


def _block_rows(conv: Convolution, row_bytes: int, most_bytes: int) -> int:
    """Rows of output cells whose rows of x, of so many bytes, fit into `most_bytes`; at least 1."""
    reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1
    return max(1, (most_bytes // row_bytes - reach) // conv.stride[1] + 1)


def _is_flat(conv: Convolution, itemsize: int, tile_rows: int) -> bool:
    """Whether to copy x for each column of the kernel, so that vectors run on from row to row.

    That fills the lanes of narrow maps, 10 of 16 with 10 cells a row: LeNet's second layer takes 0.75 of the
    time. But copying takes more, and where a row has its own tile the padding is not multiplied.
    """
    _, height, width = conv.output
    _, kernel_y, kernel_x = conv.kernel
    if conv.y.axes[1:] != (width, 1) or conv.stride[1:] != (1, 1):
        return False
    lanes = LANES[8 * itemsize]
    per_row, narrow = -(-width // lanes), (TILES[tile_rows] + 1) // 2
    in_rows = float(height * per_row)
    if per_row in (1, narrow):
        in_rows -= per_row * (_rows_outside(conv, 0) + _rows_outside(conv, height - 1)) / kernel_y
    in_all = -(-height * width // lanes)
    # cycles for each input channel
    product = product_cycles(conv.group_out) * kernel_y * kernel_x
    whole = -(-(width + (kernel_x - 1) * conv.dilation[2]) // lanes)
    reach = (kernel_y - 1) * conv.dilation[1]

    def copied(vectors: int, row_bytes: int, most_bytes: int) -> int:
        blocks = -(-height // _block_rows(conv, row_bytes, most_bytes))
        return COPY_CYCLES * vectors * (height + blocks * reach)

    row_bytes = conv.group_in * itemsize * width * kernel_x
    if row_bytes * (reach + 1) > FLAT_BYTES:
        return False
    flat_cycles = product * in_all + copied(kernel_x * per_row, row_bytes, FLAT_BYTES)
    row_bytes = conv.group_in * itemsize * whole * lanes
    return flat_cycles < product * in_rows + copied(whole, row_bytes, ROWS_BYTES)


def _rows_outside(conv: Convolution, oy: int) -> int:
    """Rows of the kernel that lie in the padding of x, for a row of output cells; 0 if all do."""
    iy, taps, step = oy - conv.pad[1], conv.kernel[1], conv.dilation[1]
    low, high = -(-max(0, -iy) // step), min(taps, -(-(conv.input[1] - iy) // step))
    return taps - (high - low) if low < high else 0


@lru_cache(maxsize=4096)
def cut(conv: Convolution, itemsize: int, tasks: int) -> Blocks:
    """Sizes of the blocks of a convolution in `tasks` tasks."""
    lanes = LANES[8 * itemsize]
    _, out_height, out_width = conv.output
    _, stride_y, stride_x = conv.stride
    tile_rows = _tile_rows(conv.group_out)
    flat = _is_flat(conv, itemsize, tile_rows)
    # whole vectors, so that the first of a row's taps are read aligned
    phase = round_up(out_width + (conv.kernel[2] - 1) * conv.dilation[2] // stride_x, lanes)
    row = out_width if flat else phase * stride_x
    reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1
    planes, most_bytes = (conv.kernel[2], FLAT_BYTES) if flat else (1, ROWS_BYTES)
    most = _block_rows(conv, conv.group_in * row * planes * itemsize, most_bytes)
    units = conv.groups * conv.images
    blocks = max(-(-out_height // most), min(out_height, -(-tasks // units)))
    block_rows = -(-out_height // blocks)
    channel = ((block_rows - 1) * stride_y + reach) * row
    if flat:
        phase, channel = channel, channel * planes

    depth = conv.group_in * conv.taps
    channels = round_up(conv.group_out, tile_rows)
    vectors = TILES[tile_rows]
    sizes = (
        (conv.group_in * channel + 4 * lanes) * itemsize,
        depth * channels * itemsize,
        channels * itemsize,
        depth * 8,
        (block_rows * -(-out_width // lanes) + vectors) * PLACES * 8,
        tile_rows * vectors * lanes * itemsize + vectors * PLACES * 8,
    )
    *at, end = places(sizes)
    # an odd number of cache lines, so that the tasks' memories do not fall on the same sets
    end = odd_lines(end)
    return Blocks._make((tile_rows, block_rows, int(flat), phase, row, channel, *at, end))


def _tasks(conv: Convolution) -> int:
    return task_count(conv.flops // 16, conv.groups * conv.images * conv.output[1])


class Run(NamedTuple):
    """The kernel, ready to be run, and what it needs."""

    forward: Prepared
    first_weight: int
    first_y: int
    scratch_bytes: int

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """out = conv(x, weight) + bias; only the arrays' memory matters, not their shapes."""
        self.forward.run(
            address_of(x),
            address_of(weight) + self.first_weight,
            0 if bias is None else address_of(bias),
            address_of(out) + self.first_y,
            scratch(self.scratch_bytes),
        )


@lru_cache(maxsize=4096)
def prepare(conv: Convolution, dtype: np.dtype, relu: bool, tasks: int) -> Run:
    """Whatever does not depend on the arrays."""
    blocks = cut(conv, dtype.itemsize, tasks)
    weights, y = conv.weights, conv.y
    fields = blocks._asdict()
    tile_rows = fields.pop("tile_rows")
    forward = Prepared(
        kernels.forward[tile_rows],
        dtype,
        tasks,
        "x weight bias y scratch",
        relu=int(relu),
        images=conv.images,
        groups=conv.groups,
        group_in=conv.group_in,
        group_out=conv.group_out,
        height=conv.input[1],
        width=conv.input[2],
        out_height=conv.output[1],
        out_width=conv.output[2],
        kernel_y=conv.kernel[1],
        kernel_x=conv.kernel[2],
        stride_y=conv.stride[1],
        stride_x=conv.stride[2],
        dilation_y=conv.dilation[1],
        dilation_x=conv.dilation[2],
        pad_y=conv.pad[1],
        pad_x=conv.pad[2],
        weight_group=weights.group,
        weight_row=weights.row,
        weight_channel=weights.channel,
        weight_y=weights.tap[1],
        weight_x=weights.tap[2],
        y_n=y.n,
        y_k=y.k,
        y_y=y.axes[1],
        y_x=y.axes[2],
        **fields,
    )
    size = dtype.itemsize
    return Run(forward, weights.first_tap * size, y.first * size, tasks * blocks.scratch_bytes)


def _convolutions(shape: ConvShape, op: str) -> tuple[Convolution, ...]:
    return (forward_convolution(shape),) if op == "forward" else input_grad_convolutions(shape)


def _runs_on(shape: ConvShape, dtype: np.dtype, op: str) -> bool:
    """Whether vectors run on from row to row."""
    return all(cut(conv, dtype.itemsize, 1).flat for conv in _convolutions(shape, op))


def _scratch_bytes(conv: Convolution, shape: ConvShape, dtype: np.dtype) -> int:
    """Of a task."""
    if shape.layout == "NHWC":
        return direct_channels.cut(conv, dtype.itemsize, 1).scratch_bytes
    return cut(conv, dtype.itemsize, 1).scratch_bytes


def _run_of(conv: Convolution, shape: ConvShape, dtype: np.dtype, relu: bool) -> Run | direct_channels.Run:
    """What computes it, for arrays in the shape's layout."""
    if shape.layout == "NHWC":
        return direct_channels.prepare(conv, dtype, relu, _tasks(conv))
    return prepare(conv, dtype, relu, _tasks(conv))


class Direct(Algorithm):
    name = "direct"
    summary = "rows of x between zeros, in the cache, multiplied where they lie"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if DISABLED:
            return "it needs the compiler, which NUMBA_DISABLE_JIT turns off"
        if op == "weight_grad":
            return "it has no weight gradient"
        if shape.layout == "NHWC" and (op != "forward" or shape.groups > 1):
            return "of channels-last arrays it does the forward pass without groups only"
        if shape.input[0] != 1 or shape.kernel[0] != 1 or shape.output[0] != 1 or shape.pad_before[0] != 0:
            return "it has no third axis"
        if 0 in (shape.batch, shape.in_channels, shape.out_channels, *shape.input):
            return None
        for conv in _convolutions(shape, op):
            if _scratch_bytes(conv, shape, dtype) > SCRATCH_BYTES:
                return f"a group this wide needs more than {SCRATCH_BYTES >> 20} MiB a thread"
        return None

    def drawback(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        # figures are times on 2 cores with AVX-512, relative to the algorithm that auto takes instead
        if shape.taps == 1:
            # gemm packs straight from x, and fills its vectors across rows: 0.75 to 1.0
            return "a pointwise convolution has no rows to share"
        if shape.groups > 1:
            return None
        if shape.layout == "NHWC":
            if shape.group_in * shape.taps > CHANNELS_LAST_DEPTH:
                return AS_FAST
            return None
        outputs = shape.group_out if op == "forward" else shape.group_in
        few = outputs < ROWS  # gemm would compute ROWS: for one, a kernel of 31 x 31 takes it 6 times as long
        if not few and shape.group_in * shape.taps > DEPTH:
            return AS_FAST
        lanes = LANES[8 * dtype.itemsize]
        width = shape.output[2] if op == "forward" else -(-shape.input[2] // shape.stride[2])
        filled = width / round_up(width, lanes)
        if not few and filled < 0.75 and shape.group_in * shape.taps > 200 and not _runs_on(shape, dtype, op):
            return f"rows of {width} pixels would fill {filled:.0%} of their vectors"  # gemm: 0.75
        if op == "input_grad" and shape.stride[2] > 1 and shape.group_in <= 4:
            # im2col: 0.7 to 0.95
            return "the few channels of the gradient would be scattered cell by cell"
        return None

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if 0 in (shape.batch, shape.in_channels, shape.out_channels, *shape.input):
            return 0
        sizes = (_run_of(conv, shape, dtype, False).scratch_bytes for conv in _convolutions(shape, op))
        return max(sizes, default=0)

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        convolutions = () if 0 in (shape.batch, *shape.input) else _convolutions(shape, op)
        if not convolutions or not shape.in_channels or not shape.out_channels:
            return {}
        conv = max(convolutions, key=lambda conv: conv.flops)
        tasks = _tasks(conv)
        lanes = LANES[8 * dtype.itemsize]
        if shape.layout == "NHWC":
            parts = direct_channels.cut(conv, dtype.itemsize, tasks)
            return {
                "tile": direct_channels.tile_of(parts.flat, lanes),
                "block": f"{conv.group_in} channels x {parts.block_rows} rows of output cells",
                "tasks": f"{tasks} over images and blocks",
            }
        blocks = cut(conv, dtype.itemsize, tasks)
        phases = {"phases": f"{len(convolutions)} of the stride"} if len(convolutions) > 1 else {}
        return {
            "tile": f"{blocks.tile_rows} channels x {TILES[blocks.tile_rows]} vectors of {lanes} pixels",
            "block": f"{conv.group_in} channels x {blocks.block_rows} rows of output cells"
            + (", one after the other in the vectors" if blocks.flat else ""),
            "tasks": f"{tasks} over groups, images and blocks",
            **phases,
        }

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, packed: bool = False
    ) -> Bound:
        return _run_of(forward_convolution(shape), shape, dtype, relu).run

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        convolutions = input_grad_convolutions(shape)
        if sum(conv.pixels for conv in convolutions) < out[0, 0].size:
            out.fill(0)
        for conv in convolutions:
            prepare(conv, out.dtype, False, _tasks(conv)).run(grad_output, weight, None, out)

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        raise NotImplementedError("`supports` refuses it")
