"""Convolution of dask arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da

from fastconv import functional
from fastconv.arguments import Ints, Padding, check_choice
from fastconv.dask.arrays import axes_of_array, chunked, data_array, native, parameter, real_dtype
from fastconv.dask.axes import axes_of
from fastconv.dask.blocks import Index, array_of, calls
from fastconv.dask.windows import Windows, check_algorithm
from fastconv.functional import run
from fastconv.functional.arrays import check_shape
from fastconv.functional.padding import Border

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
]


def conv1d(
    x: da.Array,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Convolution of signals x (N, C, L) with weight (K, C // groups, R): see `conv2d`.

    >>> import dask.array as da, numpy as np
    >>> conv1d(da.ones((2, 3, 1000), chunks=(1, 3, 100)), np.ones((4, 3, 5)), padding="same").numblocks
    (2, 1, 10)
    """
    args = (stride, padding, dilation, groups, padding_mode, activation, layout, algorithm)
    return _forward("conv1d", 1, x, weight, bias, *args)


def conv2d(
    x: da.Array,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """`fastconv.conv2d` of a dask array, chunk by chunk: a batch over a cluster, an image beyond memory.

    Nothing is computed here but the graph; shape, chunks and dtype of y are known, and what is wrong with the
    arguments is said.

    Parameters
    ----------
    x : dask.array.Array, (N, C, H, W), or (C, H, W) for one image
        float32 or float64, in chunks of any sizes along batch and space. Channels are brought into one chunk.
    weight : ndarray or dask.array.Array, (K, C // groups, R, S)
        A NumPy array is copied.
    bias : ndarray or dask.array.Array, (K,), optional
    stride, padding, dilation, groups, padding_mode, activation, layout
        As in `fastconv.conv2d`.
    algorithm : str
        A key of `fastconv.ALGORITHMS`, which must be able to do each block.

    Returns
    -------
    y : dask.array.Array, (N, K, P, Q)
        The values of `fastconv.conv2d`, but that sums may be rounded in another order. Its chunks are those
        of x along the batch; along space a window belongs to the chunk that its middle lies in. So with
        ``padding="same"`` and steps of 1 its chunks are those of x.

    Raises
    ------
    ValueError, TypeError
        As `fastconv.conv2d`, at once; and if x is not a dask array, or the sizes of its chunks are not known.

    Notes
    -----
    Of its neighbours a chunk gets the cells that its windows reach, a halo, and a cluster sends no more than
    that. A task uses its share of threads: those of fastconv over the tasks that run at a time on the
    machine. `set_float32_precision` is each process's own; ``client.run(fastconv.set_float32_precision,
    "highest")`` sets it on all workers.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> x = da.ones((8, 3, 512, 512), chunks=(4, 3, 256, 256), dtype="f4")
    >>> y = conv2d(x, np.ones((10, 3, 5, 5), "f4"), stride=2, padding="same", activation="relu")
    >>> y.shape, y.chunksize
    ((8, 10, 256, 256), (4, 10, 128, 128))
    >>> float(y.max().compute())
    75.0
    """
    args = (stride, padding, dilation, groups, padding_mode, activation, layout, algorithm)
    return _forward("conv2d", 2, x, weight, bias, *args)


def conv3d(
    x: da.Array,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    layout: str = "NCHW",
    algorithm: str = "auto",
) -> da.Array:
    """Convolution of volumes x (N, C, D, H, W) with weight (K, C // groups, T, R, S): see `conv2d`.

    >>> import dask.array as da, numpy as np
    >>> conv3d(da.ones((1, 2, 8, 64, 64), chunks=(1, 2, 8, 32, 32)), np.ones((4, 2, 3, 3, 3))).shape
    (1, 4, 6, 62, 62)
    """
    args = (stride, padding, dilation, groups, padding_mode, activation, layout, algorithm)
    return _forward("conv3d", 3, x, weight, bias, *args)


def _forward(
    function: str,
    rank: int,
    x: da.Array,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    activation: Any,
    layout: str,
    algorithm: str,
) -> da.Array:
    check_choice(function, "activation", activation, (None, "relu"))
    x = data_array(function, "x", x)
    dtype = real_dtype(function, x=x, weight=weight, bias=bias)
    facts = (weight.shape, stride, padding, dilation, groups, layout)
    shape = run.geometry(function, rank, x.shape, *facts)
    if bias is not None:
        check_shape(function, "bias", bias, (shape.out_channels,))
    border = Border(function, padding_mode, shape, x.shape)
    axes = axes_of_array(function, "x", x.shape, rank, layout)
    x = chunked(native(x, dtype), axes)
    spatial = [axis.output_chunks(x.chunks[n]) for axis, n in zip(axes_of(shape), axes.space, strict=True)]
    windows = Windows.of_results(shape, axes, spatial, border_mode(border, padding_mode))
    chunks = axes.arranged(x.chunks[0], (shape.out_channels,), spatial)
    check_algorithm(function, algorithm, windows, chunks, dtype, "forward")
    others = [parameter(array, dtype) for array in (weight, bias) if array is not None]
    same = {"groups": groups, "activation": activation, "layout": layout, "algorithm": algorithm}

    def options(index: Index) -> Mapping[str, Any]:
        return {**windows.options(index), **same}

    plain = getattr(functional, function)
    name, layer, inputs = calls(f"fastconv-{function}", plain, [windows.cells(x)], others, chunks, options)
    return array_of(name, layer, inputs, chunks, dtype)


def border_mode(border: Border, padding_mode: str) -> str:
    """What continues x; "zeros" also where there is nothing to pad."""
    return padding_mode if any(map(any, border.widths)) else "zeros"
