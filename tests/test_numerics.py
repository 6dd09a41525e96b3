"""The same bits whatever the number of threads, in every process, with packed weights; and small numbers."""

from __future__ import annotations

import numpy as np
import pytest
from harness import EVERY
from oracles import assert_same_bits
from processes import python

import fastconv
from fastconv import jit

#: Prints a line for each number of threads: a digest of every result of every algorithm, and of a network.
DIGESTS = """
import hashlib
import numpy as np
import fastconv
from fastconv import nn, threads
from fastconv.algorithms import ALGORITHMS, OPERATIONS

threads.SERIAL_WORK = 0
SHAPES = [  # x, weight, arguments
    ((3, 16, 19, 23), (24, 16, 3, 3), {"padding": 1}),
    ((9, 4, 14, 14), (5, 4, 3, 3), {}),
    ((2, 6, 17, 30), (6, 1, 5, 5), {"padding": 2, "groups": 6, "stride": 2}),
    ((1, 70, 9, 40), (33, 70, 1, 1), {}),
    ((2, 3, 40, 41), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
]

def digest():
    rng, every = np.random.default_rng(0), hashlib.sha256()
    def add(array):
        every.update(np.ascontiguousarray(array).tobytes())
    for x_shape, weight_shape, facts in SHAPES:
        for layout in ("NCHW", "NHWC"):
            x, weight = (rng.standard_normal(s).astype("f4") for s in (x_shape, weight_shape))
            if layout == "NHWC":
                x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
                weight = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
            args = {**facts, "layout": layout}
            y = fastconv.conv2d(x, weight, **args)
            shape = fastconv.explain(x.shape, weight.shape, **args).shape
            for name, algorithm in ALGORITHMS.items():
                can = [algorithm.supports(shape, x.dtype, op) is None for op in OPERATIONS]
                if can[0]:
                    plain = fastconv.conv2d(x, weight, **args, algorithm=name)
                    packed = fastconv.prepack(weight, x_shape=x.shape, **args, algorithm=name)
                    again = fastconv.conv2d(x, packed, **args, algorithm=name)
                    assert plain.tobytes() == again.tobytes(), (name, args)
                    add(plain)
                needs = (can[1], can[2], True)
                for part in fastconv.conv2d_backward(y, x, weight, **args, algorithm=name, needs=needs):
                    if part is not None:
                        add(part)
            pooled, indices = fastconv.max_pool2d(x, 3, 2, return_indices=True, layout=layout)
            add(fastconv.max_pool2d_backward(pooled, indices, x.shape, layout=layout))
            mean = fastconv.avg_pool2d(x, 3, 2, layout=layout)
            add(fastconv.avg_pool2d_backward(mean, x.shape, 3, 2, layout=layout))
            norms = fastconv.lp_pool2d(x, 3, 3, 2, layout=layout)
            add(norms)
            add(fastconv.lp_pool2d_backward(mean, x, 3, 3, 2, layout=layout))
            spread = fastconv.max_unpool2d(pooled, indices, 3, 2, output_size=x.shape, layout=layout)
            add(spread)
            add(fastconv.max_unpool2d_backward(spread, indices, layout=layout))
            levels = np.clip(x * 40, -128, 127).astype(np.int8)
            for part in fastconv.max_pool2d(levels, 3, 2, return_indices=True, layout=layout):
                add(part)
    for n, c, k in ((2, 6, 9), (1, 20, 33)):
        x, weight = rng.standard_normal((n, c, 19, 21)), rng.standard_normal((k, c, 3, 3))
        offset, mask = rng.standard_normal((n, 36, 17, 19)), rng.standard_normal((n, 18, 17, 19))
        add(fastconv.deform_conv2d(*(a.astype("f4") for a in (x, offset, weight)), mask=mask.astype("f4")))
        levels, taps = ((40 * a).astype(np.int8) for a in (x, weight))
        add(fastconv.conv_integer(levels, taps, 3, 2, padding=1))
        add(fastconv.qlinear_conv(levels, 0.5, 3, taps, 0.25, 2, 3.0, np.int8(1), padding=1))
    seed = np.random.default_rng(1)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, rng=seed), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, rng=seed),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2, rng=seed), nn.Flatten(),
        nn.Linear(8 * 144, 10, rng=seed),
    )
    images, labels = rng.standard_normal((48, 1, 28, 28)).astype("f4"), np.arange(48) % 10
    adam = nn.Adam(net)
    nn.fit(net, images, labels, loss=nn.CrossEntropy(), optimizer=adam, epochs=2, batch_size=16, seed=3)
    for array in net.state_dict().values():
        add(array)
    add(net.predict(images))
    return every.hexdigest()

for number in (1, 2, 3, 4, 1):
    with fastconv.num_threads(number):
        print(digest())
"""


@pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: it takes minutes")
def test_the_same_bits_always() -> None:
    """Two processes, five numbers of threads: one digest of all that they compute."""
    # BLAS makes no such promise for its own threads, which im2col's products are left to
    variables = {"NUMBA_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1"}
    digests = [line for _ in range(2) for line in python(DIGESTS, **variables).split()]
    assert len(digests) == 10
    assert len(set(digests)) == 1


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_denormal_numbers_are_numbers(name: str, dtype: type) -> None:
    """They are neither flushed to zero nor anything else: what is scaled by 2**n comes out scaled by 2**n."""
    x_shape, weight_shape = (8, 4, 12, 12), (4, 4, 3, 3)
    shape = fastconv.explain(x_shape, weight_shape, padding=1, dtype=dtype).shape
    if name == "winograd":
        return  # its transforms round what others keep exact
    groups = 1
    if fastconv.ALGORITHMS[name].supports(shape, np.dtype(dtype), "forward") is not None:
        weight_shape, groups = (4, 1, 3, 3), 4  # depthwise
    rng = np.random.default_rng(0)
    x, weight = (rng.integers(-3, 4, s).astype(dtype) for s in (x_shape, weight_shape))
    smallest = np.finfo(dtype).smallest_subnormal
    for scaled in ((x * smallest, weight), (x, weight * smallest)):
        y = fastconv.conv2d(*scaled, padding=1, groups=groups, algorithm=name)
        assert_same_bits(y, fastconv.conv2d(x, weight, padding=1, groups=groups, algorithm=name) * smallest)
