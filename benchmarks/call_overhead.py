"""Python time of repeated calls, and what importing widelimit adds to importing JAX.

python -m benchmarks.call_overhead
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import widelimit as wl
from widelimit import stax


def microseconds_per_call(depth: int, calls: int = 300) -> float:
    net = stax.serial(*[stax.Dense(512, 1.4, 0.1), stax.Relu()] * depth, stax.Dense(1))
    x = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    return median_microseconds(lambda: net.kernel_fn(x, None, "ntk"), calls)


def empirical_microseconds(nonlinearity: Callable[..., Any], calls: int = 300) -> tuple[float, ...]:
    """Returns the time of an empirical NTK of three layers, and of the same under `jax.jit`."""
    rng = np.random.default_rng(0)
    x, *params = (
        jax.numpy.asarray(rng.standard_normal(shape), np.float32)
        for shape in ((6, 5), (5, 16), (16, 16), (16, 2))
    )

    def f(params: Any, x: Any) -> Any:
        for weights in params[:-1]:
            x = nonlinearity(x @ weights)
        return x @ params[-1]

    ntk_fn = wl.empirical_ntk_fn(f, vmap_axes=0)
    jitted = jax.jit(lambda params: ntk_fn(x, None, params))
    return (
        median_microseconds(lambda: ntk_fn(x, None, params), calls),
        median_microseconds(lambda: jitted(params), calls),
    )


def median_microseconds(call: Callable[[], Any], calls: int) -> float:
    """Returns the median time of a warm call."""
    times = []
    call().block_until_ready()
    for _ in range(calls):
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def import_milliseconds() -> float:
    code = (
        "import jax, time; start = time.perf_counter(); import widelimit; "
        "print(time.perf_counter() - start)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    return 1e3 * statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    for depth in (1, 5, 20):
        print(f"{depth:3} hidden layers: {microseconds_per_call(depth):6.0f} us a call, 3 samples")
    for nonlinearity in (jax.numpy.tanh, jax.nn.relu):
        anew, jitted = empirical_microseconds(nonlinearity)
        name = f"empirical NTK of three layers with {nonlinearity.__name__}"
        print(f"{name}: {anew:6.0f} us a call, {jitted:.0f} under jax.jit")
    print(f"import widelimit after import jax: {import_milliseconds():.0f} ms")


if __name__ == "__main__":
    main()
