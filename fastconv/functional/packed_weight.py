"""A weight in the form that a kernel reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastconv.algorithms import Algorithm
from fastconv.algorithms.auto import Auto
from fastconv.algorithms.base import Bound, Packing
from fastconv.jit import address_of
from fastconv.shapes import ConvShape

__all__ = [
    "PackedWeight",
]


class Form(NamedTuple):
    """Which algorithm reads a packed weight, and the form of it."""

    algorithm: Algorithm
    packing: Packing

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, asked_for: Algorithm
    ) -> Bound | None:
        """The forward pass with such bytes as weight; None if that of `shape` takes another form."""
        own = self.algorithm
        if isinstance(asked_for, Auto):  # the same bits as with the plain weight: its choice may be another
            asked_for = asked_for.choose(shape, dtype, "forward").algorithm
        if asked_for is not own:
            return None
        if own.supports(shape, dtype, "forward") is not None or own.packing(shape, dtype) != self.packing:
            return None
        return own.bind(shape, dtype, has_bias, relu, packed=True)


class PackedWeight:
    """A weight for convolutions, with its packed form: see `prepack`.

    It does not change, and does not follow the array that it was made of. ``numpy.asarray`` gives the
    plain weight back, and so other functions than convolutions take it as well.

    Attributes
    ----------
    shape : tuple of int
    ndim : int
    dtype : numpy.dtype
    algorithm : str
        The algorithm that it was packed for.
    nbytes : int
        Of the packed form and the plain one.

    Examples
    --------
    >>> from fastconv import prepack
    >>> packed = prepack(np.ones((8, 3, 3, 3), np.float32), x_shape=(1, 3, 32, 32))
    >>> packed.shape, np.asarray(packed).dtype
    ((8, 3, 3, 3), dtype('float32'))
    """

    def __init__(self, weight: np.ndarray, algorithm: Algorithm, packing: Packing | None) -> None:
        self.array = weight.copy()
        self.array.flags.writeable = False
        self.shape, self.ndim, self.dtype = weight.shape, weight.ndim, weight.dtype
        self.algorithm = algorithm.name
        self.form: Form | None = None
        self.packed = np.empty(0, np.uint8)
        if packing is not None:
            self.form = Form(algorithm, packing)
            memory = np.empty(packing.size + 63, np.uint8)
            start = -address_of(memory) % 64  # whole cache lines
            self.packed = memory[start : start + packing.size]
            packing.pack(self.array, address_of(self.packed))

    @property
    def nbytes(self) -> int:
        return self.array.nbytes + self.packed.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is None or np.dtype(dtype) == self.dtype:
            return self.array.copy() if copy else self.array
        if copy is False:
            raise ValueError(f"a PackedWeight of {self.dtype} becomes {np.dtype(dtype)} by a copy alone")
        return self.array.astype(dtype)

    def __repr__(self) -> str:
        return f"PackedWeight({self.shape}, {self.dtype}, for {self.algorithm!r}, {self.nbytes:,} bytes)"
