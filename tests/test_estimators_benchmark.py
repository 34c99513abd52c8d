"""The benchmark of estimators: its folds and tables. Nothing is installed."""

import numpy as np
import pytest

from benchmarks import estimators
from benchmarks.estimator_data import load
from benchmarks.estimators import Fold, cell, comparison, evaluate
from widelimit.estimators import NNGPClassifier, NNGPRegressor


@pytest.mark.parametrize(("name", "model"), [("linnerud", NNGPRegressor), ("iris", NNGPClassifier)])
def test_a_fold_has_a_score_a_density_and_a_time(name, model):
    problem = load(name)
    rows = np.arange(len(problem.X))
    fold = evaluate(model(depth=1), problem, rows[::2], rows[1::2])
    assert np.isfinite(fold).all()
    assert fold.density is not None


def test_the_page_says_where_others_are_ahead():
    results = {
        ("iris", kind): [Fold(0.5, 1.0, 0.1), Fold(0.6, 1.0, 0.1)] for kind in estimators.REGRESSORS
    }
    results["iris", "SVM, tuned"] = [Fold(0.9, None, 0.1), Fold(0.8, None, 0.1)]
    text = estimators.page(results, {"iris": load("iris")}, 1, 60.0)
    assert "**0.850 ± 0.050**" in text
    rows = comparison(results, ["iris"], "score", 1).splitlines()
    assert "| SVM, tuned | - | - | iris |" in rows
    assert "| NTK | - | iris | - |" in rows
    assert "SVM" not in comparison(results, ["iris"], "density", -1)
    assert cell([None, None]) == "-"
