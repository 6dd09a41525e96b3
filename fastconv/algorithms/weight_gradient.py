"""The weight gradient of implicit GEMM: how its work is cut; see `fastconv.kernels.weight_gradient`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import BoundGradient
from fastconv.algorithms.implicit_gemm import per_axis
from fastconv.algorithms.workspace import odd_lines, places, round_up, scratch
from fastconv.jit import address_of
from fastconv.kernels import weight_gradient as kernels
from fastconv.kernels.microkernel import ROWS
from fastconv.kernels.simd import LANES
from fastconv.shapes import ConvShape
from fastconv.threads import Prepared, task_count

#: Most bytes of a chunk of the transposed grad_output, and of the rows of x for a block of channels: in L2.
CHUNK_BYTES = 400 << 10
ROWS_BYTES = 256 << 10
#: Pixels of a chunk: enough to pay for loading and storing a tile.
LEAST_PIXELS, MOST_PIXELS = 64, 448
#: Most pixels of one where x is transposed: the gradient is to stay in L2, too.
EXCHANGED_PIXELS = 224
#: Most output channels of a block.
BLOCK_OUT = 512
#: Most segments, and bytes of the sums of all of them.
MOST_SEGMENTS = 16
SUMS_BYTES = 1 << 20


class Cut(NamedTuple):
    """How the work is cut, and what of a task's scratch memory is where, in bytes."""

    #: whether x is transposed and grad_output read in place; the sizes are those of `exchange`'s convolution
    exchanged: bool
    segments: int
    chunks: int
    chunk_rows: int
    chunk_columns: int
    block_in: int
    block_out: int
    direct: bool
    sums_height: int
    sums_width: int
    row_size: int
    plane_size: int
    channel_size: int
    panel_pixels: int
    at_rows: int
    at_panels: int
    at_offsets: int
    at_taps: int
    at_a_rows: int
    scratch_bytes: int

    @property
    def chunk(self) -> str:
        """What is multiplied at a time."""
        x = "read in place" if self.direct else f"copied in blocks of {self.block_in} channels"
        array = "grad_output" if self.exchanged else "x"
        return f"{self.chunk_rows} x {self.chunk_columns} pixels, {array} {x}"


def segment_count(chunks: int, most: int) -> int:
    """Into how many segments to cut some chunks: a power of two.

    >>> segment_count(100, 13), segment_count(3, 13), segment_count(100, 0)
    (8, 2, 1)
    """
    segments = max(1, min(most, chunks))
    return 1 << (segments.bit_length() - 1)


def reads_inside(shape: ConvShape) -> bool:
    """Whether no window reaches beyond x."""
    facts = zip(shape.input, shape.output, shape.stride, shape.kernel, shape.dilation, strict=True)
    inside = all((out - 1) * stride + (k - 1) * d < size for size, out, stride, k, d in facts)
    return inside and shape.pad_before == (0, 0, 0)


def exchange(shape: ConvShape) -> ConvShape:
    """The convolution in which x and grad_output have each other's place; for a pointwise one."""
    return shape._replace(in_channels=shape.out_channels, out_channels=shape.in_channels)


@lru_cache(maxsize=1024)
def cut(shape: ConvShape, itemsize: int) -> Cut:
    """Sizes of the blocks; they do not depend on the number of tasks, but for how those share the units.

    Of a pointwise convolution either array can be the transposed one. If that is x, sums of one segment that
    need no filling up are the gradient itself. That pays where x has fewer channels.
    """
    if shape.is_pointwise and shape.group_in < shape.group_out:
        other = exchange(shape)
        blocks = _cut(other, itemsize, EXCHANGED_PIXELS)
        whole = other.group_in % ROWS == other.group_out % LANES[8 * itemsize] == 0
        if blocks.segments == 1 and whole:
            height, width = other.group_in, other.group_out
            return blocks._replace(exchanged=True, sums_height=height, sums_width=width)
    return _cut(shape, itemsize, MOST_PIXELS)


def _cut(shape: ConvShape, itemsize: int, most_pixels: int) -> Cut:
    lanes = LANES[8 * itemsize]
    cells = shape.group_in * shape.taps
    width = shape.output[2]
    all_rows = shape.batch * shape.output[0] * shape.output[1]

    block_out = min(shape.group_out, BLOCK_OUT)
    out_bytes = round_up(block_out, lanes) * itemsize
    pixels = max(LEAST_PIXELS, min(most_pixels, CHUNK_BYTES // out_bytes))
    # equal chunks: of whole rows, or of a part of one
    chunk_columns = -(-width // -(-width // pixels))
    most_rows = max(1, pixels // width)
    chunk_rows = -(-all_rows // -(-all_rows // most_rows))
    chunks = -(-all_rows // chunk_rows) * -(-width // chunk_columns)

    sums_height = round_up(cells, max(ROWS, lanes))
    vectors = -(-shape.group_out // lanes)
    sums_width = (vectors | 1) * lanes  # rows a power of two apart would fall on the same sets of the cache
    sums_bytes = shape.groups * sums_height * sums_width * itemsize
    segments = segment_count(chunks, min(MOST_SEGMENTS, SUMS_BYTES // sums_bytes))

    # the rows of x that a chunk reads: see the kernel
    direct = reads_inside(shape)
    reach = (shape.kernel[1] - 1) * shape.dilation[1] + 1
    planes = chunk_rows // shape.output[1] + 2
    rows = 0 if direct else chunk_rows * shape.stride[1] + planes * reach
    row = (chunk_columns - 1) * shape.stride[2] + (shape.kernel[2] - 1) * shape.dilation[2] + 1
    plane = rows * row + 2 * lanes
    channel = shape.kernel[0] * plane
    least_in = 2 + -(-ROWS // shape.taps)
    block_in = min(shape.group_in, max(least_in, ROWS_BYTES // (channel * itemsize)))

    panel_pixels = chunk_rows * chunk_columns + lanes
    sizes = (
        0 if direct else (block_in * channel + 4 * lanes) * itemsize,
        panel_pixels * out_bytes,
        chunk_rows * chunk_columns * 8,
        shape.taps * 8,
        ROWS * 8,
    )
    *at, end = places(sizes)
    return Cut._make(
        (
            False,
            segments,
            chunks,
            chunk_rows,
            chunk_columns,
            block_in,
            block_out,
            direct,
            sums_height,
            sums_width,
            row,
            plane,
            channel,
            panel_pixels,
            *at,
            # an odd number of cache lines, so that the tasks' memories do not fall on the same sets
            odd_lines(end),
        )
    )


class _Run(NamedTuple):
    """The kernels, ready to be run."""

    sums: Prepared
    #: adds the segments up, if there are several
    finish: Prepared | None
    #: whether the two arrays have each other's place, and the sums are the gradient
    exchanged: bool
    #: bytes of the workspace, and where in it the tasks' scratch begins, behind the sums
    scratch_bytes: int
    at_scratch: int

    def run(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        """out = d sum(grad_output * conv(x, weight)) / dweight; of the arrays only the memory matters."""
        memory = scratch(self.scratch_bytes)
        arrays = address_of(x), address_of(grad_output)
        if self.exchanged:
            self.sums.run(*arrays[::-1], address_of(out), memory + self.at_scratch, 0)
        elif self.finish is None:
            self.sums.run(*arrays, memory, memory + self.at_scratch, address_of(out))
        else:
            self.sums.run(*arrays, memory, memory + self.at_scratch, 0)
            self.finish.run(memory, address_of(out), memory + self.at_scratch)


def _tasks(shape: ConvShape, blocks: Cut) -> int:
    if blocks.exchanged:
        shape = exchange(shape)
    panels = -(-shape.group_in * shape.taps // ROWS)
    return task_count(shape.flops // 2, blocks.segments * shape.groups * panels)


def bind(shape: ConvShape, dtype: np.dtype) -> BoundGradient:
    """The weight gradient, for this number of threads; `shape` is pointwise or has its own axes."""
    return _prepare(shape, dtype, _tasks(shape, cut(shape, dtype.itemsize))).run


def workspace_bytes(shape: ConvShape, dtype: np.dtype) -> int:
    """Scratch memory of all tasks, and the sums."""
    return _prepare(shape, dtype, _tasks(shape, cut(shape, dtype.itemsize))).scratch_bytes


@lru_cache(maxsize=1024)
def _prepare(shape: ConvShape, dtype: np.dtype, tasks: int) -> _Run:
    blocks = cut(shape, dtype.itemsize)
    if blocks.exchanged:
        shape = exchange(shape)
    depth, height, width = shape.input
    plane = depth * height * width
    sums = Prepared(
        kernels.weight_sums,
        dtype,
        tasks,
        "x grad_output sums scratch grad_weight",
        scratch_bytes=blocks.scratch_bytes,
        sums_height=blocks.sums_height,
        sums_width=blocks.sums_width,
        x_n=shape.in_channels * plane,
        x_c=plane,
        x_z=height * width,
        x_y=width,
        y_n=shape.out_channels * shape.pixels,
        y_k=shape.pixels,
        images=shape.batch,
        groups=shape.groups,
        group_in=shape.group_in,
        group_out=shape.group_out,
        depth=depth,
        height=height,
        width=width,
        **per_axis("kernel", shape.kernel),
        **per_axis("stride", shape.stride),
        **per_axis("dilation", shape.dilation),
        **per_axis("pad", shape.pad_before),
        out_depth=shape.output[0],
        out_height=shape.output[1],
        out_width=shape.output[2],
        segments=blocks.segments,
        chunk_rows=blocks.chunk_rows,
        chunk_columns=blocks.chunk_columns,
        block_in=blocks.block_in,
        block_out=blocks.block_out,
        direct=int(blocks.direct),
        at_rows=blocks.at_rows,
        at_panels=blocks.at_panels,
        at_offsets=blocks.at_offsets,
        at_taps=blocks.at_taps,
        at_a_rows=blocks.at_a_rows,
        row_size=blocks.row_size,
        plane_size=blocks.plane_size,
        channel_size=blocks.channel_size,
        panel_pixels=blocks.panel_pixels,
    )
    scratch_bytes = tasks * blocks.scratch_bytes
    sums_size = blocks.segments * shape.groups * blocks.sums_height * blocks.sums_width
    if blocks.segments == 1:
        # the sums of a single chunk are in the gradient at once
        alone = blocks.exchanged or blocks.chunks == 1
        _, at_scratch, end = places([0 if alone else sums_size * dtype.itemsize, scratch_bytes])
        return _Run(sums, None, blocks.exchanged, end, at_scratch)
    lanes = LANES[8 * dtype.itemsize]
    cells = shape.group_in * shape.taps
    finish_tasks = task_count(sums_size, shape.groups * -(-cells // lanes))
    finish_bytes = lanes * lanes * dtype.itemsize
    finish = Prepared(
        kernels.finish_weight,
        dtype,
        finish_tasks,
        "sums grad_weight scratch",
        scratch_bytes=finish_bytes,
        sums_height=blocks.sums_height,
        sums_width=blocks.sums_width,
        segments=blocks.segments,
        groups=shape.groups,
        group_cells=cells,
        group_out=shape.group_out,
    )
    _, at_scratch, end = places([sums_size * dtype.itemsize, max(scratch_bytes, finish_tasks * finish_bytes)])
    return _Run(sums, finish, False, end, at_scratch)
