"""The empirical NTK of a residual network with 11 million parameters within a budget of memory.

    python -m benchmarks.empirical_memory [--images 128] [--memory 2GiB] [--side 32]

Prints how derivatives are cut, how often any block is computed at most, the time, and the
memory of the process beyond what it takes with parameters and images, at its peak.
"""

from __future__ import annotations

import argparse
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import widelimit as wl
from widelimit.gram.sizes import human_bytes, parse_memory

OUTPUTS = 10
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
BLOCKS = 2


def convolve(x: Any, w: Any, stride: int = 1) -> Any:
    """Returns a convolution with weights [height, width, in, out] in NTK parameterisation."""
    axes = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=axes)
    return y * math.sqrt(2 / math.prod(w.shape[:3]))


def init(key: Any) -> dict[str, Any]:
    """Returns the parameters: a residual network of 18 layers without normalisation."""
    keys = iter(jax.random.split(key, 64))
    width = STAGES[0][0]
    params: dict[str, Any] = {"first": jax.random.normal(next(keys), (3, 3, 3, width))}
    for stage, (channels, _) in enumerate(STAGES):
        for block in range(BLOCKS):
            own = {
                "a": jax.random.normal(next(keys), (3, 3, width, channels)),
                "b": jax.random.normal(next(keys), (3, 3, channels, channels)),
            }
            if width != channels:
                own["shortcut"] = jax.random.normal(next(keys), (1, 1, width, channels))
            params[f"stage{stage}_block{block}"] = own
            width = channels
    params["last"] = jax.random.normal(next(keys), (width, OUTPUTS))
    return params


def apply(params: dict[str, Any], x: Any) -> Any:
    """Returns the outputs [n, 10] of images [n, height, width, 3]."""
    x = convolve(x, params["first"])
    for stage, (_, stride) in enumerate(STAGES):
        for block in range(BLOCKS):
            own = params[f"stage{stage}_block{block}"]
            step = stride if block == 0 else 1
            h = convolve(jax.nn.relu(x), own["a"], step)
            h = convolve(jax.nn.relu(h), own["b"])
            x = (h + (convolve(x, own["shortcut"], step) if "shortcut" in own else x)) / 2**0.5
    return x.mean((1, 2)) @ params["last"] / math.sqrt(params["last"].shape[0])


def resident_bytes() -> int:
    """Returns what the process takes now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The most memory the process takes between entry and exit, looked at every 10 ms."""

    def __enter__(self) -> Peak:
        self.bytes = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--memory", default="2GiB")
    given = parser.parse_args()
    params = init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (given.images, given.side, given.side, 3))
    jax.block_until_ready((params, x))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    weight = 4 * count
    print(f"{count} parameters ({human_bytes(weight)}), {given.images} images, {OUTPUTS} outputs")
    ntk_fn = wl.empirical_ntk_fn(apply, vmap_axes=0, memory=given.memory)
    chunks = ntk_fn.chunks(x, None, params)
    rows = given.images * OUTPUTS
    allowed = math.ceil(weight * rows / parse_memory(given.memory))
    print(f"Jacobian {human_bytes(weight * rows)}, budget {given.memory}: {chunks}")
    print(f"a block is computed at most {chunks.computed_at_most} times, allowed are {allowed}")
    jax.block_until_ready(jax.jit(apply)(params, x[:1]))
    before = resident_bytes()
    start = time.perf_counter()
    with Peak() as peak:
        kernel = jax.block_until_ready(ntk_fn(x, None, params))
    seconds = time.perf_counter() - start
    used = peak.bytes - before
    print(f"{seconds:.1f} s, {used / 2**30:.2f} GiB beyond parameters and images ({before} bytes)")
    check(np.asarray(kernel), params, x)


def check(kernel: Any, params: Any, x: Any) -> None:
    """Raises unless a few entries are the products of gradients, and the kernel is one."""
    assert np.array_equal(kernel.shape, (len(x),) * 2)
    np.testing.assert_allclose(kernel, kernel.T, rtol=1e-4, atol=1e-4 * kernel.max())
    assert np.linalg.eigvalsh(kernel.astype(np.float64)).min() > -1e-5 * kernel.max()
    gradients = jax.jit(jax.jacrev(lambda p, x: apply(p, x[None])[0]))
    for i, j in ((0, 0), (0, len(x) - 1), (len(x) // 3, len(x) // 2)):
        pairs = zip(*(map(jax.tree.leaves, (gradients(params, x[k]) for k in (i, j)))), strict=True)
        entry = sum(jnp.vdot(a, b) for a, b in pairs) / OUTPUTS
        np.testing.assert_allclose(kernel[i, j], entry, rtol=1e-3, atol=1e-4 * kernel.max())
    print("entries are those of whole gradients")


if __name__ == "__main__":
    main()
