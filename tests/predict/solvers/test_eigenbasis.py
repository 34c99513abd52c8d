import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.tolerance import assert_close
from widelimit.predict import Spectral
from widelimit.predict.solvers.base import Ridge, System
from widelimit.predict.spectral import DECAY, AtTimes


@pytest.mark.usefixtures("x64")
def test_solutions_and_functions():
    features = np.random.default_rng(0).normal(size=(5, 3))
    matrix, b = features @ features.T, np.random.default_rng(1).normal(size=(5, 2))
    solver = Spectral()
    state = solver.factorise(System(jnp.asarray(matrix), Ridge(), 2e-16))
    assert np.count_nonzero(state.evals) == 3
    expected = np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ b
    assert_close(solver.solve(state, jnp.asarray(b)), expected, rtol=1e-10)
    decayed = solver.apply(state, AtTimes(DECAY, jnp.array([0.0, 0.7])), jnp.asarray(b)[None])
    assert_close(decayed[0], b, rtol=1e-12)
    assert_close(decayed[1], scipy.linalg.expm(-0.7 * matrix) @ b, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_indefinite_matrices_have_no_state():
    matrix = jnp.diag(jnp.array([1.0, -1e-3]))
    assert Spectral().factorise(System(matrix, Ridge(), 2e-16)) is None
    assert Spectral().factorise(System(matrix, Ridge(), 1e-5)) is not None
