"""A network, its data and its hyper-parameters, put together into what predicts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from widelimit.estimators.kernel_matrices import kernel_diagonal, kernel_matrices
from widelimit.estimators.leave_one_out import LeftOut, leave_one_out
from widelimit.estimators.resolvents import Resolvent, SolverResolvent, SpectralResolvent
from widelimit.estimators.tuning import Amplitudes, log_evidence, tuned_amplitudes
from widelimit.estimators.weighted import weigh
from widelimit.predict.solvers.base import Solver
from widelimit.typing import Bytes, NetworkLike

# Number of test samples that are predicted at once, for the sake of memory.
_BLOCK = 2048


class LearningSettings(NamedTuple):
    """How an ensemble learns.

    Attributes:
      names: the kernels it is made of: "nngp" for a posterior, both for training.
      fallback: ratio of noise and scale where no criterion says better.
      criterion: "evidence", "leave_one_out", or None.
      steps: learning rate times steps of gradient descent; None is infinite.
      solver: what solves the training kernel, or None.
      memory: what computing kernels may take.
    """

    names: tuple[str, ...]
    fallback: Amplitudes
    criterion: str | None
    steps: float | None
    solver: Solver | None
    memory: Bytes


class Ensemble:
    """An ensemble that has learnt from data, in units of standardised targets.

    Args:
      network: a network or its kernel function.
      x: inputs.
      targets: targets with mean zero.
      weights: weights of the samples.
      settings: how it learns.
    """

    def __init__(
        self,
        network: NetworkLike,
        x: Float[np.ndarray, "n *shape"],
        targets: Float[np.ndarray, "n outputs"],
        weights: Float[np.ndarray, " n"],
        settings: LearningSettings,
    ) -> None:
        """Computes the kernels, chooses noise and scale, and factorises."""
        self.network, self.settings, self.x = network, settings, x
        self.data = weigh(weights, self._kernels(x, None, settings.names), targets)
        self.amplitudes = settings.fallback
        self.resolvent = self._solve()
        self._dual = self.resolvent.apply(self.data.targets)

    @property
    def noise(self) -> float:
        """The standard deviation of the noise of a sample of weight 1."""
        return float(np.sqrt(self.amplitudes.ratio) * self.amplitudes.scale)

    def _solve(self) -> Resolvent:
        settings, name = self.settings, "kernel of X"
        if settings.solver is not None:
            return SolverResolvent(self.data, name, self.amplitudes.ratio, settings.solver)
        spectrum = SpectralResolvent.of(self.data, name)
        if settings.criterion is not None:
            self.amplitudes = (
                tuned_amplitudes(self.data, spectrum, settings.criterion) or settings.fallback
            )
        tau = None
        if settings.steps is not None:
            tau = self.amplitudes.scale**2 * settings.steps / (self.data.total * self.data.outputs)
        return spectrum.regularised(self.amplitudes.ratio, tau)

    def mean(self, x: Float[np.ndarray, "t *shape"]) -> Float[np.ndarray, "t outputs"]:
        """Returns the mean of the outputs."""
        name = self.settings.names[-1]
        return np.concatenate([self._towards(b, (name,))[name] @ self._dual for b in _blocks(x)])

    def variance(self, x: Float[np.ndarray, "t *shape"]) -> Float[np.ndarray, " t"]:
        """Returns the variance of an output, without noise."""
        return np.concatenate([self._variance(block) for block in _blocks(x)])

    def _variance(self, x: np.ndarray) -> np.ndarray:
        prior = kernel_diagonal(self.network, x, "nngp", self.settings.memory)
        towards = self._towards(x, self.settings.names)
        smoother = self.resolvent.apply(towards[self.settings.names[-1]].T)
        gain = np.einsum("tn,nt->t", towards["nngp"], smoother)
        if self.data.prior is None:
            return self._scaled(np.maximum(prior - gain, 0.0))
        drift = np.einsum("nt,nt->t", smoother, self.data.prior @ smoother)
        return self._scaled(np.maximum(prior + drift - 2 * gain, 0.0))

    def covariance(self, x: Float[np.ndarray, "t *shape"]) -> Float[np.ndarray, "t t"]:
        """Returns the covariance of an output between samples, without noise."""
        prior = self._kernels(x, None, ("nngp",))["nngp"]
        towards = self._towards(x, self.settings.names)
        smoother = self.resolvent.apply(towards[self.settings.names[-1]].T)
        gain = towards["nngp"] @ smoother
        if self.data.prior is None:
            covariance = prior - gain
        else:
            covariance = prior + smoother.T @ self.data.prior @ smoother - gain - gain.T
        return self._scaled((covariance + covariance.T) / 2)

    def left_out(self) -> LeftOut:
        """Returns residuals and variances of each sample without it.

        Raises:
          ValueError: an ensemble at a finite time, which has no closed form.
        """
        if self.settings.steps is not None:
            raise ValueError(
                "expected training_time=None for leave-one-out residuals, which have a closed form "
                "at infinite time alone, got a finite one: use cross_val_predict"
            )
        left = leave_one_out(self.data, self.resolvent, self.amplitudes.ratio)
        return LeftOut(left.residuals, self._scaled(left.variances))

    def log_evidence(self) -> float:
        """Returns the log marginal likelihood of the targets."""
        return log_evidence(self.data, self.resolvent, self.amplitudes)

    def loss(self) -> float:
        """Returns what a search over networks makes small: minus the criterion, as a density."""
        if self.settings.criterion == "evidence":
            return -self.log_evidence()
        residuals, variances = self.left_out()
        total = variances + self.noise**2
        terms = np.log(total) + (residuals**2).mean(1) / total
        return float(self.data.weights @ terms) / 2

    def _kernels(
        self, x1: np.ndarray, x2: np.ndarray | None, names: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        return kernel_matrices(self.network, x1, x2, names, self.settings.memory)

    def _towards(self, x: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Returns kernels K_td S to the training set."""
        kernels = self._kernels(x, self.x, names)
        return {name: kernel * self.data.roots for name, kernel in kernels.items()}

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return self.amplitudes.scale**2 * values


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    return [x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK)]
