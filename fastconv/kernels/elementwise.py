"""Functions of each element, at the speed of memory: ReLU and dropout, and back.

Dropout draws its numbers by hashing the position of each element, so that any number of threads makes the
same choices, and going back makes them again instead of remembering them. The hash of 32 bits is "lowbias32"
by C. Wellons, two multiplications between shifts that change half of the bits for any change of one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from fastconv.jit import fields, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import above
from fastconv.kernels.simd import LANES, Vector, put, take

ELEMENTWISE = record(
    # addresses; `other` is the second operand
    "x other y count function "
    # of dropout: two words of 32 bits, the share of 2^32 that is dropped, the position of the first element
    "seed salt dropped position"
)

#: y = max(x, 0); y = x where other > 0, else 0; y = x times 0, or for what is kept 1 / (1 - share)
RELU, WHERE_POSITIVE, DROPOUT = 0, 1, 2

#: The values that a hash may have.
HASHES = 1 << 32

#: Elements of a unit.
BLOCK = 4096

_SHIFTS = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None))


def _hash(builder: Any, value: Any, kind: ir.Type) -> Any:
    for shift, factor in _SHIFTS:
        shifts = ir.Constant(kind, [shift] * kind.count)
        value = builder.xor(value, builder.lshr(value, shifts))
        if factor is not None:
            value = builder.mul(value, ir.Constant(kind, [factor] * kind.count))
    return value


@intrinsic
def keeps(typingctx: Any, first: Any, seed: Any, salt: Any, dropped: Any, like: Any) -> Any:
    """Where hash(hash(position ^ seed) ^ salt) >= dropped, for the positions first, first + 1, ..."""
    if not isinstance(like, Vector):
        return None
    mask = Vector("mask", like.bits)
    kind = ir.VectorType(ir.IntType(32), like.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def spread(word: Any) -> Any:
            small = builder.trunc(word, kind.element)
            undefined, zero = ir.Constant(kind, ir.Undefined), ir.Constant(kind.element, 0)
            one = builder.insert_element(undefined, small, zero)
            return builder.shuffle_vector(one, undefined, ir.Constant(kind, [0] * kind.count))

        first, seed, salt, dropped = map(spread, args[:4])
        value = builder.add(first, ir.Constant(kind, list(range(kind.count))))
        value = _hash(builder, builder.xor(value, seed), kind)
        value = _hash(builder, builder.xor(value, salt), kind)
        return builder.icmp_unsigned(">=", value, dropped)

    return mask(first, seed, salt, dropped, like), codegen


@kernel(ELEMENTWISE)
def elementwise(bits):
    """y = the function of x. A unit is a block."""
    lanes, size = LANES[bits], bits // 8

    def elementwise(params, t, tasks):
        p = fields(params, ELEMENTWISE)
        zero = simd.splat(0.0, bits)
        scale = simd.splat(HASHES / (HASHES - p.dropped), bits)
        units = (p.count + BLOCK - 1) // BLOCK
        first = t * units // tasks * BLOCK
        last = min((t + 1) * units // tasks * BLOCK, p.count)
        for i in range(first, last, lanes):
            at, count = i * size, last - i
            x = take(p.x + at, count, zero)
            if p.function == RELU:
                y = simd.maximum(x, zero)
            elif p.function == WHERE_POSITIVE:
                y = simd.select(above(take(p.other + at, count, zero), zero), x, zero)
            else:
                # times 0, not 0: a NaN stays
                kept = keeps(p.position + i, p.seed, p.salt, p.dropped, zero)
                y = simd.multiply(x, simd.select(kept, scale, zero))
            put(p.y + at, y, count)

    return elementwise
