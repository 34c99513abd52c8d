"""Tiles of a network: what they promise to `wl.gram`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import NETWORKS, SPATIAL, Case, sweep
from widelimit import stax
from widelimit.gram.tiler import Tiler
from widelimit.stax import Dense, serial

NET = serial(Dense(4, 1.3, 0.1), stax.Relu(), Dense(1))


@pytest.mark.usefixtures("reference_engine")
def test_it_is_a_tiler() -> None:
    x = np.ones((3, 2), np.float32)
    tiler = NET.kernel_fn.tiler(x, None, "ntk", jax.local_devices()[:1])
    assert isinstance(tiler, Tiler)
    assert tiler.outline() == jax.ShapeDtypeStruct((1, 1), jnp.float32)
    assert tiler.prepared_bytes == 2 * 4
    assert tiler.tile_bytes(2, 3) < tiler.tile_bytes(3, 3) < tiler.tile_bytes(30, 30)


def test_same_inputs_are_found_in_the_working_dtype() -> None:
    x = np.random.default_rng(0).standard_normal((3, 2))
    devices = jax.local_devices()[:1]
    for x2, same in (
        (None, True),
        (x, True),
        (jnp.asarray(x), True),
        (x * (1 + 1e-12), True),
        (x[:2], False),
        (x + 1e-3, False),
    ):
        tiler = NET.kernel_fn.tiler(x, x2, "ntk", devices)
        assert tiler.same == same
        assert tiler.given_x2 == (x2 is not None)


QUICK = {"residual", "layer_norm", "conv_global_pool", "wide_residual", "parallel_inputs"}


@pytest.mark.parametrize("case", sweep(NETWORKS + SPATIAL, QUICK))
def test_tiles_of_the_zoo(case: Case) -> None:
    x, _ = case.inputs(4, 4)
    devices = jax.local_devices()[:1]
    tiler = case.net.kernel_fn.tiler(x, None, ("nngp", "ntk"), devices)
    tiler.check()
    first, second = (tiler.prepare(tiler.rows(0, i, i + 2, 2)) for i in (0, 2))
    whole = case.net.kernel_fn(x, None, ("nngp", "ntk"))
    for tile, block in (
        (tiler.tile(first, second), lambda k: k[:2, 2:]),
        (tiler.tile(second, None), lambda k: k[2:, 2:]),
    ):
        for one, other in zip(tile, whole, strict=True):
            expected = block(np.asarray(other)) if np.ndim(other) else other
            np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5 * np.abs(other).max())
