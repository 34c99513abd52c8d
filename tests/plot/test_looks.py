"""Figures in our style, and that saving is all or nothing and leaves global state alone."""

import itertools
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot

from widelimit.plot import looks


def test_saves_as_a_whole(tmp_path):
    path = tmp_path / "a" / "figure.png"
    with looks.new_figure(2.0, 1.0) as figure:
        figure.subplots().plot([1, 2])
        assert looks.save_figure(figure, path) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with looks.new_figure(2.0, 1.0) as figure:

        def fail(*_, **__):
            raise RuntimeError("no")

        figure.savefig = fail
        with pytest.raises(RuntimeError):
            looks.save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_global_state_is_left_alone():
    before = dict(mpl.rcParams)
    with looks.new_figure(2.0, 1.0) as figure:
        figure.subplots()
    assert dict(mpl.rcParams) == before
    assert not pyplot.get_fignums()


def test_new_figures_need_no_pyplot():
    code = (
        "import sys; from widelimit import plot\n"
        "with plot.new_figure(2.0, 1.0): print('matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"widelimit\[plots\]"),
        looks.new_figure(1.0, 1.0),
    ):
        pass
    with (
        pytest.raises(ModuleNotFoundError, match=r"widelimit\[plots\]"),
        looks.panels(None, 1, size=(1.0, 1.0)),
    ):
        pass


def test_panels_are_new_or_those_of_the_user():
    with looks.panels(None, 5, size=(1.0, 1.0)) as axes:
        assert len(axes) == len(axes[0].figure.axes) == 5
        assert axes[0].get_shared_y_axes().joined(axes[0], axes[4])
    own = np.array([[axes[0], axes[1]]])
    with looks.panels(own, 2, size=(1.0, 1.0)) as same:
        assert same == axes[:2]
    with (
        pytest.raises(ValueError, match="expected 2 axes to draw into, got 1"),
        looks.panels(axes[0], 2, size=(1.0, 1.0)),
    ):
        pass


def relative_luminance(color):
    """After WCAG 2.1: what is left of a colour in black and white."""
    linear = np.array(mpl.colors.to_rgb(color))
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


def test_looks_differ_without_colours():
    colors, markers, lines = zip(*looks.LOOKS, strict=True)
    assert len(set(colors)) == len(set(markers)) == len(looks.LOOKS)
    assert all(a != b for a, b in itertools.pairwise(lines))
    assert all(relative_luminance(color) < 0.5 for color in colors)  # dark enough on white
