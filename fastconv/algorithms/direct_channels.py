"""Direct convolution of channels-last arrays: how it is cut; see `fastconv.kernels.direct_channels`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.implicit_gemm import Convolution
from fastconv.algorithms.workspace import odd_lines, places, round_up, scratch
from fastconv.jit import address_of
from fastconv.kernels import direct_channels as kernels
from fastconv.kernels.direct_channels import FLAT_VECTORS, NARROW, PLACES
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.simd import LANES
from fastconv.threads import Prepared

#: Bytes of the rows of x that a block reads, in L2: ResNet's first layer takes 4.79 ms, with 24 KiB 4.96.
ROWS_BYTES = 96 << 10


class Blocks(NamedTuple):
    """How the work is cut, and what of a task's scratch memory is where, in bytes."""

    #: whether pixels are on the lanes
    flat: bool
    block_rows: int
    row_size: int
    at_rows: int
    at_packed: int
    at_bias: int
    at_offsets: int
    at_places: int
    at_unread: int
    scratch_bytes: int


@lru_cache(maxsize=4096)
def cut(conv: Convolution, itemsize: int, tasks: int) -> Blocks:
    """Sizes of the blocks of a convolution in `tasks` tasks."""
    lanes = LANES[8 * itemsize]
    _, out_height, out_width = conv.output
    _, stride_y, stride_x = conv.stride
    flat = conv.group_in == 1 and conv.group_out <= NARROW <= lanes and stride_x == stride_y == 1
    row = ((out_width - 1) * stride_x + (conv.kernel[2] - 1) * conv.dilation[2] + 1) * conv.group_in
    if flat:
        row = round_up(row, lanes // NARROW)
    reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1
    most = max(1, (ROWS_BYTES // (row * itemsize) - reach) // stride_y + 1)
    blocks = max(-(-out_height // most), min(out_height, -(-tasks // conv.images)))
    block_rows = -(-out_height // blocks)

    depth, channels = conv.group_in * conv.taps, round_up(conv.group_out, lanes)
    read = ((block_rows - 1) * stride_y + reach) * row
    pixels, tile = block_rows * out_width, ROWS
    if flat:
        pixels, tile = block_rows * row // (lanes // NARROW), FLAT_VECTORS * NARROW
    sizes = (
        # vectors are stored behind the last row, where the last tile reads
        (read + (conv.pad[2] * conv.group_in + 2 * lanes) + (FLAT_VECTORS * lanes if flat else 0)) * itemsize,
        depth * channels * itemsize,
        channels * itemsize,
        depth * 8,
        (pixels + tile) * PLACES * 8,
        channels * itemsize,
    )
    *at, end = places(sizes)
    return Blocks._make((flat, block_rows, row, *at, odd_lines(end)))


def tile_of(flat: bool, lanes: int) -> str:
    """A tile in words."""
    if flat:
        return f"{NARROW} channels x {FLAT_VECTORS} vectors of {lanes} pixels, transposed"
    return f"{ROWS} pixels x {VECTORS * lanes} channels ({VECTORS} vectors of {lanes})"


class Run(NamedTuple):
    """The kernel, ready to be run, and what it needs."""

    forward: Prepared
    scratch_bytes: int

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """out = conv(x, weight) + bias; only the arrays' memory matters, not their shapes."""
        self.forward.run(
            address_of(x),
            address_of(weight),
            0 if bias is None else address_of(bias),
            address_of(out),
            scratch(self.scratch_bytes),
        )


@lru_cache(maxsize=4096)
def prepare(conv: Convolution, dtype: np.dtype, relu: bool, tasks: int) -> Run:
    """Whatever does not depend on the arrays."""
    fields = cut(conv, dtype.itemsize, tasks)._asdict()
    flat = fields.pop("flat")
    forward = Prepared(
        kernels.forward_flat if flat else kernels.forward,
        dtype,
        tasks,
        "x weight bias y scratch",
        relu=int(relu),
        images=conv.images,
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
        weight_channel=conv.weights.channel,
        weight_y=conv.weights.tap[1],
        weight_x=conv.weights.tap[2],
        y_n=conv.y.n,
        y_y=conv.y.axes[1],
        y_x=conv.y.axes[2],
        **fields,
    )
    return Run(forward, tasks * fields["scratch_bytes"])
