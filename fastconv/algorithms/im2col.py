"""im2col + GEMM: the textbook's fast convolution, in bounded memory.

Each group's windows become the columns of a matrix, and the convolution one matrix product:

    forward       y (Kg, L)        =  weight (Kg, CgT) x columns (CgT, L)
    weight_grad   grad_w (Kg, CgT) =  sum over images of  grad_y (Kg, L) x columns^T (L, CgT)
    input_grad    columns (CgT, L) =  weight^T (CgT, Kg) x grad_y (Kg, L),  then col2im

with Kg and Cg the channels of a group, T the cells of the kernel and L the output pixels. The matrix of
a whole batch is T times as large as x; so it is made and used in blocks of at most `BLOCK_BYTES`.
The products are NumPy's, that is BLAS: `set_num_threads` does not reach them. Between them the lowering runs
on the calling thread alone. Threads of its own would spin for a while after their work and keep BLAS's from
the cores, and the other way round: on 2 cores a 3x3 layer of ResNet-50 with 64 channels took 66 ms so,
and takes 7.3 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from fastconv.algorithms import lowering
from fastconv.algorithms.base import Algorithm, PoolAlgorithm
from fastconv.algorithms.epilogue import finish, quiet
from fastconv.algorithms.lowering import Block, block_shape, blocks
from fastconv.algorithms.workspace import workspace
from fastconv.shapes import ConvShape, PoolShape

#: Largest block of the lowered matrix; the largest product that must be kept beside it is as large.
BLOCK_BYTES = 4 << 20
#: Most scratch memory of any call, however large its arrays; channels last, a copy of weight comes on top.
WORKSPACE_BYTES = 2 * BLOCK_BYTES


def _part(shape: ConvShape, itemsize: int, op: str) -> tuple[int, int, int, int]:
    """Block sizes (images, groups, rows, pixels) for `op`."""
    return block_shape(
        shape.batch,
        shape.groups,
        shape.group_in * shape.taps,
        shape.pixels,
        BLOCK_BYTES // itemsize,
        product_rows=shape.group_out if op == "weight_grad" else 0,
        outputs=shape.group_out if op == "forward" else 0,
    )


def _blocks(shape: ConvShape, part: tuple[int, int, int, int]) -> Iterator[Block]:
    return blocks(shape.batch, shape.groups, shape.group_in * shape.taps, shape.pixels, part)


def _multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a x b. BLAS multiplies the zeros that it pads its panels with, too: not worth a warning."""
    return np.matmul(a, b, out=out)


def _matrices(data: np.ndarray, groups: int) -> np.ndarray:
    """x or y as (N, groups, channels of a group, pixels): a view in both layouts."""
    return data.reshape(data.shape[0], groups, data.shape[1] // groups, prod(data.shape[2:]))


def _weight_matrices(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weight as (groups, Kg, CgT): a view of a channels-first weight, else a copy."""
    return weight.reshape(groups, weight.shape[0] // groups, prod(weight.shape[1:]))


@quiet
class Im2col(Algorithm):
    name = "im2col"
    summary = f"windows lowered to a matrix, {BLOCK_BYTES >> 20} MiB at a time, times weight by BLAS"

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        copy = 0
        if shape.layout == "NHWC":
            copy = shape.out_channels * shape.group_in * shape.taps * dtype.itemsize
        if shape.is_pointwise and op != "weight_grad":
            return copy
        images, groups, rows, pixels = _part(shape, dtype.itemsize, op)
        cells = 0 if shape.is_pointwise else images * groups * rows * pixels
        if op == "weight_grad":
            cells += images * groups * shape.group_out * rows
        elif rows < shape.group_in * shape.taps:
            cells += shape.group_out * pixels
        return cells * dtype.itemsize + copy

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        images, groups, rows, pixels = _part(shape, dtype.itemsize, op)
        if shape.is_pointwise:
            return {"lowering": "none: a 1x1 kernel of stride 1 reads x as its matrix"}
        return {"block": f"{images} images x {groups} groups x {rows} rows x {pixels} pixels"}

    def forward(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        relu: bool,
        out: np.ndarray,
        shape: ConvShape,
    ) -> None:
        y = _matrices(out, shape.groups)
        w = _weight_matrices(weight, shape.groups)
        b = None if bias is None else bias.reshape(shape.groups, shape.group_out, 1)
        if shape.is_pointwise:
            # (Kg, Cg) x (Cg, L)
            _multiply(w, _matrices(x, shape.groups), out=y)
            finish(y, b, relu)
        else:
            self._forward_blocks(x, w, b, relu, y, shape)

    def _forward_blocks(
        self,
        x: np.ndarray,
        w: np.ndarray,
        b: np.ndarray | None,
        relu: bool,
        y: np.ndarray,
        shape: ConvShape,
    ) -> None:
        part = _part(shape, x.itemsize, "forward")
        (scratch,) = workspace(x.dtype, (prod(part),))
        for block in _blocks(shape, part):
            columns = scratch[: prod(block.shape)].reshape(block.shape)
            lowering.gather(x, columns, shape, shape.groups, block, parallel=False)
            target = block.take(y)
            # (Kg, rows) x (rows, pixels)
            if block.first_row == 0:
                _multiply(block.take_weight(w), columns, out=target)
            else:
                target += _multiply(block.take_weight(w), columns)
            if block.first_row + block.rows == w.shape[2]:
                group = block.first_group
                finish(target, None if b is None else b[group : group + block.groups], relu)

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        grad_y = _matrices(grad_output, shape.groups)
        w = _weight_matrices(weight, shape.groups)
        if shape.is_pointwise:
            # (Cg, Kg) x (Kg, L)
            _multiply(w.swapaxes(1, 2), grad_y, out=_matrices(out, shape.groups))
            return
        out[...] = 0
        part = _part(shape, out.itemsize, "input_grad")
        (scratch,) = workspace(out.dtype, (prod(part),))
        for block in _blocks(shape, part):
            columns = scratch[: prod(block.shape)].reshape(block.shape)
            # (rows, Kg) x (Kg, pixels)
            _multiply(block.take_weight(w).swapaxes(1, 2), block.take(grad_y), out=columns)
            lowering.scatter(out, columns, shape, shape.groups, block, parallel=False)

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        grad_y = _matrices(grad_output, shape.groups)
        # a view of `out`, or channels last a copy
        grad_w = _weight_matrices(out, shape.groups)
        grad_w[...] = 0
        part = _part(shape, x.itemsize, "weight_grad")
        products_size = part[0] * part[1] * shape.group_out * part[2]
        columns_size = 0 if shape.is_pointwise else prod(part)
        scratch, products = workspace(x.dtype, (columns_size,), (products_size,))
        for block in _blocks(shape, part):
            if shape.is_pointwise:
                rows = slice(block.first_row, block.first_row + block.rows)
                columns = block.take(_matrices(x, shape.groups))[:, :, rows]
            else:
                columns = scratch[: prod(block.shape)].reshape(block.shape)
                lowering.gather(x, columns, shape, shape.groups, block, parallel=False)
            product_shape = (block.images, block.groups, shape.group_out, block.rows)
            product = products[: prod(product_shape)].reshape(product_shape)
            # (Kg, pixels) x (pixels, rows)
            _multiply(block.take(grad_y), columns.swapaxes(2, 3), out=product)
            target = block.take_weight(grad_w)
            for image in product:
                target += image
        if not np.may_share_memory(grad_w, out):
            out[...] = grad_w.reshape(out.shape)


@quiet
class Im2colPool(PoolAlgorithm):
    name = "im2col"
    summary = "windows lowered to a matrix, reduced with NumPy"

    def _blocks(self, shape: PoolShape, itemsize: int) -> Iterator[Block]:
        """Blocks over planes: every channel is a group of its own."""
        part = block_shape(shape.batch, shape.channels, shape.taps, shape.pixels, BLOCK_BYTES // itemsize)
        # a window may not be split: then one pixel at a time is the least
        part = (*part[:2], shape.taps, part[3] if part[2] == shape.taps else 1)
        return blocks(shape.batch, shape.channels, shape.taps, shape.pixels, part)

    def max_pool(self, x: np.ndarray, out: np.ndarray, indices: np.ndarray | None, shape: PoolShape) -> None:
        y = _matrices(out, shape.channels)
        places = None if indices is None else _matrices(indices, shape.channels)
        cells = np.arange(prod(shape.input), dtype=np.float64).reshape(1, 1, *shape.input)
        one = shape._replace(batch=1, channels=1)
        is_int = x.dtype.kind in "iu"
        for block in self._blocks(shape, x.itemsize):
            source = np.empty(0)
            if places is not None or is_int:
                plane = block._replace(first_n=0, images=1, first_group=0, groups=1)
                source = np.empty(plane.shape)
                lowering.gather(cells, source, one, 1, plane, lowest=True)
            if is_int:
                columns = _take(x, source[0, 0], block)
            else:
                (columns,) = workspace(x.dtype, block.shape)
                lowering.gather(x, columns, shape, shape.channels, block, lowest=True)
            block.take(y)[...] = columns.max(axis=2, keepdims=True)
            if places is not None:
                tap = columns.argmax(axis=2, keepdims=True)
                # where all of a window is -inf, the first cell may be padding: take the first real one
                real = source >= 0
                first = np.broadcast_to(real.argmax(axis=2, keepdims=True), tap.shape)
                source = np.broadcast_to(source, columns.shape)
                place = np.take_along_axis(source, tap, axis=2)
                place = np.where(place >= 0, place, np.take_along_axis(source, first, axis=2))
                block.take(places)[...] = place

    def avg_pool(
        self, x: np.ndarray, out: np.ndarray, shape: PoolShape, count_padding: bool, divisor: int
    ) -> None:
        y = _matrices(out, shape.channels)
        divisors = _divisors(shape, count_padding, divisor)
        for block in self._blocks(shape, x.itemsize):
            (columns,) = workspace(x.dtype, block.shape)
            lowering.gather(x, columns, shape, shape.channels, block)
            pixels = slice(block.first_pixel, block.first_pixel + block.pixels)
            # (1, T) x (T, pixels)
            sums = _multiply(np.ones((1, shape.taps), x.dtype), columns)
            block.take(y)[...] = sums / divisors[pixels]

    def avg_pool_backward(
        self,
        grad_output: np.ndarray,
        out: np.ndarray,
        shape: PoolShape,
        count_padding: bool,
        divisor: int,
    ) -> None:
        grad_y = _matrices(grad_output, shape.channels)
        divisors = _divisors(shape, count_padding, divisor)
        out[...] = 0
        for block in self._blocks(shape, out.itemsize):
            (columns,) = workspace(out.dtype, block.shape)
            pixels = slice(block.first_pixel, block.first_pixel + block.pixels)
            columns[...] = block.take(grad_y) / divisors[pixels]
            lowering.scatter(out, columns, shape, shape.channels, block)


def _take(x: np.ndarray, source: np.ndarray, block: Block) -> np.ndarray:
    """The lowered block of ints, which `gather` does not move; `source` has places, below 0 of padding."""
    images = slice(block.first_n, block.first_n + block.images)
    part = x[images, block.first_group : block.first_group + block.groups]
    real = source >= 0
    columns = part.reshape(*part.shape[:2], -1)[:, :, np.where(real, source, 0).astype(np.int64)]
    return np.where(real, columns, x.dtype.type(np.iinfo(x.dtype).min))


def _divisors(shape: PoolShape, count_padding: bool, divisor: int) -> np.ndarray:
    """What each window's sum is divided by, (L,): its cells, counted in the lowering of a plane of ones."""
    if divisor:
        return np.full(shape.pixels, float(divisor))
    size = shape.input
    one = shape._replace(batch=1, channels=1)
    if count_padding:
        # the explicit padding counts: make it part of the plane
        padded = zip(size, shape.pad_before, shape.pad_after, strict=True)
        size = tuple(n + before + after for n, before, after in padded)  # type: ignore[assignment]
        one = one._replace(input=size, pad_before=(0, 0, 0), pad_after=(0, 0, 0))
    block = Block(0, 1, 0, 1, 0, shape.taps, 0, shape.pixels)
    columns = np.empty(block.shape)
    lowering.gather(np.ones((1, 1, *size)), columns, one, 1, block)
    return np.asarray(columns[0, 0].sum(axis=0))
