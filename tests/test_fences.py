"""Every kernel once behind fences: none reads or writes a byte beside its arrays or its workspace.

`test_bounds.py` and the tests of single kernels go over many shapes; here is the proof that none is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from processes import python

from fastconv import jit

pytestmark = [
    pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: ctypes reads bytes, no vectors"),
    pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages"),
]

#: So that `fences` is found.
HERE = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"

TOUR = """
import gc
from itertools import product
import numpy as np
import fastconv
from fastconv import nn, threads
from fastconv.algorithms import ALGORITHMS, OPERATIONS, products, warp, winograd, winograd_blocks
from fastconv.algorithms import winograd_gradient
from fastconv.algorithms.winograd_blocks import Tiling
from fastconv.functional import run
from fastconv.jit import Kernel
from fastconv.kernels import integer, pool_places
from fences import fence_everything, fenced

fence_everything()
threads.SERIAL_WORK = products.LEAST_WORK = 0
rng = np.random.default_rng(0)
count = 0

def draw(*shape):
    global count
    count += 1
    return fenced(rng.standard_normal(shape).astype(dtype), count % 3 > 0)

def convolve(n, c, k, size, kernel, groups=1, layout="NCHW", **facts):
    shapes = (n, c, *size), (k, c // groups, *kernel)
    if layout == "NHWC":
        shapes = (n, *size, c), (*kernel, c // groups, k)
    x, weight = (draw(*shape) for shape in shapes)
    args = {"groups": groups, "layout": layout, **facts}
    geometry = run.geometry("conv2d", 2, *shapes, *({"stride": 1, "padding": 0, "dilation": 1, **args}[name]
                            for name in ("stride", "padding", "dilation", "groups", "layout")))
    grad = draw(*run.y_shape(geometry, 4))
    for name, algorithm in ALGORITHMS.items():
        if name == "naive":
            continue
        can = [algorithm.supports(geometry, dtype, op) is None for op in OPERATIONS]
        if can[0]:
            fastconv.conv2d(x, weight, draw(k), **args, algorithm=name, activation="relu")
            packed = fastconv.prepack(weight, x_shape=x.shape, **args, algorithm=name)
            fastconv.conv2d(x, packed, **args, algorithm=name)
        fastconv.conv2d_backward(grad, x, weight, **args, algorithm=name, needs=(can[1], can[2], True))

def size(least, most):
    return tuple(rng.integers(least, most, 2).tolist())

def pool(x, kernel, layout, **facts):
    y, indices = fastconv.max_pool2d(x, kernel, layout=layout, return_indices=True, **facts)
    fastconv.max_pool2d(x, kernel, layout=layout, **facts)
    fastconv.max_pool2d_backward(y, indices, x.shape, layout=layout)
    fastconv.max_unpool2d_backward(x, indices, layout=layout)
    for norm in (2, 3):
        y = fastconv.lp_pool2d(x, norm, kernel, layout=layout, **facts)
        fastconv.lp_pool2d_backward(y, x, norm, kernel, layout=layout, **facts)
    y = fastconv.avg_pool2d(x, kernel, layout=layout, **facts)
    fastconv.avg_pool2d_backward(y, x.shape, kernel, layout=layout, **facts)

for dtype in map(np.dtype, ("f4", "f8")):
    for side, stride in product((3, 5, 7), (1, 2)):  # depthwise
        for padding in (0, side // 2):
            convolve(2, 3, 3, size(side, side + 30), (side, side), 3, stride=stride, padding=padding)
    for channels, stride in product((1, 2, 3, 4, 8), (1, 2)):  # direct, gemm
        for layout in ("NCHW", "NHWC"):
            kernel = size(1, 5)
            convolve(2, channels, channels, size(5, 40), kernel, layout=layout, stride=stride, padding=1)
            convolve(1, 2 * channels, 6, size(9, 30), kernel, 2, layout=layout, stride=stride, dilation=2)
    real = winograd.tiling_of
    for tile, few, layout in product((2, 4), (0, 10**9), ("NCHW", "NHWC")):
        winograd.tiling_of = lambda shape, dtype, op: Tiling(winograd._convolution(shape, op), tile)
        winograd_blocks.FEW_TILES = few
        for _ in range(2):
            convolve(2, *size(1, 40), size(4, 40), (3, 3), layout=layout, padding=1)
    winograd.tiling_of = real
    for segments, layout in product((0, 1 << 30), ("NCHW", "NHWC")):
        winograd_gradient.SEGMENT_BYTES, winograd_gradient.CHUNK_BYTES = segments, 1
        convolve(2, 9, 20, size(4, 40), (3, 3), layout=layout, padding=1)
    for layout in ("NCHW", "NHWC"):
        for _ in range(3):
            n, c, h, w = 2, rng.integers(1, 30), rng.integers(8, 30), rng.integers(8, 60)
            x = draw(n, c, h, w) if layout == "NCHW" else draw(n, h, w, c)
            for kernel, facts in ((2, {}), (3, {"stride": 2, "padding": 1}), (3, {"stride": 1}), ((h, w), {}),
                                  ((2, 3), {"dilation": 2, "ceil_mode": True}), ((1, 5), {"stride": 7})):
                pool(x, kernel, layout, **facts)
            y, indices = fastconv.adaptive_max_pool2d(x, (3, 5), True, layout=layout)
            y = fastconv.adaptive_avg_pool2d(x, (3, 5), layout=layout)
            fastconv.adaptive_avg_pool2d_backward(y, x.shape, layout=layout)
    x = draw(2, 3, 9, 10)
    fastconv.col2im(fastconv.im2col(x, 3, 1, 2), (9, 10), 3, 1, 2)
    y, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    fastconv.max_unpool2d(y, indices, 2, output_size=(9, 10))
    x, weight = draw(2, 4, 9, 11), draw(6, 2, 3, 2)
    for masked, padding in product((True, False), (0, 2)):
        out = 7 + 2 * padding, 10 + 2 * padding
        offset = fenced(5 * draw(2, 24, *out), masked)  # two offset groups; places beyond the borders
        mask = draw(2, 12, *out) if masked else None
        fastconv.deform_conv2d(x, offset, weight, padding=padding, mask=mask)
    for side in (14, 28, 33):  # what training adds
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 5, 3, dtype=dtype), nn.BatchNorm2d(5, dtype=dtype), nn.ReLU(), nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(5 * (side // 2 - 2) ** 2, 60, dtype=dtype), nn.ReLU(), nn.Linear(60, 10, dtype=dtype),
        )
        loss, adam = nn.CrossEntropy(), nn.Adam(net)
        images = nn.RandomAffine(10, 2, 0.1)(draw(9, 1, side, side), rng)
        for _ in range(2):
            loss.forward(net.forward(images, training=True), fenced(np.arange(9), True))
            net.backward(loss.backward())
            adam.step()
        net.predict(images, batch_size=4)
    for odd in (np.inf, -np.inf, np.nan, 1e300, 2.0**31, 2.0**63):
        maps = np.full((1, 2, 3), odd)
        warp.warp(draw(1, 1, 5, 6), maps, 0.0)

def integers(*shape):
    global count
    count += 1
    limits = np.iinfo(dtype)
    array = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return fenced(array, count % 3 > 0)

for dtype in map(np.dtype, ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")):
    for layout, (height, width) in product(("NCHW", "NHWC"), ((9, 23), (28, 60))):
        x = integers(*((2, 5, height, width) if layout == "NCHW" else (2, height, width, 5)))
        for kernel, facts in ((2, {}), (3, {"stride": 2, "padding": 1}), (3, {"stride": 1}),
                              ((2, 3), {"dilation": 2, "ceil_mode": True}), ((height, width), {})):
            for asked in (False, True):
                fastconv.max_pool2d(x, kernel, layout=layout, return_indices=asked, **facts)
        for asked in (False, True):
            fastconv.adaptive_max_pool2d(x, (3, 5), asked, layout=layout)
for dtype in map(np.dtype, ("u1", "i1")):
    for n, c, k, groups, side in ((1, 3, 8, 1, 5), (2, 4, 6, 2, 3), (3, 7, 19, 1, 1), (1, 5, 5, 5, 3)):
        for stride, padding in product((1, 2), (0, side // 2)):
            x, weight = integers(n, c, *size(side, side + 30)), integers(k, c // groups, side, side)
            facts = {"stride": stride, "padding": padding, "groups": groups}
            fastconv.conv_integer(x, weight, 3, integers(k) if stride == 1 else 5, **facts)
            bias = fenced(np.arange(k, dtype=np.int32), True)
            scale = fenced(np.linspace(0.1, 1, k, dtype=np.float32), True)
            fastconv.qlinear_conv(x, 0.5, 1, weight, scale, 2, 0.3, dtype.type(4), bias, **facts)

every = [thing for thing in gc.get_objects() if isinstance(thing, Kernel)]
assert len(every) > 40
def is_used(kernel, dtype):
    if kernel in (integer.conv_integer, integer.requantize):  # sums are int32
        return dtype == np.int32
    # 8 and 16 bits have no room for places: see `pooling._by_wider_ints`
    return kernel is not pool_places.max_rows_indices or dtype.itemsize >= 4

print([(k.name, k.__doc__, str(d)) for k in every for d, task in k._tasks.items()
       if is_used(k, d) and not task._address])
"""


def test_every_kernel_stays_in_its_arrays() -> None:
    """With either dtype; those of which the address was never asked for have not run."""
    assert python(HERE + TOUR, seconds=300).strip() == "[]"


@pytest.mark.parametrize("place", ["array", "workspace", "freed"])
def test_the_fences_hold(place: str) -> None:
    """Else the test above would prove nothing."""
    wrong = {
        "array": "fenced(np.ones(3, np.float32), True).ctypes.data + 12",
        "workspace": "workspace.scratch(128) + 128",
        "freed": "workspace.scratch(1 << 20)\\nworkspace.scratch(1)",
    }[place]
    first, *rest = wrong.split("\\n")
    with pytest.raises(AssertionError, match="Segmentation fault"):
        python(
            HERE + "import ctypes\nimport numpy as np\nfrom fences import fence_everything, fenced\n"
            "from fastconv.algorithms import workspace\nfence_everything()\n"
            f"address = {first}\n"
            + "".join(f"{line}\n" for line in rest)
            + "ctypes.c_char.from_address(address).value\n"
        )
