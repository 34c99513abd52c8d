import numpy as np
import pytest

from widelimit.diagnostics import figure


@pytest.mark.parametrize(("steps", "scale"), [((0, 1, 8, 64), "log"), ((0, 1), "linear")])
def test_panels(tmp_path, monkeypatch, steps, scale):
    drawn, save = [], figure.save_figure
    monkeypatch.setattr(
        figure, "save_figure", lambda fig, path: drawn.append(fig) or save(fig, path)
    )
    values = np.linspace(0, 1, len(steps))
    panels = {"moved": {"a": values, "b": 2 * values}, "rank": {"": values}}
    path = figure.draw(np.array(steps, float), panels, tmp_path / "a.png")
    assert path.stat().st_size > 1000
    first, second = drawn[0].axes
    assert (first.get_title(), second.get_title()) == ("moved", "rank")
    assert first.get_xscale() == second.get_xscale() == scale
    assert (first.get_yscale(), second.get_yscale()) == ("log", "linear")
    assert [t.get_text() for t in first.get_legend().get_texts()] == ["a", "b"]
    assert second.get_legend() is None
    assert np.isfinite(first.lines[0].get_xdata()).all()
