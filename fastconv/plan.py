"""Which algorithm computes a convolution, and why: decided before anything runs, and printable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from html import escape
from math import prod
from typing import Any

import numpy as np

from fastconv.algorithms import ALGORITHMS, Algorithm, Auto
from fastconv.arguments import shown
from fastconv.shapes import ConvShape, drop, join_shape


@dataclass(frozen=True)
class Plan:
    """How one operation of a convolution is computed. Printing it tells the story; notebooks show a table.

    Attributes
    ----------
    op : str
        "forward", "input_grad" or "weight_grad".
    algorithm : str
        The algorithm that runs: a key of ``fastconv.ALGORITHMS``, never "auto".
    reason : str
        Why it was chosen.
    shape : ConvShape
        Every size, with three spatial axes.
    dtype : numpy.dtype
    flops : int
        Floating-point operations of the definition, a multiplication and an addition per kernel cell.
    workspace : int
        Bytes of scratch memory beyond the arguments and the result.
    details : dict
        Block and tile sizes.
    rejected : dict
        For each other algorithm, why it was not chosen.

    Examples
    --------
    >>> from fastconv import explain
    >>> plan = explain((4, 64, 56, 56), (64, 64, 1, 1))
    >>> plan.algorithm, plan.rejected["winograd"]
    ('gemm', 'it is made for kernels of 3 x 3 cells')
    """

    op: str
    algorithm: str
    reason: str
    shape: ConvShape
    dtype: np.dtype
    flops: int
    workspace: int
    details: dict[str, object]
    rejected: dict[str, str]

    def __str__(self) -> str:
        title, geometry, facts = self._story()
        lines = [title, f"  {geometry}"]
        lines += [f"  {name:10} {value}" for name, value in facts]
        lines += [f"  not {name}: {reason}" for name, reason in self.rejected.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        title, geometry, facts = self._story()
        rows = [(f"<b>{escape(name)}</b>", escape(value)) for name, value in facts]
        rows += [(f"not {escape(name)}", escape(reason)) for name, reason in self.rejected.items()]
        # left, where a notebook's own style would have numbers' cells
        left = 'style="text-align: left"'
        cells = "".join(f"<tr><td {left}>{name}</td><td {left}>{value}</td></tr>" for name, value in rows)
        head = f'{escape(title)}<br><span style="font-weight: normal">{escape(geometry)}</span>'
        head = f'<tr><th colspan="2" {left}>{head}</th></tr>'
        return f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>"

    def _story(self) -> tuple[str, str, list[tuple[str, str]]]:
        """What is computed, with which geometry, and how: name and value of each fact."""
        s = self.shape
        size, kernel = drop(s.input, s.rank), drop(s.kernel, s.rank)
        pads = list(zip(drop(s.pad_before, s.rank), drop(s.pad_after, s.rank), strict=True))
        x = join_shape(s.layout, True, s.batch, s.in_channels, size)
        y = join_shape(s.layout, True, s.batch, s.out_channels, drop(s.output, s.rank))
        title = f"conv{s.rank}d {self.op}, {self.dtype}, {s.layout}: x {x} -> y {y}"
        geometry = (
            f"kernel {kernel}, stride {drop(s.stride, s.rank)}, padding {pads}, "
            f"dilation {drop(s.dilation, s.rank)}, groups {s.groups}"
        )
        workspace = f"{self.workspace:,} bytes (x has {self._bytes(x):,}, y {self._bytes(y):,})"
        facts = [
            ("algorithm", f"{self.algorithm}: {self.reason}"),
            ("flops", f"{self.flops:,}"),
            ("workspace", workspace),
            *((name, str(value)) for name, value in self.details.items()),
        ]
        return title, geometry, facts

    def _bytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) * self.dtype.itemsize


def named_algorithm(function: str, name: Any) -> Algorithm:
    """The algorithm of that name, or a ValueError that lists those that there are."""
    algorithm = ALGORITHMS.get(name) if isinstance(name, str) else None
    if algorithm is None:
        raise ValueError(
            f"{function}: unknown algorithm {shown(name)}; there are {', '.join(map(repr, ALGORITHMS))}"
        )
    return algorithm


def find_algorithm(function: str, name: Any, shape: ConvShape, dtype: np.dtype, op: str) -> Algorithm:
    """The algorithm of that name, or a ValueError that says why it cannot be used."""
    algorithm = named_algorithm(function, name)
    reason = algorithm.supports(shape, dtype, op)
    if reason is not None:
        raise ValueError(f"{function}: algorithm {name!r} cannot compute this {op}: {reason}")
    return algorithm


@lru_cache(maxsize=1024)
def make_plan(shape: ConvShape, dtype: np.dtype, op: str, precision: str, threads: int) -> Plan:
    """The plan of the automatic choice; `precision` and `threads` are those that are set."""
    auto = ALGORITHMS["auto"]
    assert isinstance(auto, Auto)
    choice = auto.choose(shape, dtype, op)
    return Plan(
        op=op,
        algorithm=choice.algorithm.name,
        reason=choice.reason,
        shape=shape,
        dtype=dtype,
        flops=shape.flops,
        workspace=0 if shape.is_empty else choice.algorithm.workspace(shape, dtype, op),
        details={} if shape.is_empty else dict(choice.algorithm.details(shape, dtype, op)),
        rejected=choice.rejected,
    )
