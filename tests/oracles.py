"""What convolution and pooling are, said a second time, with NumPy and SciPy alone.

Nothing of fastconv is imported here. Arrays are channels-first, with one, two or three spatial axes:
x (N, C, *spatial), weight (K, C // groups, *kernel). `pads` are (before, after) pairs, and every other
argument has one int per spatial axis. Results are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import signal

Ints = Sequence[int]
Pairs = Sequence[tuple[int, int]]

# --- comparing ----------------------------------------------------------------------------------


def assert_within(actual: np.ndarray, expected: np.ndarray, magnitude: np.ndarray, terms: int) -> None:
    """Check sums of products, added up in whatever order, against sums in float64.

    A sum of D products in floating point is off by at most D * eps / 2 times the sum of their absolute
    values (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 3), whatever the order.
    So two such sums differ by no more than D * eps times that: no factor was tuned.

    Parameters
    ----------
    actual : ndarray
        What is tested; its dtype sets eps.
    expected : float64 ndarray
    magnitude : float64 ndarray
        The same operation on absolute values.
    terms : int
        D. Eight roundings are allowed for besides: of the bias, of a division, of the result.
    """
    assert actual.shape == expected.shape == magnitude.shape
    assert actual.dtype in (np.float32, np.float64)
    bound = (terms + 8) * np.finfo(actual.dtype).eps * magnitude
    error = np.abs(actual - expected)
    wrong = ~(error <= bound)  # a NaN is wrong, too
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} cells are off, the first at {np.argwhere(wrong)[0]}: "
        f"{actual[wrong][0]!r} for {expected[wrong][0]!r}, which allows {bound[wrong][0]:.3g}"
    )


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Check that values are equal, NaN to NaN, and shapes, too."""
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)


def assert_same_bits(first: np.ndarray, second: np.ndarray) -> None:
    """Check that two arrays cannot be told apart."""
    assert (first.shape, first.dtype) == (second.shape, second.dtype)
    assert first.tobytes() == second.tobytes()


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """<a, b> in float64: exact where all products and sums are integers below 2**53."""
    assert a.shape == b.shape
    return float(np.sum(a.astype(np.float64) * b))


# --- windows ------------------------------------------------------------------------------------


def window_starts(
    size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], ceil_mode: bool = False
) -> list[int]:
    """Where the windows along an axis begin, as cells of x, found by walking along it.

    In ceil mode a window may hang over the end if the one before did not reach it, and if it
    does not begin in the padding at the end.
    """
    reach = dilation * (kernel - 1) + 1
    end = size + pads[1]
    starts: list[int] = []
    start = -pads[0]
    while True:
        fits = start + reach <= end
        hangs = ceil_mode and bool(starts) and starts[-1] + reach < end and start < size
        if not fits and not hangs:
            return starts
        starts.append(start)
        start += stride


def same_pads(size: Ints, kernel: Ints, stride: Ints, dilation: Ints, lower: bool = False) -> Pairs:
    """The least padding that gives ceil(size / stride) windows; the odd cell at the end, or the start."""
    pairs = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        wanted = (n + s - 1) // s
        total = 0
        while len(window_starts(n, k, s, d, (0, total))) < wanted:
            total += 1
        half = (total // 2, total - total // 2)
        pairs.append(half[::-1] if lower else half)
    return pairs


def windows_of(
    x: np.ndarray,
    kernel: Ints,
    stride: Ints,
    pads: Pairs,
    dilation: Ints,
    ceil_mode: bool = False,
    fill: float = 0,
) -> np.ndarray:
    """Every window of x: (N, C, *out, *kernel), cells outside x being `fill`."""
    widths = []
    axes = range(2, x.ndim)
    geometry = zip(x.shape[2:], kernel, stride, dilation, pads, strict=True)
    counts, reaches = [], []
    for n, k, s, d, (before, after) in geometry:
        reach = d * (k - 1) + 1
        starts = window_starts(n, k, s, d, (before, after), ceil_mode)
        hang = max(0, starts[-1] + reach - (n + after))
        widths.append((before, after + hang))
        counts.append(len(starts))
        reaches.append(reach)
    padded = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=fill)
    view = sliding_window_view(padded, reaches, axis=tuple(axes))
    out = tuple(slice(0, (count - 1) * s + 1, s) for count, s in zip(counts, stride, strict=True))
    taps = tuple(slice(None, None, d) for d in dilation)
    return view[(slice(None), slice(None), *out, *taps)]


# --- convolution --------------------------------------------------------------------------------


def conv(
    x: np.ndarray, weight: np.ndarray, stride: Ints, pads: Pairs, dilation: Ints, groups: int = 1
) -> np.ndarray:
    """y[n, k, o] = <weight[k], window o of the channels of k's group>."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    rank = x.ndim - 2
    windows = windows_of(x, weight.shape[2:], stride, pads, dilation)
    sums = [(1, *range(2 + rank, 2 + 2 * rank)), tuple(range(1, 2 + rank))]
    channels = np.split(windows, groups, axis=1)
    filters = np.split(weight, groups, axis=0)
    parts = [np.tensordot(c, f, axes=sums) for c, f in zip(channels, filters, strict=True)]
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)


def correlate(
    x: np.ndarray, weight: np.ndarray, stride: Ints, pads: Pairs, dilation: Ints, groups: int = 1
) -> np.ndarray:
    """A 2-d convolution, plane by plane, by `scipy.signal.correlate2d`."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    spread = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    dilated = np.zeros((*weight.shape[:2], *spread))
    dilated[:, :, :: dilation[0], :: dilation[1]] = weight
    group_in, group_out = weight.shape[1], weight.shape[0] // groups
    planes = [
        [
            sum(
                signal.correlate2d(image[k // group_out * group_in + c], dilated[k, c], mode="valid")
                for c in range(group_in)
            )
            for k in range(weight.shape[0])
        ]
        for image in x
    ]
    return np.array(planes)[:, :, :: stride[0], :: stride[1]]


def conv_transpose(
    x: np.ndarray,
    weight: np.ndarray,
    stride: Ints,
    pads: Pairs,
    output_padding: Ints,
    dilation: Ints,
    groups: int = 1,
) -> np.ndarray:
    """Every cell of x adds weight (C, K // groups, *kernel), times itself, to where its window lies."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    kernel = weight.shape[2:]
    full, crop = [], []
    for n, k, s, d, (before, after), extra in zip(
        x.shape[2:], kernel, stride, dilation, pads, output_padding, strict=True
    ):
        length = (n - 1) * s + d * (k - 1) + 1 + extra
        full.append(length)
        crop.append(slice(before, length - after))
    y = np.zeros((x.shape[0], groups, weight.shape[1], *full))
    images = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    for tap in np.ndindex(kernel):
        cells = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilation, x.shape[2:], stride, strict=True)
        )
        y[(slice(None), slice(None), slice(None), *cells)] += np.einsum(
            "ngc...,gck->ngk...", images, filters[(slice(None), slice(None), slice(None), *tap)]
        )
    return y.reshape(x.shape[0], -1, *full)[(slice(None), slice(None), *crop)]


# --- pooling ------------------------------------------------------------------------------------


class MaxPool(NamedTuple):
    y: np.ndarray
    indices: np.ndarray


def _flat(windows: np.ndarray, rank: int) -> np.ndarray:
    return windows.reshape(*windows.shape[: 2 + rank], -1)


def _first_largest(values: np.ndarray, places: np.ndarray) -> MaxPool:
    """Over the last axis; `places` is -1 where a cell does not exist."""
    real = places >= 0
    best = np.where(real, values, -np.inf).max(axis=-1)
    is_best = real & ((values == best[..., None]) | (np.isnan(values) & np.isnan(best)[..., None]))
    tap = is_best.argmax(axis=-1)[..., None]
    return MaxPool(best, np.take_along_axis(places, tap, axis=-1)[..., 0])


def _places(x: np.ndarray) -> np.ndarray:
    """For every cell of x its flat position in its plane."""
    plane = np.arange(int(np.prod(x.shape[2:]))).reshape(x.shape[2:])
    return np.broadcast_to(plane, x.shape)


def max_pool(
    x: np.ndarray, kernel: Ints, stride: Ints, pads: Pairs, dilation: Ints, ceil_mode: bool = False
) -> MaxPool:
    """The largest real cell of each window, the first of equals, and its place in the plane."""
    rank = x.ndim - 2
    geometry = (kernel, stride, pads, dilation, ceil_mode)
    values = _flat(windows_of(x, *geometry, fill=-np.inf), rank)
    return _first_largest(values, _flat(windows_of(_places(x), *geometry, fill=-1), rank))


def real_cells(
    size: Ints, kernel: Ints, stride: Ints, pads: Pairs, dilation: Ints, ceil_mode: bool = False
) -> np.ndarray:
    """How many cells of x each window has, (*out)."""
    ones = np.ones((1, 1, *size))
    windows = windows_of(ones, kernel, stride, pads, dilation, ceil_mode)
    return _flat(windows, len(size)).sum(axis=-1)[0, 0]


def divisors(
    size: Ints,
    kernel: Ints,
    stride: Ints,
    pads: Pairs,
    dilation: Ints,
    ceil_mode: bool = False,
    count_padding: bool = True,
    override: int | None = None,
) -> np.ndarray:
    """What the sum over each window is divided by, (*out)."""
    cells = real_cells(size, kernel, stride, pads, dilation, ceil_mode)
    if override is not None:
        return np.full(cells.shape, float(override))
    if not count_padding:
        return cells
    # cells of the explicit padding are now cells like others; what lies beyond them is not
    padded = [n + before + after for n, (before, after) in zip(size, pads, strict=True)]
    none = [(0, 0)] * len(padded)
    with_padding = real_cells(padded, kernel, stride, none, dilation, ceil_mode)
    return with_padding[tuple(slice(0, n) for n in cells.shape)]


def avg_pool(
    x: np.ndarray,
    kernel: Ints,
    stride: Ints,
    pads: Pairs,
    dilation: Ints,
    ceil_mode: bool = False,
    count_padding: bool = True,
    override: int | None = None,
) -> np.ndarray:
    windows = windows_of(x.astype(np.float64), kernel, stride, pads, dilation, ceil_mode)
    sums = _flat(windows, x.ndim - 2).sum(axis=-1)
    return sums / divisors(x.shape[2:], kernel, stride, pads, dilation, ceil_mode, count_padding, override)


def scatter_add(values: np.ndarray, indices: np.ndarray, shape: Ints) -> np.ndarray:
    """The gradient of max pooling: each value added to the cell of its plane that `indices` names."""
    planes = np.zeros((shape[0] * shape[1], int(np.prod(shape[2:]))))
    rows = np.arange(planes.shape[0])[:, None]
    flat = (planes.shape[0], int(np.prod(values.shape[2:])))
    np.add.at(planes, (rows, indices.reshape(flat).astype(np.int64)), values.reshape(flat))
    return planes.reshape(shape)


def put(values: np.ndarray, indices: np.ndarray, shape: Ints) -> np.ndarray:
    """Unpooling: each value goes to the cell of its plane that `indices` names, one after the other."""
    planes = np.zeros((shape[0] * shape[1], int(np.prod(shape[2:]))))
    for plane, row, places in zip(
        planes, values.reshape(len(planes), -1), indices.reshape(len(planes), -1), strict=True
    ):
        for value, place in zip(row, places, strict=True):
            plane[place] = value
    return planes.reshape(shape)


def pick(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Of every plane the cells that `indices` name."""
    lead = array.shape[:2]
    picked = np.take_along_axis(array.reshape(*lead, -1), indices.reshape(*lead, -1).astype(np.int64), axis=2)
    return picked.reshape(indices.shape)


def lp_pool(
    x: np.ndarray,
    norm: float,
    kernel: Ints,
    stride: Ints,
    pads: Pairs,
    dilation: Ints,
    ceil_mode: bool = False,
) -> np.ndarray:
    """The root of the sum of powers; a window that hangs over counts as whole, by its average."""
    geometry = (kernel, stride, pads, dilation, ceil_mode)
    if np.isinf(norm):
        return np.sign(norm) * max_pool(np.sign(norm) * np.abs(x.astype(np.float64)), *geometry).y
    return (avg_pool(x.astype(np.float64) ** norm, *geometry) * np.prod(kernel)) ** (1 / norm)


def adaptive_windows(size: Ints, output: Ints) -> list[tuple[slice, ...]]:
    """The window of every output cell, in row-major order."""
    axes = [
        [slice(o * n // parts, ((o + 1) * n + parts - 1) // parts) for o in range(parts)]
        for n, parts in zip(size, output, strict=True)
    ]
    return [tuple(axis[o] for axis, o in zip(axes, cell, strict=True)) for cell in np.ndindex(*output)]


def adaptive_avg_pool(x: np.ndarray, output: Ints) -> np.ndarray:
    axes = tuple(range(2, x.ndim))
    cells = [
        x[(..., *window)].astype(np.float64).mean(axis=axes)
        for window in adaptive_windows(x.shape[2:], output)
    ]
    return np.stack(cells, axis=-1).reshape(*x.shape[:2], *output)


def adaptive_max_pool(x: np.ndarray, output: Ints) -> MaxPool:
    lead = x.shape[:2]
    places = _places(x)
    cells: list[Any] = []
    for window in adaptive_windows(x.shape[2:], output):
        values, where = x[(..., *window)], places[(..., *window)]
        cells.append(_first_largest(values.reshape(*lead, -1), where.reshape(*lead, -1)))
    y, indices = (np.stack(part, axis=-1).reshape(*lead, *output) for part in zip(*cells, strict=True))
    return MaxPool(y, indices)
