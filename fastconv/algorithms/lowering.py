"""Pipelines around the im2col and col2im kernels: the lowered matrix, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from fastconv.jit import Kernel, address_of
from fastconv.kernels import lowering as kernels
from fastconv.shapes import ConvShape, PoolShape
from fastconv.threads import launch, task_count


class Block(NamedTuple):
    """Part of the lowered matrices of a batch: images x groups x rows x pixels."""

    first_n: int
    images: int
    first_group: int
    groups: int
    first_row: int
    rows: int
    first_pixel: int
    pixels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.images, self.groups, self.rows, self.pixels

    def take(self, matrices: np.ndarray) -> np.ndarray:
        """The pixels of this block from an array (N, groups, channels, L)."""
        n, group, pixel = self.first_n, self.first_group, self.first_pixel
        return matrices[n : n + self.images, group : group + self.groups, :, pixel : pixel + self.pixels]

    def take_weight(self, weight: np.ndarray) -> np.ndarray:
        """The rows of this block from a weight (groups, channels, rows)."""
        group, row = self.first_group, self.first_row
        return weight[group : group + self.groups, :, row : row + self.rows]


def even_part(total: int, most: int) -> int:
    """Largest size of the parts, none above `most`, of `total` cut as evenly as possible.

    >>> even_part(10, 4), even_part(10, 5), even_part(3, 8)
    (4, 5, 3)
    """
    most = max(1, min(total, most))
    return -(-total // -(-total // most))


def block_shape(
    images: int, groups: int, rows: int, pixels: int, cells: int, product_rows: int = 0, outputs: int = 0
) -> tuple[int, int, int, int]:
    """Sizes of the largest block that holds at most `cells` cells.

    All rows are kept together where at least 64 pixels of them fit, for each split of the rows costs a
    pass over the output; then as many pixels, groups and images as fit. With `product_rows`, a matrix
    (images, groups, product_rows, rows) must fit in `cells`, too; with `outputs`, where the rows are split, a
    matrix (outputs, pixels).
    """
    height = even_part(rows, cells // min(pixels, 64))
    if product_rows:
        height = even_part(rows, min(height, cells // product_rows))
    width = even_part(pixels, cells // height)
    if outputs and height < rows:
        width = even_part(pixels, min(width, cells // outputs))
    whole = height == rows and width == pixels
    area = height * max(width, product_rows)
    some_groups = even_part(groups, cells // area) if whole else 1
    some_images = even_part(images, cells // (area * groups)) if some_groups == groups and whole else 1
    return some_images, some_groups, height, width


def blocks(
    images: int, groups: int, rows: int, pixels: int, part: tuple[int, int, int, int]
) -> Iterator[Block]:
    """All blocks of size `part`, the rows running fastest."""
    for n in range(0, images, part[0]):
        for group in range(0, groups, part[1]):
            for pixel in range(0, pixels, part[3]):
                for row in range(0, rows, part[2]):
                    yield Block(
                        n,
                        min(part[0], images - n),
                        group,
                        min(part[1], groups - group),
                        row,
                        min(part[2], rows - row),
                        pixel,
                        min(part[3], pixels - pixel),
                    )


def gather(
    image: np.ndarray,
    columns: np.ndarray,
    shape: ConvShape | PoolShape,
    groups: int,
    block: Block,
    lowest: bool = False,
    parallel: bool = True,
) -> None:
    """columns = `block` of the lowered `image` (N, C, D, H, W); padding reads as 0, or as -inf."""
    tasks = _tasks(block, block.rows) if parallel else 1
    _move(kernels.im2col, image, columns, shape, groups, block, tasks, lowest)


def scatter(
    image: np.ndarray,
    columns: np.ndarray,
    shape: ConvShape | PoolShape,
    groups: int,
    block: Block,
    parallel: bool = True,
) -> None:
    """Add `columns`, which is `block` of the lowered `image`, to the cells that they came from."""
    tasks = _tasks(block, -(-block.rows // shape.taps)) if parallel else 1
    _move(kernels.col2im, image, columns, shape, groups, block, tasks, False)


def _tasks(block: Block, units: int) -> int:
    """Tasks for `units` units of each image and group."""
    return task_count(prod(block.shape), block.images * block.groups * units)


def _move(
    kernel: Kernel,
    image: np.ndarray,
    columns: np.ndarray,
    shape: ConvShape | PoolShape,
    groups: int,
    block: Block,
    tasks: int,
    lowest: bool,
) -> None:
    if columns.size == 0:
        return
    size = image.itemsize
    strides = [stride // size for stride in image.strides]
    launch(
        kernel,
        image.dtype,
        tasks,
        image=address_of(image),
        columns=address_of(columns),
        image_n=strides[0],
        image_c=strides[1],
        image_z=strides[2],
        image_y=strides[3],
        image_x=strides[4],
        depth=shape.input[0],
        height=shape.input[1],
        width=shape.input[2],
        out_height=shape.output[1],
        out_width=shape.output[2],
        taps=shape.taps,
        kernel_y=shape.kernel[1],
        kernel_x=shape.kernel[2],
        stride_z=shape.stride[0],
        stride_y=shape.stride[1],
        stride_x=shape.stride[2],
        dilation_z=shape.dilation[0],
        dilation_y=shape.dilation[1],
        dilation_x=shape.dilation[2],
        pad_z=shape.pad_before[0],
        pad_y=shape.pad_before[1],
        pad_x=shape.pad_before[2],
        group_channels=image.shape[1] // groups,
        first_n=block.first_n,
        first_group=block.first_group,
        first_row=block.first_row,
        first_pixel=block.first_pixel,
        images=block.images,
        groups=block.groups,
        rows=block.rows,
        pixels=block.pixels,
        lowest=int(lowest),
    )
