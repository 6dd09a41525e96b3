"""No kernel reads or writes a byte beside its arrays: where it did, there is no memory.

Every array ends where its page ends, or begins where it begins, and the pages beside it may not be touched:
a process that does is killed. So this runs in a process of its own. Vectors that reach over the end of a
row, and the end of the last row in particular, are what it looks for.
"""

from __future__ import annotations

import sys

import pytest
from processes import python

from fastconv import jit

pytestmark = [
    pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: ctypes reads bytes, no vectors"),
    pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages"),
]

PAGES = """
import ctypes, faulthandler, mmap
import numpy as np
import fastconv
from fastconv.algorithms import ALGORITHMS, POOL_ALGORITHMS
from fastconv.functional.arrays import lift_like_x, lift_weight
from fastconv.algorithms import pooling
from fastconv.functional import run, windows

faulthandler.enable()
libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
kept = []  # mappings live as long as the process

def fenced(array, at_end):
    '''A copy that fills its pages to their end, or from their beginning; the pages around are closed.'''
    size = -(-max(1, array.nbytes) // PAGE) * PAGE
    pages = mmap.mmap(-1, size + 2 * PAGE)
    kept.append(pages)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for closed in (start, start + PAGE + size):
        assert libc.mprotect(ctypes.c_void_p(closed), ctypes.c_size_t(PAGE), 0) == 0
    first = PAGE + (size - array.nbytes if at_end else 0)
    copy = np.frombuffer(pages, array.dtype, array.size, first).reshape(array.shape)
    copy[...] = array
    return copy
"""

CONVOLUTIONS = """
rng = np.random.default_rng(0)
for number in range(150):
    dtype = ("f4", "f8")[number % 2]
    layout = ("NCHW", "NCHW", "NHWC")[number % 3]
    n, groups = rng.integers(1, 4), rng.integers(1, 3)
    c, k = groups * rng.integers(1, 6), groups * rng.integers(1, 12)
    if number % 6 == 2:  # channels last, by whole vectors
        c, k = groups * 8 * rng.integers(1, 4), groups * 8 * rng.integers(1, 10)
    kernel, stride, padding = rng.integers(1, 4, 2), rng.integers(1, 4, 2), rng.integers(0, 3, 2)
    if number % 4 == 0:  # what Winograd is made for
        kernel, stride = np.array([3, 3]), np.array([1, 1])
    size = kernel + (rng.integers(0, 6), rng.integers(0, 60))
    arrays = rng.standard_normal((n, c, *size)), rng.standard_normal((k, c // groups, *kernel))
    x, weight = (a.astype(dtype) for a in arrays)
    if layout == "NHWC":
        x, weight = x.transpose(0, 2, 3, 1).copy(), weight.transpose(2, 3, 1, 0).copy()
    facts = [a.tolist() for a in (stride, padding)]
    shape = run.geometry("conv2d", 2, x.shape, weight.shape, *facts, 1, int(groups), layout)
    grad = rng.standard_normal(run.y_shape(shape, 4)).astype(dtype)
    bias = rng.standard_normal(k).astype(dtype)
    for at_end in (True, False):
        fx, fg, y, grad_x = (
            lift_like_x("", "", fenced(a, at_end), 2, layout) for a in (x, grad, 0 * grad, 0 * x)
        )
        fw, grad_weight = (lift_weight(fenced(a, at_end), 2, layout) for a in (weight, 0 * weight))
        for name, algorithm in ALGORITHMS.items():
            if name == "naive":
                continue
            if algorithm.supports(shape, x.dtype, "forward") is None:
                algorithm.forward(fx, fw, fenced(bias, at_end), False, y, shape)
            if algorithm.supports(shape, x.dtype, "input_grad") is None:
                algorithm.input_grad(fg, fw, grad_x, shape)
            if algorithm.supports(shape, x.dtype, "weight_grad") is None:
                algorithm.weight_grad(fg, fx, grad_weight, shape)
print("done")
"""

DEPTHWISE = """
rng = np.random.default_rng(0)
for number in range(80):
    dtype, layout = ("f4", "f8")[number % 2], "NCHW"
    side, stride = ((3, 1), (3, 2), (5, 2), (7, 1))[number // 2 % 4]
    c, pads = int(rng.integers(1, 4)), rng.integers(0, side + 1, (2, 2))
    size = np.maximum(side - pads.sum(1), (rng.integers(1, 6), rng.integers(1, 60))).tolist()
    x = rng.standard_normal((rng.integers(1, 3), c, *size)).astype(dtype)
    weight = rng.standard_normal((c, 1, side, side)).astype(dtype)
    padding = tuple(tuple(pair) for pair in pads.tolist())
    shape = run.geometry("conv2d", 2, x.shape, weight.shape, stride, padding, 1, c, layout)
    grad, bias = rng.standard_normal(run.y_shape(shape, 4)).astype(dtype), np.ones(c, dtype)
    for at_end in (True, False):
        fx, fg, y, grad_x = (
            lift_like_x("", "", fenced(a, at_end), 2, layout) for a in (x, grad, 0 * grad, 0 * x)
        )
        fw, grad_weight = (lift_weight(fenced(a, at_end), 2, layout) for a in (weight, 0 * weight))
        for name in ("depthwise", "direct"):
            algorithm = ALGORITHMS[name]
            algorithm.forward(fx, fw, fenced(bias, at_end), False, y, shape)
            algorithm.input_grad(fg, fw, grad_x, shape)
        ALGORITHMS["depthwise"].weight_grad(fg, fx, grad_weight, shape)
print("done")
"""

POOLINGS = """
rng = np.random.default_rng(0)
for number in range(200):
    dtype = ("f4", "f8")[number % 2]
    layout = ("NCHW", "NCHW", "NHWC")[number % 3]
    kernel, stride, dilation = (rng.integers(1, most, 2) for most in (5, 4, 3))
    kernel, stride = (kernel, stride) if number % 4 else (np.array([2, 2]), np.array([2, 2]))
    dilation = dilation if number % 4 else np.array([1, 1])
    reach = dilation * (kernel - 1) + 1
    padding = rng.integers(0, reach)
    size = reach + (rng.integers(0, 6), rng.integers(0, 70))
    channels = rng.integers(1, 150 if layout == "NHWC" and number % 2 else 4)
    x = rng.standard_normal((rng.integers(1, 3), channels, *size)).astype(dtype)
    if layout == "NHWC":
        x = x.transpose(0, 2, 3, 1).copy()
    facts = [a.tolist() for a in (kernel, stride, padding, dilation)]
    shape = windows.geometry("pool", 2, x.shape, *facts, bool(number & 4), layout)
    grad = rng.standard_normal(windows.y_shape(shape, 4)).astype(dtype)
    for at_end in (True, False):
        fx, fg, y, grad_x, places = (
            lift_like_x("", "", fenced(a, at_end), 2, layout)
            for a in (x, grad, 0 * grad, 0 * x, np.zeros(grad.shape, np.int64))
        )
        for name, algorithm in POOL_ALGORITHMS.items():
            if name == "naive":
                continue
            algorithm.max_pool(fx, y, None, shape)
            algorithm.max_pool(fx, y, places, shape)
            algorithm.avg_pool(fx, y, shape, True, 0)
            algorithm.avg_pool_backward(fg, grad_x, shape, False, 0)
        for parts in (1, 2):
            fastconv.adaptive_avg_pool2d(fenced(x, at_end), parts, layout=layout)
            fastconv.adaptive_max_pool2d(fenced(x, at_end), parts, layout=layout)
        if layout == "NCHW":
            columns = fastconv.im2col(fenced(x, at_end), facts[0], facts[3], facts[2], facts[1])
            fastconv.col2im(fenced(columns, at_end), x.shape[2:], facts[0], facts[3], facts[2], facts[1])
print("done")
"""


WIDTHS = """
# every width around vectors of 4, 8 and 16 lanes, one plane to more than a vector of them
rng = np.random.default_rng(0)
cases = [  # kernel, stride, padding, dilation
    ((1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1)),
    ((1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1)),
    ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1)),
    ((1, 2, 3), (1, 1, 3), (0, 0, 0), (1, 1, 1)),
    ((2, 2, 3), (1, 3, 4), (1, 1, 2), (2, 1, 3)),
]
for width in range(1, 41):
    for number, (kernel, stride, padding, dilation) in enumerate(cases):
        dtype = ("f4", "f8")[(width + number) % 2]
        planes = (1, 3, 17)[(width + number) % 3]
        axes = zip((2, 4, width), kernel, padding, dilation)
        size = [max(n, d * (k - 1) + 1 - 2 * p) for n, k, p, d in axes]
        windows_ = [(kernel, stride, padding, dilation)] + [(tuple(size), None, 0, 1)] * (number == 0)
        for facts in windows_:
            x = rng.standard_normal((1, planes, *size)).astype(dtype)
            try:
                shape = windows.geometry("pool", 3, x.shape, *facts, bool(width & 1), "NCHW")
            except ValueError:  # a window wholly in the padding
                continue
            grad = rng.standard_normal(windows.y_shape(shape, 5)).astype(dtype)
            for at_end in (True, False):
                fx, fg, y, grad_x, places = (
                    fenced(a, at_end) for a in (x, grad, 0 * grad, 0 * x, np.zeros(grad.shape, np.int64))
                )
                direct = POOL_ALGORITHMS["direct"]
                direct.max_pool(fx, y, None, shape)
                direct.max_pool(fx, y, places, shape)
                direct.avg_pool(fx, y, shape, True, 0)
                direct.avg_pool_backward(fg, grad_x, shape, False, 0)
                assert pooling.max_pool_backward(fg, places, grad_x)
                places[-1, -1, -1, -1, -1] = x[0, 0].size
                assert not pooling.max_pool_backward(fg, places, grad_x)
                places[-1, -1, -1, -1, -1] = -1
                assert not pooling.max_pool_backward(fg, places, grad_x)
print("done")
"""


def test_convolutions_stay_in_their_arrays() -> None:
    assert python(PAGES + CONVOLUTIONS).strip() == "done"


def test_depthwise_convolutions_stay_in_their_arrays() -> None:
    """With the sides, and the paddings, that there are kernels for."""
    assert python(PAGES + DEPTHWISE).strip() == "done"


def test_poolings_stay_in_their_arrays() -> None:
    assert python(PAGES + POOLINGS).strip() == "done"


def test_poolings_of_any_width_stay_in_their_arrays() -> None:
    assert python(PAGES + WIDTHS, seconds=300).strip() == "done"


def test_the_fence_holds() -> None:
    """Else the tests above would prove nothing: a kernel told that x is larger than it is gets killed."""
    with pytest.raises(AssertionError, match="Segmentation fault"):
        python(
            PAGES
            + """
x = fenced(np.ones((1, 1, 2, 40), "f4"), True)
shape = windows.geometry("pool", 2, (1, 1, 2, 72), 2, 2, 0, 1, False, "NCHW")
wide = np.lib.stride_tricks.as_strided(x, (1, 1, 2, 72), (288, 288, 288, 4))
y = lift_like_x("", "", np.empty((1, 1, 1, 36), "f4"), 2, "NCHW")
POOL_ALGORITHMS["direct"].max_pool(lift_like_x("", "", wide, 2, "NCHW"), y, None, shape)
"""
        )
