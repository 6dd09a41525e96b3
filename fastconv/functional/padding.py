"""Padding with something else than zeros: x gets its border before, and gradients fold back."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.algorithms.epilogue import quietly
from fastconv.arguments import check_bytes, check_choice
from fastconv.shapes import ConvShape, drop

_NUMPY_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
PADDING_MODES = ("zeros", *_NUMPY_MODES)


class Border:
    """What continues x beyond its ends, for a convolution of geometry `shape`.

    With "zeros" there is nothing to do: algorithms know about zeros.
    """

    def __init__(self, function: str, mode: Any, shape: ConvShape, x_shape: tuple[int, ...]) -> None:
        check_choice(function, "padding_mode", mode, PADDING_MODES)
        self.function = function
        self.shape = shape
        self.mode = _NUMPY_MODES.get(mode)
        before, after = drop(shape.pad_before, shape.rank), drop(shape.pad_after, shape.rank)
        pads = list(zip(before, after, strict=True))
        first = len(x_shape) - shape.rank - (shape.layout == "NHWC")
        if self.mode:
            for size, pair in zip(drop(shape.input, shape.rank), pads, strict=True):
                most = {"reflect": size - 1, "circular": size}.get(mode, max(pair))
                if max(pair) > most or size == 0:
                    raise ValueError(
                        f"{function}: padding_mode = {mode!r} can pad an axis of size {size} by at "
                        f"most {max(0, most) if size else 0}, got padding = {pads}"
                    )
        #: (before, after) for every axis of x
        self.widths = [(0, 0)] * first + pads + [(0, 0)] * (len(x_shape) - first - shape.rank)

    def pad(self, x: np.ndarray) -> tuple[np.ndarray, ConvShape]:
        """x with its border, and the geometry of what is left to do."""
        if self.mode is None:
            return x, self.shape
        shape, none = self.shape, (0, 0, 0)
        padded_shape = tuple(n + sum(pair) for n, pair in zip(x.shape, self.widths, strict=True))
        check_bytes(self.function, "x with its border", padded_shape, x.dtype)
        z, y, x_ = (sum(part) for part in zip(shape.input, shape.pad_before, shape.pad_after, strict=True))
        padded = np.ascontiguousarray(np.pad(x, self.widths, mode=self.mode))
        return padded, shape._replace(input=(z, y, x_), pad_before=none, pad_after=none)

    @quietly
    def fold(self, grad_padded: np.ndarray) -> np.ndarray:
        """The adjoint of `pad`: what the border received goes to the cells that it copies."""
        if self.mode is None:
            return grad_padded
        grad = grad_padded
        for axis, (before, after) in enumerate(self.widths):
            padded = np.moveaxis(grad, axis, 0)
            size = padded.shape[0] - before - after
            source = np.pad(np.arange(size), (before, after), mode=self.mode)
            folded = padded[before : before + size].copy()
            for position in (*range(before), *range(before + size, padded.shape[0])):
                folded[source[position]] += padded[position]
            grad = np.moveaxis(folded, 0, axis)
        return np.ascontiguousarray(grad)
