"""How contenders are checked and timed.

First each computes once, and its result is compared with the expected one: no time is taken of something
that computes something else. Then they run in rounds, every contender once a round, so that whatever else
the machine does meanwhile hits all alike; the medians over the rounds are reported, and only their ratios
mean something.

A contender's turn in a round is a block: a pause, in which the threads of the contender before it go to
sleep (OpenMP's wait actively for some milliseconds, on a core that the next one needs), a call that is not
timed and warms the caches, and as many calls as fill some milliseconds. Long calls do without the warm-up,
which is a small part of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.contenders import Contender, LineUp, Yardstick
from benchmarks.layers import AnyLayer, smaller

#: Seconds that a contender waits before its block.
PAUSE = 0.01
#: Seconds that the timed calls of a block take, at least.
BLOCK = 0.005
#: Seconds from which on a call is long: reading the last-level cache's size from memory takes a few percent.
LONG = 0.05
#: Most rounds of one case.
MOST_ROUNDS = 100

#: Largest error of any cell, as a multiple of the root of the mean square of the expected cells. Sums of
#: 50,000 products are among the results; a dropped tap or a rounding to 16 bits is far above.
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-11}


def as_arrays(result: Any) -> list[np.ndarray]:
    """The arrays of a result, which may be one or several of them, torch's tensors, or numbers.

    >>> as_arrays((np.zeros(2), None, 1.5))
    [array([0., 0.]), array(1.5)]
    """
    several = result if isinstance(result, (tuple, list)) else (result,)
    return [np.asarray(part) for part in several if part is not None]


def check(name: str, result: Any, expected: Any, dtype: Any) -> None:
    """Compare a result, computed in `dtype`, with the expected one.

    >>> check("mine", np.ones(3), np.ones(3), np.float64)
    >>> check("mine", np.ones(3), np.full(3, 1.1), np.float64)
    Traceback (most recent call last):
    ...
    AssertionError: mine: result 0 is wrong by 0.0909 of its size, more than 1e-11
    """
    results, wanted = as_arrays(result), as_arrays(expected)
    assert len(results) == len(wanted), f"{name}: {len(results)} results, expected {len(wanted)}"
    tolerance = TOLERANCE[np.dtype(dtype)]
    for index, (got, want) in enumerate(zip(results, wanted, strict=True)):
        assert got.shape == want.shape, f"{name}: result {index} has shape {got.shape}, expected {want.shape}"
        if want.dtype.kind == "i":
            assert np.array_equal(got, want), f"{name}: result {index} is wrong"
            continue
        scale = math.sqrt(np.square(want, dtype=np.float64).mean())
        error = float(abs(got - want).max()) / scale
        # not (error <= tolerance): a NaN must not pass
        assert error <= tolerance, (
            f"{name}: result {index} is wrong by {error:.3g} of its size, more than {tolerance:g}"
        )


def seconds_per_call(contender: Contender, calls: int, warm_up: bool) -> float:
    """Mean time of `calls` calls: one block."""
    call = contender.call
    with contender.context():
        time.sleep(PAUSE)
        if warm_up:
            call()
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return (time.perf_counter_ns() - start) / calls / 1e9


class Rounds:
    """Blocks of all contenders, round after round; every contender has run before.

    Parameters
    ----------
    contenders : dict
    seconds : float
        About how long all rounds may take.
    least : int
        Number of rounds where `seconds` do not suffice for as many.
    """

    def __init__(self, contenders: Mapping[str, Contender], seconds: float, least: int) -> None:
        self.contenders = contenders
        self.times: dict[str, list[float]] = {name: [] for name in contenders}
        #: by contender, how many calls to time, and whether to have another one first
        self.blocks: dict[str, tuple[int, bool]] = {}
        cost = 0.0
        for name, contender in contenders.items():
            once = seconds_per_call(contender, 1, warm_up=False)
            calls, warm_up = math.ceil(BLOCK / once), once < LONG
            self.blocks[name] = calls, warm_up
            cost += PAUSE + (calls + warm_up) * once
        self.rounds = max(least, min(MOST_ROUNDS, int(seconds / cost)))

    def run_one(self) -> None:
        for name, contender in self.contenders.items():
            self.times[name].append(seconds_per_call(contender, *self.blocks[name]))

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(times) for name, times in self.times.items()}


class Pace:
    """Keeps a whole session to its time: a case that starts behind schedule gets a single round.

    Parameters
    ----------
    seconds : float
        For each case, about.
    least : int
        Rounds that a case gets at least.
    """

    #: Times `seconds` is what a case may take on the average: some are slow, and all are checked first. With
    #: 150 cases of a second, the slack and a last case that is slow, a session ends within 4 minutes.
    ALLOWANCE = 1.35
    #: Times `seconds` is what a session may fall behind: the first cases import, compile and start threads.
    SLACK = 20

    def __init__(self, seconds: float, least: int) -> None:
        self.seconds = seconds
        self.least = least
        self.cases = 0
        self.start = time.perf_counter()

    def next_case(self) -> tuple[float, int]:
        """Seconds and least rounds for the next case."""
        due = self.seconds * (self.SLACK + self.cases * self.ALLOWANCE)
        self.cases += 1
        late = time.perf_counter() - self.start > due
        return (0.0, 1) if late else (self.seconds, self.least)


class Race:
    """Checks the contenders of a case and times them where pytest-benchmark is to time.

    pytest-benchmark's own table shows fastconv, one call at a time. All that a comparison needs goes into
    its ``extra_info``.

    Parameters
    ----------
    benchmark : pytest-benchmark's fixture
    pace : Pace
    peers : names of the peers that take part
    """

    def __init__(self, benchmark: Any, pace: Pace, peers: Collection[str]) -> None:
        self.benchmark = benchmark
        self.pace = pace
        self.peers = peers

    def layer(self, layer: AnyLayer) -> AnyLayer:
        """The layer itself, or where nothing is timed one with fewer pixels: the check takes less time."""
        return layer if self.benchmark.enabled else smaller(layer)

    def __call__(
        self,
        line_up: LineUp,
        expected: Sequence[np.ndarray] | np.ndarray,
        dtype: Any,
        yardstick: Yardstick | None = None,
        **info: Any,
    ) -> None:
        """Run a case.

        Parameters
        ----------
        line_up : LineUp
            The contender "fastconv" must be among them.
        expected : array or several
            The result, in float64.
        dtype : float32 or float64
            What the contenders compute in.
        yardstick : Yardstick, optional
            What fastconv's rate is measured against.
        **info
            What tables need to know: operation, layer, net, shape, algorithm, work (the amount), unit.
        """
        for name, contender in line_up.contenders.items():
            with contender.context():
                check(name, contender.logical(contender.call()), expected, dtype)
        self.benchmark.group = info["operation"]
        if not self.benchmark.enabled:
            self.benchmark.pedantic(line_up.contenders["fastconv"].call)
            return
        # next to fastconv: what others leave behind in the threads and caches is not the yardstick's to bear
        runners = {"fastconv": line_up.contenders["fastconv"]}
        if yardstick is not None:
            runners[yardstick.name] = Contender(yardstick.call)
        runners.update(line_up.contenders)
        rounds = Rounds(runners, *self.pace.next_case())
        self.benchmark.pedantic(
            line_up.contenders["fastconv"].call, setup=rounds.run_one, rounds=rounds.rounds
        )
        times = rounds.medians()
        if yardstick is not None:
            del times[yardstick.name]
            # the fastest round: a bound is no bound if something else took part of the cores
            best = min(rounds.times[yardstick.name])
            info["yardstick"] = {"name": yardstick.name, "seconds": best, "work": yardstick.work}
        self.benchmark.extra_info.update(
            info,
            fastconv=times.pop("fastconv"),
            peers=times,
            left_out=line_up.left_out,
            rounds=rounds.rounds,
        )
