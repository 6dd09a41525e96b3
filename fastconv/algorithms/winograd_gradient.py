"""The weight gradient by Winograd's minimal filtering; see `fastconv.kernels.winograd_gradient`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.weight_gradient import segment_count
from fastconv.algorithms.workspace import odd_lines, places, round_up, scratch
from fastconv.jit import address_of
from fastconv.kernels import winograd_gradient as kernels
from fastconv.kernels.microkernel import VECTORS, block_lanes
from fastconv.kernels.simd import LANES
from fastconv.kernels.winograd_gradient import CELLS, PIECE, POINTS, SPAN, TILE
from fastconv.shapes import ConvShape
from fastconv.threads import Prepared, task_count

#: Bytes of the sums of a unit, which stay in L2.
UNIT_BYTES = 256 << 10
#: With sums of no more bytes than these, of all units, tasks have segments of the tiles.
SEGMENT_BYTES = 640 << 10
#: Then bytes of inputs and gradients of a chunk, in L2 beside them; most segments, and bytes of their sums.
CHUNK_BYTES = 448 << 10
MOST_SEGMENTS = 16
SUMS_BYTES = 12 << 20
#: Otherwise bytes of inputs and gradients of a chunk, in L3.
SHARED_BYTES = 16 << 20


class Cut(NamedTuple):
    """How the work is cut, strides in bytes, and what of a task's scratch memory is where."""

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
    at_rows: int
    at_table: int
    at_inputs: int
    at_gradients: int
    at_sums: int
    at_turned: int
    scratch_bytes: int


def tiles_of(shape: ConvShape) -> tuple[int, int, int]:
    """Rows of tiles of all planes, rows of one plane, and tiles of a row."""
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
    all_rows, _, row_tiles = tiles_of(shape)
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
    segments = segment_count(chunks, min(MOST_SEGMENTS, SUMS_BYTES // (units * unit_bytes))) if segmented else 0
    chunk_pieces = -(-pieces // chunks)
    chunk_tiles = chunk_pieces * piece_tiles
    input_point = odd_lines(chunk_tiles * in_channels * itemsize)
    gradient_point = odd_lines(chunk_tiles * shape.groups * out_vectors * vector)
    plain = shape.layout != "NHWC"
    *at, end = places(
        [
            (1 if plain else max(shape.in_channels, shape.out_channels)) * itemsize + vector,
            (SPAN * (piece_tiles * TILE + SPAN - TILE) + lanes) * vector if plain else 0,
            piece_tiles * POINTS * 8,
            POINTS * input_point if segmented else 0,
            POINTS * gradient_point if segmented else 0,
            0 if segmented or chunks > 1 else unit_bytes,
            (block_in * CELLS + lanes) * vector if plain else 0,
        ]
    )
    return Cut._make(
        (
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
    """The kernels, ready to be run."""

    #: the first and last pieces of each chunk that all tasks share; none where they have segments
    chunks: tuple[tuple[int, int], ...]
    first: Prepared
    second: Prepared
    #: bytes of the workspace, and where in it things begin
    scratch_bytes: int
    at_inputs: int
    at_gradients: int
    at_sums: int
    at_scratch: int

    def run(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        memory = scratch(self.scratch_bytes)
        addresses = (
            address_of(x),
            address_of(grad_output),
            address_of(out),
            memory + self.at_inputs,
            memory + self.at_gradients,
            memory + self.at_sums if self.at_sums < self.at_scratch else 0,
            memory + self.at_scratch,
        )
        for chunk in self.chunks or ((0, 0),):
            self.first.run(*addresses, *chunk)
            self.second.run(*addresses, *chunk)


@lru_cache(maxsize=1024)
def prepare(shape: ConvShape, dtype: np.dtype, threads: int) -> Run:
    """Whatever does not depend on the arrays."""
    itemsize = dtype.itemsize
    blocks = cut(shape, itemsize)
    params = blocks._asdict()
    units, segments = params.pop("units"), blocks.segments
    all_rows, rows, row_tiles = tiles_of(shape)
    pieces = all_rows * blocks.row_pieces
    chunks = -(-pieces // blocks.chunk_pieces)
    params["segment_bytes"] = units * blocks.unit_bytes
    depth, height, width = shape.input
    out_depth, out_height, out_width = shape.output
    channels, outputs = shape.in_channels, shape.out_channels
    if shape.layout == "NHWC":
        params |= {
            "x_x": channels,
            "x_c": 1,
            "y_x": outputs,
            "y_k": 1,
            "w_tap": shape.group_in * outputs,
            "w_c": outputs,
            "w_k": 1,
        }
    else:
        params |= {
            "x_x": 1,
            "x_c": depth * height * width,
            "y_x": 1,
            "y_k": out_depth * out_height * out_width,
            "w_tap": 1,
            "w_c": CELLS,
            "w_k": shape.group_in * CELLS,
        }
    params |= {
        "x_n": depth * height * width * channels,
        "x_z": height * width * params["x_x"],
        "x_y": width * params["x_x"],
        "y_n": out_depth * out_height * out_width * outputs,
        "y_z": out_height * out_width * params["y_x"],
        "y_y": out_width * params["y_x"],
        "images": shape.batch,
        "groups": shape.groups,
        "group_in": shape.group_in,
        "group_out": shape.group_out,
        "depth": depth,
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "pad_y": shape.pad_before[1],
        "pad_x": shape.pad_before[2],
        "tiles_y": rows,
        "tiles_x": row_tiles,
    }
    work = shape.flops // 2
    vectors = (blocks.input_point + blocks.gradient_point) // (blocks.chunk_tiles * LANES[8 * itemsize] * itemsize)
    addresses = "x grad_output grad_weight inputs gradients sums scratch first_piece last_piece"
    if segments:
        tasks = task_count(work, segments), task_count(work, units)
        both = kernels.segment_sums, kernels.finish
    else:
        tasks = task_count(work, min(pieces, blocks.chunk_pieces) * max(1, vectors)), task_count(work, units)
        both = kernels.transform, kernels.products
    first, second = (
        Prepared(kernel, dtype, count, addresses, **params) for kernel, count in zip(both, tasks, strict=True)
    )
    shared = not segments
    sums = segments * units if segments else units if chunks > 1 else 0
    *at, end = places(
        [
            POINTS * blocks.input_point if shared else 0,
            POINTS * blocks.gradient_point if shared else 0,
            sums * blocks.unit_bytes,
            max(tasks) * blocks.scratch_bytes,
        ]
    )
    size = blocks.chunk_pieces
    shares = tuple((i, min(i + size, pieces)) for i in range(0, pieces, size)) if shared else ()
    return Run(shares, first, second, end, *at)
