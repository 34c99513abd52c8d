import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit import InfiniteEnsemble, stax
from widelimit.predict.solvers.base import Factorisation, Ridge, System
from widelimit.predict.spectral import DECAY, AtTimes
from widelimit.scale.krylov import Krylov


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_a_solver_of_kernels_in_memory(inference):
    model, x, y, x_test = linear_model.make(width=40, started=20)
    options = {"inference": inference, "noise": 0.3}
    dense = InfiniteEnsemble(model.kernel_fn, x, y, **options)
    krylov = InfiniteEnsemble(model.kernel_fn, x, y, **options, solver=Krylov(tol=1e-10, rank=2))
    assert_close(krylov.mean(x_test), dense.mean(x_test), rtol=1e-8)
    assert_close(krylov.cov(x_test), dense.cov(x_test), rtol=1e-8)
    if inference == "bayes":
        # As many probes as samples: exact.
        assert_close(krylov.log_marginal_likelihood(), dense.log_marginal_likelihood(), rtol=1e-8)
        return
    t = np.array([1.0, 50.0, np.inf])
    assert_close(krylov.at(t).mean(x_test), dense.at(t).mean(x_test), rtol=1e-7)
    assert_close(krylov.at(t).cov(x_test), dense.at(t).cov(x_test), rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_functions_of_several_right_hand_sides():
    matrix = np.diag([1.0, 2.0, 3.0, 4.0])
    solver = Krylov(memory=3200)  # a single column at a time
    state = solver.factorise(System(matrix, Ridge(0.0, 0.5), 1e-16))
    tau = np.array([0.1, 2.0])
    b = np.random.default_rng(0).normal(size=(2, 4, 3))
    expected = np.exp(-tau[:, None, None] * (np.diag(matrix) + 0.5)[None, :, None]) * b
    found = Factorisation(state, solver).apply(DECAY, jnp.asarray(tau), jnp.asarray(b))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    both = np.asarray(solver.apply(state, AtTimes(DECAY, jnp.asarray(tau)), b[:1]))
    np.testing.assert_allclose(both[1], np.exp(-2.0 * (np.diag(matrix) + 0.5))[:, None] * b[0])


def test_traced_kernels_are_refused():
    net = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))
    x, y = np.eye(3, dtype=np.float32), np.ones((3, 1), np.float32)

    def f(noise):
        return InfiniteEnsemble(net, x, y, noise=noise, solver=Krylov()).mean(x).sum()

    with pytest.raises(TypeError, match="expected concrete numbers for the solver Krylov"):
        jax.jit(f)(0.1)
