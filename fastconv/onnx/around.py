"""What stands around convolutions in networks, and would else take longer than they: as ONNX defines it.

Only what is plain is computed here, by the kernels of `fastconv.nn` or by NumPy; the rest is left to the
evaluator's own operators. Three of those, in onnx 1.23, compute something else than the standard says:
Softmax before opset 13, which flattens x to two axes; BatchNormalization of opsets 9 to 13, whose means and
variances are not those of x unless it has more outputs than one; and LRN, of more channels than there are
images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.algorithms import elementwise, normalization
from fastconv.onnx.base import Operator

Results = tuple[Any, ...]
_REALS = (np.float32, np.float64)


class Relu(Operator):
    """max(x, 0)."""

    def _run(self, x: np.ndarray) -> Results:
        if x.dtype not in _REALS or not x.size:
            return self.plain(x)
        return (elementwise.relu(x),)


class BatchNormalization(Operator):
    """Normalisation by given means and variances."""

    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray,
        mean: np.ndarray,
        var: np.ndarray,
        epsilon: float = 1e-5,
        training_mode: int = 0,
        is_test: int = 1,
        spatial: int = 1,
        momentum: float = 0.9,
    ) -> Results:
        trains = training_mode or not is_test or len(self.output) > 1
        arrays = (scale, bias, mean, var)
        one_dtype = all(array.dtype == x.dtype for array in arrays)
        if trains or not spatial or x.ndim < 2 or x.dtype not in _REALS or not one_dtype:
            return self.plain(x, *arrays)
        planes = np.ascontiguousarray(x).reshape(*x.shape[:2], -1, 1)
        scale, bias, mean, var = map(np.ascontiguousarray, arrays)
        if normalization.plain(planes, scale, bias, mean, var):
            facts = {"known": True, "relu": False}
            y = normalization.batch_norm(planes, mean, var, scale, bias, float(epsilon), **facts)
            return (y.reshape(x.shape),)
        factor = scale / np.sqrt(var + x.dtype.type(epsilon))
        ones = (1,) * (x.ndim - 2)
        return ((x - mean.reshape(-1, *ones)) * factor.reshape(-1, *ones) + bias.reshape(-1, *ones),)


class LRN(Operator):
    """x divided by a power of the sum of squares over channels nearby."""

    def _run(
        self, x: np.ndarray, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
    ) -> Results:
        before = (size - 1) // 2
        squares = np.square(x)
        sums = squares.copy()
        for shift in range(1, size - before):  # channels that come later
            sums[:, :-shift] += squares[:, shift:]
        for shift in range(1, before + 1):
            sums[:, shift:] += squares[:, :-shift]
        sums *= x.dtype.type(alpha / size)
        sums += x.dtype.type(bias)
        if float(beta) == 0.75:
            # two roots take a fifth of the time of a power
            roots = np.sqrt(sums)
            np.multiply(roots, np.sqrt(roots), out=sums)
        else:
            np.power(sums, x.dtype.type(beta), out=sums)
        return (np.divide(x, sums, out=sums),)


class Softmax(Operator):
    """Exponentials, divided by their sum."""

    def _run(self, x: np.ndarray, axis: int = -1) -> Results:
        shape = x.shape
        if self.version < 13:
            axis %= max(1, x.ndim)
            rows = int(np.prod(shape[:axis]))
            x = x.reshape(rows, int(np.prod(shape[axis:])))
            axis = 1
        y = np.exp(x - x.max(axis=axis, keepdims=True))
        y /= y.sum(axis=axis, keepdims=True)
        return (y.reshape(shape),)


class ConstantOfShape(Operator):
    """A constant, made when its shape first comes, then kept: so a weight made by it is packed once."""

    _kept: np.ndarray | None = None

    def _run(self, shape: np.ndarray, value: np.ndarray | None = None) -> Results:
        size = tuple(shape.tolist())
        if self._kept is None or self._kept.shape != size:
            fill = np.zeros(1, np.float32) if value is None else value.reshape(1)
            self._kept = np.full(size, fill[0], fill.dtype)
            self._kept.flags.writeable = False
        return (self._kept,)
