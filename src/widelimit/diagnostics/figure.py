"""The figure of a report: panels of curves over steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from widelimit.diagnostics.plot import BLUE, GREEN, RED, new_figure, save_figure

_LOOKS = ((BLUE, "o", "-"), (RED, "s", "--"), (GREEN, "^", ":"))


def draw(
    steps: np.ndarray, panels: Mapping[str, Mapping[str, np.ndarray]], path: str | Path
) -> Path:
    """Draws curves by panel and name, the first panel logarithmic, and returns the `path`.

    Raises:
      ModuleNotFoundError: without matplotlib.
    """
    # A logarithmic axis has no zero: points at zero are drawn at half the next step.
    above = steps[steps > 0]
    is_wide = len(above) > 2 and above[-1] >= 30 * above[0]
    at = np.where(steps > 0, steps, above[0] / 2) if is_wide else steps
    with new_figure(4.6 * len(panels), 4.4) as figure:
        for k, (title, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), k + 1)
            for (name, values), (color, marker, line) in zip(curves.items(), _LOOKS, strict=False):
                # Zero movement has no logarithm.
                shown = np.where(values > 0, values, np.nan) if k == 0 else values
                axes.plot(at, shown, line, marker=marker, color=color, label=name)
            axes.set(title=title, xlabel="step")
            if is_wide:
                axes.set_xscale("log")
            if k == 0 and any(np.any(values > 0) for values in curves.values()):
                axes.set_yscale("log")
            if all(curves):
                axes.legend()
        return save_figure(figure, path)
