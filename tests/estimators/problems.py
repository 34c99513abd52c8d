"""Small data sets that the tests of estimators share."""

import numpy as np


def regression(outputs: int = 2, samples: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns inputs, targets and test inputs."""
    random = np.random.default_rng(0)
    x, test = random.standard_normal((samples, 3)), random.standard_normal((6, 3))
    clean = np.sin(x @ random.standard_normal((3, outputs)))
    return x, clean + 0.1 * random.standard_normal(clean.shape), test


def classification(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns overlapping clusters and their labels."""
    random = np.random.default_rng(1)
    labels = np.arange(60) % classes
    return 1.5 * np.eye(classes)[labels] + random.standard_normal((60, classes)), labels


def weights(samples: int) -> np.ndarray:
    """Returns whole weights, zeros among them."""
    found = np.random.default_rng(2).integers(0, 4, samples).astype(float)
    found[:4] = [0, 1, 2, 3]
    return found


def repeated(counts: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Returns the arrays with rows repeated so many times."""
    return [np.repeat(array, counts.astype(int), axis=0) for array in arrays]
