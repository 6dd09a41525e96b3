"""Batch normalisation of channels-first arrays, with the ReLU behind it, and back.

A unit is a channel: its planes are read from memory once, and again from the cache. Sums are made plane by
plane, in vectors, and the planes' sums in float64; the variance is that of the differences from the mean.
"""

from __future__ import annotations

from math import sqrt

from fastconv.jit import fields, inlined, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import above, lane_sum, multiply_add, subtract
from fastconv.kernels.simd import LANES, put, take

FORWARD = record(
    # addresses; weight and bias are 0 where there are none; numbers[0] is epsilon, in float64
    "x y means variances weight bias numbers "
    # whether means and variances are given, and not those of x
    "known relu images channels pixels"
)

BACKWARD = record(
    # addresses; y is 0 without a ReLU, weight where there is none
    "grad_output x y means variances weight grad_x grad_weight grad_bias numbers images channels pixels"
)


@inlined
def plane_moments(x, pixels, centre, zero):
    """The sum of x - centre over a plane, and that of its squares."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    a, b = zero, zero
    for i in range(0, pixels, lanes):
        difference = subtract(take(x + i * size, pixels - i, centre), centre)
        a = simd.add(a, difference)
        b = multiply_add(difference, difference, b)
    return lane_sum(a), lane_sum(b)


@kernel(FORWARD)
def forward(bits):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, and no less than 0 with `relu`."""
    lanes, size = LANES[bits], bits // 8

    def forward(params, t, tasks):
        p = fields(params, FORWARD)
        zero = simd.splat(0.0, bits)
        means, variances = reals(p.means, bits), reals(p.variances, bits)
        weight, bias = reals(p.weight, bits), reals(p.bias, bits)
        eps = reals(p.numbers, 64)[0]
        count = p.images * p.pixels
        for c in range(t * p.channels // tasks, (t + 1) * p.channels // tasks):
            plane, next_plane = p.x + c * p.pixels * size, p.channels * p.pixels * size
            if not p.known:
                total = 0.0
                for n in range(p.images):
                    total += plane_moments(plane + n * next_plane, p.pixels, zero, zero)[0]
                means[c] = total / count
                centre = simd.splat(means[c], bits)
                # the mean is rounded: what the differences from it add up to is taken out again
                total, squares = 0.0, 0.0
                for n in range(p.images):
                    one, two = plane_moments(plane + n * next_plane, p.pixels, centre, zero)
                    total += one
                    squares += two
                variances[c] = max(0.0, (squares - total * total / count) / count)
                if squares != squares:
                    variances[c] = squares
            factor = 1 / sqrt(variances[c] + eps)
            if p.weight:
                factor *= weight[c]
            centre, scale = simd.splat(means[c], bits), simd.splat(factor, bits)
            shift = simd.splat(bias[c], bits) if p.bias else zero
            for n in range(p.images):
                x = plane + n * next_plane
                y = p.y + (x - p.x)
                for i in range(0, p.pixels, lanes):
                    at, left = i * size, p.pixels - i
                    value = multiply_add(subtract(take(x + at, left, zero), centre), scale, shift)
                    if p.relu:
                        value = simd.maximum(value, zero)
                    put(y + at, value, left)

    return forward


@inlined
def gradient_cells(grad_output, y, at, left, zero):
    """Cells of the gradient of the normalised values: where there is a ReLU, of those that it let pass."""
    cells = take(grad_output + at, left, zero)
    if y:
        cells = simd.select(above(take(y + at, left, zero), zero), cells, zero)
    return cells


@kernel(BACKWARD)
def backward(bits):
    """The three gradients where mean and var are those of x."""
    lanes, size = LANES[bits], bits // 8

    def backward(params, t, tasks):
        p = fields(params, BACKWARD)
        zero = simd.splat(0.0, bits)
        means, variances, weight = reals(p.means, bits), reals(p.variances, bits), reals(p.weight, bits)
        grad_weight, grad_bias = reals(p.grad_weight, bits), reals(p.grad_bias, bits)
        eps = reals(p.numbers, 64)[0]
        count = p.images * p.pixels
        for c in range(t * p.channels // tasks, (t + 1) * p.channels // tasks):
            next_plane = p.channels * p.pixels * size
            centre = simd.splat(means[c], bits)
            total, product = 0.0, 0.0
            for n in range(p.images):
                plane = c * p.pixels * size + n * next_plane
                y = p.y + plane if p.y else 0
                a, b = zero, zero
                for i in range(0, p.pixels, lanes):
                    at, left = i * size, p.pixels - i
                    cells = gradient_cells(p.grad_output + plane, y, at, left, zero)
                    a = simd.add(a, cells)
                    difference = subtract(take(p.x + plane + at, left, centre), centre)
                    b = multiply_add(cells, difference, b)
                total += lane_sum(a)
                product += lane_sum(b)
            inverse = 1 / sqrt(variances[c] + eps)
            grad_weight[c], grad_bias[c] = product * inverse, total
            factor = inverse * weight[c] if p.weight else inverse
            # mean and variance depend on x too: what would have moved them is taken out
            scale = simd.splat(factor, bits)
            slope = simd.splat(-factor * inverse * inverse * product / count, bits)
            shift = simd.splat(-factor * total / count, bits)
            for n in range(p.images):
                plane = c * p.pixels * size + n * next_plane
                y = p.y + plane if p.y else 0
                for i in range(0, p.pixels, lanes):
                    at, left = i * size, p.pixels - i
                    cells = gradient_cells(p.grad_output + plane, y, at, left, zero)
                    difference = subtract(take(p.x + plane + at, left, zero), centre)
                    result = multiply_add(difference, slope, multiply_add(cells, scale, shift))
                    put(p.grad_x + plane + at, result, left)

    return backward
