"""Nonlinearities on slices against their definitions in extended precision."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from tests.engines.fused import oracle
from widelimit import stax
from widelimit.stax import Conv, serial

LAYERS = [
    stax.Relu(),
    stax.ABRelu(-0.7, 0.4),
    stax.Abs(),
    stax.Sign(),
    stax.Erf(1.3, 0.8, 0.2),
    stax.Erf(1.0, 3.0),
    stax.Sin(1.2, 0.7, 0.3),
    stax.Cos(1.0, 0.5),
    stax.Rbf(0.4),
    stax.Exp(0.9, 0.3),
    stax.Gaussian(1.1, -0.6),
    stax.Gelu(),
    stax.ExpNormalized(0.7, -0.9, True),
    stax.ExpNormalized(0.7, -0.9),
    stax.Gabor(),
    stax.Monomial(0),
    stax.Monomial(5),
    stax.Hermite(4),
    stax.Polynomial([0.3, -0.7, 0.2, 0.1]),
    stax.Polynomial([]),
    *map(stax.RectifiedMonomial, range(5)),
]
PRECISIONS = [(True, 2e-13), (False, 5e-6)]


def through(layer: Any, x1: np.ndarray, x2: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """K and T after the layer, for images [n, 2] of one position, with K = T before it."""
    net = serial(Conv(1, (1,)), layer, stax.Flatten())
    images = [None if x is None else x[:, None] for x in (x1, x2)]
    kernel = net.kernel_fn(*images, ("nngp", "ntk"), engine="fused")
    return np.asarray(kernel.nngp), np.asarray(kernel.ntk)


def truth(layer: Any, x1: np.ndarray, x2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in extended precision."""
    x1, x2 = (x.astype(np.longdouble) for x in (x1, x2))
    c = x1 @ x2.T / 2
    q1, q2 = ((x * x).sum(1) / 2 for x in (x1, x2))
    k, slope = oracle.dual(layer, c, q1[:, None], q2[None])
    return k, c * slope


def vectors(variances: Any, angles: Any, dtype: Any) -> np.ndarray:
    """Vectors [n, 2] of every variance at every angle."""
    radius = np.sqrt(2 * np.asarray(variances))[:, None]
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return (radius[..., None] * directions).reshape(-1, 2).astype(dtype)


def check(actual: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert np.isfinite(a).all()
        scale = max(float(np.abs(b).max()), 1e-300)
        assert float(np.abs(a - b).max()) <= tolerance * scale


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize(("x64", "tolerance"), PRECISIONS)
def test_pairs(layer: Any, x64: bool, tolerance: float) -> None:
    dtype = np.float64 if x64 else np.float32
    small = [0.1] if isinstance(layer, stax.Sin) else [1e-8]  # a difference of exponentials
    oscillates = isinstance(layer, stax.Sin | stax.Rbf | stax.Exp)
    with jax.enable_x64(x64):
        for variances in (small, [0.3, 1.0, 4.0], [10.0] if oscillates else [1e2, 1e4]):
            x1 = vectors(variances, np.linspace(0.2, 1.5, 9), dtype)
            x2 = vectors(variances, np.linspace(-1.2, -0.2, 7), dtype)
            check(through(layer, x1, x2), truth(layer, x1, x2), tolerance)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize(("x64", "tolerance"), PRECISIONS)
def test_a_position_with_itself(layer: Any, x64: bool, tolerance: float) -> None:
    dtype = np.float64 if x64 else np.float32
    with jax.enable_x64(x64):
        for variance in (1e-8, 1.0, 1e2, 1e4, 1e7):
            if variance > 10 and isinstance(layer, stax.Exp):
                continue
            if variance < 1 and isinstance(layer, stax.Sin):
                continue  # a difference of exponentials
            x = vectors([variance], [0.3, 0.8], dtype)[:1]
            check(through(layer, x, None), truth(layer, x, x), tolerance)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize(("x64", "tolerance"), PRECISIONS)
def test_zero_variances(layer: Any, x64: bool, tolerance: float) -> None:
    dtype = np.float64 if x64 else np.float32
    x1, x2 = np.array([[0, 0], [1, 2]], dtype), np.array([[0, 0], [0.5, -1]], dtype)
    with jax.enable_x64(x64):
        check(through(layer, x1, x2), truth(layer, x1, x2), tolerance)
        k, _ = through(layer, x1[:1], None)
        assert k[0, 0] >= 0


@pytest.mark.parametrize("layer", [stax.Relu(), stax.Abs(), stax.LeakyRelu(0.2)], ids=repr)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_correlations_of_one_in_float32(layer: Any, sign: float) -> None:
    # Images that differ by powers of two: correlations are +-1, up to rounding of the products.
    x1 = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    found = [through(layer, x[None], sign * 2 * x[None]) for x in x1[:20]]
    true = [truth(layer, x[None], sign * 2 * x[None]) for x in x1[:20]]
    scale = 4 * float(np.max(np.abs(x1[:20]) ** 2))
    for a, b in zip(found, true, strict=True):
        for value, expected in zip(a, b, strict=True):
            assert float(np.abs(value - expected).max()) < 1e-6 * scale


@pytest.mark.usefixtures("x64")
def test_gaussians_that_diverge_are_nan() -> None:
    layer = stax.Gaussian(1.0, 0.2)
    x = np.array([[1.0, 0.0], [0.0, 2.0]])  # variances 0.5 and 2: 1 - 4 b q is 0.6 and -0.6
    k, t = through(layer, x, None)
    assert np.isfinite(k[0, 0])
    assert np.isnan(k[1, 1])
    assert np.isnan(t[1, 1])
