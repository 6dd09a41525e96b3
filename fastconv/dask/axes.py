"""Which cells of x belong to which windows, along one axis that is cut into chunks.

Everything here is Python ints, known before anything is computed. A block of windows needs the cells from the
first cell of its first window to the last of its last one, wherever the chunks of x end: its own chunk and a
halo of its neighbours, or of their neighbours where a kernel reaches beyond a chunk. What of that lies
beyond x is the block's own padding. So each block is an ordinary convolution or pooling of NumPy arrays, of
the very windows that the whole has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from fastconv.shapes import ConvShape, PoolShape, drop

Chunks = tuple[int, ...]


class Span(NamedTuple):
    """Cells from `start` to `stop`, and what is to be put before and after them."""

    start: int
    stop: int
    before: int = 0
    after: int = 0

    @property
    def size(self) -> int:
        return self.stop - self.start


class Piece(NamedTuple):
    """Some cells of one chunk: their numbers within it."""

    chunk: int
    cells: range | tuple[int, ...]


class Axis(NamedTuple):
    """A spatial axis of x, and the windows that slide along it."""

    cells: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    windows: int
    #: what continues x beyond its ends
    mode: str = "zeros"

    @property
    def reach(self) -> int:
        """Cells from the first of a window to its last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def overhangs(self) -> bool:
        """Whether the last window ends behind the padding, as one in ceil mode may."""
        return (self.windows - 1) * self.stride + self.reach > self.before + self.cells + self.after

    def span(self, first: int, last: int) -> Span:
        """The cells under the windows from `first` to `last` - 1.

        >>> Axis(10, 3, 1, 1, 1, 1, 10).span(0, 4), Axis(10, 3, 1, 1, 1, 1, 10).span(4, 10)
        (Span(start=0, stop=5, before=1, after=0), Span(start=3, stop=10, before=0, after=1))
        """
        begin = first * self.stride - self.before
        end = (last - 1) * self.stride - self.before + self.reach
        if self.mode != "zeros":
            return Span(begin, end)
        start = min(max(begin, 0), self.cells)
        stop = min(max(end, start), self.cells)
        before = min(max(-begin, 0), end - begin)
        after = end - begin - before - (stop - start)
        # what a window in ceil mode has beyond the padding is neither a cell nor padding
        return Span(start, stop, before, min(after, self.after))

    def touching(self, start: int, stop: int) -> tuple[int, int]:
        """The windows that reach a cell from `start` to `stop` - 1: the first, and the one behind the last.

        >>> Axis(10, 3, 1, 1, 1, 1, 10).touching(0, 5)
        (0, 6)
        """
        first = max(0, -((self.reach - 1 - start - self.before) // self.stride))
        last = min(self.windows, (stop - 1 + self.before) // self.stride + 1)
        if last - first == 1 and last == self.windows and self.overhangs:
            first -= 1  # by itself it would be a window that does not fit
        return first, max(first, last)

    @property
    def _middle(self) -> int:
        """The cell in the middle of the first window; its own cell where there is a window for each."""
        if self.stride == 1 and self.windows == self.cells:
            return 0
        return self.dilation * (self.kernel - 1) // 2 - self.before

    def output_chunks(self, chunks: Chunks) -> Chunks:
        """How many windows have their middle in each chunk of x, for those that have some.

        >>> Axis(10, 2, 2, 1, 0, 0, 5).output_chunks((5, 5))
        (3, 2)
        """
        bounds = [-((self._middle - cell) // self.stride) for cell in accumulate(chunks[:-1])]
        found = _between(bounds, self.windows)
        if self.overhangs and found[-1] == 1:
            found = (*found[:-2], found[-2] + 1)
        return found

    def input_chunks(self, chunks: Chunks) -> Chunks:
        """The other way: how many cells lie in the middle of each chunk of windows."""
        return _between(
            [window * self.stride + self._middle for window in accumulate(chunks[:-1])], self.cells
        )

    def pieces(self, chunks: Chunks, span: Span) -> list[Piece]:
        """Where to find the cells of a span in x with these chunks.

        >>> Axis(10, 3, 1, 1, 1, 1, 10).pieces((5, 5), Span(3, 10))
        [Piece(chunk=0, cells=range(3, 5)), Piece(chunk=1, cells=range(0, 5))]
        """
        inner = pieces(chunks, max(span.start, 0), min(span.stop, self.cells))
        if self.mode == "zeros":
            return inner
        starts = (0, *accumulate(chunks))
        border = [
            [self._repeated(cell) for cell in range(*ends)]
            for ends in ((span.start, min(span.stop, 0)), (max(span.start, self.cells), span.stop))
        ]
        left, right = (
            [
                Piece(chunk, tuple(cell - starts[chunk] for cell in cells))
                for chunk, cells in groupby(part, lambda cell: _chunk_of(starts, cell))
            ]
            for part in border
        )
        return [*left, *inner, *right]

    def _repeated(self, cell: int) -> int:
        """The cell of x that a cell beyond its ends repeats."""
        if self.mode == "circular":
            return cell % self.cells
        if self.mode == "replicate":
            return min(max(cell, 0), self.cells - 1)
        return -cell if cell < 0 else 2 * (self.cells - 1) - cell


def pieces(chunks: Chunks, start: int, stop: int) -> list[Piece]:
    """The parts of chunks that lie between two cells."""
    found = []
    for number, (first, last) in enumerate(pairwise((0, *accumulate(chunks)))):
        begin, end = max(start, first), min(stop, last)
        if begin < end:
            found.append(Piece(number, range(begin - first, end - first)))
    return found


def spans(chunks: Chunks) -> list[Span]:
    """Each chunk's cells."""
    return [Span(first, last) for first, last in pairwise((0, *accumulate(chunks)))]


def axes_of(shape: ConvShape | PoolShape, mode: str = "zeros") -> list[Axis]:
    """The spatial axes of a convolution or pooling, as many as its rank."""
    fields = (
        shape.input,
        shape.kernel,
        shape.stride,
        shape.dilation,
        shape.pad_before,
        shape.pad_after,
        shape.output,
    )
    along = zip(*(drop(field, shape.rank) for field in fields), strict=True)
    return [Axis(*facts)._replace(mode=mode) for facts in along]


def _chunk_of(starts: Sequence[int], cell: int) -> int:
    return max(number for number, start in enumerate(starts) if start <= cell)


def _between(bounds: Sequence[int], size: int) -> Chunks:
    """Sizes of what lies between bounds, which may be beyond the ends; parts that are empty are left out."""
    inside = [0, *(min(max(bound, 0), size) for bound in bounds), size]
    return tuple(last - first for first, last in pairwise(inside) if last > first) or (0,)
