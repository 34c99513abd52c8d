"""What the machine can do: fused multiply-adds and memory traffic per second.

    python -m benchmarks.peaks

Prints JSON: operations per second in float32 and float64 (a multiply-add counts as two), and
bytes per second of a = b + s c over a gigabyte (two arrays read, one written). Best of many. By
numba where JAX runs on the CPU: arithmetic on one core, times their number, since hardly a moment
is quiet on all cores of a shared machine (too much where two hardware threads share a core); memory
on all cores. Else on the device of JAX, by XLA.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np

from benchmarks.machine import cores

# Short polynomials, so that the processor works on several at once: one alone waits for its own
# last result. Short calls and many of them, so that a shared machine has moments of quiet.
CHAIN, LENGTH, ROUNDS = 16, 512, 2000
GIGABYTE = 10**9
SECONDS = 4.0  # of trials for one number


@numba.njit(fastmath=True)
def multiply_adds(x: Any, c0: Any, c1: Any, rounds: Any) -> Any:
    """Returns a sum of polynomials of degree 16: all in registers but x, which is in L1."""
    total = c0  # and not 0, which would make it float64
    for r in range(rounds):
        start = x[r % len(x)]
        for i in range(len(x)):
            xi, p = x[i], start
            for _ in range(CHAIN // 2):
                p = p * xi + c0
                p = p * xi + c1
            total += p
    return total


@numba.njit(fastmath=True, parallel=True)
def triad(a: Any, b: Any, c: Any, s: Any) -> None:
    """Writes b + s c to a."""
    for i in numba.prange(len(a)):
        a[i] = b[i] + s * c[i]


def best_seconds(function: Callable[[], Any]) -> float:
    """Returns the wall time of the fastest of many calls, after one that compiles."""
    function()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def core_peaks() -> dict[str, Any]:
    """Returns what the cores do, by numba."""
    count = cores()
    found: dict[str, Any] = {"device": f"{count} cores"}
    for dtype in (np.float32, np.float64):
        x = np.linspace(0.1, 0.9, LENGTH).astype(dtype)
        given = x, dtype(0.01), dtype(0.02), ROUNDS
        seconds = best_seconds(functools.partial(multiply_adds, *given))
        found[dtype.__name__] = count * 2 * CHAIN * LENGTH * ROUNDS / seconds
    n = GIGABYTE // 3 // 8
    a, b, c = (np.full(n, value) for value in (0.0, 1.0, 2.0))
    seconds = best_seconds(lambda: triad(a, b, c, 0.5))
    return {**found, "bandwidth": 3 * 8 * n / seconds}


def device_peaks() -> dict[str, Any]:
    """Returns what the default device of JAX does."""
    chain = 512

    @jax.jit
    def polynomial(x: jax.Array) -> jax.Array:
        p = x
        for _ in range(chain):
            p = p * x + 0.01
        return p

    @jax.jit
    def sum_of_two(b: jax.Array, c: jax.Array) -> jax.Array:
        return b + 0.5 * c

    found: dict[str, Any] = {"device": jax.devices()[0].device_kind}
    with jax.enable_x64(True):
        for name in ("float32", "float64"):
            x = jnp.linspace(0.1, 0.9, 2**24, dtype=name)
            seconds = best_seconds(lambda: polynomial(x).block_until_ready())  # noqa: B023
            found[name] = 2 * chain * x.size / seconds
        b, c = (jnp.full(GIGABYTE // 3 // 4, value, "float32") for value in (1.0, 2.0))
        seconds = best_seconds(lambda: sum_of_two(b, c).block_until_ready())
    return {**found, "bandwidth": 3 * b.nbytes / seconds}


def main() -> None:
    """Prints what was measured."""
    on_cores = jax.default_backend() == "cpu"
    print(json.dumps(core_peaks() if on_cores else device_peaks()))


if __name__ == "__main__":
    main()
