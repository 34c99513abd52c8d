import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse.linalg

from tests.scale.problems import kernel
from widelimit.scale.operator import DenseOperator, ShardedOperator, as_scipy

ROOT = Path(__file__).resolve().parents[2]

SHARDED = """
import jax, numpy as np
from widelimit.scale.operator import ShardedOperator
matrix = np.random.default_rng(0).normal(size=(103, 103)).astype(np.float32)
matrix = matrix + matrix.T
asked = []
def rows(start, stop):
    asked.append((start, stop))
    return matrix[start:stop]
operator = ShardedOperator(rows, 103)
assert len(operator._matrix.sharding.device_set) == 4 == len(asked), asked
assert max(s.data.shape[0] for s in operator._matrix.addressable_shards) <= 26
v = np.random.default_rng(1).normal(size=(103, 5))
np.testing.assert_allclose(operator.matmat(v), matrix.astype(float) @ v, atol=1e-12)
np.testing.assert_array_equal(operator.columns(np.array([0, 102])), matrix[:, [0, 102]])
np.testing.assert_array_equal(operator.diagonal(), matrix.diagonal())
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_are_float64(dtype, monkeypatch):
    monkeypatch.setattr("widelimit.scale.operator._BLOCK_BYTES", 1000)
    matrix, v = kernel(50).astype(dtype), np.random.default_rng(1).normal(size=(50, 3))
    exact = matrix.astype(np.longdouble) @ v
    for operator in [
        DenseOperator(matrix),
        ShardedOperator(lambda start, stop: matrix[start:stop], 50),
    ]:
        assert operator.shape == (50, 50)
        product = operator.matmat(v)
        assert product.dtype == np.float64
        np.testing.assert_allclose(product, exact.astype(float), rtol=1e-13, atol=1e-13)
        np.testing.assert_array_equal(operator.diagonal(), matrix.diagonal())
        columns = operator.columns(np.array([4, 1]))
        assert columns.dtype == dtype
        np.testing.assert_array_equal(columns, matrix[:, [4, 1]])


def test_rows_are_split_over_four_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_solvers_of_scipy():
    matrix = kernel(60)
    linear = as_scipy(DenseOperator(matrix))
    largest = scipy.sparse.linalg.eigsh(linear, k=2, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(largest), np.linalg.eigvalsh(matrix)[-2:], rtol=1e-10)
    v = np.arange(60.0)
    np.testing.assert_allclose(linear @ v, matrix @ v)
    np.testing.assert_allclose(linear @ v[:, None], matrix @ v[:, None])


def test_errors():
    with pytest.raises(ValueError, match=r"expected a square matrix, got shape \(2, 3\)"):
        DenseOperator(np.ones((2, 3)))
    with pytest.raises(ValueError, match="expected a matrix of float32 or float64, got int64"):
        DenseOperator(np.ones((2, 2), int))
    with pytest.raises(ValueError, match=r"expected rows 0 to 3 of shape \(3, 3\), got \(3, 2\)"):
        ShardedOperator(lambda start, stop: np.ones((stop - start, 2)), 3)
