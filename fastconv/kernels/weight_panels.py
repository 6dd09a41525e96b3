"""A weight packed for the micro-kernel: panels of ROWS output channels, kernel cell after kernel cell.

    packed (groups, blocks of channels, panels, channels x cells, ROWS)

Output channels that do not exist are zeros. Where a kernel's cells and the channels of a row follow each
other, as those of a weight (K, C, R, S) do, blocks of them are transposed in registers. In the weight of an
input gradient it is the rows that are neighbours.
"""

from __future__ import annotations

from fastconv.jit import fields, inlined, ints, kernel, reals, record
from fastconv.kernels import simd
from fastconv.kernels.microkernel import ROWS
from fastconv.kernels.simd import LANES

#: `taps_at` is a table of the elements from the first kernel cell of a channel to each that is used; `plain`
#: says that these and the channels follow each other. Else `span` is 0, or the cells of a row's channel where
#: the rows of a channel follow each other, the first used of them the one that is `first_cell` of it. A bias
#: that is no whole number of panels long is copied to `whole_bias`, else that is 0.
PACK = record(
    "weight packed bias whole_bias taps_at groups group_in group_out taps block_channels "
    "group_stride row_stride channel_stride plain span first_cell "
    # which panels, counted over the groups, and channels of a group, those from a block's first on
    "first_unit last_unit first_channel last_channel"
)

#: Most cells of a row's channel of which all are transposed to pack some.
MOST_SPAN = 64
#: Panels that are packed at a time where the rows of a channel follow each other, and channels to look ahead.
NEAR_PANELS, NEAR_AHEAD = 8, 16


@inlined
def pack_near(p, group, panel, count, c0, channels, taps_at, memory, zero):
    """`count` whole panels of a block of channels, of a weight in which the rows of a channel are neighbours.

    What is read for a panel is as long as a few cache lines, and the next channel's is far away: so a few
    panels are packed at a time, and the reading of later channels is announced.
    """
    lanes, size = simd.lanes_of(zero), simd.bytes_of(zero)
    panels = (p.group_out + ROWS - 1) // ROWS
    panel_source = ROWS * p.row_stride * size
    source = group * p.group_stride + panel * ROWS * p.row_stride + c0 * p.channel_stride
    source = p.weight + (source - p.first_cell) * size
    target = ((group * p.group_in + c0) * panels + panel * channels) * p.taps * ROWS
    target = p.packed + target * size
    for _ in range(channels):
        ahead = source + NEAR_AHEAD * p.channel_stride * size
        for line in range(0, count * panel_source, 64):
            simd.prefetch(ahead + line)
        for number in range(count):
            cells = source + number * panel_source
            to = target + number * channels * p.taps * ROWS * size
            if p.span == 1:
                simd.copy_reals(to, cells, ROWS, zero)
            else:
                for cell in range(0, p.span, lanes):
                    simd.transpose_block(
                        cells + cell * size,
                        p.row_stride * size,
                        ROWS,
                        p.span - cell,
                        memory + cell * ROWS * size,
                        lanes * size,
                        ROWS,
                        zero,
                    )
                for tap in range(p.taps):
                    cell = memory + (p.first_cell + taps_at[tap]) * ROWS * size
                    simd.copy_reals(to + tap * ROWS * size, cell, ROWS, zero)
        source += p.channel_stride * size
        target += p.taps * ROWS * size


@kernel(PACK)
def pack_weight(bits):
    """packed[group][block of channels][panel][k][ROWS] = weight[group][row][k], k a cell of a channel.

    A unit is a panel of a group.
    """
    lanes, size = LANES[bits], bits // 8
    memory_bytes = (MOST_SPAN + lanes) * ROWS * size

    def pack_weight(params, t, tasks):
        p = fields(params, PACK)
        weight, packed, taps_at = reals(p.weight, bits), reals(p.packed, bits), ints(p.taps_at)
        bias, whole_bias = reals(p.bias, bits), reals(p.whole_bias, bits)
        zero = simd.splat(0.0, bits)
        memory = simd.stack_memory(memory_bytes)
        panels = (p.group_out + ROWS - 1) // ROWS
        units = p.last_unit - p.first_unit
        unit, last_unit = p.first_unit + t * units // tasks, p.first_unit + (t + 1) * units // tasks
        while unit < last_unit:
            group, panel = divmod(unit, panels)
            near = 0
            if p.span:  # whole panels alone
                near = min(min(last_unit - unit, NEAR_PANELS), p.group_out // ROWS - panel)
            count = max(1, near)
            if p.whole_bias:
                first, there = group * p.group_out + panel * ROWS, p.group_out - panel * ROWS
                for row in range(min(count * ROWS, there)):
                    whole_bias[unit * ROWS + row] = bias[first + row]
                for row in range(there, count * ROWS):
                    whole_bias[unit * ROWS + row] = 0
            rows = min(ROWS, p.group_out - panel * ROWS)
            source = group * p.group_stride + panel * ROWS * p.row_stride
            for c0 in range(p.first_channel, p.last_channel, p.block_channels):
                channels = min(p.block_channels, p.last_channel - c0)
                if near:
                    pack_near(p, group, panel, near, c0, channels, taps_at, memory, zero)
                    continue
                target = ((group * p.group_in + c0) * panels + panel * channels) * p.taps * ROWS
                first = source + c0 * p.channel_stride
                done = 0
                if p.plain:
                    done = channels * p.taps // lanes * lanes
                for k in range(0, done, lanes):
                    simd.transpose_block(
                        p.weight + (first + k) * size,
                        p.row_stride * size,
                        rows,
                        lanes,
                        p.packed + (target + k * ROWS) * size,
                        lanes * size,
                        ROWS,
                        zero,
                    )
                # a division for each kernel cell would take as long as all the rest
                first_c, first_tap = divmod(done, p.taps)
                k = target + done * ROWS
                for c in range(first_c, channels):
                    cells = first + c * p.channel_stride
                    for tap in range(first_tap if c == first_c else 0, p.taps):
                        cell = cells + taps_at[tap]
                        for row in range(rows):
                            packed[k + row] = weight[cell + row * p.row_stride]
                        for row in range(rows, ROWS):
                            packed[k + row] = 0
                        k += ROWS
            unit += count

    return pack_weight
