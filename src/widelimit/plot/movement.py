"""How far finite networks are from the limit, over steps or widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Array, Real

from widelimit.plot.looks import LOOKS, panels
from widelimit.plot.training import time_axis
from widelimit.typing import Scalar, Scalars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


# Up to this number, every place has a tick.
_FEW = 8


class Drift(NamedTuple):
    """What one quantity was drawn with.

    Attributes:
      line: the line through the mean over networks.
      points: a marker per network; None for one value per place.
    """

    line: Line2D
    points: Line2D | None


def drift(
    x: Scalars,
    quantities: Mapping[str, Real[Array | np.ndarray, "places *networks"] | Sequence[Scalar]],
    *,
    xlabel: str = "step",
    power: float | None = None,
    logarithmic: bool = True,
    ax: Axes | None = None,
) -> dict[str, Drift]:
    """Returns a line for each quantity by name: how far networks are from the limit.

    Step 0 of a logarithmic axis is drawn at half the next step, and its tick says 0.

    Args:
      x: steps or widths [places], not negative.
      quantities: relative distances by name, [places], or [places, networks] of several networks:
        each has a marker, and a line goes through their mean. Zero and NaN have no logarithm and
        are left out.
      xlabel: what x is.
      power: an exponent; a grey line of that slope through the first quantity shows the theory,
        such as -1/2 over widths.
      logarithmic: whether the vertical axis is.
      ax: where to draw; a new figure without it.

    Raises:
      ModuleNotFoundError: without matplotlib.
      ValueError: shapes that do not fit.

    Example:
      >>> import widelimit as wl
      >>> with wl.plot.new_figure(6.0, 4.0) as figure:
      ...     axes = figure.subplots()
      ...     drawn = wl.plot.drift((16, 64), {"kernel": [0.2, 0.1]}, xlabel="width", ax=axes)
      >>> drawn["kernel"].line.get_ydata().tolist()
      [0.2, 0.1]
    """
    x = np.asarray(x, dtype=float)
    with panels(ax, 1, size=(6.4, 4.6)) as (axes,):
        at = _places(axes, x)
        drawn = {
            name: _curve(axes, k, at, name, values, logarithmic)
            for k, (name, values) in enumerate(quantities.items())
        }
        if logarithmic and any(np.isfinite(d.line.get_ydata()).any() for d in drawn.values()):
            axes.set_yscale("log")
            _plain_ticks(axes)
        if power is not None and drawn:
            _slope(axes, at, next(iter(drawn.values())).line, power, xlabel)
        axes.set(xlabel=xlabel)
        if all(quantities):
            axes.legend()
    return drawn


def _plain_ticks(axes: Axes) -> None:
    """Labels a vertical axis of less than a decade and a half with decimals."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    if high < 30 * low:
        few = (1, 2, 5) if high > 4 * low else tuple(range(1, 10))
        axes.yaxis.set_major_locator(LogLocator(subs=few))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())


def _places(axes: Axes, x: np.ndarray) -> np.ndarray:
    """Returns where x is drawn; the axis is logarithmic if x spans a factor of 30."""
    above = x[x > 0]
    if len(above) < 2 or above.max() < 30 * above.min():
        return x
    axes.set_xscale("log")
    at = time_axis(axes, x)
    if len(x) <= _FEW:
        axes.set_xticks(at, [f"{place:,g}" for place in x])
        axes.set_xticks([], minor=True)
    return at


def _curve(
    axes: Axes, k: int, at: np.ndarray, name: str, values: object, logarithmic: bool
) -> Drift:
    found = np.asarray(values, dtype=float)
    if found.ndim not in (1, 2) or len(found) != len(at):
        raise ValueError(
            f"expected {name!r} of shape [{len(at)}] or [{len(at)}, networks], got {found.shape}"
        )
    shown = np.where(found > 0, found, np.nan) if logarithmic else found
    color, marker, line = LOOKS[k % len(LOOKS)]
    mean = shown if shown.ndim == 1 else shown.mean(axis=1)
    (curve,) = axes.plot(at, mean, line, marker=marker, color=color, label=name)
    if shown.ndim == 1:
        return Drift(curve, None)
    cloud = axes.plot(np.repeat(at, shown.shape[1]), shown.ravel(), marker, color=color, alpha=0.3)
    return Drift(curve, cloud[0])


def _slope(axes: Axes, at: np.ndarray, line: Line2D, power: float, xlabel: str) -> None:
    first = np.asarray(line.get_ydata(), dtype=float)
    known = np.flatnonzero(np.isfinite(first))
    if not len(known):
        return
    start = known[0]
    curve = first[start] * (at / at[start]) ** power
    axes.plot(at, curve, color="0.6", linewidth=1.4, zorder=1, label=f"{xlabel}$^{{{power:g}}}$")
