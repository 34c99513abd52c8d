"""Class probabilities from Gaussian outputs, and measures of how well calibrated they are.

Everything here is numpy and scipy on small arrays: one row per test point.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import ArrayLike
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, log_softmax, logsumexp, ndtri

from widelimit.plot import reliability_bins

Array = NDArray[np.float64]


def largest_probabilities(mean: ArrayLike, std: ArrayLike, nodes: int = 100) -> Array:
    r"""Probabilities [t, c] that each of c independent Gaussian outputs is the largest one.

    Outputs of one test point share their standard deviation :math:`s` and are independent, so

    .. math:: p_i = \int \phi(z) \prod_{j \ne i} \Phi\big(z + (\mu_i - \mu_j) / s\big) \, dz,

    a one-dimensional integral that Gauss-Hermite quadrature does to near machine precision. Its
    nodes are centred on :math:`\max_j (\mu_j - \mu_i)^+ / 2s`, where the integrand of an
    unlikely class peaks, so that small probabilities keep their relative precision. See
    arXiv:2010.07355, section 4, for its use with infinitely wide networks.

    Args:
      mean: means [t, c] of the outputs.
      std: standard deviations [t], in the units of `mean`, positive.
      nodes: number of quadrature nodes.

    Raises:
      ValueError: if the shapes do not match, or a standard deviation is not positive.
    """
    mean = np.asarray(mean, np.float64)
    std = np.asarray(std, np.float64)
    if mean.ndim != 2 or std.shape != mean.shape[:1]:
        raise ValueError(
            f"expected mean of shape [t, c] and std of shape [t], got {mean.shape} and {std.shape}"
        )
    if not np.all(std > 0):
        raise ValueError("expected positive standard deviations, got some that are not")
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    log_weights = np.log(weights) - 0.5 * np.log(2 * np.pi)
    scaled = mean / std[:, None]
    log_probability = np.empty_like(scaled)
    # One class at a time, so that the array of integrands stays at [t, c, nodes].
    for i in range(mean.shape[1]):
        lead = scaled[:, i : i + 1] - np.delete(scaled, i, axis=1)  # [t, c - 1]
        shift = np.maximum(0.0, -lead.min(axis=1, initial=np.inf)) / 2  # [t]
        # phi(u + m) = phi(u) exp(-m u - m^2 / 2) for the shifted variable z = u + m.
        at = z + shift[:, None]  # [t, nodes]
        tilt = -shift[:, None] * z - shift[:, None] ** 2 / 2
        log_wins = log_ndtr(at[:, None, :] + lead[:, :, None]).sum(axis=1)  # [t, nodes]
        log_probability[:, i] = logsumexp(log_weights + tilt + log_wins, axis=1)
    # The exact probabilities sum to one; this removes what is left of the quadrature error.
    return np.exp(log_softmax(log_probability, axis=1))


def softmax_probabilities(mean: ArrayLike, temperature: float) -> Array:
    """Probabilities [t, c]: the softmax of `mean` [t, c] divided by `temperature`.

    Raises:
      ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"expected a positive temperature, got {temperature}")
    return np.exp(log_softmax(np.asarray(mean, np.float64) / temperature, axis=1))


def fit_temperature(mean: ArrayLike, labels: ArrayLike) -> float:
    """The softmax temperature with the least negative log likelihood, in the units of `mean`.

    Searched between 1e-4 and 1e2 times the standard deviation of `mean`. See arXiv:1706.04599.

    Args:
      mean: outputs [t, c] on points that the model was not fitted to.
      labels: their classes [t], integers from 0.

    Raises:
      ValueError: if the outputs are all equal, so that no temperature matters.
    """
    mean = np.asarray(mean, np.float64)
    scale = float(mean.std())
    if not scale > 0:
        raise ValueError("expected outputs that differ, got one constant: no temperature fits")

    def loss(log_temperature: float) -> float:
        probabilities = softmax_probabilities(mean / scale, float(np.exp(log_temperature)))
        return negative_log_likelihood(probabilities, labels)

    found = minimize_scalar(loss, bounds=(np.log(1e-4), np.log(1e2)), method="bounded")
    return scale * float(np.exp(found.x))


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The fraction of points whose most probable class is their label."""
    probabilities, labels = _checked(probabilities, labels)
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean of -log of the probability given to the label, in nats.

    Probabilities below the spacing of float64 at 1 count as that (36 nats), as in scikit-learn's
    `log_loss`: some calibrated classifiers give exact zeros.
    """
    probabilities, labels = _checked(probabilities, labels)
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.maximum(chosen, np.finfo(np.float64).eps))))


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    r"""The mean gap between confidence and accuracy over `bins` equal-width bins of confidence.

    .. math:: \sum_b (n_b / n) \, |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    See arXiv:1706.04599. It is biased upwards by roughly the noise of a bin's accuracy.
    """
    confidence, correct, count = reliability_bins(probabilities, labels, bins)
    return float(np.nansum(count * np.abs(confidence - correct)) / count.sum())


def covered(targets: ArrayLike, mean: ArrayLike, std: ArrayLike, level: float) -> NDArray[np.bool_]:
    """Whether each target lies in the central interval of a Gaussian with probability `level`.

    Args:
      targets: observed values.
      mean: means, of a shape that broadcasts against `targets`.
      std: standard deviations, likewise.
      level: probability of the interval, between 0 and 1.

    Raises:
      ValueError: if the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    half_width = ndtri(0.5 + level / 2) * np.asarray(std, np.float64)
    return np.asarray(np.abs(np.asarray(targets) - np.asarray(mean)) <= half_width)


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Both as arrays, with shapes that match."""
    probabilities = np.asarray(probabilities, np.float64)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            "expected probabilities of shape [t, c] and labels of shape [t], not empty, "
            f"got {probabilities.shape} and {labels.shape}"
        )
    return probabilities, labels
