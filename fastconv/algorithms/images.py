"""Convolution of whole images in cache by shifts: how it is run; `fastconv.kernels.shift` tells what is done.

Besides the three operations of a convolution it does what a block of a network needs: convolution, ReLU and
2 x 2 max pooling in one go, and back.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.algorithms.gemm import forward_convolution, input_grad_convolutions
from fastconv.algorithms.implicit_gemm import Panels
from fastconv.algorithms.workspace import odd_lines, places, round_up, scratch
from fastconv.jit import address_of
from fastconv.kernels import shift as kernels
from fastconv.kernels.microkernel import ROWS, VECTORS
from fastconv.kernels.shift import PLAIN, POOLED, RELU
from fastconv.kernels.simd import LANES, REGISTER_BYTES
from fastconv.kernels.weight_panels import pack_weight
from fastconv.shapes import ConvShape
from fastconv.threads import Prepared, task_count

__all__ = [
    "PLAIN",
    "POOLED",
    "RELU",
    "Layout",
    "Whole",
    "backward_places",
    "convolve",
    "form_of",
    "forward_places",
    "gradients",
    "layout",
    "prepare_backward",
    "prepare_forward",
    "segments_of",
]

#: The gradient of weight adds up over some images at a time: as many as these, and these bytes of them.
MOST_TOGETHER = 4
TOGETHER_BYTES = 192 << 10


class Layout(NamedTuple):
    """Where the cells of x and of the gradient lie in scratch, in elements; see `fastconv.kernels.images`."""

    pitch: int
    x_first: int
    x_channel: int
    x_cells: int
    g_first: int
    g_channel: int
    g_cells: int
    out_pitch: int


def _odd_vectors(value: int, lanes: int) -> int:
    """Room for `value` elements: rows a power of two apart would fall on the same sets of the cache."""
    return (-(-value // lanes) | 1) * lanes


@lru_cache(maxsize=1024)
def layout(shape: ConvShape, itemsize: int) -> Layout:
    lanes = LANES[8 * itemsize]
    _, height, width = shape.input
    _, out_height, out_width = shape.output
    _, top, left = shape.pad_before
    reach_y, reach_x = ((k - 1) * d for k, d in zip(shape.kernel[1:], shape.dilation[1:], strict=True))
    # what the windows of the gradient's convolution have before the first cell
    g_top, g_left = reach_y - top, reach_x - left
    x_gap = max(left, out_width - left + reach_x - width)
    g_gap = max(g_left, width - g_left + reach_x - out_width)
    # one pitch for both: the sums pair their cells
    pitch = max(width + x_gap, out_width + g_gap, width, out_width)
    x_cells, g_cells = (out_height - 1) * pitch + out_width, (height - 1) * pitch + width
    x_first, g_first = top * pitch + left, max(0, g_top * pitch + g_left)
    reach = reach_y * pitch + reach_x
    x_room = max(x_first + g_cells, round_up(x_cells, lanes) + reach)
    g_room = max(g_first + round_up(x_cells, lanes), round_up(g_cells, lanes) + reach)
    return Layout(
        pitch,
        x_first,
        _odd_vectors(x_room, lanes),
        x_cells,
        g_first,
        _odd_vectors(g_room, lanes),
        g_cells,
        _odd_vectors(max(x_cells, g_cells) + 2 * lanes, lanes),
    )


def _places(*sizes: int) -> list[int]:
    """Where parts of a task's scratch begin; and its size, an odd number of cache lines."""
    *at, end = places([size + REGISTER_BYTES for size in sizes])
    return [*at, odd_lines(end)]


def forward_places(shape: ConvShape, itemsize: int) -> list[int]:
    cells, vector = layout(shape, itemsize), LANES[8 * itemsize] * itemsize
    depth = shape.in_channels * shape.taps
    image = shape.in_channels * cells.x_channel * itemsize
    return _places(image, depth * 8, ROWS * cells.out_pitch * itemsize + 2 * vector)


@lru_cache(maxsize=1024)
def segments_of(shape: ConvShape, itemsize: int) -> int:
    """Into how many segments to cut a batch: some images each, for which there is room in the cache."""
    cells = layout(shape, itemsize)
    image = (shape.in_channels * cells.x_channel + shape.out_channels * cells.g_channel) * itemsize
    return -(-shape.batch // max(1, min(MOST_TOGETHER, TOGETHER_BYTES // image)))


def backward_places(shape: ConvShape, itemsize: int, sums: bool, grad_x: bool) -> list[int]:
    cells, vector = layout(shape, itemsize), LANES[8 * itemsize] * itemsize
    images = -(-shape.batch // segments_of(shape, itemsize))
    return _places(
        images * shape.in_channels * cells.x_channel * itemsize if sums else 0,
        images * shape.out_channels * cells.g_channel * itemsize,
        images * round_up(shape.out_channels, ROWS) * 8,
        images * round_up(shape.in_channels * shape.taps, VECTORS) * 8 if sums else 0,
        shape.out_channels * shape.taps * 8 if grad_x else 0,
        ROWS * VECTORS * vector,
        ROWS * cells.out_pitch * itemsize + 2 * vector if grad_x else 0,
    )


class Whole(NamedTuple):
    """A weight packed for the kernels: as for implicit GEMM, but all channels in one block; a `Packing`."""

    panels: Panels

    @property
    def size(self) -> int:
        return round_up(self.panels.size, REGISTER_BYTES)

    def pack(self, weight: np.ndarray, packed: int, bias: int = 0, whole_bias: int = 0) -> None:
        first = self.panels.weights.first_tap * self.panels.dtype.itemsize
        run, _ = _prepare_pack(self.panels, self.panels.tasks, False)
        run.run(address_of(weight) + first, packed, bias, whole_bias)

    def pack_bias(self, bias: int, whole_bias: int) -> None:
        _prepare_pack(self.panels, 1, True)[0].run(0, 0, bias, whole_bias)


@lru_cache(maxsize=1024)
def _prepare_pack(panels: Panels, tasks: int, bias_alone: bool) -> tuple[Prepared, np.ndarray]:
    """What packs a weight and its bias, or the bias alone; and a table to be kept alive as long."""
    weights, taps = panels.weights, prod(panels.kernel)
    taps_at = weights.taps_at(panels.kernel)
    run = Prepared(
        pack_weight,
        panels.dtype,
        tasks,
        "weight packed bias whole_bias",
        taps_at=address_of(taps_at),
        groups=1,
        group_in=panels.group_in,
        group_out=panels.group_out,
        taps=taps,
        block_channels=panels.group_in,
        **weights.order(panels.kernel, panels.group_out),
        first_unit=0,
        last_unit=panels.panels,
        first_channel=0,
        last_channel=0 if bias_alone else panels.group_in,
    )
    return run, taps_at


# --- forward ------------------------------------------------------------------------------------


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    relu: bool,
    pool: bool,
    out: np.ndarray,
    codes: np.ndarray | None,
    shape: ConvShape,
) -> None:
    """out = conv(x, weight) + bias, no less than 0 with `relu`, then with `pool` the largest of 2 x 2 cells.

    Only the arrays' memory matters. `codes`, of bytes, gets what `gradients` wants to know of the pooling.
    """
    tasks = task_count(shape.flops // 2, shape.batch)
    prepare_forward(shape, x.dtype, bias is not None, relu, pool, tasks).run(x, weight, bias, out, codes)


class _Forward(NamedTuple):
    form: Whole
    forward: Prepared
    #: where in the workspace the bias goes, padded to whole panels, and the tasks' scratch
    at_bias: int
    at_scratch: int
    scratch_bytes: int

    def run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        out: np.ndarray,
        codes: np.ndarray | None = None,
    ) -> None:
        memory = scratch(self.scratch_bytes)
        bias_at = 0 if bias is None else address_of(bias)
        self.form.pack(weight, memory, bias_at, memory + self.at_bias if bias_at else 0)
        self._run(x, memory, bias, memory, out, codes)

    def run_packed(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        """`run` with the bytes of a packed weight."""
        memory = scratch(self.scratch_bytes)
        if bias is not None:
            self.form.pack_bias(address_of(bias), memory + self.at_bias)
        self._run(x, address_of(packed), bias, memory, out, None)

    def _run(
        self,
        x: np.ndarray,
        packed: int,
        bias: np.ndarray | None,
        memory: int,
        out: np.ndarray,
        codes: np.ndarray | None,
    ) -> None:
        self.forward.run(
            address_of(x),
            packed,
            0 if bias is None else memory + self.at_bias,
            address_of(out),
            0 if codes is None else address_of(codes),
            memory + self.at_scratch,
        )


@lru_cache(maxsize=1024)
def prepare_forward(
    shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, pool: bool, tasks: int
) -> _Forward:
    cells = layout(shape, dtype.itemsize)
    form = form_of(shape, dtype)
    at_image, at_shifts, at_out, end = forward_places(shape, dtype.itemsize)
    forward = Prepared(
        kernels.forward,
        dtype,
        tasks,
        "x weight bias y codes scratch",
        scratch_bytes=end,
        relu=int(relu),
        pool=int(pool),
        **_sizes(shape, cells),
        first_cell=cells.x_first,
        channel_size=cells.x_channel,
        cells=cells.x_cells,
        at_image=at_image,
        at_shifts=at_shifts,
        at_out=at_out,
    )
    bias_bytes = -(-shape.out_channels // ROWS) * ROWS * dtype.itemsize if has_bias else 0
    _, at_bias, at_scratch, total = places([form.size, bias_bytes, tasks * end])
    return _Forward(form, forward, at_bias, at_scratch, total)


def form_of(shape: ConvShape, dtype: np.dtype) -> Whole:
    """The form in which the forward pass reads the weight."""
    return Whole(forward_convolution(shape).packing(dtype))


def _sizes(shape: ConvShape, cells: Layout) -> dict[str, int]:
    """What both kernels want to know."""
    return {
        "images": shape.batch,
        "channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "height": shape.input[1],
        "width": shape.input[2],
        "out_height": shape.output[1],
        "out_width": shape.output[2],
        "kernel_y": shape.kernel[1],
        "kernel_x": shape.kernel[2],
        "dilation_y": shape.dilation[1],
        "dilation_x": shape.dilation[2],
        "pitch": cells.pitch,
        "out_pitch": cells.out_pitch,
    }


# --- gradients ----------------------------------------------------------------------------------


def gradients(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    shape: ConvShape,
    *,
    source: int = PLAIN,
    noted: np.ndarray | None = None,
    grad_x: np.ndarray | None = None,
    grad_weight: np.ndarray | None = None,
    grad_bias: np.ndarray | None = None,
) -> bool:
    """Fill those of the three gradients that are given.

    `grad_output` is the gradient of what `convolve` returned: with a ReLU, where source is RELU and `noted`
    is that result, or with pooling, where source is POOLED and `noted` are the codes.

    Returns
    -------
    bool
        Whether grad_weight is right: not where x holds NaN or infinity, which would then also reach cells
        of grad_weight that do not depend on them.
    """
    segments = segments_of(shape, x.itemsize)
    tasks = task_count(shape.flops // 2, segments)
    wants = (grad_weight is not None, grad_bias is not None, grad_x is not None)
    prepared = prepare_backward(shape, x.dtype, source, wants, segments, tasks)
    at_scratch = packed = scratch(prepared.scratch_bytes)
    if grad_x is not None:
        prepared.form.pack(weight, packed)
        at_scratch += prepared.form.size
    # where one is not wanted its sums are not, either: the kernel gets no address
    sums = np.empty((segments, 0 if grad_weight is None else grad_weight.size), x.dtype)
    bias_sums = np.empty((segments, 0 if grad_bias is None else grad_bias.size), x.dtype)
    not_finite = np.zeros(segments, np.int64)
    noted_at = 0 if noted is None else address_of(noted)
    prepared.backward.run(
        address_of(grad_output),
        noted_at if source == POOLED else 0,
        noted_at if source == RELU else 0,
        address_of(x),
        packed if grad_x is not None else 0,
        0 if grad_weight is None else address_of(sums),
        0 if grad_bias is None else address_of(bias_sums),
        address_of(not_finite),
        0 if grad_x is None else address_of(grad_x),
        at_scratch,
    )
    if grad_bias is not None:
        grad_bias[...] = np.add.reduce(bias_sums, 0, np.float64)
    if grad_weight is not None:
        np.add.reduce(sums, 0, out=grad_weight.reshape(-1))
    return not np.count_nonzero(not_finite)


class _Backward(NamedTuple):
    form: Whole
    backward: Prepared
    scratch_bytes: int


@lru_cache(maxsize=1024)
def prepare_backward(
    shape: ConvShape,
    dtype: np.dtype,
    source: int,
    wants: tuple[bool, bool, bool],
    segments: int,
    tasks: int,
) -> _Backward:
    need_weight, _, need_x = wants
    cells = layout(shape, dtype.itemsize)
    (conv,) = input_grad_convolutions(shape)
    form = Whole(conv.packing(dtype))
    at = backward_places(shape, dtype.itemsize, need_weight, need_x)
    at_images, at_gradients, at_rows, at_columns, at_shifts, at_tile, at_out, end = at
    # the first cell on a boundary of vectors: half of what the sums read then is
    skew = -cells.g_first * dtype.itemsize % REGISTER_BYTES
    backward = Prepared(
        kernels.backward,
        dtype,
        tasks,
        "grad_output codes y x weight sums bias_sums not_finite grad_x scratch",
        scratch_bytes=end,
        source=source,
        segments=segments,
        **_sizes(shape, cells),
        pooled_height=shape.output[1] // 2,
        pooled_width=shape.output[2] // 2,
        x_first=cells.x_first,
        x_channel=cells.x_channel,
        x_cells=cells.x_cells,
        g_first=cells.g_first,
        g_channel=cells.g_channel,
        g_cells=cells.g_cells,
        at_images=at_images,
        at_gradients=at_gradients + skew,
        at_rows=at_rows,
        at_columns=at_columns,
        rows=round_up(shape.out_channels, ROWS),
        columns=round_up(shape.in_channels * shape.taps, VECTORS),
        at_shifts=at_shifts,
        at_tile=at_tile,
        at_out=at_out,
    )
    packed = form.size if need_x else 0
    return _Backward(form, backward, packed + tasks * end)
