"""Reliability diagrams: accuracy against confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Integer, Real

from widelimit.plot.looks import BLACK, BLUE, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection, PathCollection
    from matplotlib.lines import Line2D


class Reliability(NamedTuple):
    """What a reliability diagram was drawn with.

    Attributes:
      points: a marker per bin.
      bars: an interval per bin.
      diagonal: where confidence is accuracy.
    """

    points: PathCollection
    bars: LineCollection
    diagonal: Line2D


def reliability(
    probabilities: Real[Array | np.ndarray, "n classes"],
    labels: Integer[Array | np.ndarray, " n"],
    *,
    bins: int = 15,
    least: int = 1,
    label: str | None = None,
    color: str = BLUE,
    marker: str = "o",
    apart: float = 0.0,
    ax: Axes | None = None,
) -> Reliability:
    """Returns a marker and an interval for each bin of confidence: the accuracy in it.

    Areas of markers grow with the number of points. Vertical bars are the Wilson interval of one
    standard deviation, which stays inside [0, 1] and honest for a bin of one point.

    Args:
      probabilities: of the classes [n, classes].
      labels: the true classes [n], integers from 0.
      bins: number of bins of equal width.
      least: bins with fewer points are left out.
      label: name in a legend.
      color: of markers and bars.
      marker: of a bin.
      apart: how far to the right markers are moved, so that models do not hide each other.
      ax: where to draw; a new figure without it.

    Raises:
      ModuleNotFoundError: without matplotlib.
      ValueError: shapes that do not fit.
    """
    confidence, correct, count = reliability_bins(probabilities, labels, bins)
    some = count >= max(least, 1)
    x, p, n = confidence[some] + apart, correct[some], count[some]
    centre = (p + 0.5 / n) / (1 + 1 / n)
    half = np.sqrt(p * (1 - p) / n + 0.25 / n**2) / (1 + 1 / n)
    with panels(ax, 1, size=(5.2, 5.0)) as (axes,):
        (diagonal,) = axes.plot([0, 1], [0, 1], color=BLACK, linewidth=1)
        bars = axes.vlines(x, centre - half, centre + half, color=color, linewidth=1.6, alpha=0.7)
        areas = 30 + 300 * n / count.sum()
        points = axes.scatter(x, p, s=areas, color=color, marker=marker, alpha=0.75, label=label)
        axes.set(xlim=(0, 1.04), ylim=(-0.02, 1.04), xlabel="confidence", ylabel="accuracy")
    return Reliability(points, bars, diagonal)


def reliability_bins(
    probabilities: Real[Array | np.ndarray, "n classes"],
    labels: Integer[Array | np.ndarray, " n"],
    bins: int = 15,
) -> tuple[
    Float[np.ndarray, " bins"],
    Float[np.ndarray, " bins"],
    Int[np.ndarray, " bins"],
]:
    """Returns mean confidence, accuracy and number of points in each bin of confidence, [bins].

    The confidence is the probability of the most probable class; the bins split [0, 1] into equal
    widths, closed on the right. Empty bins hold NaN and 0 points. See arXiv:1706.04599.

    Args:
      probabilities: of the classes [n, classes].
      labels: the true classes [n], integers from 0.
      bins: number of bins.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> import numpy as np
      >>> confidence, accuracy, count = reliability_bins(np.eye(2), np.array([0, 0]), bins=2)
      >>> float(confidence[1]), float(accuracy[1]), int(count[1])
      (1.0, 0.5, 2)
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            "expected probabilities of shape [n, classes] and labels of shape [n], not empty, "
            f"got {probabilities.shape} and {labels.shape}"
        )
    confidence = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    accuracy = np.bincount(index, is_correct.astype(np.float64), bins) / divisor
    return np.bincount(index, confidence, bins) / divisor, accuracy, count
