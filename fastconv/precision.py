"""How exact results must be: whether algorithms may trade rounding errors for speed."""

from __future__ import annotations

from typing import Any

from fastconv.arguments import shown

_CHOICES = ("high", "highest")
_precision = "high"


def set_float32_precision(precision: Any) -> None:
    """Say how exact convolutions must be, for the whole process.

    Parameters
    ----------
    precision : "high" or "highest"
        With "high", the default, convolutions may be computed by Winograd's minimal filtering, which needs
        fewer multiplications. Its errors come from all cells of a tile, so that a small result next to large
        ones is less exact, and an infinite one may make NaN of others. With "highest" that is ruled out, for
        float64 as well.

    Raises
    ------
    ValueError
        For anything else.

    Examples
    --------
    >>> set_float32_precision("high")
    """
    global _precision
    if not isinstance(precision, str) or precision not in _CHOICES:
        names = " or ".join(f'"{choice}"' for choice in _CHOICES)
        raise ValueError(f"set_float32_precision: precision must be {names}, got {shown(precision)}")
    _precision = precision


def get_float32_precision() -> str:
    """How exact convolutions must be: "high" or "highest".

    Returns
    -------
    str

    Examples
    --------
    >>> get_float32_precision()
    'high'
    """
    return _precision
