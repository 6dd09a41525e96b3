"""How many threads a task may use, so that all tasks that run at a time use each core once."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.system
import dask.threaded

from fastconv.threads import get_num_threads, num_threads

#: Seconds until a worker asks again how many others there are on its machine.
REFRESH = 10.0

_known: dict[str, tuple[float, int]] = {}
_asking = threading.Lock()


def tasks_at_a_time() -> int:
    """How many tasks may run at the same time on this machine, of which this thread is running one.

    With the distributed scheduler, the threads of all workers on this machine. With the threaded one, those
    of the pool that this thread belongs to. With the scheduler of processes, their number. Else 1.
    """
    worker = _worker()
    if worker is not None:
        return _threads_of_workers(worker)
    pool = _pool_size()
    if pool is not None:
        return pool
    if multiprocessing.parent_process() is not None:
        return int(dask.config.get("num_workers", None) or dask.system.CPU_COUNT)
    return 1


def share() -> int:
    """Threads that fastconv may use in this task: those of the process over the tasks that run at a time."""
    return max(1, get_num_threads() // tasks_at_a_time())


def with_share(function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call a function with this task's share of threads."""
    with num_threads(share()):
        return function(*args, **options)


def _worker() -> Any:
    """The dask.distributed worker that runs this task, if one does."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def _threads_of_workers(worker: Any) -> int:
    """Threads of all workers on the machine of this one; asked of the scheduler now and then."""
    from distributed.utils import sync

    with _asking:
        when, count = _known.get(worker.address, (-REFRESH, 0))
        if time.monotonic() - when < REFRESH:
            return count
        try:
            workers = sync(worker.loop, worker.scheduler.identity, callback_timeout=REFRESH)["workers"]
            host = workers[worker.address]["host"]
            count = sum(other["nthreads"] for other in workers.values() if other["host"] == host)
        except (
            OSError,
            TimeoutError,
            KeyError,
        ):  # the scheduler is busy, or going: the worker's own, meanwhile
            count = worker.state.nthreads
        _known[worker.address] = (time.monotonic(), count)
        return count


def _pool_size() -> int | None:
    """The size of the pool of dask's threaded scheduler that this thread belongs to."""
    here = threading.current_thread()
    pools = [dask.threaded.default_pool, dask.config.get("pool", None)]
    for others in list(dask.threaded.pools.values()):
        pools += list(others.values())
    for pool in pools:
        # concurrent.futures' pools and those of multiprocessing
        for threads, size in (("_threads", "_max_workers"), ("_pool", "_processes")):
            if here in getattr(pool, threads, ()):
                return int(getattr(pool, size))
    return None
