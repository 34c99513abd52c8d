"""Times of kernels with gradients, over the times of the kernels alone.

python -m benchmarks.gradients [fused|reference] [fc|cnn5|cnn10]

Gradients of the sum of an NTK by W_std and b_std of all layers, and by the inputs.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from widelimit import stax


def connected(W_std: Any, b_std: Any) -> Any:
    """Returns a fully connected network of five layers."""
    return stax.serial(*[stax.Dense(1, W_std, b_std), stax.Relu()] * 5, stax.Dense(1, W_std, b_std))


def convolutional(layers: int, W_std: Any, b_std: Any) -> Any:
    """Returns a network of 3 x 3 convolutions with global pooling."""
    conv = stax.Conv(1, (3, 3), padding="SAME", W_std=W_std, b_std=b_std)
    return stax.serial(*[conv, stax.Relu()] * layers, stax.GlobalAvgPool(), stax.Dense(1))


WORKLOADS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "fc": (connected, (500, 64)),
    "cnn5": (functools.partial(convolutional, 5), (8, 32, 32, 3)),
    "cnn10": (functools.partial(convolutional, 10), (6, 32, 32, 3)),
}


def seconds(function: Callable[..., Any], *args: Any) -> float:
    """Returns the shortest wall time of a few calls, after a first one."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints a line for every workload."""
    given = sys.argv[1:]
    engine = next((name for name in given if name not in WORKLOADS), "fused")
    for name in [name for name in given if name in WORKLOADS] or list(WORKLOADS):
        make, shape = WORKLOADS[name]
        x1, x2 = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)

        def total(W_std: Any, b_std: Any, x1: Any, make: Any = make, x2: Any = x2) -> Any:
            kernel_fn = make(W_std, b_std).kernel_fn
            return kernel_fn(x1, x2, "ntk", engine=engine).sum()

        value = seconds(jax.jit(total), 1.4, 0.1, x1)
        hyper = seconds(jax.jit(jax.value_and_grad(total, (0, 1))), 1.4, 0.1, x1)
        inputs = seconds(jax.jit(jax.value_and_grad(total, 2)), 1.4, 0.1, x1)
        print(
            f"{name:6} {engine:10} {shape[0]} x {shape[0]}: value {value * 1e3:8.2f} ms, with the "
            f"gradient by 2 hyper-parameters {hyper / value:6.2f} times that, by the inputs "
            f"{inputs / value:6.2f} times"
        )


if __name__ == "__main__":
    main()
