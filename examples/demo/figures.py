"""The figures of the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.demo.calibration import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
)
from examples.demo.classification import TRAINED, ClassificationResult
from examples.demo.images import BAYES, DESCENT, ImagesResult
from examples.demo.regression import Curves, RegressionResult
from widelimit.plot import dotted_band, filled_band, new_figure, reliability, save_figure
from widelimit.plot.looks import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# The accuracy on fewer images says nothing.
_LEAST_IN_BIN = 5

# Colour and marker of each way to class probabilities.
_LOOKS = {
    "largest output": (BLUE, "o"),
    "softmax": (ORANGE, "s"),
    "sigmoid": (RED, "^"),
    "isotonic": (BLACK, "v"),
}

# Colour and marker of each kind of inference.
_INFERENCE_LOOKS = {BAYES: (BLUE, "o"), DESCENT: (RED, "s")}


def regression_figure(result: RegressionResult, path: str | Path) -> Path:
    """The `path` of a figure: outputs as training progresses, and losses over time."""
    with new_figure(14.0, 6.4) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1), wspace=0.03, squeeze=False)[0]
        _outputs_panel(left, result)
        _losses_panel(right, result)
        return save_figure(figure, path)


def _outputs_panel(figure: SubFigure, result: RegressionResult) -> None:
    """Outputs against inputs at four times, one small plot each."""
    steps = result.task.steps
    chosen = np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))
    panels = figure.subplots(2, 2, sharex=True, sharey=True, squeeze=False)
    finite, infinite = result.finite, result.infinite
    for axes, k in zip(panels.ravel(), chosen, strict=False):
        grid, reach = result.grid, 2 * infinite.std[k]
        filled = filled_band(grid, infinite.mean[k], reach, color=BLUE, ax=axes)
        dotted = dotted_band(grid, finite.mean[k], 2 * finite.std[k], color=RED, ax=axes)
        (truth,) = axes.plot(result.grid, result.truth, color=BLACK, linewidth=1, alpha=0.6)
        (points,) = axes.plot(result.x, result.y, "o", color=BLACK, markersize=6)
        axes.set_title("at initialisation" if steps[k] == 0 else f"after {steps[k]:,} steps")
    reach = 2.5 * float(infinite.std[0].max())
    panels[0, 0].set(ylim=(-reach, reach), xlim=(result.grid[0], result.grid[-1]))
    for axes in panels[1]:
        axes.set_xlabel("input x")
    for axes in panels[:, 0]:
        axes.set_ylabel("output f(x)")
    figure.suptitle("Outputs as training progresses (mean, 2 std)", fontsize=15)
    size = f"{result.task.members} of width {result.task.width}"
    labelled: dict[str, Any] = {
        "infinite": (filled.line, *filled.edges),
        f"finite: {size}": dotted.line,
        "training points": points,
        "target without noise": truth,
    }
    _legend_below(figure, labelled)


def _losses_panel(figure: SubFigure, result: RegressionResult) -> None:
    """Training and test loss of both ensembles, one standard deviation around the mean."""
    axes = figure.subplots()
    steps = np.asarray(result.task.steps, float)
    # A logarithmic axis has no zero: initialisation stands at half a step.
    t = np.where(steps == 0, 0.5, steps)
    labelled: dict[str, Any] = {}
    for kind, draw in (("infinite", filled_band), ("finite", dotted_band)):
        curves: Curves = getattr(result, kind)
        for part, mean, std, color in (
            ("training", curves.train, curves.train_std, GREEN),
            ("test", curves.test, curves.test_std, PURPLE),
        ):
            # The lower edge stays on the logarithmic axis where a loss spreads beyond its mean.
            half = np.stack([np.minimum(std, 0.999 * mean), std])
            band = draw(t, mean, half, color=color, ax=axes)
            shown = (*band.edges, band.line) if kind == "infinite" else band.line
            labelled[f"{part}, {kind}"] = shown
    axes.set(xscale="log", yscale="log", xlabel="steps of gradient descent")
    axes.set_ylabel("loss: half the mean squared error")
    axes.set_ylim(bottom=min(result.infinite.train.min(), result.finite.train.min()) / 4)
    ticks = [0.5, *[10**k for k in range(int(np.log10(t[-1])) + 1)]]
    axes.set_xticks(ticks, ["0", *[f"{tick:,}" for tick in ticks[1:]]])
    figure.suptitle("Loss over time (mean, 1 std)", fontsize=15)
    _legend_below(figure, labelled)


def _scale_to_range(axes: Axes) -> None:
    """Make the axis of x logarithmic, with plain decimals, where the data spans a factor of ten."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    low, high = axes.dataLim.intervalx
    if high < 10 * low:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend_below(figure: SubFigure, labelled: dict[str, Any], columns: int = 2) -> None:
    """A legend under everything else; artists or tuples of them by label."""
    figure.legend(
        list(labelled.values()),
        list(labelled),
        loc="outside lower center",
        ncols=columns,
        handlelength=2.6,
    )


def classification_figure(result: ClassificationResult, path: str | Path) -> Path:
    """The `path` of a figure: reliability of some models, and the scores of all."""
    with new_figure(15.0, 6.4) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.75), squeeze=False)[0]
        _reliability_panel(left, result)
        _score_panels(right, result)
        return save_figure(figure, path)


def _reliability_panel(figure: SubFigure, result: ClassificationResult) -> None:
    """Accuracy against confidence of the Bayesian model, both ways, and of the baselines."""
    axes = figure.subplots()
    labelled: dict[str, Any] = {}
    shown = [p for p in result.predictions if not p.model.startswith(TRAINED)]
    for k, prediction in enumerate(shown):
        color, marker = _LOOKS[prediction.method]
        drawn = reliability(
            prediction.probabilities,
            result.data.y_test,
            least=_LEAST_IN_BIN,
            color=color,
            marker=marker,
            # A little apart, so that bars of different models do not hide each other.
            apart=0.006 * (k - (len(shown) - 1) / 2),
            ax=axes,
        )
        labelled["perfectly calibrated"] = drawn.diagonal
        # The legend shows one size, whatever the sizes in the plot.
        name = f"{prediction.model}, {prediction.method}"
        (labelled[name],) = axes.plot([], [], marker, color=color, markersize=9)
    figure.suptitle(f"Reliability, bins of {_LEAST_IN_BIN} images or more", fontsize=15)
    _legend_below(figure, labelled, columns=1)


def _score_panels(figure: SubFigure, result: ClassificationResult) -> None:
    """One row for each model, one panel for each score, one marker for each method."""
    labels = result.data.y_test
    # A logarithmic axis has no zero: what is below the error of half a mistake is drawn there.
    floor = 0.5 / len(labels)
    scores = (
        ("test error", lambda p: 1 - accuracy(p, labels)),
        ("negative log\nlikelihood (nats)", lambda p: negative_log_likelihood(p, labels)),
        ("expected\ncalibration error", lambda p: expected_calibration_error(p, labels)),
    )
    models = list(dict.fromkeys(p.model for p in result.predictions))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (title, score) in zip(panels, scores, strict=True):
        for method, (color, marker) in _LOOKS.items():
            chosen = [p for p in result.predictions if p.method == method]
            axes.plot(
                [max(floor, score(p.probabilities)) for p in chosen],
                [models.index(p.model) for p in chosen],
                marker,
                color=color,
                markersize=10,
                # Hollow, so that equal scores of two methods both show.
                markerfacecolor="none",
                markeredgewidth=2.4,
                label=method,
            )
        axes.set(xlabel=title)
        _scale_to_range(axes)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    panels[0].set(ylim=(len(models) - 0.5, -0.5))
    panels[0].set_yticks(range(len(models)), [model.replace(", ", ",\n") for model in models])
    train, test = len(result.data.x_train), len(result.data.x_test)
    figure.suptitle(
        f"Scores on {test:,} test images of {result.data.name} ({train:,} for training)",
        fontsize=15,
    )
    handles, names = panels[0].get_legend_handles_labels()
    _legend_below(figure, dict(zip(names, handles, strict=True)))


def images_figure(result: ImagesResult, path: str | Path) -> Path:
    """The `path` of a figure: accuracy of each network, and its difference to the first."""
    names = list(dict.fromkeys(row.network for row in result.rows))
    with new_figure(13.0, 5.6) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for k, (inference, (color, marker)) in enumerate(_INFERENCE_LOOKS.items()):
            rows = [row for row in result.rows if row.inference == inference]
            heights = np.array([names.index(row.network) for row in rows]) + 0.2 * (k - 0.5)
            looks = {"fmt": marker, "color": color, "markersize": 9, "capsize": 4}
            means = [row.fraction.mean() for row in rows]
            errors = [result.standard_error(row.fraction) for row in rows]
            left.errorbar(means, heights, xerr=errors, label=inference, **looks)
            apart, errors = np.transpose([result.difference(row) for row in rows[1:]])
            right.errorbar(apart, heights[1:], xerr=2 * errors, **looks)
        left.set(ylim=(len(names) - 0.5, -0.5), xlabel="accuracy (1 standard error)")
        left.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        right.axvline(0, color=BLACK, linewidth=1)
        right.set_xlabel(f"difference to {names[0]}\n(2 paired standard errors)")
        figure.suptitle(
            f"{result.name}: {len(result.rows[0].fraction)} splits, {result.train} training and "
            f"{result.test} test images each",
            fontsize=15,
        )
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return save_figure(figure, path)
