"""Steps of optimisers: every number of every parameter in one pass over memory.

`tensors` is a table of the addresses of each parameter, its gradient, and the two arrays that the rule
remembers of it; `blocks` one of the pieces that these are cut into: the tensor, and from where to where.
`numbers` are the coefficients, in float64: those of the rules are listed with them.
"""

from __future__ import annotations

from fastconv.jit import fields, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import multiply_add, root, subtract
from fastconv.kernels.simd import LANES, put, take

UPDATE = record("tensors blocks count numbers rule")

#: Entries of the two tables.
TENSOR_FIELDS = 4
BLOCK_FIELDS = 3

#: The rules, and the numbers that each takes.
#:     ADAM: weight decay, 1 - decoupled weight decay, beta1, beta2, 1 / sqrt(1 - beta2^t), eps, step size
#:     SGD:  weight decay, learning rate, momentum, share of the gradient; MOMENTUM and NESTEROV likewise
ADAM, SGD, MOMENTUM, NESTEROV = 0, 1, 2, 3


@kernel(UPDATE)
def update(bits):
    """A step of a rule. A unit is a block."""
    lanes, size = LANES[bits], bits // 8

    def update(params, t, tasks):
        p = fields(params, UPDATE)
        zero = simd.splat(0.0, bits)
        tensors, blocks, numbers = ints(p.tensors), ints(p.blocks), reals(p.numbers, 64)
        # coefficients, in all lanes; what a rule does not have is never used
        c0, c1 = simd.splat(numbers[0], bits), simd.splat(numbers[1], bits)
        c2, c3 = simd.splat(numbers[2], bits), simd.splat(numbers[3], bits)
        c4, c5 = simd.splat(numbers[4], bits), simd.splat(numbers[5], bits)
        c6 = simd.splat(numbers[6], bits)
        decays = numbers[0] != 0
        rest2, rest3 = simd.splat(1 - numbers[2], bits), simd.splat(1 - numbers[3], bits)
        for block in range(t * p.count // tasks, (t + 1) * p.count // tasks):
            tensor = blocks[block * BLOCK_FIELDS] * TENSOR_FIELDS
            param, grad = tensors[tensor], tensors[tensor + 1]
            first, second = tensors[tensor + 2], tensors[tensor + 3]
            end = blocks[block * BLOCK_FIELDS + 2]
            for i in range(blocks[block * BLOCK_FIELDS + 1], end, lanes):
                at, count = i * size, end - i
                w, g = take(param + at, count, zero), take(grad + at, count, zero)
                if decays:  # else an infinite parameter would get a NaN for a gradient
                    g = multiply_add(w, c0, g)
                if p.rule == ADAM:
                    mean, square = take(first + at, count, zero), take(second + at, count, zero)
                    square = multiply_add(simd.multiply(g, g), rest3, simd.multiply(square, c3))
                    mean = multiply_add(subtract(g, mean), rest2, mean)
                    put(first + at, mean, count)
                    put(second + at, square, count)
                    scale = multiply_add(root(square), c4, c5)
                    w = simd.multiply(w, c1)
                    w = subtract(w, simd.multiply(c6, simd.divide(mean, scale)))
                else:
                    if p.rule != SGD:
                        velocity = take(first + at, count, zero)
                        velocity = multiply_add(velocity, c2, simd.multiply(g, c3))
                        put(first + at, velocity, count)
                        g = velocity if p.rule == MOMENTUM else multiply_add(velocity, c2, g)
                    w = subtract(w, simd.multiply(g, c1))
                put(param + at, w, count)

    return update
