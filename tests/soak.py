"""Does the same for a long time, and looks whether anything grows or changes.

    python tests/soak.py --seconds 600

Convolutions by every algorithm, gradients, poolings, packed weights, errors, training steps, forks and
threads that come and go: each round in the same way, so that every result must have the bits of the first
round, and memory and the number of threads must be those of the early rounds. With `--shapes`, ever
new shapes besides: what is kept of each is bounded.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, it is of this tree

import fastconv
from fastconv import nn, threads
from fastconv.algorithms import ALGORITHMS

#: What memory may grow by after the early rounds: pages that the allocator spreads over.
GROWTH = 12 << 20


def memory() -> int:
    """Bytes of this process that lie in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


class Rounds:
    """The same work over and over; `one` returns a digest of its results."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.cases = []
        for n, c, k, size, side, groups, facts in (
            (2, 16, 24, 30, 3, 1, {"padding": 1}),
            (8, 4, 8, 14, 3, 1, {}),
            (2, 12, 12, 40, 5, 12, {"padding": 2, "stride": 2}),
            (1, 32, 32, 20, 1, 1, {}),
            (2, 3, 8, 64, 7, 1, {"stride": 2, "padding": 3}),
        ):
            x = rng.standard_normal((n, c, size, size)).astype("f4")
            weight = rng.standard_normal((k, c // groups, side, side)).astype("f4")
            self.cases.append((x, weight, {**facts, "groups": groups}))
        self.images = rng.standard_normal((64, 1, 28, 28)).astype("f4")

    def one(self, churn: bool) -> str:
        digest = hashlib.sha256()
        for x, weight, facts in self.cases:
            for name in ALGORITHMS:
                if name == "naive":
                    continue
                try:
                    y = fastconv.conv2d(x, weight, **facts, algorithm=name)
                except ValueError:  # it cannot do this
                    continue
                digest.update(y)
            grads = fastconv.conv2d_backward(y, x, weight, **facts)
            packed = fastconv.prepack(weight, x_shape=x.shape, **facts)
            pooled, indices = fastconv.max_pool2d(y, 2, return_indices=True)
            fastconv.max_pool2d_backward(pooled, indices, y.shape)
            for array in (
                grads.x,
                grads.weight,
                fastconv.conv2d(x, packed, **facts),
                fastconv.avg_pool2d(y, 2),
            ):
                digest.update(array)
        rng = np.random.default_rng(1)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, rng=rng),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 169, 10, rng=rng),
        )
        nn.fit(
            net,
            self.images,
            np.arange(64) % 10,
            loss=nn.CrossEntropy(),
            optimizer=nn.Adam(net),
            epochs=1,
            batch_size=32,
            seed=0,
        )
        digest.update(net.state_dict()["0.weight"])
        if churn:
            callers = [threading.Thread(target=fastconv.conv2d, args=self.cases[0][:2]) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            if os.fork() == 0:
                x, weight, facts = self.cases[0]
                fastconv.conv2d(x, weight, **facts)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        return digest.hexdigest()


def new_shapes(count: int, seed: int) -> None:
    """Sizes as photographs have them: none twice."""
    rng = np.random.default_rng(seed)
    weight = np.ones((4, 2, 3, 3), np.float32)
    last = weight.transpose(2, 3, 1, 0).copy()
    for _ in range(count):
        x = np.ones((1, 2, *rng.integers(8, 200, 2)), np.float32)
        fastconv.conv2d(x, weight, padding=1, algorithm="gemm")
        fastconv.conv2d(x, weight, padding=1)
        fastconv.conv2d(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), last, layout="NHWC")
        y, indices = fastconv.max_pool2d(x, 2, return_indices=True)
        fastconv.max_pool2d_backward(y, indices, x.shape)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--shapes", type=int, default=0, help="new shapes each round; they fill caches")
    chosen = parser.parse_args()
    threads.SERIAL_WORK = 0
    rounds, start = Rounds(), time.monotonic()
    first = rounds.one(True)
    count, early, tasks, before = 1, 0, 0, memory()
    while time.monotonic() - start < chosen.seconds or count < 4:
        assert rounds.one(count % 4 == 0) == first, f"other results in round {count}"
        new_shapes(chosen.shapes, count)
        count += 1
        if early == 0 and count >= 3 and time.monotonic() - start > chosen.seconds / 3:
            early, tasks = memory(), thread_count()
    late = memory()
    sizes = " -> ".join(f"{size / 2**20:.1f}" for size in (before, early, late))
    seconds = time.monotonic() - start
    print(f"{count} rounds in {seconds:.0f} s: {sizes} MiB, {tasks} -> {thread_count()} threads")
    # a caller that has just ended may still have its team of threads
    assert thread_count() <= tasks + 4, "threads were left"
    if not chosen.shapes:
        assert late - early < GROWTH, "memory grows"
    return 0


if __name__ == "__main__":
    sys.exit(main())
