"""im2col and col2im: for users, and block by block under the algorithms."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import assert_same, assert_same_bits, inner
from strategies import MEMORY, Conv, convs, values

import fastconv
from fastconv.algorithms.lowering import Block, block_shape, blocks, gather, scatter
from fastconv.functional import windows


def lowering(case: Conv) -> dict[str, Any]:
    """The arguments of im2col."""
    return {
        "kernel_size": case.kernel,
        "dilation": case.dilation,
        "padding": case.padding,
        "stride": case.stride,
    }


def plain(case: Conv) -> np.ndarray:
    """x of a case, channels-first: im2col knows no other layout."""
    return case.x()[0] if case.batch is None else case.x()


def columns_of(case: Conv, fill: float = 0) -> np.ndarray:
    """What im2col should give: (N, C * T, L)."""
    g = case.geometry
    view = oracles.windows_of(case.x(), case.kernel, g["stride"], g["pads"], g["dilation"], fill=fill)
    rank = case.rank
    order = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    n, c = view.shape[:2]
    return view.transpose(order).reshape(n, c * prod(case.kernel), prod(case.out))


@given(case=convs())
def test_im2col_is_sliding_windows(case: Conv) -> None:
    columns = fastconv.im2col(plain(case), **lowering(case))
    assert columns.dtype == case.dtype
    expected = columns_of(case)
    assert_same(columns, expected[0] if case.batch is None else expected)


@given(case=convs(kind="ints", dtype="float64"))
def test_col2im_is_the_adjoint(case: Conv) -> None:
    """<im2col(x), c> = <x, col2im(c)>, exactly on integers."""
    x = plain(case)
    columns = fastconv.im2col(x, **lowering(case))
    c = values(case.seed + 5, "ints", case.dtype, columns.shape)
    folded = fastconv.col2im(c, case.size, **lowering(case))
    assert folded.shape == x.shape
    assert folded.dtype == case.dtype
    assert inner(columns, c) == inner(x, folded)


@given(case=convs())
def test_col2im_counts_windows(case: Conv) -> None:
    """col2im(im2col(ones)) is the number of windows that hold each cell."""
    ones = np.ones_like(plain(case))
    counts = fastconv.col2im(fastconv.im2col(ones, **lowering(case)), case.size, **lowering(case))
    expected = np.zeros((1, 1, *case.size))
    g = case.geometry
    positions = np.arange(prod(case.size)).reshape(1, 1, *case.size)
    view = oracles.windows_of(positions, case.kernel, g["stride"], g["pads"], g["dilation"], fill=-1)
    np.add.at(expected.reshape(-1), view[view >= 0], 1)
    assert_same(counts, np.broadcast_to(expected.reshape(case.size), counts.shape))


@given(case=convs(kind="ints"))
def test_convolution_is_a_matrix_product(case: Conv) -> None:
    """weight (K, C T) x im2col(x) (C T, L), for each group."""
    columns = fastconv.im2col(case.x(), **lowering(case))
    matrices = case.weight().reshape(case.groups, case.channels[1] // case.groups, -1)
    rows = columns.reshape(columns.shape[0], case.groups, -1, columns.shape[-1])
    product = (matrices @ rows).reshape(case.grad().shape)
    y = getattr(fastconv, f"conv{case.rank}d")(
        case.give(case.x()), case.give_weight(case.weight()), **case.facts
    )
    assert_same(case.take(y), product)


@pytest.mark.parametrize("memory", MEMORY)
def test_any_memory_order(memory: str) -> None:
    case = Conv((4, 5), (2, 3), channels=(2, 1), batch=2, padding=1)
    x = MEMORY[memory](case.x())
    columns = fastconv.im2col(x, (2, 3), padding=1)
    assert_same_bits(columns, fastconv.im2col(case.x(), (2, 3), padding=1))
    assert_same(x, case.x())
    folded = fastconv.col2im(MEMORY[memory](columns), (4, 5), (2, 3), padding=1)
    assert_same_bits(folded, fastconv.col2im(columns, (4, 5), (2, 3), padding=1))


def test_rank_from_the_arguments() -> None:
    """An int kernel means a batch; one entry per axis tells a batch from a single image."""
    assert fastconv.im2col(np.ones((2, 3, 5)), 2).shape == (2, 6, 4)
    assert fastconv.im2col(np.ones((2, 3, 5)), (2,)).shape == (2, 6, 4)
    assert fastconv.im2col(np.ones((2, 3, 5)), (2, 2)).shape == (8, 8)
    assert fastconv.im2col(np.ones((2, 3, 5, 5)), 2).shape == (2, 12, 16)
    assert fastconv.im2col(np.ones((2, 3, 4, 5, 5)), (2, 2, 1)).shape == (2, 12, 60)
    assert fastconv.col2im(np.ones((2, 12, 16)), 5, 2).shape == (2, 3, 5, 5)
    assert fastconv.col2im(np.ones((12, 16)), (5, 5), 2).shape == (3, 5, 5)
    assert fastconv.col2im(np.ones((2, 6, 4)), (5,), 2).shape == (2, 3, 5)
    assert fastconv.col2im(np.ones((2, 6, 4)), [5], (2,)).shape == (2, 3, 5)


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    columns = fastconv.im2col(np.ones(shape), 2)
    assert columns.shape == (shape[0], shape[1] * 4, 16)
    assert fastconv.col2im(columns, 5, 2).shape == shape


def test_padding_is_read_where_x_has_no_cells() -> None:
    columns = fastconv.im2col(np.ones((1, 2, 0, 3)), (2, 2), padding=((1, 2), (0, 0)))
    assert_same(columns, np.zeros((1, 8, 4)))
    assert_same(fastconv.col2im(columns + 1, (0, 3), (2, 2), padding=((1, 2), (0, 0))), np.ones((1, 2, 0, 3)))


# --- blocks -------------------------------------------------------------------------------------

sizes = st.integers(1, 40)


@given(
    images=st.integers(1, 5),
    groups=st.integers(1, 5),
    rows=sizes,
    pixels=sizes,
    cells=st.integers(1, 3000),
    product_rows=st.integers(0, 60),
)
@example(images=64, groups=1, rows=64 * 9, pixels=112 * 112, cells=1 << 20, product_rows=0)
@example(images=64, groups=1, rows=512 * 9, pixels=49, cells=1 << 20, product_rows=512)
@example(images=1, groups=1, rows=10**6, pixels=10**6, cells=1 << 20, product_rows=10**5)
def test_blocks_fit(images: int, groups: int, rows: int, pixels: int, cells: int, product_rows: int) -> None:
    part = block_shape(images, groups, rows, pixels, cells, product_rows)
    assert all(1 <= n <= most for n, most in zip(part, (images, groups, rows, pixels), strict=True))
    assert prod(part) <= cells
    if product_rows <= cells:
        assert part[0] * part[1] * product_rows * part[2] <= cells


@given(
    images=st.integers(1, 5),
    groups=st.integers(1, 5),
    rows=st.integers(1, 12),
    pixels=st.integers(1, 12),
    cells=st.integers(1, 400),
)
def test_blocks_cover_everything_once(images: int, groups: int, rows: int, pixels: int, cells: int) -> None:
    part = block_shape(images, groups, rows, pixels, cells)
    seen = np.zeros((images, groups, rows, pixels), int)
    for b in blocks(images, groups, rows, pixels, part):
        assert all(n <= most for n, most in zip(b.shape, part, strict=True))
        seen[
            b.first_n : b.first_n + b.images,
            b.first_group : b.first_group + b.groups,
            b.first_row : b.first_row + b.rows,
            b.first_pixel : b.first_pixel + b.pixels,
        ] += 1
    assert_same(seen, np.ones_like(seen))


@st.composite
def case_and_block(draw: st.DrawFn) -> tuple[Conv, Block]:
    """A case, and any block of its lowered matrix: groups cut x, not weight, here."""
    case = draw(convs(kind="ints"))

    def part(total: int) -> tuple[int, int]:
        first = draw(st.integers(0, total - 1))
        return first, draw(st.integers(1, total - first))

    n = case.batch or 1
    rows = case.channels[0] // case.groups * prod(case.kernel)
    return case, Block(*part(n), *part(case.groups), *part(rows), *part(prod(case.out)))


def take(columns: np.ndarray, b: Block) -> np.ndarray:
    """A block of all columns (N, groups, rows, pixels)."""
    columns = columns[b.first_n : b.first_n + b.images, b.first_group : b.first_group + b.groups]
    return columns[:, :, b.first_row : b.first_row + b.rows, b.first_pixel : b.first_pixel + b.pixels]


@given(drawn=case_and_block(), lowest=st.booleans())
def test_a_block_is_a_part_of_the_matrix(drawn: tuple[Conv, Block], lowest: bool) -> None:
    """Both ways; and col2im adds to what is there, leaving the rest as it was."""
    case, block = drawn
    x = case.x()
    shape = windows.geometry(
        "test", case.rank, x.shape, stride=case.stride, padding=case.padding, dilation=case.dilation,
        kernel_size=case.kernel, ceil_mode=False, layout="NCHW", pooling=False,
    )  # fmt: skip
    image = x.reshape(*x.shape[:2], *shape.input)
    columns = np.full(block.shape, np.nan, case.dtype)
    gather(image, columns, shape, case.groups, block, lowest)
    fill = -np.inf if lowest else 0
    n, length = x.shape[0], prod(case.out)
    everything = columns_of(case, fill).reshape(n, case.groups, -1, length)
    assert_same(columns, take(everything, block))

    chosen = np.zeros(everything.shape)
    take(chosen, block)[...] = values(case.seed + 6, "ints", case.dtype, block.shape)
    before = values(case.seed + 7, "ints", case.dtype, image.shape)
    after = before.copy()
    scatter(after, np.ascontiguousarray(take(chosen, block), case.dtype), shape, case.groups, block)
    added = fastconv.col2im(chosen.reshape(n, -1, length), case.size, **lowering(case))
    assert_same(after, before + added.reshape(before.shape))
