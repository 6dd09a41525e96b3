"""Vectors in compiled code: what Numba's auto-vectoriser cannot be relied on to make.

A vector is a value of the LLVM type ``<lanes x real>`` or ``<lanes x int>``, as wide as the registers of
the CPU that the code is compiled for. The ``bits`` of its elements, 32 or 64, of ints also 8 and 16, must be
a constant in the code that makes it; `LANES` says how many there are. Addresses are in bytes and need not be
aligned. Int vectors that keep positions have the width and the number of lanes of those beside which they do.
There is no version of this for NUMBA_DISABLE_JIT=1: algorithms built on it say that they need the compiler.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastconv.jit import SIGNED, inlined


def _cpu_features() -> frozenset[str]:
    """The features of the CPU that Numba compiles for, in LLVM's names."""
    features = numba.config.CPU_FEATURES
    if features is not None:
        return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))
    if numba.config.CPU_NAME is not None:  # a named CPU, "generic" mostly: promise nothing
        return frozenset()
    try:
        host = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell on this platform
        return frozenset()
    return frozenset(feature for feature, on in host.items() if on)


FEATURES = _cpu_features()
#: Width of a vector register.
REGISTER_BYTES = 64 if "avx512f" in FEATURES else 32 if "avx" in FEATURES else 16
#: Number of vector registers.
REGISTERS = 32 if FEATURES & {"avx512f", "neon"} else 16
#: Whether a fused multiply-add is one instruction; LLVM's "fma" is a slow library call where not.
HAS_FMA = bool(FEATURES & {"fma", "neon"})
#: Elements in a vector, by their bits.
LANES = {bits: REGISTER_BYTES * 8 // bits for bits in (8, 16, 32, 64)}
#: Bytes of a cache line: 128 on a few CPUs, where a prefetch too many costs little.
LINE = 64


# --- the types ----------------------------------------------------------------------------------


class Vector(types.Type):
    """A vector of reals, ints ("int" with a sign, "uint" without) or truth values."""

    def __init__(self, kind: str, bits: int) -> None:
        self.kind, self.bits, self.lanes = kind, bits, LANES[bits]
        super().__init__(name=f"vector({kind}{bits} x {self.lanes})")

    @property
    def element(self) -> ir.Type:
        if self.kind in ("int", "uint"):
            return ir.IntType(self.bits)
        if self.kind == "mask":
            return ir.IntType(1)
        return ir.FloatType() if self.bits == 32 else ir.DoubleType()

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(self.element, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


def _scalar(vector: Vector) -> types.Type:
    if vector.kind != "real":
        return types.int64
    return types.float32 if vector.bits == 32 else types.float64


def _is(kind: str, *arguments: Any) -> bool:
    return all(isinstance(a, Vector) and a.kind == kind for a in arguments)


def _is_number(*arguments: Any) -> bool:
    return all(isinstance(a, Vector) and a.kind != "mask" for a in arguments)


def vector_of(elements: int) -> Vector:
    """The type of vectors of what a kernel's factory was told: see `fastconv.jit.SIGNED`."""
    mark, bits = divmod(elements, SIGNED)
    return Vector(("real", "int", "uint")[mark], bits)


# --- pieces of LLVM code ------------------------------------------------------------------------

_I32 = ir.IntType(32)


def _pointer(builder: Any, address: Any, vector: Vector) -> Any:
    return builder.inttoptr(address, vector.llvm.as_pointer())


def _narrow(builder: Any, value: Any, vector: Vector) -> Any:
    """LLVM code for a scalar as an element."""
    return value if vector.kind == "real" or vector.bits == 64 else builder.trunc(value, vector.element)


def splat_value(builder: Any, value: Any, vector: Vector) -> Any:
    """LLVM code for a vector with `value` in every lane."""
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _suffix(vector: Vector) -> str:
    letter = "f" if vector.kind == "real" else "i"
    return f"v{vector.lanes}{letter}{vector.bits}"


def first_lanes(builder: Any, count: Any, lanes: int) -> Any:
    """The mask of the first `count` lanes."""
    ints = ir.VectorType(_I32, lanes)
    undefined = ir.Constant(ints, ir.Undefined)
    small = builder.insert_element(undefined, builder.trunc(count, _I32), ir.Constant(_I32, 0))
    counts = builder.shuffle_vector(small, undefined, ir.Constant(ints, [0] * lanes))
    return builder.icmp_signed("<", ir.Constant(ints, list(range(lanes))), counts)


def masked_load(builder: Any, pointer: Any, mask: Any, vector: Vector, rest: Any = None) -> Any:
    """LLVM code for the lanes of the mask from memory, the others from `rest`, or zeros."""
    align = ir.Constant(_I32, vector.bits // 8)
    others = ir.Constant(vector.llvm, None) if rest is None else rest
    name = f"llvm.masked.load.{_suffix(vector)}.p0"
    return _call(builder, name, vector.llvm, [pointer, align, mask, others])


def masked_store(builder: Any, value: Any, pointer: Any, mask: Any, vector: Vector) -> None:
    """LLVM code that stores the lanes of the mask."""
    align = ir.Constant(_I32, vector.bits // 8)
    name = f"llvm.masked.store.{_suffix(vector)}.p0"
    _call(builder, name, ir.VoidType(), [value, pointer, align, mask])


def _is_literal(argument: Any) -> bool:
    return isinstance(argument, types.IntegerLiteral)


# --- memory -------------------------------------------------------------------------------------


@intrinsic
def load(typingctx: Any, address: Any, like: Any) -> Any:
    """A whole vector from memory, of the type of `like`."""
    if not isinstance(like, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_pointer(builder, args[0], like))
        value.align = like.bits // 8
        return value

    return like(types.int64, like), codegen


@intrinsic
def load_part(typingctx: Any, address: Any, count: Any, rest: Any) -> Any:
    """The first `count` lanes from memory, the others from the vector `rest`."""
    if not isinstance(rest, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = first_lanes(builder, args[1], rest.lanes)
        return masked_load(builder, _pointer(builder, args[0], rest), mask, rest, args[2])

    return rest(types.int64, types.int64, rest), codegen


@intrinsic
def load_between(typingctx: Any, address: Any, first: Any, limit: Any, like: Any) -> Any:
    """A vector of which lane i counts as cell `first` + i: from memory for cells in [0, limit), else 0."""
    if not _is("real", like):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ints = ir.VectorType(_I32, like.lanes)
        undefined, zeros = ir.Constant(ints, ir.Undefined), ir.Constant(ints, [0] * like.lanes)
        splats = []
        for value in args[1:3]:
            one = builder.insert_element(undefined, builder.trunc(value, _I32), ir.Constant(_I32, 0))
            splats.append(builder.shuffle_vector(one, undefined, zeros))
        cells = builder.add(splats[0], ir.Constant(ints, list(range(like.lanes))))
        mask = builder.icmp_unsigned("<", cells, splats[1])  # negative numbers are large unsigned ones
        align = ir.Constant(_I32, like.bits // 8)
        name = f"llvm.masked.load.{_suffix(like)}.p0"
        pointer, zero = _pointer(builder, args[0], like), ir.Constant(like.llvm, None)
        return _call(builder, name, like.llvm, [pointer, align, mask, zero])

    return like(types.int64, types.int64, types.int64, like), codegen


@intrinsic
def load_lanes(typingctx: Any, address: Any, lanes: Any, like: Any) -> Any:
    """The lanes whose bits are set in the int `lanes` from memory, the first the lowest; the others 0."""
    if not _is("real", like):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], like)
        bits = builder.trunc(args[1], ir.IntType(like.lanes))
        mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), like.lanes))
        if REGISTER_BYTES >= 32:
            return masked_load(builder, pointer, mask, like)
        # without such an instruction a masked load is a branch for each lane
        result = cgutils.alloca_once(builder, like.llvm)
        whole = builder.icmp_signed("==", bits, ir.Constant(bits.type, -1))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                value = builder.load(pointer)
                value.align = like.bits // 8
                builder.store(value, result)
            with otherwise:
                builder.store(masked_load(builder, pointer, mask, like), result)
        return builder.load(result)

    return like(types.int64, types.int64, like), codegen


@intrinsic(prefer_literal=True)
def load_double(typingctx: Any, address: Any, bits: Any, count: Any) -> Any:
    """Reals of `bits` as a float64 vector: the first `count` lanes from memory, the others 0."""
    if not _is_literal(bits):
        return None
    vector = Vector("real", 64)
    source = ir.FloatType() if bits.literal_value == 32 else ir.DoubleType()
    narrow = ir.VectorType(source, vector.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], narrow.as_pointer())
        align = ir.Constant(_I32, bits.literal_value // 8)
        mask = first_lanes(builder, args[2], vector.lanes)
        name = f"llvm.masked.load.v{vector.lanes}f{bits.literal_value}.p0"
        value = _call(builder, name, narrow, [pointer, align, mask, ir.Constant(narrow, None)])
        return value if bits.literal_value == 64 else builder.fpext(value, vector.llvm)

    return vector(types.int64, bits, types.int64), codegen


@intrinsic
def total(typingctx: Any, value: Any) -> Any:
    """The sum of the lanes, the first to the last."""
    if not _is("real", value):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = [builder.extract_element(args[0], ir.Constant(_I32, lane)) for lane in range(value.lanes)]
        result = lanes[0]
        for lane in lanes[1:]:
            result = builder.fadd(result, lane)
        return result

    return _scalar(value)(value), codegen


def prefetch_value(builder: Any, address: Any) -> None:
    """Have the cache line at an address brought near; any address will do."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    read, nearest, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, nearest, data])


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Have the cache line at an address brought near; any address will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch_value(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """A whole vector to memory."""
    if not isinstance(value, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], value)).align = value.bits // 8
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def store_part(typingctx: Any, address: Any, value: Any, count: Any) -> Any:
    """The first `count` lanes to memory."""
    if not isinstance(value, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = first_lanes(builder, args[2], value.lanes)
        masked_store(builder, args[1], _pointer(builder, args[0], value), mask, value)
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), codegen


@intrinsic
def store_whole_wide(typingctx: Any, address: Any, value: Any) -> Any:
    """A whole int vector to memory, as int64."""
    if not _is("int", value):
        return None
    wide = ir.VectorType(ir.IntType(64), value.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ints = builder.sext(args[1], wide) if value.bits == 32 else args[1]
        builder.store(ints, builder.inttoptr(args[0], wide.as_pointer())).align = 8
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def store_wide(typingctx: Any, address: Any, value: Any, count: Any) -> Any:
    """The first `count` lanes of an int vector to memory, as int64."""
    if not _is("int", value):
        return None
    wide = ir.VectorType(ir.IntType(64), value.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ints = builder.sext(args[1], wide) if value.bits == 32 else args[1]
        pointer = builder.inttoptr(args[0], wide.as_pointer())
        mask = first_lanes(builder, args[2], value.lanes)
        name = f"llvm.masked.store.v{value.lanes}i64.p0"
        _call(builder, name, ir.VoidType(), [ints, pointer, ir.Constant(_I32, 8), mask])
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), codegen


@intrinsic
def load_strided(typingctx: Any, address: Any, stride: Any, like: Any) -> Any:
    """A vector of elements that lie `stride` bytes apart."""
    if not isinstance(like, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, vector = args[0], ir.Constant(like.llvm, ir.Undefined)
        for lane in range(like.lanes):
            element = builder.load(builder.inttoptr(address, like.element.as_pointer()))
            vector = builder.insert_element(vector, element, ir.Constant(_I32, lane))
            address = builder.add(address, args[1])
        return vector

    return like(types.int64, types.int64, like), codegen


@intrinsic
def store_strided(typingctx: Any, address: Any, stride: Any, value: Any) -> Any:
    """The lanes to memory, `stride` bytes apart."""
    if not isinstance(value, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = args[0]
        for lane in range(value.lanes):
            element = builder.extract_element(args[2], ir.Constant(_I32, lane))
            builder.store(element, builder.inttoptr(address, value.element.as_pointer()))
            address = builder.add(address, args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), codegen


@intrinsic
def copy_real(typingctx: Any, target: Any, source: Any, like: Any) -> Any:
    """One real from memory to memory."""
    if not _is("real", like):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, origin = (builder.inttoptr(address, like.element.as_pointer()) for address in args[:2])
        builder.store(builder.load(origin), to)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, like), codegen


@intrinsic(prefer_literal=True)
def copy_reals(typingctx: Any, target: Any, source: Any, count: Any, like: Any) -> Any:
    """A constant number of reals, no more than a vector has, from memory to memory."""
    if not _is_literal(count) or not _is("real", like):
        return None
    part = ir.VectorType(like.element, count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, origin = (builder.inttoptr(address, part.as_pointer()) for address in args[:2])
        value = builder.load(origin)
        value.align = like.bits // 8
        builder.store(value, to).align = like.bits // 8
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, count, like), codegen


@intrinsic(prefer_literal=True)
def stack_memory(typingctx: Any, size: Any) -> Any:
    """The address of a constant number of bytes on the stack, the same at each call from one place."""
    if not _is_literal(size):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.ArrayType(ir.IntType(8), size.literal_value)
        memory = cgutils.alloca_once(builder, kind)
        memory.align = REGISTER_BYTES
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(size), codegen


# --- making and combining -----------------------------------------------------------------------


def _splatter(kind: str) -> Any:
    @intrinsic(prefer_literal=True)
    def splat(typingctx: Any, value: Any, bits: Any) -> Any:
        if not _is_literal(bits):
            return None
        vector = Vector(kind, bits.literal_value)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return splat_value(builder, _narrow(builder, args[0], vector), vector)

        return vector(_scalar(vector), bits), codegen

    return splat


#: splat(value, bits): a vector with the same value in every lane.
splat = _splatter("real")
splat_int = _splatter("int")


@intrinsic(prefer_literal=True)
def lowest(typingctx: Any, elements: Any) -> Any:
    """A vector of the least value there is: of reals -inf. `elements` as a kernel's factory is told."""
    if not _is_literal(elements):
        return None
    vector = vector_of(elements.literal_value)
    least = {"real": float("-inf"), "int": -(1 << vector.bits - 1), "uint": 0}[vector.kind]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(vector.llvm, [least] * vector.lanes)

    return vector(elements), codegen


@intrinsic
def splat_like(typingctx: Any, value: Any, like: Any) -> Any:
    """A vector of the type of `like` with the same value in every lane."""
    if not _is_number(like):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return splat_value(builder, _narrow(builder, args[0], like), like)

    return like(_scalar(like), like), codegen


@intrinsic
def lanes_of(typingctx: Any, like: Any) -> Any:
    """The number of lanes, a constant."""
    if not isinstance(like, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), like.lanes)

    return types.int64(like), codegen


@intrinsic
def bytes_of(typingctx: Any, like: Any) -> Any:
    """The bytes of one element, a constant."""
    if not isinstance(like, Vector):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), like.bits // 8)

    return types.int64(like), codegen


@inlined
def vector_bytes(like):
    """The bytes of a vector."""
    return lanes_of(like) * bytes_of(like)


@intrinsic(prefer_literal=True)
def ramp_like(typingctx: Any, start: Any, step: Any, like: Any) -> Any:
    """The ints start, start + step, ... as wide and as many as the lanes of `like`; `step` is a constant."""
    if not isinstance(like, Vector) or not _is_literal(step):
        return None
    vector = Vector("int", like.bits)
    values = [step.literal_value * lane for lane in range(vector.lanes)]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = _narrow(builder, args[0], vector)
        return builder.add(splat_value(builder, first, vector), ir.Constant(vector.llvm, values))

    return vector(types.int64, step, like), codegen


def _binary(real: str, integer: str = "") -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        if a != b or not (_is("real", a) or (integer and _is_number(a))):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, real if a.kind == "real" else integer)(*args)

        return a(a, b), codegen

    return operation


add = _binary("fadd", "add")
multiply = _binary("fmul", "mul")
divide = _binary("fdiv", "sdiv")


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of each pair; NaN where either is NaN."""
    if a != b or not _is("real", a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # x86's max gives its second operand where one is NaN: that loses a NaN in the first
        larger = builder.select(builder.fcmp_ordered(">", *args), *args)
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), args[0], larger)

    return a(a, b), codegen


def greater_int(builder: Any, vector: Vector, a: Any, b: Any) -> Any:
    """LLVM code for where ints are greater."""
    compare = builder.icmp_unsigned if vector.kind == "uint" else builder.icmp_signed
    return compare(">", a, b)


@intrinsic
def precedes(typingctx: Any, a: Any, place_a: Any, b: Any, place_b: Any) -> Any:
    """Where (a, place_a) beats (b, place_b): the larger, NaN above all, and of equals the lower place."""
    if a != b or not _is_number(a) or place_a != place_b or not _is("int", place_a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, place_x, y, place_y = args
        first = builder.icmp_signed("<", place_x, place_y)
        if a.kind != "real":
            same = builder.icmp_signed("==", x, y)
            return builder.or_(greater_int(builder, a, x, y), builder.and_(same, first))
        x_nan = builder.fcmp_unordered("uno", x, x)
        y_nan = builder.fcmp_unordered("uno", y, y)
        larger = builder.or_(builder.fcmp_ordered(">", x, y), builder.and_(x_nan, builder.not_(y_nan)))
        same = builder.or_(builder.fcmp_ordered("==", x, y), builder.and_(x_nan, y_nan))
        return builder.or_(larger, builder.and_(same, first))

    return Vector("mask", a.bits)(a, place_a, b, place_b), codegen


@intrinsic
def exceeds(typingctx: Any, a: Any, b: Any) -> Any:
    """Where a is the larger, NaN above all: `precedes` for an `a` that comes behind b."""
    if a != b or not _is_number(a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if a.kind != "real":
            return greater_int(builder, a, *args)
        # two comparisons: "greater or unordered" holds where b is NaN, too, and there b stays
        greater = builder.fcmp_unordered(">", *args)
        return builder.and_(greater, builder.fcmp_ordered("ord", args[1], args[1]))

    return Vector("mask", a.bits)(a, b), codegen


@intrinsic
def first_same(typingctx: Any, a: Any, b: Any) -> Any:
    """The first lane where a equals b or is NaN; the number of lanes where there is none."""
    if a != b or not _is_number(a):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if a.kind == "real":
            nan = builder.fcmp_unordered("uno", args[0], args[0])
            mask = builder.or_(builder.fcmp_ordered("==", *args), nan)
        else:
            mask = builder.icmp_signed("==", *args)
        small = builder.bitcast(mask, ir.IntType(a.lanes))
        word, wide = ir.IntType(64), ir.IntType(128)
        # a bit behind the last lane, of which there may be 64, ends the count
        bits = builder.or_(builder.zext(small, wide), ir.Constant(wide, 1 << a.lanes))
        return builder.trunc(builder.cttz(bits, ir.Constant(ir.IntType(1), 1)), word)

    return types.int64(a, b), codegen


@intrinsic
def select(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """a where `mask`, else b."""
    if a != b or not _is("mask", mask):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(*args)

    return a(mask, a, b), codegen


def _shuffler(pattern: Any) -> Any:
    @intrinsic
    def shuffle(typingctx: Any, a: Any, b: Any) -> Any:
        if a != b or not isinstance(a, Vector):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _shuffle(builder, args[0], args[1], pattern(a.lanes))

        return a(a, b), codegen

    return shuffle


#: Of two vectors in a row, every second lane from the first, or from the second, on.
even = _shuffler(lambda lanes: list(range(0, 2 * lanes, 2)))
odd = _shuffler(lambda lanes: list(range(1, 2 * lanes, 2)))
#: The inverse: lanes of both vectors in turn, the lower and the upper half.
interleave_low = _shuffler(lambda lanes: [i // 2 + i % 2 * lanes for i in range(lanes)])
interleave_high = _shuffler(lambda lanes: [(lanes + i) // 2 + i % 2 * lanes for i in range(lanes)])


def perfect_shuffle(builder: Any, vectors: list[Any], lanes: int) -> list[Any]:
    """The concatenated `vectors`, its two halves taken in turn."""
    low = [i // 2 + i % 2 * lanes for i in range(lanes)]
    high = [place + lanes // 2 for place in low]
    half = len(vectors) // 2
    pairs = zip(vectors[:half], vectors[half:], strict=True)
    return [_shuffle(builder, a, b, order) for a, b in pairs for order in (low, high)]


def _transpose(builder: Any, args: Any, height: int, like: Vector) -> None:
    """LLVM code for `transpose_block`."""
    source, source_row, rows, columns, target, target_row = args
    zero, none = ir.Constant(like.llvm, None), ir.Constant(rows.type, 0)
    align = ir.Constant(_I32, like.bits // 8)
    load = f"llvm.masked.load.{_suffix(like)}.p0"
    vectors = []
    for row in range(height):
        index = ir.Constant(rows.type, row)
        reals = builder.select(builder.icmp_signed("<", index, rows), columns, none)
        mask = first_lanes(builder, reals, like.lanes)
        pointer = _pointer(builder, builder.add(source, builder.mul(source_row, index)), like)
        vectors.append(_call(builder, load, like.llvm, [pointer, align, mask, zero]))
    for _ in range(height.bit_length() - 1):
        vectors = perfect_shuffle(builder, vectors, like.lanes)
    for number, vector in enumerate(vectors):
        address = builder.add(target, builder.mul(target_row, ir.Constant(rows.type, number)))
        builder.store(vector, _pointer(builder, address, like)).align = like.bits // 8


@intrinsic(prefer_literal=True)
def transpose_block(
    typingctx: Any,
    source: Any,
    source_row: Any,
    rows: Any,
    columns: Any,
    target: Any,
    target_row: Any,
    height: Any,
    like: Any,
) -> Any:
    """Transpose a block of `height` rows, a constant power of two, of as many reals as a vector has lanes.

    Of the source only `rows` rows and `columns` columns are read, the others count as zeros. The transposed
    block, a column of the source after the other, is stored as `height` whole vectors. Both strides in bytes.
    """
    if not _is_literal(height) or not _is("real", like):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _transpose(builder, args[:6], height.literal_value, like)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, height, like), codegen


@intrinsic
def transpose_square(
    typingctx: Any,
    source: Any,
    source_row: Any,
    rows: Any,
    columns: Any,
    target: Any,
    target_row: Any,
    like: Any,
) -> Any:
    """`transpose_block` of as many rows as a vector has lanes."""
    if not _is("real", like):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _transpose(builder, args[:6], like.lanes, like)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, like), codegen


@inlined
def put(target, value, count):
    """The first `count` lanes, or all where there are fewer."""
    if count >= lanes_of(value):
        store(target, value)
    else:
        store_part(target, value, count)


@inlined
def put_wide(target, value, count):
    """`put` for ints that become int64."""
    if count >= lanes_of(value):
        store_whole_wide(target, value)
    else:
        store_wide(target, value, count)


@inlined
def take(source, count, rest):
    """The first `count` lanes from memory, or all where there are fewer; the others from `rest`."""
    return load(source, rest) if count >= lanes_of(rest) else load_part(source, count, rest)
