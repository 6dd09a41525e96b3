"""Winograd's transforms as straight-line vector code, written from the matrices of `winograd_points`.

A transform is a handful of additions and multiplications by constants on values that never leave the
registers, the same for every lane; the lanes are tiles, or output channels for the weight. `Form` carries
what the code depends on, tile and dtype, as a type: so a helper that is given one needs no constants.

Rows of G and of B' for two opposite points differ in the signs at odd places, so both come from an even and
an odd part; columns of A' likewise. That makes 12 operations of a product with 6 x 6 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastconv.kernels.microkernel import ROWS
from fastconv.kernels.simd import HAS_FMA, Vector, masked_store, perfect_shuffle
from fastconv.kernels.winograd_points import TAPS, float_matrices, strided_matrices

_WORD = ir.IntType(64)
_I32 = ir.IntType(32)


def cells_of_piece(lanes: int, stride: int = 1) -> int:
    """Cells of a row of x that `split_rows` cuts at once: two vectors, unless those are very short."""
    return max(2 * lanes, 16 * stride)


def span_of(tile: int, stride: int) -> int:
    """Cells that a tile reads along an axis, and points that it has there."""
    return (tile - 1) * stride + TAPS


def tiles_of_piece(lanes: int, tile: int, stride: int = 1) -> int:
    """Tiles whose rows lie within such a piece."""
    return (cells_of_piece(lanes, stride) - span_of(tile, stride)) // (tile * stride) + 1


def room_of_piece(lanes: int, tile: int, stride: int = 1) -> int:
    """Tiles that `split_rows` stores; beyond `tiles_of_piece` with arbitrary numbers."""
    return cells_of_piece(lanes, stride) // (tile * stride)


class Form(types.Type):
    """F(tile x tile, TAPS x TAPS) of a stride, 1 or 2, on vectors of a dtype."""

    def __init__(self, tile: int, bits: int, stride: int = 1) -> None:
        self.tile, self.stride, self.vector = tile, stride, Vector("real", bits)
        self.span = span_of(tile, stride)
        super().__init__(name=f"winograd({tile}, {stride}, {self.vector.name})")

    @property
    def matrices(self) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
        """A', G and B'; with stride 2 of the even cells."""
        return float_matrices(self.tile) if self.stride == 1 else strided_matrices(self.tile)


@register_model(Form)
class _FormModel(models.PrimitiveModel):
    def __init__(self, manager: Any, form: Form) -> None:
        super().__init__(manager, form, ir.IntType(8))


@intrinsic(prefer_literal=True)
def form_of(typingctx: Any, tile: Any, bits: Any) -> Any:
    """The form for `tile` outputs along an axis; both constants."""
    if not isinstance(tile, types.IntegerLiteral) or not isinstance(bits, types.IntegerLiteral):
        return None
    form = Form(tile.literal_value, bits.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(8), 0)

    return form(tile, bits), codegen


@intrinsic(prefer_literal=True)
def strided_form_of(typingctx: Any, tile: Any, stride: Any, bits: Any) -> Any:
    """`form_of` with a stride, a constant, too."""
    if not all(isinstance(argument, types.IntegerLiteral) for argument in (tile, stride, bits)):
        return None
    form = Form(tile.literal_value, bits.literal_value, stride.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(8), 0)

    return form(tile, stride, bits), codegen


# --- straight-line code -------------------------------------------------------------------------


class Code:
    """Writes vector code, of `lanes` lanes or as many as a register has."""

    def __init__(self, builder: Any, like: Vector, lanes: int = 0) -> None:
        self.builder, self.like = builder, like
        self.lanes = lanes or like.lanes
        self.size = like.bits // 8
        self.kind = ir.VectorType(like.element, self.lanes)

    def _call(self, name: str, *arguments: Any) -> Any:
        suffix = f"v{self.lanes}f{self.like.bits}"
        kind = ir.FunctionType(self.kind, [a.type for a in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name.format(suffix))
        return self.builder.call(function, arguments)

    def moved(self, address: Any, step: Any, times: int) -> Any:
        """The address `times` steps on."""
        return (
            self.builder.add(address, self.builder.mul(step, ir.Constant(_WORD, times))) if times else address
        )

    def _pointer(self, address: Any, kind: ir.Type) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def load(self, address: Any) -> Any:
        value = self.builder.load(self._pointer(address, self.kind))
        value.align = self.size
        return value

    def load_masked(self, address: Any, mask: Any) -> Any:
        """Zero where not `mask`; nothing is read there."""
        align, zero = ir.Constant(_I32, self.size), ir.Constant(self.kind, None)
        return self._call("llvm.masked.load.{}.p0", self._pointer(address, self.kind), align, mask, zero)

    def store_masked(self, value: Any, address: Any, mask: Any) -> None:
        """Nothing is written where not `mask`."""
        pointer = self._pointer(address, self.kind)
        masked_store(self.builder, value, pointer, mask, self.like)

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self._pointer(address, value.type)).align = self.size

    def splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, undefined, self._places([0] * self.lanes))

    def splat_at(self, address: Any) -> Any:
        """The real at `address` in every lane."""
        return self.splat(self.builder.load(self._pointer(address, self.like.element)))

    @staticmethod
    def _places(lanes: Sequence[int]) -> Any:
        return ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))

    def mask(self, first: int, low: Any, high: Any) -> Any:
        """Lanes whose number, counted from `first`, is in [low, high)."""
        kind = ir.VectorType(_I32, self.lanes)
        numbers = ir.Constant(kind, list(range(first, first + self.lanes)))
        low, high = (self.splat(self.builder.trunc(bound, _I32)) for bound in (low, high))
        above = self.builder.icmp_signed(">=", numbers, low)
        return self.builder.and_(above, self.builder.icmp_signed("<", numbers, high))

    def pick(self, vectors: list[Any], lanes: list[int]) -> Any:
        """The given lanes of the concatenated vectors, a power of two of them and more than one."""
        half = len(vectors) // 2
        if half == 1:
            return self.builder.shuffle_vector(*vectors, self._places(lanes))
        border = half * self.lanes
        low = self.pick(vectors[:half], [lane if lane < border else 0 for lane in lanes])
        high = self.pick(vectors[half:], [max(0, lane - border) for lane in lanes])
        count = len(lanes)
        sides = [i if lane < border else count + i for i, lane in enumerate(lanes)]
        return self.builder.shuffle_vector(low, high, self._places(sides))

    def constant(self, value: float) -> Any:
        return ir.Constant(self.kind, [ir.Constant(self.like.element, value)] * self.lanes)

    def times(self, value: Any, factor: float) -> Any:
        return value if factor == 1 else self.builder.fmul(value, self.constant(factor))

    def plus(self, total: Any, value: Any, factor: float) -> Any:
        """total + value * factor."""
        if factor == 1:
            return self.builder.fadd(total, value)
        if factor == -1:
            return self.builder.fsub(total, value)
        name = "llvm.fma.{}" if HAS_FMA else "llvm.fmuladd.{}"
        return self._call(name, value, self.constant(factor), total)

    def sum(self, factors: Sequence[float], values: Sequence[Any]) -> Any:
        """The sum of factor * value; some factor is not 0."""
        terms = [(f, v) for f, v in zip(factors, values, strict=True) if f]
        terms.sort(key=lambda term: abs(term[0]) != 1)  # what needs no multiplication first
        terms.sort(key=lambda term: term[0] != 1)
        factor, value = terms[0]
        total = self.times(value, factor)
        for factor, value in terms[1:]:
            total = self.plus(total, value, factor)
        return total

    def rows(self, matrix: list[list[float]], values: Sequence[Any]) -> list[Any]:
        """matrix (G or B') times values."""
        result: list[Any] = [None] * len(matrix)
        for i, row in enumerate(matrix):
            if result[i] is not None:
                continue
            even = [f if k % 2 == 0 else 0.0 for k, f in enumerate(row)]
            odd = [f if k % 2 else 0.0 for k, f in enumerate(row)]
            mirrored = [e - o for e, o in zip(even, odd, strict=True)]
            if mirrored != row and mirrored in matrix[i + 1 :]:
                scale = next(f for f in reversed(odd) if f)
                evens = self.sum(even, values)
                odds = self.sum([f / scale for f in odd], values)
                result[i] = self.plus(evens, odds, scale)
                result[matrix.index(mirrored, i + 1)] = self.plus(evens, odds, -scale)
            else:
                result[i] = self.sum(row, values)
        return result

    def columns(self, matrix: list[list[float]], values: Sequence[Any]) -> list[Any]:
        """matrix (A') times values."""
        columns = [list(column) for column in zip(*matrix, strict=True)]
        folded: list[tuple[list[float], Any]] = []
        done: set[int] = set()
        for j, column in enumerate(columns):
            if j in done:
                continue
            mirrored = [-f if i % 2 else f for i, f in enumerate(column)]
            if mirrored != column and mirrored in columns[j + 1 :]:
                k = columns.index(mirrored, j + 1)
                done.add(k)
                evens = [0.0 if i % 2 else f for i, f in enumerate(column)]
                odds = [f if i % 2 else 0.0 for i, f in enumerate(column)]
                folded.append((evens, self.plus(values[j], values[k], 1)))
                folded.append((odds, self.plus(values[j], values[k], -1)))
            else:
                folded.append((column, values[j]))
        factors = list(zip(*(column for column, _ in folded), strict=True))
        return [self.sum(row, [value for _, value in folded]) for row in factors]

    def rows_of(self, form: Form, matrix: list[list[float]], values: Sequence[Any]) -> list[Any]:
        """`rows`; with stride 2 that of the even values, and the odd ones as they are."""
        if form.stride == 1:
            return self.rows(matrix, values)
        return [*self.rows(matrix, values[::2]), *values[1::2]]

    def columns_of(self, form: Form, matrix: list[list[float]], values: Sequence[Any]) -> list[Any]:
        """`columns`; with stride 2 that of the first values, plus the others."""
        count = len(matrix[0])
        results = self.columns(matrix, values[:count])
        if form.stride == 1:
            return results
        return [self.plus(result, value, 1) for result, value in zip(results, values[count:], strict=True)]


_Product = Callable[[list[list[float]], Sequence[Any]], list[Any]]


def both_axes(product: _Product, matrix: list[list[float]], square: list[list[Any]]) -> list[list[Any]]:
    """matrix x square x matrix'."""
    columns = [product(matrix, column) for column in zip(*square, strict=True)]
    return [product(matrix, row) for row in zip(*columns, strict=True)]


# --- the transforms -----------------------------------------------------------------------------


@intrinsic
def split_rows(
    typingctx: Any,
    source: Any,
    row_bytes: Any,
    first_row: Any,
    height: Any,
    low: Any,
    high: Any,
    zeros: Any,
    target: Any,
    strip_bytes: Any,
    form: Any,
) -> Any:
    """B' d of tiles beside each other, for the columns of each.

    `source` is where the first cell of the first row would be, `row_bytes` apart the rows. Row `first_row` +
    a exists if in [0, height), and of it the cells [low, high) from `source` on: nothing else is read, and
    counts as zero. `zeros` is memory of as many cells. Strip a * span + b, of those `strip_bytes` apart from
    `target` on, gets the cell (a, b) of tile after tile.
    """
    if not isinstance(form, Form):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, row_bytes, first_row, height, low, high, zeros, target, strip_bytes = args[:9]
        code, span = Code(builder, form.vector), form.span
        matrix = form.matrices[2]
        rows = []
        for a in range(span):
            number = builder.add(first_row, ir.Constant(_WORD, a))
            # one comparison: a negative number is a very large one
            inside = builder.icmp_unsigned("<", number, height)
            rows.append(builder.select(inside, code.moved(source, row_bytes, a), zeros))
        cells = cells_of_piece(code.lanes, form.stride)
        parts: list[list[Any]] = []  # by part of the piece and row
        for first in range(0, cells, code.lanes):
            mask = code.mask(first, low, high)
            offset = ir.Constant(_WORD, first * code.size)
            loaded = [code.load_masked(builder.add(row, offset), mask) for row in rows]
            parts.append(code.rows_of(form, matrix, loaded))
        for a in range(span):
            for b in range(span):
                room = room_of_piece(code.lanes, form.tile, form.stride)
                places = [form.tile * form.stride * u + b for u in range(room)]
                strip = code.pick([part[a] for part in parts], [min(place, cells - 1) for place in places])
                code.store(strip, code.moved(target, strip_bytes, a * span + b))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, form), codegen


@intrinsic
def transform_strips(
    typingctx: Any, source: Any, strip_bytes: Any, target: Any, point_bytes: Any, form: Any
) -> Any:
    """B' d B of a vector of tiles, from the strips of B' d."""
    if not isinstance(form, Form):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, strip_bytes, target, point_bytes = args[:4]
        code, span = Code(builder, form.vector), form.span
        matrix = form.matrices[2]
        for a in range(0, span * span, span):
            row = [code.load(code.moved(source, strip_bytes, a + b)) for b in range(span)]
            for b, value in enumerate(code.rows_of(form, matrix, row)):
                code.store(value, code.moved(target, point_bytes, a + b))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, form), codegen


@intrinsic
def transform_taps(
    typingctx: Any, source: Any, tap_bytes: Any, target: Any, point_bytes: Any, form: Any
) -> Any:
    """G g G' of the filters of ROWS output channels, which lie beside each other.

    With stride 2 all points of the odd cells have one factor, which comes last, once.
    """
    if not isinstance(form, Form):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, tap_bytes, target, point_bytes = args[:4]
        code = Code(builder, form.vector, ROWS)
        taps = [
            [code.load(code.moved(source, tap_bytes, TAPS * i + j)) for j in range(TAPS)] for i in range(TAPS)
        ]
        result = both_axes(partial(code.rows_of, form), form.matrices[1], taps)
        for place, value in enumerate(value for row in result for value in row):
            code.store(value, code.moved(target, point_bytes, place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, form), codegen


@intrinsic
def transform_sums(
    typingctx: Any,
    source: Any,
    point_bytes: Any,
    bias: Any,
    least: Any,
    target: Any,
    row_bytes: Any,
    form: Any,
) -> Any:
    """A' m A of a vector of tiles, plus the real at `bias`, and no less than `least`, as rows of cells.

    Each of the tile's rows has the cells of tile after tile; the rows are `row_bytes` apart.
    """
    if not isinstance(form, Form):
        return None
    real = types.float32 if form.vector.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, point_bytes, bias, least, target, row_bytes = args[:6]
        code, span = Code(builder, form.vector), form.span
        sums = [
            [code.load(code.moved(source, point_bytes, a * span + b)) for b in range(span)]
            for a in range(span)
        ]
        shift, bound = code.splat_at(bias), code.splat(least)
        for i, row in enumerate(both_axes(partial(code.columns_of, form), form.matrices[0], sums)):
            vectors = []
            for value in row:
                value = builder.fadd(value, shift)
                vectors.append(builder.select(builder.fcmp_ordered("<", value, bound), bound, value))
            for _ in range(form.tile.bit_length() - 1):
                vectors = perfect_shuffle(builder, vectors, code.lanes)
            for j, vector in enumerate(vectors):
                offset = ir.Constant(_WORD, j * code.lanes * code.size)
                code.store(vector, builder.add(code.moved(target, row_bytes, i), offset))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, real, types.int64, types.int64, form), codegen
