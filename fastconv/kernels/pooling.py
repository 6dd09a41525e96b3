"""Max and average pooling, forward and backward, for windows of any kind.

Which cells a window has is told by tables, one per axis: window `o` takes every `step`-th cell from
``first[o]`` up to, but not including, ``last[o]``. Padding, stride, dilation, ceil mode and adaptive windows
differ in the tables alone, and no kernel tests whether a cell exists.
A unit is one plane: one channel of one image.
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel, reals, record

POOLING = record(
    # x or grad_x; y or grad_output; indices (0: none), with the strides of y
    "x y indices "
    "x_n x_c x_z x_y x_x "
    "y_n y_c y_z y_y y_x "
    "images channels depth height width out_depth out_height out_width "
    # the tables of int64, one entry per output cell of the axis
    "first_z last_z first_y last_y first_x last_x step_z step_y step_x "
    # divisor of a window: the product of one entry per axis, unless `divisor` is positive
    "extent_z extent_y extent_x divisor "
    # what that is divided by: of norms the cells of the window, else 1
    "taps"
)

SCATTER = record(
    # planes; what goes there, or comes from there, by indices; and what tells of wrong ones
    "x y indices wrong "
    # images times channels, how many of them to clear at a time, and their cells
    "planes channels chunk cells out_cells "
    # strides of x and of the other two, from image to image, channel to channel, and cell to cell; of the
    # last two one is 1
    "x_n x_c x_x y_n y_c y_x"
)


@inlined
def clear_plane(p, x, base):
    if p.x_x == 1:  # planes are contiguous
        for cell in range(base, base + p.depth * p.height * p.width):
            x[cell] = 0
        return
    for iz in range(p.depth):
        for iy in range(p.height):
            row = base + iz * p.x_z + iy * p.x_y
            for ix in range(p.width):
                x[row + ix * p.x_x] = 0


@inlined
def window_divisor(p, oz, oy, ox):
    if p.divisor > 0:
        return p.divisor
    return ints(p.extent_z)[oz] * ints(p.extent_y)[oy] * ints(p.extent_x)[ox]


@kernel(POOLING, ints=True)
def max_pool(bits):
    """y = the largest cell of each window, the first of equals; a NaN is larger than everything."""

    def max_pool(params, t, tasks):
        p = fields(params, POOLING)
        x, y, indices = reals(p.x, bits), reals(p.y, bits), ints(p.indices)
        first_z, last_z = ints(p.first_z), ints(p.last_z)
        first_y, last_y = ints(p.first_y), ints(p.last_y)
        first_x, last_x = ints(p.first_x), ints(p.last_x)
        units = p.images * p.channels
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, c = divmod(unit, p.channels)
            plane = n * p.x_n + c * p.x_c
            for oz in range(p.out_depth):
                for oy in range(p.out_height):
                    target = n * p.y_n + c * p.y_c + oz * p.y_z + oy * p.y_y
                    for ox in range(p.out_width):
                        bz, by, bx = first_z[oz], first_y[oy], first_x[ox]
                        best = x[plane + bz * p.x_z + by * p.x_y + bx * p.x_x]
                        for iz in range(bz, last_z[oz], p.step_z):
                            for iy in range(first_y[oy], last_y[oy], p.step_y):
                                row = plane + iz * p.x_z + iy * p.x_y
                                for ix in range(first_x[ox], last_x[ox], p.step_x):
                                    value = x[row + ix * p.x_x]
                                    if value > best or (value != value and best == best):
                                        best = value
                                        bz, by, bx = iz, iy, ix
                        y[target + ox * p.y_x] = best
                        if p.indices:
                            place = (bz * p.height + by) * p.width + bx
                            indices[target + ox * p.y_x] = place

    return max_pool


@inlined
def scatter(x, plane, cells, y, indices, first, count, adds):
    """Add y's cells to those of a plane of x that `indices` name, or put them there; whether one is not."""
    wrong = False
    for cell in range(first, first + count):
        place = indices[cell]
        inside = 0 <= place < cells
        wrong |= not inside
        if inside:
            if adds:
                x[plane + place] += y[cell]
            else:
                x[plane + place] = y[cell]
    return wrong


@inlined
def scatter_channels(p, x, plane, y, indices, source, channels, adds):
    """x = 0, then as `scatter`, for some channels that are neighbours."""
    wrong = False
    # read once: for all that is known, what is added to x may change the record
    cells, step, out_step = p.cells, p.x_x, p.y_x
    if channels == step:  # all of them
        for cell in range(plane, plane + cells * step):
            x[cell] = 0
    else:
        for cell in range(cells):
            for c in range(channels):
                x[plane + cell * step + c] = 0
    for _ in range(p.out_cells):
        for c in range(channels):
            place = indices[source + c]
            inside = 0 <= place < cells
            wrong |= not inside
            if inside:
                if adds:
                    x[plane + place * step + c] += y[source + c]
                else:
                    x[plane + place * step + c] = y[source + c]
        source += out_step
    return wrong


def _scatter(adds):
    def scatter_cells(bits):
        def scatter_planes(params, t, tasks):
            p = fields(params, SCATTER)
            x, y, indices = reals(p.x, bits), reals(p.y, bits), ints(p.indices)
            cells, out_cells = p.cells, p.out_cells
            wrong = False
            first, last = t * p.planes // tasks, (t + 1) * p.planes // tasks
            if p.x_x == 1:  # contiguous planes, one after the other
                for start in range(first, last, p.chunk):
                    stop = min(start + p.chunk, last)
                    for cell in range(start * cells, stop * cells):
                        x[cell] = 0
                    for unit in range(start, stop):
                        wrong |= scatter(
                            x, unit * cells, cells, y, indices, unit * out_cells, out_cells, adds
                        )
            else:  # channels are neighbours: those of an image that are this task's go together
                unit = first
                while unit < last:
                    n, c = divmod(unit, p.channels)
                    channels = min(p.channels - c, last - unit)
                    plane, source = n * p.x_n + c, n * p.y_n + c
                    wrong |= scatter_channels(p, x, plane, y, indices, source, channels, adds)
                    unit += channels
            ints(p.wrong)[t] = wrong

        return scatter_planes

    return scatter_cells


# These kernels do not trust their indices: one beyond the plane is passed over, and told in `wrong`, one
# int64 per task. To look for one beforehand takes as long as the rest.

#: grad_x (as x) = each cell of grad_output (as y) added to the cell that `indices` names.
max_pool_backward = kernel(SCATTER)(_scatter(True))
#: x = each cell of y at the place that `indices` names, of several the last, and 0 elsewhere.
max_unpool = kernel(SCATTER)(_scatter(False))


@kernel(SCATTER)
def max_unpool_backward(bits):
    """y = the cell of x that `indices` names."""

    def max_unpool_backward(params, t, tasks):
        p = fields(params, SCATTER)
        x, y, indices = reals(p.x, bits), reals(p.y, bits), ints(p.indices)
        wrong = False
        for unit in range(t * p.planes // tasks, (t + 1) * p.planes // tasks):
            n, c = divmod(unit, p.channels)
            for cell in range(p.out_cells):
                target = n * p.y_n + c * p.y_c + cell * p.y_x
                place = indices[target]
                inside = 0 <= place < p.cells
                wrong |= not inside
                if inside:
                    y[target] = x[n * p.x_n + c * p.x_c + place * p.x_x]
        ints(p.wrong)[t] = wrong

    return max_unpool_backward


@kernel(POOLING)
def avg_pool(bits):
    """y = the sum over each window, row by row, divided by its divisor."""

    def avg_pool(params, t, tasks):
        p = fields(params, POOLING)
        x, y = reals(p.x, bits), reals(p.y, bits)
        first_z, last_z = ints(p.first_z), ints(p.last_z)
        first_y, last_y = ints(p.first_y), ints(p.last_y)
        first_x, last_x = ints(p.first_x), ints(p.last_x)
        units = p.images * p.channels
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, c = divmod(unit, p.channels)
            plane = n * p.x_n + c * p.x_c
            for oz in range(p.out_depth):
                for oy in range(p.out_height):
                    target = n * p.y_n + c * p.y_c + oz * p.y_z + oy * p.y_y
                    for ox in range(p.out_width):
                        total = 0.0
                        for iz in range(first_z[oz], last_z[oz], p.step_z):
                            for iy in range(first_y[oy], last_y[oy], p.step_y):
                                row = plane + iz * p.x_z + iy * p.x_y
                                for ix in range(first_x[ox], last_x[ox], p.step_x):
                                    total += x[row + ix * p.x_x]
                        y[target + ox * p.y_x] = total / window_divisor(p, oz, oy, ox)

    return avg_pool


@kernel(POOLING)
def avg_pool_backward(bits):
    """grad_x (as x) = each cell of grad_output (as y), divided, added to every cell of its window."""

    def avg_pool_backward(params, t, tasks):
        p = fields(params, POOLING)
        x, y = reals(p.x, bits), reals(p.y, bits)
        first_z, last_z = ints(p.first_z), ints(p.last_z)
        first_y, last_y = ints(p.first_y), ints(p.last_y)
        first_x, last_x = ints(p.first_x), ints(p.last_x)
        units = p.images * p.channels
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            n, c = divmod(unit, p.channels)
            plane = n * p.x_n + c * p.x_c
            clear_plane(p, x, plane)
            for oz in range(p.out_depth):
                for oy in range(p.out_height):
                    source = n * p.y_n + c * p.y_c + oz * p.y_z + oy * p.y_y
                    for ox in range(p.out_width):
                        share = y[source + ox * p.y_x] / window_divisor(p, oz, oy, ox)
                        for iz in range(first_z[oz], last_z[oz], p.step_z):
                            for iy in range(first_y[oy], last_y[oy], p.step_y):
                                row = plane + iz * p.x_z + iy * p.x_y
                                for ix in range(first_x[ox], last_x[ox], p.step_x):
                                    x[row + ix * p.x_x] += share

    return avg_pool_backward
