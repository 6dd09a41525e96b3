"""The weight gradient of channels-last arrays; see `fastconv.kernels.channels_last_gradient`.

It is that of a `Convolution`, the forward one, so that few channels are merged as there.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import BoundGradient
from fastconv.algorithms.channels_last import merge, widening
from fastconv.algorithms.implicit_gemm import Convolution
from fastconv.algorithms.weight_gradient import segment_count
from fastconv.algorithms.workspace import places, round_up, scratch
from fastconv.jit import address_of
from fastconv.kernels import channels_last_gradient as kernels
from fastconv.kernels.microkernel import ROWS
from fastconv.kernels.simd import LANES
from fastconv.threads import Prepared, task_count

#: Most bytes of a chunk of grad_output, and of what it sees of x: in L2 both.
CHUNK_BYTES = 384 << 10
#: Pixels of a chunk: enough to pay for loading and storing a tile.
LEAST_PIXELS, MOST_PIXELS = 64, 448
#: Most segments, and bytes of the sums of all of them.
MOST_SEGMENTS = 16
SUMS_BYTES = 1 << 20


class Cut(NamedTuple):
    """How the work is cut, and what of a task's scratch memory is where, in bytes."""

    segments: int
    chunks: int
    chunk_pixels: int
    #: whether the sums are the gradient itself
    in_place: bool
    sums_height: int
    sums_width: int
    at_panels: int
    at_zeros: int
    at_a: int
    at_seen: int
    scratch_bytes: int

    @property
    def chunk(self) -> str:
        """What is multiplied at a time."""
        return f"{self.chunk_pixels} pixels"


@lru_cache(maxsize=1024)
def cut(conv: Convolution, itemsize: int) -> Cut:
    """Sizes of the blocks, whatever the number of tasks."""
    conv = merge(conv)
    lanes = LANES[8 * itemsize]
    cells = conv.group_in * conv.taps
    width = round_up(conv.group_out, lanes)
    most = CHUNK_BYTES // itemsize // max(width, conv.group_in * prod(conv.stride))
    pixels = conv.images * conv.pixels
    chunks = -(-pixels // max(LEAST_PIXELS, min(MOST_PIXELS, most)))
    chunk_pixels = -(-pixels // chunks)

    sums_height = round_up(cells, ROWS)
    sums_width = (width // lanes | 1) * lanes  # rows a power of two apart would fall on the same sets
    sums_bytes = conv.groups * sums_height * sums_width * itemsize
    segments = segment_count(chunks, min(MOST_SEGMENTS, SUMS_BYTES // sums_bytes))
    in_place = segments == 1 and sums_height == cells and width == conv.group_out
    sizes = (
        chunk_pixels * width * itemsize,
        (conv.group_in + lanes) * itemsize,
        (chunk_pixels * ROWS + lanes) * itemsize,
        chunk_pixels * 8,
    )
    return Cut(segments, chunks, chunk_pixels, in_place, sums_height, sums_width, *places(sizes))


class Run(NamedTuple):
    """The kernels, ready to be run."""

    #: widens the rows of x, if they need it
    widen: Prepared | None
    sums: Prepared
    #: adds the segments up, unless the sums are the gradient
    finish: Prepared | None
    #: bytes of the workspace, and where in it the wide x, the sums and the tasks' scratch begin
    scratch_bytes: int
    at_x: int
    at_sums: int
    at_scratch: int

    def run(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        """out = d sum(grad_output * conv(x, weight)) / dweight; of the arrays only the memory matters."""
        memory = scratch(self.scratch_bytes)
        x_at = address_of(x)
        if self.widen is not None:
            self.widen.run(x_at, memory + self.at_x)
            x_at = memory + self.at_x
        sums_at = address_of(out) if self.finish is None else memory + self.at_sums
        self.sums.run(x_at, address_of(grad_output), sums_at, memory + self.at_scratch)
        if self.finish is not None:
            self.finish.run(sums_at, address_of(out))


@lru_cache(maxsize=1024)
def prepare(original: Convolution, dtype: np.dtype, tasks: int) -> Run:
    """Whatever does not depend on the arrays."""
    conv = merge(original)
    blocks = cut(conv, dtype.itemsize)
    widen, wide_size = widening(original, conv, dtype)
    depth, height, width = conv.input
    out_row = conv.groups * conv.group_out
    pixel = original.groups * original.group_in
    cells = conv.group_in * conv.taps
    group = blocks.sums_height * blocks.sums_width
    steps = {
        "segments": blocks.segments,
        "segment_step": conv.groups * group,
        "group_step": conv.group_out if blocks.in_place else group,
        "sums_width": out_row if blocks.in_place else blocks.sums_width,
    }
    sums = Prepared(
        kernels.weight_sums,
        dtype,
        tasks,
        "x grad_output sums scratch",
        scratch_bytes=blocks.scratch_bytes,
        x_n=depth * height * width * pixel,
        x_z=height * width * pixel,
        x_y=width * pixel,
        x_x=pixel,
        **conv.sizes,
        **steps,
        chunks=blocks.chunks,
        chunk_pixels=blocks.chunk_pixels,
        at_panels=blocks.at_panels,
        at_zeros=blocks.at_zeros,
        at_a=blocks.at_a,
        at_seen=blocks.at_seen,
    )
    finish, sums_size = None, 0
    if not blocks.in_place:
        sums_size = blocks.segments * conv.groups * group
        finish = Prepared(
            kernels.finish_weight,
            dtype,
            task_count(sums_size, conv.groups * cells),
            "sums grad_weight",
            **steps,
            groups=conv.groups,
            group_out=conv.group_out,
            rows=cells,
            out_row=out_row,
        )
    *at, end = places(
        [size * dtype.itemsize for size in (wide_size, sums_size)] + [tasks * blocks.scratch_bytes]
    )
    return Run(widen, sums, finish, end, *at)


def tasks_of(conv: Convolution, itemsize: int) -> int:
    """Tasks that the work is worth."""
    conv = merge(conv)
    panels = -(-conv.group_in * conv.taps // ROWS)
    return task_count(conv.flops // 2, cut(conv, itemsize).segments * conv.groups * panels)


def bind(conv: Convolution, dtype: np.dtype) -> BoundGradient:
    """The weight gradient, for this number of threads."""
    return prepare(conv, dtype, tasks_of(conv, dtype.itemsize)).run


def workspace_bytes(conv: Convolution, dtype: np.dtype) -> int:
    """Scratch memory of all tasks, and the sums."""
    return prepare(conv, dtype, tasks_of(conv, dtype.itemsize)).scratch_bytes
