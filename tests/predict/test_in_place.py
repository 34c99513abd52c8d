"""Factorisations of concrete kernels in the memory of their result."""

import jax
import numpy as np
import pytest

from widelimit.predict import in_place


def kernel(rows: int) -> np.ndarray:
    features = np.random.default_rng(0).standard_normal((rows, rows + 5)).astype(np.float32)
    return features @ features.T / rows


@pytest.mark.parametrize("rows", [1, 7, 1100])
def test_factors_share_the_memory_of_the_matrix(rows: int) -> None:
    k = kernel(rows)
    k[0, -1] += 1e-3  # only the symmetric part counts
    expected = ((k + k.T.astype(np.float64)) / 2).astype(np.float64)
    expected += (0.1 * np.diagonal(k).mean(dtype=np.float64) + 0.5) * np.eye(rows)
    matrix = in_place.regularised(k, 0.1, 0.5)
    np.testing.assert_allclose(matrix, expected, rtol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.T)

    lower = in_place.cholesky(matrix)
    assert lower is not None
    assert np.shares_memory(lower, matrix)
    np.testing.assert_allclose(lower @ lower.T, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(lower, np.tril(lower))
    on_device = in_place.to_jax(lower)
    assert on_device.dtype == np.float64
    b = np.random.default_rng(1).standard_normal((rows, 3))
    for transposed, matrix in ((False, lower), (True, lower.T)):
        found = in_place.solve_lower(on_device, b, transposed)
        assert isinstance(found, jax.Array)
        np.testing.assert_allclose(matrix @ np.asarray(found), b, atol=1e-9)

    evals, evecs = in_place.eigh(in_place.regularised(k, 0.1, 0.5))
    np.testing.assert_allclose((evecs * evals) @ evecs.T, expected, rtol=1e-9, atol=1e-9)


def test_zipped_kernels() -> None:
    k = kernel(6).reshape(2, 3, 2, 3).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(in_place.regularised(k, 0.0, 0.0), kernel(6), rtol=1e-6)


def test_what_is_not_positive_has_no_factor() -> None:
    assert in_place.cholesky(np.diag([1.0, -1.0])) is None


def test_a_matrix_becomes_an_array_of_jax_without_a_copy() -> None:
    matrix = in_place.regularised(kernel(50), 0.0, 0.0)
    array = in_place.to_jax(matrix)
    assert array.unsafe_buffer_pointer() == matrix.ctypes.data
