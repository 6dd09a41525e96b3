"""Sliding a square kernel down a strip of one plane, with the sums in registers.

A strip is some vectors wide and as high as the plane. Each row of it is read once for each column of the
kernel, shifted, and multiplied into the sums of all the output rows that it has a part in; as many of those
are held in registers as the kernel has rows, and with each step one is complete and the others move up:

    step t      sums[0]: row t      sums[1]: row t-1    sums[2]: row t-2, complete with this step
    row t of x  x kernel row 0      x kernel row 1      x kernel row 2

So a vector of x that is loaded is used as often as the kernel has rows. Rows of x that lie in the padding are
skipped; columns that do are lanes that a masked load leaves zero, so that nothing is copied.
With a stride of 2, a step reads two rows of x and completes one; the vectors of x are split into their even
and odd lanes. The input gradient with a stride of 2 is the reverse: a row of grad_output is multiplied into
the sums of even and odd columns, two rows of which are complete after each step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.kernels.simd import Vector
from fastconv.kernels.writer import Writer


def _literals(*arguments: Any) -> list[int] | None:
    """The values of constants, or None where one is not."""
    if not all(isinstance(argument, types.IntegerLiteral) for argument in arguments):
        return None
    return [argument.literal_value for argument in arguments]


class _Rows:
    """A plane that is read in rows, each as one vector per kernel column for each vector of the strip."""

    def __init__(
        self,
        write: Writer,
        plane: Any,
        row_bytes: Any,
        width: Any,
        first: Any,
        outputs: Any,
        vectors: int,
        side: int,
        stride: int,
    ) -> None:
        """`first` is the cell that the first lane reads by the first tap; `outputs` the lanes that count."""
        self.write, self.vectors, self.side, self.stride = write, vectors, side, stride
        self.row_bytes = row_bytes
        self.plane = write.sum(plane, write.product(first, write.element_bytes))
        self.masks = {}
        lanes = write.like.lanes
        for vector in range(vectors):
            for tap in range(0, side, stride):
                # no lane beyond the outputs: an infinity there times a zero would be NaN
                end = write.sum(first, write.product(outputs, stride), tap)
                narrower = write.builder.icmp_signed("<", end, width)
                limit = write.builder.select(narrower, end, width)
                for half in range(stride):
                    cell = (vector * stride + half) * lanes + tap
                    self.masks[vector, tap, half] = write.lanes_below(write.sum(first, cell), limit)

    def read(self, row: Any) -> list[list[Any]]:
        """[tap][vector] of a row of the plane."""
        write = self.write
        address = write.sum(self.plane, write.product(row, self.row_bytes))
        taps: list[list[Any]] = [[] for _ in range(self.side)]
        for tap in range(0, self.side, self.stride):
            for vector in range(self.vectors):
                parts = []
                for half in range(self.stride):
                    cell = (vector * self.stride + half) * write.like.lanes + tap
                    place = write.sum(address, cell * write.element_bytes)
                    parts.append(write.load(place, self.masks[vector, tap, half]))
                if self.stride == 2:
                    even, odd = write.unzip(*parts)
                    taps[tap].append(even)
                    if tap + 1 < self.side:
                        taps[tap + 1].append(odd)
                else:
                    taps[tap].append(parts[0])
        return taps


@intrinsic(prefer_literal=True)
def slide_down(
    typingctx: Any,
    x: Any,
    x_row: Any,
    height: Any,
    width: Any,
    weight: Any,
    y: Any,
    y_row: Any,
    out_height: Any,
    cells: Any,
    pad_y: Any,
    first: Any,
    start: Any,
    least: Any,
    vectors: Any,
    side: Any,
    stride: Any,
    flip: Any,
    like: Any,
) -> Any:
    """A strip of y = start + conv(x, weight), and no less than `least`.

    x is the address of the plane, `y` that of the strip's first cell; rows are so many bytes apart.
    `first` is the column of x that the first cell's first tap reads, maybe in the padding. The strip is
    `cells` wide, more than ``vectors - 1`` vectors and at most `vectors`. 0 <= pad_y < side.
    `vectors`, `side`, `stride` and `flip` are constants, `like` a vector of the dtype; with `flip` the kernel
    is turned by half a circle.
    """
    numbers = _literals(vectors, side, stride, flip)
    if numbers is None or not isinstance(like, Vector):
        return None
    count, size, step, turned = numbers
    real = types.float32 if like.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_row, height, width, weight, y, y_row, out_height, cells, pad_y, first = args[:11]
        write = Writer(builder, like)
        rows = _Rows(write, x, x_row, width, first, cells, count, size, step)
        start, least = write.splat(args[11]), write.splat(args[12])
        last = write.lanes_below(write.word((count - 1) * like.lanes), cells)
        taps = _Taps(write, weight, size, bool(turned))
        live = -(-size // step)  # output rows that a step has a part in

        def part(phase: int, row: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            columns = rows.read(row)
            for column in range(size):
                for j in range(live):
                    if phase + step * j < size:
                        factor = taps.read(phase + step * j, column)
                        for vector in range(count):
                            place = j * count + vector
                            sums[place] = write.fma(columns[column][vector], factor, sums[place])
            return sums

        def body(t: Any, sums: list[Any]) -> list[Any]:
            for phase in range(step):
                row = write.sum(write.product(t, step), phase, builder.neg(pad_y))
                inside = write.is_below(row, height)
                sums = write.when(inside, sums, partial(part, phase, row))
            done = write.sum(t, 1 - live)
            with write.only_when(builder.icmp_signed(">=", done, write.word(0))):
                target = write.sum(y, write.product(done, y_row))
                for vector in range(count):
                    total = sums[(live - 1) * count + vector]
                    total = builder.select(builder.fcmp_ordered("<", total, least), least, total)
                    mask = last if vector == count - 1 else None
                    write.store(write.sum(target, vector * write.vector_bytes), total, mask)
            return [start] * count + sums[: (live - 1) * count]

        write.loop(write.sum(out_height, live - 1), [start] * (live * count), body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11, real, real, vectors, side, stride, flip, like), codegen


@intrinsic(prefer_literal=True)
def spread_down(
    typingctx: Any,
    grad: Any,
    grad_row: Any,
    out_height: Any,
    out_width: Any,
    weight: Any,
    x: Any,
    x_row: Any,
    height: Any,
    width: Any,
    pad_y: Any,
    pad_x: Any,
    first: Any,
    vectors: Any,
    side: Any,
    like: Any,
) -> Any:
    """A strip of the input gradient of a convolution with a stride of 2.

    `grad` and `x` are the addresses of planes of grad_output and of grad_x, of which the strip's cells are
    those in columns ``2 * first - pad_x`` up to as many as 2 * `vectors` vectors have lanes, where there are
    such. Else as `slide_down`.
    """
    numbers = _literals(vectors, side)
    if numbers is None or not isinstance(like, Vector):
        return None
    count, size = numbers

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        grad, grad_row, out_height, out_width, weight, x, x_row, height, width = args[:9]
        pad_y, pad_x, first = args[9:12]
        write = Writer(builder, like)
        reach = -(-size // 2)  # cells of grad_output that a cell gets its sum from
        lanes = count * like.lanes
        start = write.sum(first, 1 - reach)
        rows = _Rows(write, grad, grad_row, out_width, start, write.word(lanes), count, reach, 1)
        taps = _Taps(write, weight, size, flip=False)
        cell = builder.sub(write.product(first, 2), pad_x)
        masks = [write.lanes_below(write.sum(cell, k * like.lanes), width) for k in range(2 * count)]
        x = write.sum(x, write.product(cell, write.element_bytes))
        pairs = 2 * count  # sums of a row: even and odd columns of each vector

        def part(t: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            columns = rows.read(t)
            for tap in range(size):
                for row in range(size):
                    factor = taps.read(row, tap)
                    for vector in range(count):
                        place = row * pairs + 2 * vector + tap % 2
                        sums[place] = write.fma(columns[reach - 1 - tap // 2][vector], factor, sums[place])
            return sums

        def body(t: Any, sums: list[Any]) -> list[Any]:
            sums = write.when(write.is_below(t, out_height), sums, lambda s: part(t, s))
            for row in range(2):
                y = builder.sub(write.sum(write.product(t, 2), row), pad_y)
                with write.only_when(write.is_below(y, height)):
                    target = write.sum(x, write.product(y, x_row))
                    for vector in range(count):
                        place = row * pairs + 2 * vector
                        for half, cells in enumerate(write.zip(sums[place], sums[place + 1])):
                            k = 2 * vector + half
                            write.store(write.sum(target, k * write.vector_bytes), cells, masks[k])
            return sums[2 * pairs :] + [write.zero] * (2 * pairs)

        steps = builder.sdiv(write.sum(height, pad_y, 1), write.word(2))
        write.loop(steps, [write.zero] * (size * pairs), body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12, vectors, side, like), codegen


@intrinsic(prefer_literal=True)
def sum_down(
    typingctx: Any,
    x: Any,
    x_row: Any,
    height: Any,
    width: Any,
    grad: Any,
    grad_row: Any,
    out_height: Any,
    cells: Any,
    pad_y: Any,
    first: Any,
    sums: Any,
    side: Any,
    stride: Any,
    like: Any,
) -> Any:
    """Add to `sums`, a vector per kernel cell, what a strip of one vector gives for the weight gradient.

    `grad` is the address of the strip's first cell; else as `slide_down`. A product is added to the lane of
    its cell. Where the kernel has more rows than 3, the strip is gone through once for every 2 or 3 of them:
    so many sums are there registers for.
    """
    numbers = _literals(side, stride)
    if numbers is None or not isinstance(like, Vector):
        return None
    size, step = numbers

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_row, height, width, grad, grad_row, out_height, cells, pad_y, first, sums = args[:11]
        write = Writer(builder, like)
        rows = _Rows(write, x, x_row, width, first, cells, 1, size, step)
        mask = write.lanes_below(write.word(0), cells)
        passes = -(-size // 3)

        def go(first_row: int, count: int) -> None:
            """The sums of `count` rows of the kernel."""
            live = -(-count // step)  # rows of grad_output that meet a row of x
            places = [
                write.sum(sums, tap * write.vector_bytes)
                for tap in range(first_row * size, (first_row + count) * size)
            ]

            def part(phase: int, t: Any, row: Any, grads: list[Any], totals: list[Any]) -> list[Any]:
                totals, columns = list(totals), rows.read(row)
                for j in range(live):
                    kernel_row = phase + step * j
                    if kernel_row < count:

                        def add(old: list[Any], j: int = j) -> list[Any]:
                            return [
                                write.fma(columns[column][0], grads[j], total)
                                for column, total in enumerate(old)
                            ]

                        # not the zeros beside grad_output's rows: times an infinity they would be NaN
                        exists = write.is_below(write.sum(t, -j), out_height)
                        some = slice(kernel_row * size, (kernel_row + 1) * size)
                        totals[some] = write.when(exists, totals[some], add)
                return totals

            def body(t: Any, values: list[Any]) -> list[Any]:
                totals, grads = values[: count * size], values[count * size :]
                place = write.sum(grad, write.product(t, grad_row))
                exists = write.is_below(t, out_height)
                grads = write.when(exists, [write.zero], lambda _: [write.load(place, mask)]) + grads
                for phase in range(step):
                    row = write.sum(write.product(t, step), phase + first_row, builder.neg(pad_y))
                    inside = write.is_below(row, height)
                    totals = write.when(
                        inside,
                        totals,
                        partial(part, phase, t, row, grads),
                    )
                return totals + grads[: live - 1]

            initial = [write.load(place) for place in places] + [write.zero] * (live - 1)
            totals = write.loop(write.sum(out_height, live - 1), initial, body)
            for place, total in zip(places, totals[: count * size], strict=True):
                write.store(place, total)

        for number in range(passes):
            first_row, last_row = number * size // passes, (number + 1) * size // passes
            go(first_row, last_row - first_row)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11, side, stride, like), codegen


@intrinsic
def total_of_halves(typingctx: Any, value: Any) -> Any:
    """The sum of the lanes: of the halves, of their halves, and so on: 4 additions in a row, not 15."""
    if not isinstance(value, Vector):
        return None
    real = types.float32 if value.bits == 32 else types.float64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Writer(builder, value).total(args[0])

    return real(value), codegen


class _Taps:
    """The kernel: held in registers if it is small, else read again in each row."""

    def __init__(self, write: Writer, weight: Any, side: int, flip: bool) -> None:
        self.write, self.weight, self.side, self.flip = write, weight, side, flip
        self.values: list[Any] = []
        if side <= 3:
            self.values = [self._load(row, column) for row in range(side) for column in range(side)]

    def _load(self, row: int, column: int) -> Any:
        tap = row * self.side + column
        if self.flip:
            tap = self.side * self.side - 1 - tap
        return self.write.broadcast(self.write.sum(self.weight, tap * self.write.element_bytes))

    def read(self, row: int, column: int) -> Any:
        return self.values[row * self.side + column] if self.values else self._load(row, column)
