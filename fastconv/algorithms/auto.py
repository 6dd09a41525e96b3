"""The rule that picks an algorithm when the user names none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.base import Algorithm, Bound, BoundGradient, Packing
from fastconv.shapes import ConvShape


class Choice(NamedTuple):
    """Which algorithm, why, and for each of the others why not."""

    algorithm: Algorithm
    reason: str
    rejected: dict[str, str]


class Auto(Algorithm):
    """Hands each call to the first of `candidates`, the preferred first, that can do it without drawback."""

    name = "auto"
    summary = "the fastest algorithm that can do it"

    def __init__(self, *candidates: Algorithm) -> None:
        self.candidates = candidates

    def choose(self, shape: ConvShape, dtype: np.dtype, op: str) -> Choice:
        chosen: Algorithm | None = None
        rejected = {}
        for algorithm in self.candidates:
            reason = algorithm.supports(shape, dtype, op) or algorithm.drawback(shape, dtype, op)
            if reason is not None:
                rejected[algorithm.name] = reason
            elif chosen is not None:
                rejected[algorithm.name] = f"slower than {chosen.name}"
            else:
                chosen = algorithm
        assert chosen is not None, "the reference supports everything, and has no drawback"
        return Choice(chosen, self.summary, rejected)

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        return self.choose(shape, dtype, op).algorithm.workspace(shape, dtype, op)

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        return self.choose(shape, dtype, op).algorithm.details(shape, dtype, op)

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        relu: bool,
        out: np.ndarray,
        shape: ConvShape,
    ) -> None:
        chosen = self.choose(shape, out.dtype, "forward").algorithm
        chosen.forward(x, weight, bias, relu, out, shape)

    def packing(self, shape: ConvShape, dtype: np.dtype) -> Packing | None:
        return self.choose(shape, dtype, "forward").algorithm.packing(shape, dtype)

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, packed: bool = False
    ) -> Bound | None:
        return self.choose(shape, dtype, "forward").algorithm.bind(shape, dtype, has_bias, relu, packed)

    def bind_gradient(self, shape: ConvShape, dtype: np.dtype, op: str) -> BoundGradient:
        return self.choose(shape, dtype, op).algorithm.bind_gradient(shape, dtype, op)

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        chosen = self.choose(shape, out.dtype, "input_grad").algorithm
        chosen.input_grad(grad_output, weight, out, shape)

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        chosen = self.choose(shape, out.dtype, "weight_grad").algorithm
        chosen.weight_grad(grad_output, x, out, shape)
