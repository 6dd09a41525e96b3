"""Under what conditions times were taken: what a reader must know to judge a ratio."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numba

import fastconv
from benchmarks.yardsticks import measured_bandwidth, measured_peaks

#: Environment variables that make a comparison fair, to be set before Python starts.
FAIR = {
    # memory stays with the process: else each large result costs whoever allocates it page faults
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    # OpenBLAS's threads wait actively for 2^20 ticks and not 2^28, during which others run
    "OPENBLAS_THREAD_TIMEOUT": "20",
}

#: Others that times depend on.
RECORDED = (*FAIR, "OMP_WAIT_POLICY")

PACKAGES = (
    "fastconv",
    "numba",
    "numpy",
    "scipy",
    "torch",
    "onnxruntime",
    "openvino",
    "opencv-python-headless",
    "jax",
)


def missing_settings() -> list[str]:
    """The settings of `FAIR` that are not in force, as one would type them."""
    return [f"{name}={value}" for name, value in FAIR.items() if os.environ.get(name) != value]


def versions() -> dict[str, str]:
    """Of each package, or "not installed"."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["fastconv"] = fastconv.__version__
    return found


def describe() -> dict[str, Any]:
    """All conditions, for a JSON file."""
    try:
        layer = numba.threading_layer()
    except ValueError:  # nothing has run in parallel
        layer = "not started"
    return {
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": fastconv.get_num_threads(),
        "threading layer": layer,
        "BLAS": _blas(),
        "environment": {name: os.environ.get(name, "not set") for name in RECORDED},
        "weights prepacked": "by onnxruntime, openvino, opencv and 'fastconv prepacked', before the clock "
        "starts; by all others in every call",
        "FMA peak": measured_peaks(),
        "memory": measured_bandwidth(),
        "times": "medians of interleaved rounds",
    }


def _threadpoolctl() -> Any:
    try:
        return importlib.import_module("threadpoolctl")
    except ImportError:
        return None


def _blas() -> str:
    pools = _threadpoolctl()
    if pools is None:
        return "threads unknown: threadpoolctl is not installed"
    found = {
        f"{pool['internal_api']} {pool['version']} with {pool['num_threads']} threads"
        for pool in pools.threadpool_info()
        if pool["user_api"] == "blas"
    }
    return ", ".join(sorted(found))


@contextlib.contextmanager
def same_threads() -> Iterator[None]:
    """Give BLAS as many threads as fastconv has, where threadpoolctl is installed."""
    pools = _threadpoolctl()
    if pools is None:
        yield
        return
    with pools.threadpool_limits(fastconv.get_num_threads(), user_api="blas"):
        yield
