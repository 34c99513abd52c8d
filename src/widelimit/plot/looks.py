"""Colours, sizes, new figures and saving. matplotlib is imported only on use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which people with colour-blindness tell apart.
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

# Colour, marker and line of the curves of one panel, in order: also told apart in black and white.
LOOKS = (
    (BLUE, "o", "-"),
    (RED, "s", "--"),
    (GREEN, "^", ":"),
    (PURPLE, "v", "-."),
    (ORANGE, "D", "-"),
    (BLACK, "x", "--"),
    (SKY, "P", ":"),
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
def style() -> Iterator[None]:
    """Gives what is drawn inside the `with` the sizes and lines of our figures.

    Raises:
      ModuleNotFoundError: without matplotlib, saying how to install it.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'figures need matplotlib; install it with: pip install "widelimit[plots]"',
            name=error.name,
        ) from error
    with matplotlib.rc_context(_STYLE):
        yield


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Returns an empty figure of `width` x `height` inches, for the length of a `with`, in `style`.

    It is made without pyplot and drawn by the Agg canvas: neither a display nor matplotlib's global
    state is touched, and nothing has to be closed. Save it with `save_figure`.

    Raises:
      ModuleNotFoundError: without matplotlib, saying how to install it.
    """
    with style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Returns the `path` to which the figure was written, as a whole or not at all.

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


@contextmanager
def panels(
    ax: Axes | Sequence[Axes] | np.ndarray | None, count: int, *, size: tuple[float, float]
) -> Iterator[list[Axes]]:
    """Returns `count` axes, for the length of a `with`: those of `ax`, or of a new pyplot figure.

    A new figure has our style and panels of `size` inches, at most four in a row, which share
    their scales if they are more than two.

    Raises:
      ModuleNotFoundError: without matplotlib.
      ValueError: another number of axes.
    """
    with style() if ax is None else nullcontext():
        yield _new_panels(count, size) if ax is None else _checked(ax, count)


def _new_panels(count: int, size: tuple[float, float]) -> list[Axes]:
    from matplotlib import pyplot

    columns = min(count, 4)
    rows = -(-count // columns)
    shares = count > 2
    _, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        layout="constrained",
        sharex=shares,
        sharey=shares,
        squeeze=False,
    )
    for unused in grid.ravel()[count:]:
        unused.remove()
    return list(grid.ravel()[:count])


def _checked(ax: Any, count: int) -> list[Axes]:
    found = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(found) != count:
        raise ValueError(f"expected {count} axes to draw into, got {len(found)}: pass them as ax")
    return found
