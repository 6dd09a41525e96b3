"""The loops of x86 machine code: what is multiplied in them, how wide, and what goes to the stack."""

from __future__ import annotations

import re
from typing import NamedTuple


class Loop(NamedTuple):
    """A loop without another one in it, and without a call."""

    multiplies: int
    width: int  # bits of the registers that are multiplied
    fused: bool  # with the addition
    spills: int  # vectors that are written to the stack
    reloads: int  # that are read from it

    @classmethod
    def of(cls, lines: list[str]) -> Loop:
        text = [line for line in lines if re.match(r"v?(fmadd\d*p|mulp)[sd]", line)]
        widths = [
            {"x": 128, "y": 256, "z": 512}[found]
            for line in text
            for found in re.findall(r"%([xyz])mm", line)
        ]
        fused = [line for line in text if "fmadd" in line]
        moves = [line for line in lines if re.match(r"v?mov[a-z0-9]*\s", line) and "mm" in line]
        stack = [line for line in moves if re.search(r"\(%(rsp|rbp)", line)]
        stores = [line for line in stack if re.search(r"\(%(rsp|rbp)[^)]*\)$", line)]
        return cls(len(text), max(widths, default=0), bool(fused), len(stores), len(stack) - len(stores))


def loops(assembly: str) -> list[Loop]:
    """Every innermost loop, in AT&T's notation."""
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.?\w+:", line)}
    spans = []
    for at, line in enumerate(lines):
        jump = re.fullmatch(r"j\w+\s+(\.\w+)", line)
        if jump and labels.get(jump[1], at) < at:
            spans.append((labels[jump[1]], at))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [Loop.of(lines[first:last]) for first, last in inner]
