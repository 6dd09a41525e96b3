"""Running Python code in a process of its own, that sees the same fastconv as this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import fastconv

#: The folder that the tested package lies in.
HOME = Path(fastconv.__file__).parents[1]


def environment(home: Path = HOME, **changes: str) -> dict[str, str]:
    """The variables of this process, with fastconv taken from `home`."""
    return {**os.environ, "PYTHONPATH": str(home), "PYTHONSAFEPATH": "1", **changes}


def layer_variables(layer: str) -> dict[str, str]:
    """For a process with four threads of one of Numba's threading layers."""
    libraries = os.path.join(sys.prefix, "lib")  # where the wheel puts TBB, which the loader does not search
    searched = os.environ.get("LD_LIBRARY_PATH")
    return {
        "NUMBA_THREADING_LAYER": layer,
        "NUMBA_NUM_THREADS": "4",
        "OPENBLAS_NUM_THREADS": "1",
        "LD_LIBRARY_PATH": f"{libraries}:{searched}" if searched else libraries,
    }


def python(code: str, *options: str, home: Path = HOME, seconds: float = 120, **variables: str) -> str:
    """What the code prints; it must end well, and in time."""
    process = subprocess.Popen(
        [sys.executable, *options, "-c", dedent(code)],
        env=environment(home, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its forked children, too, which may be what hangs
        out, errors = process.communicate()
        raise AssertionError(f"not done after {seconds} s\n{out}\n{errors}") from None
    assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{errors}"
    return out


#: Defines `check`, which raises unless forward, both gradients and pooling have the right bits, in parallel.
CHECK = """
import os, sys, threading
import numpy as np
import numba
import fastconv
from fastconv import threads

threads.SERIAL_WORK = 0
rng = np.random.default_rng(0)
x = rng.integers(-3, 4, (2, 4, 12, 11)).astype("f4")
weight = rng.integers(-3, 4, (6, 2, 3, 3)).astype("f4")

def run():
    y = fastconv.conv2d(x, weight, padding=1, groups=2)
    grads = fastconv.conv2d_backward(y, x, weight, padding=1, groups=2)
    pooled, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    unpooled = fastconv.max_pool2d_backward(pooled, indices, x.shape)
    means = fastconv.avg_pool2d(x, 3, 1)
    return [y, grads.x, grads.weight, grads.bias, pooled, indices, unpooled, means]

def check(times=1):
    for _ in range(times):
        for array, wanted in zip(run(), expected):
            assert array.tobytes() == wanted.tobytes()

with fastconv.num_threads(1):
    expected = run()
naive = fastconv.conv2d(x, weight, padding=1, groups=2, algorithm="naive")
assert expected[0].tobytes() == naive.tobytes()
"""
