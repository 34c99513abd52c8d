import numpy as np

from tests.scale.problems import kernel
from widelimit.scale.advice import advise_ridge, noise_floor, smallest_ridge
from widelimit.scale.operator import DenseOperator


def test_the_ridge_covers_the_lowest_eigenvalue():
    matrix = kernel(60) - 2.0 * np.eye(60)
    lowest, direction = (part[..., :1] for part in np.linalg.eigh(matrix))
    ridge = smallest_ridge(DenseOperator(matrix), direction)
    assert -lowest[0] < ridge <= -2.1 * lowest[0]


def test_the_floor_is_that_of_the_dtype():
    matrix = kernel(50)
    largest = matrix.diagonal().max()
    for dtype in [np.float32, np.float64]:
        floor = np.sqrt(50) * np.finfo(dtype).eps * largest
        np.testing.assert_allclose(noise_floor(DenseOperator(matrix.astype(dtype))), floor, 1e-6)


def test_words():
    assert advise_ridge(0.0123) == "a ridge of 2e-02 (noise=1.4e-01) would do"
