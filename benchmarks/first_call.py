"""What the first call in a process costs: import, and the first conv2d with and without machine code on disk.

    python benchmarks/first_call.py [--processes N]

Every number is the median over fresh processes. `import numba`, which fastconv cannot do without, is given
apart; "beyond numba" is all that comes after it, up to the first result. To compare with: the first call of
an `njit` function that adds two numbers ("trivial njit"), in processes of its own. With machine code on disk
most of that is imports, and with SciPy installed half of it is SciPy's, which Numba looks for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

#: The beginning of a program that is timed, in a process of its own.
BEGIN = """
import json, time
steps, start = {}, time.perf_counter()

def done(step):
    global start
    steps[step] = time.perf_counter() - start
    start = time.perf_counter()

import numba
done("import numba")
"""

#: What is timed: the seconds of each step as JSON.
FASTCONV = """
import fastconv
done("import fastconv")
import numpy as np
rng = np.random.default_rng(0)
x = rng.standard_normal((32, 8, 14, 14), np.float32)
weight = rng.standard_normal((16, 8, 3, 3), np.float32)
start = time.perf_counter()
fastconv.conv2d(x, weight, padding=1)
done("first conv2d")
fastconv.conv2d(x, weight, padding=1)
done("second conv2d")
steps["beyond numba"] = steps["import fastconv"] + steps["first conv2d"]
print(json.dumps(steps))
"""

#: What a first call costs at least, and the name of that step.
FLOOR = "trivial njit"
TRIVIAL = f"""
import trivial
start = time.perf_counter()
trivial.add(1, 2)
done("{FLOOR}")
print(json.dumps(steps))
"""

#: The module of that function: Numba keeps machine code only of functions in files.
TRIVIAL_MODULE = """
import numba

@numba.njit(cache=True)
def add(a, b):
    return a + b
"""

Times = dict[str, float]


def measure(program: str, folder: Path) -> Times:
    """Run a program with machine code kept in `folder`, from where it imports before all else."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "FASTCONV_CACHE_DIR": str(folder), "PYTHONPATH": path}
    # without bytecode each process would compile fastconv's Python anew: 0.17 s to import it instead of 0.06
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", BEGIN + program]
    result = subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, text=True)
    steps: Times = json.loads(result.stdout)
    return steps


def medians(runs: Sequence[Times]) -> Times:
    """Per step.

    >>> medians([{"import": 1.0}, {"import": 3.0}, {"import": 2.0}])
    {'import': 2.0}
    """
    return {step: statistics.median(run[step] for run in runs) for step in runs[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the first call in a process costs.")
    parser.add_argument("--processes", type=int, default=5, help="to take the median of (default: 5)")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error("--processes must be at least 1")
    processes = range(options.processes)
    with tempfile.TemporaryDirectory() as folder:
        caches = [Path(folder, str(i)) for i in processes]
        for cache in caches:
            cache.mkdir()
        (caches[0] / "trivial.py").write_text(TRIVIAL_MODULE)
        empty = medians([measure(FASTCONV, cache) for cache in caches])
        warm = medians([measure(FASTCONV, caches[0]) for _ in processes])
        empty[FLOOR] = measure(TRIVIAL, caches[0])[FLOOR]
        warm[FLOOR] = medians([measure(TRIVIAL, caches[0]) for _ in processes])[FLOOR]
    print(f"{'seconds':<16}{'empty cache':>14}{'warm cache':>14}")
    for step, seconds in empty.items():
        print(f"{step:<16}{seconds:14.4f}{warm[step]:14.4f}")


if __name__ == "__main__":
    main()
