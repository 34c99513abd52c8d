"""What is predicted of each training sample without it, in closed form.

With H = S K S Kr^-1, the smoother of the weighted targets, and m = min(1, 1 / w), the share of a
sample that is one unit of weight, the sample without which its own target is predicted leaves

    residual = (y - fit) / (1 - m H_ii),     1 - H = ridge Kr^-1

(Golub, Heath & Wahba 1979; Rasmussen & Williams 2006, 5.4.2, for posteriors). So a sample of weight
3 counts as three equal ones, of which one is left out; one that weighs less than 1 is left out
whole. The variance of the function at the sample is P / (1 - m H_ii) for a posterior, where
P = ridge H_ii / w was the variance with the sample, and for trained networks, whose initial outputs
have the covariance k, that of the residual of k: [(1 - H) k (1 - H)]_ii / (w (1 - m H_ii)^2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from widelimit.estimators.resolvents import Resolvent
from widelimit.estimators.weighted import WeightedSet


class LeftOut(NamedTuple):
    """Predictions of each sample without it, in units of the kernel; zero where weights are.

    Attributes:
      residuals: targets minus means.
      variances: variances of the function, without noise.
    """

    residuals: Float[np.ndarray, "n outputs"]
    variances: Float[np.ndarray, " n"]


def leave_one_out(data: WeightedSet, resolvent: Resolvent, ridge: float) -> LeftOut:
    """Returns residuals and variances, for infinite time.

    Args:
      data: the training set.
      resolvent: of its kernel with the ridge.
      ridge: the variance of noise in units of the kernel.
    """
    inverse, share = resolvent.inverse(), units(data.weights)
    # (1 - m H_ii) / ridge; without noise, equal samples that stay leave no residual.
    remainder = (1 - share) / ridge if ridge else np.where(share < 1, np.inf, 0.0)
    gap = remainder + share * inverse.diagonal()
    residuals = _over(inverse @ data.targets, (data.roots * gap)[:, None])
    if data.prior is None:
        variances = _over(1 - ridge * inverse.diagonal(), data.weights * gap)
    else:
        spread = np.einsum("ij,ij->i", inverse @ data.prior, inverse)
        variances = _over(spread, data.weights * gap**2)
    return LeftOut(residuals, np.maximum(variances, 0.0))


def units(weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the share of each sample that is left out."""
    return np.minimum(1.0, _over(np.ones_like(weights), weights))


def _over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns a / b, and zero where b is."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)
