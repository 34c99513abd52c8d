import numpy as np
import pytest

import widelimit as wl
from widelimit import stax
from widelimit.plot.looks import BLUE, RED
from widelimit.plot.training import losses


def test_losses_of_an_ensemble():
    x = np.array([[-1.0], [1.0]], np.float32)
    net = stax.serial(stax.Dense(8), stax.Erf(), stax.Dense(1))
    t = np.array([0, 1, 10, 1000])
    loss = wl.InfiniteEnsemble(net, x, x, learning_rate=0.1).at(t).loss(x, x)
    drawn = losses(t, {"training": loss, "test": (np.ones(4), 2 * np.ones(4))})
    assert list(drawn) == ["training", "test"]
    line, (area,) = drawn["training"]
    np.testing.assert_allclose(line.get_ydata(), loss.mean)
    np.testing.assert_allclose(line.get_xdata(), [0.5, 1, 10, 1000])
    box = area.get_paths()[0].get_extents()
    np.testing.assert_allclose(box.y1, (loss.mean + loss.std).max(), rtol=1e-6)
    assert (drawn["training"].line.get_color(), drawn["test"].line.get_color()) == (BLUE, RED)
    axes = line.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["0", "1", "10", "100", "1,000"]
    # A standard deviation beyond the mean does not reach below zero.
    assert drawn["test"].edges[0].get_paths()[0].get_extents().y0 > 0
    assert 0 < axes.get_ylim()[0] < np.min(loss.mean)


def test_a_second_ensemble_is_dotted():
    drawn = losses([1, 2], {"a": ([2, 1], [0.5, 0.5])}, dotted=True)
    assert drawn["a"].line.get_linestyle() == "--"
    assert len(drawn["a"].edges) == 2


@pytest.mark.parametrize("t", [[0.0, np.inf], [-1.0, 1.0], [0.0, 0.0]])
def test_times_that_cannot_be_drawn(t):
    with pytest.raises(ValueError, match="expected finite times"):
        losses(t, {"a": ([2, 1], [0.5, 0.5])})


def test_losses_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"positive losses 'a' of shape \(2,\), .* got \(1,\)"):
        losses([1, 2], {"a": ([2], [1])})
    with pytest.raises(ValueError, match="the smallest 0"):
        losses([1, 2], {"a": ([2, 0], [1, 1])})
