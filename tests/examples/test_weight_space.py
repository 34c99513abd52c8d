import numpy as np
import pytest

from examples import weight_space
from tests.tolerance import assert_close

pytest.importorskip("sklearn")


def test_linearised_networks_come_close_and_are_predicted(capsys):
    gaps = []
    for width in (64, 1024):
        outputs = weight_space.main(width, n_train=16, n_test=8, steps=50)
        assert_close(outputs.linearised, outputs.predicted, rtol=1e-4)
        gaps.append(np.abs(outputs.network - outputs.linearised).max())
    assert gaps[1] < 0.5 * gaps[0]  # as 1 / sqrt(width): a quarter
    assert "width 1024" in capsys.readouterr().out
