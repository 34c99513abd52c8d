import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.diagnostics.networks import X, Y, linear, network, parameters
from tests.tolerance import assert_close
from widelimit.diagnostics import curvature, relative_scale


def dense_parts(params):
    """|f - y|, |D^2 f| over many directions, and |D f|, from whole arrays of derivatives."""
    flat, unravel = ravel_pytree(params)

    def f(p):
        return network(unravel(p), X).ravel()

    jacobian, hessian = np.asarray(jax.jacrev(f)(flat)), np.asarray(jax.hessian(f)(flat))
    # |D^2 f| is the largest norm of w . D^2 f over unit vectors w of outputs.
    w = np.random.default_rng(0).standard_normal((20, len(hessian)))
    best = 0.0
    for row in w:
        for _ in range(30):
            values, vectors = np.linalg.eigh(np.tensordot(row, hessian, 1))
            u = vectors[:, np.argmax(np.abs(values))]
            row = hessian @ u @ u
            best = max(best, np.linalg.norm(row))
            row = row / np.linalg.norm(row)
    return np.linalg.norm(f(flat) - Y.ravel()), best, np.linalg.norm(jacobian, 2)


def test_against_whole_derivatives():
    params = parameters(0)
    residual, hessian, jacobian = dense_parts(params)
    scale = relative_scale(network, params, X, Y, tol=1e-4, starts=5)
    assert_close(scale.residual, residual, rtol=1e-5)
    assert_close(scale.jacobian, jacobian, rtol=1e-5)
    assert_close(scale.hessian, hessian, rtol=1e-2)
    assert_close(scale.kappa, scale.residual * scale.hessian / scale.jacobian**2)
    chunked = relative_scale(network, params, X, Y, tol=1e-4, starts=5, batch_size=2)
    assert_close(chunked.kappa, scale.kappa, rtol=1e-3)


def test_lanczos_and_subsets(monkeypatch):
    params = parameters(0)
    built = relative_scale(network, params, X, Y, subset="w", starts=1).jacobian
    monkeypatch.setattr(curvature, "_SMALL", 4)
    found = relative_scale(network, params, X, Y, subset="w", starts=1).jacobian
    assert_close(found, built, rtol=1e-5)


def test_scaling_makes_lazy():
    # Of 2 p^2 x at p = 2, with residual 0: by hand |D f| = 8, |D^2 f| = 4.
    scale = relative_scale(lambda p, x: 2 * p**2 * x, jnp.array(2.0), jnp.ones(1), jnp.ones(1) * 8)
    assert scale == (0.0, 0.0, 4.0, 8.0)
    assert relative_scale(linear, parameters(0, linear), X, Y).kappa == 0


def test_complex_numbers():
    params = jnp.array([1.0 + 1.0j])
    scale = relative_scale(lambda p, x: p**2 * x, params, jnp.ones(1), jnp.zeros(1))
    assert_close(scale.residual, 2.0)
    assert_close(scale.jacobian, 2 * np.sqrt(2.0), rtol=1e-6)
    assert_close(scale.hessian, 2.0, rtol=1e-3)


def test_errors():
    params = parameters(0)
    with pytest.raises(ValueError, match=r"y of the shape of f\(params, x\), \(5, 2\)"):
        relative_scale(network, params, X, Y[:, 0])
    with pytest.raises(ValueError, match="depend"):
        relative_scale(lambda p, x: x, params, X, X)
    with pytest.raises(TypeError, match="one array"):
        relative_scale(lambda p, x: (network(p, x), x), params, X, Y)
    with pytest.raises(ValueError, match="not all zero"):
        relative_scale(lambda p, x: p**2 * x, jnp.zeros(()), jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match="finite derivatives"):
        relative_scale(lambda p, x: p / 0 * x, jnp.ones(()), jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match="within 1 rounds"):
        relative_scale(network, params, X, Y, max_iter=1, starts=1)
    with pytest.raises(ValueError, match="starts of at least 1"):
        relative_scale(network, params, X, Y, starts=0)
