"""The figure of a report: panels of curves over steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from widelimit.plot.looks import new_figure, save_figure
from widelimit.plot.movement import drift


def draw(
    steps: np.ndarray, panels: Mapping[str, Mapping[str, np.ndarray]], path: str | Path
) -> Path:
    """Returns the `path` of a figure of curves by panel and name; the first panel is logarithmic.

    Raises:
      ModuleNotFoundError: without matplotlib.
    """
    with new_figure(4.6 * len(panels), 4.4) as figure:
        for k, (title, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), k + 1)
            drift(steps, curves, logarithmic=k == 0, ax=axes)
            axes.set_title(title)
        return save_figure(figure, path)
