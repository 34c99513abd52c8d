"""One side of a case: a worker process that is told what to do, and what it measured."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.environments import ROOT, Environment
from benchmarks.workloads import Workload


class SideError(Exception):
    """A worker ended, or did not answer in time; the message says which."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload with what is asked of it."""

    workload: Workload
    get: str
    dtype: str

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.workload.name} {self.workload.size} {self.get} {self.dtype}"


@dataclasses.dataclass
class Measured:
    """What one side of a case measured.

    Attributes:
      times: seconds of every warm call.
      first: seconds of the first call.
      memory: growth of the peak memory since the imports, in bytes.
      about: versions, device and engine, as the side states them.
      failure: why there is no result; None when there is one.
      values: the kernel.
    """

    times: list[float] = dataclasses.field(default_factory=list)
    first: float | None = None
    memory: int | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    failure: str | None = None
    values: np.ndarray | None = None

    @property
    def median(self) -> float | None:
        """Median of the warm calls in seconds; None after a failure."""
        return None if self.failure or not self.times else float(np.median(self.times))

    @property
    def compilation(self) -> float | None:
        """Seconds that the first call took beyond a warm one; None after a failure."""
        if self.median is None or self.first is None:
            return None
        return max(self.first - self.median, 0.0)

    def record(self) -> dict[str, Any]:
        """Returns the fields as JSON takes them, with the mean entry in place of the values."""
        fields = dataclasses.asdict(dataclasses.replace(self, values=None))
        mean = None if self.values is None else float(self.values.mean(dtype=np.float64))
        return {**fields, "values": mean}


class Side:
    """A worker on one side of a case. A failure is kept in `measured`; later calls do nothing."""

    def __init__(
        self, environment: Environment, case: Case, limit: float, platform: str | None
    ) -> None:
        self.measured = Measured()
        self.limit = limit
        self._folder = tempfile.TemporaryDirectory()
        self._errors = open(Path(self._folder.name) / "errors", "w+", encoding="utf-8")  # noqa: SIM115
        fields = dataclasses.asdict(case.workload) | {"get": case.get, "dtype": case.dtype}
        command = [str(environment.python), "-m", "benchmarks.worker", environment.networks]
        self._process = subprocess.Popen(
            [*command, json.dumps(fields), str(self._result)],
            cwd=ROOT,
            env=variables(environment, case.dtype, platform),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    @property
    def _result(self) -> Path:
        return Path(self._folder.name) / "kernel.npy"

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()

    def first(self) -> None:
        """Waits for the imports and makes the first call."""
        if self.measured.failure is None:
            self._try(self._first)

    def warm(self, repetitions: int, seconds: float) -> None:
        """Makes warm calls: see `worker`."""
        if self.measured.failure is None:
            self._try(lambda: self._warm(repetitions, seconds))

    def finish(self) -> None:
        """Fetches the kernel and the peak memory."""
        if self.measured.failure is None:
            self._try(self._finish)

    def _try(self, step: Any) -> None:
        try:
            step()
        except SideError as error:
            self.measured.failure = str(error)

    def _first(self) -> None:
        self.measured.about = self._answer()
        self.measured.first = self._ask("first")["first"]

    def _warm(self, repetitions: int, seconds: float) -> None:
        self.measured.times += self._ask(f"warm {repetitions} {seconds}")["times"]

    def _finish(self) -> None:
        self.measured.memory = self._ask("finish")["memory"]
        self.measured.values = np.load(self._result)

    def _ask(self, command: str) -> dict[str, Any]:
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker has ended: reading says how
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._process.stdout], [], [], self.limit)
        if not ready:
            raise SideError(f"no answer within {self.limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise SideError(self._ending())
        return json.loads(line)

    def _ending(self) -> str:
        """Returns how the worker ended, in one line."""
        code = self._process.wait()
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        return f"ended with {code}: {said[-1][:160] if said else 'said nothing'}"


def variables(environment: Environment, dtype: str, platform: str | None) -> dict[str, str]:
    """Returns the environment variables of a worker.

    Args:
      environment: whose worker it is.
      dtype: float64 is switched on in JAX for the whole process.
      platform: what JAX runs on; None leaves that to JAX.
    """
    given = dict(os.environ)
    # A cache of compiled programs on disk would hide what compilation takes.
    given.pop("JAX_COMPILATION_CACHE_DIR", None)
    if environment.requirements:
        given.pop("PYTHONPATH", None)
    given["JAX_ENABLE_X64"] = "1" if dtype == "float64" else "0"
    if platform is not None:
        given["JAX_PLATFORMS"] = platform
    return given
