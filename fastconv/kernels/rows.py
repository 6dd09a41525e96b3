"""Rows of x between zeros."""

from __future__ import annotations

from fastconv.jit import inlined
from fastconv.kernels import simd


@inlined
def fill_phase(target, source, first, stride, width, count, zero):
    """target[u] = source[first + u * stride] for u in [0, count), zero where that is outside [0, width)."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    if stride == 1:  # divisions would take longer than copying a short row
        low = min(count, max(0, -first))
        high = max(low, min(count, width - first))
    else:
        low = min(count, (-first + stride - 1) // stride) if first < 0 else 0
        high = max(low, min(count, (width - first + stride - 1) // stride))
    for u in range(0, low, lanes):
        simd.store(target + u * size, zero)
    u = low
    if stride == 1:
        while u < high:
            cell = source + (first + u) * size
            part = high - u
            if part >= lanes:
                simd.store(target + u * size, simd.load(cell, zero))
            else:
                simd.store(target + u * size, simd.load_part(cell, part, zero))
            u += lanes
    else:
        if stride == 2:
            while u + lanes <= high and first + 2 * (u + lanes) <= width:
                cell = source + (first + 2 * u) * size
                low_half, high_half = simd.load(cell, zero), simd.load(cell + lanes * size, zero)
                simd.store(target + u * size, simd.even(low_half, high_half))
                u += lanes
        while u < high:
            one = simd.load_part(source + (first + u * stride) * size, 1, zero)
            simd.store(target + u * size, one)
            u += 1
    # whole vectors: what comes after the row is written later, or is slack
    u = high
    while u < count:
        simd.store(target + u * size, zero)
        u += lanes
