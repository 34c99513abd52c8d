"""Estimators of infinite networks beside those of scikit-learn, on eight data sets of packages.

    python -m benchmarks.estimators [--only NAME] [--repeats N] [--output FILE]

Each estimator is fitted to the same folds of a repeated cross-validation. Inputs are standardised
on the training folds for all. Ours are as they come.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
from sklearn.base import clone
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, RepeatedKFold, RepeatedStratifiedKFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from threadpoolctl import threadpool_limits

import widelimit
from benchmarks import machine, tables
from benchmarks.estimator_data import DATA, Problem, load
from widelimit.estimators import NNGPClassifier, NNGPRegressor, NTKClassifier, NTKRegressor

FOLDS = 5
_GRID = {"C": [0.1, 1.0, 10.0, 100.0], "gamma": [0.01, 0.03, 0.1, 0.3]}

REGRESSORS: dict[str, Callable[[], Any]] = {
    "NNGP": NNGPRegressor,
    "NTK": NTKRegressor,
    "GP, RBF": lambda: GaussianProcessRegressor(
        ConstantKernel() * RBF(3.0, (1e-2, 1e3)) + WhiteKernel(0.1), normalize_y=True
    ),
    "SVM, tuned": lambda: MultiOutputRegressor(GridSearchCV(SVR(), _GRID, cv=3)),
    "random forest": lambda: MultiOutputRegressor(RandomForestRegressor(random_state=0)),
    "gradient boosting": lambda: MultiOutputRegressor(GradientBoostingRegressor(random_state=0)),
}
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "NNGP": NNGPClassifier,
    "NTK": NTKClassifier,
    "GP, RBF": lambda: GaussianProcessClassifier(ConstantKernel() * RBF(3.0, (1e-2, 1e3))),
    "SVM, tuned": lambda: GridSearchCV(SVC(), _GRID, cv=3),
    "random forest": lambda: RandomForestClassifier(random_state=0),
    "gradient boosting": lambda: GradientBoostingClassifier(random_state=0),
}


class Fold(NamedTuple):
    """What one estimator did on one fold; `density` is None where it has no probabilities."""

    score: float
    density: float | None
    seconds: float


Results = dict[tuple[str, str], list[Fold]]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="benchmarks.estimators", description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(DATA), help="one data set")
    parser.add_argument("--repeats", type=int, default=2, help="shuffles of the folds (default 2)")
    parser.add_argument("--output", type=Path, help="where the page goes, beside the screen")
    return parser.parse_args(given)


def targets(problem: Problem) -> np.ndarray:
    """Returns labels, or targets in units of their standard deviations over all samples."""
    return problem.y if problem.is_classification else StandardScaler().fit_transform(problem.y)


def evaluate(estimator: Any, problem: Problem, train: np.ndarray, test: np.ndarray) -> Fold:
    """Returns score, negative log likelihood and time of one fold."""
    X, y = problem.X, targets(problem)
    start = time.perf_counter()
    model = make_pipeline(StandardScaler(), clone(estimator)).fit(X[train], y[train])
    score = float(model.score(X[test], y[test]))
    density = densities(model, X[test], y[test], problem.is_classification)
    return Fold(score, density, time.perf_counter() - start)


def densities(model: Any, X: np.ndarray, y: np.ndarray, is_classification: bool) -> float | None:
    """Returns the mean negative log likelihood, None without probabilities."""
    if is_classification:
        if not hasattr(model, "predict_proba"):
            return None
        return float(log_loss(y, model.predict_proba(X), labels=model.classes_))
    last = model[-1]
    if isinstance(last, NNGPRegressor | NTKRegressor):
        mean, std = model.predict(X, return_std=True, noise=True)
    elif isinstance(last, GaussianProcessRegressor):
        mean, std = model.predict(X, return_std=True)  # its WhiteKernel is the noise
    else:
        return None
    mean, std = mean.reshape(y.shape), std.reshape(y.shape)
    return float((0.5 * ((y - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)).mean())


def run(name: str, problem: Problem, repeats: int) -> Results:
    """Returns what all estimators did on a data set."""
    kinds = CLASSIFIERS if problem.is_classification else REGRESSORS
    splitter = RepeatedStratifiedKFold if problem.is_classification else RepeatedKFold
    folds = splitter(n_splits=FOLDS, n_repeats=repeats, random_state=0)
    results: Results = {}
    for kind, make in kinds.items():
        splits = folds.split(problem.X, problem.y)
        results[name, kind] = [evaluate(make(), problem, *split) for split in splits]
        scores = [fold.score for fold in results[name, kind]]
        print(f"{name}: {kind}: {np.mean(scores):.3f}", file=sys.stderr, flush=True)
    return results


def cell(values: Sequence[float | None], digits: int = 3) -> str:
    """Returns mean and standard error over folds."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return tables.MISSING
    error = np.std(numbers, ddof=1) / len(numbers) ** 0.5
    return f"{np.mean(numbers):.{digits}f} ± {error:.{digits}f}"


def table(results: Results, names: Sequence[str], quantity: str, sign: int) -> str:
    """Returns a row for each data set, the best mean in bold; `sign` is -1 if less is better."""
    rows = []
    for name in names:
        columns = [[getattr(f, quantity) for f in results[name, kind]] for kind in REGRESSORS]
        means = [-np.inf if None in c else sign * float(np.mean(c)) for c in columns]
        cells = [cell(column) for column in columns]
        best = int(np.argmax(means))
        cells[best] = f"**{cells[best]}**"
        rows.append([name, *cells])
    return tables.markdown(["data", *REGRESSORS], rows)


def time_table(results: Results, names: Sequence[str]) -> str:
    """Returns the median time of fitting to and predicting one fold."""
    rows = [
        [
            name,
            *(tables.seconds(np.median([f.seconds for f in results[name, k]])) for k in REGRESSORS),
        ]
        for name in names
    ]
    return tables.markdown(["data", *REGRESSORS], rows)


def comparison(results: Results, names: Sequence[str], quantity: str, sign: int) -> str:
    """Returns where NNGP is ahead of each other, level or behind, by differences in the same folds.

    Level means that the mean difference is less than two of its standard errors.
    """
    rows = []
    for kind in [kind for kind in REGRESSORS if kind != "NNGP"]:
        verdicts: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
        for name in names:
            pairs = zip(results[name, "NNGP"], results[name, kind], strict=True)
            values = [[getattr(fold, quantity) for fold in pair] for pair in pairs]
            if any(None in pair for pair in values):
                continue
            differences = sign * -np.diff(np.array(values), axis=1)
            mean, error = differences.mean(), differences.std(ddof=1) / len(values) ** 0.5
            verdict = "level" if abs(mean) <= 2 * error else "ahead" if mean > 0 else "behind"
            verdicts[verdict].append(name)
        if any(verdicts.values()):
            rows.append(
                [kind, *(", ".join(where) or tables.MISSING for where in verdicts.values())]
            )
    return tables.markdown(["NNGP beside", "ahead", "level", "behind"], rows, words=4)


def page(results: Results, problems: dict[str, Problem], repeats: int, seconds: float) -> str:
    """Returns the page."""
    regressions = [name for name, p in problems.items() if not p.is_classification]
    classifications = [name for name, p in problems.items() if p.is_classification]
    parts = [
        "# Estimators beside those of scikit-learn",
        f"Written by `make bench-estimators` in {seconds / 60:.0f} minutes, with widelimit "
        f"{widelimit.__version__} and scikit-learn {sklearn.__version__}, on {machine.describe()}.",
        f"{FOLDS}-fold cross-validation, shuffled {repeats} times. Cells are means and standard "
        "errors over folds; folds share training samples, so that true errors are somewhat larger. "
        "The best mean is in bold, whatever its lead: the tables below call NNGP level with another "
        "where their mean difference in the same folds is less than two of its standard errors. "
        "Ours are as they come, with three hidden layers of ReLU and no search; SVMs search 16 "
        "settings in three inner folds, Gaussian processes the scales and the noise of "
        "their kernels. Linear algebra runs on one thread, and so do forests.",
        "\n".join(f"- {name}: {problem.about}" for name, problem in problems.items()),
    ]
    for title, names, score in (
        ("Regression: R²", regressions, "R²"),
        ("Classification: accuracy", classifications, "accuracy"),
    ):
        if not names:
            continue
        parts += [
            f"## {title}",
            table(results, names, "score", 1),
            comparison(results, names, "score", 1),
            "Negative log likelihood per sample, less is better"
            + (", of targets in units of their standard deviation:" if score == "R²" else ":"),
            table(results, names, "density", -1),
            comparison(results, names, "density", -1),
        ]
    parts += ["## Time to fit and predict one fold, median", time_table(results, [*problems])]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Runs all, and prints or writes the page."""
    options = arguments()
    warnings.simplefilter("ignore", ConvergenceWarning)  # hyper-parameters at their bounds
    start = time.perf_counter()
    problems = {name: load(name) for name in options.only or DATA}
    results: Results = {}
    with threadpool_limits(1):  # matrices of this size take longer on two threads of a busy machine
        for name, problem in problems.items():
            results |= run(name, problem, options.repeats)
    text = page(results, problems, options.repeats, time.perf_counter() - start)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
