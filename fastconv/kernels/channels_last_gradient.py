"""The weight gradient of channels-last arrays as a matrix product over pixels.

    grad_weight (TCg, Kg) = columns' (TCg, pixels) x grad_output (pixels, Kg)     for T cells and each group

A pixel of grad_output is a row of the right matrix as it is, with the output channels on the lanes. What a
kernel cell sees of x at that pixel, some channels that are neighbours, is a part of a column of the left one,
and is read in place, by a table of addresses; that of a row of zeros where there is padding:

    A: -> ROWS channels, pixel after pixel             B: up to VECTORS vectors of output channels
       p=0: -> x[tap(0), c..c+ROWS]                       p=0: grad_output[0, k..]
       p=1: -> x[tap(1), c..c+ROWS]                       p=1: grad_output[1, k..]

Only where the channels are no multiple of ROWS, so that a column has parts of several kernel cells, is it
packed. Panels of grad_output are copied because its rows, a power of two apart, share sets of the cache.

    for each segment of the pixels                             its sums are a matrix of their own
        for each group
            for each chunk of the segment's pixels
                panels  <- grad_output's chunk                     stays in L2
                for each panel of ROWS kernel cells
                    a   <- where is what they see                  stays in L1
                    for each panel of output channels              streams from L2
                        tile of sums += a' x panel

The segments depend on the shape alone, and are added in their order: the result has the same bits whatever
the number of tasks. A task has a range of (segment, group, panel of kernel cells).
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import LOAD, ROWS, VECTORS, ZERO, multiply_seen
from fastconv.kernels.simd import LANES, put, take

SUMS = record(
    # addresses; sums is (segments, groups, sums_height, sums_width), its steps told in elements
    "x grad_output sums scratch scratch_bytes segment_step group_step sums_width "
    # strides of x in elements; its channels, and the pixels of grad_output, follow each other
    "x_n x_z x_y x_x "
    "images groups group_in group_out depth height width "
    "kernel_z kernel_y kernel_x stride_z stride_y stride_x "
    "dilation_z dilation_y dilation_x pad_z pad_y pad_x "
    "out_depth out_height out_width "
    # how many segments, how many chunks in all, and the most pixels of one
    "segments chunks chunk_pixels "
    # parts of a task's scratch, bytes from its start
    "at_panels at_zeros at_a at_seen"
)

#: Sums of `rows` rows a step apart, for each group, and where they go.
FINISH = record("sums grad_weight segments segment_step group_step sums_width groups group_out rows out_row")


@inlined
def pack_gradient(p, pixels, count, panels, zero):
    """The panels of `count` pixels of a group's channels of grad_output."""
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    vectors = (p.group_out + lanes - 1) // lanes
    out_panels = (vectors + VECTORS - 1) // VECTORS
    for panel in range(out_panels):
        first = panel * vectors // out_panels
        width = ((panel + 1) * vectors // out_panels - first) * lanes
        columns = p.group_out - first * lanes
        target = panels + first * lanes * p.chunk_pixels * size
        source = pixels + first * lanes * size
        for _ in range(count):
            for k in range(0, width, lanes):
                simd.store(target + k * size, take(source + k * size, columns - k, zero))
            target += width * size
            source += p.groups * p.group_out * size


@inlined
def see_cell(p, tap, x, first, count, zeros, seen, size):
    """seen[i] = address of what a kernel cell sees from pixel `first` + i, in x or, for padding, in `zeros`.

    `x` is the address of the first of the wanted channels in the first cell of x.
    """
    rest, kx = divmod(tap, p.kernel_x)
    kz, ky = divmod(rest, p.kernel_y)
    rest, ox = divmod(first, p.out_width)
    rest, oy = divmod(rest, p.out_height)
    n, oz = divmod(rest, p.out_depth)
    left = p.pad_x - kx * p.dilation_x  # how far the first of a row of pixels sees beyond the start of x
    # the pixels of a row that see a cell of x
    least = (max(0, left) + p.stride_x - 1) // p.stride_x
    most = (max(0, p.width + left) + p.stride_x - 1) // p.stride_x
    step = p.stride_x * p.x_x * size
    i = 0
    while i < count:
        end = i + min(p.out_width - ox, count - i)
        iz = oz * p.stride_z - p.pad_z + kz * p.dilation_z
        iy = oy * p.stride_y - p.pad_y + ky * p.dilation_y
        low, high = i, i
        if 0 <= iz < p.depth and 0 <= iy < p.height:
            low = min(i + max(0, least - ox), end)
            high = max(low, min(i + most - ox, end))
        place = (
            x + (n * p.x_n + iz * p.x_z + iy * p.x_y + ((ox + low - i) * p.stride_x - left) * p.x_x) * size
        )
        for k in range(i, low):
            seen[k] = zeros
        for k in range(low, high):
            seen[k] = place
            place += step
        for k in range(high, end):
            seen[k] = zeros
        i = end
        ox, oy = 0, oy + 1
        if oy == p.out_height:
            oy, oz = 0, oz + 1
            if oz == p.out_depth:
                oz, n = 0, n + 1


@inlined
def pack_seen(seen, count, width, a, zero):
    """A part of a panel at `a`: `width` reals from each of `count` addresses."""
    for i in range(count):
        put(a + i * ROWS * simd.bytes_of(zero), take(seen[i], width, zero), width)


@kernel(SUMS)
def weight_sums(bits):
    """The sums of each segment, kernel cells by output channels."""
    lanes, size = LANES[bits], bits // 8

    def weight_sums(params, t, tasks):
        p = fields(params, SUMS)
        zero = simd.splat(0.0, bits)
        taps = p.kernel_z * p.kernel_y * p.kernel_x
        cells = p.group_in * taps
        in_place = p.group_in % ROWS == 0  # all rows of a panel are of one kernel cell
        row_panels = (cells + ROWS - 1) // ROWS
        pixels = p.images * p.out_depth * p.out_height * p.out_width
        vectors = (p.group_out + lanes - 1) // lanes
        out_panels = (vectors + VECTORS - 1) // VECTORS
        units = p.segments * p.groups * row_panels

        scratch = p.scratch + t * p.scratch_bytes
        panels, zeros, packed = scratch + p.at_panels, scratch + p.at_zeros, scratch + p.at_a
        a = scratch + p.at_seen
        seen = ints(a)
        for i in range(0, p.group_in, lanes):
            simd.store(zeros + i * size, zero)
        if not in_place:
            for i in range(0, p.chunk_pixels * ROWS, lanes):
                simd.store(packed + i * size, zero)

        unit, last_unit = t * units // tasks, (t + 1) * units // tasks
        while unit < last_unit:
            # the panels of kernel cells that this task has of one segment and group
            rest, first_panel = divmod(unit, row_panels)
            last_panel = min(row_panels, first_panel + last_unit - unit)
            unit += last_panel - first_panel
            segment, group = divmod(rest, p.groups)
            x = p.x + group * p.group_in * size
            sums = p.sums + (segment * p.segment_step + group * p.group_step) * size

            first_chunk = segment * p.chunks // p.segments
            for chunk in range(first_chunk, (segment + 1) * p.chunks // p.segments):
                start = ZERO if chunk == first_chunk else LOAD
                first = chunk * pixels // p.chunks
                count = (chunk + 1) * pixels // p.chunks - first
                gradient = p.grad_output + (first * p.groups + group) * p.group_out * size
                pack_gradient(p, gradient, count, panels, zero)

                last_tap, skip = -1, 0
                for row_panel in range(first_panel, last_panel):
                    tap, channel = divmod(row_panel * ROWS, p.group_in)
                    if in_place:
                        if tap != last_tap:
                            see_cell(p, tap, x, first, count, zeros, seen, size)
                            last_tap = tap
                        skip = channel * size
                    else:
                        row = 0
                        while row < ROWS and tap < taps:  # rows beyond the last are not read
                            width = min(ROWS - row, p.group_in - channel)
                            see_cell(p, tap, x + channel * size, first, count, zeros, seen, size)
                            pack_seen(seen, count, width, packed + row * size, zero)
                            row += width
                            tap, channel = tap + 1, 0
                        for i in range(count):
                            seen[i] = packed + i * ROWS * size
                    tile, c_row = sums + row_panel * ROWS * p.sums_width * size, p.sums_width * size
                    for panel in range(out_panels):
                        vector = panel * vectors // out_panels
                        width = (panel + 1) * vectors // out_panels - vector
                        b = panels + vector * lanes * p.chunk_pixels * size
                        c = tile + vector * lanes * size
                        if width == 3:
                            multiply_seen(a, skip, b, count, c, c_row, start, 3, zero)
                        elif width == 2:
                            multiply_seen(a, skip, b, count, c, c_row, start, 2, zero)
                        else:
                            multiply_seen(a, skip, b, count, c, c_row, start, 1, zero)

    return weight_sums


@kernel(FINISH)
def finish_weight(bits):
    """grad_weight[cell, k] = the sum over segments of sums[segment, cell, k]. A unit is a row."""
    lanes, size = LANES[bits], bits // 8

    def finish_weight(params, t, tasks):
        p = fields(params, FINISH)
        zero = simd.splat(0.0, bits)
        units = p.groups * p.rows
        for unit in range(t * units // tasks, (t + 1) * units // tasks):
            group, row = divmod(unit, p.rows)
            source = p.sums + (group * p.group_step + row * p.sums_width) * size
            target = p.grad_weight + (row * p.out_row + group * p.group_out) * size
            for k in range(0, p.group_out, lanes):
                total = simd.load(source + k * size, zero)
                for segment in range(1, p.segments):
                    total = simd.add(total, simd.load(source + (segment * p.segment_step + k) * size, zero))
                put(target + k * size, total, p.group_out - k)

    return finish_weight
