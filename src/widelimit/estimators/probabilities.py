"""Probabilities of classes from outputs, their spread, and a temperature.

An output is observed with a Gaussian error. The probability of a class is that its observed output
is the largest; with one output for two classes, that it is positive. All errors are multiplied by
one temperature.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Places relative to the largest mean where the densities are summed, in standard deviations: the
# sum of a smooth function over the whole line has no error but rounding.
_PLACES = np.linspace(-8.0, 8.0, 41)
# Temperatures beyond e^3 or below e^-3 say that the model is wrong; digits beyond these are noise.
_LOGARITHMS = (-3.0, 3.0)
_DIGITS = 4
# So many numbers are summed over at once.
_CHUNK = 2**22


def class_probabilities(
    means: Float[np.ndarray, "t outputs"], std: Float[np.ndarray, " t"]
) -> Float[np.ndarray, "t classes"]:
    """Returns the probability of each class.

    Args:
      means: means of one output for two classes, or of one output for each class.
      std: standard deviations of the observed outputs.
    """
    return np.exp(_log_probabilities(means, std))


def calibrated_temperature(
    means: Float[np.ndarray, "n outputs"],
    std: Float[np.ndarray, " n"],
    classes: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
) -> float:
    """Returns the temperature of the greatest likelihood of classes, to four digits.

    Args:
      means: means of outputs of samples that were left out.
      std: standard deviations of their observations.
      classes: indices of their classes.
      weights: weights of the samples.
    """
    import scipy.optimize

    rows = np.arange(len(classes))

    def loss(logarithm: float) -> float:
        logarithms = _log_probabilities(means, std * np.exp(logarithm))
        return -float(weights @ logarithms[rows, classes])

    best = scipy.optimize.minimize_scalar(
        loss, bounds=_LOGARITHMS, method="bounded", options={"xatol": 10.0**-_DIGITS / 4}
    )
    return float(np.exp(np.round(best.x, _DIGITS)))


def _log_probabilities(means: np.ndarray, std: np.ndarray) -> np.ndarray:
    from scipy.special import log_ndtr

    scaled = means / std[:, None]
    if means.shape[1] == 1:
        return log_ndtr(np.concatenate([-scaled, scaled], 1))
    rows = max(1, _CHUNK // (len(_PLACES) * means.shape[1]))
    pieces = [_log_largest(scaled[start : start + rows]) for start in range(0, len(means), rows)]
    return np.concatenate(pieces)


def _log_largest(means: Float[np.ndarray, "t classes"]) -> Float[np.ndarray, "t classes"]:
    """Returns the log probabilities that a variable of variance 1 is the largest."""
    from scipy.special import log_ndtr, logsumexp

    offsets = means.max(1, keepdims=True)[:, None] + _PLACES[:, None] - means[:, None]
    below = log_ndtr(offsets)
    densities = below.sum(-1, keepdims=True) - below - offsets**2 / 2
    joint = logsumexp(densities, 1)
    return joint - logsumexp(joint, 1, keepdims=True)
