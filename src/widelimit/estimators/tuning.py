"""The ratio of noise to signal, and the scale of outputs, by evidence or by leaving samples out.

Targets have the covariance scale^2 (K + ratio I). In the eigenbasis of K either criterion and its
derivative take O(n^2) for a ratio, and the best scale is known for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from widelimit.estimators.leave_one_out import leave_one_out, units
from widelimit.estimators.resolvents import Resolvent, SpectralResolvent
from widelimit.estimators.weighted import WeightedSet

# Ratios that are tried first, in units of the mean of the kernel at the samples: noise from 1e-4 to
# 100 standard deviations of the prior.
_RATIOS = np.logspace(-8, 4, 25)


class Amplitudes(NamedTuple):
    """A choice.

    Attributes:
      ratio: variance of noise in units of the kernel.
      scale: standard deviation that outputs are multiplied by.
    """

    ratio: float
    scale: float


def tuned_amplitudes(
    data: WeightedSet, spectrum: SpectralResolvent, criterion: str
) -> Amplitudes | None:
    """Returns the best ratio of noise and scale; None if targets or the kernel are all zero.

    Args:
      data: the training set.
      spectrum: the eigenbasis of its kernel.
      criterion: "evidence" maximises the marginal likelihood. "leave_one_out" minimises the sum of
        squared residuals of samples that are left out, and then maximises the density of these.
    """
    if not (data.targets.any() and data.typical_variance() > 0):
        return None
    projected = spectrum.evecs.T @ data.targets
    if criterion == "evidence":
        objective = _evidence(data, spectrum.evals, projected)
    else:
        objective = _left_out(data, spectrum, projected)
    ratio = _least(objective, _RATIOS * data.typical_variance())
    resolvent = spectrum.regularised(ratio)
    if criterion == "evidence":
        variance = float((data.targets * resolvent.apply(data.targets)).sum())
        variance /= data.total * data.outputs
    else:
        variance = _left_out_variance(data, resolvent, ratio)
    return Amplitudes(ratio, math.sqrt(variance) if variance > 0 else 1.0)


def log_evidence(data: WeightedSet, resolvent: Resolvent, amplitudes: Amplitudes) -> float:
    """Returns the log density of the targets under the prior and noise, a sample of weight w as w.

    -(y^T M^-1 y + log det M + n log 2 pi) / 2 with M = scale^2 (K + ratio I), summed over outputs
    (arXiv:1711.00165). Repeated samples add noise of their own to the determinant.
    """
    variance, repeated = amplitudes.scale**2, data.total - len(data.weights)
    fit = float((data.targets * resolvent.apply(data.targets)).sum()) / variance
    with np.errstate(divide="ignore"):
        noise = repeated * np.log(amplitudes.ratio) if repeated else 0.0
    volume = resolvent.log_determinant() + noise + data.total * math.log(2 * math.pi * variance)
    return float(-0.5 * (fit + data.outputs * volume))


# Of a ratio: the value that is to be small, and its derivative by the logarithm of the ratio.
_Objective = Callable[[float], tuple[float, float]]


def _evidence(data: WeightedSet, evals: np.ndarray, projected: np.ndarray) -> _Objective:
    """Minus two over the outputs of the log evidence at the best scale, but for a constant."""
    powers, repeated = (projected**2).sum(1), data.total - len(evals)

    def objective(ratio: float) -> tuple[float, float]:
        inverse = 1 / (evals + ratio)
        fit, slope = powers @ inverse, -powers @ inverse**2
        value = data.total * np.log(fit) - np.log(inverse).sum() + repeated * np.log(ratio)
        return value, data.total * ratio * slope / fit + ratio * inverse.sum() + repeated

    return objective


def _left_out(data: WeightedSet, spectrum: SpectralResolvent, projected: np.ndarray) -> _Objective:
    """The sum of squared residuals of samples that are left out."""
    squares, share = spectrum.evecs**2, units(data.weights)

    def objective(ratio: float) -> tuple[float, float]:
        left = ratio / (spectrum.evals + ratio)
        change = left * (1 - left)
        residuals = spectrum.evecs @ (left[:, None] * projected)
        residual_slopes = spectrum.evecs @ (change[:, None] * projected)
        gap, gap_slope = 1 - share + share * (squares @ left), share * (squares @ change)
        slope = (residuals * residual_slopes).sum(1) / gap**2 - (residuals**2).sum(
            1
        ) * gap_slope / gap**3
        return float(((residuals / gap[:, None]) ** 2).sum()), float(2 * slope.sum())

    return objective


def _left_out_variance(data: WeightedSet, resolvent: Resolvent, ratio: float) -> float:
    residuals, variances = leave_one_out(data, resolvent, ratio)
    squares = (residuals**2).mean(1) / (variances + ratio)
    return float(data.weights @ squares) / data.total


def _least(objective: _Objective, ratios: Float[np.ndarray, " m"]) -> float:
    """Returns the ratio of the least value, where the derivative is zero or at an end."""
    import scipy.optimize

    best = int(np.argmin([objective(ratio)[0] for ratio in ratios]))
    around = [ratios[max(best - 1, 0)], ratios[min(best + 1, len(ratios) - 1)]]
    low, high = (math.log(ratio) for ratio in around)

    def slope(log_ratio: float) -> float:
        return objective(math.exp(log_ratio))[1]

    if not slope(low) < 0 < slope(high):
        return float(ratios[best])
    return math.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-13))
