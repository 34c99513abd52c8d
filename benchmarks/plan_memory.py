"""Peak memory of a kernel against the estimate of `widelimit.plan`.

Each network runs in a process of its own: first one pair of images (compilation and libraries),
then a batch whose covariances exceed a gigabyte; what counts is the growth of the peak.

    python -m benchmarks.plan_memory
"""

import multiprocessing
import resource

import jax
import numpy as np

import widelimit as wl

CASES = {
    "CNN with global pooling, 2 layers, 32 x 32": (lambda: wl.models.cnn(2, "gap"), 11),
    "wide residual network, 1 block a group, 32 x 32": (lambda: wl.models.wide_resnet(1, 1), 45),
}


def measure(name: str) -> tuple[int, int, int]:
    """Returns bytes of the largest covariances, the estimated peak, and the measured one."""
    build, n = CASES[name]
    net = build()
    x = np.random.default_rng(0).standard_normal((n, 32, 32, 3)).astype(np.float32)
    jax.block_until_ready(net.kernel_fn(x[:1], None, ("nngp", "ntk"), engine="reference"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jax.block_until_ready(net.kernel_fn(x, None, ("nngp", "ntk"), engine="reference"))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = wl.plan(net, x.shape)
    return table.bytes, table.memory, 1024 * (after - before)


def main() -> None:
    """Prints one line per network."""
    for name in CASES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            largest, estimate, measured = pool.apply(measure, (name,))
        print(
            f"{name}: covariances {largest / 1e9:.2f} GB, estimated peak {estimate / 1e9:.2f} GB, "
            f"measured {measured / 1e9:.2f} GB, ratio {measured / estimate:.2f}"
        )


if __name__ == "__main__":
    main()
