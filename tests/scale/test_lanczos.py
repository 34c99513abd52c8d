import numpy as np
import pytest

from tests.scale.problems import Counting, kernel
from widelimit.scale.lanczos import BlockLanczos


def starts(n, c, seed=1):
    return np.random.default_rng(seed).normal(size=(n, c))


def basis_of(lanczos):
    return np.hstack(lanczos.blocks[: lanczos.steps])


@pytest.mark.parametrize("c", [1, 4])
def test_the_basis_is_orthonormal_and_projects_the_kernel(c):
    matrix, b = kernel(120), starts(120, c)
    lanczos = BlockLanczos(lambda v: matrix @ v, b)
    lanczos.extend(20)
    v, t = basis_of(lanczos), lanczos.projected()
    np.testing.assert_allclose(v.T @ v, np.eye(20 * c), atol=1e-13)
    np.testing.assert_allclose(v.T @ matrix @ v, t, atol=1e-11)
    np.testing.assert_allclose(lanczos.blocks[0] @ lanczos.start, b, atol=1e-13)
    rest = matrix @ v - v @ t
    expected = lanczos.blocks[-1] @ lanczos.last_coupling()
    np.testing.assert_allclose(rest[:, -c:], expected, atol=1e-11)
    np.testing.assert_allclose(rest[:, :-c], 0.0, atol=1e-11)
    np.testing.assert_array_equal(lanczos.projected(7), t[: 7 * c, : 7 * c])


def test_blocks_that_lose_rank_are_deflated():
    matrix, b = kernel(60), starts(60, 2)
    evecs = np.linalg.eigh(matrix)[1]
    # Two equal columns, one of two eigenvectors, one of five.
    b = np.stack([b[:, 0], b[:, 0], evecs[:, -2:].sum(1), evecs[:, -8:-3].sum(1)], 1)
    lanczos = BlockLanczos(lambda v: matrix @ v, b)
    lanczos.extend(100)
    assert lanczos.exhausted
    assert [block.shape[1] for block in lanczos.blocks[:5]] == [3, 3, 2, 2, 2]
    v = basis_of(lanczos)
    assert v.shape[1] <= 60
    np.testing.assert_allclose(v.T @ v, np.eye(v.shape[1]), atol=1e-12)
    found = lanczos.combine(lanczos.coefficients(lambda evals: np.exp(-evals)[None])[0])
    evals = np.linalg.eigvalsh(matrix)
    exact = evecs @ (np.exp(-evals)[:, None] * (evecs.T @ b))
    np.testing.assert_allclose(found, exact, atol=1e-11)


def test_nothing_is_computed_twice(tmp_path):
    matrix, b = kernel(80), starts(80, 3)
    whole = BlockLanczos(Counting(matrix).matmat, b)
    whole.extend(12)
    for dies_at in [5, 4]:
        operator = Counting(matrix, dies_at)
        lanczos = BlockLanczos(operator.matmat, b, tmp_path / "a", "kernel")
        with pytest.raises(KeyboardInterrupt):
            lanczos.extend(20)
    operator = Counting(matrix)
    lanczos = BlockLanczos(operator.matmat, b, tmp_path / "a", "kernel")
    lanczos.extend(12 - lanczos.steps)
    assert (operator.passes, lanczos.steps) == (3, 12)
    np.testing.assert_array_equal(lanczos.projected(), whole.projected())
    for found, expected in zip(lanczos.blocks, whole.blocks, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert BlockLanczos(operator.matmat, b, tmp_path / "a", "another").steps == 0


def test_targets_of_zero():
    lanczos = BlockLanczos(lambda v: v, np.zeros((5, 2)))
    lanczos.extend(3)
    assert (lanczos.exhausted, lanczos.steps) == (True, 0)
