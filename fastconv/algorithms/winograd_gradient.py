"""The weight gradient by Winograd's minimal filtering; see `fastconv.kernels.winograd_gradient`."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.weight_gradient import segment_count
from fastconv.algorithms.workspace import odd_lines, places, round_up, scratch
from fastconv.jit import address_of
from fastconv.kernels import winograd_gradient as kernels
from fastconv.kernels.microkernel import VECTORS, block_lanes
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_gradient import CELLS, PIECE, POINTS, SPAN, TILE
from fastconv.kernels.winograd_points import TAPS
from fastconv.shapes import ConvShape
from fastconv.threads import Prepared, task_count

#: Bytes of the sums of a unit, which stay in L2.
UNIT_BYTES = 256 << 10
#: With sums of no more bytes than these, of all units, tasks have segments of the tiles.
SEGMENT_BYTES = 768 << 10
#: Then bytes of inputs and gradients of a chunk, in L2 beside them; most segments, and bytes of their sums.
CHUNK_BYTES = 1536 << 10
MOST_SEGMENTS = 16
SUMS_BYTES = 12 << 20
#: Otherwise bytes of inputs and gradients of a chunk, in L3; and of the sums that wait for the next chunk:
#: where they would be more, some of the units are done with all chunks, and then the others.
SHARED_BYTES = 16 << 20
WAITING_BYTES = 40 << 20
#: What a kernel is told when it runs.
ADDRESSES = (
    "x grad_output grad_weight inputs gradients sums scratch first_piece last_piece first_unit last_unit"
)


class Cut(NamedTuple):
    """How the work is cut, strides in bytes, and what of a task's scratch memory is where."""

    chunks: int
    #: of both inputs and gradients of a tile
    vectors: int
    row_pieces: int
    chunk_pieces: int
    chunk_tiles: int
    #: 0 where all tasks share one chunk after the other
    segments: int
    units: int
    block_in: int
    input_point: int
    gradient_point: int
    sum_point: int
    unit_bytes: int
    at_zeros: int
    at_table: int
    at_turned: int
    at_inputs: int
    at_gradients: int
    at_sums: int
    scratch_bytes: int

    @property
    def shared_bytes(self) -> int:
        """Of inputs and gradients of a chunk."""
        return POINTS * (self.input_point + self.gradient_point)


def grid(shape: ConvShape) -> tuple[int, int, int]:
    """Rows of tiles of all planes, rows of tiles of one, and tiles of a row."""
    _, height, width = shape.output
    rows = -(-height // TILE)
    return shape.batch * shape.output[0] * rows, rows, -(-width // TILE)


@lru_cache(maxsize=1024)
def cut(shape: ConvShape, itemsize: int) -> Cut:
    """Sizes of the blocks; they do not depend on the number of tasks."""
    lanes = LANES[8 * itemsize]
    vector = lanes * itemsize
    block = block_lanes(lanes)
    in_channels = shape.groups * round_up(shape.group_in, block)
    out_vectors = -(-shape.group_out // lanes)
    out_panels = -(-out_vectors // VECTORS)
    columns = -(-out_vectors // out_panels) * vector
    all_rows, _, row_tiles = grid(shape)
    row_pieces = -(-row_tiles // PIECE)
    piece_tiles = -(-row_tiles // row_pieces)
    pieces = all_rows * row_pieces

    most_in = max(block, UNIT_BYTES // (POINTS * columns) // block * block)
    in_blocks = -(-shape.group_in // most_in)
    block_in = round_up(-(-shape.group_in // in_blocks), block)
    in_blocks = -(-shape.group_in // block_in)
    sum_point = odd_lines(block_in * columns)
    unit_bytes = POINTS * sum_point
    units = shape.groups * in_blocks * out_panels

    tile_bytes = POINTS * (in_channels + shape.groups * out_vectors * lanes) * itemsize
    segmented = units * unit_bytes <= SEGMENT_BYTES and all_rows * row_tiles * tile_bytes > 2 * CHUNK_BYTES
    most = CHUNK_BYTES if segmented else SHARED_BYTES
    chunks = -(-pieces // max(1, most // (piece_tiles * tile_bytes)))
    segments = (
        segment_count(chunks, min(MOST_SEGMENTS, SUMS_BYTES // (units * unit_bytes))) if segmented else 0
    )
    chunk_pieces = -(-pieces // chunks)
    chunk_tiles = chunk_pieces * piece_tiles
    input_point = odd_lines(chunk_tiles * in_channels * itemsize)
    gradient_point = odd_lines(chunk_tiles * shape.groups * out_vectors * vector)
    turned = 0
    if shape.layout != "NHWC":
        seen = SPAN * (piece_tiles * TILE + TAPS - 1) + lanes
        turned = max(seen, block_in * CELLS + lanes) * vector
    at = places(
        [
            max(shape.in_channels, shape.out_channels) * itemsize + vector,
            piece_tiles * POINTS * 8,
            turned,
            POINTS * input_point if segmented else 0,
            POINTS * gradient_point if segmented else 0,
            0 if segmented or chunks > 1 else unit_bytes,
        ]
    )
    *at, end = at
    return Cut._make(
        (
            chunks,
            in_channels // lanes + shape.groups * out_vectors,
            row_pieces,
            chunk_pieces,
            chunk_tiles,
            segments,
            units,
            block_in,
            input_point,
            gradient_point,
            sum_point,
            unit_bytes,
            *at,
            odd_lines(end),
        )
    )


class Run(NamedTuple):
    """Both kernels, ready to be run."""

    #: the first and last piece, and the first and last unit, of what is done at once
    parts: tuple[tuple[int, int, int, int], ...]
    first: Prepared
    second: Prepared
    #: bytes of the workspace, and where in it things begin
    workspace_bytes: int
    at_inputs: int
    at_gradients: int
    at_sums: int
    at_scratch: int

    def run(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        """out = d sum(grad_output * conv(x, weight)) / dweight."""
        memory = scratch(self.workspace_bytes)
        addresses = (
            address_of(x),
            address_of(grad_output),
            address_of(out),
            memory + self.at_inputs,
            memory + self.at_gradients,
            memory + self.at_sums if self.at_sums < self.at_scratch else 0,
            memory + self.at_scratch,
        )
        for part in self.parts:
            self.first.run(*addresses, *part)
            self.second.run(*addresses, *part)


def _strides(shape: ConvShape) -> dict[str, int]:
    """The fields of a record that say where the cells of the arrays are."""
    _, height, width = shape.input
    _, out_height, out_width = shape.output
    last = shape.layout == "NHWC"
    x_x, y_x = (shape.in_channels, shape.out_channels) if last else (1, 1)
    return {
        "channels_last": int(last),
        "x_n": shape.in_channels * prod(shape.input),
        "x_z": height * width * x_x,
        "x_y": width * x_x,
        "x_x": x_x,
        "x_c": 1 if last else prod(shape.input),
        "y_n": shape.out_channels * shape.pixels,
        "y_z": out_height * out_width * y_x,
        "y_y": out_width * y_x,
        "y_x": y_x,
        "y_k": 1 if last else shape.pixels,
        "w_tap": shape.group_in * shape.out_channels if last else 1,
        "w_c": shape.out_channels if last else CELLS,
        "w_k": 1 if last else shape.group_in * CELLS,
    }


@lru_cache(maxsize=1024)
def prepare(shape: ConvShape, dtype: np.dtype, threads: int) -> Run:
    """Whatever does not depend on the arrays, for `threads` threads."""
    blocks = cut(shape, dtype.itemsize)
    params = blocks._asdict()
    units, segments, chunks = (params.pop(name) for name in ("units", "segments", "chunks"))
    vectors = params.pop("vectors")
    depth, height, width = shape.input
    _, out_height, out_width = shape.output
    rows, tiles_y, tiles_x = grid(shape)
    pieces = rows * blocks.row_pieces
    if segments:
        both = (kernels.segment_sums, segments), (kernels.finish, units)
        waiting, parts = segments * units, [(0, pieces, 0, units)]
    else:
        both = (kernels.transform, blocks.chunk_pieces * vectors), (kernels.products, units)
        passes = -(-units * blocks.unit_bytes // WAITING_BYTES) if chunks > 1 else 1
        some = -(-units // passes)
        waiting = some if chunks > 1 else 0
        parts = [
            (piece, min(piece + blocks.chunk_pieces, pieces), unit, min(unit + some, units))
            for unit in range(0, units, some)
            for piece in range(0, pieces, blocks.chunk_pieces)
        ]
    first, second = (
        Prepared(
            kernel,
            dtype,
            task_count(shape.flops // 2, min(threads, most)),
            ADDRESSES,
            **params,
            **_strides(shape),
            images=shape.batch,
            groups=shape.groups,
            group_in=shape.group_in,
            group_out=shape.group_out,
            depth=depth,
            height=height,
            width=width,
            out_height=out_height,
            out_width=out_width,
            pad_y=shape.pad_before[1],
            pad_x=shape.pad_before[2],
            tiles_y=tiles_y,
            tiles_x=tiles_x,
            segments=segments,
            segment_bytes=units * blocks.unit_bytes,
        )
        for kernel, most in both
    )
    *at, end = places(
        [
            0 if segments else POINTS * blocks.input_point,
            0 if segments else POINTS * blocks.gradient_point,
            waiting * blocks.unit_bytes,
            max(first.tasks, second.tasks) * blocks.scratch_bytes,
        ]
    )
    return Run(tuple(parts), first, second, end, *at)


def details(shape: ConvShape, itemsize: int) -> dict[str, object]:
    """What a reader of the plan may want to know."""
    blocks = cut(shape, itemsize)
    return {
        "tile": f"F({TAPS} x {TAPS}, {TILE} x {TILE}): {POINTS} products for {CELLS} x {TILE**2}",
        "block": f"{blocks.chunk_tiles} tiles x {blocks.block_in} input channels x "
        f"{VECTORS} vectors of output channels",
        "tasks": f"of {blocks.segments} segments" if blocks.segments else f"share {blocks.chunks} chunks",
    }
