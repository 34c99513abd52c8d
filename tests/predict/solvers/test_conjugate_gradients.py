import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import InfiniteEnsemble, stax
from widelimit.predict import ConjugateGradients
from widelimit.predict.solvers.conjugate_gradients import conjugate_gradients


def hermitian(evals, is_complex=False):
    rng, n = np.random.default_rng(0), len(evals)
    evecs = rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if is_complex else 0.0)
    evecs = np.linalg.qr(evecs)[0]
    return jnp.asarray((evecs * evals) @ evecs.conj().T)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("is_complex", [False, True])
def test_solutions_and_their_derivatives(is_complex):
    matrix = hermitian(np.linspace(0.1, 3, 12), is_complex)
    b = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4))).astype(matrix.dtype)

    def solve(matrix, b):
        def product(v):
            return (matrix @ v.reshape(-1)).reshape(v.shape)

        return conjugate_gradients(product, b, 1e-12, None)

    found = solve(matrix, b)
    assert found.residual < 1e-12
    assert found.is_definite
    expected = jnp.linalg.solve(matrix, b.reshape(-1)).reshape(3, 4)
    assert_close(found.value, expected, rtol=1e-10)

    def direct(matrix, b):
        return jnp.linalg.solve(matrix, b.reshape(-1))

    if not is_complex:
        for argnum in (0, 1):
            got = jax.jacrev(lambda m, b: solve(m, b).value, argnum)(matrix, b)
            right = jax.jacrev(direct, argnum)(matrix, b)
            assert_close(got.reshape(right.shape), right, rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lowest", [-1.0, -1e-3])
def test_negative_eigenvalues_are_met(lowest):
    matrix = hermitian(np.r_[lowest, np.linspace(0.1, 3, 11)])
    b = jnp.ones((12,))
    assert not conjugate_gradients(lambda v: matrix @ v, b, 1e-8, 200).is_definite


@pytest.mark.usefixtures("x64")
def test_nothing_to_solve():
    found = conjugate_gradients(lambda v: 2 * v, jnp.zeros(3), 1e-8, None)
    np.testing.assert_array_equal(found.value, np.zeros(3))
    assert found.residual == 0


def test_one_more_ensemble_in_float32_with_small_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    net = stax.serial(stax.Dense(8, 1.5, 0.1), stax.Erf(), stax.Dense(1))
    y, x_test = np.sin(x[:, :2]), x[:5] + 0.1
    for inference in ("bayes", "gradient_descent"):
        options = {"inference": inference, "noise": 0.05}
        found = InfiniteEnsemble(net, x, y, solver=ConjugateGradients(), **options)
        expected = InfiniteEnsemble(net, x, y, **options)
        assert_close(found.mean(x_test), expected.mean(x_test), rtol=1e-5)
        assert_close(found.cov(x_test), expected.cov(x_test), rtol=1e-4)


@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_without_convergence_there_is_an_error(inference):
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    net = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))
    solver = ConjugateGradients(maxiter=3)
    options = {"inference": inference, "noise": 0.01, "solver": solver}
    with pytest.raises(ValueError, match=r"reach a residual of 1\.0e-08, got .*noise.*maxiter"):
        InfiniteEnsemble(net, x, x, **options).mean(x)
    x = jnp.asarray(x)
    found = jax.jit(lambda x: InfiniteEnsemble(net, x, x, **options).mean(x))(x)
    assert np.isnan(found).any()


def test_wrong_numbers():
    for tol in (0.0, -1e-3, 2.0, np.nan):
        with pytest.raises(ValueError, match="expected tol between 0 and 1, got"):
            ConjugateGradients(tol)
    for maxiter in (0, -1):
        with pytest.raises(ValueError, match="expected maxiter of at least 1, or None, got"):
            ConjugateGradients(maxiter=maxiter)
