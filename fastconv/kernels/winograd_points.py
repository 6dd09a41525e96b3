"""The matrices of Winograd's minimal filtering, derived from points.

`tile` outputs of a correlation with a filter g of TAPS taps are, for the tile + TAPS - 1 inputs d,

    y = A' [(G g) * (B' d)]          with * cell by cell

(S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016). Correlation is the transpose of multiplying polynomials, and those are
multiplied here by evaluating both at points p and at infinity (Toom and Cook), and interpolating:

    A' = [p^i]                       the outputs' polynomial, evaluated
    G  = [p^i / N_p]                 the filter's, with N_p the product of p - q over the other points q
    B' = coefficients of the product of x - q over the other points q

and for infinity the coefficient of the highest power. In two dimensions each is applied along both axes:
F(4 x 4, 3 x 3) has 36 products where the definition has 144.

The points decide how large the numbers become in between, and so the rounding errors. Zero, plus and minus
1/sqrt(2), plus and minus sqrt(2) are symmetric about zero, which halves the additions, and closed under 1/p,
which keeps numbers of one size: the largest errors are a quarter to a fifth of those with 0, +-1, +-2, which
every textbook has (measured on layers of 64 to 512 channels). Everything is exact up to the last step, the
rounding to float64.

With stride 2 the taps 0 and 2 meet the even cells, and tap 1 the odd ones: the sum of a correlation of stride
1 with two taps, which needs tile + 1 products, and of `tile` products without more ado. In two dimensions
that is 81 products for 4 x 4 outputs, where the definition has 144. Its points are +-1/2, +-3/2 and infinity:
of those that were tried the largest errors are the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

#: Taps of the filter along an axis.
TAPS = 3

Matrix = list[list[Any]]


@dataclass(frozen=True)
class Root2:
    """The number rational + root * sqrt(2), exactly.

    >>> Root2(0, 1) * Root2(0, 1) == Root2(2), 1 / Root2(0, 1) == Root2(0, Fraction(1, 2)), float(Root2(1, 1))
    (True, True, 2.414213562373095)
    """

    rational: Fraction | int = 0
    root: Fraction | int = 0

    def __add__(self, other: Root2 | int) -> Root2:
        other = _root2(other)
        return Root2(self.rational + other.rational, self.root + other.root)

    def __neg__(self) -> Root2:
        return Root2(-self.rational, -self.root)

    def __sub__(self, other: Root2 | int) -> Root2:
        return self + -_root2(other)

    def __mul__(self, other: Root2 | int) -> Root2:
        other = _root2(other)
        return Root2(
            self.rational * other.rational + 2 * self.root * other.root,
            self.rational * other.root + self.root * other.rational,
        )

    def __truediv__(self, other: Root2 | int) -> Root2:
        other = _root2(other)
        norm = Fraction(other.rational**2 - 2 * other.root**2)
        return self * Root2(other.rational / norm, -other.root / norm)

    def __rtruediv__(self, other: int) -> Root2:
        return _root2(other) / self

    def __float__(self) -> float:
        with localcontext() as context:
            context.prec = 50
            rational, root = (Fraction(part) for part in (self.rational, self.root))
            value = Decimal(rational.numerator) / rational.denominator
            value += Decimal(root.numerator) / root.denominator * Decimal(2).sqrt()
            return float(value)

    __radd__ = __add__
    __rmul__ = __mul__


def _root2(value: Root2 | Fraction | int) -> Root2:
    return value if isinstance(value, Root2) else Root2(value)


_HALF = Fraction(1, 2)
#: The finite points, by outputs along an axis.
POINTS: dict[int, Sequence[Root2]] = {
    2: (Root2(0), Root2(1), Root2(-1)),
    4: (Root2(0), Root2(0, _HALF), Root2(0, -_HALF), Root2(0, 1), Root2(0, -1)),
}
#: Those of the even cells with stride 2.
STRIDED_POINTS: dict[int, Sequence[Fraction]] = {
    4: (_HALF, -_HALF, 3 * _HALF, -3 * _HALF),
}


def _times_root(polynomial: Sequence[Any], root: Any) -> list[Any]:
    """The coefficients, the lowest first, of `polynomial` times x - root."""
    shifted = [0, *polynomial]
    return [a + root * -b for a, b in zip(shifted, [*polynomial, 0], strict=True)]


def _product(roots: Sequence[Any]) -> list[Any]:
    """The coefficients of the product of x - root."""
    polynomial: list[Any] = [1]
    for root in roots:
        polynomial = _times_root(polynomial, root)
    return polynomial


def _powers(point: Any, count: int) -> list[Any]:
    powers = [point * 0 + 1]
    for _ in range(count - 1):
        powers.append(powers[-1] * point)
    return powers


def matrices(points: Sequence[Any], tile: int, taps: int = TAPS) -> tuple[Matrix, Matrix, Matrix]:
    """A', G and B' for tile + taps - 2 finite points, numbers of a field: Fraction, say, or Root2.

    >>> a, g, b = matrices([Fraction(0), Fraction(1), Fraction(-1)], 2)
    >>> for row in b:
    ...     print(*row)
    -1 0 1 0
    0 1 1 0
    0 -1 1 0
    0 -1 0 1
    """
    assert len(points) == tile + taps - 2
    a = [list(row) for row in zip(*(_powers(p, tile) for p in points), strict=True)]
    for i, row in enumerate(a):
        row.append(int(i == tile - 1))
    g, b = [], []
    for j, point in enumerate(points):
        others = [q for i, q in enumerate(points) if i != j]
        scale = point * 0 + 1
        for other in others:
            scale = scale * (point - other)
        g.append([power / scale for power in _powers(point, taps)])
        b.append([*_product(others), 0])
    g.append([0] * (taps - 1) + [1])
    b.append(_product(points))
    return a, g, b


def float_matrices(tile: int) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """A', G and B' for the points of `tile`, rounded.

    >>> for row in float_matrices(2)[1]:
    ...     print(*row)
    -1.0 0.0 0.0
    0.5 0.5 0.5
    0.5 -0.5 0.5
    0.0 0.0 1.0
    """
    a, g, b = ([[float(x) for x in row] for row in matrix] for matrix in matrices(POINTS[tile], tile))
    return a, g, b


def strided_matrices(tile: int) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """A', G and B' of the even cells and of taps 0 and 2, with stride 2, rounded."""
    exact = matrices(STRIDED_POINTS[tile], tile, TAPS - 1)
    a, g, b = ([[float(x) for x in row] for row in matrix] for matrix in exact)
    return a, g, b
