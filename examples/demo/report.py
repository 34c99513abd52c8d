"""What the demonstration prints."""

from __future__ import annotations

import numpy as np

from examples.demo.calibration import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
)
from examples.demo.classification import ClassificationResult
from examples.demo.coverage import LEVELS, Coverage, CoverageStudy
from examples.demo.images import ImagesResult
from examples.demo.regression import RegressionResult
from widelimit._text import text_table


def regression_text(result: RegressionResult) -> str:
    """The largest deviations between the finite and the infinite ensemble."""
    task = result.task
    lines = [
        f"{task.members} networks of width {task.width}, {task.steps[-1]:,} steps of size "
        f"{result.learning_rate:.3g} ({task.speed:.0%} of the largest stable one), "
        f"{task.points} training points",
        "largest deviation of the finite mean from the infinite mean, in its standard errors:",
    ]
    compared = {
        "outputs": result.finite.mean.size,
        "training loss": len(task.steps),
        "test loss": len(task.steps),
    }
    lines += [
        f"  {name:<14}{value:5.2f}   (largest of {compared[name]})"
        for name, value in result.deviations.items()
    ]
    return "\n".join(lines)


def coverage_text(study: CoverageStudy, coverage: dict[str, Coverage]) -> str:
    """How often the intervals of Bayesian inference held new observations, as a table."""
    header = ["functions", *[f"{level:.0%} interval" for level in LEVELS]]
    rows = [
        [
            name,
            *[
                f"{100 * value:.1f} +- {100 * error:.1f} %"
                for value, error in zip(row.fraction, row.error, strict=True)
            ],
        ]
        for name, row in coverage.items()
    ]
    count = study.designs * study.tasks
    return (
        f"observations inside the intervals of Bayesian inference: {count:,} data sets of "
        f"{study.points} points each, {study.tests} new observations each\n"
        + text_table(header, rows)
    )


def classification_text(result: ClassificationResult) -> str:
    """Accuracy, negative log likelihood and calibration error of every model, as a table."""
    data = result.data
    labels = data.y_test
    header = ["model", "probabilities", "accuracy %", "NLL, nats", "ECE %"]
    rows = [
        [
            p.model,
            p.method,
            f"{100 * accuracy(p.probabilities, labels):.2f}",
            f"{negative_log_likelihood(p.probabilities, labels):.4f}",
            f"{100 * expected_calibration_error(p.probabilities, labels):.2f}",
        ]
        for p in result.predictions
    ]
    best = max(accuracy(p.probabilities, labels) for p in result.predictions)
    error = 100 * np.sqrt(best * (1 - best) / len(labels))
    return "\n".join(
        [
            f"{data.name}: {data.classes} classes, {len(data.y_train):,} training images "
            f"({result.held_out} held out to choose noise and temperatures), "
            f"{len(labels):,} test images",
            f"chosen: noise {result.noise:g} of the targets' root mean square; "
            f"support vectors C {result.svc['C']:g}, gamma {result.svc['gamma']:.3g}",
            text_table(header, rows),
            f"standard error of an accuracy: about {error:.1f} %; NLL: negative log likelihood; "
            "ECE: expected calibration error, 15 bins of equal width",
        ]
    )


def images_text(result: ImagesResult) -> str:
    """Accuracy of every network, and how it differs from the first, as a table."""
    rows, alike = [], []
    first = result.rows[0].network
    for row in result.rows:
        error = result.standard_error(row.fraction)
        cells = [
            row.network,
            row.inference,
            f"{100 * row.fraction.mean():.1f} +- {100 * error:.1f}",
        ]
        if row.network == first:
            rows.append([*cells, ""])
            continue
        apart, error = result.difference(row)
        rows.append([*cells, f"{100 * apart:+.1f} +- {100 * error:.1f}"])
        if abs(apart) <= 2 * error:
            alike.append(f"{row.network} ({row.inference})")
    sides = " x ".join(map(str, result.shape[:2]))
    averaged = f", averaged over {result.block} x {result.block}" if result.block > 1 else ""
    splits = len(result.rows[0].fraction)
    every = len(alike) == sum(row.network != first for row in result.rows)
    not_told = "every other network" if every else "; ".join(alike) if alike else "none"
    return "\n".join(
        [
            f"{result.name}: {result.classes} classes, images of {sides} pixels{averaged}; "
            f"{splits} splits of {result.train + result.test} images into {result.train} for "
            f"training and {result.test} for testing, the same for all networks",
            text_table(["network", "inference", "accuracy %", f"minus {first}"], rows),
            "+-: one standard error over splits, paired for differences, larger because training "
            "sets overlap (Nadeau and Bengio, 2003)",
            f"not told apart from {first}, within two standard errors: {not_told}",
        ]
    )
