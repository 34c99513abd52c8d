import numpy as np
import pytest

from widelimit.plot.movement import drift


def test_networks_at_widths():
    values = np.array([[0.4, 0.2], [0.1, 0.1], [0.05, 0.05]])
    drawn = drift([16, 256, 1024], {"kernel": values}, xlabel="width", power=-0.5)
    line, points = drawn["kernel"]
    np.testing.assert_allclose(line.get_ydata(), [0.3, 0.1, 0.05])
    np.testing.assert_allclose(points.get_ydata(), values.ravel())
    np.testing.assert_allclose(points.get_xdata(), [16, 16, 256, 256, 1024, 1024])
    axes = line.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    (guide,) = [other for other in axes.lines if "width$" in str(other.get_label())]
    np.testing.assert_allclose(guide.get_ydata(), [0.3, 0.075, 0.0375])


def test_steps_from_zero():
    moved = np.array([0.0, 0.1, 0.2])
    drawn = drift([0, 1, 100], {"moved": moved, "other": moved})
    line = drawn["moved"].line
    np.testing.assert_allclose(line.get_xdata(), [0.5, 1, 100])
    np.testing.assert_allclose(line.get_ydata(), [np.nan, 0.1, 0.2])
    assert [label.get_text() for label in line.axes.get_xticklabels()] == ["0", "1", "100"]
    line.axes.figure.canvas.draw()
    assert {"0.1", "0.2"} <= {label.get_text() for label in line.axes.get_yticklabels()}
    assert drawn["moved"].points is None


def test_linear_axes():
    drawn = drift([0, 1, 2], {"": [0.0, 0.5, 1.0]}, logarithmic=False)
    axes = drawn[""].line.axes
    assert axes.get_xscale() == axes.get_yscale() == "linear"
    np.testing.assert_allclose(drawn[""].line.get_ydata(), [0, 0.5, 1])
    assert axes.get_legend() is None


def test_nothing_that_has_moved():
    assert drift([0, 1], {"a": [0.0, np.nan]}, power=1.0)["a"].line.axes.get_yscale() == "linear"


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected 'a' of shape \[2\] or \[2, networks\]"):
        drift([1, 2], {"a": [1.0]})
