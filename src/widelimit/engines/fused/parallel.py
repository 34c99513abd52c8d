"""Threads for compiled code that holds no lock.

Plain threads: nothing of numba's is set, and callers on several threads share them safely.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import threadpoolctl


def count_threads() -> int:
    """Returns how many processors this process may use, no more than WIDELIMIT_THREADS."""
    most = int(os.environ.get("WIDELIMIT_THREADS", "0"))
    return min(most, _processors()) if most > 0 else _processors()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.lru_cache(maxsize=1)
def _pool(_process: int, threads: int) -> concurrent.futures.ThreadPoolExecutor:
    """Returns the threads of a process; a forked one has none of its parent's."""
    return concurrent.futures.ThreadPoolExecutor(threads, "widelimit")


def run_parallel(function: Callable[[Any], Any], tasks: list[Any]) -> None:
    """Runs the function of every task, on all threads. After an error or Ctrl-C none is begun.

    The calling thread works too: to wake another one takes as long as a small task. When this
    returns or raises no thread is at a task any more.
    """
    left = collections.deque(tasks)

    def work() -> None:
        try:
            while True:
                try:
                    task = left.popleft()
                except IndexError:
                    return
                function(task)
        except BaseException:
            left.clear()
            raise

    others = min(count_threads(), len(tasks)) - 1
    pool = _pool(os.getpid(), count_threads()) if others > 0 else None
    futures = [pool.submit(work) for _ in range(others)] if pool is not None else []
    try:
        work()
    finally:
        left.clear()
        running = [future for future in futures if not future.cancel()]
        concurrent.futures.wait(running)
    for future in running:
        future.result()


_limiting = threading.Lock()


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Holds BLAS to one thread inside, and restores the number that it had.

    BLAS has threads of its own, which spin while they wait. Started from several of our threads
    they outnumber the processors, and beside other busy processes they take most of the time.
    The number belongs to the process, and only the thread that set it may restore it: of callers
    on several threads, the first one holds it until it leaves.
    """
    if not _limiting.acquire(blocking=False):
        yield
        return
    try:
        with _blas().limit(limits=1):
            yield
    finally:
        _limiting.release()
