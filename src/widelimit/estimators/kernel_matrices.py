"""Kernels between samples as float64 matrices of NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from widelimit.gram import gram
from widelimit.typing import Bytes, NetworkLike

# Number of samples in a block, whose diagonal is read.
_BLOCK = 64


def kernel_matrices(
    network: NetworkLike,
    x1: Float[np.ndarray, "n1 *shape"],
    x2: Float[np.ndarray, "n2 *shape"] | None,
    names: Sequence[str],
    memory: Bytes,
) -> dict[str, np.ndarray]:
    """Returns the kernels [n1, n2] of those names, in float64 whatever the setting of JAX.

    Args:
      network: a network or its kernel function.
      x1: inputs.
      x2: inputs, or None for x1.
      names: "nngp", "ntk" or both.
      memory: what computing them may take, see `wl.gram`.

    Raises:
      ValueError: a network whose outputs have positions.
    """
    with jax.enable_x64(True):
        kernels = gram(network, x1, x2, get=tuple(names), memory=memory, progress=False)
    matrices = {name: np.asarray(getattr(kernels, name), np.float64) for name in names}
    for name, kernel in matrices.items():
        if kernel.ndim != 2:
            raise ValueError(
                f"expected a network with one number per sample and output, got a {name} of shape "
                f"{kernel.shape}: end it with Flatten() or GlobalAvgPool(), and Dense(1)"
            )
    return matrices


def kernel_diagonal(
    network: NetworkLike, x: Float[np.ndarray, "n *shape"], name: str, memory: Bytes
) -> Float[np.ndarray, " n"]:
    """Returns the kernel of each sample with itself; of the NNGP the variances before training."""
    blocks = [x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK)]
    diagonals = [kernel_matrices(network, b, None, [name], memory)[name] for b in blocks]
    return np.concatenate([kernel.diagonal() for kernel in diagonals])
