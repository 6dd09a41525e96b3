"""Pooling over whole planes, as at the end of many nets: see `pool_rows`, whose record the kernels take.

A small plane, of 7 x 7 cells say, has few vectors, and to add up the lanes of one takes longer than to load
them. So as many planes as a vector has lanes are a unit: each leaves a vector of partial results, and all of
these are combined lane by lane, in pairs.
"""

from __future__ import annotations

from fastconv.jit import bits_of, fields, inlined, ints, kernel, reals
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import root
from fastconv.kernels.folds import fold_largest, fold_squares, fold_sum, larger
from fastconv.kernels.pool_rows import ROWS, vector_start
from fastconv.kernels.simd import put, take


@inlined
def fold_planes(source, planes, cells, scratch, neutral, combine, fold, squares):
    """A vector of as many cells as lanes = each of `planes` planes of `cells` cells, combined by `fold`.

    Which tells of `squares`, too: these are of cells that do not fill a vector.
    """
    lanes, size = simd.lanes_of(neutral), simd.bytes_of(neutral)
    vector = lanes * size
    vectors = max(1, cells // lanes)
    rest = cells - vectors * lanes
    for plane in range(planes):
        total = fold(source, vectors, vector, 1, cells, neutral)
        if rest > 0:
            part = simd.load_part(source + vectors * vector, rest, neutral)
            total = combine(total, simd.multiply(part, part) if squares else part)
        simd.store(scratch + plane * vector, total)
        source += cells * size
    # neighbouring lanes of two vectors at a time, until each plane has one lane
    width = lanes
    while width > 1:
        width //= 2
        for i in range(width):
            a = simd.load(scratch + 2 * i * vector, neutral)
            b = simd.load(scratch + (2 * i + 1) * vector, neutral)
            simd.store(scratch + i * vector, combine(simd.even(a, b), simd.odd(a, b)))
    return simd.load(scratch, neutral)


@inlined
def find_planes(indices, source, planes, cells, largest, like):
    """For each of `planes` planes where it first has its `largest` cell."""
    lanes, size = simd.lanes_of(like), simd.bytes_of(like)
    for plane in range(planes):
        wanted = simd.splat_like(largest[plane], like)
        for start in range(0, cells, lanes):
            i = vector_start(start, cells, lanes)
            lane = simd.first_same(take(source + i * size, cells, like), wanted)
            if lane < lanes:
                indices[plane] = i + lane
                break
        source += cells * size


def _planes(average, squares):
    def planes(bits):
        size = bits_of(bits) // 8

        def planes(params, t, tasks):
            p = fields(params, ROWS)
            if squares:
                neutral, combine, fold = simd.splat(0.0, bits), simd.add, fold_squares
            elif average:
                neutral, combine, fold = simd.splat(0.0, bits), simd.add, fold_sum
            else:
                neutral, combine, fold = simd.lowest(bits), larger, fold_largest
            lanes = simd.lanes_of(neutral)
            scratch = p.scratch + t * p.task_size * size
            cells = p.depth * p.height * p.width
            units = (p.planes + lanes - 1) // lanes
            for unit in range(t * units // tasks, (t + 1) * units // tasks):
                first = unit * lanes
                planes = min(lanes, p.planes - first)
                source, target = p.x + first * cells * size, p.y + first * size
                total = fold_planes(source, planes, cells, scratch, neutral, combine, fold, squares)
                if average:
                    total = simd.divide(total, simd.load(p.extent_x, neutral))
                if squares:
                    total = root(total)
                put(target, total, planes)
                if p.indices:
                    places = ints(p.indices + first * 8)
                    find_planes(places, source, planes, cells, reals(target, bits), neutral)

        return planes

    return planes


#: y = the largest cell of each plane, and indices = where it is first, if they are wanted.
max_planes = kernel(ROWS, ints=True)(_planes(False, False))
#: y = the sum over each plane divided by its divisor.
avg_planes = kernel(ROWS)(_planes(True, False))
#: y = the root of the sum of squares over each plane divided by its divisor.
norm_planes = kernel(ROWS)(_planes(True, True))


@kernel(ROWS)
def avg_planes_backward(bits):
    """Every cell of a plane of grad_x (as y) = the one gradient of the plane (as x), times a factor."""

    def avg_planes_backward(params, t, tasks):
        p = fields(params, ROWS)
        factor = simd.load(p.extent_x, simd.splat(0.0, bits))
        lanes, size = simd.lanes_of(factor), bits // 8
        gradients = reals(p.x, bits)
        cells = p.out_depth * p.out_height * p.out_width
        for plane in range(t * p.planes // tasks, (t + 1) * p.planes // tasks):
            share = simd.multiply(simd.splat_like(gradients[plane], factor), factor)
            target = p.y + plane * cells * size
            for start in range(0, cells, lanes):
                put(target + vector_start(start, cells, lanes) * size, share, cells)

    return avg_planes_backward
