"""The graphs of a convolution's gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from fastconv import functional
from fastconv.algorithms.bias_gradient import bias_gradient
from fastconv.dask.arrays import Axes
from fastconv.dask.axes import Chunks, spans
from fastconv.dask.blocks import Index, array_of, calls, sum_of, whole_chunks
from fastconv.dask.windows import Place, Windows, check_algorithm, placed, places
from fastconv.functional.padding import Border
from fastconv.shapes import ConvShape, drop, join_shape, lift


class Convolution(NamedTuple):
    """A convolution whose arguments are checked, and what its gradients have in common."""

    function: str
    rank: int
    shape: ConvShape
    axes: Axes
    mode: str
    algorithm: str
    dtype: np.dtype

    def weight_grad(self, grad_output: da.Array, x: da.Array, weight_shape: tuple[int, ...]) -> da.Array:
        """A sum over the chunks of `grad_output`: each with the cells of x under its windows."""
        axes, shape = self.axes, self.shape
        windows = Windows.of_results(shape, axes, [grad_output.chunks[n] for n in axes.space], self.mode)
        blocks = grad_output.chunks
        check_algorithm(self.function, self.algorithm, windows, blocks, self.dtype, "weight_grad")
        same = {"weight_shape": weight_shape, **self._same}

        def options(index: Index) -> Mapping[str, Any]:
            return {**windows.options(index), **same}

        sources = [windows.results(grad_output), windows.cells(x)]
        plain = getattr(functional, f"conv{self.rank}d_weight_grad")
        name, layer, inputs = calls(f"fastconv-{self.function}-weight", plain, sources, [], blocks, options)
        return sum_of(name, layer, inputs, blocks, weight_shape, self.dtype)

    def bias_grad(self, grad_output: da.Array) -> da.Array:
        """A sum over the chunks of `grad_output`."""
        axes, blocks = self.axes, grad_output.chunks
        same = {"rank": self.rank, "layout": axes.layout}
        name, layer, inputs = calls(
            f"fastconv-{self.function}-bias",
            bias_gradient_of,
            [whole_chunks(grad_output)],
            [],
            blocks,
            lambda index: same,
        )
        return sum_of(name, layer, inputs, blocks, (self.shape.out_channels,), self.dtype)

    def input_grad(
        self, grad_output: da.Array, weight: da.Array, border: Border, spatial: Sequence[Chunks]
    ) -> da.Array:
        """Chunk by chunk of x, from the cells of `grad_output` whose windows reach into it."""
        axes, shape = self.axes, self.shape
        if self.mode != "zeros":  # the gradient of x with its border
            none = (0, 0, 0)
            before, after = drop(shape.pad_before, self.rank), drop(shape.pad_after, self.rank)
            spatial = [_with_ends(*facts) for facts in zip(spatial, before, after, strict=True)]
            size = lift([sum(chunks) for chunks in spatial])
            shape = shape._replace(input=size, pad_before=none, pad_after=none)
        windows, cut = Windows.of_cells(shape, axes, spatial), [spans(along) for along in spatial]
        blocks = axes.arranged(grad_output.chunks[0], (shape.in_channels,), spatial)
        check_algorithm(self.function, self.algorithm, windows, blocks, self.dtype, "input_grad")
        same = {
            "function": f"conv{self.rank}d_input_grad",
            "batched": axes.batched,
            "channels": shape.in_channels,
            "space": axes.space,
            **self._same,
        }

        def options(index: Index) -> Mapping[str, Any]:
            size = tuple(span.size for span in windows.span(index))
            where = places(windows, cut, index)
            return {"size": size, "where": where, **windows.options(index), **same}

        sources = [windows.results(grad_output)]
        name, layer, inputs = calls(
            f"fastconv-{self.function}-input", input_grad_of, sources, [weight], blocks, options
        )
        return folded(array_of(name, layer, inputs, blocks, self.dtype), border)

    @property
    def _same(self) -> dict[str, Any]:
        """Keywords that no block changes."""
        return {"groups": self.shape.groups, "layout": self.axes.layout, "algorithm": self.algorithm}


def bias_gradient_of(grad_output: np.ndarray, rank: int, layout: str) -> np.ndarray:
    """The sum over everything but the channels."""
    return bias_gradient(np.ascontiguousarray(grad_output), rank, layout)


def input_grad_of(
    grad_output: np.ndarray,
    weight: np.ndarray,
    *,
    function: str,
    batched: bool,
    channels: int,
    space: tuple[int, ...],
    size: tuple[int, ...],
    where: Sequence[Place],
    layout: str,
    **options: Any,
) -> np.ndarray:
    """The gradient of a chunk of x, from that of all cells under the windows that reach into it."""
    batch = len(grad_output) if batched else 1
    if any(grad_output.shape[axis] == 0 for axis in space):  # no window reaches this chunk
        return np.zeros(
            join_shape(layout, batched, batch, channels, [place.size for place in where]), grad_output.dtype
        )
    shape = join_shape(layout, batched, batch, channels, size)
    grad_x = getattr(functional, function)(grad_output, weight, shape, layout=layout, **options)
    return placed(grad_x, space, where)


def folded(grad: da.Array, border: Border) -> da.Array:
    """What the border of x received, added to the cells that it repeats: `Border.fold` of a dask array."""
    if border.mode is None:
        return grad
    for axis, (before, after) in enumerate(border.widths):
        size = grad.shape[axis] - before - after
        left, body, right = (
            _cut(grad, axis, *ends)
            for ends in ((0, before), (before, before + size), (before + size, grad.shape[axis]))
        )
        for strip, is_left in ((left, True), (right, False)):
            width = strip.shape[axis]
            if width == 0:
                continue
            if border.mode == "edge":
                strip, at = strip.sum(axis, keepdims=True, dtype=grad.dtype), 0 if is_left else size - 1
            elif border.mode == "reflect":
                strip, at = da.flip(strip, axis), 1 if is_left else size - 1 - width
            else:
                at = size - width if is_left else 0
            end = at + strip.shape[axis]
            parts = [_cut(body, axis, 0, at), _cut(body, axis, at, end) + strip, _cut(body, axis, end, size)]
            whole = da.concatenate([part for part in parts if part.shape[axis]], axis)
            body = whole.rechunk(body.chunks)
        grad = body
    return grad


def _with_ends(chunks: Chunks, before: int, after: int) -> Chunks:
    """The first chunk and the last one with the border at them."""
    sizes = [*chunks]
    sizes[0] += before
    sizes[-1] += after
    return tuple(sizes)


def _cut(array: da.Array, axis: int, start: int, stop: int) -> da.Array:
    return array[(slice(None),) * axis + (slice(start, stop),)]
