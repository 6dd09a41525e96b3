"""Graphs of blocks: each task puts its region of x together, and calls a function of NumPy arrays on it.

`dask.array.overlap` gives every chunk a halo of one depth, and so wants chunks of more than that depth, and
chunks that the stride divides. Here each block names the pieces that it needs. A piece that is less than half
of its chunk is cut out by a task of its own, so that a cluster sends, and a machine keeps, the halo and not
the neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from fastconv.dask.axes import Chunks, Piece
from fastconv.dask.shares import with_share

#: How many arrays a task of a sum adds up.
BRANCHES = 8

Index = tuple[int, ...]
Cells = tuple[range | tuple[int, ...], ...]


def take(array: np.ndarray, cells: Cells) -> np.ndarray:
    """The cells of these numbers along each axis; a view where they follow each other."""
    for axis, numbers in enumerate(cells):
        if isinstance(numbers, tuple):
            array = array.take(numbers, axis)
        elif len(numbers) != array.shape[axis]:
            array = array[(slice(None),) * axis + (slice(numbers.start, numbers.stop),)]
    return array


def cut_out(array: np.ndarray, cells: Cells) -> np.ndarray:
    """The same as an array of its own, that does not hold the larger one."""
    return np.array(take(array, cells), order="C")


@dataclass(frozen=True)
class Region:
    """How a region is put together: each part's place in it, and its cells in what it is taken from."""

    shape: tuple[int, ...]
    dtype: np.dtype
    places: list[tuple[slice, ...]]
    cells: list[Cells | None]

    def __call__(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        if len(parts) == 1 and parts[0].shape == self.shape and self.cells[0] is None:
            return parts[0]
        region = np.empty(self.shape, self.dtype)
        for part, place, cells in zip(parts, self.places, self.cells, strict=True):
            region[place] = part if cells is None else take(part, cells)
        return region


@dataclass
class Source:
    """A dask array of which regions are taken: along each axis, for each block, the pieces that it needs."""

    array: da.Array
    pieces: list[list[list[Piece]]]
    #: the tasks that cut pieces out
    tasks: dict[Any, Any] = field(default_factory=dict)

    def at(self, index: Index, name: str) -> tuple[list[Any], Region]:
        """The keys of what a block's region is made of, and how."""
        array = self.array
        along = [axis[number] for axis, number in zip(self.pieces, index, strict=True)]
        starts = []
        for axis in along:
            ends = [0]
            for piece in axis:
                ends.append(ends[-1] + len(piece.cells))
            starts.append(ends)
        shape = tuple(ends[-1] for ends in starts)
        region = Region(shape, array.dtype, [], [])
        keys = []
        for numbers in product(*(range(len(axis)) for axis in along)):
            chosen = [axis[number] for axis, number in zip(along, numbers, strict=True)]
            block = tuple(piece.chunk for piece in chosen)
            cells: Cells | None = tuple(piece.cells for piece in chosen)
            sizes = [chunks[number] for chunks, number in zip(array.chunks, block, strict=True)]
            key: Any = (array.name, *block)
            if cells == tuple(range(size) for size in sizes):
                cells = None
            elif 2 * prod(map(len, cells or ())) < prod(sizes):
                whole, key = key, (name, *block, *(_label(part) for part in cells or ()))
                self.tasks[key] = (_Cut(cells or ()), whole)
                cells = None
            keys.append(key)
            region.cells.append(cells)
            region.places.append(
                tuple(
                    slice(ends[number], ends[number + 1])
                    for ends, number in zip(starts, numbers, strict=True)
                )
            )
        return keys, region


def whole_chunks(array: da.Array) -> Source:
    """Each chunk by itself."""
    return Source(
        array,
        [[[Piece(number, range(size))] for number, size in enumerate(chunks)] for chunks in array.chunks],
    )


def _label(cells: range | tuple[int, ...]) -> str:
    """Part of a key."""
    return f"{cells.start}:{cells.stop}" if isinstance(cells, range) else ",".join(map(str, cells))


@dataclass(frozen=True)
class _Cut:
    cells: Cells

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return cut_out(array, self.cells)


@dataclass(frozen=True)
class Call:
    """A task: regions are put together and go first into a function, then the other arrays."""

    function: Callable[..., Any]
    regions: tuple[Region, ...]
    options: Mapping[str, Any]

    def __call__(self, parts: Sequence[Sequence[np.ndarray]], *others: np.ndarray) -> Any:
        arrays = [region(some) for region, some in zip(self.regions, parts, strict=True)]
        return with_share(self.function, *arrays, *others, **self.options)


def indices(chunks: Sequence[Chunks]) -> Iterator[Index]:
    """The numbers of all blocks, in order."""
    return product(*(range(len(axis)) for axis in chunks))


def calls(
    name: str,
    function: Callable[..., Any],
    sources: Sequence[Source],
    others: Sequence[da.Array],
    blocks: Sequence[Chunks],
    options: Callable[[Index], Mapping[str, Any]],
) -> tuple[str, dict[Any, Any], list[da.Array]]:
    """A task for each block: its name, the tasks, and the arrays that they depend on.

    `others` are arrays of one chunk, which every task gets whole. `options` gives the keywords for a block.
    """
    index_list = list(indices(blocks))
    keywords = [options(index) for index in index_list]
    inputs = [source.array for source in sources]
    pieces = [source.pieces for source in sources]
    arrays = [*inputs, *others]
    token = tokenize(name, function, [array.name for array in arrays], pieces, blocks, keywords)
    name, halo = f"{name}-{token}", f"{name}-halo-{token}"
    whole = [(other.name, *(0 for _ in other.chunks)) for other in others]
    layer: dict[Any, Any] = {}
    for index, keyword in zip(index_list, keywords, strict=True):
        found = [source.at(index, f"{halo}-{number}") for number, source in enumerate(sources)]
        call = Call(function, tuple(region for _, region in found), keyword)
        layer[(name, *index)] = (call, [keys for keys, _ in found], *whole)
    for source in sources:
        layer.update(source.tasks)
    return name, layer, arrays


def array_of(
    name: str, layer: dict[Any, Any], inputs: Sequence[da.Array], chunks: Sequence[Chunks], dtype: np.dtype
) -> da.Array:
    """The dask array with this name and these tasks."""
    graph = HighLevelGraph.from_collections(name, layer, dependencies=inputs)
    return da.Array(graph, name, tuple(chunks), meta=np.empty((0,) * len(chunks), dtype))


def sum_of(
    name: str,
    layer: dict[Any, Any],
    inputs: Sequence[da.Array],
    blocks: Sequence[Chunks],
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> da.Array:
    """The sum of what all blocks gave, as a tree: always the same branches, whoever is done first."""
    keys: list[Any] = [(name, *index) for index in indices(blocks)]
    level = 0
    while len(keys) > 1 or level == 0:
        level += 1
        groups = [keys[first : first + BRANCHES] for first in range(0, len(keys), BRANCHES)]
        last = (f"{name}-sum", *(0 for _ in shape))
        keys = [
            last if len(groups) == 1 else (f"{name}-level", level, number) for number in range(len(groups))
        ]
        for key, group in zip(keys, groups, strict=True):
            layer[key] = (add_up, group)
    return array_of(f"{name}-sum", layer, inputs, [(size,) for size in shape], dtype)


def add_up(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum in the order given."""
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total
