"""Time of one kernel entry of a plain CNN with global pooling, by the engine of your choice.

python -m benchmarks.cnn [layers] [n1] [n2] [reference|fused]

Without an engine: the reference one, as is and under jit.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from widelimit import stax

BOTH = ("nngp", "ntk")


def network(layers: int, W_std: float) -> Any:
    """Returns the network: 3 x 3 convolutions, zero padding, ReLU, global average pooling."""
    conv = stax.Conv(64, (3, 3), padding="SAME", W_std=W_std, b_std=0.1)
    return stax.serial(*[conv, stax.Relu()] * layers, stax.GlobalAvgPool(), stax.Dense(1))


def seconds(function: Callable[..., Any], *args: Any) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def main() -> None:
    """Prints the times of first and later calls, as is and under jit."""
    given = sys.argv[1:]
    *sizes, engine = given + ["21", "1", "1", "reference"][len(given) :]
    layers, n1, n2 = map(int, sizes)
    rng = np.random.default_rng(0)
    x1, x2 = (rng.standard_normal((n, 32, 32, 3)).astype(np.float32) for n in (n1, n2))
    kernel_fn = functools.partial(network(layers, 1.4).kernel_fn, engine=engine)
    print(f"{layers} layers, {n1} x {n2} images of 32 x 32 x 3, float32, NNGP and NTK: {engine}")
    print(f"first call           {seconds(kernel_fn, x1, x2, BOTH):6.2f} s")
    later = min(seconds(kernel_fn, x1, x2, BOTH) for _ in range(3))
    print(f"later, per entry     {later / (n1 * n2):6.2f} s")
    other = functools.partial(network(layers, 1.2).kernel_fn, engine=engine)
    print(f"other W_std, entry   {seconds(other, x1, x2, BOTH) / (n1 * n2):6.2f} s")
    jitted = jax.jit(lambda a, b: kernel_fn(a, b, BOTH))
    print(f"first call under jit {seconds(jitted, x1, x2):6.2f} s")
    later = min(seconds(jitted, x1, x2) for _ in range(3))
    print(f"later, per entry     {later / (n1 * n2):6.2f} s")


if __name__ == "__main__":
    main()
