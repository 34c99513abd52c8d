"""The figures of the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from widelimit.demo.calibration import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from widelimit.demo.classification import ClassificationResult, Prediction
from widelimit.demo.regression import RegressionResult
from widelimit.plot import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    dotted_band,
    filled_band,
    new_figure,
    reliability_curve,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def regression_figure(result: RegressionResult, path: str | Path) -> Path:
    """The `path` of a figure: outputs as training progresses, and losses over time."""
    with new_figure(14, 6.4) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1), wspace=0.03, squeeze=False)[0]
        _outputs_panel(left, result)
        _losses_panel(right, result)
        return save_figure(figure, path)


def _outputs_panel(figure: Figure, result: RegressionResult) -> None:
    """Outputs against inputs at four times, one small plot each."""
    steps = result.task.steps
    chosen = np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))
    panels = figure.subplots(2, 2, sharex=True, sharey=True, squeeze=False)
    finite, infinite = result.finite, result.infinite
    for axes, k in zip(panels.ravel(), chosen, strict=False):
        solid, filled = filled_band(
            axes, result.grid, infinite.mean[k], 2 * infinite.std[k], color=BLUE
        )
        dashed, dots = dotted_band(axes, result.grid, finite.mean[k], 2 * finite.std[k], color=RED)
        (truth,) = axes.plot(result.grid, result.truth, color=BLACK, linewidth=1, alpha=0.6)
        (points,) = axes.plot(result.x, result.y, "o", color=BLACK, markersize=6)
        axes.set_title("at initialisation" if steps[k] == 0 else f"after {steps[k]:,} steps")
    low, high = _view(result)
    panels[0, 0].set(ylim=(low, high), xlim=(result.grid[0], result.grid[-1]))
    figure.suptitle("Outputs as training progresses", fontsize=15)
    figure.supxlabel("input x", fontsize=14)
    figure.supylabel("output f(x)", fontsize=14)
    figure.legend(
        [(filled, solid), (dots, dashed), points, truth],
        [
            "infinite: mean, 2 std",
            f"finite, {result.task.members} of width {result.task.width}: mean, 2 std",
            "training points",
            "target without noise",
        ],
        loc="outside lower center",
        ncols=2,
    )


def _view(result: RegressionResult) -> tuple[float, float]:
    """Limits of the outputs shown: two and a half prior standard deviations around zero."""
    reach = 2.5 * float(result.infinite.std[0].max())
    return -reach, reach


def _losses_panel(figure: Figure, result: RegressionResult) -> None:
    """Training and test loss of both ensembles, one standard deviation around the mean."""
    axes = figure.subplots()
    steps = np.asarray(result.task.steps, float)
    # A logarithmic axis has no zero: initialisation stands half a step before the first one.
    t = np.where(steps == 0, 0.5, steps)
    handles, labels = [], []
    for part, color in (("train", GREEN), ("test", PURPLE)):
        mean, std = getattr(result.infinite, part), getattr(result.infinite, f"{part}_std")
        handles.append(filled_band(axes, t, mean, np.minimum(std, 0.999 * mean), color=color))
        mean, std = getattr(result.finite, part), getattr(result.finite, f"{part}_std")
        handles.append(
            dotted_band(
                axes, t, mean, np.minimum(std, 0.999 * mean), color=color, marker="o", markersize=5
            )
        )
        name = "training" if part == "train" else "test"
        labels += [f"{name}, infinite: mean, 1 std", f"{name}, finite: mean, 1 std"]
    axes.set(xscale="log", yscale="log", xlabel="steps of gradient descent")
    axes.set_ylabel("loss: half the mean squared error")
    lowest = min(result.infinite.train.min(), result.finite.train.min())
    axes.set_ylim(bottom=lowest / 4)
    ticks = [0.5, *[10**k for k in range(int(np.log10(t[-1])) + 1)]]
    axes.set_xticks(ticks, ["0", *[f"{tick:,}" for tick in ticks[1:]]])
    figure.suptitle("Loss over time", fontsize=15)
    figure.legend(handles, labels, loc="outside lower center", ncols=2)


def classification_figure(result: ClassificationResult, path: str | Path) -> Path:
    """The `path` of a figure: reliability of some models, and the scores of all."""
    with new_figure(14, 6.4) as figure:
        left, *scores = figure.subplots(1, 4, width_ratios=(2.1, 1, 1, 1))
        _reliability_panel(left, result)
        _score_panels(scores, result)
        name, test = result.data.name, len(result.data.x_test)
        figure.suptitle(
            f"{name}: {len(result.data.x_train):,} training, {test:,} test images", fontsize=15
        )
        return save_figure(figure, path)


def _reliability_panel(axes: Axes, result: ClassificationResult) -> None:
    """Accuracy against confidence of the Bayesian model, both ways, and of the baseline."""
    by_kind = [p for p in result.predictions if not p.model.startswith("gradient descent")]
    axes.plot([0, 1], [0, 1], color=BLACK, linewidth=1, label="perfectly calibrated")
    for prediction, color, marker in zip(by_kind, (BLUE, ORANGE, RED), "os^", strict=False):
        bins = reliability(prediction.probabilities, result.data.y_test)
        reliability_curve(
            axes,
            *bins,
            color=color,
            marker=marker,
            label=f"{prediction.model}, {prediction.method}",
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="confidence", ylabel="accuracy")
    axes.set_title("Reliability (larger marker: more images)")
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.0))


def _score_panels(panels: list[Axes], result: ClassificationResult) -> None:
    """One row for each model, one panel for each score, one marker for each method."""
    labels = result.data.y_test
    scores = (
        ("error, %", lambda p: 100 * (1 - accuracy(p, labels))),
        ("negative log\nlikelihood, nats", lambda p: negative_log_likelihood(p, labels)),
        ("expected calibration\nerror, %", lambda p: 100 * expected_calibration_error(p, labels)),
    )
    models = list(dict.fromkeys(p.model for p in result.predictions))
    looks = {"largest output": (BLUE, "o"), "softmax": (ORANGE, "s"), "calibrated": (RED, "^")}
    for axes, (title, score) in zip(panels, scores, strict=True):
        for method, (color, marker) in looks.items():
            chosen: list[Prediction] = [p for p in result.predictions if p.method == method]
            axes.plot(
                [score(p.probabilities) for p in chosen],
                [models.index(p.model) for p in chosen],
                marker,
                color=color,
                markersize=10,
                alpha=0.85,
                label=method,
            )
        axes.set(xlabel=title, ylim=(len(models) - 0.5, -0.5))
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.set_yticks(range(len(models)), models if axes is panels[0] else [""] * len(models))
    panels[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
