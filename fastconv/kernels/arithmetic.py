"""More on vectors than `simd` has: roots and sums of lanes, truth values, and lanes kept as bytes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.kernels.simd import (
    HAS_FMA,
    Vector,
    _binary,
    _call,
    _is,
    _is_number,
    _scalar,
    _shuffle,
    _suffix,
    first_lanes,
)

subtract = _binary("fsub")


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one rounding where the CPU can."""
    if not (a == b == c and _is("real", a)):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.{'fma' if HAS_FMA else 'fmuladd'}.{_suffix(a)}", a.llvm, list(args))

    return a(a, b, c), codegen


@intrinsic
def root(typingctx: Any, a: Any) -> Any:
    """The square root of each lane; ints stay as they are, for code that has them in a branch not taken."""
    if not _is_number(a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if a.kind != "real":
            return args[0]
        return _call(builder, f"llvm.sqrt.{_suffix(a)}", a.llvm, list(args))

    return a(a), codegen


@intrinsic
def lane_sum(typingctx: Any, a: Any) -> Any:
    """The sum of the lanes, halves onto halves: fewer steps than `simd.total` has."""
    if not _is("real", a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, half = args[0], a.lanes // 2
        while half:
            upper = _shuffle(builder, value, value, list(range(half, 2 * half)))
            lower = _shuffle(builder, value, value, list(range(half)))
            value, half = builder.fadd(lower, upper), half // 2
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return _scalar(a)(a), codegen


# --- truth values -------------------------------------------------------------------------------


@intrinsic
def above(typingctx: Any, a: Any, b: Any) -> Any:
    """Where a > b; nowhere where either is NaN."""
    if a != b or not _is("real", a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fcmp_ordered(">", *args)

    return Vector("mask", a.bits)(a, b), codegen


@intrinsic
def same(typingctx: Any, a: Any, b: Any) -> Any:
    """Where two int vectors are equal."""
    if a != b or not _is("int", a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.icmp_signed("==", *args)

    return Vector("mask", a.bits)(a, b), codegen


# --- bytes --------------------------------------------------------------------------------------


def _bytes(vector: Vector) -> ir.VectorType:
    return ir.VectorType(ir.IntType(8), vector.lanes)


@intrinsic
def store_bytes(typingctx: Any, address: Any, value: Any, count: Any) -> Any:
    """The first `count` lanes of an int vector, from 0 to 255, to as many bytes."""
    if not _is("int", value):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow = builder.trunc(args[1], _bytes(value))
        pointer = builder.inttoptr(args[0], narrow.type.as_pointer())
        mask = first_lanes(builder, args[2], value.lanes)
        name = f"llvm.masked.store.v{value.lanes}i8.p0"
        _call(builder, name, ir.VoidType(), [narrow, pointer, ir.Constant(ir.IntType(32), 1), mask])
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), codegen


@intrinsic
def load_bytes(typingctx: Any, address: Any, count: Any, rest: Any) -> Any:
    """The first `count` lanes from as many bytes, unsigned; the others from the int vector `rest`."""
    if not _is("int", rest):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow = builder.trunc(args[2], _bytes(rest))
        pointer = builder.inttoptr(args[0], narrow.type.as_pointer())
        mask = first_lanes(builder, args[1], rest.lanes)
        name = f"llvm.masked.load.v{rest.lanes}i8.p0"
        arguments = [pointer, ir.Constant(ir.IntType(32), 1), mask, narrow]
        return builder.zext(_call(builder, name, narrow.type, arguments), rest.llvm)

    return rest(types.int64, types.int64, rest), codegen
