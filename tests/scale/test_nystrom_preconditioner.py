import numpy as np
import pytest

from tests.scale.problems import smooth_kernel
from widelimit.scale.nystrom_preconditioner import NystromPreconditioner, default_rank
from widelimit.scale.operator import DenseOperator


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_the_dense_matrix(dtype):
    matrix, b = smooth_kernel(200).astype(dtype), np.random.default_rng(1).normal(size=(200, 3))
    made = NystromPreconditioner(DenseOperator(matrix), 1e-2, rank=40, seed=3)
    places = np.sort(np.random.default_rng(3).choice(200, 40, replace=False))
    columns = matrix[:, places].astype(float)
    approximation = columns @ np.linalg.pinv(columns[places], rcond=1e-6) @ columns.T
    atol = 1e-4 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(made.factor @ made.factor.T, approximation, atol=atol)
    left = np.diag(matrix.astype(float) - made.factor @ made.factor.T)
    np.testing.assert_allclose(made.shift, 1e-2 + left.clip(0).mean())
    p = made.factor @ made.factor.T + made.shift * np.eye(200)
    np.testing.assert_allclose(made.solve(b), np.linalg.solve(p, b), atol=1e-9)
    np.testing.assert_allclose(
        made.inverse_root(made.inverse_root(b)), np.linalg.solve(p, b), atol=1e-9
    )
    np.testing.assert_allclose(made.log_determinant(), np.linalg.slogdet(p)[1], rtol=1e-12)


def test_repeated_samples_are_dropped():
    matrix = np.tile(smooth_kernel(20), (2, 2))
    made = NystromPreconditioner(DenseOperator(matrix), 1e-3, rank=40)
    assert made.factor.shape[1] <= 20
    np.testing.assert_allclose(made.factor @ made.factor.T, matrix, atol=1e-6)


def test_the_rank_is_bounded_by_memory():
    assert default_rank(1000) == 100
    assert default_rank(5) == 1
    assert default_rank(100_000) == 2**32 // (16 * 100_000)
    assert default_rank(1000, "1MiB") == 65


def test_errors():
    operator = DenseOperator(smooth_kernel(10))
    with pytest.raises(ValueError, match="expected a rank between 1 and 10, got 11"):
        NystromPreconditioner(operator, 1.0, rank=11)
    with pytest.raises(ValueError, match="expected landmarks with positive kernels"):
        NystromPreconditioner(DenseOperator(np.zeros((3, 3))), 1.0, rank=2)
    with pytest.raises(ValueError, match="expected a positive ridge"):
        NystromPreconditioner(DenseOperator(np.ones((3, 3))), 0.0, rank=1)
