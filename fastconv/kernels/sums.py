"""Sums over everything but the channels: the gradient of a bias."""

from __future__ import annotations

from fastconv.jit import fields, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.simd import LANES

CHANNEL_SUMS = record("x sums images channels pixels")


@kernel(CHANNEL_SUMS)
def channel_sums(bits):
    """sums[c] = the sum of x[n, c, pixel] over n and pixel, in float64. A unit is a channel."""
    lanes, size = LANES[64], bits // 8

    def channel_sums(params, t, tasks):
        p = fields(params, CHANNEL_SUMS)
        sums = reals(p.sums, bits)
        whole = p.pixels // (4 * lanes) * (4 * lanes)
        for c in range(t * p.channels // tasks, (t + 1) * p.channels // tasks):
            # four sums, for an addition takes four cycles and one can begin in each
            a = simd.splat(0.0, 64)
            b, d, e = a, a, a
            for n in range(p.images):
                plane = p.x + (n * p.channels + c) * p.pixels * size
                for i in range(0, whole, 4 * lanes):
                    cell = plane + i * size
                    a = simd.add(a, simd.load_double(cell, bits, lanes))
                    b = simd.add(b, simd.load_double(cell + lanes * size, bits, lanes))
                    d = simd.add(d, simd.load_double(cell + 2 * lanes * size, bits, lanes))
                    e = simd.add(e, simd.load_double(cell + 3 * lanes * size, bits, lanes))
                for i in range(whole, p.pixels, lanes):
                    a = simd.add(a, simd.load_double(plane + i * size, bits, p.pixels - i))
            sums[c] = simd.total(simd.add(simd.add(a, b), simd.add(d, e)))

    return channel_sums
