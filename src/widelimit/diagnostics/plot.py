"""Parts of figures: bands, reliability diagrams, and saving. matplotlib is imported only on use.

Figures are made without pyplot and drawn by the Agg canvas: they need no display, do not change
matplotlib's global state, and need not be closed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind people can distinguish.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)

_STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 13,
    "axes.labelsize": 14,
    "legend.fontsize": 12,
    "lines.linewidth": 2.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yields an empty figure of `width` x `height` inches; inside the `with` our style applies.

    Raises:
      ModuleNotFoundError: matplotlib is not installed; the message names the extra to install.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'figures need matplotlib; install it with: pip install "widelimit[plots]"',
            name=error.name,
        ) from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Writes the figure to `path`, completely or not at all, and returns the path.

    Missing folders are made. The format follows from the suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
    )
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=dpi)
        # Temporary files are private; the figure gets the usual permissions of new files.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def filled_band(
    axes: Axes, x: ArrayLike, mean: ArrayLike, half_width: ArrayLike, *, color: str, **line: Any
) -> tuple[Any, Any]:
    """Returns two artists: the line of a mean, and the filled band of `half_width` around it."""
    mean, half_width = np.asarray(mean), np.asarray(half_width)
    band = axes.fill_between(
        x, mean - half_width, mean + half_width, color=color, alpha=0.22, linewidth=0
    )
    return axes.plot(x, mean, color=color, **line)[0], band


def dotted_band(
    axes: Axes, x: ArrayLike, mean: ArrayLike, half_width: ArrayLike, *, color: str, **line: Any
) -> tuple[Any, Any]:
    """Returns two artists: the dashed line of a mean, and the dotted edges of a band around it."""
    mean, half_width = np.asarray(mean), np.asarray(half_width)
    for edge in (mean - half_width, mean + half_width):
        (dots,) = axes.plot(x, edge, color=color, linestyle=":", linewidth=1.6)
    return axes.plot(x, mean, color=color, linestyle="--", **line)[0], dots


def reliability_points(
    axes: Axes,
    confidence: ArrayLike,
    correct: ArrayLike,
    count: ArrayLike,
    *,
    color: str,
    marker: str,
    least: int = 1,
) -> None:
    """Draws accuracy against confidence for each bin of at least `least` points.

    Areas of markers grow with the number of points. Vertical bars are the Wilson interval of one
    standard deviation, which is inside [0, 1] and meaningful also for a bin of one point.
    """
    confidence, correct, count = (np.asarray(a) for a in (confidence, correct, count))
    some = count >= least
    x, p, n = confidence[some], correct[some], count[some]
    centre = (p + 0.5 / n) / (1 + 1 / n)
    half = np.sqrt(p * (1 - p) / n + 0.25 / n**2) / (1 + 1 / n)
    axes.vlines(x, centre - half, centre + half, color=color, linewidth=1.4, alpha=0.7)
    axes.scatter(x, p, s=30 + 300 * n / count.sum(), color=color, marker=marker, alpha=0.75)
