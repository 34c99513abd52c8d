"""The benchmark of empirical kernels: its networks and tables. Nothing is timed or installed."""

import jax
import numpy as np
import pytest

from benchmarks import finite
from benchmarks.environments import FINITE
from benchmarks.finite_networks import CLASSES, FUNCTIONS, INPUTS, parameters
from benchmarks.sides import Measured


@pytest.mark.parametrize("network", FUNCTIONS)
def test_networks_treat_inputs_one_by_one(network):
    params = parameters(network, np.float32)
    x = np.random.default_rng(0).standard_normal((2, *INPUTS[network]), np.float32)
    f = jax.jit(FUNCTIONS[network])
    with jax.numpy_rank_promotion("allow"):  # written as people write
        both, first = f(params, x), f(params, x[:1])
    assert both.shape == (2, CLASSES)
    np.testing.assert_allclose(both[:1], first, atol=1e-4)


def test_the_page_names_the_fastest_and_failures():
    def measured(time):
        return Measured([time], 2 * time, 10**6, values=np.ones((2, 2)))

    found = {
        ("widelimit", "AUTO"): measured(0.11),
        ("widelimit", "STRUCTURED_DERIVATIVES"): measured(0.1),
        ("nt-finite", "JACOBIAN_CONTRACTION"): measured(0.3),
        ("nt-finite", "STRUCTURED_DERIVATIVES"): Measured(failure="ended with 1: no"),
    }
    page = finite.page({"mlp": found}, ["facts"])
    row = next(line for line in page.splitlines() if line.startswith("| 3-layer MLP"))
    assert "STRUCTURED_DERIVATIVES 100 ms | 1.10 | JACOBIAN_CONTRACTION 300 ms | 3.00" in row
    assert row.endswith("| - | - | - | - |")
    assert "failed: ended with 1: no" in page


def test_every_environment_has_its_ways():
    assert list(finite.WAYS) == list(FINITE)
