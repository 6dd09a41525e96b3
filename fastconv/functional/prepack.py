"""Pack a weight ahead of the convolutions that read it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastconv.algorithms.auto import Auto
from fastconv.arguments import Ints, Padding, shape_argument
from fastconv.functional import run
from fastconv.functional.arrays import real_arrays
from fastconv.functional.narrow import widens
from fastconv.functional.packed_weight import PackedWeight
from fastconv.plan import find_algorithm

__all__ = [
    "prepack",
]


@widens
def prepack(
    weight: np.ndarray,
    *,
    x_shape: Sequence[int],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> PackedWeight:
    """A weight packed once for many convolutions, as in inference.

    Parameters
    ----------
    weight : ndarray
        As for `conv1d`, `conv2d` or `conv3d`; the number of its axes tells which.
    x_shape : sequence of int
        The shape of the x to come, by which "auto" chooses. The batch may be another one later.
    stride, padding, dilation, groups, layout, algorithm
        As the convolution will be given them.

    Returns
    -------
    PackedWeight
        In the place of weight, the result is the same to the last bit, and comes sooner. A convolution
        that needs another form, as one with other groups or of another algorithm, takes the plain weight.

    Raises
    ------
    ValueError, TypeError
        As the convolution itself.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv2d
    >>> weight = prepack(np.ones((8, 3, 3, 3), np.float32), x_shape=(1, 3, 32, 32), padding=1)
    >>> conv2d(np.ones((5, 3, 32, 32), np.float32), weight, padding=1).shape
    (5, 8, 32, 32)
    """
    dtype, (array,) = real_arrays("prepack", weight=weight)
    rank = array.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(f"prepack: weight must have 3 to 5 axes, got shape {array.shape}")
    x = shape_argument("prepack", "x_shape", x_shape)
    shape = run.geometry("prepack", rank, x, array.shape, stride, padding, dilation, groups, layout)
    chosen = find_algorithm("prepack", algorithm, shape, dtype, "forward")
    if isinstance(chosen, Auto):
        chosen = chosen.choose(shape, dtype, "forward").algorithm
    packing = None if array.size == 0 else chosen.packing(shape, dtype)
    return PackedWeight(array, chosen, packing)
