"""What `fastconv.dask` costs: an image beyond memory, a batch over processes, training on a cluster.

    python benchmarks/beyond_memory.py [--side N] [--limit GIB] [--rounds N]

The image is made chunk by chunk, convolved with a 5 x 5 filter and pooled, in a process that may not have
more than `--limit` GiB of addresses; so also by SciPy with dask's `map_overlap`, and whole, by NumPy arrays,
with that limit and without. Peaks are those
of the resident memory. The batch is a layer of ResNet-50, forward, from memory to memory: by this process
with two threads, and by two processes of one thread each, in interleaved rounds. The training is an epoch of
the demo, its second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, wait

import fastconv
from fastconv import mnist, nn
from fastconv.dask import conv2d, fit
from fastconv.datasets import load_digits

#: Of both programs: what is filtered, and how. The image is 1 and a product of two waves.
PICTURE = """
import json, resource, sys, time
import numpy as np
side, limit = int(sys.argv[1]), float(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (int(limit * 2**30),) * 2)
weight = np.random.default_rng(0).standard_normal((1, 1, 5, 5), np.float32)

def rows(first, last):
    return np.sin(np.arange(first, last, dtype=np.float32) / 7)

def done(mean, start):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"mean": float(mean), "seconds": time.perf_counter() - start, "peak": peak * 1024}))
"""

#: Of what works chunk by chunk.
LAZY = """
import dask, dask.array as da

def draw(block_info):
    (top, bottom), (left, right) = block_info[None]["array-location"][2:]
    return (1 + rows(top, bottom)[:, None] * rows(left, right))[None, None]

def mean(side, chunk=2048):
    chunks = ((1,), (1,), *(da.core.normalize_chunks(chunk, (side,)) * 2))
    image = da.map_blocks(draw, chunks=chunks, dtype="f4", meta=np.empty((0,) * 4, "f4"))
    return filtered(image).mean(dtype="f8").compute()

dask.config.set(scheduler="threads", num_workers=2)
mean(4096)  # what is compiled at the first call is not of interest here
start = time.perf_counter()
done(mean(side), start)
"""

CHUNKED = (
    """
from fastconv.dask import avg_pool2d, conv2d

def filtered(image):
    return avg_pool2d(conv2d(image, weight, padding="same"), 8)
"""
    + LAZY
)

#: The usual way with dask: a function of NumPy arrays on chunks with a halo.
OVERLAP = (
    """
from functools import partial
from scipy.ndimage import correlate

def filtered(image):
    convolve = partial(correlate, weights=weight, mode="constant")
    y = image.map_overlap(convolve, depth=(0, 0, 2, 2), boundary=0, dtype="f4", meta=np.empty((0,) * 4, "f4"))
    return da.coarsen(np.mean, y, {2: 8, 3: 8})
"""
    + LAZY
)

WHOLE = """
from fastconv import avg_pool2d, conv2d

def mean(side):
    image = (1 + rows(0, side)[:, None] * rows(0, side))[None, None]
    return avg_pool2d(conv2d(image, weight, padding="same"), 8).mean(dtype="f8")

mean(4096)
start = time.perf_counter()
try:
    done(mean(side), start)
except MemoryError as error:
    print(json.dumps({"error": str(error)}))
"""


def picture(program: str, side: int, limit: float) -> dict[str, Any]:
    """Filter an image of side x side cells in a process of its own."""
    command = [sys.executable, "-c", PICTURE + program, str(side), str(limit)]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return result


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def batches(client: Any, rounds: int) -> dict[str, float]:
    """A convolution of 128 images, in this process and on the cluster."""
    shape, chunks = (128, 64, 56, 56), (32, 64, 56, 56)
    lazy = da.random.default_rng(0).standard_normal(shape, dtype="f4", chunks=chunks)
    x = lazy.compute()
    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3), np.float32)
    spread, here = client.persist(lazy), da.from_array(x, chunks=chunks)
    wait(spread)

    def in_threads() -> object:
        return dask.persist(conv2d(here, weight, padding=1), scheduler="threads", num_workers=2)

    return interleaved(
        {
            "NumPy arrays, 2 threads": lambda: fastconv.conv2d(x, weight, padding=1),
            "dask arrays, 2 threads": in_threads,
            "dask arrays, 2 processes": lambda: wait(client.persist(conv2d(spread, weight, padding=1))),
        },
        rounds,
    )


def epochs(client: Any, model: str) -> dict[str, float]:
    """Seconds of the second of two epochs of the demo."""
    digits = load_digits()
    ways = {"one process, 2 threads": nn.fit, "2 processes": partial(fit, client=client)}
    return {
        name: mnist.train(digits, model, epochs=2, fit=way).history.seconds[1] for name, way in ways.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=32_768, help="of the image, in cells; default: 32768")
    parser.add_argument("--limit", type=float, default=2.0, help="GiB of addresses; default: 2")
    parser.add_argument("--rounds", type=int, default=15, help="of the batch; default: 15")
    arguments = parser.parse_args(argv)
    side, limit = arguments.side, arguments.limit

    print(f"an image of {side} x {side}, {side * side * 4 / 2**30:.1f} GiB: 5 x 5 filter, 8 x 8 mean")
    for name, program, most in (
        (f"fastconv.dask, within {limit:g} GiB", CHUNKED, limit),
        (f"map_overlap and SciPy, within {limit:g} GiB", OVERLAP, limit),
        (f"NumPy arrays, within {limit:g} GiB", WHOLE, limit),
        ("NumPy arrays, no limit", WHOLE, 0),
    ):
        result = picture(program, side, most)
        text = result.get("error") or (
            f"{result['seconds']:.1f} s, peak {result['peak'] / 2**30:.2f} GiB, mean {result['mean']:.8f}"
        )
        print(f"  {name:36} {text}")

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        for title, times in (
            ("128 images of 64 x 56 x 56, 3 x 3 filters", batches(client, arguments.rounds)),
            ("an epoch of 4,000 digits, pytorch net, batches of 64", epochs(client, "pytorch")),
            ("an epoch of 4,000 digits, modern net, batches of 100", epochs(client, "modern")),
        ):
            print(title)
            first = next(iter(times.values()))
            for name, seconds in times.items():
                print(f"  {name:36} {seconds * 1000:8.1f} ms, {seconds / first:.2f} of the first")
    return 0


if __name__ == "__main__":
    sys.exit(main())
