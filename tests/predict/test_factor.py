import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.predict.factor import Ridge, System, TrainKernel, advise_diag_reg
from widelimit.predict.precision import in_float64
from widelimit.predict.solvers.cholesky import Cholesky
from widelimit.predict.solvers.eigenbasis import Spectral


def kernel(values, ridge=None):
    return TrainKernel("k", values, ridge or Ridge(), advise_diag_reg)


def gram(n, rank, dtype=np.float64, seed=0):
    features = np.random.default_rng(seed).normal(size=(n, rank))
    return (features @ features.T / rank).astype(dtype)


@pytest.mark.usefixtures("x64")
def test_solves_and_determinant():
    matrix, b = gram(5, 9), np.random.default_rng(1).normal(size=(5, 2))
    factor = kernel(matrix).cholesky().factor
    assert_close(factor.solve(jnp.asarray(b)), np.linalg.solve(matrix, b))
    assert_close(factor.quadratic(jnp.asarray(b)), b.T @ np.linalg.solve(matrix, b))
    assert_close(factor.log_determinant(), np.linalg.slogdet(matrix)[1])


@pytest.mark.usefixtures("x64")
def test_ridge():
    matrix = np.diag([1.0, 3.0])
    assert_close(System(jnp.asarray(matrix), Ridge(0.5), 0.0).matrix(), np.diag([2.0, 4.0]))
    ridge = Ridge.of(0.5, diag_reg_absolute_scale=True)
    assert_close(System(jnp.asarray(matrix), ridge, 0.0).matrix(), np.diag([1.5, 3.5]))
    with pytest.raises(ValueError, match="expected diag_reg of at least 0, got -1"):
        Ridge.of(-1.0, diag_reg_absolute_scale=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, -0.5])
@pytest.mark.parametrize("method", ["cholesky", "spectral"])
def test_the_advice_is_right(dtype, offset, method):
    # Singular is no error in the eigenbasis.
    matrix = (gram(12, 4) + offset * np.eye(12)).astype(dtype)
    if method == "spectral" and not offset:
        evals = np.asarray(kernel(matrix).spectral().factor.state.evals)
        assert np.count_nonzero(evals) == 4
        return
    with pytest.raises(ValueError, match="smallest eigenvalue is") as caught:
        getattr(kernel(matrix), method)()
    message = str(caught.value)
    smallest = float(re.search(r"smallest eigenvalue is (\S+),", message)[1])
    assert abs(smallest - offset) < 1e-6
    relative, absolute = (float(x) for x in re.findall(r"diag_reg=(\S+)", message))
    getattr(kernel(matrix, Ridge(relative=relative)), method)()
    getattr(kernel(matrix, Ridge(absolute=absolute)), method)()
    # And not more than is needed.
    assert absolute < (1e-2 if dtype == np.float32 else 1e-8) + 4 * abs(offset)


def test_the_advice_counts_what_was_added():
    matrix = gram(6, 3) - np.eye(6)
    with pytest.raises(ValueError, match=r"after adding 0.1 to its diagonal") as caught:
        kernel(matrix, Ridge(absolute=0.1)).cholesky()
    absolute = float(re.findall(r"diag_reg=(\S+)", str(caught.value))[1])
    kernel(matrix, Ridge(absolute=absolute)).cholesky()
    relative = float(re.findall(r"diag_reg=(\S+)", str(caught.value))[0])
    if np.trace(matrix) > 0:
        kernel(matrix, Ridge(relative=relative)).cholesky()


@pytest.mark.parametrize(("error", "fails"), [(0.0, False), (40.0, False), (200.0, True)])
def test_negative_eigenvalues_measure_the_rounding(error, fails):
    eps = 2.0**-23
    floor = 2 * eps * 3.0
    matrix = np.diag([3.0, 1.0, 60 * floor, -error * floor]).astype(np.float32)
    if fails:
        with pytest.raises(ValueError, match="is indefinite: its smallest eigenvalue is -"):
            kernel(matrix).spectral()
        return
    evals = np.asarray(kernel(matrix).spectral().factor.state.evals)
    # What is smaller than the error seen is not told from zero.
    assert np.count_nonzero(evals) == (2 if error else 3)


def test_a_kernel_of_zeros():
    with pytest.raises(ValueError, match="smallest eigenvalue is 0"):
        kernel(np.zeros((3, 3))).cholesky()
    assert not np.asarray(kernel(np.zeros((3, 3))).spectral().factor.state.evals).any()


def test_near_singular_in_its_own_precision():
    # Positive definite in exact arithmetic, but below the rounding of float32.
    matrix = np.ones((8, 8)) + 1e-7 * np.eye(8)
    kernel(matrix).cholesky()
    with pytest.raises(ValueError, match="singular or indefinite to working precision"):
        kernel(matrix.astype(np.float32)).cholesky()


def test_not_finite_and_not_symmetric():
    with pytest.raises(ValueError, match=r"expected k to be finite, got 1 of 4 .* \(1, 0\)"):
        kernel(np.array([[1.0, 0.0], [np.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"expected k to be symmetric.*up to 0\.5"):
        kernel(np.array([[1.0, 0.0], [0.5, 1.0]]))


@pytest.mark.parametrize("method", ["cholesky", "spectral"])
def test_traced_failures_are_nan(method):
    @jax.jit
    def f(matrix):
        system = getattr(kernel(matrix), method)()
        assert system.factor is None

        @in_float64
        def total(system):
            solver = {"cholesky": Cholesky(), "spectral": Spectral()}[method]
            state = system.factorised(solver).state
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(state)).astype(jnp.float32)

        return total(system)

    assert np.isfinite(f(np.diag([1.0, 2.0]).astype(np.float32)))
    assert np.isnan(f(np.diag([1.0, -1.0]).astype(np.float32)))
    assert np.isnan(f(np.zeros((2, 2), np.float32))) == (method == "cholesky")


def test_factorised_once_and_checked_inside_a_jit():
    owner, bad = kernel(gram(4, 9)), kernel(gram(4, 2))

    @jax.jit
    def f(x):
        owner.cholesky()
        return x

    f(1.0)
    assert owner.cholesky() is owner.cholesky()
    np.asarray(owner.cholesky().factor.state)
    with pytest.raises(ValueError, match="smallest eigenvalue"):
        jax.jit(lambda x: (bad.cholesky(), x)[1])(1.0)
