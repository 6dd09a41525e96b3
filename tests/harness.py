"""Running a case: by an algorithm, output and scratch memory poisoned first, and by the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any
from unittest import mock

import numpy as np
import pytest
from strategies import Conv, Pool

from fastconv import reference
from fastconv.algorithms import ALGORITHMS, im2col, winograd, winograd_gradient
from fastconv.algorithms.workspace import workspace
from fastconv.functional import run
from fastconv.functional.arrays import lift_like_x, lift_weight
from fastconv.jit import DISABLED
from fastconv.kernels.winograd_points import float_matrices
from fastconv.plan import find_algorithm
from fastconv.shapes import ConvShape


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    """Lower at most `size` bytes at a time."""
    with mock.patch.object(im2col, "BLOCK_BYTES", size):
        yield


def poison_workspace(dtype: str) -> None:
    """Fill this thread's scratch memory with NaN."""
    (scratch,) = workspace(np.dtype(dtype), (1 << 15,))
    scratch.fill(np.nan)


#: Cells before and after an array, enough for any vector.
_MARGIN = 64
_UNTOUCHED = 12345


def framed(array: np.ndarray) -> np.ndarray:
    """A copy amid NaN: reading beyond it shows in the result."""
    memory = np.full(array.size + 2 * _MARGIN, np.nan, array.dtype)
    copy = memory[_MARGIN : _MARGIN + array.size].reshape(array.shape)
    copy[...] = array
    return copy


@contextmanager
def poisoned(like: np.ndarray, poison: float = np.nan) -> Iterator[np.ndarray]:
    """An array full of `poison` to write to, and a check that nothing was written beside it."""
    memory = np.full(like.size + 2 * _MARGIN, _UNTOUCHED, like.dtype)
    out = memory[_MARGIN : _MARGIN + like.size].reshape(like.shape)
    out[...] = poison
    yield out
    assert (memory[:_MARGIN] == _UNTOUCHED).all(), "written before the array"
    assert (memory[_MARGIN + like.size :] == _UNTOUCHED).all(), "written behind the array"


#: The algorithms that serve every case; the others may refuse one, and say why.
COMPLETE = ("auto", "im2col", "naive")

#: All of them, as parameters of a test that a refusal would fail.
EVERY = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            DISABLED and name not in COMPLETE, reason=f"NUMBA_DISABLE_JIT: {name} needs the compiler"
        ),
    )
    for name in ALGORITHMS
]


#: Those of them that take any kernel, stride and dilation; the others have tests of their own.
GENERAL = [parameter for parameter in EVERY if parameter.values != ("winograd",)]


def settled(name: str, array: np.ndarray) -> np.ndarray:
    """The result for integers; of an algorithm that rounds on the way, to the next integers."""
    return np.rint(array) if name == "winograd" else array


def winograd_magnitude(case: Conv, op: str, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What bounds Winograd's rounding errors: the same matrices, x and weight, all of absolute values.

    Each of its sums is off by no more than the number of roundings times eps / 2 times this, as in
    `oracles.assert_within` (the argument for every bilinear algorithm, in the float64 of this function itself
    negligible). `x` and `weight` are of the convolution that is computed, for the input gradient with
    channels exchanged and taps reversed.
    """
    shape = geometry(case)
    tiling = winograd.tiling_of(shape, np.dtype(case.dtype), op)
    tile, conv = tiling.tile, tiling.conv
    a, g, _ = transforms(tile)
    inputs = seen_by_tiles(
        x.reshape(conv.images, conv.groups, -1, *x.shape[2:]), tile, tiling.grid, conv.pad[1:]
    )
    taps = np.abs(weight).reshape(conv.groups, conv.group_out, conv.group_in, 3, 3)
    weights = np.einsum("ij,gkcjl,ml->gkcim", g, taps, g)
    sums = np.einsum("ngctuil,gkcil->ngktuil", inputs, weights)
    y = np.einsum("pi,ngktuil,ql->ngktpuq", a, sums, a)
    y = y.reshape(conv.images, conv.groups * conv.group_out, *(tile * count for count in tiling.grid))
    return y[:, :, : conv.output[1], : conv.output[2]]


def winograd_weight_magnitude(case: Conv, grad: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, int]:
    """The same for the weight gradient, and the tiles that are summed over."""
    shape = geometry(case)
    _, *grid = winograd_gradient.grid(shape)
    tile = winograd_gradient.TILE
    a, g, _ = transforms(tile)
    parts = shape.batch, shape.groups, -1
    inputs = seen_by_tiles(x.reshape(*parts, *x.shape[2:]), tile, grid, shape.pad_before[1:])
    whole = np.zeros((*grad.shape[:2], *(tile * count for count in grid)))
    whole[:, :, : grad.shape[2], : grad.shape[3]] = np.abs(grad)
    tiles = whole.reshape(*parts, grid[0], tile, grid[1], tile)
    gradients = np.einsum("pi,ngktpuq,ql->ngktuil", a, tiles, a)
    sums = np.einsum("ngctuil,ngktuil->gkcil", inputs, gradients)
    weight = np.einsum("ij,gkcil,lm->gkcjm", g, sums, g)
    return weight.reshape(-1, shape.group_in, 3, 3), shape.batch * prod(grid)


def transforms(tile: int) -> list[np.ndarray]:
    """A', G and B', of absolute values."""
    return [np.abs(matrix) for matrix in float_matrices(tile)]


def seen_by_tiles(x: np.ndarray, tile: int, grid: Sequence[int], pad: Sequence[int]) -> np.ndarray:
    """What the tiles see of |x| (N, groups, C, H, W), transformed: the axes of tiles and points behind."""
    b = transforms(tile)[2]
    size = [tile * count + 2 for count in grid]
    padded = np.zeros((*x.shape[:3], *size))
    places = []
    for cells, length, before in zip(size, x.shape[3:], pad, strict=True):
        inside = np.arange(length) + before
        keep = (inside >= 0) & (inside < cells)
        places.append((inside[keep], np.flatnonzero(keep)))
    (to_y, from_y), (to_x, from_x) = places
    padded[..., to_y[:, None], to_x] = np.abs(x)[..., from_y[:, None], from_x]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (tile + 2, tile + 2), (3, 4))
    return np.einsum("ij,ngctujk,lk->ngctuil", b, windows[:, :, :, ::tile, ::tile], b)


#: Roundings of Winograd's transforms: along two axes 6 of x, 4 of the weight and 6 of the sums, and as many
#: for the constants, but for a few.
TRANSFORM_ROUNDINGS = 48


def forward_magnitude(name: str, case: Conv) -> tuple[np.ndarray, int]:
    """What a forward pass's rounding errors are proportional to, and how many there may be."""
    x, weight = case.x(), case.weight()
    if name == "winograd":
        return winograd_magnitude(case, "forward", x, weight), weight.shape[1] + TRANSFORM_ROUNDINGS
    return reference_forward(case, np.abs(x), np.abs(weight)), weight[0].size


def input_grad_magnitude(name: str, case: Conv) -> tuple[np.ndarray, int]:
    """The same for an input gradient."""
    grad, weight = case.grad(), case.weight()
    group_out = weight.shape[0] // case.groups
    if name == "winograd":
        taps = weight.reshape(case.groups, group_out, *weight.shape[1:])
        turned = np.flip(taps, (-1, -2)).swapaxes(1, 2)
        return winograd_magnitude(case, "input_grad", grad, turned), group_out + TRANSFORM_ROUNDINGS
    terms = weight.size // max(1, weight.shape[1] * case.groups)  # filters of a group, times taps
    return reference_input_grad(case, np.abs(grad), np.abs(weight)), terms


def weight_grad_magnitude(name: str, case: Conv) -> tuple[np.ndarray, int]:
    """The same for a weight gradient."""
    grad, x = case.grad(), case.x()
    if name == "winograd":
        magnitude, tiles = winograd_weight_magnitude(case, grad, x)
        return magnitude, tiles + TRANSFORM_ROUNDINGS
    return reference_weight_grad(case, np.abs(grad), np.abs(x)), grad[:, 0].size


def refused(name: str, case: Conv, op: str) -> bool:
    """Whether an algorithm cannot do a case; the public functions must then say so, and why."""
    reason = ALGORITHMS[name].supports(geometry(case), np.dtype(case.dtype), op)
    if reason is None:
        return False
    assert name not in COMPLETE
    with pytest.raises(ValueError, match=re.escape(reason)):
        find_algorithm("conv", name, geometry(case), np.dtype(case.dtype), op)
    return True


def skip_refused(name: str, x: np.ndarray, weight: np.ndarray, **options: Any) -> None:
    """Skip a test of a fixed case, a forward pass in two dimensions, that an algorithm cannot do."""
    facts = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "layout": "NCHW", **options}
    shape = run.geometry("conv2d", 2, x.shape, weight.shape, *facts.values())
    reason = ALGORITHMS[name].supports(shape, x.dtype, "forward")
    if reason is not None:
        assert name not in COMPLETE
        pytest.skip(f"{name}: {reason}")


def needs(name: str, case: Conv) -> tuple[bool, bool, bool]:
    """The gradients that an algorithm can do, as `conv{n}d_backward` takes it; the bias's needs none."""
    return not refused(name, case, "input_grad"), not refused(name, case, "weight_grad"), True


def geometry(case: Conv) -> ConvShape:
    """The shape that fastconv derives for a case."""
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    return run.geometry("conv", case.rank, x.shape, weight.shape, *case.facts.values())


def fill_forward(name: str, case: Conv) -> np.ndarray:
    """y, channels-first, as the algorithm itself leaves it in an array of NaN."""
    shape, bias = geometry(case), case.bias_values()
    x, weight = framed(case.give(case.x())), framed(case.give_weight(case.weight()))
    poison_workspace(case.dtype)
    with poisoned(case.give(case.grad())) as y:
        ALGORITHMS[name].forward(
            lift_like_x("x", "x", x, case.rank, case.layout),
            lift_weight(weight, case.rank, case.layout),
            None if bias is None else framed(bias),
            case.relu,
            lift_like_x("y", "y", y, case.rank, case.layout),
            shape,
        )
    return case.take(y)


def fill_input_grad(name: str, case: Conv) -> np.ndarray:
    """The gradient of x, channels-first, likewise."""
    shape = geometry(case)
    grad, weight = framed(case.give(case.grad())), framed(case.give_weight(case.weight()))
    poison_workspace(case.dtype)
    with poisoned(case.give(case.x())) as grad_x:
        ALGORITHMS[name].input_grad(
            lift_like_x("grad", "grad", grad, case.rank, case.layout),
            lift_weight(weight, case.rank, case.layout),
            lift_like_x("out", "out", grad_x, case.rank, case.layout),
            shape,
        )
    return case.take(grad_x)


def fill_weight_grad(name: str, case: Conv) -> np.ndarray:
    """The gradient of weight, (K, C // groups, *kernel), likewise."""
    shape = geometry(case)
    grad, x = framed(case.give(case.grad())), framed(case.give(case.x()))
    poison_workspace(case.dtype)
    with poisoned(case.give_weight(case.weight())) as grad_weight:
        ALGORITHMS[name].weight_grad(
            lift_like_x("grad", "grad", grad, case.rank, case.layout),
            lift_like_x("x", "x", x, case.rank, case.layout),
            lift_weight(grad_weight, case.rank, case.layout),
            shape,
        )
    return case.take_weight(grad_weight)


# --- the reference, with channels-first arrays of any rank ----------------------------------------


def _lift(values: Any, fill: int = 1) -> tuple[int, ...]:
    """Three spatial axes."""
    return (fill,) * (3 - len(values)) + tuple(values)


def _double(array: np.ndarray) -> np.ndarray:
    """float64, with three spatial axes."""
    return array.reshape(*array.shape[:2], *_lift(array.shape[2:])).astype(np.float64)


def _conv_args(case: Conv) -> tuple[Any, ...]:
    g = case.geometry
    before = [pair[0] for pair in g["pads"]]
    return _lift(g["stride"]), _lift(before, 0), _lift(g["dilation"]), case.groups


def reference_forward(case: Conv, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    y = reference.conv(_double(x), _double(weight), *_conv_args(case), _lift(case.out))
    return y.reshape(*y.shape[:2], *case.out)


def reference_input_grad(case: Conv, grad: np.ndarray, weight: np.ndarray) -> np.ndarray:
    gx = reference.conv_input_grad(_double(grad), _double(weight), *_conv_args(case), _lift(case.size))
    return gx.reshape(*gx.shape[:2], *case.size)


def reference_weight_grad(case: Conv, grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    gw = reference.conv_weight_grad(_double(grad), _double(x), *_conv_args(case), _lift(case.kernel))
    return gw.reshape(*gw.shape[:2], *case.kernel)


def _pool_args(case: Pool) -> list[Any]:
    g = case.geometry
    return [_lift(g["kernel"]), _lift(g["stride"]), _lift([pair[0] for pair in g["pads"]], 0)]


def reference_max_pool(case: Pool, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    args = (*_pool_args(case), _lift(case.geometry["dilation"]), _lift(case.out))
    y, indices = reference.max_pool(_double(x), *args)
    shape = (*x.shape[:2], *case.out)
    return y.reshape(shape), indices.reshape(shape)


def reference_lp_pool(case: Pool, x: np.ndarray, norm: float) -> np.ndarray:
    after = _lift([pair[1] for pair in case.geometry["pads"]], 0)
    args = (*_pool_args(case), after, _lift(case.geometry["dilation"]), _lift(case.out))
    return reference.lp_pool(_double(x), norm, *args).reshape(*x.shape[:2], *case.out)


def reference_lp_pool_backward(
    case: Pool, grad: np.ndarray, x: np.ndarray, y: np.ndarray, norm: float
) -> np.ndarray:
    after = _lift([pair[1] for pair in case.geometry["pads"]], 0)
    args = (*_pool_args(case), after, _lift(case.geometry["dilation"]))
    return reference.lp_pool_backward(_double(grad), _double(x), _double(y), norm, *args).reshape(x.shape)


def reference_avg_pool(case: Pool, x: np.ndarray, count_padding: bool, divisor: int | None) -> np.ndarray:
    after = _lift([pair[1] for pair in case.geometry["pads"]], 0)
    args = (*_pool_args(case), after, _lift(case.geometry["dilation"]), _lift(case.out))
    y = reference.avg_pool(_double(x), *args, count_padding, divisor or 0)
    return y.reshape(*x.shape[:2], *case.out)


def reference_avg_pool_backward(
    case: Pool, grad: np.ndarray, count_padding: bool, divisor: int | None
) -> np.ndarray:
    after = _lift([pair[1] for pair in case.geometry["pads"]], 0)
    args = (*_pool_args(case), after, _lift(case.geometry["dilation"]), _lift(case.size))
    gx = reference.avg_pool_backward(_double(grad), *args, count_padding, divisor or 0)
    return gx.reshape(*gx.shape[:2], *case.size)
