"""Python time of a repeated call of kernel_fn, and what importing widelimit adds to importing JAX.

python benchmarks/call_overhead.py
"""

import statistics
import subprocess
import sys
import time

import numpy as np

from widelimit import stax


def microseconds_per_call(depth: int, calls: int = 300) -> float:
    net = stax.serial(*[stax.Dense(512, 1.4, 0.1), stax.Relu()] * depth, stax.Dense(1))
    kernel_fn = net.kernel_fn
    x = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    times = []
    kernel_fn(x, None, "ntk").block_until_ready()
    for _ in range(calls):
        start = time.perf_counter()
        kernel_fn(x, None, "ntk").block_until_ready()
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
    print(f"import widelimit after import jax: {import_milliseconds():.0f} ms")


if __name__ == "__main__":
    main()
