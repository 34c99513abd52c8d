"""The figure of the comparison shows what it should; that of the classification is tested there."""

import numpy as np
import pytest

from examples.demo import figures
from examples.demo.regression import Curves, RegressionResult, RegressionTask


@pytest.mark.parametrize("steps", [(0, 1, 10, 100), (0, 5)])
def test_regression_figure(tmp_path, monkeypatch, steps):
    grid, times = np.linspace(-1, 1, 5), len(steps)
    losses = np.geomspace(1, 1e-3, times)
    curves = Curves(
        np.zeros((times, 5)), np.ones((times, 5)), losses, 2 * losses, losses, 0.1 * losses
    )
    result = RegressionResult(
        RegressionTask(steps=steps), 0.1, grid, grid, grid, grid, finite=curves, infinite=curves
    )
    drawn = []
    save = figures.save_figure
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    path = figures.regression_figure(result, tmp_path / "regression.png")
    assert path.stat().st_size > 10_000
    left, right = drawn[0].subfigs
    titles = [axes.get_title() for axes in left.axes]
    assert titles[0] == "at initialisation"
    assert f"after {steps[-1]} steps" in titles
    (losses_axes,) = right.axes
    assert losses_axes.get_xlabel() == "steps of gradient descent"
    assert "mean squared error" in losses_axes.get_ylabel()
    assert losses_axes.get_xscale() == losses_axes.get_yscale() == "log"
    names = [text.get_text() for text in right.legends[0].get_texts()]
    assert names == [
        f"{part}, {kind}" for kind in ("infinite", "finite") for part in ("training", "test")
    ]
