"""Threads: how many, and the one launcher that runs every kernel.

`launch` is safe to call from several Python threads, under each of Numba's threading layers, and in a
forked child:

- OpenMP and TBB may be entered by several threads at once. Numba's own "workqueue" layer aborts the
  process when that happens, so under it parallel launches take turns; and what is called from within a
  parallel region of the user's own, on a thread that Python did not start, runs serially.
- A child forked after the parent has used its threads would be killed (OpenMP) or wait for threads that
  it did not inherit: there everything runs serially.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numba
import numpy as np

from fastconv.arguments import canonical, shown
from fastconv.jit import DISABLED, Kernel, address_of, call_task, compiled, ints

#: Work below this many elementary steps (cells moved or multiplied) runs on the calling thread:
#: waking another costs some microseconds.
SERIAL_WORK = 32_768

#: How often one of GNU's threads looks whether there is work before it sleeps.
SPINS = "2000"

_default_threads: int = numba.config.NUMBA_NUM_THREADS
_local_threads: ContextVar[int | None] = ContextVar("fastconv_threads", default=None)
_start_lock = threading.Lock()
_no_turns = contextlib.nullcontext()
_turns: contextlib.AbstractContextManager[Any] = _no_turns
_started = False
_forked_after_start = False


def get_num_threads() -> int:
    """Number of threads that a call made here would use.

    Returns
    -------
    int

    Examples
    --------
    >>> get_num_threads() >= 1
    True
    """
    local = _local_threads.get()
    return _default_threads if local is None else local


def set_num_threads(n: int) -> None:
    """Set the number of threads for the whole process.

    Parameters
    ----------
    n : int
        1 up to the number that Numba started with (NUMBA_NUM_THREADS, by default every core).

    Raises
    ------
    TypeError, ValueError
        If `n` is no int, or out of range.

    Examples
    --------
    >>> set_num_threads(get_num_threads())
    """
    global _default_threads
    _default_threads = _checked(n, "set_num_threads")


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Context manager: use `n` threads within the block, in this Python thread alone.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        If `n` is no int, or out of range.

    Examples
    --------
    >>> with num_threads(1):
    ...     get_num_threads()
    1
    """
    token = _local_threads.set(_checked(n, "num_threads"))
    try:
        yield
    finally:
        _local_threads.reset(token)


def _checked(n: int, function: str) -> int:
    most = numba.config.NUMBA_NUM_THREADS
    number = canonical(n)
    if not isinstance(number, int):
        raise TypeError(f"{function}: n must be an int, got {shown(n)}")
    if not 1 <= number <= most:
        raise ValueError(
            f"{function}: n must be from 1 to {most} (NUMBA_NUM_THREADS sets the upper limit), got {shown(n)}"
        )
    return number


def task_count(work: int, units: int) -> int:
    """Into how many tasks to cut a kernel's work.

    `work` counts elementary steps, such as cells moved or multiplications: too little to share is done on the
    calling thread. `units` counts the independent parts.
    """
    if DISABLED or work < SERIAL_WORK or _forked_after_start:
        return 1
    return max(1, min(get_num_threads(), units))


class Prepared:
    """A kernel with all its parameters but the addresses of the arrays, to be run again and again.

    `addresses` names the fields of the kernel's record that `run` gets, which are the first ones.
    """

    def __init__(self, kernel: Kernel, dtype: np.dtype, tasks: int, addresses: str, **params: int) -> None:
        names = addresses.split()
        self._holes = len(names)
        if tuple(names) != (kernel.record.names or ())[: self._holes]:
            raise TypeError(f"{kernel.name}: the addresses must be the first of the parameters")
        self._record = kernel.pack(**dict.fromkeys(names, 0), **params)
        self._task = kernel.task(dtype)
        self.tasks = tasks

    def record(self, *addresses: int) -> np.ndarray:
        """The kernel's record with these addresses."""
        record = self._record.copy()
        record[: self._holes] = addresses
        return record

    def run(self, *addresses: int) -> None:
        """Run the kernel. The caller keeps every array behind an address alive."""
        record = self.record(*addresses)
        tasks = self.tasks
        if DISABLED:
            self._task.function(address_of(record), 0, 1)
        elif tasks == 1 or _forked_after_start:
            _run_serially(self._task.address, address_of(record), tasks)
        else:
            _launch(self._task.address, address_of(record), tasks)


class Both:
    """A kernel and another after it, each of one task: to start one takes as long as a small one runs."""

    def __init__(self, first: Prepared, second: Prepared) -> None:
        if not first.tasks == second.tasks == 1:
            raise ValueError("only kernels of one task follow each other on one thread")
        self._first, self._second = first, second
        self._records = np.concatenate([first._record, second._record])
        words = (len(first._record), len(self._records), first._holes)
        self._facts = (address_of(self._records), *words)

    @property
    def size(self) -> int:
        """Bytes of memory that `run` needs."""
        return self._records.nbytes

    def run(self, memory: int, addresses: tuple[int, ...]) -> None:
        """Run both, with the addresses that the first gets and those of the second."""
        if DISABLED:
            holes = self._first._holes
            self._first.run(*addresses[:holes])
            self._second.run(*addresses[holes:])
        else:
            first, second = self._first._task.address, self._second._task.address
            _run_both(first, second, memory, *self._facts, addresses)


def launch(kernel: Kernel, dtype: np.dtype, tasks: int, **params: int) -> None:
    """Run a kernel in `tasks` tasks, with its record's fields as `params`.

    The caller keeps every array behind an address alive.
    """
    Prepared(kernel, dtype, tasks, "", **params).run()


def _launch(task: int, record: int, tasks: int) -> None:
    if (not _started or _turns is not _no_turns) and _within_workqueue():
        _run_serially(task, record, tasks)
        return
    if not _started:
        start()
    # Numba would wake all its threads, also those that get no task. Its setting is the calling
    # thread's, and the user's own kernels obey it too: put it back.
    # It is no more than the most, and asking takes as long as a small convolution.
    allowed = tasks if tasks >= numba.config.NUMBA_NUM_THREADS else numba.get_num_threads()
    with _turns:
        if allowed > tasks:
            numba.set_num_threads(tasks)
        try:
            _run_parallel(task, record, tasks)
        finally:
            if allowed > tasks:
                numba.set_num_threads(allowed)


def _within_workqueue() -> bool:
    """Whether this thread is of Numba's workqueue, which aborts where one region starts another."""
    if not isinstance(threading.current_thread(), threading._DummyThread):  # one that Python started
        return False
    try:
        return bool(numba.threading_layer() == "workqueue")
    except ValueError:  # no region has run yet
        return False


def start() -> None:
    """Start the threads, and see which layer Numba has chosen; else the first parallel call does."""
    global _started, _turns
    with _start_lock:
        if _started or DISABLED or _forked_after_start:
            return
        with _patient_threads():
            _run_parallel(0, 0, 0)
        if numba.threading_layer() == "workqueue":
            _turns = threading.Lock()
        _started = True


@contextlib.contextmanager
def _patient_threads() -> Iterator[None]:
    """Have OpenMP's threads sleep soon after they have nothing to do, unless the user has said otherwise.

    GNU's spin for milliseconds, in which the threads of NumPy's BLAS have no core: a training step that goes
    to and fro between kernels and matrix products took 25 ms on 2 cores, and 9 ms with threads that sleep at
    once. But waking one that sleeps takes 50 us, one that spins 5: so GNU's spin for some 20 us, from one
    kernel of a network to the next. Five times as long gained nothing there, and doubled the time of single
    convolutions after a rest, 0.5 to 0.9 ms: a thread that wakes on the core of one that spins has to wait.
    The variables are read once, when the first parallel call loads the
    library.
    """
    names = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": SPINS}
    if any(name in os.environ for name in names):
        yield
        return
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def _after_fork_in_child() -> None:
    global _forked_after_start, _start_lock, _turns
    # another thread of the parent may have held a lock, and does not exist here to release it
    _start_lock = threading.Lock()
    if _turns is not _no_turns:
        _turns = threading.Lock()
    try:
        numba.threading_layer()
    except ValueError:  # no parallel function has run, ours or the user's
        return
    _forked_after_start = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# --- compiled -----------------------------------------------------------------------------------

if not DISABLED:

    @compiled
    def _run_serially(address: int, params: int, tasks: int) -> None:
        for t in range(tasks):
            call_task(address, params, t, tasks)

    @compiled
    def _run_both(
        first: int,
        second: int,
        memory: int,
        records: int,
        middle: int,
        end: int,
        holes: int,
        addresses: tuple[int, ...],
    ) -> None:
        template, record = ints(records), ints(memory)
        for i in range(end):
            record[i] = template[i]
        for i in range(len(addresses)):
            record[i if i < holes else middle + i - holes] = addresses[i]
        call_task(first, memory, 0, 1)
        call_task(second, memory + 8 * middle, 0, 1)

    @compiled(parallel=True)
    def _run_parallel(address: int, params: int, tasks: int) -> None:
        for t in numba.prange(tasks):
            call_task(address, params, numba.intp(t), tasks)
