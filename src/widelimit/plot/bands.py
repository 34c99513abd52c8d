"""Means with bands around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from widelimit.plot.looks import panels
from widelimit.typing import Scalars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


class Band(NamedTuple):
    """What a mean and its band were drawn with.

    Attributes:
      line: the line of the mean.
      edges: the filled area, or the two dotted lines around it.
    """

    line: Line2D
    edges: Sequence[Artist]


def filled_band(
    x: Scalars,
    mean: Scalars,
    half_width: Scalars,
    *,
    color: str,
    ax: Axes | None = None,
    **line: Any,
) -> Band:
    """Returns the line of a mean and the filled area of `half_width` around it.

    Args:
      x: places [points].
      mean: means there.
      half_width: half the width of the band there [points], or below and above [2, points].
      color: of the line and of the area.
      ax: where to draw; a new figure without it.
      **line: what matplotlib's `plot` takes for the line, such as its `label`.
    """
    at, mean, (low, high) = np.asarray(x), np.asarray(mean), _edges(mean, half_width)
    with panels(ax, 1, size=(6.0, 4.0)) as (axes,):
        (curve,) = axes.plot(at, mean, color=color, **line)
        return Band(curve, (axes.fill_between(at, low, high, color=color, alpha=0.22, lw=0),))


def dotted_band(
    x: Scalars,
    mean: Scalars,
    half_width: Scalars,
    *,
    color: str,
    ax: Axes | None = None,
    **line: Any,
) -> Band:
    """Returns the dashed line of a mean and the dotted edges of a band around it.

    Drawn over a filled band it shows a second ensemble, as of finite networks. Arguments are those
    of `filled_band`.
    """
    at, mean, (low, high) = np.asarray(x), np.asarray(mean), _edges(mean, half_width)
    with panels(ax, 1, size=(6.0, 4.0)) as (axes,):
        edges = [
            axes.plot(at, edge, color=color, linestyle=":", linewidth=1.6)[0]
            for edge in (low, high)
        ]
        return Band(axes.plot(at, mean, color=color, linestyle="--", **line)[0], edges)


def _edges(mean: Any, half_width: Any) -> tuple[np.ndarray, np.ndarray]:
    mean, half_width = np.asarray(mean), np.asarray(half_width)
    below, above = half_width if half_width.ndim == 2 else (half_width, half_width)
    return mean - below, mean + above
