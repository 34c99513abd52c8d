import numpy as np
import pytest

from tests.scale.problems import Counting, kernel, smooth_kernel
from widelimit.predict.dynamics import Times
from widelimit.predict.stepping import Descent
from widelimit.scale.dynamics import Response, dynamics, krylov_basis, response_function
from widelimit.scale.operator import DenseOperator


def targets(n, c, seed=1):
    return np.random.default_rng(seed).normal(size=(n, c))


def exact_response(matrix, b, tau, ridge=0.0):
    evals, evecs = np.linalg.eigh(matrix)
    shifted = evals + ridge
    weights = -np.expm1(-shifted * tau) / shifted
    return evecs @ (weights[:, None] * (evecs.T @ b))


def test_eighty_steps_over_seven_decades():
    # Condition 2e3, as in kernels with a ridge; the error is that of outputs on the training set.
    n = 640
    x = np.random.default_rng(0).normal(size=(n, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    matrix, b = np.exp(-2 * (1 - x @ x.T)), targets(n, 4)
    evals = np.linalg.eigvalsh(matrix)
    ridge = evals[-1] / 2e3
    operator = Counting(matrix)
    basis = krylov_basis(operator, b, None)
    basis.extend(80)
    times = np.append(np.geomspace(1e-1, 1e6, 8), np.inf) / evals[-1]
    function = response_function(Times.of(times, b.size), b.size)
    found = Response(basis, operator, ridge).reach(function, b, 1e-10, 80)
    assert operator.passes == found.steps == 80
    for value, tau in zip(found.value, times, strict=True):
        outputs = matrix @ exact_response(matrix, b, tau, ridge)
        np.testing.assert_allclose(matrix @ value, outputs, atol=1e-8 * abs(outputs).max())


def test_steps_are_taken_until_the_error_is_small():
    matrix, b = smooth_kernel(200), targets(200, 3)
    operator = Counting(matrix)
    t = np.array([[0.0, 30.0], [1e4, np.inf]]) * b.size
    found = dynamics(operator, b, t, learning_rate=0.5, ridge=1e-2, tol=1e-6)
    assert found.value.shape == (2, 2, 200, 3)
    assert found.error.shape == found.residual.shape == (2, 2)
    assert operator.passes == found.steps < 200 / 3
    for index, time in np.ndenumerate(t):
        value, tau = found.value[index], 0.5 * time / b.size
        exact = exact_response(matrix, b, tau, 1e-2)
        missed = value - exact
        # The bound on predictions at any test point, where K(x*, x*) = 1.
        assert np.sqrt(max((missed * (matrix @ missed)).sum(0).max(), 0.0)) <= 1.01e-6
        rate = b - matrix @ exact - 1e-2 * exact - derivative(matrix, b, tau, 1e-2)
        assert np.linalg.norm(rate) < 1e-10
        rest = b - matrix @ value - 1e-2 * value - derivative(matrix, b, tau, 1e-2)
        assert np.linalg.norm(rest) / np.linalg.norm(b) <= 2 * found.residual[index] + 1e-6


def derivative(matrix, b, tau, ridge):
    evals, evecs = np.linalg.eigh(matrix)
    return evecs @ (np.exp(-(evals + ridge) * tau)[:, None] * (evecs.T @ b))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, 0.0), (0.9, 0.0), (0.8, 1.0)])
def test_steps_with_momentum(momentum, nesterov):
    matrix, b, ridge, rate = smooth_kernel(100), targets(100, 2), 0.05, 3.0
    counts = [0, 1, 7, 40]
    descent = Descent(momentum, nesterov)
    found = dynamics(
        DenseOperator(matrix), b, counts, learning_rate=rate, ridge=ridge, descent=descent
    )
    # A run of the optimiser on parameters w of outputs K w, with the gradient of the response.
    k, w, v = matrix + ridge * np.eye(100), np.zeros_like(b), np.zeros_like(b)
    for step in range(41):
        if step in counts:
            np.testing.assert_allclose(found.value[counts.index(step)], w, atol=1e-7)
        gradient = (k @ w - b) / b.size
        v = momentum * v + gradient
        w = w - rate * (gradient + momentum * v if nesterov else v)


def test_another_time_ridge_and_optimiser_read_the_same_basis(tmp_path):
    matrix, b = smooth_kernel(150), targets(150, 2)
    first = dynamics(Counting(matrix), b, [1e6], ridge=1e-2, tol=1e-4, checkpoint=tmp_path / "a")
    operator = Counting(matrix, 0)  # not a single pass
    found = dynamics(operator, b, [10.0, np.inf], ridge=0.1, tol=1e-4, checkpoint=tmp_path / "a")
    assert found.steps == first.steps
    exact = np.linalg.solve(matrix + 0.1 * np.eye(150), b)
    np.testing.assert_allclose(matrix @ found.value[1], matrix @ exact, atol=1e-4)
    dynamics(operator, b, 5, descent=Descent(0.9, 0.0), tol=1e-3, checkpoint=tmp_path / "a")


def test_eigenvalues_lost_in_rounding_are_frozen():
    matrix, b = np.tile(smooth_kernel(10), (2, 2)), targets(20, 1)
    found = dynamics(DenseOperator(matrix), b, np.inf)
    np.testing.assert_allclose(found.value, np.linalg.pinv(matrix, rcond=1e-10) @ b, rtol=1e-5)


def test_targets_of_zero():
    found = dynamics(DenseOperator(smooth_kernel(10)), np.zeros((10, 2)), [1.0, np.inf])
    np.testing.assert_array_equal(found.value, np.zeros((2, 10, 2)))


def test_errors():
    matrix, b = kernel(40, condition=1e6), targets(40, 1)
    with pytest.raises(ValueError, match=r"expected an error of at most .* within 3 steps, got"):
        dynamics(DenseOperator(matrix), b, np.inf, max_steps=3)
    evals, evecs = np.linalg.eigh(matrix)
    evals[0] = -1.0
    indefinite = (evecs * evals) @ evecs.T
    with pytest.raises(ValueError, match=r"expected a positive definite kernel .*a ridge of"):
        dynamics(DenseOperator((indefinite + indefinite.T) / 2), b, np.inf)
    with pytest.raises(ValueError, match="expected t of at least 0"):
        dynamics(DenseOperator(matrix), b, -1.0)
    with pytest.raises(ValueError, match="infinitely many steps converge, got one at which"):
        dynamics(DenseOperator(matrix), b, np.inf, learning_rate=1e3, descent=Descent(0.0, 0.0))
