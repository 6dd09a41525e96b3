"""The windows of a convolution or pooling in blocks: what each block reads, and how it is padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from fastconv.algorithms import Auto
from fastconv.dask.arrays import Axes
from fastconv.dask.axes import Axis, Chunks, Piece, Span, axes_of, pieces, spans
from fastconv.dask.blocks import Index, Source, indices
from fastconv.plan import find_algorithm, named_algorithm
from fastconv.shapes import ConvShape, PoolShape, lift

Ends = tuple[int, int]


class Windows(NamedTuple):
    """Blocks of windows: along each spatial axis, each block's first window and the one behind its last."""

    shape: ConvShape | PoolShape
    axes: Axes
    spatial: list[Axis]
    ends: list[list[Ends]]

    @classmethod
    def of_results(
        cls, shape: ConvShape | PoolShape, axes: Axes, chunks: Sequence[Chunks], mode: str = "zeros"
    ) -> Windows:
        """A block for each chunk of y; `chunks` along the spatial axes."""
        ends = [[(span.start, span.stop) for span in spans(axis)] for axis in chunks]
        return cls(shape, axes, axes_of(shape, mode), ends)

    @classmethod
    def of_cells(cls, shape: ConvShape | PoolShape, axes: Axes, chunks: Sequence[Chunks]) -> Windows:
        """A block for each chunk of x: all windows that reach into it."""
        spatial = axes_of(shape)
        ends = [
            [axis.touching(span.start, span.stop) for span in spans(cut)]
            for axis, cut in zip(spatial, chunks, strict=True)
        ]
        return cls(shape, axes, spatial, ends)

    def cells(self, x: da.Array) -> Source:
        """The cells of x under the windows."""
        found = [
            [axis.pieces(x.chunks[n], axis.span(*pair)) for pair in ends]
            for axis, n, ends in zip(self.spatial, self.axes.space, self.ends, strict=True)
        ]
        return self._pieces(x, found)

    def results(self, y: da.Array) -> Source:
        """The cells of an array like y, one per window."""
        found = [
            [pieces(y.chunks[n], *pair) for pair in ends]
            for n, ends in zip(self.axes.space, self.ends, strict=True)
        ]
        return self._pieces(y, found)

    def _pieces(self, array: da.Array, spatial: list[list[list[Piece]]]) -> Source:
        channels = [[Piece(0, range(array.shape[self.axes.channel]))]]
        batch = [[Piece(number, range(size))] for number, size in enumerate(array.chunks[0])]
        return Source(array, self.axes.arranged(batch, channels, spatial))

    def of_block(self, index: Index) -> list[Ends]:
        """The windows of a block of an array like x or y, by its number along each axis of that."""
        return [ends[index[n]] for ends, n in zip(self.ends, self.axes.space, strict=True)]

    def span(self, index: Index) -> list[Span]:
        """The cells of x under a block."""
        return [axis.span(*ends) for axis, ends in zip(self.spatial, self.of_block(index), strict=True)]

    def options(self, index: Index) -> dict[str, Any]:
        """The arguments that say how the windows of a block slide over those cells."""
        return {
            "stride": tuple(axis.stride for axis in self.spatial),
            "padding": tuple((span.before, span.after) for span in self.span(index)),
            "dilation": tuple(axis.dilation for axis in self.spatial),
        }

    def geometry(self, index: Index) -> Any:
        """The shape of the block's own convolution or pooling, with the batch of the whole."""
        span = self.span(index)
        return self.shape._replace(
            input=lift([along.size for along in span]),
            pad_before=lift([along.before for along in span], fill=0),
            pad_after=lift([along.after for along in span], fill=0),
            output=lift([last - first for first, last in self.of_block(index)]),
        )


class Place(NamedTuple):
    """Where a chunk of x lies in what was computed: the cells to keep, and those around without a window."""

    start: int
    stop: int
    before: int
    after: int

    @property
    def size(self) -> int:
        """Cells of the chunk."""
        return self.before + self.stop - self.start + self.after


def places(windows: Windows, chunks: Sequence[Sequence[Span]], index: Index) -> list[Place]:
    """For a chunk of x, in the cells under the windows that reach into it; all chunks along each axis."""
    found = []
    for n, cut, covered in zip(windows.axes.space, chunks, windows.span(index), strict=True):
        chunk = cut[index[n]]
        first, last = max(chunk.start, covered.start), min(chunk.stop, covered.stop)
        found.append(
            Place(first - covered.start, last - covered.start, first - chunk.start, chunk.stop - last)
        )
    return found


def placed(array: np.ndarray, space: Sequence[int], where: Sequence[Place]) -> np.ndarray:
    """The chunk, of what was computed; where no window reaches it is zero."""
    keep, shape = [slice(None)] * array.ndim, list(array.shape)
    inside = list(keep)
    for axis, place in zip(space, where, strict=True):
        keep[axis] = slice(place.start, place.stop)
        shape[axis] = place.size
        inside[axis] = slice(place.before, shape[axis] - place.after)
    kept = array[tuple(keep)]
    if kept.shape == array.shape == tuple(shape):
        return array
    result = np.zeros(shape, array.dtype)
    result[tuple(inside)] = kept
    return result


def check_algorithm(
    function: str, algorithm: Any, windows: Windows, blocks: Sequence[Chunks], dtype: np.dtype, op: str
) -> None:
    """Refuse an algorithm that there is not, or that cannot do one of the blocks."""
    if isinstance(named_algorithm(function, algorithm), Auto):
        return
    for shape in {windows.geometry(index) for index in indices(blocks)}:
        if 0 not in shape.output:
            find_algorithm(function, algorithm, shape, dtype, op)
