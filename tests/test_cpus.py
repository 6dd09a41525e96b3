"""Kernels compiled for other CPUs than this one are right, too: each in a process of its own."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import NamedTuple

import pytest
from assembly import Loop, loops
from processes import python

from fastconv import jit

pytestmark = [
    pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: nothing is compiled"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 CPUs"),
]


class Cpu(NamedTuple):
    variables: dict[str, str]
    register_bytes: int
    dtypes: str  # which are tried
    few: str  # of them those tried with a part of the kernels: each takes half a minute to compile whole


AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2"}
SSE = {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt"}
CPUS = {
    "AVX2": Cpu(AVX2, 32, "f4 f8", few="f8"),
    "SSE": Cpu(SSE, 16, "f8", few=""),
    "generic": Cpu({"NUMBA_CPU_NAME": "generic"}, 16, "f4", few="f4"),
}

CODE = """
    import os, pathlib
    import numpy as np, fastconv
    from fastconv.kernels import implicit_gemm
    from fastconv.kernels.simd import REGISTER_BYTES

    rng = np.random.default_rng(0)
    for name in os.environ["DTYPES"].split():
        dtype, few = np.dtype(name), name in os.environ["FEW"].split()
        eps = np.finfo(dtype).eps
        for stride, padding in ((1, 1), (2, 0)):
            x = rng.standard_normal((2, 9, 13, 21)).astype(dtype)
            weight = rng.standard_normal((10, 9, 3, 3)).astype(dtype)
            shape = fastconv.explain(x.shape, weight.shape, stride, padding).shape
            names = [
                name
                for name, algorithm in fastconv.ALGORITHMS.items()
                if name != "naive" and algorithm.supports(shape, dtype, "forward") is None
            ]
            assert stride > 1 or "shift" in names
            if few:
                names = list({"gemm", "winograd"} & set(names))
            exact, scale = (
                fastconv.conv2d(a.astype(float), w.astype(float), None, stride, padding, algorithm="naive")
                for a, w in ((x, weight), (abs(x), abs(weight)))
            )
            for name in names:
                y = fastconv.conv2d(x, weight, None, stride, padding, algorithm=name)
                # Winograd's errors are those of whole tiles, and more
                bound = 500 * eps * scale.max() if name == "winograd" else 85 * eps * scale
                assert (abs(y - exact) <= bound).all(), (name, dtype, stride)
            if few:
                continue
            if stride == 1:
                fast, slow, scale = (
                    fastconv.conv2d_weight_grad(a, b, weight.shape, padding=1, algorithm=name)
                    for a, b, name in ((y, x, "winograd"), (y, x, "naive"), (abs(y), abs(x), "naive"))
                )
                assert (abs(fast - slow) <= 500 * eps * scale.max()).all(), dtype
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

        if few:
            assert (fastconv.max_pool2d(x, 3, 2) == fastconv.max_pool2d(x, 3, 2, algorithm="naive")).all()
            continue
        # what training adds
        from fastconv.algorithms import elementwise, products
        from fastconv.functional.blocks import conv_block, conv_block_backward

        x = rng.standard_normal((9, 3, 13, 21)).astype(dtype)
        weight = rng.standard_normal((10, 3, 3, 3)).astype(dtype)
        y, codes, shape = conv_block(x, weight, None, (1, 1, 1, 1), True, True)
        whole = fastconv.conv2d(x, weight, None, 1, 1, activation="relu", algorithm="shift")
        exact, places = fastconv.max_pool2d(whole, 2, return_indices=True)
        assert (y == exact).all()
        grad = rng.standard_normal(y.shape).astype(dtype)
        spread = fastconv.max_pool2d_backward(grad, places, whole.shape) * (whole > 0)
        expected = fastconv.conv2d_backward(spread, x, weight, 1, 1, algorithm="im2col")
        for got, want in zip(
            conv_block_backward(grad, x, weight, codes, shape, (True, True, True)), expected
        ):
            assert abs(got - want).max() <= 500 * eps * abs(want).max()
        bytes_, filters = rng.integers(0, 256, x.shape), rng.integers(-128, 128, weight.shape)
        sums = fastconv.conv2d(bytes_ - 7.0, filters.astype(float), padding=1, algorithm="naive")
        got = fastconv.conv_integer(bytes_.astype(np.uint8), filters.astype(np.int8), 7, padding=1)
        assert (got == sums).all()
        products.LEAST_WORK = 0
        a, b = rng.standard_normal((19, 37)).astype(dtype), rng.standard_normal((23, 37)).astype(dtype)
        assert abs(products.times_transposed(a, b, None, False) - a @ b.T).max() < 200 * eps
        assert abs(products.times(a.T, a) - a.T @ a).max() < 200 * eps
        choice = elementwise.Choice(1, 2, 1 << 31)
        kept = elementwise.kept(a.size, choice).reshape(a.shape)
        assert (elementwise.dropout(a, choice) == 2 * a * kept).all()
    library = implicit_gemm.forward.task(dtype)._compiled._library
    pathlib.Path(os.environ["ASSEMBLY"]).write_text(library.get_asm_str())
    print(REGISTER_BYTES)
"""

#: Compiles the same kernel for this CPU.
HOST = """
    import os, pathlib
    import numpy as np
    from fastconv.kernels import implicit_gemm, microkernel
    from fastconv.kernels.simd import HAS_FMA, REGISTER_BYTES

    task = implicit_gemm.forward.task(np.dtype("f4"))
    assert task.address
    pathlib.Path(os.environ["ASSEMBLY"]).write_text(task._compiled._library.get_asm_str())
    print(REGISTER_BYTES, int(HAS_FMA), microkernel.ROWS * microkernel.VECTORS)
"""


def check_assembly(file: Path, register_bytes: int, fused: bool, tile: int) -> None:
    """The micro-kernel's loops multiply whole registers, and none of them visits the stack."""
    found = [loop for loop in loops(file.read_text()) if loop.multiplies]
    assert found
    assert any(loop.multiplies % tile == 0 for loop in found)
    for loop in found:
        assert (loop.width, loop.fused) == (8 * register_bytes, fused)
        if fused:  # else a product needs a register of its own, and SSE has 16
            assert loop.spills == loop.reloads == 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder for all of them, as if the CPU had changed."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("cpu", CPUS)
def test_cpu(cpu: str, cache: str, tmp_path: Path) -> None:
    chosen = CPUS[cpu]
    variables = {"DTYPES": chosen.dtypes, "FEW": chosen.few, "ASSEMBLY": str(tmp_path / "asm")}
    out = python(CODE, FASTCONV_CACHE_DIR=cache, **variables, **chosen.variables)
    assert out.split() == [str(chosen.register_bytes)]
    check_assembly(tmp_path / "asm", chosen.register_bytes, fused=cpu == "AVX2", tile=12)


def test_assembly_for_this_cpu(cache: str, tmp_path: Path) -> None:
    out = python(HOST, FASTCONV_CACHE_DIR=cache, ASSEMBLY=str(tmp_path / "asm"))
    register_bytes, fused, tile = map(int, out.split())
    check_assembly(tmp_path / "asm", register_bytes, bool(fused), tile)


def test_loops_are_found() -> None:
    """In a text that spills."""
    assembly = """
    .LBB0_1:
        vmovups (%rsi,%rax), %ymm3
    .LBB0_2:
        vmovaps 32(%rsp), %ymm1
        vfmadd231ps (%rdi,%rax), %ymm1, %ymm2  # comment
        vmovaps %ymm2, 64(%rsp)
        addq $32, %rax
        jne .LBB0_2
        decq %rcx
        jne .LBB0_1
    .LBB0_3:
        addq $1, %rax
        jne .LBB0_3
    """
    assert loops(assembly) == [Loop(1, 256, True, 1, 1), Loop(0, 0, False, 0, 0)]
