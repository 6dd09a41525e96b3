"""Cases: what a test calls with, as a few plain numbers, and the arrays made from them.

A case is small, prints as the call that makes it, and makes the same arrays each time: a failing one that
hypothesis finds can be kept as a named regression test by pasting it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
from hypothesis import assume
from hypothesis import strategies as st
from numba.core.config import DISABLE_JIT

# --- memory -------------------------------------------------------------------------------------


def _strided(a: np.ndarray) -> np.ndarray:
    """Every second cell of a larger array, the ones between poisoned."""
    poison = np.iinfo(a.dtype).max if a.dtype.kind in "iu" else np.nan
    larger = np.full([2 * n for n in a.shape], poison, a.dtype)
    view = larger[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


def _reversed(a: np.ndarray) -> np.ndarray:
    """Negative strides along every axis."""
    backwards = (slice(None, None, -1),) * a.ndim
    return a[backwards].copy()[backwards]


def _transposed(a: np.ndarray) -> np.ndarray:
    """The last two axes swapped in memory."""
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2) if a.ndim > 1 else a.copy()


def _misaligned(a: np.ndarray) -> np.ndarray:
    """One byte off every boundary."""
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert a.size == 0 or not view.flags.aligned
    return view


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


#: The same values in other memory.
MEMORY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.copy,
    "fortran": np.asfortranarray,
    "strided": _strided,
    "reversed": _reversed,
    "transposed": _transposed,
    "misaligned": _misaligned,
    "read-only": _read_only,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """An array like x or y from channels-first to `layout`, contiguous."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if layout == "NHWC" else array


def from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of `to_layout`, as a view."""
    return np.moveaxis(array, -1, 1) if layout == "NHWC" else array


def weight_to_layout(weight: np.ndarray, layout: str) -> np.ndarray:
    """A weight (K, C // groups, *kernel) as `layout` wants it: (*kernel, C // groups, K)."""
    if layout == "NHWC":
        return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2)))
    return weight


def weight_from_layout(weight: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of `weight_to_layout`, as a view."""
    return np.moveaxis(weight, (-1, -2), (0, 1)) if layout == "NHWC" else weight


def values(seed: int, kind: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers: "gauss"; "ints" from -3 to 3, whose sums are exact; "special" with NaN and inf."""
    rng = np.random.default_rng(seed)
    if kind == "gauss":
        return rng.standard_normal(shape).astype(dtype)
    if kind == "ints":
        return rng.integers(-3, 4, shape).astype(dtype)
    assert kind == "special"
    return rng.choice([np.nan, -np.inf, -np.inf, np.inf, -1, -0.0, 0, 1], shape).astype(dtype)


# --- arguments ----------------------------------------------------------------------------------


def _triple(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def explicit_pads(
    padding: Any,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> list[tuple[int, int]]:
    """(before, after) pairs of any form of `padding`."""
    if padding == "valid":
        return [(0, 0)] * len(size)
    if isinstance(padding, str):
        return list(oracles.same_pads(size, kernel, stride, dilation, lower=padding == "same_lower"))
    return [(p, p) if isinstance(p, int) else p for p in _triple(padding, len(size))]


def per_axis(rank: int, most: int, least: int = 1) -> st.SearchStrategy[Any]:
    """An int, or one for each axis."""
    one = st.integers(least, most)
    return one | st.tuples(*[one] * rank)


def paddings(most: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Every form of padding, up to `most` per axis."""
    one = st.integers(0, min(most))
    axes = st.tuples(*[st.integers(0, m) for m in most])
    pairs = st.tuples(*[st.tuples(st.integers(0, m), st.integers(0, m)) for m in most])
    return st.just(0) | one | axes | pairs | st.sampled_from(["valid", "same", "same_lower"])


#: How much longer than others the last axis may be: several vectors, which kernels move along it.
LONG = 12 if DISABLE_JIT else 70

LAYOUTS = st.sampled_from(["NCHW", "NHWC"])
DTYPES = st.sampled_from(["float32", "float64"])
SEEDS = st.integers(0, 2**32 - 1)


# --- convolution --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """A convolution. `size`, `kernel`, `channels` = (C, K): channels-first, whatever the layout."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: tuple[int, int] = (1, 1)
    batch: int | None = 1  # None: x without N
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    layout: str = "NCHW"
    dtype: str = "float32"
    kind: str = "gauss"
    seed: int = 0
    bias: bool = False
    relu: bool = False

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def facts(self) -> dict[str, Any]:
        """The arguments that every function of the family takes."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "layout": self.layout,
        }

    @property
    def geometry(self) -> dict[str, Any]:
        """The same for the oracle, with one entry per axis."""
        stride, dilation = _triple(self.stride, self.rank), _triple(self.dilation, self.rank)
        pads = explicit_pads(self.padding, self.size, self.kernel, stride, dilation)
        return {"stride": stride, "pads": pads, "dilation": dilation, "groups": self.groups}

    @property
    def out(self) -> tuple[int, ...]:
        """Spatial size of y."""
        g = self.geometry
        axes = zip(self.size, self.kernel, g["stride"], g["dilation"], g["pads"], strict=True)
        return tuple(len(oracles.window_starts(*axis)) for axis in axes)

    # channels-first, batched; the third number keeps the three arrays apart

    def x(self) -> np.ndarray:
        n = 1 if self.batch is None else self.batch
        return values(self.seed, self.kind, self.dtype, (n, self.channels[0], *self.size))

    def weight(self) -> np.ndarray:
        group_in = self.channels[0] // self.groups
        return values(self.seed + 1, self.kind, self.dtype, (self.channels[1], group_in, *self.kernel))

    def grad(self) -> np.ndarray:
        n = 1 if self.batch is None else self.batch
        return values(self.seed + 2, self.kind, self.dtype, (n, self.channels[1], *self.out))

    def bias_values(self) -> np.ndarray | None:
        return values(self.seed + 3, self.kind, self.dtype, (self.channels[1],)) if self.bias else None

    # between channels-first and what the functions take and give

    def give(self, array: np.ndarray) -> np.ndarray:
        """x or a gradient of y, as the case hands it over."""
        array = to_layout(array, self.layout)
        return array[0] if self.batch is None else array

    def take(self, array: np.ndarray) -> np.ndarray:
        """y or a gradient of x, channels-first and batched again."""
        return from_layout(array[None] if self.batch is None else array, self.layout)

    def give_weight(self, weight: np.ndarray) -> np.ndarray:
        return weight_to_layout(weight, self.layout)

    def take_weight(self, weight: np.ndarray) -> np.ndarray:
        return weight_from_layout(weight, self.layout)


@st.composite
def convs(draw: st.DrawFn, kind: str | None = None, dtype: str | None = None, empty: bool = False) -> Conv:
    """Convolutions of every kind, small enough for the reference.

    `kind` and `dtype` fix the values; with `empty` some of N, C and K are 0.
    """
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    kernel = tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank))
    stride = draw(per_axis(rank, 3))
    dilation = draw(per_axis(rank, 3))
    reach = [d * (k - 1) + 1 for d, k in zip(_triple(dilation, rank), kernel, strict=True)]
    # up to two cells more than the kernel reaches
    padding = draw(paddings(tuple(r + 1 for r in reach)))
    room = [12 if rank == 1 else 6 if rank == 2 else 3] * rank
    long, many = draw(st.sampled_from([(False, False), (False, False), (True, False), (False, True)]))
    if long:
        room[-1] = LONG
    size = []
    for axis in range(rank):
        pads = _triple(padding, rank)[axis] if not isinstance(padding, str) else 0
        covered = 2 * pads if isinstance(pads, int) else sum(pads)
        fewest = 1 if padding in ("same", "same_lower") else max(1, reach[axis] - covered)
        size.append(fewest + draw(st.integers(0, room[axis])))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    group_in, group_out = draw(st.integers(1, 3)), draw(st.integers(1, 20 if many else 3))
    if draw(st.booleans()):  # depthwise, with a channel multiplier
        groups, group_in = draw(st.integers(1, 4)), 1
    batch = draw(st.sampled_from([None, 1, 2, 3]))
    if empty:
        which = draw(st.sampled_from(["batch", "in", "out"]))
        batch = 0 if which == "batch" else batch
        group_in = 0 if which == "in" else group_in
        group_out = 0 if which == "out" else group_out
    return Conv(
        size=tuple(size),
        kernel=kernel,
        channels=(groups * group_in, groups * group_out),
        batch=batch,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        layout=draw(LAYOUTS),
        dtype=dtype or draw(DTYPES),
        kind=kind or draw(st.sampled_from(["gauss", "ints"])),
        seed=draw(SEEDS),
        bias=draw(st.booleans()),
        relu=draw(st.booleans()),
    )


#: How many bytes a block of the lowered matrix may have: the real number, and ones so small that blocks
#: split over images, over groups, over pixels, and over rows.
BLOCK_BYTES = st.sampled_from([4 << 20, 8192, 2048, 512, 128])


# --- pooling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """A pooling; fields as those of `Conv`."""

    size: tuple[int, ...]
    kernel: Any
    channels: int = 1
    batch: int | None = 1
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    layout: str = "NCHW"
    dtype: str = "float32"
    kind: str = "gauss"
    seed: int = 0

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
            "layout": self.layout,
        }

    @property
    def geometry(self) -> dict[str, Any]:
        kernel = _triple(self.kernel, self.rank)
        stride = kernel if self.stride is None else _triple(self.stride, self.rank)
        dilation = _triple(self.dilation, self.rank)
        pads = explicit_pads(self.padding, self.size, kernel, stride, dilation)
        return {
            "kernel": kernel,
            "stride": stride,
            "pads": pads,
            "dilation": dilation,
            "ceil_mode": self.ceil_mode,
        }

    @property
    def out(self) -> tuple[int, ...]:
        g = self.geometry
        axes = zip(self.size, g["kernel"], g["stride"], g["dilation"], g["pads"], strict=True)
        return tuple(len(oracles.window_starts(*axis, self.ceil_mode)) for axis in axes)

    def x(self) -> np.ndarray:
        n = 1 if self.batch is None else self.batch
        return values(self.seed, self.kind, self.dtype, (n, self.channels, *self.size))

    def grad(self) -> np.ndarray:
        n = 1 if self.batch is None else self.batch
        kind = "gauss" if self.kind == "special" else self.kind
        return values(self.seed + 2, kind, self.dtype, (n, self.channels, *self.out))

    give = Conv.give
    take = Conv.take


@st.composite
def pools(draw: st.DrawFn, kinds: tuple[str, ...] = ("gauss", "ints"), dtype: str | None = None) -> Pool:
    """Poolings of every kind in which each window has a cell."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    kernel = draw(per_axis(rank, 4 if rank < 3 else 3))
    dilation = draw(per_axis(rank, 3))
    taps = zip(_triple(kernel, rank), _triple(dilation, rank), strict=True)
    reach = tuple(d * (k - 1) + 1 for k, d in taps)
    room = [12 if rank == 1 else 7 if rank == 2 else 4] * rank
    if draw(st.booleans()):
        room[-1] = LONG
    fewest = [max(1, r // 2) for r in reach]
    case = Pool(
        size=tuple(draw(st.integers(n, n + more)) for n, more in zip(fewest, room, strict=True)),
        kernel=kernel,
        channels=draw(st.integers(1, 3)),
        batch=draw(st.sampled_from([None, 1, 2])),
        stride=draw(st.none() | per_axis(rank, 4)),
        padding=draw(paddings(tuple(r - 1 for r in reach))),
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        layout=draw(LAYOUTS),
        dtype=dtype or draw(DTYPES),
        kind=draw(st.sampled_from(kinds)),
        seed=draw(SEEDS),
    )
    assume(min(case.out) >= 1)
    assume(oracles.real_cells(case.size, **case.geometry).min() >= 1)
    return case
