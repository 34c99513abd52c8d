"""What a warm call goes through: our frames, the files they are in, and the deepest stack of them.

python -m benchmarks.anatomy
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import widelimit as wl
from widelimit import models, stax

PACKAGE = os.path.dirname(os.path.abspath(wl.__file__)) + os.sep


def anatomy(call: Callable[[], Any]) -> tuple[int, int, int]:
    """Returns how many frames of the package a call enters, of how many files, and how deep."""
    call()
    call()
    files: set[str] = set()
    frames, depth, deepest = 0, 0, 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal frames, depth, deepest
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not file.startswith(PACKAGE):
            return
        if event == "return":
            depth -= 1
            return
        files.add(file)
        frames, depth = frames + 1, depth + 1
        deepest = max(deepest, depth)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return frames, len(files), deepest


def calls() -> dict[str, Callable[[], Any]]:
    """Returns the calls, by what they are."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    x = rng.standard_normal((20, 8)).astype(np.float32)
    y = x[:, :1]
    convolutions = [stax.Conv(1, (3, 3), padding="SAME"), stax.Relu()] * 20
    cnn = stax.serial(*convolutions, stax.GlobalAvgPool(), stax.Dense(1))
    fcn = models.fcn(2)
    ensemble = wl.InfiniteEnsemble(fcn, x, y)
    params = [rng.standard_normal(s).astype(np.float32) for s in ((8, 16), (16, 1))]

    def f(params: Any, x: Any) -> Any:
        return jax.numpy.tanh(x @ params[0]) @ params[1]

    structured = wl.NtkImplementation.STRUCTURED_DERIVATIVES
    empirical = wl.empirical_ntk_fn(f, vmap_axes=0, implementation=structured)
    return {
        "kernel_fn, 20 convolutions, fused": lambda: cnn.kernel_fn(images, None, "ntk"),
        "kernel_fn, 20 convolutions, reference": lambda: cnn.kernel_fn(
            images, None, "ntk", engine="reference"
        ),
        "gram of one tile": lambda: wl.gram(cnn, images, progress=False),
        "InfiniteEnsemble.mean": lambda: ensemble.mean(x),
        "structured empirical NTK": lambda: empirical(x, None, params),
    }


def main() -> None:
    print(f"{'':38}{'frames':>8}{'files':>8}{'depth':>8}")
    for name, call in calls().items():
        print(f"{name:38}" + "".join(f"{number:8}" for number in anatomy(call)))


if __name__ == "__main__":
    main()
