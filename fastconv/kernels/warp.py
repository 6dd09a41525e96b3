"""Images turned, moved and scaled: each cell of the result interpolated between four of the source."""

from __future__ import annotations

from math import floor

from fastconv.jit import fields, kernel, reals, record

#: `maps` has for each image the six numbers, in float64, that take a cell (y, x) of the result to a place in
#: the source: y' = a y + b x + c, x' = d y + e x + f. `around`, in float64, is what lies around the source.
WARP = record("x y maps around images channels height width")


@kernel(WARP)
def warp(bits):
    """y[n, c, i, j] = x[n, c] at the place that n's map takes (i, j) to. A unit is an image."""

    def warp(params, t, tasks):
        p = fields(params, WARP)
        x, y, maps = reals(p.x, bits), reals(p.y, bits), reals(p.maps, 64)
        fill = reals(p.around, 64)[0]
        height, width = p.height, p.width
        plane = height * width
        for n in range(t * p.images // tasks, (t + 1) * p.images // tasks):
            m = 6 * n
            for i in range(height):
                for j in range(width):
                    v = maps[m] * i + maps[m + 1] * j + maps[m + 2]
                    u = maps[m + 3] * i + maps[m + 4] * j + maps[m + 5]
                    # far outside, or no number at all: before anything is made an int of it
                    inside = -1 < v < height and -1 < u < width
                    top = floor(v) if inside else -2
                    left = floor(u) if inside else -2
                    down, right = v - top, u - left
                    for c in range(p.channels):
                        first = (n * p.channels + c) * plane
                        total = 0.0
                        if not inside:
                            total = fill
                        else:
                            for k in range(4):
                                row, column = top + k // 2, left + k % 2
                                share = (down if k // 2 else 1 - down) * (right if k % 2 else 1 - right)
                                if 0 <= row < height and 0 <= column < width:
                                    total += share * x[first + row * width + column]
                                else:
                                    total += share * fill
                        y[first + i * width + j] = total

    return warp
