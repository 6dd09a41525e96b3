"""Functions of each element, and softmax over one axis."""

from __future__ import annotations

import numpy as np

from fastconv.algorithms.elementwise import relu, where_positive
from fastconv.arguments import canonical, integer, real
from fastconv.nn.layer import Array, Layer

#: That arrays have.
_MOST_AXES = 64


class ReLU(Layer):
    """max(x, 0); the slope at 0 is 0.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.ReLU().forward(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        return self.keep_output(relu(x), training)

    def keep_output(self, y: Array, training: bool) -> Array:
        """What is left to do in forward where y = max(x, 0) is known."""
        # the next layer often keeps y too, so this costs no memory
        self._keep(training, y)
        return y

    def backward(self, grad_y: Array) -> Array:
        (y,) = self._recall()
        self._check_grad(grad_y, y.shape, y.dtype)
        return where_positive(grad_y, y)


class LeakyReLU(Layer):
    """x where x > 0, ``negative_slope * x`` elsewhere.

    Parameters
    ----------
    negative_slope : float

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.LeakyReLU(0.5).forward(np.array([-1.0, 2.0]))
    array([-0.5,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = real("LeakyReLU", "negative_slope", negative_slope)

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        # a table of two, looked up: np.where takes four times as long on mixed signs
        slopes = np.array([self.negative_slope, 1], x.dtype).take((x > 0).view(np.int8))
        self._keep(training, slopes)
        y: Array = x * slopes
        return y

    def backward(self, grad_y: Array) -> Array:
        (slopes,) = self._recall()
        self._check_grad(grad_y, slopes.shape, slopes.dtype)
        grad_x: Array = grad_y * slopes
        return grad_x

    def _describe(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Sigmoid(Layer):
    """1 / (1 + exp(-x)), without overflow at either end.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.Sigmoid().forward(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        # exp of numbers up to 0 only, so e <= 1: e / (1 + e) where x < 0, and 1 / (1 + e) elsewhere
        e = np.exp(-np.abs(x))
        y: Array = np.maximum(e, x >= 0)
        e += 1
        y /= e
        self._keep(training, y)
        return y

    def backward(self, grad_y: Array) -> Array:
        (y,) = self._recall()
        self._check_grad(grad_y, y.shape, y.dtype)
        grad_x: Array = 1 - y
        grad_x *= y
        grad_x *= grad_y
        return grad_x


class Tanh(Layer):
    """Hyperbolic tangent.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.Tanh().forward(np.array([-1000.0, 0.0, 1000.0]))
    array([-1.,  0.,  1.])
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._floating(x)
        y: Array = np.tanh(x)
        self._keep(training, y)
        return y

    def backward(self, grad_y: Array) -> Array:
        (y,) = self._recall()
        self._check_grad(grad_y, y.shape, y.dtype)
        grad_x: Array = y * y
        np.subtract(1, grad_x, out=grad_x)
        grad_x *= grad_y
        return grad_x


class _OverAxis(Layer):
    """A function of the vectors along one axis."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        rule = "an int, the axis of the classes"
        self.dim = integer(type(self).__name__, "dim", canonical(dim), -_MOST_AXES, _MOST_AXES - 1, rule)

    def _checked(self, x: Array) -> Array:
        x = self._floating(x)
        if not -x.ndim <= self.dim < x.ndim:
            raise ValueError(f"{self!r}: x has no axis {self.dim}, its shape is {x.shape}")
        return x

    def _describe(self) -> str:
        return f"dim={self.dim}"


class Softmax(_OverAxis):
    """exp(x) / sum(exp(x)) along axis `dim`, without overflow.

    Parameters
    ----------
    dim : int
        The axis that holds the classes; the last one unless told otherwise.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.Softmax().forward(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._checked(x)
        y: Array = x - x.max(self.dim, keepdims=True)
        np.exp(y, out=y)
        y /= y.sum(self.dim, keepdims=True)
        self._keep(training, y)
        return y

    def backward(self, grad_y: Array) -> Array:
        (y,) = self._recall()
        self._check_grad(grad_y, y.shape, y.dtype)
        # J' g = y (g - <g, y>)
        grad_x: Array = grad_y * y
        grad_x -= y * grad_x.sum(self.dim, keepdims=True)
        return grad_x


class LogSoftmax(_OverAxis):
    """The logarithm of `Softmax` along axis `dim`, precise where the softmax is near 0 or 1.

    Parameters
    ----------
    dim : int
        The axis that holds the classes; the last one unless told otherwise.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.LogSoftmax().forward(np.array([[0.0, 1000.0]]))
    array([[-1000.,     0.]])
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._checked(x)
        y: Array = x - x.max(self.dim, keepdims=True)
        y -= np.log(np.exp(y).sum(self.dim, keepdims=True))
        self._keep(training, y)
        return y

    def backward(self, grad_y: Array) -> Array:
        (y,) = self._recall()
        self._check_grad(grad_y, y.shape, y.dtype)
        # J' g = g - softmax(x) sum(g)
        grad_x: Array = np.exp(y)
        grad_x *= grad_y.sum(self.dim, keepdims=True)
        np.subtract(grad_y, grad_x, out=grad_x)
        return grad_x
