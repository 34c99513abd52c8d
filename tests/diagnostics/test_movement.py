import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diagnostics.networks import X, linear, network, parameters
from tests.tolerance import assert_close
from widelimit import diagnostics
from widelimit.diagnostics import linearization_gap, parameter_movement
from widelimit.finite.linearize import linearize


def moved(f, size):
    start, direction = parameters(0, f), parameters(1, f)
    return jax.tree.map(lambda p, d: p + size * d, start, direction), start


def test_movement():
    params, params0 = {"a": jnp.array([3.0, 4.0j]), "b": 1.0}, {"a": jnp.array([1.0, 2.0]), "b": 2}
    with pytest.raises(TypeError, match="integers have no derivatives"):
        parameter_movement(params, params0)
    with pytest.raises(TypeError, match="real params"):
        parameter_movement(params, {**params0, "b": 2.0})
    params0 = {"a": jnp.array([1.0, 2.0j]), "b": 2.0}
    assert_close(parameter_movement(params, params0), np.sqrt((4 + 4 + 1) / 9), np.float32)
    small = jax.tree.map(lambda p: jnp.full(3000, p, jnp.float16), {"a": 1.0})
    assert_close(parameter_movement({"a": 2 * small["a"]}, small), 1.0, np.float32)


def test_large_and_small_parameters():
    for size in (1e30, 1e-30):
        params0 = {"a": jnp.full(3, size), "b": jnp.full(6, size)}
        params = {"a": 2 * params0["a"], "b": params0["b"]}
        assert_close(parameter_movement(params, params0), np.sqrt(3 / 9), np.float32)
    half = jnp.full(3, 6e4, jnp.float16)
    assert_close(parameter_movement(-half, half), 2.0, np.float32)
    with pytest.raises(ValueError, match="finite parameters"):
        parameter_movement(jnp.full(3, np.inf), jnp.ones(3))
    gap = linearization_gap(lambda p, x: p**2 * x, *map(jnp.array, (3.0, 1.0)), jnp.full(2, 1e30))
    assert_close(np.array(gap) / [1e30, 1, 1e30], np.array([4, 0.5, 8]), np.float32)


def test_its_earlier_name_stays():
    assert diagnostics.linearisation_gap is linearization_gap


def test_gap():
    params, params0 = moved(network, 0.3)
    expected = network(params, X) - linearize(network, params0)(params, X)
    change = network(params, X) - network(params0, X)
    gap = linearization_gap(network, params, params0, X)
    assert_close(gap.absolute, np.sqrt(np.mean(expected**2)), rtol=1e-4)
    assert_close(gap.relative, np.linalg.norm(expected) / np.linalg.norm(change), rtol=1e-4)
    assert_close(gap.moved, np.sqrt(np.mean(change**2)))
    chunked = linearization_gap(network, params, params0, X, batch_size=2)
    jax.tree.map(lambda a, b: assert_close(a, b, rtol=1e-4), chunked, gap)
    # The gap is of second order in the movement.
    smaller = linearization_gap(network, moved(network, 0.03)[0], params0, X)
    assert 0.05 < float(smaller.relative / gap.relative) < 0.2
    assert np.isnan(linearization_gap(network, params0, params0, X).relative)


def test_a_linear_model_has_none():
    params, params0 = moved(linear, 10.0)
    assert float(linearization_gap(linear, params, params0, X).relative) < 1e-6


def test_errors():
    params, params0 = moved(network, 0.1)
    with pytest.raises(ValueError, match="structure of params0"):
        linearization_gap(network, {"w": params["w"]}, params0, X)
    with pytest.raises(ValueError, match=r"params\['a'\] of shape \(4, 2\)"):
        parameter_movement({**params, "a": jnp.ones(3)}, params0)
    with pytest.raises(ValueError, match="not all zero"):
        parameter_movement([jnp.ones(2)], [jnp.zeros(2)])
    with pytest.raises(ValueError, match="finite outputs"):
        linearization_gap(network, {**params, "a": params["a"] / 0}, params0, X)
