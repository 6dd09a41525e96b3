"""What is done to an output block after the sums: bias and activation; and NumPy kept from warning."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Class = TypeVar("_Class", bound=type)


def quietly(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: overflow, or infinity less infinity, is no warning; compiled kernels do not warn either."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


def quiet(algorithm: _Class) -> _Class:
    """Decorator of an algorithm that computes with NumPy: `quietly` for all that it computes."""
    computing = ("forward", "input_grad", "weight_grad", "max_pool", "avg_pool", "avg_pool_backward")
    for name in computing:
        if name in vars(algorithm):
            setattr(algorithm, name, quietly(vars(algorithm)[name]))
    return algorithm


def finish(y: np.ndarray, bias: np.ndarray | None, relu: bool) -> None:
    """Add `bias`, shaped to broadcast against `y`, and clip at 0, in place. NaN stays NaN."""
    if bias is not None:
        y += bias
    if relu:
        np.maximum(y, 0, out=y)
