"""The contract of a solver, by ones from outside of the package."""

import jax
import numpy as np
import pytest
import scipy.linalg

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit import InfiniteEnsemble
from widelimit.predict import Cholesky, ConjugateGradients, Solver, Spectral
from widelimit.predict.solvers.base import check_solver


class Direct(Solver):
    """LU decompositions by SciPy, with pivots among the state."""

    def factorise(self, system):
        return scipy.linalg.lu_factor(system.host_matrix())

    def solve(self, state, b):
        return scipy.linalg.lu_solve(state, b)


class Eigenvalues(Solver):
    """All that is optional, by NumPy."""

    def factorise(self, system):
        evals, evecs = np.linalg.eigh(system.matrix())
        return (evals, evecs) if evals[0] > 0 else None

    def solve(self, state, b):
        evals, evecs = state
        return evecs @ ((evecs.T @ np.asarray(b)) / evals[:, None])

    def apply(self, state, function, b):
        evals, evecs = state
        return evecs @ (np.asarray(function(evals))[:, :, None] * (evecs.T @ np.asarray(b)))

    def log_determinant(self, state):
        return np.log(state[0]).sum()


def problem():
    return linear_model.make(width=40, started=20)


def ensembles(solver, inference, **kwargs):
    """The ensemble of the solver, and the default one."""
    model, x, y, _ = problem()
    options = {"noise": 0.3, "inference": inference, **kwargs}
    return (InfiniteEnsemble(model.kernel_fn, x, y, solver=s, **options) for s in (solver, None))


SOLVERS = [Cholesky(), Spectral(), ConjugateGradients(1e-12), Direct(), Eigenvalues()]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_every_solver_finds_the_same_ensemble(solver, inference):
    x_test, y_test = problem()[3], np.ones((4, 2))
    found, expected = ensembles(solver, inference)
    for name in ["mean", "cov", "var", "std"]:
        got, right = (getattr(e, name)(x_test) for e in (found, expected))
        assert_close(got, right, rtol=1e-9)
    key = jax.random.key(0)
    assert_close(found.sample(key, x_test, 3), expected.sample(key, x_test, 3), rtol=1e-8)
    assert_close(found.loss(x_test, y_test).std, expected.loss(x_test, y_test).std, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", [Spectral(), Eigenvalues()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [0.0, np.array([[2.0, 50.0]]), np.inf])
def test_finite_times_by_functions_of_eigenvalues(solver, t):
    x_test = problem()[3]
    found, expected = (e.at(t) for e in ensembles(solver, "gradient_descent"))
    for name in ["mean", "cov"]:
        got, right = (getattr(e, name)(x_test) for e in (found, expected))
        assert_close(got, right, rtol=1e-9)


@pytest.mark.parametrize("solver", [Cholesky(), Eigenvalues()], ids=lambda s: type(s).__name__)
def test_the_marginal_likelihood_by_determinants(solver):
    found, expected = ensembles(solver, "bayes")
    assert_close(found.log_marginal_likelihood(), expected.log_marginal_likelihood(), rtol=1e-6)


@pytest.mark.parametrize("solver", [Cholesky(), Direct(), ConjugateGradients()])
def test_finite_times_need_the_spectrum(solver):
    found, _ = ensembles(solver, "gradient_descent")
    name = type(solver).__name__
    with pytest.raises(NotImplementedError, match=rf"finite times need, got {name}.*Spectral"):
        found.at(1.0)
    assert_close(found.at(None).mean(problem()[3]), found.mean(problem()[3]))


@pytest.mark.parametrize("solver", [Spectral(), Direct(), ConjugateGradients()])
def test_the_marginal_likelihood_needs_a_determinant(solver):
    found, _ = ensembles(solver, "bayes")
    with pytest.raises(NotImplementedError, match=r"marginal likelihood needs, got .*Cholesky"):
        found.log_marginal_likelihood()


@pytest.mark.parametrize("solver", [Cholesky(), Direct(), ConjugateGradients()])
def test_kernels_singular_by_rounding_are_refused(solver):
    model, x, y, _ = problem()
    twice, targets = np.vstack([x, x * (1 + 1e-6)]).astype(np.float32), np.tile(y, (2, 1))
    with pytest.raises(ValueError, match=r"smallest eigenvalue is .*noise="):
        InfiniteEnsemble(
            model.kernel_fn, twice, targets, inference="bayes", jitter=0, solver=solver
        )
    InfiniteEnsemble(model.kernel_fn, twice, targets, inference="bayes", solver=solver)


def test_the_eigenbasis_leaves_out_what_is_singular():
    model, x, y, x_test = problem()
    twice, targets = np.tile(x, (2, 1)), np.tile(y, (2, 1))
    options = {"inference": "bayes", "jitter": 0}
    with pytest.warns(RuntimeWarning, match="6 of 12 eigenvalues are lost in rounding"):
        found = InfiniteEnsemble(model.kernel_fn, twice, targets, solver=Spectral(), **options)
    with pytest.warns(RuntimeWarning, match="6 of 12"):
        default = InfiniteEnsemble(model.kernel_fn, twice, targets, **options)
    np.testing.assert_array_equal(found.mean(x_test), default.mean(x_test))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_indefinite_kernels_are_refused(solver):
    _, x, y, _ = problem()

    def kernel_fn(x1, x2, get):
        return np.diag([3.0, 2.0, 1.0, 1.0, 1.0, -2.0])

    if isinstance(solver, Direct):
        pytest.skip("its own affair")
    with pytest.raises(ValueError, match=r"its smallest eigenvalue is -2, .*noise="):
        InfiniteEnsemble(kernel_fn, x, y, inference="bayes", solver=solver)


@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_solvers_of_numpy_refuse_tracers(inference):
    model, x, y, x_test = problem()
    found, expected = ensembles(Direct(), inference)
    with pytest.raises(TypeError, match=r"concrete numbers for the solver Direct, .* jax\.jit"):
        jax.jit(found.cov)(x_test)
    with pytest.raises(TypeError, match="concrete numbers for the solver Direct"):
        jax.grad(
            lambda noise: InfiniteEnsemble(
                model.kernel_fn, x, y, inference=inference, noise=noise, solver=Direct()
            ).mean(x_test)[0, 0]
        )(0.1)
    assert_close(jax.jit(found.mean)(x_test), expected.mean(x_test), rtol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS[:3], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_derivatives_through_solvers_of_jax(solver, inference):
    def f(noise, solver):
        model, x, y, x_test = problem()
        ensemble = InfiniteEnsemble(
            model.kernel_fn, x, y, inference=inference, noise=noise, solver=solver
        )
        return ensemble.mean(x_test).sum() + ensemble.std(x_test).sum()

    for transform in (lambda f: f, jax.jit):
        found, expected = (transform(jax.grad(lambda n, s=s: f(n, s)))(0.3) for s in (solver, None))
        assert_close(found, expected, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS[:3], ids=lambda s: type(s).__name__)
def test_traced_failures_are_nan(solver):
    _, x, y, _ = problem()

    @jax.jit
    def f(smallest):
        def kernel_fn(x1, x2, get):
            return jax.numpy.diag(jax.numpy.ones(6)).at[5, 5].set(smallest)

        options = {"inference": "bayes", "jitter": 0.0, "solver": solver}
        return InfiniteEnsemble(kernel_fn, x, y, **options).mean(x)

    assert np.isfinite(f(1.0)).all()
    assert np.isnan(f(-1.0)).any()


def test_results_of_a_wrong_shape():
    class Flat(Direct):
        def solve(self, state, b):
            solved = super().solve(state, b)
            return solved if solved.shape[1] == 1 else solved[:, :1]

    found, _ = ensembles(Flat(), "bayes")
    with pytest.raises(
        ValueError, match=r"expected solve of Flat to return .*\(6, 2\), got \(6, 1"
    ):
        found.mean(problem()[3])


def test_no_solver():
    for wrong in ["cholesky", Cholesky, 3]:
        with pytest.raises(TypeError, match=r"expected solver to be None or a .*Solver such as"):
            check_solver(wrong)
    with pytest.raises(TypeError, match="abstract"):
        Solver()
