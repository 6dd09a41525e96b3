"""Arguments for the fuzzer: good ones that belong together, the same ones in other clothes, and bad ones.

A case is made from its number alone. First a `World` is drawn, sizes that fit each other. Each parameter of
a public function plays a *role*, told by its name, and `ROLES` gives it a value from the world. A good value
can be *dressed*: given in another form that must mean the same. Any value can be *broken*: whatever comes
of that must be the right result, or a ValueError or TypeError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from random import Random
from typing import Any

import numpy as np
from strategies import MEMORY, values

import fastconv
from fastconv.algorithms import ALGORITHMS, OPERATIONS, POOL_ALGORITHMS

try:
    import ml_dtypes

    BFLOAT16 = [np.dtype(ml_dtypes.bfloat16).name]
except ImportError:  # an optional package
    BFLOAT16 = []

Shape = tuple[int, ...]

#: Of 16 bits, computed in float32.
NARROW = ["float16", *BFLOAT16]
BYTES = ["uint8", "int8"]
INTEGERS = [*BYTES, "int16", "uint16", "int32", "uint32", "int64", "uint64"]
#: Whole and even ones take any x; the others positive numbers, of which no power is NaN.
NORMS = [1, 2, 2, 2.0, 3, 4, 1.5, 0.5, -1.0, float("inf"), -float("inf")]


def family(function: str) -> tuple[str, int | None, str]:
    """("conv_transpose", 2, "backward") of "conv_transpose2d_backward"."""
    match = re.fullmatch(r"(.+?)([123])d(?:_(.+))?", function)
    return (match[1], int(match[2]), match[3] or "") if match else (function, None, "")


# --- worlds -------------------------------------------------------------------------------------


@dataclass
class World:
    """Sizes that belong together; `size` is that of x, `out` that of y."""

    function: str
    rng: Random
    rank: int
    layout: str
    dtype: str
    kind: str
    batch: int | None
    channels: int
    filters: int
    groups: int
    size: Shape
    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: tuple[tuple[int, int], ...]
    extra: Shape  # output_padding
    ceil: bool
    adaptive: tuple[int | None, ...]
    norm: float  # of power-average pooling
    seed: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return family(self.function)[0]

    @property
    def out(self) -> Shape:
        if self.base.startswith("adaptive"):
            return tuple(
                n if part is None else part for n, part in zip(self.size, self.adaptive, strict=True)
            )
        sizes = []
        for n, k, s, d, p, e in zip(
            self.size, self.kernel, self.stride, self.dilation, self.pads, self.extra, strict=True
        ):
            reach = d * (k - 1) + 1
            if self.base == "conv_transpose":
                sizes.append((n - 1) * s - sum(p) + reach + e)
                continue
            span = n + sum(p) - reach
            count = -(-span // s) + 1 if self.ceil else span // s + 1
            sizes.append(count - ((count - 1) * s >= n + p[0] and self.ceil))
        return tuple(sizes)

    @property
    def lead(self) -> Shape:
        return () if self.batch is None else (self.batch,)

    def like_x(self, channels: int, size: Shape) -> Shape:
        lead = self.lead
        return (*lead, channels, *size) if self.layout == "NCHW" else (*lead, *size, channels)

    @property
    def x_shape(self) -> Shape:
        return self.like_x(self.channels, self.size)

    @property
    def y_shape(self) -> Shape:
        return self.like_x(self.filters if "conv" in self.base else self.channels, self.out)

    @property
    def weight_shape(self) -> Shape:
        first, second = self.filters, self.channels // self.groups
        if self.base == "conv_transpose":
            first, second = self.channels, self.filters // self.groups
        return (first, second, *self.kernel) if self.layout == "NCHW" else (*self.kernel, second, first)

    def array(self, name: str, shape: Shape) -> np.ndarray:
        kind, seed = self.kind, self.seed + len(name)
        if self.dtype in INTEGERS:
            return some_integers(seed, self.dtype, shape)
        if kind == "special" and "conv" in self.base and name != "x":
            kind = "ints"  # a weight that is not finite, times the zeros of the padding, may be NaN or not
        if kind == "special" and self.base == "deform_conv":
            kind = "ints"  # so does what lies beside a place
        array = values(seed, kind, self.dtype, shape)
        if self.base == "lp_pool" and name == "x" and not (self.norm == 2 or self.norm == 4):
            array = np.abs(array) + np.asarray(0.25, array.dtype)
        return array

    def form(self, sizes: Shape) -> Any:
        """An int where one is enough, else one for each axis."""
        return sizes[0] if len(set(sizes)) == 1 and self.rng.random() < 0.7 else sizes


def some_integers(seed: int, dtype: str, shape: Shape) -> np.ndarray:
    """All that the dtype has."""
    ends = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)


def _dtype(base: str, suffix: str, rng: Random) -> str:
    if base in ("conv_integer", "qlinear_conv", "prepack_integer"):
        return rng.choice(BYTES)
    if base in ("max_pool", "adaptive_max_pool") and not suffix and rng.random() < 0.3:
        return rng.choice(INTEGERS)
    return rng.choice(NARROW) if rng.random() < 0.1 else rng.choice(["float32", "float32", "float64"])


def make_world(function: str, rng: Random) -> World:
    base, rank, suffix = family(function)
    rank = rank or rng.choice([1, 2, 2, 3])
    big = rng.random() < 0.04
    most = {1: 24, 2: 9, 3: 5}[rank] + (8 if big else 0)
    kernel = tuple(rng.choice([1, 2, 3, 3, 3, 4, 5][: 7 if rank < 3 else 5]) for _ in range(rank))
    if rng.random() < 0.5:
        kernel = (kernel[0],) * rank
    stride, dilation = (tuple(rng.choice([1, 1, 1, 2, 3]) for _ in range(rank)) for _ in range(2))
    if rng.random() < 0.5:
        stride = dilation = (1,) * rank
    if base == "max_unpool":
        dilation = (1,) * rank
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [r + rng.randrange(most) for r in reach]
    if rng.random() < 0.2:
        size[-1] += rng.randrange(60)
    widest = [r + 1 if base == "conv" else (r - 1) // 2 for r in reach]
    pads = tuple((rng.randint(0, w), rng.randint(0, w)) for w in widest)
    if rng.random() < 0.7:
        pads = tuple((before, before) for before, _ in pads)
    if rng.random() < 0.4:
        pads = ((0, 0),) * rank
    groups = rng.choice([1, 1, 1, 2, 3])
    group_in, group_out = rng.randint(1, 4), rng.choice([1, 1, 2, 3, 4, 9])
    if rng.random() < 0.2:
        groups, group_in = rng.randint(1, 20), 1
    if big:
        groups, group_in, group_out = 1, rng.randint(1, 40), rng.randint(1, 40)
    batch = rng.choice([None, 1, 1, 2, 3, 9])
    if rng.random() < 0.03 and base != "deform_conv":  # that wants a weight
        batch, group_in, group_out = rng.choice([(0, 1, 1), (1, 0, 1), (2, 1, 0)])
    return World(
        function=function,
        rng=rng,
        rank=rank,
        layout=rng.choice(["NCHW", "NHWC"]) if _has(function, "layout") else "NCHW",
        dtype=_dtype(base, suffix, rng),
        kind=rng.choice(["ints", "ints", "ints", "gauss", "special"]),
        batch=batch,
        channels=groups * group_in,
        filters=groups * group_out,
        groups=groups,
        size=tuple(size),
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        pads=pads,
        extra=tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        if base == "conv_transpose"
        else (0,) * rank,
        ceil=_has(function, "ceil_mode") and rng.random() < 0.3,
        adaptive=tuple(rng.choice([None, 1, 2, 3, n, n + 2]) for n in size),
        norm=rng.choice(NORMS),
        seed=rng.randrange(2**32),
    )


def _has(function: str, parameter: str) -> bool:
    code = getattr(fastconv, function)
    return parameter in getattr(code, "__wrapped__", code).__code__.co_varnames


# --- roles --------------------------------------------------------------------------------------


def _padding(w: World) -> Any:
    if all(before == after for before, after in w.pads):
        same = tuple(before for before, _ in w.pads)
        return "valid" if not any(same) and w.rng.random() < 0.2 else w.form(same)
    return w.pads


def _padding_mode(w: World) -> str:
    fits = all(max(p) < n for n, p in zip(w.size, w.pads, strict=True))
    return w.rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"]) if fits else "zeros"


def _x(w: World) -> np.ndarray:
    return w.array("x", w.y_shape if w.base == "max_unpool" else w.x_shape)


def _weight(w: World) -> np.ndarray:
    if w.dtype in INTEGERS:
        return some_integers(w.seed, w.rng.choice(BYTES), w.weight_shape)
    return w.array("weight", w.weight_shape)


def _bias(w: World) -> np.ndarray | None:
    if w.rng.random() < 0.5:
        return None
    if w.dtype in INTEGERS:
        return np.random.default_rng(w.seed).integers(-(10**4), 10**4, w.filters).astype(np.int32)
    return w.array("bias", (w.filters,))


def _grad_output(w: World) -> np.ndarray:
    return w.array("grad", w.x_shape if w.base == "max_unpool" else w.y_shape)


def _offset_groups(w: World) -> int:
    return w.groups if w.seed % 2 else 1


def _offset(w: World) -> np.ndarray:
    shape = (*w.lead, _offset_groups(w) * prod(w.kernel) * 2, *w.out)
    places = 2 * np.random.default_rng(w.seed).standard_normal(shape)
    return (np.rint(places) if w.kind == "ints" else places).astype(w.dtype)


def _mask(w: World) -> np.ndarray | None:
    shape = (*w.lead, _offset_groups(w) * prod(w.kernel), *w.out)
    return w.array("mask", shape) if w.rng.random() < 0.7 else None


def _zero_points(w: World) -> Any:
    """Of a weight of either dtype."""
    shape = w.rng.choice([(), (1,), (w.filters,)])
    points = some_integers(w.seed, "int8", shape)
    return np.abs(points // 2) if shape else int(abs(points // 2))


def _scale(w: World, channels: int = 1) -> Any:
    scales = np.random.default_rng(w.seed + channels).uniform(0.001, 2, channels).astype(np.float32)
    return scales if channels > 1 or w.rng.random() < 0.5 else float(scales[0])


def _indices(w: World) -> np.ndarray:
    kinds = ["i8", "i8", "i4", "u8", "u2"]
    cells = np.random.default_rng(w.seed).integers(0, prod(w.size), w.y_shape)
    return cells.astype(w.rng.choice(kinds))


def _columns(w: World) -> np.ndarray:
    lead = () if w.batch is None else (w.batch,)
    return w.array("cols", (*lead, w.channels * prod(w.kernel), prod(w.out)))


def _kernel_size(w: World) -> Any:
    # im2col tells whether x has N by the length of kernel_size
    return w.kernel if w.batch is None and w.base == "im2col" else w.form(w.kernel)


def _output_size(w: World) -> Any:
    if w.base == "max_unpool" and w.rng.random() < 0.3:
        return w.x_shape
    return w.adaptive if w.base.startswith("adaptive") else w.size


def _algorithm(w: World) -> str:
    names = list(ALGORITHMS if "conv" in w.base or w.base == "prepack" else POOL_ALGORITHMS)
    return w.rng.choice(["auto"] * len(names) + names)


#: From a world to a good value, by the name of the parameter.
ROLES: dict[str, Callable[[World], Any]] = {
    "x": _x,
    "input": _x,
    "offset": _offset,
    "mask": _mask,
    "weight": _weight,
    "bias": _bias,
    "x_zero_point": lambda w: int(some_integers(w.seed, w.dtype, ())),
    "weight_zero_point": _zero_points,
    "y_zero_point": lambda w: some_integers(w.seed, w.rng.choice(BYTES), w.rng.choice([(), (1,)])),
    "x_scale": _scale,
    "weight_scale": lambda w: _scale(w, w.rng.choice([1, max(1, w.filters)])),
    "y_scale": _scale,
    "norm_type": lambda w: w.norm,
    "grad_output": _grad_output,
    "indices": _indices,
    "cols": _columns,
    "out": lambda w: None if w.rng.random() < 0.8 else np.full(w.y_shape, 7, w.dtype),
    "input_shape": lambda w: w.x_shape,
    "x_shape": lambda w: w.x_shape,
    "weight_shape": lambda w: w.weight_shape,
    "kernel_size": _kernel_size,
    "output_size": _output_size,
    "stride": lambda w: w.form(w.stride),
    "dilation": lambda w: w.form(w.dilation),
    "padding": _padding,
    "output_padding": lambda w: w.form(w.extra),
    "groups": lambda w: w.groups,
    "padding_mode": _padding_mode,
    "activation": lambda w: w.rng.choice([None, "relu"]),
    "layout": lambda w: w.layout,
    "algorithm": _algorithm,
    "ceil_mode": lambda w: w.ceil,
    "return_indices": lambda w: w.rng.random() < 0.5,
    "count_include_pad": lambda w: w.rng.random() < 0.5,
    "divisor_override": lambda w: w.rng.choice([None, None, 1, 5]),
    "needs": lambda w: tuple(w.rng.random() < 0.7 for _ in range(3)),
    "dtype": lambda w: w.rng.choice(["float32", np.float64, np.dtype("f4"), float]),
    "op": lambda w: w.rng.choice(list(OPERATIONS)),
    "n": lambda w: w.rng.randint(1, fastconv.get_num_threads()),
    "precision": lambda w: w.rng.choice(["high", "highest"]),
    "dtypes": lambda w: [],
    "ops": lambda w: w.rng.choice([None, [], ["max_pool"]]),
}

# --- other clothes ------------------------------------------------------------------------------


class Subclass(np.ndarray):
    """An array of another class."""


class Holder:
    """What has an array to give."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array if dtype is None else np.asarray(self.array, dtype)


class Index:
    """An int by another name."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def dress(name: str, value: Any, rng: Random) -> Any:
    """The same value in another form."""
    if isinstance(value, np.ndarray):
        forms = sorted(MEMORY)
        if name == "out":
            forms = ["contiguous", "fortran", "strided", "reversed", "transposed", "misaligned"]
        if value.ndim == 0:
            forms = ["contiguous", "read-only"]
        if value.dtype.itemsize == 1:
            forms = [form for form in forms if form != "misaligned"]  # bytes never are
        if value.dtype.kind == "V":
            forms = [form for form in forms if form != "big-endian"]  # there is no such bfloat16
        form = rng.choice([*forms, "subclass", "holder"])
        if form == "subclass":
            return value.view(Subclass)
        if form == "holder":
            return value if name == "out" else Holder(value)
        return MEMORY[form](value)
    if isinstance(value, bool):
        return rng.choice([value, np.bool_(value)])
    if isinstance(value, int):
        kind = rng.choice(["i8", "u4" if value >= 0 else "i4", "i2", "index", "array"])
        if name.endswith("zero_point"):  # those of a weight may be arrays
            kind = rng.choice(["i8", "i2", "array"])
        if kind == "index":
            return Index(value)
        return np.array(value) if kind == "array" else np.dtype(kind).type(value)
    if isinstance(value, str):
        return np.str_(value)
    if isinstance(value, tuple) and None not in value:
        form = rng.choice(["list", "array", "numpy"])
        if form == "array" or not value:
            return np.array(value)
        items = [list(v) if isinstance(v, tuple) else v for v in value]
        return items if form == "list" else [np.array(v) for v in items]
    return value


# --- what is wrong, or odd ----------------------------------------------------------------------

_ROUND: list[Any] = []
_ROUND.append(_ROUND)
_DEEP: list[Any] = []
for _ in range(5000):
    _DEEP = [_DEEP]

#: Instead of anything.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 10**5, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64, 10**30,
    -(2**63), 1.0, 2.5, float("nan"), float("inf"), 1j, "", "1", "same", "valid", "auto", "\ud800",
    b"1", (), [], {}, set(), (1,), (1, 2), (1, 1, 1, 1), (0, 0), (-1, 2), (2**40, 1), ((1, 2),), ((1,
    2), (3, 4)), ((1, 2, 3), (1, 2, 3)), [[0, 1], [10**6, 0]], (None, None), (1.0, 1.0), (True, True),
    [[]], _ROUND, _DEEP, range(2), range(10**6), {1, 2}, {0: 1, 1: 2}, iter(()), memoryview(b"12"),
    slice(1, 2), ..., object(), int, len, Index(3), Index(2**70), np.int8(-1), np.uint64(2**63),
    np.float32(1), np.bool_(True), np.array(3), np.array([1, 2]), np.array([[1, 1], [1, 1]]),
    np.array(1.5), np.array("a"), np.zeros(0, int), np.array(None), np.datetime64("2020-01-01"),
    np.ma.masked, np.random, np.dtype("f4"), Holder([1, 2]), Holder(None), np.ones((1, 1, 3, 3),
    np.float32),
]  # fmt: skip


def _huge_view(a: np.ndarray, rng: Random) -> np.ndarray:
    """A view without memory, of a size that nobody has."""
    shape = tuple(rng.choice([1, 2, 2**20, 2**30]) for _ in range(max(1, a.ndim)))
    try:
        return np.broadcast_to(np.zeros((), a.dtype), shape)
    except ValueError:  # too large even for NumPy
        return np.broadcast_to(np.zeros((), a.dtype), (2**29, *(1,) * (a.ndim - 1))[: a.ndim])


def _other_axes(a: np.ndarray, rng: Random) -> np.ndarray:
    if a.ndim == 0:
        return a[None]
    axis = rng.randrange(a.ndim)
    return rng.choice(
        [
            lambda: a[None],
            lambda: a[..., None],
            lambda: np.take(a, 0, axis) if a.shape[axis] else a,
            lambda: np.delete(a, slice(0, 1), axis),
            lambda: np.repeat(a, 2, axis),
            lambda: np.take(a, [], axis),
            lambda: a.T,
            lambda: a.reshape(-1),
            lambda: np.concatenate([a, a], axis),
        ]
    )()


def _other_dtype(a: np.ndarray, rng: Random) -> np.ndarray:
    kinds = [
        "f2",
        "f4",
        "f8",
        "g",
        "c8",
        "i1",
        "i8",
        "u8",
        "?",
        "O",
        "U4",
        "S4",
        "M8[s]",
        "m8[s]",
        "f4,f4",
        ">f4",
        "u1",
        *BFLOAT16,
    ]
    if a.dtype.kind == "V":  # of 16 bits
        a = a.astype(np.float32)
    kind = rng.choice([*kinds, "V4"])
    if kind in ("f4,f4", "V4", "M8[s]", "m8[s]"):
        return np.zeros(a.shape, kind)
    with np.errstate(all="ignore"):
        return (
            np.nan_to_num(a, nan=1, posinf=2, neginf=-2).astype(kind)
            if a.dtype.kind == "f"
            else a.astype(kind)
        )


def _other_values(a: np.ndarray, rng: Random) -> np.ndarray:
    if a.dtype.kind == "f":
        largest = np.finfo(a.dtype)
        numbers = [np.nan, np.inf, -np.inf, largest.max, -largest.max, largest.smallest_subnormal, -0.0]
    elif a.dtype.kind in "iu":
        info = np.iinfo(a.dtype)
        numbers = [info.max, info.min, -1 if info.min else info.max // 2, 0]
    else:
        return a
    a = np.array(a)
    if a.size and a.ndim:
        a.flat[[rng.randrange(a.size) for _ in range(rng.randint(1, 3))]] = rng.choice(numbers)
    return a


def _still(a: np.ndarray, rng: Random) -> np.ndarray:
    """Strides of 0, and writable: cells that share memory."""
    if not a.size:
        return a
    strides = tuple(rng.choice([0, s]) for s in a.strides)
    return np.lib.stride_tricks.as_strided(a, a.shape, strides)


ARRAY_BREAKERS: list[Callable[[np.ndarray, Random], Any]] = [
    _huge_view,
    _other_axes,
    _other_axes,
    _other_dtype,
    _other_values,
    _still,
    lambda a, rng: np.ma.masked_array(a),
    lambda a, rng: a.tolist(),
    lambda a, rng: Holder(_other_axes(a, rng)),
    lambda a, rng: np.asmatrix(a.reshape(-1)),
    lambda a, rng: np.rec.array(np.zeros(3, "f4,f4")),
    lambda a, rng: a.flat,
    lambda a, rng: memoryview(a.astype(np.float32)),
]


def break_(value: Any, rng: Random) -> Any:
    """Something that is probably wrong in this place."""
    if isinstance(value, np.ndarray) and rng.random() < 0.85:
        return rng.choice(ARRAY_BREAKERS)(value, rng)
    if isinstance(value, tuple) and value and rng.random() < 0.6:
        items: list[Any] = list(value)
        change = rng.choice(["item", "more", "fewer", "swap"])
        if change == "item":
            items[rng.randrange(len(items))] = rng.choice(ODD)
        elif change == "more":
            items.append(rng.choice([1, 2, 0, None]))
        elif change == "fewer":
            items.pop()
        else:
            rng.shuffle(items)
        return tuple(items)
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.4:
        return value + rng.choice([-1, 1, 1, 2, 5, 40])
    return rng.choice(ODD)


def overlapping(source: np.ndarray, out: np.ndarray, rng: Random) -> tuple[np.ndarray, np.ndarray]:
    """The two in one piece of memory, with cells in common."""
    shift = rng.randrange(max(1, source.size))
    memory = np.zeros(source.size + out.size, out.dtype)
    memory[: source.size] = source.reshape(-1)
    moved = memory[: source.size].reshape(source.shape)
    return moved, memory[shift : shift + out.size].reshape(out.shape)
