import numpy as np
import pytest

from tests.scale.problems import Counting, kernel, smooth_kernel
from widelimit.scale.nystrom_preconditioner import NystromPreconditioner
from widelimit.scale.operator import DenseOperator
from widelimit.scale.pcg import solve


def targets(n, c, seed=1):
    return np.random.default_rng(seed).normal(size=(n, c))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_dense_algebra(dtype):
    matrix, b = kernel(300).astype(dtype), targets(300, 4)
    matrix = (matrix + matrix.T) / 2
    found = solve(DenseOperator(matrix), b, ridge=0.2, tol=1e-11)
    exact = np.linalg.solve(matrix.astype(float) + 0.2 * np.eye(300), b)
    np.testing.assert_allclose(found.value, exact, rtol=1e-8, atol=1e-8 * abs(exact).max())
    error = b - matrix.astype(float) @ found.value - 0.2 * found.value
    np.testing.assert_allclose(
        found.residual, np.linalg.norm(error, axis=0) / np.linalg.norm(b, axis=0), rtol=1e-2
    )
    assert (found.residual <= 2e-11).all()
    np.testing.assert_array_equal(found.residuals[0], 1.0)
    assert found.seconds > 0


def test_the_preconditioner_saves_passes():
    matrix, b = smooth_kernel(500), targets(500, 1)
    operator = Counting(matrix)
    made = NystromPreconditioner(operator, 1e-3, rank=150)
    found = solve(operator, b, ridge=1e-3, tol=1e-8, preconditioner=made)
    assert found.iterations[0] + 1 == operator.passes <= 40
    alone = NystromPreconditioner(operator, 1e-3, rank=1)
    assert solve(operator, b, ridge=1e-3, tol=1e-8, preconditioner=alone).iterations[0] > 150


def test_columns_that_converged_leave():
    matrix = smooth_kernel(200)
    evals, evecs = np.linalg.eigh(matrix)
    b = np.stack([evecs[:, -1], targets(200, 1)[:, 0], np.zeros(200)], 1)
    operator = Counting(matrix)
    found = solve(operator, b, ridge=1e-3, tol=1e-9)
    assert found.iterations[2] == 0
    assert found.iterations[0] < found.iterations[1]
    assert operator.columns_seen == found.iterations.sum() + 3
    np.testing.assert_allclose(found.value[:, 0], b[:, 0] / (evals[-1] + 1e-3), atol=1e-6)
    np.testing.assert_array_equal(found.value[:, 2], 0.0)


def test_a_run_that_goes_on_has_the_same_bits(tmp_path):
    matrix, b = kernel(150), targets(150, 3)
    whole = solve(DenseOperator(matrix), b, ridge=0.3)
    for dies_at in [0, 3, 9]:
        with pytest.raises(KeyboardInterrupt):
            solve(Counting(matrix, dies_at), b, ridge=0.3, checkpoint=tmp_path / "a")
    operator = Counting(matrix)
    found = solve(operator, b, ridge=0.3, checkpoint=tmp_path / "a")
    # 3 + 9 passes were done; what they computed is there.
    assert operator.passes == whole.iterations.max() + 1 - 12
    for name in ["value", "iterations", "residuals", "residual"]:
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    again = solve(Counting(matrix, 0), b, ridge=0.3, checkpoint=tmp_path / "a")
    np.testing.assert_array_equal(again.value, whole.value)
    # A tighter tolerance goes on; another system has another checkpoint.
    tighter = Counting(matrix)
    found = solve(tighter, b, ridge=0.3, tol=1e-10, checkpoint=tmp_path / "a")
    assert tighter.passes == (found.iterations - whole.iterations).max() + 1
    assert (found.residual < 2e-10).all()
    other = solve(DenseOperator(matrix), b, ridge=0.4, checkpoint=tmp_path / "a")
    np.testing.assert_array_equal(other.value, solve(DenseOperator(matrix), b, ridge=0.4).value)


def test_an_indefinite_kernel_names_the_ridge_that_would_do():
    matrix = kernel(100)
    evals, evecs = np.linalg.eigh(matrix)
    evals[0] = -0.5
    matrix = (evecs * evals) @ evecs.T
    with pytest.raises(ValueError, match=r"expected a positive definite kernel .*a ridge of") as e:
        solve(DenseOperator((matrix + matrix.T) / 2), targets(100, 2), ridge=0.1)
    ridge = float(str(e.value).split("a ridge of ")[1].split()[0])
    assert 0.5 < ridge <= 2.0
    solve(DenseOperator((matrix + matrix.T) / 2), targets(100, 2), ridge=ridge)


def test_a_kernel_beyond_float64_is_refused():
    matrix = kernel(100, condition=1e14)
    with pytest.raises(ValueError, match=r"expected (a true residual|residuals|a positive)"):
        solve(DenseOperator(matrix), targets(100, 1), ridge=0.0, tol=1e-10, maxiter=3000)


def test_a_recursion_that_lost_its_way_is_refused():
    class Rounding(DenseOperator):
        def matmat(self, v):
            return super().matmat(v.astype(np.float32).astype(np.float64))

    with pytest.raises(ValueError, match=r"expected a true residual .* a ridge of .*, or tol="):
        solve(Rounding(kernel(100)), targets(100, 1), ridge=0.01, tol=1e-11)
    assert solve(Rounding(kernel(100)), targets(100, 1), ridge=0.01, tol=1e-4).residual < 2e-4


def test_errors():
    operator, b = DenseOperator(kernel(20)), np.ones((20, 1))
    with pytest.raises(ValueError, match=r"expected residuals of 1\.0e-06 within 2 passes, got"):
        solve(operator, b, ridge=0.1, maxiter=2)
    with pytest.raises(ValueError, match=r"expected columns of shape \(20, c\), got \(20,\)"):
        solve(operator, np.ones(20), ridge=0.1)
    matrix = kernel(20)
    matrix[3, 7] = np.nan
    with pytest.raises(ValueError, match=r"expected finite products .* in 1 of 20 rows.* is 3"):
        solve(
            DenseOperator(matrix), b, ridge=0.1, preconditioner=NystromPreconditioner(operator, 1)
        )
    with pytest.raises(ValueError, match="expected finite columns"):
        solve(operator, b * np.nan, ridge=0.1)
    with pytest.raises(ValueError, match="expected ridge of at least 0"):
        solve(operator, b, ridge=-1.0)
    with pytest.raises(ValueError, match="expected tol between 0 and 1, got 2"):
        solve(operator, b, ridge=1.0, tol=2.0)
