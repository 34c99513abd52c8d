import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import stax
from widelimit.plot.outputs import ensemble

X = np.array([[-1.0], [0.0], [1.0]], np.float32)
Y = np.stack([X[:, 0], 2 * X[:, 0]], -1)
NET = stax.serial(stax.Dense(8), stax.Erf(), stax.Dense(2))


def test_panels_show_means_and_bands_at_every_time():
    trained = wl.InfiniteEnsemble(NET, X, Y, learning_rate=0.1, noise=0.3)
    x = np.array([[0.5], [-2.0], [2.0]], np.float32)  # in no order
    times = (0, 10, np.inf)
    drawn = ensemble(trained, x, times, data=(X, Y), output=1, widths=3.0, noise=True)
    titles = ["at initialisation", "after 10 steps", "after infinite time"]
    assert [panel.axes.get_title() for panel in drawn] == titles
    order = [1, 0, 2]
    for t, panel in zip(times, drawn, strict=True):
        np.testing.assert_allclose(panel.line.get_xdata(), x[order, 0])
        mean = trained.at(t).mean(x)[order, 1]
        std = trained.at(t).std(x, noise=True)[order, 1]
        np.testing.assert_allclose(panel.line.get_ydata(), mean, rtol=1e-5, atol=1e-6)
        box = panel.band.get_paths()[0].get_extents()
        np.testing.assert_allclose(box.y1, (mean + 3 * std).max(), rtol=1e-5)
        np.testing.assert_allclose(box.y0, (mean - 3 * std).min(), rtol=1e-5)
        np.testing.assert_allclose(panel.points.get_xydata(), np.stack([X[:, 0], Y[:, 1]], -1))
    (legend,) = drawn[0].axes.figure.legends
    names = ["mean", "3 standard deviations of an observation", "training points"]
    assert [text.get_text() for text in legend.get_texts()] == names


def test_a_posterior_has_one_panel_without_a_time():
    trained = wl.InfiniteEnsemble(NET, X, Y, inference="bayes", noise=0.1)
    (panel,) = ensemble(trained, jnp.asarray(X))
    assert panel.points is None
    assert panel.axes.get_title() == ""
    np.testing.assert_allclose(panel.line.get_ydata(), trained.mean(X)[:, 0], rtol=1e-6)


def test_axes_of_the_user_get_no_legend():
    trained = wl.InfiniteEnsemble(NET, X, Y)
    with wl.plot.new_figure(6.0, 3.0) as figure:
        axes = figure.subplots(1, 2)
        drawn = ensemble(trained, X, [1, 5], ax=axes)
        assert [panel.axes.get_title() for panel in drawn] == ["after 1 step", "after 5 steps"]
        assert [panel.axes for panel in drawn] == list(axes)
        assert not figure.legends
        with pytest.raises(ValueError, match="expected 3 axes to draw into, got 2"):
            ensemble(trained, X, [0, 5, 7], ax=axes)


def test_more_inputs_are_refused():
    trained = wl.InfiniteEnsemble(NET, X, Y)
    with pytest.raises(ValueError, match=r"expected x of shape \[points, 1\], got \(3, 2\)"):
        ensemble(trained, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"got \(3,\): for one input x\[:, None\]"):
        ensemble(trained, X[:, 0])
    with pytest.raises(ValueError, match=r"expected data\[0\] of shape"):
        ensemble(trained, X, data=(np.ones((3, 2)), Y))
    with pytest.raises(ValueError, match=r"expected data\[1\] of shape \[3, outputs\], got \(3,\)"):
        ensemble(trained, X, data=(X, Y[:, 0]))
