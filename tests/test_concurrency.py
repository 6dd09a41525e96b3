"""Everything at once, under each threading layer: threads, nested regions, forks, spawns, and an exit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from processes import CHECK, HOME, layer_variables, python

from fastconv import jit

pytestmark = [
    pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: nothing runs in parallel"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
]

#: In a file, for spawned processes import what they call.
CALLS = (
    CHECK
    + """
import random, time, warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads


@numba.njit(parallel=True)
def users_region(n):
    for _ in numba.prange(n):
        with numba.objmode():
            check()
    return n


@numba.njit(nogil=True)
def users_loop(n):
    total = 0.0
    for i in range(n):
        total += i % 7
    return total


def in_users_pool(seed):
    rng = random.Random(seed)
    for _ in range(6):
        assert users_loop(10**5) > 0
        fastconv.set_num_threads(rng.randint(1, 4))
        check()
        with fastconv.num_threads(rng.randint(1, 4)):
            check()
    return seed


def in_child(seed):
    check()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(in_users_pool, range(2))) == [0, 1]
    return seed


def main():
    try:
        numba.set_num_threads(4)  # starts the layer
    except ValueError as error:
        print("missing:", error)
        return
    # before fastconv has started any thread, and after
    assert users_region(8) == 8
    check()
    assert users_region(8) == 8
    print("nested")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(in_users_pool, range(8))) == list(range(8))
    print("threads")
    fork = get_context("fork")
    process = fork.Process(target=in_child, args=(1,))
    process.start()
    process.join()
    assert process.exitcode == 0
    with fork.Pool(3) as pool:
        assert pool.map(in_child, range(6)) == list(range(6))
    check()
    print("forked")
    with get_context("spawn").Pool(1) as pool:
        assert pool.map(in_child, range(2)) == [0, 1]
    check()
    print("spawned", numba.threading_layer())

    def forever():
        while True:
            run()

    for _ in range(3):
        threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.1)


if __name__ == "__main__":
    main()  # and the interpreter ends amid three calls
"""
)


@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_all_at_once(layer: str, tmp_path: Path) -> None:
    """Right results throughout, no process aborts or hangs, and the exit code is 0."""
    file = tmp_path / "calls.py"
    file.write_text(CALLS)
    code = f"import runpy, sys; sys.path.insert(0, {str(HOME)!r}); sys.argv = [{str(file)!r}]"
    out = python(f"{code}; runpy.run_path({str(file)!r}, run_name='__main__')", **layer_variables(layer))
    if out.startswith("missing:"):
        pytest.skip(f"Numba cannot load the threading layer {layer!r} here: {out}")
    # Numba's TBB layer prints a warning when the pool's own thread forks, as it may
    wanted = ["nested", "threads", "forked", f"spawned {layer}"]
    assert [line for line in out.splitlines() if line in wanted] == wanted, out
