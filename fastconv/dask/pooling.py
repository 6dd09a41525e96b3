"""The graphs of pooling and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from operator import itemgetter
from typing import Any

import dask.array as da
import numpy as np

from fastconv import functional
from fastconv.arguments import canonical, check_layout, check_size, shape_argument
from fastconv.dask.arrays import (
    Axes,
    axes_of_array,
    check_index_dtype,
    chunked,
    data_array,
    native,
    real_dtype,
)
from fastconv.dask.axes import axes_of, spans
from fastconv.dask.blocks import Index, array_of, calls, whole_chunks
from fastconv.dask.windows import Place, Windows, placed, places
from fastconv.functional import windows as pools
from fastconv.functional.arrays import check_shape
from fastconv.shapes import PoolShape, array_shape, drop, join_shape

Facts = tuple[Any, ...]


# --- forward ------------------------------------------------------------------------------------


def max_forward(
    function: str, rank: int, x: da.Array, facts: Facts, return_indices: bool, algorithm: str
) -> Any:
    """Max pooling; `facts` are the arguments as `functional.windows.geometry` takes them."""
    x, windows, chunks, dtype = _prepared(function, rank, x, facts, algorithm)
    shape, axes = windows.shape, windows.axes
    keywords = {"function": function, "space": axes.space, "plane": drop(shape.input, rank)}

    def options(index: Index) -> Mapping[str, Any]:
        if not return_indices:
            return _options(windows, index, algorithm)
        origin = tuple(span.start for span in windows.span(index))
        return {"origin": origin, **keywords, **_options(windows, index, algorithm)}

    task: Callable[..., Any] = max_with_indices if return_indices else getattr(functional, function)
    name, layer, inputs = calls(f"fastconv-{function}", task, [windows.cells(x)], [], chunks, options)
    if not return_indices:
        return array_of(name, layer, inputs, chunks, dtype)
    both = [key for key in layer if key[0] == name]
    results = []
    for number, (part, kind) in enumerate((("y", dtype), ("indices", np.dtype(np.int64)))):
        own = {(f"{name}-{part}", *key[1:]): (itemgetter(number), key) for key in both}
        results.append(array_of(f"{name}-{part}", {**layer, **own}, inputs, chunks, kind))
    return tuple(results)


def avg_forward(
    function: str,
    rank: int,
    x: da.Array,
    facts: Facts,
    count_include_pad: bool,
    divisor_override: int | None,
    algorithm: str,
) -> da.Array:
    """Average pooling."""
    same = _divisor(function, count_include_pad, divisor_override)
    x, windows, chunks, dtype = _prepared(function, rank, x, facts, algorithm)

    def options(index: Index) -> Mapping[str, Any]:
        return {**_options(windows, index, algorithm), **same}

    task = getattr(functional, function)
    name, layer, inputs = calls(f"fastconv-{function}", task, [windows.cells(x)], [], chunks, options)
    return array_of(name, layer, inputs, chunks, dtype)


def _prepared(
    function: str, rank: int, x: da.Array, facts: Facts, algorithm: str
) -> tuple[da.Array, Windows, list[Any], np.dtype]:
    """The checks; x as it is read, the windows of each block of y, and the chunks of y."""
    x = data_array(function, "x", x)
    dtype = real_dtype(function, x=x)
    shape = pools.geometry(function, rank, x.shape, *facts)
    pools.find_algorithm(function, algorithm)
    axes = axes_of_array(function, "x", x.shape, rank, shape.layout)
    x = chunked(native(x, dtype), axes)
    spatial = [axis.output_chunks(x.chunks[n]) for axis, n in zip(axes_of(shape), axes.space, strict=True)]
    chunks = axes.arranged(x.chunks[0], (shape.channels,), spatial)
    return x, Windows.of_results(shape, axes, spatial), chunks, dtype


def _options(windows: Windows, index: Index, algorithm: str) -> dict[str, Any]:
    """Keywords for the pooling of a block: in ceil mode, which a block of whole windows does not change."""
    return {
        "kernel_size": tuple(axis.kernel for axis in windows.spatial),
        "ceil_mode": True,
        "layout": windows.axes.layout,
        "algorithm": algorithm,
        **windows.options(index),
    }


def _divisor(function: str, count_include_pad: bool, divisor_override: Any) -> dict[str, Any]:
    if divisor_override is not None:
        pools.positive(function, "divisor_override", divisor_override)
    return {"count_include_pad": bool(count_include_pad), "divisor_override": divisor_override}


def max_with_indices(
    x: np.ndarray,
    *,
    function: str,
    space: tuple[int, ...],
    plane: tuple[int, ...],
    origin: tuple[int, ...],
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Max pooling of a region that begins at `origin`; the indices are those of the whole plane."""
    y, indices = getattr(functional, function)(x, return_indices=True, **options)
    return y, moved(indices, tuple(x.shape[axis] for axis in space), plane, origin)


def moved(
    indices: np.ndarray, plane: tuple[int, ...], other: tuple[int, ...], origin: Sequence[int]
) -> np.ndarray:
    """Positions in a plane as positions in another one, in which the cell 0 of the first is `origin`."""
    result, factor, rest = np.zeros_like(indices), prod(other), indices
    cells = prod(plane)
    for size, length, first in zip(plane, other, origin, strict=True):
        cells, factor = cells // max(1, size), factor // max(1, length)
        result += (rest // cells + first) * factor
        rest = rest % cells
    return result


# --- gradients ----------------------------------------------------------------------------------


def avg_backward(
    function: str,
    rank: int,
    grad_output: da.Array,
    input_shape: Sequence[int],
    facts: Facts,
    count_include_pad: bool,
    divisor_override: int | None,
    algorithm: str,
) -> da.Array:
    """The gradient of average pooling."""
    grad_output = data_array(function, "grad_output", grad_output)
    dtype = real_dtype(function, grad_output=grad_output)
    x_shape = shape_argument(function, "input_shape", input_shape)
    shape = pools.geometry(function, rank, x_shape, *facts)
    check_shape(function, "grad_output", grad_output, pools.y_shape(shape, len(x_shape)))
    divisor = _divisor(function, count_include_pad, divisor_override)
    pools.find_algorithm(function, algorithm)
    axes = axes_of_array(function, "input_shape", x_shape, rank, shape.layout)
    grad_output = chunked(native(grad_output, dtype), axes)

    def options(windows: Windows, index: Index) -> dict[str, Any]:
        return {**_options(windows, index, algorithm), **divisor}

    return _backward(function, avg_backward_of, shape, axes, [grad_output], options, dtype)


def max_backward(
    function: str,
    rank: int,
    grad_output: da.Array,
    indices: da.Array,
    input_shape: Sequence[int],
    facts: Facts,
) -> da.Array:
    """The gradient of max pooling; without a kernel size in `facts`, windows as large as the plane."""
    kernel_size, stride, padding, dilation, ceil_mode, layout = facts
    check_layout(function, layout)
    grad_output = data_array(function, "grad_output", grad_output)
    dtype = real_dtype(function, grad_output=grad_output)
    x_shape = shape_argument(function, "input_shape", input_shape)
    check_size(function, "the result", x_shape)
    x = array_shape(function, "input_shape", x_shape, rank, layout)
    y = array_shape(function, "grad_output", grad_output.shape, rank, layout)
    if (x.batched, x.batch, x.channels) != (y.batched, y.batch, y.channels):
        raise ValueError(
            f"{function}: grad_output and input_shape must agree in batch and channels, got "
            f"grad_output.shape = {grad_output.shape}, input_shape = {x_shape}"
        )
    indices = data_array(function, "indices", indices)
    check_index_dtype(function, "indices", indices)
    check_shape(function, "indices", indices, grad_output.shape)
    axes = Axes(x.batched, rank, layout)
    grad_output = chunked(native(grad_output, dtype), axes)
    if kernel_size is None:
        if canonical((stride, padding, dilation)) != (None, 0, 1) or ceil_mode:
            raise ValueError(f"{function}: stride, padding, dilation and ceil_mode need a kernel_size")
        grad_output = grad_output.rechunk(dict.fromkeys(axes.space, -1))
        indices = indices.rechunk(grad_output.chunks)
        return _scattered(function, grad_output, indices, x_shape, axes, dtype)
    shape = pools.geometry(function, rank, x_shape, *facts)
    check_shape(function, "grad_output", grad_output, pools.y_shape(shape, len(x_shape)))
    indices = indices.rechunk(grad_output.chunks)

    def options(windows: Windows, index: Index) -> dict[str, Any]:
        origin = tuple(span.start for span in windows.span(index))
        return {"origin": origin, "plane": x.spatial, "layout": layout}

    return _backward(function, max_backward_of, shape, axes, [grad_output, indices], options, dtype)


def _backward(
    function: str,
    task: Callable[..., np.ndarray],
    shape: PoolShape,
    axes: Axes,
    results: Sequence[da.Array],
    more: Callable[[Windows, Index], dict[str, Any]],
    dtype: np.dtype,
) -> da.Array:
    """A task for each chunk of x, with the cells of `results` whose windows reach into it."""
    grad_output = results[0]
    spatial = [
        axis.input_chunks(grad_output.chunks[n]) for axis, n in zip(axes_of(shape), axes.space, strict=True)
    ]
    windows, cut = Windows.of_cells(shape, axes, spatial), [spans(along) for along in spatial]
    chunks = axes.arranged(grad_output.chunks[0], (shape.channels,), spatial)

    def options(index: Index) -> Mapping[str, Any]:
        size = tuple(span.size for span in windows.span(index))
        where = places(windows, cut, index)
        return {"function": function, "axes": axes, "size": size, "where": where, **more(windows, index)}

    sources = [windows.results(array) for array in results]
    name, layer, inputs = calls(f"fastconv-{function}", task, sources, [], chunks, options)
    return array_of(name, layer, inputs, chunks, dtype)


def _region_shape(array: np.ndarray, axes: Axes, size: Sequence[int]) -> tuple[int, ...]:
    """The shape of an array like x with these sizes along space, and the batch and channels of `array`."""
    batch = len(array) if axes.batched else 1
    return join_shape(axes.layout, axes.batched, batch, array.shape[axes.channel], size)


def avg_backward_of(
    grad_output: np.ndarray,
    *,
    function: str,
    axes: Axes,
    size: tuple[int, ...],
    where: Sequence[Place],
    **options: Any,
) -> np.ndarray:
    """The gradient of a chunk of x, from that of all cells under the windows that reach into it."""
    if any(grad_output.shape[axis] == 0 for axis in axes.space):
        return np.zeros(_region_shape(grad_output, axes, [place.size for place in where]), grad_output.dtype)
    shape = _region_shape(grad_output, axes, size)
    return placed(getattr(functional, function)(grad_output, shape, **options), axes.space, where)


def max_backward_of(
    grad_output: np.ndarray,
    indices: np.ndarray,
    *,
    function: str,
    axes: Axes,
    size: tuple[int, ...],
    where: Sequence[Place],
    origin: tuple[int, ...],
    plane: tuple[int, ...],
    layout: str,
) -> np.ndarray:
    """The same, where `indices` are positions in the whole plane."""
    if any(grad_output.shape[axis] == 0 for axis in axes.space):
        return np.zeros(_region_shape(grad_output, axes, [place.size for place in where]), grad_output.dtype)
    _check_within(function, indices, plane, origin, size)
    local = moved(indices.astype(np.int64), plane, size, [-first for first in origin])
    shape = _region_shape(grad_output, axes, size)
    grad_x = getattr(functional, function)(grad_output, local, shape, layout=layout)
    return placed(grad_x, axes.space, where)


def _check_within(
    function: str, indices: np.ndarray, plane: tuple[int, ...], origin: Sequence[int], size: Sequence[int]
) -> None:
    """Refuse positions that are not under the windows: `moved` would make others of them."""
    rest, cells = indices, prod(plane)
    inside = np.asarray((indices >= 0) & (indices < cells))
    for length, first, count in zip(plane, origin, size, strict=True):
        cells //= max(1, length)
        along = rest // cells
        inside &= (along >= first) & (along < first + count)
        rest = rest % cells
    if not inside.all():
        raise ValueError(
            f"{function}: indices must be positions under their windows in a plane of {plane}, "
            f"got {indices[~inside].ravel()[0]}"
        )


def _scattered(
    function: str,
    grad_output: da.Array,
    indices: da.Array,
    x_shape: tuple[int, ...],
    axes: Axes,
    dtype: np.dtype,
) -> da.Array:
    """The gradient of max pooling, whole planes at a time."""
    size = tuple(x_shape[axis] for axis in axes.space)
    spatial = [(cells,) for cells in size]
    chunks = axes.arranged(grad_output.chunks[0], (x_shape[axes.channel],), spatial)
    keywords = {"function": function, "axes": axes, "size": size}
    sources = [whole_chunks(grad_output), whole_chunks(indices)]
    name, layer, inputs = calls(f"fastconv-{function}", scattered_of, sources, [], chunks, lambda _: keywords)
    return array_of(name, layer, inputs, chunks, dtype)


def scattered_of(
    grad_output: np.ndarray, indices: np.ndarray, *, function: str, axes: Axes, size: tuple[int, ...]
) -> np.ndarray:
    """The gradient of whole planes of x."""
    shape = _region_shape(grad_output, axes, size)
    backward: Callable[..., np.ndarray] = getattr(functional, function)
    return backward(grad_output, indices, shape, layout=axes.layout)
