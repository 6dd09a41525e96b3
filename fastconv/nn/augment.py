"""Random changes of training images that leave what they show as it is."""

from __future__ import annotations

import numpy as np

from fastconv.algorithms.warp import warp
from fastconv.nn.layer import Array


class RandomAffine:
    """Each image turned, moved and scaled at random about its centre, interpolated between its cells.

    Called with images (N, C, H, W) and a generator; what it returns has the same shape and dtype.

    Parameters
    ----------
    degrees : float
        Angles are drawn from -degrees to degrees.
    translate : float
        Moves along both axes, from -translate to translate cells.
    scale : float
        Factors are drawn from 1 - scale to 1 + scale.
    fill : float
        What comes in from beyond the borders.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> x = np.ones((4, 1, 28, 28), np.float32)
    >>> nn.RandomAffine(10, translate=2)(x, np.random.default_rng(0)).shape
    (4, 1, 28, 28)
    """

    def __init__(self, degrees: float = 0, translate: float = 0, scale: float = 0, fill: float = 0) -> None:
        for name, value in (("degrees", degrees), ("translate", translate), ("scale", scale)):
            if not value >= 0:
                raise ValueError(f"RandomAffine: {name} must not be negative, got {value}")
        if scale >= 1:
            raise ValueError(f"RandomAffine: scale must be below 1, got {scale}")
        self.degrees = float(degrees)
        self.translate = float(translate)
        self.scale = float(scale)
        self.fill = float(fill)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        """Images (N, C, H, W) of floats, each changed in its own way."""
        if x.ndim != 4 or x.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"{self!r}: x must be float images (N, C, H, W), got {x.dtype} of shape {x.shape}"
            )
        angle, factor, down, right = rng.uniform(-1, 1, (4, len(x)))
        angle *= np.deg2rad(self.degrees)
        # from the result back to the source: the inverse of what happens to the image
        factor = 1 / (1 + self.scale * factor)
        maps = np.empty((len(x), 2, 3))
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        maps[:, 0, 0], maps[:, 0, 1] = cos, -sin
        maps[:, 1, 0], maps[:, 1, 1] = sin, cos
        centre = (np.array(x.shape[2:]) - 1) / 2
        moves = np.stack([down, right], 1) * self.translate
        maps[:, :, 2] = centre - np.einsum("nij,nj->ni", maps[:, :, :2], centre + moves)
        return warp(x, maps, self.fill)

    def __repr__(self) -> str:
        return (
            f"RandomAffine(degrees={self.degrees}, translate={self.translate}, scale={self.scale}, "
            f"fill={self.fill})"
        )
