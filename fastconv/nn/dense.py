"""Linear, Flatten and Dropout: what surrounds the convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import DTypeLike

from fastconv.algorithms.elementwise import Choice, dropout
from fastconv.algorithms.products import times, times_transposed
from fastconv.arguments import check_layout
from fastconv.nn.activations import ReLU
from fastconv.nn.layer import Array, Fused, Layer, Rng, floating_dtype, positive, uniform


class Linear(Layer):
    """y = x weight' + bias over the last axis: x (N, ..., in_features) to y (N, ..., out_features).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        Whether to add a learned offset to each output feature.
    rng : None, int or numpy.random.Generator
        Seed of the start values, PyTorch's U(-1 / sqrt(in_features), 1 / sqrt(in_features)).
    dtype : float32 or float64
        Of the parameters, and so of x.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.Linear(12, 5, rng=0).forward(np.ones((4, 12), np.float32)).shape
    (4, 5)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: Rng = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_features = positive("Linear", "in_features", in_features)
        self.out_features = positive("Linear", "out_features", out_features)
        kind = floating_dtype("Linear", dtype)
        generator = np.random.default_rng(rng)
        shape = (self.out_features, self.in_features)
        self._params["weight"] = uniform(generator, shape, self.in_features, kind)
        if bias:
            self._params["bias"] = uniform(generator, shape[:1], self.in_features, kind)

    def forward(self, x: Array, training: bool = False) -> Array:
        return self._forward(x, training, False)

    def _forward(self, x: Array, training: bool, relu: bool) -> Array:
        x = self._floating(x)
        weight, bias = self._params["weight"], self._params.get("bias")
        if x.dtype != weight.dtype:
            raise TypeError(f"{self!r}: x is {x.dtype}, but the parameters are {weight.dtype}")
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self!r}: the last axis of x must have {self.in_features} features, got shape {x.shape}"
            )
        self._keep(training, x)
        y = times_transposed(x, weight, bias, relu) if x.ndim == 2 else None
        if y is None:
            y = x @ weight.T  # (..., I) x (I, O)
            if bias is not None:
                y += bias
            if relu:
                np.maximum(y, 0, out=y)
        return y

    def _forward_fused(self, followers: Sequence[Layer], x: Array, training: bool) -> Fused | None:
        if not followers or type(followers[0]) is not ReLU or type(self) is not Linear:
            return None
        return Fused(followers[0].keep_output(self._forward(x, training, True), training), 2, None)

    def backward(self, grad_y: Array) -> Array:
        self.backward_params(grad_y)
        grad_x = times(grad_y, self._params["weight"]) if grad_y.ndim == 2 else None
        return grad_y @ self._params["weight"] if grad_x is None else grad_x  # (..., O) x (O, I)

    def backward_params(self, grad_y: Array) -> None:
        (x,) = self._recall()
        self._check_grad(grad_y, (*x.shape[:-1], self.out_features), x.dtype)
        rows = grad_y.reshape(-1, self.out_features)
        columns = x.reshape(-1, self.in_features)
        grad_weight = times(rows.T, columns)
        self._grads["weight"] = rows.T @ columns if grad_weight is None else grad_weight  # (O, N) x (N, I)
        if "bias" in self._params:
            self._grads["bias"] = rows.sum(0)

    def _describe(self) -> str:
        text = f"{self.in_features}, {self.out_features}"
        return text if "bias" in self._params else f"{text}, bias=False"


class Flatten(Layer):
    """All axes but the first made one: (N, ...) to (N, features).

    Parameters
    ----------
    layout : {"NCHW", "NHWC"}
        "NHWC" takes x with channels last and orders the features as if channels had come first,
        so that the weight of a `Linear` behind it is PyTorch's. It copies x; the plain one does
        not, and serves networks of either layout that are not exchanged with PyTorch.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.Flatten().forward(np.ones((4, 3, 2, 2), np.float32)).shape
    (4, 12)
    """

    def __init__(self, *, layout: str = "NCHW") -> None:
        super().__init__()
        check_layout("Flatten", layout)
        self.layout = layout

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        if x.ndim < 2:
            raise ValueError(f"{self!r}: x must have at least 2 axes, got shape {x.shape}")
        if self.layout == "NHWC":
            x = np.moveaxis(x, -1, 1)
        self._keep(training, x.shape, x.dtype)
        # not -1: that is ambiguous where N is 0
        return x.reshape(x.shape[0], prod(x.shape[1:]))

    def backward(self, grad_y: Array) -> Array:
        shape, dtype = self._recall()
        self._check_grad(grad_y, (shape[0], prod(shape[1:])), dtype)
        grad_x = grad_y.reshape(shape)
        if self.layout == "NHWC":
            return np.ascontiguousarray(np.moveaxis(grad_x, 1, -1))
        return grad_x

    def _describe(self) -> str:
        return "" if self.layout == "NCHW" else f"layout={self.layout!r}"


class Dropout(Layer):
    """In training, zeroes each element with probability p and scales the rest by 1 / (1 - p).

    Parameters
    ----------
    p : float
        From 0 to 1; 1 zeroes everything.
    rng : None, int or numpy.random.Generator
        Where the choices come from: a seed makes the sequence of masks reproducible.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Notes
    -----
    Source: https://jmlr.org/papers/v15/srivastava14a.html

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> y = nn.Dropout(0.5, rng=0).forward(np.ones((4, 3), np.float32), training=True)
    >>> y.shape, set(y.ravel().tolist()) <= {0.0, 2.0}
    ((4, 3), True)
    """

    def __init__(self, p: float = 0.5, *, rng: Rng = None) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must be between 0 and 1, got {p}")
        self.p = float(p)
        self._rng = np.random.default_rng(rng)

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        if not training:
            self._keep(False)
            return x
        # two words that the choices are made from: drawing a number for each element takes longer than a
        # convolution
        seed, salt = self._rng.integers(0, 1 << 32, 2).tolist()
        share = round(self.p * 2**32)
        choice = Choice(seed, salt, share) if share < 2**32 else None
        self._keep(True, choice, x.shape, x.dtype)
        return self._apply(x, choice)

    def backward(self, grad_y: Array) -> Array:
        choice, shape, dtype = self._recall()
        self._check_grad(grad_y, shape, dtype)
        return self._apply(grad_y, choice)

    def _apply(self, x: Array, choice: Choice | None) -> Array:
        return x * x.dtype.type(0) if choice is None else dropout(x, choice)

    def _describe(self) -> str:
        return f"p={self.p}"
