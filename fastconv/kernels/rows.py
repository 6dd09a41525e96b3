"""Rows of x between zeros."""

from __future__ import annotations

from fastconv.jit import inlined
from fastconv.kernels import simd
from fastconv.kernels.simd import LINE, take


@inlined
def prefetch_rows(source, row_bytes, rows, count):
    """Have the first `count` bytes of each row brought near; memory that is not there will do."""
    for row in range(rows):
        for line in range(0, count, LINE):
            simd.prefetch(source + row * row_bytes + line)


@inlined
def fill_phase(target, source, first, stride, width, count, ahead, zero):
    """target[u] = source[first + u * stride] for u in [0, count), zero where that is outside [0, width).

    Whole vectors are written: what comes after the row is written later, or is slack. `ahead` bytes after
    the row is the next one that will be asked for.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    if stride == 1 and count <= lanes:  # a narrow map: one masked load takes a quarter of the time
        cell = source + first * size
        simd.prefetch(cell + ahead)
        simd.store(target, simd.load_between(cell, first, width, zero))
        return
    if stride == 1:  # divisions would take longer than copying a short row
        low = min(count, max(0, -first))
        high = max(low, min(count, width - first))
    elif stride == 2:
        low = min(count, (1 - first) >> 1) if first < 0 else 0
        high = max(low, min(count, (width - first + 1) >> 1))
    else:
        low = min(count, (-first + stride - 1) // stride) if first < 0 else 0
        high = max(low, min(count, (width - first + stride - 1) // stride))
    for u in range(0, low, lanes):
        simd.store(target + u * size, zero)
    u = low
    if stride == 1:
        while u < high:
            cell = source + (first + u) * size
            simd.prefetch(cell + ahead)
            simd.store(target + u * size, take(cell, high - u, zero))
            u += lanes
    elif stride == 2:
        while u < high:
            cell, cells = source + (first + 2 * u) * size, width - first - 2 * u
            simd.prefetch(cell + ahead)
            simd.prefetch(cell + ahead + lanes * size)
            if cells >= 2 * lanes:
                near, far = simd.load(cell, zero), simd.load(cell + lanes * size, zero)
            else:
                near = take(cell, cells, zero)
                far = simd.load_part(cell + lanes * size, max(0, cells - lanes), zero)
            simd.store(target + u * size, simd.even(near, far))
            u += lanes
    else:
        while u < high:
            one = simd.load_part(source + (first + u * stride) * size, 1, zero)
            simd.store(target + u * size, one)
            u += 1
    u = high
    while u < count:
        simd.store(target + u * size, zero)
        u += lanes
