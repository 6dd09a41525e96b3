"""How many threads run, and that nothing breaks: several callers at once, every layer, a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
from oracles import assert_same_bits
from processes import CHECK, layer_variables, python

import fastconv
from fastconv import jit, threads
from fastconv.algorithms import gemm, implicit_gemm
from fastconv.kernels import lowering

compiles = pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: nothing runs in parallel")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

MOST = numba.config.NUMBA_NUM_THREADS


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = fastconv.get_num_threads()
    yield
    fastconv.set_num_threads(before)


# --- how many -----------------------------------------------------------------------------------


def test_default_is_all() -> None:
    assert fastconv.get_num_threads() == MOST


@pytest.mark.parametrize("n", [1, MOST, np.int64(1)])
def test_set_num_threads(n: int) -> None:
    fastconv.set_num_threads(n)
    assert fastconv.get_num_threads() == n
    assert type(fastconv.get_num_threads()) is int


def test_num_threads_is_for_a_block() -> None:
    with fastconv.num_threads(1):
        assert fastconv.get_num_threads() == 1
        with fastconv.num_threads(MOST):
            assert fastconv.get_num_threads() == MOST
        assert fastconv.get_num_threads() == 1
    assert fastconv.get_num_threads() == MOST
    with pytest.raises(KeyError), fastconv.num_threads(1):
        raise KeyError
    assert fastconv.get_num_threads() == MOST


def test_num_threads_is_for_a_thread_and_set_for_the_process() -> None:
    def elsewhere() -> int:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(fastconv.get_num_threads()))
        thread.start()
        thread.join()
        return seen[0]

    with fastconv.num_threads(1):
        assert elsewhere() == MOST
    fastconv.set_num_threads(1)
    assert elsewhere() == 1


@pytest.mark.parametrize("function", ["set_num_threads", "num_threads"])
@pytest.mark.parametrize("wrong", [0, -1, MOST + 1, 10**9, 1.0, True, None, "2"])
def test_wrong_number(function: str, wrong: Any) -> None:
    if type(wrong) is int:
        error, message = ValueError, f"from 1 to {MOST} .*, got {wrong}"
    else:
        error, message = TypeError, f"an int, got {wrong!r}"
    with pytest.raises(error, match=f"^{function}: n must be {message}"):  # noqa: SIM117
        with getattr(fastconv, function)(wrong):
            pass
    assert fastconv.get_num_threads() == MOST


@compiles
def test_no_more_tasks_than_threads_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """And small work stays on the calling thread."""
    parallel: list[int] = []
    real = threads._run_parallel

    def record(address: int, params: int, tasks: int) -> None:
        parallel.append(tasks)
        real(address, params, tasks)

    x = np.ones((1, 8, 6, 6), np.float32)
    threads.start()
    monkeypatch.setattr(threads, "_run_parallel", record)
    fastconv.im2col(x, 3)
    assert parallel == []
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    monkeypatch.setattr(threads, "_default_threads", 5)
    fastconv.im2col(x, 3)  # 72 rows
    for planes in (3, 1):
        indices = np.zeros((1, planes, 3, 3), np.int64)
        fastconv.max_pool2d_backward(indices.astype(np.float32), indices, (1, planes, 6, 6))
    assert parallel == [5, 3]
    with fastconv.num_threads(1):
        fastconv.im2col(x, 3)
    assert parallel == [5, 3]


@compiles
@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 100])
def test_same_bits_whatever_the_tasks(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tasks than threads, and numbers that do not divide the work."""
    x = np.random.default_rng(0).standard_normal((2, 5, 9, 8)).astype(np.float32)
    columns = fastconv.im2col(x, 3, padding=1)
    folded = fastconv.col2im(columns, (9, 8), 3, padding=1)
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    monkeypatch.setattr(threads, "_default_threads", tasks)
    assert_same_bits(fastconv.im2col(x, 3, padding=1), columns)
    assert_same_bits(fastconv.col2im(columns, (9, 8), 3, padding=1), folded)


@compiles
def test_numbas_own_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the user's kernels, and may be lower than ours."""
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    x = np.ones((2, 5, 9, 8), np.float32)
    expected = fastconv.im2col(x, 3)
    before = numba.get_num_threads()
    try:
        for number in (1, MOST):
            numba.set_num_threads(number)
            assert_same_bits(fastconv.im2col(x, 3), expected)
            assert numba.get_num_threads() == number
    finally:
        numba.set_num_threads(before)


def test_a_kernel_wants_every_parameter() -> None:
    names = lowering.LOWERING.names
    values = dict.fromkeys(names, 0)
    assert lowering.im2col.pack(**values).size == len(names)
    del values["depth"]
    with pytest.raises(TypeError, match=r"im2col: missing or unknown parameters \['deepness', 'depth'\]"):
        lowering.im2col.pack(**values, deepness=1)


# --- in processes of their own ------------------------------------------------------------------


@compiles
@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_several_callers_at_once(layer: str) -> None:
    """Four Python threads, that start together and call over and over; workqueue alone would abort."""
    out = python(
        CHECK
        + """
try:
    numba.set_num_threads(1)  # starts the layer
except ValueError as error:
    print("missing:", error)
    sys.exit()
numba.set_num_threads(4)
failures, together = [], threading.Barrier(4)

def work():
    try:
        together.wait()
        check(25)
        with fastconv.num_threads(2):
            check(5)
        assert numba.get_num_threads() == 4
    except BaseException as error:
        failures.append(repr(error))

callers = [threading.Thread(target=work) for _ in range(4)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
assert threads._started
print(numba.threading_layer(), *failures)
""",
        **layer_variables(layer),
    ).strip()
    if out.startswith("missing:"):
        pytest.skip(f"Numba cannot load the threading layer {layer!r} here: {out}")
    assert out == layer


@compiles
@forks
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_fork_after_parallel_calls(layer: str) -> None:
    """The child is not killed and does not hang; nor is the parent disturbed, nor the child's child."""
    out = python(
        CHECK
        + """
import warnings
from multiprocessing import get_context
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads

def grandchild():
    check()
    pid = os.fork()
    if pid == 0:
        check()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_pool(number):
    check()
    return threads._forked_after_start

check()
assert not threads._forked_after_start
pid = os.fork()
if pid == 0:
    code = grandchild()
    os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
check(3)
with get_context("fork").Pool(2) as pool:
    print(pool.map(in_pool, range(4)))
check(3)
""",
        NUMBA_THREADING_LAYER=layer,
        NUMBA_NUM_THREADS="4",
        OPENBLAS_NUM_THREADS="1",
    )
    assert out.split("\n")[:2] == ["7", str([True] * 4)]


@compiles
@forks
def test_fork_before_parallel_calls() -> None:
    """A child of a process that has not started any threads starts its own, as its parent does."""
    out = python(
        CHECK
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)

assert not threads._started
pid = os.fork()
check(3)
assert threads._started and not threads._forked_after_start
if pid == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""",
        NUMBA_NUM_THREADS="4",
        OPENBLAS_NUM_THREADS="1",
    )
    assert out.strip() == "7"


@compiles
@forks
def test_fork_while_another_thread_is_in_a_call() -> None:
    """Whatever lock that thread holds, the child does not wait for it."""
    out = python(
        CHECK
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)

check()
stop = threading.Event()

def work():
    while not stop.is_set():
        check()

caller = threading.Thread(target=work)
caller.start()
codes = set()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        check()
        os._exit(7)
    codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
caller.join()
print(codes)
""",
        NUMBA_THREADING_LAYER="workqueue",
        NUMBA_NUM_THREADS="4",
        OPENBLAS_NUM_THREADS="1",
    )
    assert out.strip() == "{7}"


def test_two_kernels_in_one_go() -> None:
    """Only those of one task: the second starts when the first has ended."""
    shape = fastconv.explain((1, 1, 8, 8), (1, 1, 3, 3)).shape
    conv = gemm.forward_convolution(shape)
    small = implicit_gemm.prepare(conv, np.dtype(np.float32), True, False, 1)
    assert small.both is not None
    assert small.pack.tasks == small.forward.tasks == 1
    large = implicit_gemm.prepare(conv, np.dtype(np.float32), True, False, 2)
    assert large.both is None
    with pytest.raises(ValueError, match="one task"):
        threads.Both(large.pack, large.forward)
