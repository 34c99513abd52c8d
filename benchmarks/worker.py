"""One kernel on one side, in a process of its own: told what to do line by line, answers in JSON.

    python -m benchmarks.worker NETWORKS CASE RESULT

NETWORKS is the module of networks (`networks_widelimit`, `networks_nt`); CASE is JSON with the
fields of a `Workload`, `get` and `dtype`; the kernel is written to RESULT (.npy). Runs in every
environment: imports numpy and the module of networks only.

Commands: `first` (one call, compilation included), `warm REPETITIONS SECONDS` (calls until there
are so many and a quarter of the time has passed, or all of it has: at least one), `finish`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Workload, inputs

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Returns the largest resident memory of this process so far."""
    if STATUS.exists():  # ru_maxrss may be that of the process that started this one
        line = next(s for s in STATUS.read_text().splitlines() if s.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(function: Callable[[], Any]) -> tuple[float, np.ndarray]:
    """Returns the wall time of one call, up to the result on the host, and the result."""
    start = time.perf_counter()
    result = np.asarray(function())
    return time.perf_counter() - start, result


def repeat(function: Callable[[], Any], repetitions: int, seconds: float) -> list[float]:
    """Returns the wall times of calls: so many, fewer once the seconds are over, at least one.

    Short calls are repeated for a quarter of the time: the first ones after the other side's turn
    find nothing in the caches.
    """
    times = [timed(function)[0]]
    while sum(times) < seconds and (len(times) < repetitions or sum(times) < seconds / 4):
        times.append(timed(function)[0])
    return times


def main() -> None:
    """Serves one case until told to finish, or until the input ends."""
    name, text, path = sys.argv[1:]
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    case = json.loads(text)
    get, dtype = case.pop("get"), case.pop("dtype")
    workload = Workload(**{**case, "shape": tuple(case["shape"])})
    networks = importlib.import_module(f"benchmarks.{name}")
    function = networks.kernel(workload.network, get, workload.gram)
    about = networks.about(workload.network, (workload.n1, *workload.shape))
    before = peak_bytes()
    x1, x2 = inputs(workload, dtype)
    answer(**about)
    result = np.empty(0)
    for line in sys.stdin:
        match line.split():
            case ["first"]:
                seconds, result = timed(lambda: function(x1, x2))
                if result.dtype != dtype:
                    raise TypeError(f"expected a kernel in {dtype}, got {result.dtype}")
                answer(first=seconds)
            case ["warm", repetitions, seconds]:
                times = repeat(lambda: function(x1, x2), int(repetitions), float(seconds))
                answer(times=times)
            case ["finish"]:
                memory = peak_bytes() - before
                np.save(path, result)
                answer(memory=memory)
                return
            case _:
                raise ValueError(f"expected first, warm or finish, got {line!r}")


if __name__ == "__main__":
    main()
