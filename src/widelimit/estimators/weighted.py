"""The training set of an estimator: kernels and targets, scaled by the roots of sample weights.

A sample of weight w counts as w samples with equal inputs and targets would. With
S = diag(sqrt(w)) the posterior under noise of variance noise^2 / w is that of the kernel S K S, of
targets S y and of kernels K_td S to test points, under noise of one variance: from
S (K + noise^2 W^-1) S = S K S + noise^2 I. Gradient flow of sum w (f - y)^2 moves S f by S T S in
the same way. A sample of weight zero drops out of all of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from widelimit.predict.factor import Ridge, TrainKernel


class WeightedSet(NamedTuple):
    """Samples, targets and weights.

    Attributes:
      weights: weights w of the samples.
      driving: the kernel S K S that is inverted: the NNGP for a posterior, the NTK for training.
      prior: S K S of the NNGP, if that is another kernel.
      targets: S y.
    """

    weights: Float[np.ndarray, " n"]
    driving: Float[np.ndarray, "n n"]
    prior: Float[np.ndarray, "n n"] | None
    targets: Float[np.ndarray, "n outputs"]

    @property
    def roots(self) -> Float[np.ndarray, " n"]:
        """The square roots of the weights."""
        return np.sqrt(self.weights)

    @property
    def total(self) -> float:
        """The number of samples, each counted by its weight."""
        return float(self.weights.sum())

    @property
    def outputs(self) -> int:
        """The number of outputs."""
        return self.targets.shape[1]

    def typical_variance(self) -> float:
        """The mean of the kernel at the samples."""
        return float(self.driving.trace()) / self.total

    def trainer(self, name: str, ridge: float, solver: object) -> TrainKernel:
        """Returns the kernel plus a ridge, to be factorised."""
        return TrainKernel(name, self.driving, Ridge(0.0, ridge), _advise, solver)  # type: ignore[arg-type]


def weigh(
    weights: Float[np.ndarray, " n"],
    kernels: dict[str, np.ndarray],
    targets: Float[np.ndarray, "n outputs"],
) -> WeightedSet:
    """Returns the training set, scaled by the roots of the weights."""
    roots = np.sqrt(weights)
    scaled = {name: roots[:, None] * kernel * roots for name, kernel in kernels.items()}
    driving = scaled.get("ntk", scaled["nngp"])
    prior = scaled["nngp"] if "ntk" in scaled else None
    return WeightedSet(weights, driving, prior, roots[:, None] * targets)


def _advise(relative: float, absolute: float) -> str:
    del relative
    return f"noise={np.sqrt(absolute):.1e} makes it positive definite, in units of scale"
