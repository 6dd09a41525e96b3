"""Whole images in cache: padded copies in which every kernel cell is a shift.

A channel of an image lies in scratch row after row, with one gap of zeros from each row to the next that is
the padding of both, and rows of zeros above and below. Then the cells that an output row's windows read
through one kernel cell are the cells of a row, so many places further on; and those of all output rows are
one run of cells from first to last, gaps included. So a vector of output cells takes one vector of x for each
kernel cell, read where it lies: nothing is packed, and rows shorter than a vector waste no lane. What is
computed for the gaps is never stored.

    x:    . . . . . .         flat output cell p reads, through kernel cell (r, s) of channel c,
          a b c d e .             image[c * channel_size + p + r * dilation_y * pitch + s * dilation_x]
          f g h i j .
          k l m n o .         pitch: from row to row
          . . . . . .         first_cell: where cell (0, 0) lies, pad_y * pitch + pad_x
"""

from __future__ import annotations

from math import inf

from fastconv.jit import inlined
from fastconv.kernels import simd
from fastconv.kernels.arithmetic import above, load_bytes, multiply_add, same, store_bytes
from fastconv.kernels.microkernel import BIAS, VECTORS, ZERO, multiply_tile
from fastconv.kernels.simd import put, take

#: What `pool_pairs` notes of a window whose largest cell is not above 0, where a ReLU stops the gradient.
STOPPED = 4


@inlined
def clear(target, count, zero):
    """Zeros in `count` reals, a whole number of vectors."""
    size = simd.bytes_of(zero)
    for i in range(0, count, simd.lanes_of(zero)):
        simd.store(target + i * size, zero)


@inlined
def copy_image(source, channels, height, width, target, channel_size, pitch, zero):
    """A contiguous image between its gaps; a vector that is zero where all of it was finite, else NaN."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    check = zero
    for c in range(channels):
        for y in range(height):
            row = target + (c * channel_size + y * pitch) * size
            for x in range(0, width, lanes):
                cells = take(source + x * size, width - x, zero)
                check = multiply_add(cells, zero, check)
                put(row + x * size, cells, width - x)
            source += width * size
    return check


@inlined
def copy_positive(source, y, channels, height, width, target, channel_size, pitch, zero):
    """A contiguous image between its gaps; zeros for the cells where not y > 0, unless y is 0."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    for c in range(channels):
        for row in range(height):
            place = target + (c * channel_size + row * pitch) * size
            for x in range(0, width, lanes):
                at, count = ((c * height + row) * width + x) * size, width - x
                cells = take(source + at, count, zero)
                if y:
                    cells = simd.select(above(take(y + at, count, zero), zero), cells, zero)
                put(place + x * size, cells, count)


@inlined
def unpool_pairs(source, codes, channels, height, width, target, channel_size, pitch, zero):
    """Each of the pooled `height` x `width` cells to the place in its 2 x 2 cells that its code names.

    The other places are zeros.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    first = simd.ramp_like(0, 0, zero)
    one = simd.ramp_like(1, 0, zero)
    two, three = simd.ramp_like(2, 0, zero), simd.ramp_like(3, 0, zero)
    for c in range(channels):
        for y in range(height):
            top = target + (c * channel_size + 2 * y * pitch) * size
            low = top + pitch * size
            for x in range(0, width, lanes):
                cells = take(source + x * size, width - x, zero)
                places = load_bytes(codes + x, width - x, first)
                a = simd.select(same(places, first), cells, zero)
                b = simd.select(same(places, one), cells, zero)
                put(top + 2 * x * size, simd.interleave_low(a, b), 2 * (width - x))
                d = simd.select(same(places, two), cells, zero)
                e = simd.select(same(places, three), cells, zero)
                put(low + 2 * x * size, simd.interleave_low(d, e), 2 * (width - x))
                if 2 * (width - x) > lanes:
                    rest, at = 2 * (width - x) - lanes, (2 * x + lanes) * size
                    put(top + at, simd.interleave_high(a, b), rest)
                    put(low + at, simd.interleave_high(d, e), rest)
            source += width * size
            codes += width


@inlined
def pool_pairs(source, pitch, height, width, y, codes, relu, zero):
    """The largest of each 2 x 2 cells of a plane with gaps, and where it was; `codes` 0 for no such note."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    first = simd.ramp_like(0, 0, zero)
    one = simd.ramp_like(1, 0, zero)
    two, three = simd.ramp_like(2, 0, zero), simd.ramp_like(3, 0, zero)
    stopped = simd.ramp_like(STOPPED, 0, zero)
    for row in range(height):
        top = source + 2 * row * pitch * size
        low = top + pitch * size
        for x in range(0, width, lanes):
            # what is read behind a row is the next, or slack
            at, count = 2 * x * size, width - x
            a, b = simd.load(top + at, zero), simd.load(top + at + lanes * size, zero)
            d, e = simd.load(low + at, zero), simd.load(low + at + lanes * size, zero)
            best, other = simd.even(a, b), simd.odd(a, b)
            wins = simd.exceeds(other, best)
            best, places = simd.select(wins, other, best), simd.select(wins, one, first)
            other = simd.even(d, e)
            wins = simd.exceeds(other, best)
            best, places = simd.select(wins, other, best), simd.select(wins, two, places)
            other = simd.odd(d, e)
            wins = simd.exceeds(other, best)
            best, places = simd.select(wins, other, best), simd.select(wins, three, places)
            if relu:
                places = simd.select(above(best, zero), places, stopped)
                best = simd.maximum(best, zero)
            put(y + x * size, best, count)
            if codes:
                store_bytes(codes + x, places, count)
        y += width * size
        if codes:
            codes += width


@inlined
def table_of_shifts(shifts, channels, kernel_y, kernel_x, step_y, step_x, channel_size, base, size):
    """shifts[c, r, s] = base + the bytes from a flat output cell's place to what that kernel cell reads."""
    k = 0
    for c in range(channels):
        for r in range(kernel_y):
            for s in range(kernel_x):
                shifts[k] = base + (c * channel_size + r * step_y + s * step_x) * size
                k += 1
    return k


@inlined
def convolve_panel(image, weights, shifts, depth, bias, relu, cells, out, out_pitch, zero):
    """A panel of output channels over the `cells` flat cells of an image, to rows `out_pitch` cells apart."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    vectors = (cells + lanes - 1) // lanes
    start, least, row = BIAS if bias else ZERO, 0.0 if relu else -inf, out_pitch * size
    for vector in range(0, vectors, VECTORS):
        b, c = image + vector * lanes * size, out + vector * lanes * size
        count = min(VECTORS, vectors - vector)
        if count == 3:
            multiply_tile(weights, b, shifts, depth, c, row, start, bias, least, 3, zero)
        elif count == 2:
            multiply_tile(weights, b, shifts, depth, c, row, start, bias, least, 2, zero)
        else:
            multiply_tile(weights, b, shifts, depth, c, row, start, bias, least, 1, zero)


@inlined
def store_plane(source, pitch, height, width, y, zero):
    """The cells of a plane with gaps, without them."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    for row in range(height):
        for x in range(0, width, lanes):
            cells = simd.load(source + (row * pitch + x) * size, zero)
            put(y + (row * width + x) * size, cells, width - x)
