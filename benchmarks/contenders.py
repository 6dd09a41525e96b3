"""What takes part in a comparison: contenders, those that are left out, and yardsticks."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.layers import ConvLayer, PoolLayer


class LeftOut(Exception):
    """Why a contender does not take part."""


def unchanged(result: Any) -> Any:
    return result


class Contender(NamedTuple):
    """Something that computes an operation; its results are arrays or tensors, NCHW in logical order."""

    call: Callable[[], Any]
    #: entered around many calls: settings that belong to the contender
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    #: brings a result to logical order where `call` leaves it in another; not timed
    logical: Callable[[Any], Any] = unchanged


class Yardstick(NamedTuple):
    """A bound to measure fastconv's rate against, timed in the same rounds."""

    name: str
    call: Callable[[], object]
    #: what a call does, in the case's unit of work
    work: float


class LineUp(NamedTuple):
    """The contenders of one case by name, and for each other the reason why not."""

    contenders: dict[str, Contender]
    left_out: dict[str, str]


def line_up(makers: Mapping[str, Callable[[], Contender]]) -> LineUp:
    """Make each contender.

    >>> def absent():
    ...     raise LeftOut("not installed")
    >>> line_up({"here": lambda: Contender(int), "there": absent}).left_out
    {'there': 'not installed'}
    """
    result = LineUp({}, {})
    for name, make in makers.items():
        try:
            result.contenders[name] = make()
        except LeftOut as reason:
            result.left_out[name] = str(reason)
    return result


def load(module: str) -> Any:
    """An optional module."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LeftOut("not installed") from None


def limit(layer: ConvLayer | PoolLayer, flops: float) -> None:
    """Leave out a slow contender on a layer of more than `flops`."""
    if layer.flops > flops:
        raise LeftOut(f"slow: not timed above {flops / 1e6:,.0f} MFLOP")
