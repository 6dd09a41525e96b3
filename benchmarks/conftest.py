"""When benchmarks are timed, and what is written beside the times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import conditions
from benchmarks.peers import DEFAULT_PEERS, PEERS
from benchmarks.race import Pace, Race
from fastconv.jit import DISABLED

#: Options of pytest-benchmark without which nobody wants to wait for times.
_ASKS_FOR_TIMES = (
    "benchmark_only",
    "benchmark_enable",
    "benchmark_json",
    "benchmark_save",
    "benchmark_autosave",
    "benchmark_compare",
)


def _timed(config: pytest.Config) -> bool:
    return any(config.getoption(option) for option in _ASKS_FOR_TIMES)


def chosen_peers(names: str) -> tuple[str, ...]:
    """The peers that a comma-separated list names.

    >>> chosen_peers("torch,numpy"), chosen_peers("none"), chosen_peers("all") == PEERS
    (('numpy', 'torch'), (), True)
    """
    chosen = set(names.split(","))
    unknown = chosen - {"all", "none", *PEERS}
    if unknown:
        raise pytest.UsageError(
            f"--peers: unknown {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}"
        )
    return PEERS if "all" in chosen else tuple(name for name in PEERS if name in chosen)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("benchmark").addoption(
        "--peers",
        default=",".join(DEFAULT_PEERS),
        metavar="NAMES",
        help=f'who else computes: "all", "none", or some of {",".join(PEERS)} (default: %(default)s)',
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    if not _timed(config):
        return []
    versions = conditions.versions()
    peers = chosen_peers(config.getoption("peers"))
    lines = ["peers: " + (", ".join(f"{name} {versions.get(name, '')}" for name in peers) or "none")]
    missing = conditions.missing_settings()
    if missing:
        lines.append("for a fair comparison start with " + " ".join(missing))
    return lines


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["conditions"] = conditions.describe()
    del machine_info["node"]  # a host's name says nothing about times


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DISABLED:
        for item in items:
            if "race" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="takes too long without the compiler"))


@pytest.fixture
def benchmark(benchmark: Any, pytestconfig: pytest.Config) -> Any:
    """pytest-benchmark's, which without one of its options runs each case once, without the clock."""
    if not _timed(pytestconfig):
        benchmark.disabled = True
    return benchmark


@pytest.fixture(scope="session")
def pace(pytestconfig: pytest.Config) -> Iterator[Pace]:
    """One for all cases, which run with as many BLAS threads as fastconv has."""
    with conditions.same_threads():
        seconds = float(pytestconfig.getoption("benchmark_max_time"))
        yield Pace(seconds, pytestconfig.getoption("benchmark_min_rounds"))


@pytest.fixture
def race(benchmark: Any, pace: Pace, pytestconfig: pytest.Config) -> Race:
    return Race(benchmark, pace, chosen_peers(pytestconfig.getoption("peers")))
