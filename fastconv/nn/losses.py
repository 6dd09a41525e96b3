"""Losses: the mean over a batch, as a Python float, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.algorithms.losses import cross_entropy
from fastconv.nn.layer import Array


class Loss:
    """A number that says how far predictions are from their targets.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> loss = nn.MSE()  # a subclass
    >>> loss.forward(np.array([3.0]), np.array([1.0])), loss.backward()
    (4.0, array([4.]))
    """

    def __init__(self) -> None:
        self._saved: tuple[Any, ...] | None = None

    def forward(self, pred: Array, target: Array) -> float:
        """The mean loss of a batch.

        Parameters
        ----------
        pred : float32 or float64 array
            What a network says; (N, C) where the target is a class for each sample.
        target : array
            What is right: as each loss has it.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            Where the shapes do not fit together, or a label is no class of `pred`.
        TypeError
            Where `pred` is not real, or labels are no integers.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def backward(self) -> Array:
        """The gradient of the last forward with respect to `pred`, with its shape and dtype.

        Raises
        ------
        RuntimeError
            Where there was no forward.
        """
        raise NotImplementedError(f"{type(self).__name__} must define backward")

    def _recall(self) -> tuple[Any, ...]:
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__}.backward: call forward(pred, target) first")
        return self._saved

    def _check_classes(self, pred: Array, target: Array) -> Array:
        """Check scores (N, C) against labels (N,), but for their range."""
        name = type(self).__name__
        self._check_floating(pred)
        if pred.ndim != 2 or pred.size == 0:
            raise ValueError(
                f"{name}: pred must have shape (N, C) with at least one sample and one class, "
                f"got {pred.shape}"
            )
        target = np.asarray(target)
        if target.dtype.kind not in "iu":
            raise TypeError(f"{name}: target must hold integer labels, got dtype {target.dtype}")
        if target.shape != pred.shape[:1]:
            raise ValueError(
                f"{name}: target must have one label per row of pred, shape {pred.shape[:1]}, "
                f"got {target.shape}"
            )
        return target

    def _check_labels(self, pred: Array, wrong: int | None) -> None:
        if wrong is not None:
            raise ValueError(
                f"{type(self).__name__}: labels must be from 0 to {pred.shape[1] - 1}, the last class "
                f"of pred, got {wrong}"
            )

    def _rows_and_labels(self, pred: Array, target: Array) -> tuple[Array, Array]:
        """Indices of each row's own label."""
        target = self._check_classes(pred, target)
        least, most = int(target.min()), int(target.max())
        if least < 0 or most >= pred.shape[1]:
            self._check_labels(pred, least if least < 0 else most)
        return np.arange(len(target)), target

    def _check_floating(self, pred: Array) -> None:
        name = type(self).__name__
        if not isinstance(pred, np.ndarray):
            raise TypeError(f"{name}: pred must be a numpy array, got {type(pred).__name__}")
        if pred.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: pred must be float32 or float64, got {pred.dtype}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class CrossEntropy(Loss):
    """Mean of -log softmax(pred)[label]: from logits (N, C) and integer labels (N,).

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> loss = nn.CrossEntropy()
    >>> round(loss.forward(np.zeros((2, 10)), np.array([3, 7])), 4)
    2.3026
    >>> loss.backward().shape
    (2, 10)
    """

    def forward(self, pred: Array, target: Array) -> float:
        value, grad, wrong = cross_entropy(pred, self._check_classes(pred, target))
        self._check_labels(pred, wrong)
        self._saved = (grad,)
        return value

    def backward(self) -> Array:
        (grad,) = self._recall()
        # the caller may write into it
        copy: Array = grad.copy()
        return copy


class NLL(Loss):
    """Mean of -pred[label]: from log-probabilities (N, C), as of `LogSoftmax`, and labels (N,).

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.NLL().forward(np.array([[-2.0, -0.5]]), np.array([1]))
    0.5
    """

    def forward(self, pred: Array, target: Array) -> float:
        rows, labels = self._rows_and_labels(pred, target)
        self._saved = pred.shape, pred.dtype, rows, labels
        return float(-pred[rows, labels].mean(dtype=np.float64))

    def backward(self) -> Array:
        shape, dtype, rows, labels = self._recall()
        grad = np.zeros(shape, dtype)
        grad[rows, labels] = -1 / len(rows)
        return grad


class MSE(Loss):
    """Mean of (pred - target)^2 over all elements; both of one shape.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.MSE().forward(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    2.0
    """

    def forward(self, pred: Array, target: Array) -> float:
        self._check_floating(pred)
        target = np.asarray(target)
        if target.shape != pred.shape or pred.size == 0:
            raise ValueError(
                "MSE: pred and target must have one shape and at least one element, "
                f"got {pred.shape} and {target.shape}"
            )
        if target.dtype.kind not in "fiu":
            raise TypeError(f"MSE: target must hold real numbers, got dtype {target.dtype}")
        difference = np.subtract(pred, target, dtype=pred.dtype, casting="same_kind")
        self._saved = (difference,)
        return float(np.square(difference).mean(dtype=np.float64))

    def backward(self) -> Array:
        (difference,) = self._recall()
        grad: Array = difference * (2 / difference.size)
        return grad
