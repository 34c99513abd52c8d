"""Pieces of figures, and that saving is all or nothing and leaves global state alone."""

import os
import sys

import matplotlib as mpl
import numpy as np
import pytest

from widelimit.diagnostics import plot


def test_saves_as_a_whole(tmp_path):
    path = tmp_path / "a" / "figure.png"
    with plot.new_figure(2.0, 1.0) as figure:
        figure.subplots().plot([1, 2])
        assert plot.save_figure(figure, path) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with plot.new_figure(2.0, 1.0) as figure:

        def fail(*_, **__):
            raise RuntimeError("no")

        figure.savefig = fail
        with pytest.raises(RuntimeError):
            plot.save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_global_state_is_left_alone():
    before, pyplot = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    with plot.new_figure(2.0, 1.0) as figure:
        figure.subplots()
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_bands():
    x, mean, half = np.arange(3), np.array([0.0, 1.0, 2.0]), np.ones(3)
    with plot.new_figure(2.0, 1.0) as figure:
        axes = figure.subplots()
        line, band = plot.filled_band(axes, x, mean, half, color=plot.BLUE)
        np.testing.assert_array_equal(line.get_ydata(), mean)
        assert band.get_paths()[0].get_extents().y1 == 3
        line, _ = plot.dotted_band(axes, x, mean, half, color=plot.RED)
        assert line.get_linestyle() == "--"
        dotted = [other for other in axes.lines if other.get_linestyle() == ":"]
        np.testing.assert_array_equal([d.get_ydata() for d in dotted], [mean - 1, mean + 1])


def test_reliability_points_leave_out_empty_bins():
    with plot.new_figure(2.0, 1.0) as figure:
        axes = figure.subplots()
        plot.reliability_points(
            axes,
            np.array([np.nan, 0.9]),
            np.array([np.nan, 1.0]),
            np.array([0, 4]),
            color=plot.BLUE,
            marker="o",
        )
        bars, points = axes.collections
        np.testing.assert_array_equal(points.get_offsets(), [[0.9, 1.0]])
        # Wilson: (1 + 1/8) / (1 + 1/4) +- (1/8) / (1 + 1/4).
        np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.8, 1.0])


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"widelimit\[plots\]"), plot.new_figure(1.0, 1.0):
        pass
