import numpy as np
import pytest
import scipy.stats

from tests.scale.problems import Counting, kernel, smooth_kernel
from widelimit.scale.evidence import estimate_determinant, likelihood_of
from widelimit.scale.nystrom_preconditioner import NystromPreconditioner
from widelimit.scale.operator import DenseOperator
from widelimit.scale.pcg import solve


def determinant(matrix, ridge):
    return np.linalg.slogdet(matrix + ridge * np.eye(len(matrix)))[1]


@pytest.mark.parametrize("make", [kernel, smooth_kernel])
def test_the_error_is_that_of_many_draws(make):
    matrix, ridge = make(200), 1e-2
    operator, exact = DenseOperator(matrix), determinant(matrix, ridge)
    draws = [estimate_determinant(operator, ridge=ridge, seed=seed, probes=8) for seed in range(40)]
    scores = np.array([(draw.value - exact) / draw.error for draw in draws])
    # Student's t with 7 degrees of freedom: its standard deviation is sqrt(7 / 5).
    assert abs(scores.mean()) < 4 * np.sqrt(7 / 5 / 40)
    assert 0.6 < scores.std() < 1.9
    assert abs(np.mean([draw.value for draw in draws]) - exact) < 0.02 * abs(exact)


def test_as_many_probes_as_samples_are_exact():
    matrix = smooth_kernel(30)
    found = estimate_determinant(DenseOperator(matrix), ridge=1e-3, probes=30)
    np.testing.assert_allclose(found.value, determinant(matrix, 1e-3), rtol=1e-9)
    assert found.error < 1e-6


def test_the_preconditioner_pays():
    matrix, ridge = smooth_kernel(400), 1e-3
    operator = Counting(matrix)
    near = NystromPreconditioner(operator, ridge, rank=150)
    alone = NystromPreconditioner(operator, ridge, rank=1)
    good = estimate_determinant(operator, ridge=ridge, preconditioner=near)
    assert good.steps == operator.passes
    poor = estimate_determinant(operator, ridge=ridge, preconditioner=alone)
    assert good.error < 0.3 * poor.error
    assert good.steps <= poor.steps


def test_the_marginal_likelihood_of_a_gaussian():
    matrix, ridge = smooth_kernel(60), 0.1
    y = np.random.default_rng(1).normal(size=(60, 2))
    operator = DenseOperator(matrix)
    found = likelihood_of(
        y,
        solve(operator, y, ridge=ridge, tol=1e-10),
        estimate_determinant(operator, ridge=ridge, probes=60),
    )
    density = scipy.stats.multivariate_normal(np.zeros(60), matrix + ridge * np.eye(60))
    np.testing.assert_allclose(found.value, density.logpdf(y.T).sum(), rtol=1e-9)
    rough = likelihood_of(
        y,
        solve(operator, y, ridge=ridge, tol=1e-2),
        estimate_determinant(operator, ridge=ridge, probes=60),
    )
    assert abs(rough.value - density.logpdf(y.T).sum()) <= rough.error


def test_errors():
    operator = DenseOperator(kernel(30))
    with pytest.raises(ValueError, match="expected at least 2 probes"):
        estimate_determinant(operator, ridge=0.1, probes=1)
    with pytest.raises(ValueError, match="expected the quadrature to converge within 1 steps"):
        estimate_determinant(DenseOperator(kernel(100)), ridge=1e-8, max_steps=1)
    matrix = kernel(30) - 1.0 * np.eye(30)
    made = NystromPreconditioner(operator, 0.1, rank=3)
    with pytest.raises(ValueError, match=r"got a negative eigenvalue: a ridge of"):
        estimate_determinant(DenseOperator(matrix), ridge=0.1, preconditioner=made)
