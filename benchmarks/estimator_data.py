"""Data sets that packages ship: of scikit-learn, and two from packages in an environment apart."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn import datasets

from benchmarks.environments import DATA_SETS

# More samples than these are left out at random.
MOST = 300

# Run in that environment: writes inputs and targets.
_EXPORT = """
import sys
import numpy as np
if sys.argv[1] == "autompg":
    from mlxtend.data import autompg_data
    X, y = autompg_data()
    X = X[:, :7]  # without the names of cars
else:
    from statsmodels.datasets import anes96
    data = anes96.load_pandas().data
    columns = ["popul", "TVnews", "selfLR", "ClinLR", "DoleLR", "age", "educ", "income"]
    X, y = data[columns].to_numpy(), data["vote"].to_numpy(int)
np.savez(sys.argv[2], X=np.asarray(X, float), y=y)
"""


class Problem(NamedTuple):
    """A data set.

    Attributes:
      X: inputs [n, features].
      y: labels [n], or targets [n, outputs].
      is_classification: whether these are labels.
      about: what it is, in words.
    """

    X: np.ndarray
    y: np.ndarray
    is_classification: bool
    about: str


def _scikit_learn(name: str) -> tuple[np.ndarray, np.ndarray]:
    return getattr(datasets, f"load_{name}")(return_X_y=True)


def _exported(name: str) -> tuple[np.ndarray, np.ndarray]:
    DATA_SETS.build()
    path = DATA_SETS.folder / f"{name}.npz"
    command = [str(DATA_SETS.python), "-c", _EXPORT, name, str(path)]
    subprocess.run(command, check=True)
    with np.load(path) as arrays:
        return arrays["X"], arrays["y"]


Reader = Callable[[str], tuple[np.ndarray, np.ndarray]]

# Name, where it comes from, whether it is for classification.
DATA: dict[str, tuple[Reader, bool, str]] = {
    "diabetes": (_scikit_learn, False, "progression of diabetes; scikit-learn"),
    "linnerud": (_scikit_learn, False, "physiology and exercises of men; scikit-learn"),
    "autompg": (_exported, False, "consumption of cars; mlxtend"),
    "iris": (_scikit_learn, True, "species of flowers; scikit-learn"),
    "wine": (_scikit_learn, True, "cultivars of wines; scikit-learn"),
    "breast_cancer": (_scikit_learn, True, "diagnoses; scikit-learn"),
    "digits": (_scikit_learn, True, "images of 8 x 8 pixels, as rows; scikit-learn"),
    "anes96": (_exported, True, "votes in 1996, from a survey; statsmodels"),
}


def load(name: str) -> Problem:
    """Returns a data set, of 300 samples at most."""
    read, is_classification, about = DATA[name]
    X, y = read(name)
    size, features = X.shape
    if size > MOST:
        rows = np.random.default_rng(0).permutation(size)[:MOST]
        X, y, about = X[rows], y[rows], f"{MOST} of {size} samples of {about}"
    if is_classification:
        return Problem(X, y, True, f"{about}; {len(X)} x {features}, {len(np.unique(y))} classes")
    y = y.reshape(len(y), -1).astype(float)
    return Problem(X, y, False, f"{about}; {len(X)} x {features}, outputs: {y.shape[1]}")
