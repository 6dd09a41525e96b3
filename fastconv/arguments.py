"""Arguments one by one: brought into a form that can be compared and cached, and checked.

Python ints do not overflow, and kernels have no bounds checks: nothing that is not accepted here, or by
`fastconv.shapes` which looks at the arguments together, may reach one. Messages name the function, the facts
and the rule.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

#: An int, or one int per spatial axis.
Ints = int | Sequence[int]
#: Also pairs (before, after) per axis, "valid", "same" or "same_lower".
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]
Pairs = tuple[tuple[int, int], ...]

LAYOUTS = ("NCHW", "NHWC")

#: Largest stride, dilation, padding or kernel size: products of two of them stay within an int64.
LARGEST_ARGUMENT = 2**31 - 1
#: Most elements an array may have: their byte offsets stay within an int64.
LARGEST_SIZE = 2**59
#: Most entries, and levels of sequences within sequences, of an argument: no right one has more.
_MOST_ENTRIES, _MOST_LEVELS = 64, 3


def _physical_memory() -> int:
    """Bytes of memory that the machine has, or as many as can be addressed where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 8 * LARGEST_SIZE


#: Most bytes that an array made here may have. Systems promise more memory than they have, and kill who uses
#: it: what cannot fit is refused before.
LARGEST_BYTES = _physical_memory()


def shown(value: Any) -> str:
    """A value in a message: short, and safe whatever its own `repr` does.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    try:
        text = repr(value)
    except Exception:  # a list in itself, an int of too many digits, what the user wrote
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:60]}..."


def canonical(value: Any, levels: int = _MOST_LEVELS) -> Any:
    """An argument in a hashable form that tells apart what the checks below tell apart.

    >>> canonical([1, (2, 3)])
    (1, (2, 3))
    """
    if type(value) is int or isinstance(value, str) or value is None:
        return value
    if isinstance(value, (bool, np.bool_, bytes)):
        return _Rejected(value)
    try:
        return operator.index(value)
    except TypeError:
        pass
    if isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim > 0):
        if levels and len(value) <= _MOST_ENTRIES:
            return tuple(canonical(item, levels - 1) for item in value)
    return _Rejected(value)


class _Rejected:
    """Stands for a value that is no int and no sequence, so that the error can show it.

    Compared by identity: 1.0 == 1, and True == 1, but neither may find what is cached for 1.
    """

    def __init__(self, value: Any) -> None:
        self.text = f"{shown(value)} ({type(value).__name__})"

    def __repr__(self) -> str:
        return self.text


def integer(function: str, name: str, value: Any, least: int, most: int, rule: str) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be {rule}, got {shown(value)}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{function}: {name} must be {bound}, got {shown(value)}")
    return value


def per_axis(function: str, name: str, value: Any, rank: int, least: int = 1) -> tuple[int, ...]:
    """One int per spatial axis from an int or a sequence of `rank` ints.

    >>> per_axis("conv2d", "stride", 2, 2), per_axis("conv2d", "stride", (1, 3), 2)
    ((2, 2), (1, 3))
    """
    rule = f"an int or {rank} ints"
    if isinstance(value, tuple):
        if len(value) != rank:
            raise ValueError(
                f"{function}: {name} must be {rule} (one per spatial axis), got {len(value)}: {shown(value)}"
            )
        return tuple(integer(function, name, item, least, LARGEST_ARGUMENT, rule) for item in value)
    return (integer(function, name, value, least, LARGEST_ARGUMENT, rule),) * rank


def padding_pairs(
    function: str,
    padding: Any,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pairs:
    """(before, after) per axis from any form of `padding`.

    >>> padding_pairs("conv2d", "same", (6, 5), (3, 2), (1, 1), (1, 1))
    ((1, 1), (0, 1))
    >>> padding_pairs("conv2d", ((0, 1), (2, 3)), (6, 5), (3, 2), (1, 1), (1, 1))
    ((0, 1), (2, 3))
    """
    rank = len(size)
    if padding == "valid":
        return ((0, 0),) * rank
    if padding in ("same", "same_lower"):
        pairs = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            small, large = total // 2, total - total // 2
            pairs.append((small, large) if padding == "same" else (large, small))
        return tuple(pairs)
    rule = f'an int, {rank} ints, {rank} (before, after) pairs, "valid", "same" or "same_lower"'
    if isinstance(padding, str):
        raise ValueError(f"{function}: padding must be {rule}, got {shown(padding)}")
    if not isinstance(padding, tuple):
        padding = (padding,) * rank
    if len(padding) != rank:
        raise ValueError(f"{function}: padding must be {rule}, got {len(padding)} entries: {shown(padding)}")
    pairs = []
    for entry in padding:
        pair = entry if isinstance(entry, tuple) else (entry, entry)
        if len(pair) != 2:
            raise ValueError(f"{function}: padding must be {rule}, got {shown(padding)}")
        before, after = (integer(function, "padding", item, 0, LARGEST_ARGUMENT, rule) for item in pair)
        pairs.append((before, after))
    return tuple(pairs)


def check_choice(function: str, name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Refuse what is not one of `choices`, of whatever type it is."""
    known = value is None or isinstance(value, str)
    if not known or value not in choices:
        names = [f'"{choice}"' if choice else "None" for choice in choices]
        rule = " or ".join(names) if len(names) == 2 else "one of " + ", ".join(names)
        raise ValueError(f"{function}: {name} must be {rule}, got {shown(value)}")


def check_layout(function: str, layout: Any) -> None:
    check_choice(function, "layout", layout, LAYOUTS)


def check_size(function: str, name: str, shape: Sequence[int]) -> None:
    """Refuse an array too large to address."""
    if prod(shape) > LARGEST_SIZE:
        raise ValueError(f"{function}: {name} would have shape {tuple(shape)}, too large to address")


def real(function: str, name: str, value: Any) -> float:
    """A number, of whatever type.

    >>> real("f", "lr", 1)
    1.0
    """
    array = isinstance(value, (np.ndarray, np.generic))
    if isinstance(value, bool) or (array and (value.ndim or value.dtype.kind not in "iuf")):
        raise TypeError(f"{function}: {name} must be a number, got {shown(value)}")
    if not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise TypeError(f"{function}: {name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{function}: {name} must fit a float, got {shown(value)}") from error
    except Exception as error:  # what the user wrote
        raise TypeError(f"{function}: {name} must be a number, got {shown(value)}") from error


def check_bytes(function: str, name: str, shape: Sequence[int], dtype: np.dtype) -> None:
    """Refuse to make an array that no memory holds."""
    size = prod(shape) * dtype.itemsize
    if size > LARGEST_BYTES:
        raise ValueError(
            f"{function}: {name} would have shape {tuple(shape)}, {size:,} bytes, more than the "
            f"{LARGEST_BYTES:,} bytes of memory that there are"
        )


def shape_argument(function: str, name: str, value: Any) -> tuple[int, ...]:
    """A whole shape given by the user: a sequence of non-negative ints."""
    value = canonical(value)
    if not isinstance(value, tuple):
        raise TypeError(f"{function}: {name} must be a sequence of ints, got {shown(value)}")
    most = LARGEST_SIZE
    return tuple(integer(function, name, item, 0, most, "a sequence of ints") for item in value)


def adaptive_output(function: str, output_size: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    """Output size per axis of an adaptive pooling; `output_size` in `canonical` form, None keeps an axis."""
    rank = len(size)
    wanted = output_size if isinstance(output_size, tuple) else (output_size,) * rank
    if len(wanted) != rank:
        raise ValueError(
            f"{function}: output_size must be an int or {rank} ints or Nones, got {shown(output_size)}"
        )
    if min(size) < 1:
        raise ValueError(f"{function}: every spatial axis must be at least 1, got {size}")
    rule = f"an int, or {rank} ints or Nones"
    output = tuple(
        n if item is None else integer(function, "output_size", item, 1, LARGEST_ARGUMENT, rule)
        for item, n in zip(wanted, size, strict=True)
    )
    check_size(function, "a plane of the output", output)
    return output


def unpool_output(
    function: str,
    output_size: Any,
    x_shape: tuple[int, ...],
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: Pairs,
) -> tuple[int, ...]:
    """Spatial size of what was pooled to `size`; `output_size` in `canonical` form, None for the default.

    Given are one int per axis; they may differ from the default by less than the stride, as much as a pooling
    may leave out.
    """
    default = tuple(
        (n - 1) * s + k - before - after
        for n, s, k, (before, after) in zip(size, stride, kernel, pads, strict=True)
    )
    if output_size is None:
        output = default
    else:
        rule = f"None or {len(size)} ints, one per spatial axis"
        if not isinstance(output_size, tuple):
            raise TypeError(f"{function}: output_size must be {rule}, got {output_size!r}")
        if len(output_size) != len(size):
            raise ValueError(f"{function}: output_size must be {rule}, got {output_size}")
        output = tuple(
            integer(function, "output_size", item, 0, LARGEST_ARGUMENT, rule) for item in output_size
        )
        for item, expected, s in zip(output, default, stride, strict=True):
            if abs(item - expected) >= s:
                raise ValueError(
                    f"{function}: output_size must differ from {default} by less than the stride, "
                    f"{stride}, got {output}; x.shape = {x_shape}, kernel_size = {kernel}"
                )
    if min(*output, *size) < 1:
        raise ValueError(
            f"{function}: the output would have spatial shape {output}; every axis must be at least 1, and "
            f"so must those of x; x.shape = {x_shape}, kernel_size = {kernel}, stride = {stride}, "
            f"padding = {pads}"
        )
    check_size(function, "a plane of the output", output)
    return output
