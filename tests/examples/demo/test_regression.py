"""The comparison of finite and infinite ensembles, small."""

import numpy as np
import pytest

from examples.demo.regression import (
    Curves,
    RegressionResult,
    RegressionTask,
    compare_ensembles,
    task_network,
)

TASK = RegressionTask(members=32, width=128, points=4, steps=(0, 1, 8), chunk=32)


@pytest.fixture(scope="module")
def result():
    return compare_ensembles(TASK, seed=1)


def test_shapes(result):
    for curves in (result.finite, result.infinite):
        assert curves.mean.shape == curves.std.shape == (3, len(result.grid))
        for losses in (curves.train, curves.train_std, curves.test, curves.test_std):
            assert losses.shape == (3,)


def test_ensembles_agree(result):
    assert max(result.deviations.values()) < 5
    np.testing.assert_allclose(result.finite.std, result.infinite.std, rtol=0.5)


def test_starts_from_the_prior(result):
    np.testing.assert_allclose(result.infinite.mean[0], 0, atol=1e-5)
    x = np.asarray(result.grid, np.float32)[:, None]
    prior = np.asarray(task_network(8).kernel_fn(x, None, "nngp"))
    np.testing.assert_allclose(result.infinite.std[0] ** 2, np.diag(prior), rtol=1e-4)


def test_training_lowers_the_loss(result):
    for curves in (result.finite, result.infinite):
        assert np.all(np.diff(curves.train) < 0)


def test_deviations_by_hand():
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    finite = Curves(
        np.array([[0.0, 0.5, 0.0], [0.0, 0.0, -1.0]]),
        one,
        zero[:, 0],
        one[:, 0],
        one[:, 0],
        one[:, 0],
    )
    infinite = Curves(zero, one, zero[:, 0], one[:, 0], zero[:, 0], one[:, 0])
    task = RegressionTask(members=100)
    result = RegressionResult(
        task, 0.1, zero[0], zero[0], zero[0], zero[0], finite=finite, infinite=infinite
    )
    assert result.deviations == {"outputs": 10.0, "training loss": 0.0, "test loss": 10.0}
