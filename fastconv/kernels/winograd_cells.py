"""Winograd's transforms of channels-last arrays, written as those of `fastconv.kernels.winograd_transforms`.

The lanes are channels, of which only the first `count` are read or written. Cells lie where a table says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.kernels.winograd_points import TAPS, float_matrices
from fastconv.kernels.winograd_transforms import Code, Form, both_axes

_WORD = ir.IntType(64)


def _tabled(code: Code, table: Any, skip: Any, number: int) -> list[Any]:
    """The addresses of a table, each with `skip` bytes added."""
    builder = code.builder
    entries = builder.inttoptr(table, _WORD.as_pointer())
    return [
        builder.add(builder.load(builder.gep(entries, [ir.Constant(_WORD, i)])), skip) for i in range(number)
    ]


def _square(values: Sequence[Any], side: int) -> list[list[Any]]:
    return [list(values[i : i + side]) for i in range(0, side * side, side)]


def _transposed(matrix: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*matrix, strict=True)]


@intrinsic
def transform_cells(
    typingctx: Any, table: Any, skip: Any, count: Any, target: Any, point_bytes: Any, form: Any
) -> Any:
    """B' d B of the cells of a tile, whose addresses `table` has."""
    if not isinstance(form, Form):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, skip, count, target, point_bytes = args[:5]
        code, span = Code(builder, form.vector), form.span
        mask = code.mask(0, ir.Constant(_WORD, 0), count)
        cells = [code.load_masked(at, mask) for at in _tabled(code, table, skip, span * span)]
        result = both_axes(code.rows, float_matrices(form.tile)[2], _square(cells, span))
        for place, value in enumerate(value for row in result for value in row):
            code.store(value, code.moved(target, point_bytes, place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, form), codegen


@intrinsic
def transform_filter(
    typingctx: Any, source: Any, tap_bytes: Any, count: Any, target: Any, point_bytes: Any, form: Any
) -> Any:
    """G g G' of the filters of a vector of output channels."""
    if not isinstance(form, Form):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, tap_bytes, count, target, point_bytes = args[:5]
        code = Code(builder, form.vector)
        mask = code.mask(0, ir.Constant(_WORD, 0), count)
        taps = [code.load_masked(code.moved(source, tap_bytes, tap), mask) for tap in range(TAPS * TAPS)]
        result = both_axes(code.rows, float_matrices(form.tile)[1], _square(taps, TAPS))
        for place, value in enumerate(value for row in result for value in row):
            code.store(value, code.moved(target, point_bytes, place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, form), codegen


@intrinsic
def transform_products(
    typingctx: Any,
    source: Any,
    point_bytes: Any,
    bias: Any,
    least: Any,
    table: Any,
    skip: Any,
    count: Any,
    form: Any,
) -> Any:
    """A' m A of a tile, plus the vector at `bias`, and no less than `least`, to the addresses of `table`."""
    if not isinstance(form, Form):
        return None
    real = types.float32 if form.vector.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, point_bytes, bias, least, table, skip, count = args[:7]
        code, span = Code(builder, form.vector), form.span
        mask = code.mask(0, ir.Constant(_WORD, 0), count)
        sums = [code.load(code.moved(source, point_bytes, place)) for place in range(span * span)]
        shift, bound = code.load_masked(bias, mask), code.splat(least)
        result = both_axes(code.columns, float_matrices(form.tile)[0], _square(sums, span))
        places = _tabled(code, table, skip, form.tile**2)
        for value, place in zip((value for row in result for value in row), places, strict=True):
            value = builder.fadd(value, shift)
            value = builder.select(builder.fcmp_ordered("<", value, bound), bound, value)
            code.store_masked(value, place, mask)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, real, *[types.int64] * 3, form), codegen


@intrinsic
def transform_gradients(
    typingctx: Any, table: Any, skip: Any, count: Any, target: Any, point_bytes: Any, form: Any
) -> Any:
    """A g A' of the gradients of a tile's outputs, whose addresses `table` has."""
    if not isinstance(form, Form):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, skip, count, target, point_bytes = args[:5]
        code = Code(builder, form.vector)
        mask = code.mask(0, ir.Constant(_WORD, 0), count)
        cells = [code.load_masked(at, mask) for at in _tabled(code, table, skip, form.tile**2)]
        outputs = float_matrices(form.tile)[0]
        result = both_axes(code.rows, _transposed(outputs), _square(cells, form.tile))
        for place, value in enumerate(value for row in result for value in row):
            code.store(value, code.moved(target, point_bytes, place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, form), codegen


@intrinsic
def transform_back(
    typingctx: Any, source: Any, point_bytes: Any, target: Any, tap_bytes: Any, count: Any, form: Any
) -> Any:
    """G' m G: the gradients of the taps of a vector of filters."""
    if not isinstance(form, Form):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, point_bytes, target, tap_bytes, count = args[:5]
        code, span = Code(builder, form.vector), form.span
        mask = code.mask(0, ir.Constant(_WORD, 0), count)
        sums = [code.load(code.moved(source, point_bytes, place)) for place in range(span * span)]
        filters = float_matrices(form.tile)[1]
        result = both_axes(code.columns, _transposed(filters), _square(sums, span))
        for tap, value in enumerate(value for row in result for value in row):
            code.store_masked(value, code.moved(target, tap_bytes, tap), mask)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, form), codegen
