"""The outputs of an infinite ensemble of one input, at several times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Array, Real

from widelimit.plot.bands import filled_band
from widelimit.plot.looks import BLACK, BLUE, panels
from widelimit.predict.infinite import InfiniteEnsemble
from widelimit.typing import Scalar, Scalars, TargetsLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


class EnsemblePanel(NamedTuple):
    """What one moment of an ensemble was drawn with.

    Attributes:
      line: the line of the mean.
      band: the area around it.
      points: the training points; None without them.
      axes: where all of it is.
    """

    line: Line2D
    band: Any
    points: Line2D | None
    axes: Axes


def ensemble(
    trained: InfiniteEnsemble,
    x: Real[Array | np.ndarray, "points 1"],
    t: Scalars | None = None,
    *,
    data: tuple[Real[Array | np.ndarray, "n 1"], TargetsLike] | None = None,
    output: int = 0,
    widths: Scalar = 2.0,
    noise: bool = False,
    color: str = BLUE,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
) -> list[EnsemblePanel]:
    """Returns a panel for each time: the mean of an ensemble, and its band.

    Args:
      trained: the ensemble, of networks with one input.
      x: inputs [points, 1] to draw at, in any order.
      t: times, in steps of gradient descent, infinity among them; a panel for each. None draws the
        ensemble as it is, in one panel.
      data: training inputs [n, 1] and targets [n, outputs], to be drawn as points.
      output: which output of the network.
      widths: half the width of the band, in standard deviations.
      noise: whether the band is that of observations, instead of that of outputs.
      color: of lines and bands.
      ax: axes to draw into, as many as times; a new figure with a legend without them.

    Raises:
      ModuleNotFoundError: without matplotlib.
      ValueError: inputs of another shape, or another number of axes than of times.

    Example:
      >>> import jax.numpy as jnp, widelimit as wl
      >>> net = wl.stax.serial(wl.stax.Dense(512), wl.stax.Erf(), wl.stax.Dense(1))
      >>> x = jnp.linspace(-1, 1, 3)[:, None]
      >>> trained = wl.InfiniteEnsemble(net, x, jnp.sin(x))
      >>> with wl.plot.new_figure(8.0, 3.0) as figure:
      ...     axes = figure.subplots(1, 2)
      ...     first, last = wl.plot.ensemble(trained, x, (0, 100), data=(x, x), ax=axes)
      >>> first.axes.get_title()
      'at initialisation'
    """
    grid = _column("x", x)
    order = np.argsort(grid)
    moment = trained if t is None else trained.at(np.asarray(t, dtype=float))
    mean, std = (np.asarray(a)[..., output] for a in (moment.mean(x), moment.std(x, noise)))
    mean, std = np.atleast_2d(mean)[:, order], np.atleast_2d(std)[:, order]
    with panels(ax, len(mean), size=(6.4, 4.4) if len(mean) == 1 else (4.4, 3.6)) as every:
        drawn = []
        for k, axes in enumerate(every):
            band = filled_band(grid[order], mean[k], widths * std[k], color=color, ax=axes)
            axes.set_xlabel("input x")
            if t is not None:
                axes.set_title(_when(float(np.ravel(np.asarray(t))[k])))
            drawn.append(EnsemblePanel(band.line, band.edges[0], _points(data, output, axes), axes))
        every[0].set_ylabel("output f(x)")
        _name(drawn[0], widths, noise)
        if ax is None:
            _legend_below(every[0], 2 if len(every) == 1 else 3)
    return drawn


def _points(data: Any, output: int, axes: Axes) -> Line2D | None:
    if data is None:
        return None
    at, targets = _column("data[0]", data[0]), np.asarray(data[1])
    if targets.ndim != 2 or len(targets) != len(at):
        raise ValueError(
            f"expected data[1] of shape [{len(at)}, outputs], got {targets.shape}; for one output "
            "y[:, None]"
        )
    return axes.plot(at, targets[:, output], "o", color=BLACK, markersize=6)[0]


def _column(name: str, x: Any) -> np.ndarray:
    """Returns the values of one input.

    Raises:
      ValueError: there are more inputs than one.
    """
    if np.ndim(x) != 2 or np.shape(x)[1] != 1:
        hint = (
            "for one input x[:, None]"
            if np.ndim(x) == 1
            else "along a line in more dimensions draw `mean` and `std` with `filled_band`"
        )
        raise ValueError(f"expected {name} of shape [points, 1], got {np.shape(x)}: {hint}")
    return np.asarray(x)[:, 0]


def _when(time: float) -> str:
    if np.isinf(time):
        return "after infinite time"
    steps = "step" if time == 1 else "steps"
    return "at initialisation" if time == 0 else f"after {time:,g} {steps}"


def _name(panel: EnsemblePanel, widths: Scalar, noise: bool) -> None:
    """Labels the artists of the panel that the legend is made of."""
    panel.line.set_label("mean")
    of = " of an observation" if noise else ""
    panel.band.set_label(f"{widths:g} standard deviations{of}")
    if panel.points is not None:
        panel.points.set_label("training points")


def _legend_below(axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure: Any = axes.figure
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
