"""Every nonlinearity over its whole range, on either engine and in both dtypes."""

import jax
import numpy as np
import pytest

from tests import accuracy
from widelimit import stax

# Largest errors relative to the scale of the pair. Of kinks float32 loses 1 - |rho| behind windows
# and next to rho = -1, which is an angle of its square root in T (in K, of `Sign`).
LIMITS = {np.float32: 1e-5, np.float64: 1e-5}
KINKS = {np.float32: 1e-3, np.float64: 5e-8}
KINKED = {"Relu": 1, "ABRelu": 1, "LeakyRelu": 1, "Abs": 1, "Sign": 0}


def check(name, variances, distances, dtype, engine, spatial):
    inputs = accuracy.pairs(variances, distances, dtype)
    limits = [LIMITS[dtype]] * 2
    if name in KINKED:
        limits[KINKED[name]] = KINKS[dtype]
    for b_std in (None, 0.5):
        found = accuracy.measure(
            accuracy.LAYERS[name], inputs, b_std, engine, dtype, spatial=spatial
        )
        assert found.k <= limits[0], found
        assert found.t <= limits[1], found


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", accuracy.LAYERS)
def test_some_variances_and_correlations(name, spatial):
    for engine in ("auto", "reference"):
        check(
            *(name, accuracy.FEW_VARIANCES, accuracy.FEW_DISTANCES, np.float32, engine),
            spatial=spatial,
        )


@pytest.mark.slow
@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", accuracy.LAYERS)
def test_all_variances_and_correlations(name, dtype, engine, spatial):
    check(name, accuracy.VARIANCES, accuracy.DISTANCES, dtype, engine, spatial=spatial)


OFFSET = 1000 + np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
WIDE = 1e5 * np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
SHORTS = np.full((2, 5, 5, 1), 40000, np.float32)
SHORTS[0, 2, 2], SHORTS[1, 2, 2] = 100, 60000


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("x", [OFFSET, WIDE, SHORTS], ids=["offset", "wide", "16 bits"])
@pytest.mark.parametrize(
    "layer",
    [stax.Erf(), stax.Gelu(), stax.Gaussian(1.0, -0.5), stax.Rbf(0.5), stax.Sin(), stax.Cos()],
    ids=lambda layer: layer.label,
)
def test_inputs_that_are_not_centred_or_scaled(layer, x, engine):
    first = stax.Dense(1) if x.ndim == 2 else stax.Conv(1, (3, 3), padding="SAME")
    net = stax.serial(first, layer, stax.Dense(1), layer, stax.Flatten(), stax.Dense(1))
    found = net.kernel_fn(x, None, ("nngp", "ntk"), engine=engine)
    with jax.enable_x64(True):
        right = net.kernel_fn(x.astype(np.float64), None, ("nngp", "ntk"), engine="reference")
    for a, b in zip(found, right, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
