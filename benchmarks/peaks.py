"""What the machine can do: fused multiply-adds and memory traffic per second, on all cores.

    python -m benchmarks.peaks

Prints JSON: operations per second in float32 and float64 (a multiply-add counts as two), and
bytes per second of a = b + s c over a gigabyte (two arrays read, one written). Best of several.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# Short polynomials, so that the processor works on several at once: one alone waits for its own
# last result. Short calls and many trials, so that a shared machine has moments of quiet.
CHAIN, LENGTH, ROUNDS, TASKS = 16, 512, 400, 64
TRIALS = {"arithmetic": 300, "memory": 10}


@numba.njit(fastmath=True, parallel=True)
def multiply_adds(x: Any, c0: Any, c1: Any, rounds: Any, out: Any) -> None:
    """Evaluates polynomials of degree 16 by Horner's rule: all in registers but x, in L1."""
    for task in numba.prange(len(out)):
        total = x[0] * 0
        for r in range(rounds):
            start = x[r % len(x)]
            for i in range(len(x)):
                xi, p = x[i], start
                for _ in range(CHAIN // 2):
                    p = p * xi + c0
                    p = p * xi + c1
                total += p
        out[task] = total


@numba.njit(fastmath=True, parallel=True)
def triad(a: Any, b: Any, c: Any, s: Any) -> None:
    """Writes b + s c to a."""
    for i in numba.prange(len(a)):
        a[i] = b[i] + s * c[i]


def best_seconds(function: Callable[[], Any], trials: int) -> float:
    """Returns the wall time of the fastest of several calls, after one that compiles."""
    function()
    times = []
    for _ in range(trials):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def flops(dtype: Any) -> float:
    """Returns operations per second in a dtype."""
    x = np.linspace(0.1, 0.9, LENGTH).astype(dtype)
    out = np.zeros(TASKS, dtype)
    c0, c1 = dtype(0.01), dtype(0.02)
    trials = TRIALS["arithmetic"]
    seconds = best_seconds(lambda: multiply_adds(x, c0, c1, ROUNDS, out), trials)
    return 2 * CHAIN * LENGTH * ROUNDS * TASKS / seconds


def bandwidth() -> float:
    """Returns bytes per second between memory and cores."""
    n = 10**9 // 3 // 8
    a, b, c = (np.full(n, value) for value in (0.0, 1.0, 2.0))
    return 3 * 8 * n / best_seconds(lambda: triad(a, b, c, 0.5), TRIALS["memory"])


def main() -> None:
    """Prints what was measured."""
    measured = {name: flops(getattr(np, name)) for name in ("float32", "float64")}
    print(json.dumps({**measured, "bandwidth": bandwidth(), "threads": numba.get_num_threads()}))


if __name__ == "__main__":
    main()
