"""Error of the float32 NTK of a deep ReLU network on images, with exact and nearly equal copies.

    python -m benchmarks.float32_accuracy DATA

DATA is an .npz or a folder of CIFAR-10, as for `widelimit demo --data`. The first 500 training
images, scaled to [0, 1] and less their mean, are joined by 20 exact copies and 20 copies at a
relative distance of about 1e-3; the reference is float64 on the same float32 inputs.
"""

import argparse
import time

import jax
import numpy as np

from examples.demo import datasets
from widelimit import stax

DEPTH = 20


def inputs(path: str) -> np.ndarray:
    images = datasets.load_images(path).x_train[:500]
    x = np.asarray(images, np.float32).reshape(500, -1)
    x = x / 255 if x.max() > 1 else x
    x = x - x.mean(0)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((20, x.shape[1]))
    return np.concatenate([x, x[:20], x[20:40] + noise]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    x = inputs(parser.parse_args().data)
    block = [stax.Dense(1, W_std=2**0.5), stax.Relu()]
    net = stax.serial(*block * DEPTH, stax.Dense(1, W_std=2**0.5))
    start = time.perf_counter()
    single = np.asarray(net.kernel_fn(x, None, "ntk"), np.float64)
    seconds = time.perf_counter() - start
    with jax.enable_x64(True):
        double = np.asarray(net.kernel_fn(x, None, "ntk"))
    error = np.abs(single / double - 1)
    exact = error[np.arange(20), 500 + np.arange(20)]
    near = error[20 + np.arange(20), 520 + np.arange(20)]
    print(f"NTK of {DEPTH} layers on {len(x)} images, first call {seconds:.1f} s")
    print("relative error of float32:")
    print(f"  largest anywhere       {error.max():.1e}")
    print(f"  on the diagonal        {np.diag(error).max():.1e}")
    print(f"  with an exact copy     {exact.max():.1e}")
    print(f"  with a near copy       {near.max():.1e}")


if __name__ == "__main__":
    main()
