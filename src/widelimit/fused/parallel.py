"""Threads for compiled code that holds no lock.

Plain threads: nothing of numba's or of the process is set, and callers on several threads share
them safely.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Any


def count_threads() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.lru_cache(maxsize=1)
def _pool(_process: int, threads: int) -> concurrent.futures.ThreadPoolExecutor:
    """Returns the threads of a process; a forked one has none of its parent's."""
    return concurrent.futures.ThreadPoolExecutor(threads, "widelimit")


def parallel(function: Callable[[Any], Any], tasks: list[Any]) -> None:
    """Runs the function of every task, on all threads. After an error or Ctrl-C none is begun."""
    if len(tasks) <= 1:
        for task in tasks:
            function(task)
        return
    pool = _pool(os.getpid(), count_threads())
    futures = [pool.submit(function, task) for task in tasks]
    try:
        for future in futures:
            future.result()
    except BaseException:
        for future in futures:
            future.cancel()
        raise
