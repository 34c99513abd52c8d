"""Kernel matrices and their spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Array, Integer, Real

from widelimit.plot.looks import BLACK, LOOKS, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D


class KernelFigure(NamedTuple):
    """What a kernel was drawn with.

    Attributes:
      image: its entries.
      colorbar: their scale.
      spectrum: the line of its eigenvalues.
    """

    image: AxesImage
    colorbar: Colorbar
    spectrum: Line2D


def kernel(
    matrix: Real[Array | np.ndarray, "n n"],
    *,
    labels: Integer[Array | np.ndarray, " n"] | None = None,
    ax: Sequence[Axes] | np.ndarray | None = None,
) -> KernelFigure:
    """Returns the picture of a kernel matrix, and of its eigenvalues beside it.

    Args:
      matrix: a kernel [n, n] of samples with themselves.
      labels: the class [n] of each sample; samples are put in the order of their classes, and lines
        part the classes.
      ax: two axes, for the matrix and for the spectrum; a new figure without them.

    Raises:
      ModuleNotFoundError: without matplotlib.
      ValueError: a matrix of another shape or with entries that are not finite, or labels of
        another shape.

    Example:
      >>> import numpy as np, widelimit as wl
      >>> with wl.plot.new_figure(9.0, 4.0) as figure:
      ...     drawn = wl.plot.kernel(np.eye(3) + 1, ax=figure.subplots(1, 2))
      >>> [round(float(value), 6) for value in drawn.spectrum.get_ydata()]
      [4.0, 1.0, 1.0]
    """
    entries = _matrix("the kernel", matrix)
    with panels(ax, 2, size=(5.4, 4.6)) as (left, right):
        if labels is not None:
            entries = _in_classes(left, entries, np.asarray(labels))
        image = left.imshow(entries, cmap="cividis", interpolation="nearest")
        bar = left.figure.colorbar(image, ax=left, shrink=0.85)
        left.spines[:].set_visible(False)
        if labels is None:
            left.set(xlabel="sample", ylabel="sample")
        return KernelFigure(image, bar, spectrum({"": matrix}, ax=right)[""])


def _in_classes(axes: Axes, entries: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the matrix in the order of the classes, which the axes then show.

    Raises:
      ValueError: another number of labels than of samples.
    """
    if labels.shape != entries.shape[:1]:
        raise ValueError(f"expected labels of shape {entries.shape[:1]}, got {labels.shape}")
    order = np.argsort(labels, kind="stable")
    names, counts = np.unique(labels, return_counts=True)
    ends = np.cumsum(counts)
    for end in ends[:-1] - 0.5:
        axes.axhline(end, color="white", linewidth=0.8)
        axes.axvline(end, color="white", linewidth=0.8)
    centres = ends - counts / 2 - 0.5
    axes.set_xticks(centres, [str(name) for name in names])
    axes.set_yticks(centres, [str(name) for name in names])
    axes.tick_params(length=0)
    axes.set(xlabel="class of x'", ylabel="class of x")
    return np.asarray(entries[np.ix_(order, order)])


def spectrum(
    kernels: Mapping[str, Real[Array | np.ndarray, "n n"]], *, ax: Axes | None = None
) -> dict[str, Line2D]:
    """Returns the line of the eigenvalues of each kernel by name, largest first.

    Both scales are logarithmic, and eigenvalues that rounding has made negative are left out. A
    dotted line at sqrt(n) eps times the largest diagonal entry marks the rounding of the kernel's
    dtype, where eigenvalues reach below it: they say nothing about the kernel.

    Args:
      kernels: kernels [n, n] by name; an empty name has no entry in the legend.
      ax: where to draw; a new figure without it.

    Raises:
      ModuleNotFoundError: without matplotlib.
      ValueError: a kernel of another shape, or with entries that are not finite.
    """
    drawn: dict[str, Line2D] = {}
    with panels(ax, 1, size=(5.4, 4.6)) as (axes,):
        axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue")
        for k, (name, given) in enumerate(kernels.items()):
            entries = _matrix(f"the kernel {name!r}", given)
            values = np.linalg.eigvalsh(entries)[::-1]
            color, marker, _ = LOOKS[k % len(LOOKS)]
            size = 4 if len(values) < 200 else 2.5
            shown = np.where(values > 0, values, np.nan)
            (drawn[name],) = axes.plot(
                1 + np.arange(len(values)), shown, marker, color=color, markersize=size, label=name
            )
            _mark_rounding(axes, given, entries, values[-1], color)
        if any(kernels):
            axes.legend(markerscale=2)
    return drawn


def _mark_rounding(
    axes: Axes, given: Any, entries: np.ndarray, smallest: float, color: str
) -> None:
    dtype = np.asarray(given).dtype
    eps = float(np.finfo(dtype if np.issubdtype(dtype, np.floating) else float).eps)
    floor = len(entries) ** 0.5 * eps * float(np.abs(np.diagonal(entries)).max())
    if smallest < floor:
        axes.axhline(floor, color=color if color != LOOKS[0][0] else BLACK, linestyle=":", lw=1.4)
        axes.annotate(
            f"rounding of {dtype}",
            (0.02, floor),
            xycoords=("axes fraction", "data"),
            va="bottom",
            textcoords="offset points",
            xytext=(0, 2),
        )


def _matrix(name: str, matrix: Any) -> np.ndarray:
    """Returns a square matrix in float64.

    Raises:
      ValueError: it is no square matrix of finite numbers.
    """
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not found.size:
        raise ValueError(
            f"expected {name} of shape [n, n], got {found.shape}: choose outputs, and x2=None"
        )
    if not np.all(np.isfinite(found)):
        raise ValueError(f"expected {name} with finite entries, got some that are not")
    return found
