"""Kernels in float32 against float64, over random networks and inputs that are close."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.random_networks import close_inputs, random_network
from widelimit.layers.base import Layer


def both_kernels(net: Layer, x: np.ndarray) -> np.ndarray:
    """Returns the NNGP and NTK kernels [2, n, n] in float64."""
    kernels = net.kernel_fn(x, None, ("nngp", "ntk"))
    return np.stack([np.asarray(kernels.nngp), np.asarray(kernels.ntk)]).astype(np.float64)


def check(seed: int) -> None:
    """Compares the kernels of one random network."""
    rng = np.random.default_rng(seed)
    convolutional = bool(rng.random() < 0.5)
    net, x = random_network(rng, convolutional), close_inputs(rng, convolutional)
    with jax.enable_x64(True):
        try:
            right = both_kernels(net, x)
        except ValueError as error:
            pytest.skip(f"refused: {error}")
    if not np.isfinite(right.astype(np.float32)).all():
        pytest.skip("beyond what float32 holds")
    found = both_kernels(net, x)
    for kernel, expected in zip(found, right, strict=True):
        assert np.abs(kernel - expected).max() <= 2e-5 * np.abs(expected).max()
        assert np.linalg.eigvalsh(kernel)[0] >= -1e-6 * np.trace(kernel)


@pytest.mark.parametrize("seed", range(12))
def test_some_random_networks(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 300))
def test_random_networks(seed: int) -> None:
    check(seed)
