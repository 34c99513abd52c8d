import numpy as np
import pytest

from examples import function_space

pytest.importorskip("sklearn")


def test_the_kernel_predicts_training(capsys):
    curves = function_space.main(width=1024, n_train=16, n_test=8, steps=40)
    assert "accuracy" in capsys.readouterr().out
    np.testing.assert_allclose(curves.predicted[0], curves.network[0], atol=1e-6)
    moved = np.abs(curves.network[-1] - curves.network[0]).max()
    assert moved > 1.0
    assert np.abs(curves.network - curves.predicted).max() < 0.25 * moved
