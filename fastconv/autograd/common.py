"""What the primitives of both kinds share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: An ndarray, or the box that autograd puts around one that it follows.
Boxed = Any
#: A function of this module, for one number of spatial axes.
Function = Callable[..., Any]


def like(g: Boxed, ans: Boxed) -> Boxed:
    """What comes back in the dtype of what went forward, which a loss in float64 may have changed."""
    return g if g.dtype == ans.dtype else g.astype(ans.dtype)


def of_rank(name: str, make: Callable[[int, str], Function]) -> list[Function]:
    """`make(rank, name)` for one, two and three axes, under the names that fastconv has."""
    functions = []
    for rank in (1, 2, 3):
        own = name.format(rank)
        function = make(rank, own)
        function.__name__ = function.__qualname__ = own
        function.__doc__ = f"`fastconv.{own}`, for autograd."
        functions.append(function)
    return functions
