"""What a way of computing convolution or pooling must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

import numpy as np

from fastconv.algorithms.powers import power
from fastconv.shapes import ConvShape, PoolShape, Triple

#: A forward pass of which all is decided but the arrays: called with x, weight, bias or None, and out.
Bound = Callable[[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray], None]

#: A gradient of which all is decided but the arrays: called with grad_output, weight or x, and out.
BoundGradient = Callable[[np.ndarray, np.ndarray, np.ndarray], None]

#: The three operations of a convolution.
OPERATIONS = ("forward", "input_grad", "weight_grad")


class Packing(Hashable, Protocol):
    """A form in which an algorithm reads a weight. Two that compare equal are the same form."""

    @property
    def size(self) -> int:
        """Bytes."""

    def pack(self, weight: np.ndarray, packed: int) -> None:
        """Write the packed form of a contiguous weight to an address, a multiple of 64."""


class Algorithm(ABC):
    """One way to compute a convolution and its two gradients.

    Arrays come with three spatial axes and logical order whatever the layout: x and grad_x (N, C, D, H, W),
    weight and grad_weight (K, C // groups, T, R, S), y and grad_output (N, K, *output), bias (K,).
    The memory of each is contiguous in the shape's layout, so that in "NHWC" these are transposed
    views. All have one dtype, float32 or float64, and sizes that agree with `shape`. `out` is
    overwritten, whatever it held. No array may be written to but `out`. No array is empty.
    """

    name: str
    summary: str

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        """None, or the reason why this algorithm cannot do `op`."""
        return None

    def drawback(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        """None, or the reason why "auto" should try those after this one first."""
        return None

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        """Bytes needed besides the arguments and `out`."""
        return 0

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        """What a reader of the plan may want to know: block and tile sizes."""
        return {}

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        relu: bool,
        out: np.ndarray,
        shape: ConvShape,
    ) -> None:
        """out = conv(x, weight) + bias, and no less than 0 with `relu`; without one of its own, by `bind`."""
        bound = self.bind(shape, x.dtype, bias is not None, relu)
        if bound is None:
            raise NotImplementedError(f"{self.name} has neither forward nor bind")
        bound(x, weight, bias, out)

    def packing(self, shape: ConvShape, dtype: np.dtype) -> Packing | None:
        """The form in which the forward pass reads the weight, if making it takes time, else None."""
        return None

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, packed: bool = False
    ) -> Bound | None:
        """The forward pass for contiguous arrays of any number of axes, or None; for this number of threads.

        What small convolutions need most of their time for, if it is done at each call. With `packed`
        it takes the bytes of `packing` in the place of weight.
        """
        return None

    def bind_gradient(self, shape: ConvShape, dtype: np.dtype, op: str) -> BoundGradient:
        """`input_grad` or `weight_grad` for contiguous arrays of any number of axes, as `bind`."""

        def input_grad(grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
            lifted = _lift_y(grad_output, shape), _lift_weight(weight, shape), _lift_x(out, shape)
            self.input_grad(*lifted, shape)

        def weight_grad(grad_output: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
            lifted = _lift_y(grad_output, shape), _lift_x(x, shape), _lift_weight(out, shape)
            self.weight_grad(*lifted, shape)

        return input_grad if op == "input_grad" else weight_grad

    @abstractmethod
    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        """out = d sum(grad_output * conv(x, weight)) / dx."""

    @abstractmethod
    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        """out = d sum(grad_output * conv(x, weight)) / dweight."""


def _lift(array: np.ndarray, shape: ConvShape, channels: int, size: Triple) -> np.ndarray:
    if shape.layout == "NCHW":
        return array.reshape(shape.batch, channels, *size)
    return array.reshape(shape.batch, *size, channels).transpose(0, 4, 1, 2, 3)


def _lift_x(array: np.ndarray, shape: ConvShape) -> np.ndarray:
    """View x or grad_x, whatever its axes, as (N, C, D, H, W)."""
    return _lift(array, shape, shape.in_channels, shape.input)


def _lift_y(array: np.ndarray, shape: ConvShape) -> np.ndarray:
    """View y or grad_output as (N, K, *output)."""
    return _lift(array, shape, shape.out_channels, shape.output)


def _lift_weight(array: np.ndarray, shape: ConvShape) -> np.ndarray:
    """View weight or grad_weight as (K, C // groups, T, R, S)."""
    if shape.layout == "NCHW":
        return array.reshape(shape.out_channels, shape.group_in, *shape.kernel)
    return array.reshape(*shape.kernel, shape.group_in, shape.out_channels).transpose(4, 3, 0, 1, 2)


class PoolAlgorithm(ABC):
    """One way to compute pooling over each channel; arrays as for `Algorithm`.

    `indices` are int64, or None where they are not wanted. `divisor` is 0, or replaces the number of
    cells that an average is divided by.
    """

    name: str
    summary: str

    @abstractmethod
    def max_pool(
        self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, shape: PoolShape
    ) -> None: ...

    @abstractmethod
    def avg_pool(
        self, x: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
    ) -> None: ...

    @abstractmethod
    def avg_pool_backward(
        self,
        grad_output: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        count_padding: bool,
        divisor: int,
    ) -> None: ...

    def lp_pool(self, x: np.ndarray, out: np.ndarray, shape: PoolShape, norm: float) -> None:
        """out = (T * the mean of x ** norm) ** (1 / norm), padding counted, for windows of T cells.

        T times the mean is the sum, but for a window that hangs over the end in ceil mode.
        """
        self.avg_pool(power(x, norm), out, shape, True, 0)
        with np.errstate(all="ignore"):
            out *= shape.taps
        if norm != 1:
            out[...] = power(out, 1 / norm)

    def lp_pool_backward(
        self,
        grad_output: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        norm: float,
    ) -> None:
        """out = the gradient of y = lp_pool(x) with respect to x; a window where y is 0 adds 0."""
        with np.errstate(all="ignore"):
            share = grad_output * power(y, 1 - norm)
            share *= shape.taps
            share[y == 0] = 0
            self.avg_pool_backward(share, out, shape, True, 0)
            if norm != 1:
                np.multiply(out, power(x, norm - 1), out=out, where=out != 0)
