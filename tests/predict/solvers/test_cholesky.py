import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.predict import Cholesky
from widelimit.predict.solvers.base import Ridge, System


def gram(n, seed=0):
    features = np.random.default_rng(seed).normal(size=(n, n + 4))
    return features @ features.T / n


@pytest.mark.usefixtures("x64")
def test_solutions_products_and_the_determinant():
    matrix, b = gram(5), np.random.default_rng(1).normal(size=(5, 2))
    solver, system = Cholesky(), System(jnp.asarray(matrix), Ridge(0.0, 0.1), 2e-16)
    whole, state = matrix + 0.1 * np.eye(5), solver.factorise(system)
    np.testing.assert_array_equal(state, np.tril(state))
    assert_close(solver.solve(state, jnp.asarray(b)), np.linalg.solve(whole, b))
    assert_close(solver.quadratic(state, jnp.asarray(b)), b.T @ np.linalg.solve(whole, b))
    assert_close(solver.log_determinant(state), np.linalg.slogdet(whole)[1])


@pytest.mark.usefixtures("x64")
def test_trust_ends_at_the_smallest_eigenvalue():
    evecs = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0]
    matrix = (evecs * np.array([1e-3, 1, 1, 2, 2, 3, 3, 4])) @ evecs.T
    solver = Cholesky()
    state = solver.factorise(System(jnp.asarray(matrix), Ridge(), 2e-16))
    assert solver.is_trusted(state, 8, 0.9e-3)
    assert not solver.is_trusted(state, 8, 1.1e-3)
    assert System(jnp.asarray(-matrix), Ridge(), 2e-16).factorised(solver).state is None
