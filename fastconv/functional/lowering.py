"""im2col and col2im for users: the whole lowered matrix at once."""

from __future__ import annotations

from math import prod

import numpy as np

from fastconv.algorithms.lowering import Block, gather, scatter
from fastconv.arguments import Ints, Padding, canonical, check_size, shape_argument, shown
from fastconv.functional import windows
from fastconv.functional.arrays import check_shape, empty, lift_like_x, real_arrays, zeros
from fastconv.functional.narrow import widens
from fastconv.shapes import PoolShape, join_shape

__all__ = [
    "col2im",
    "im2col",
]


@widens
def im2col(
    x: np.ndarray,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
) -> np.ndarray:
    """The windows of x as the columns of a matrix, per image.

    Row (c, r, s) holds, for every window, its cell (r, s) of channel c; so a convolution is the product
    of the weight, as a matrix (K, C * R * S), with it. The adjoint is `col2im`.

    Parameters
    ----------
    x : ndarray, (N, C, *spatial) or (C, *spatial) with 1 to 3 spatial axes
        With an int `kernel_size`: batched, (N, C, *spatial).
    kernel_size, dilation, padding, stride
        As in `conv2d`; with one entry per axis, an x without N is recognised.

    Returns
    -------
    columns : ndarray, (N, C * prod(kernel_size), L)
        L is the number of windows.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Notes
    -----
    Names and order of the arguments are those of ``torch.nn.functional.unfold``.

    Examples
    --------
    >>> import numpy as np
    >>> im2col(np.arange(9.0).reshape(1, 1, 3, 3), 2)[0]
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]])
    """
    dtype, (x,) = real_arrays("im2col", x=x)
    rank = _rank(x.ndim, kernel_size)
    facts = (kernel_size, stride, padding, dilation, False, "NCHW")
    shape = windows.geometry("im2col", rank, x.shape, *facts, pooling=False)
    block = _whole(shape)
    lead = (shape.batch,) if x.ndim == rank + 2 else ()
    check_size("im2col", "the result", (shape.batch, block.rows, block.pixels))
    columns = empty("im2col", "the result", (*lead, block.rows, block.pixels), dtype)
    gather(lift_like_x("im2col", "x", x, rank, "NCHW"), columns, shape, 1, block)
    return columns


@widens
def col2im(
    cols: np.ndarray,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
) -> np.ndarray:
    """The adjoint of `im2col`: every entry is added to the cell that it was read from.

    Parameters
    ----------
    cols : ndarray, (N, C * prod(kernel_size), L) or (C * prod(kernel_size), L)
    output_size : sequence of int
        The spatial size of x; its length is the number of spatial axes. An int stands for a square.
    kernel_size, dilation, padding, stride
        As given to `im2col`.

    Returns
    -------
    x : ndarray, (N, C, *output_size)

    Raises
    ------
    ValueError, TypeError
        Shapes that do not belong together, or a wrong dtype.

    Notes
    -----
    Names and order of the arguments are those of ``torch.nn.functional.fold``.

    Examples
    --------
    >>> import numpy as np
    >>> col2im(np.ones((1, 4, 4)), (3, 3), 2)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    dtype, (cols,) = real_arrays("col2im", cols=cols)
    if cols.ndim not in (2, 3):
        raise ValueError(
            f"col2im: cols must have shape (N, C * prod(kernel_size), L) or have no N, got {cols.shape}"
        )
    wanted = canonical(output_size)
    size = shape_argument("col2im", "output_size", wanted if isinstance(wanted, tuple) else (wanted,) * 2)
    if not 1 <= len(size) <= 3:
        raise ValueError(f"col2im: output_size must have 1 to 3 entries, got {size}")
    facts = (kernel_size, stride, padding, dilation, False, "NCHW")
    plane = windows.geometry("col2im", len(size), (1, 1, *size), *facts, pooling=False)
    channels, rest = divmod(cols.shape[-2], plane.taps)
    if rest:
        raise ValueError(
            f"col2im: cols has {cols.shape[-2]} rows, which must be a multiple of the "
            f"{plane.taps} cells of the kernel; cols.shape = {cols.shape}"
        )
    batched = cols.ndim == 3
    shape = plane._replace(batch=cols.shape[0] if batched else 1, channels=channels)
    check_shape("col2im", "cols", cols, (*cols.shape[:-1], shape.pixels))
    x = zeros("col2im", "the result", join_shape("NCHW", batched, shape.batch, channels, size), dtype)
    scatter(lift_like_x("col2im", "x", x, len(size), "NCHW"), cols, shape, 1, _whole(shape))
    return x


def _rank(ndim: int, kernel_size: Ints) -> int:
    """The number of spatial axes, from `kernel_size` where it tells."""
    sizes = canonical(kernel_size)
    rank = len(sizes) if isinstance(sizes, tuple) else ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            f"im2col: there must be 1 to 3 spatial axes, got {rank}, from x with {ndim} axes and "
            f"kernel_size = {shown(kernel_size)}"
        )
    return rank


def _whole(shape: PoolShape) -> Block:
    """The lowered matrix of every image, whole."""
    return Block(0, shape.batch, 0, 1, 0, shape.channels * shape.taps, 0, prod(shape.output))
