"""Kernels compiled for other CPUs than this one are right, too: each in a process of its own."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from processes import python

from fastconv import jit

pytestmark = [
    pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: nothing is compiled"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 CPUs"),
]

CPUS = {
    "AVX2": ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2"}, 32),
    "SSE": ({"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt"}, 16),
    "generic": ({"NUMBA_CPU_NAME": "generic"}, 16),
}

CODE = """
    import numpy as np, fastconv
    from fastconv.kernels.simd import REGISTER_BYTES

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        eps = np.finfo(dtype).eps
        for stride, padding in ((1, 1), (2, 0)):
            x = rng.standard_normal((2, 9, 13, 21)).astype(dtype)
            weight = rng.standard_normal((10, 9, 3, 3)).astype(dtype)
            names = [name for name in fastconv.ALGORITHMS if name not in ("naive", "depthwise")]
            exact, scale = (
                fastconv.conv2d(a.astype(float), w.astype(float), None, stride, padding, algorithm="naive")
                for a, w in ((x, weight), (abs(x), abs(weight)))
            )
            for name in names:
                y = fastconv.conv2d(x, weight, None, stride, padding, algorithm=name)
                assert (abs(y - exact) <= 85 * eps * scale).all(), (name, dtype, stride)
            terms = 2 * y[:, 0].size
            facts = {"stride": stride, "padding": padding, "groups": 9}
            depthwise = [
                [
                    fastconv.conv2d(x, weight[:9, :1], **facts, algorithm=name),
                    *fastconv.conv2d_backward(y[:, :9], x, weight[:9, :1], **facts, algorithm=name),
                ]
                for name in ("depthwise", "naive")
            ]
            for fast, slow in zip(*depthwise):
                assert (abs(fast - slow) <= terms * eps * abs(slow).max()).all(), (dtype, stride)
            for kernel in (2, 3):
                args = (x, kernel, stride)
                y, indices = fastconv.max_pool2d(*args, return_indices=True)
                exact_y, exact_indices = fastconv.max_pool2d(*args, return_indices=True, algorithm="naive")
                assert (y == exact_y).all() and (indices == exact_indices).all()
                assert (fastconv.max_pool2d(*args) == exact_y).all()
                mean = fastconv.avg_pool2d(*args)
                assert (abs(mean - fastconv.avg_pool2d(*args, algorithm="naive")) <= 20 * eps * 4).all()
                back = [
                    fastconv.avg_pool2d_backward(y, x.shape, kernel, stride, algorithm=name)
                    for name in ("auto", "naive")
                ]
                assert (abs(back[0] - back[1]) <= 20 * eps * 16).all()
    print(REGISTER_BYTES)
"""


@pytest.mark.parametrize("cpu", CPUS)
def test_cpu(cpu: str, tmp_path: Path) -> None:
    variables, register_bytes = CPUS[cpu]
    assert python(CODE, FASTCONV_CACHE_DIR=str(tmp_path), **variables).split() == [str(register_bytes)]
