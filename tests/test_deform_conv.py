"""Deformable convolution: against SciPy's interpolation and the reference, and without offsets conv2d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage
from strategies import DTYPES, SEEDS

import fastconv
from fastconv import conv2d, deform_conv2d, reference
from fastconv.functional import deform_conv


@dataclass(frozen=True)
class Deform:
    """A case; sizes are those of the arrays."""

    size: tuple[int, int] = (5, 6)
    kernel: tuple[int, int] = (3, 2)
    groups: tuple[int, int] = (1, 1)  # groups, offset groups
    channels: tuple[int, int] = (1, 1)  # input channels of both kinds of group, output channels of a group
    batch: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    dtype: str = "float32"
    seed: int = 0
    spread: float = 2.0

    @property
    def facts(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def arrays(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        taps = self.kernel[0] * self.kernel[1]
        groups, offset_groups = self.groups
        channels = groups * offset_groups * self.channels[0]
        axes = zip(self.size, self.kernel, self.stride, self.dilation, self.padding, strict=True)
        out = [len(oracles.window_starts(*axis)) for axis in axes]
        shapes = {
            "input": (self.batch, channels, *self.size),
            "offset": (self.batch, offset_groups * taps * 2, *out),
            "weight": (groups * self.channels[1], channels // groups, *self.kernel),
            "bias": (groups * self.channels[1],),
            "mask": (self.batch, offset_groups * taps, *out),
        }
        arrays = {name: rng.standard_normal(shape).astype(self.dtype) for name, shape in shapes.items()}
        arrays["offset"] *= self.spread
        # some places are on cells, and on the borders
        rounded = rng.random(arrays["offset"].shape) < 0.3
        arrays["offset"][rounded] = np.rint(arrays["offset"][rounded])
        return arrays

    def oracle(self, input: Any, offset: Any, weight: Any, bias: Any, mask: Any) -> np.ndarray:
        """Samples by SciPy, then a product."""
        groups, offset_groups = self.groups
        (n, channels), out, taps = input.shape[:2], offset.shape[2:], mask.shape[1] // offset_groups
        starts = [s * np.arange(o) - p[0] for s, o, p in zip(self.stride, out, self.padding, strict=True)]
        inside = [np.arange(k) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        ky, kx, oy, ox = np.ix_(*inside, *starts)
        base = np.stack(np.broadcast_arrays(ky + oy, kx + ox)).reshape(2, taps, *out)
        offset = offset.astype(float).reshape(n, offset_groups, taps, 2, *out)
        mask = mask.astype(float).reshape(n, offset_groups, taps, *out)
        columns = np.empty((n, channels, taps, *out))
        for image, c in np.ndindex(n, channels):
            g = c * offset_groups // channels
            places = base + np.moveaxis(offset[image, g], 1, 0)
            # one ring of zeros more: what lies between it and the border is interpolated
            plane = np.pad(input[image, c].astype(float), 1)
            samples = ndimage.map_coordinates(plane, places + 1, order=1, mode="constant")
            columns[image, c] = samples * mask[image, g]
        parts = columns.reshape(n, groups, -1, *out)
        filters = weight.astype(float).reshape(groups, -1, parts.shape[2])
        y = np.einsum("gkd,ngdpq->ngkpq", filters, parts).reshape(n, -1, *out)
        return y + bias.astype(float).reshape(-1, 1, 1)


def per_axis(least: int, most: int) -> st.SearchStrategy[Any]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def deforms(draw: st.DrawFn) -> Deform:
    kernel, dilation = draw(per_axis(1, 3)), draw(per_axis(1, 2))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = draw(st.tuples(per_axis(0, 2), per_axis(0, 2)))
    size = tuple(max(1, r - sum(p)) + draw(st.integers(0, 5)) for r, p in zip(reach, pads, strict=True))
    return Deform(
        size=size,
        kernel=kernel,
        groups=draw(per_axis(1, 3)),
        channels=draw(per_axis(1, 2)),
        batch=draw(st.integers(1, 2)),
        stride=draw(per_axis(1, 3)),
        padding=pads,
        dilation=dilation,
        dtype=draw(DTYPES),
        seed=draw(SEEDS),
        spread=draw(st.sampled_from([0.3, 2.0, 20.0])),
    )


@given(case=deforms(), block=st.sampled_from([4 << 20, 512, 64]))
@example(Deform((19, 23), groups=(2, 3), channels=(3, 9), batch=2, padding=((1, 1), (0, 2))), 4 << 20)
def test_against_scipy(case: Deform, block: int) -> None:
    """Whole, and in blocks of few pixels."""
    arrays = case.arrays()
    with mock.patch.object(deform_conv, "BLOCK_BYTES", block):
        y = deform_conv2d(**arrays, **case.facts)
    assert y.dtype == case.dtype
    magnitude = case.oracle(**{k: v if k == "offset" else abs(v) for k, v in arrays.items()})
    # eight roundings of each sample besides those of the sum
    oracles.assert_within(y, case.oracle(**arrays), magnitude, arrays["weight"][0].size + 8)


@given(case=deforms())
def test_reference(case: Deform) -> None:
    arrays = {name: array.astype(float) for name, array in case.arrays().items()}
    offset_groups, out = case.groups[1], arrays["offset"].shape[2:]
    before = tuple(pad[0] for pad in case.padding)
    y = reference.deform_conv(
        arrays["input"],
        arrays["offset"].reshape(case.batch, offset_groups, *case.kernel, 2, *out),
        arrays["weight"],
        arrays["mask"].reshape(case.batch, offset_groups, *case.kernel, *out),
        case.stride,
        before,
        case.dilation,
        case.groups[0],
        out,
    )
    expected = case.oracle(**{**arrays, "bias": np.zeros_like(arrays["bias"])})
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)


def test_without_offsets_it_is_a_convolution() -> None:
    arrays = Deform((9, 9), (3, 3), channels=(4, 5), dtype="float64").arrays()
    zeros = np.zeros_like(arrays["offset"])
    y = deform_conv2d(arrays["input"], zeros, arrays["weight"])
    np.testing.assert_allclose(y, conv2d(arrays["input"], arrays["weight"]), rtol=1e-13, atol=1e-13)
    one = deform_conv2d(arrays["input"][0], zeros[0], arrays["weight"])
    np.testing.assert_array_equal(one, y[0])


def test_far_away_there_is_nothing() -> None:
    """Also at infinity; at no place at all it is NaN."""
    x, weight = np.ones((1, 1, 4, 4)), np.ones((1, 1, 1, 1))
    offset = np.zeros((1, 2, 4, 4))
    offset[0, 0, 0] = [4, -1, np.inf, np.nan]
    offset[0, 1, 1] = [1e300, -np.inf, 0.5, -0.25]
    y = deform_conv2d(x, offset, weight)[0, 0]
    np.testing.assert_array_equal(y[0], [0, 0, 0, np.nan])
    np.testing.assert_array_equal(y[1], [0, 0, 1, 1])
    offset[0, 1, 1, 3] = 0.25  # a quarter beyond the last column
    assert deform_conv2d(x, offset, weight)[0, 0, 1, 3] == 0.75


def test_same_with_other_threads() -> None:
    case = Deform((24, 25), (3, 3), (1, 2), (8, 16), 2)
    arrays = case.arrays()
    expected = deform_conv2d(**arrays)
    with fastconv.num_threads(1):
        oracles.assert_same_bits(deform_conv2d(**arrays), expected)


def test_narrow_reals() -> None:
    arrays = {name: array.astype(np.float16) for name, array in Deform(seed=3).arrays().items()}
    wide = {name: array.astype(np.float32) for name, array in arrays.items()}
    y = deform_conv2d(**arrays)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, deform_conv2d(**wide).astype(np.float16))


def test_no_images() -> None:
    arrays = Deform(batch=0).arrays()
    assert deform_conv2d(**arrays).shape == (0, 1, 3, 5)


GOOD = Deform((5, 5), (3, 3), (1, 2), (1, 1)).arrays()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "offset must have dtype", {"offset": GOOD["offset"].astype(int)}),
        (TypeError, "all arrays must have one dtype", {"mask": GOOD["mask"].astype(float)}),
        (ValueError, "weight must have 4 axes", {"weight": GOOD["weight"][0]}),
        (ValueError, "weight must have 4 axes", {"weight": GOOD["weight"][:0]}),
        (ValueError, "input must have|x must have 4 axes", {"input": GOOD["input"][0, 0]}),
        (ValueError, "x has 2 channels", {"weight": np.ones((1, 3, 3, 3), np.float32)}),
        (ValueError, "offset must have 2 channels for each", {"offset": GOOD["offset"][:, :17]}),
        (ValueError, "offset must have 2 channels for each", {"offset": np.ones((1, 54, 3, 3), np.float32)}),
        (ValueError, "offset must have shape", {"offset": GOOD["offset"][..., :2]}),
        (ValueError, "offset must have shape", {"padding": 1}),
        (ValueError, "mask must have shape", {"mask": GOOD["mask"][:, :9]}),
        (ValueError, "bias must have shape", {"bias": np.ones(2, np.float32)}),
        (ValueError, "stride must be at least 1", {"stride": 0}),
    ],
)
def test_refuses(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^deform_conv2d: ({message})"):
        deform_conv2d(**{**GOOD, **changes})
