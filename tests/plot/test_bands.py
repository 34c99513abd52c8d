import numpy as np

from widelimit import plot
from widelimit.plot.looks import BLUE, RED


def test_bands():
    x, mean, half = np.arange(3), np.array([0.0, 1.0, 2.0]), np.ones(3)
    with plot.new_figure(2.0, 1.0) as figure:
        axes = figure.subplots()
        line, (area,) = plot.filled_band(x, mean, half, color=BLUE, ax=axes)
        np.testing.assert_array_equal(line.get_ydata(), mean)
        assert area.get_paths()[0].get_extents().y1 == 3
        line, edges = plot.dotted_band(x, mean, half, color=RED, ax=axes)
        assert line.get_linestyle() == "--"
        np.testing.assert_array_equal([e.get_ydata() for e in edges], [mean - 1, mean + 1])


def test_a_new_figure():
    band = plot.filled_band([0, 1], [1, 2], [1, 1], color=BLUE, label="mean")
    assert band.line.axes.figure.axes == [band.line.axes]
    assert band.line.get_label() == "mean"
