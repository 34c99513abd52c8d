import numpy as np
import pytest

from widelimit.plot.calibration import reliability, reliability_bins


def test_bins_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    labels = np.array([0, 1, 1, 1])
    # Two bins: all confidences are in (0.5, 1].
    confidence, accuracy, count = reliability_bins(probabilities, labels, bins=2)
    np.testing.assert_array_equal(count, [0, 4])
    np.testing.assert_allclose(confidence, [np.nan, 0.75])
    np.testing.assert_allclose(accuracy, [np.nan, 0.75])


def test_bins_are_closed_on_the_right():
    probabilities = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert reliability_bins(probabilities, np.array([0, 0]), bins=2)[2].tolist() == [1, 1]


def test_diagram():
    probabilities = np.tile([[0.9, 0.1]], (4, 1))
    drawn = reliability(probabilities, np.zeros(4, int), label="model")
    np.testing.assert_allclose(drawn.points.get_offsets(), [[0.9, 1.0]])
    # Wilson: (1 + 1/8) / (1 + 1/4) +- (1/8) / (1 + 1/4).
    np.testing.assert_allclose(drawn.bars.get_segments()[0][:, 1], [0.8, 1.0])
    assert drawn.points.get_label() == "model"
    again = reliability(probabilities, np.zeros(4, int), apart=0.01, ax=drawn.points.axes)
    np.testing.assert_allclose(again.points.get_offsets(), [[0.91, 1.0]])


def test_small_bins_are_left_out():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    drawn = reliability(probabilities, np.array([0, 1, 0]), least=2)
    np.testing.assert_allclose(drawn.points.get_offsets(), [[0.9, 0.5]])


@pytest.mark.parametrize(("shape", "n"), [((3,), 3), ((3, 2), 2), ((0, 2), 0)])
def test_shapes_are_checked(shape, n):
    with pytest.raises(ValueError, match="expected probabilities of shape"):
        reliability_bins(np.ones(shape), np.zeros(n, int))
