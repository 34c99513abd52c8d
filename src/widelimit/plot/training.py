"""Losses over time, and the axis of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from widelimit.plot.bands import Band, dotted_band, filled_band
from widelimit.plot.looks import LOOKS, panels
from widelimit.typing import Scalars

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def losses(
    t: Scalars,
    over_time: Mapping[str, tuple[Any, Any]],
    *,
    dotted: bool = False,
    ax: Axes | None = None,
) -> dict[str, Band]:
    """Returns a line and a band for each loss by name: its mean and one standard deviation.

    Both scales are logarithmic; time 0 is drawn at half the next time, and its tick says 0.

    Args:
      t: times [times] in steps, not negative and finite.
      over_time: mean and standard deviation [times] of each loss by name, such as
        `ensemble.at(t).loss(x, y)`.
      dotted: whether to draw dotted edges instead of filled areas, for a second ensemble over the
        first.
      ax: where to draw; a new figure without it.

    Raises:
      ModuleNotFoundError: without matplotlib.
      ValueError: times or losses that cannot be drawn.

    Example:
      >>> import widelimit as wl
      >>> test = [1.0, 0.5, 0.1], [0.1, 0.1, 0.05]
      >>> with wl.plot.new_figure(6.0, 4.0) as figure:
      ...     drawn = wl.plot.losses((0, 1, 10), {"test": test}, ax=figure.subplots())
      >>> drawn["test"].line.get_xdata().tolist()
      [0.5, 1.0, 10.0]
    """
    t = np.asarray(t, dtype=float)
    draw = dotted_band if dotted else filled_band
    drawn = {}
    with panels(ax, 1, size=(6.4, 4.6)) as (axes,):
        axes.set(xscale="log", yscale="log", xlabel="steps of gradient descent")
        axes.set_ylabel("loss")
        at = time_axis(axes, t)
        for k, (name, (mean, std)) in enumerate(over_time.items()):
            mean, std = _checked(name, mean, t), np.asarray(std, dtype=float)
            # The lower edge stays on the logarithmic axis where a loss spreads beyond its mean.
            half = np.stack([np.minimum(std, 0.999 * mean), std])
            drawn[name] = draw(at, mean, half, color=LOOKS[k % len(LOOKS)][0], label=name, ax=axes)
        lowest = [np.min(np.asarray(band.line.get_ydata())) for band in drawn.values()]
        axes.set_ylim(bottom=min([axes.get_ylim()[1], *lowest]) / 4)
        axes.legend()
    return drawn


def time_axis(axes: Axes, t: np.ndarray) -> np.ndarray:
    """Returns where times are on a logarithmic axis: zero at half the first time above it.

    Raises:
      ValueError: times that are negative or infinite, or none above zero.
    """
    if t.ndim != 1 or not np.all(np.isfinite(t) & (t >= 0)) or not np.any(t > 0):
        raise ValueError(
            f"expected finite times of shape [times], not negative and one above zero, got {t}"
        )
    first = t[t > 0].min()
    if np.any(t == 0):
        decades = 10.0 ** np.arange(np.ceil(np.log10(first)), np.log10(t.max()) + 1e-9)
        axes.set_xticks([first / 2, *decades], ["0", *[f"{decade:,g}" for decade in decades]])
    return np.where(t == 0, first / 2, t)


def _checked(name: str, mean: Any, t: np.ndarray) -> np.ndarray:
    mean = np.asarray(mean, dtype=float)
    if mean.shape != t.shape or not np.all(mean > 0):
        raise ValueError(
            f"expected positive losses {name!r} of shape {t.shape}, one per time, got "
            f"{mean.shape}, the smallest {mean.min(initial=np.inf):g}"
        )
    return mean
