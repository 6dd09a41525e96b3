"""What the first call in a process costs: import, and the first conv2d with and without machine code on disk.

    python benchmarks/first_call.py [--processes N]

Every number is the median over fresh processes. `import numba`, which fastconv cannot do without, is given
apart from what fastconv adds.
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

#: What is timed, in a process of its own: the seconds of each step as JSON.
PROGRAM = """
import json, time
steps, start = {}, time.perf_counter()

def done(step):
    global start
    now = time.perf_counter()
    steps[step] = now - start
    start = time.perf_counter()

import numba
done("import numba")
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
print(json.dumps(steps))
"""

Times = dict[str, float]


def measure(cache: Path) -> Times:
    """Run the program with machine code kept in `cache`."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "FASTCONV_CACHE_DIR": str(cache), "PYTHONPATH": path}
    command = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    steps: Times = json.loads(output)
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
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        empty = [measure(root / f"empty-{i}") for i in range(options.processes)]
        warm = [measure(root / "empty-0") for _ in range(options.processes)]
    columns = {"empty cache": medians(empty), "warm cache": medians(warm)}
    print(f"{'seconds':<16}" + "".join(f"{title:>14}" for title in columns))
    for step in columns["empty cache"]:
        print(f"{step:<16}" + "".join(f"{column[step]:14.4f}" for column in columns.values()))


if __name__ == "__main__":
    main()
