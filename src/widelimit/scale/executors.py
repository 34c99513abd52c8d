"""Who computes tiles: this process, or the workers of dask."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from widelimit._text import shown
from widelimit.engines.fused.parallel import count_threads
from widelimit.scale.optional import import_optional

# A worker that was killed costs the tile it was at; a tile that kills its worker this often will do
# so again.
_DEATHS = 5
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "WIDELIMIT_THREADS")

_GUARD = (
    "a script that starts workers does so under `if __name__ == '__main__':`, since every worker "
    "runs the script"
)


class LostError(RuntimeError):
    """A task whose workers died again and again."""


@runtime_checkable
class Executor(Protocol):
    """Runs functions of picklable arguments, somewhere, in any order."""

    @property
    def words(self) -> str:
        """The executor in a few words."""

    @property
    def workers(self) -> int:
        """How many tasks run at once."""

    def submit(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Hands over a task.

        Args:
          name: what it is called in a dashboard; different for different tasks.
          function: a function of a module.
          *args: its arguments.
        """

    def share(self, value: object) -> object:
        """Returns an argument for many tasks, which is sent to every worker once."""

    def as_completed(self) -> Iterator[object]:
        """Yields results as tasks end, until none is left; tasks may be added meanwhile.

        Raises:
          LostError: a task whose workers died again and again.
        """

    def close(self) -> None:
        """Ends it; tasks that have not begun are not run."""


class Inline:
    """Runs tasks in this process, one after another, on all its threads."""

    words = "this process"
    workers = 1

    def __init__(self) -> None:
        self._tasks: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def submit(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Keeps a task."""
        del name
        self._tasks.append((function, args))

    def share(self, value: object) -> object:
        """Returns the value."""
        return value

    def as_completed(self) -> Iterator[object]:
        """Runs the tasks in order and yields their results."""
        while self._tasks:
            function, args = self._tasks.pop(0)
            yield function(*args)

    def close(self) -> None:
        """Forgets the tasks."""
        self._tasks.clear()


class Dask:
    """Runs tasks on the workers of a dask cluster; their names appear in its dashboard."""

    def __init__(self, client: Any, owned: bool) -> None:
        """Takes a client.

        Args:
          client: a `distributed.Client`.
          owned: whether `close` closes the client too, and its cluster.
        """
        self._client, self._owned = client, owned
        self._completed = import_optional("distributed").as_completed([])

    @property
    def words(self) -> str:
        """The address of the scheduler and the number of workers."""
        return f"dask at {self._client.scheduler.address}, {self.workers} threads of workers"

    @property
    def workers(self) -> int:
        """Threads of all workers."""
        return max(1, sum(self._client.nthreads().values()))

    def submit(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Sends a task to the scheduler; exceptions are tried again twice."""
        self._completed.add(self._client.submit(function, *args, key=name, retries=2, pure=False))

    def share(self, value: object) -> object:
        """Returns a future of the value, which all workers have."""
        return self._client.scatter(value, broadcast=True, hash=False)

    def as_completed(self) -> Iterator[object]:
        """Yields results as tasks end."""
        killed = import_optional("distributed").KilledWorker
        for future in self._completed:
            try:
                yield future.result()
            except killed as error:
                raise LostError(
                    f"expected workers to survive {future.key}, but several died at it: they may "
                    f"lack memory, or crash ({error})"
                ) from error

    def close(self) -> None:
        """Cancels what has not begun; closes the client and its cluster if they are its own."""
        self._client.cancel(list(self._completed.futures))
        self._completed.clear()
        if self._owned:
            cluster = self._client.cluster
            self._client.close()
            if cluster is not None:
                cluster.close()


def make_executor(engine: object) -> Executor:
    """Returns an executor.

    Args:
      engine: "inline", "dask" for one worker per processor of this machine, "dask:ADDRESS" for a
        scheduler that runs, "dask-scheduler-file:PATH" for the file that it wrote, or a
        `distributed.Client`.

    Raises:
      ValueError: something else.
      ImportError: dask is not installed.
    """
    if engine == "inline":
        return Inline()
    if isinstance(engine, str) and engine == "dask":
        return Dask(_local_client(), owned=True)
    if isinstance(engine, str) and engine.startswith("dask:"):
        return Dask(import_optional("distributed").Client(engine.removeprefix("dask:")), owned=True)
    if isinstance(engine, str) and engine.startswith("dask-scheduler-file:"):
        path = engine.removeprefix("dask-scheduler-file:")
        return Dask(import_optional("distributed").Client(scheduler_file=path), owned=True)
    if all(hasattr(engine, name) for name in ("submit", "nthreads", "scheduler")):
        return Dask(engine, owned=False)
    raise ValueError(
        "expected engine 'inline', 'dask', 'dask:tcp://host:port', 'dask-scheduler-file:path' or "
        f"a distributed.Client, got {shown(engine)}"
    )


def describe(engine: object) -> tuple[str, int]:
    """Returns an engine in a few words, and how many tasks it runs at once; starts no workers."""
    if engine == "dask":
        return f"dask, {count_threads()} processes on this machine", count_threads()
    executor = make_executor(engine)
    try:
        return executor.words, executor.workers
    finally:
        executor.close()


def _local_client() -> Any:
    """Returns a client of a new cluster on this machine: one process with one thread a processor.

    Raises:
      RuntimeError: this is such a process itself.
    """
    if multiprocessing.parent_process() is not None and "__mp_main__" in sys.modules:
        raise RuntimeError(f"expected one process to start workers, got a worker itself: {_GUARD}")
    dask, distributed = import_optional("dask"), import_optional("distributed")
    platform = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    environment = platform | dict.fromkeys(_ONE_THREAD, "1")
    settings = {
        **{f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in environment.items()},
        "distributed.scheduler.allowed-failures": _DEATHS - 1,
        "distributed.worker.daemon": False,
    }
    with dask.config.set(settings):
        try:
            cluster = distributed.LocalCluster(
                n_workers=count_threads(), threads_per_worker=1, dashboard_address=":0"
            )
        except RuntimeError as error:
            raise RuntimeError(f"expected workers to start, got {error} {_GUARD}") from error
        return distributed.Client(cluster)
