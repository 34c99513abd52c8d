"""Draws the picture of the site's first page: `python -m tools.start_picture`.

The comparison of the demonstration, four times of it: a sine with noise, made here.
"""

from __future__ import annotations

from pathlib import Path

from examples.demo.regression import RegressionTask, compare_ensembles
from widelimit.plot import dotted_band, filled_band, new_figure
from widelimit.plot.looks import BLACK, BLUE, RED

PATH = Path(__file__).parents[1] / "docs" / "_static" / "ensembles.png"
STEPS = (0, 4, 32, 512)


def draw(path: Path) -> None:
    """Writes the picture."""
    result = compare_ensembles(RegressionTask(steps=STEPS))
    finite, infinite = result.finite, result.infinite
    with new_figure(11.0, 2.9) as figure:
        panels = figure.subplots(1, len(STEPS), sharex=True, sharey=True)
        for k, (axes, step) in enumerate(zip(panels, STEPS, strict=True)):
            filled_band(result.grid, infinite.mean[k], 2 * infinite.std[k], color=BLUE, ax=axes)
            dotted_band(result.grid, finite.mean[k], 2 * finite.std[k], color=RED, ax=axes)
            axes.plot(result.x, result.y, "o", color=BLACK, markersize=5)
            axes.set_title("at initialisation" if step == 0 else f"after {step} steps")
            axes.set_xlabel("x")
        reach = 2.5 * float(infinite.std[0].max())
        panels[0].set(ylabel="f(x)", xlim=(result.grid[0], result.grid[-1]), ylim=(-reach, reach))
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(PATH)
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")
