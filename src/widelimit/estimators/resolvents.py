"""Kr^-1 and, for a finite time of training, Kr^-1 (1 - E), where Kr = K + ridge I.

Predictions are made of these alone. With B = Kr^-1 (1 - E), E = exp(-Kr tau), A = K_td B:

    mean = A y,
    posterior  covariance = K_tt - A K_dt,                             arXiv:1711.00165
    training   covariance = k_tt + A k_dd A^T - A k_dt - k_td A^T,     arXiv:1902.06720

with the NNGP kernel k. `widelimit.predict` computes them for arrays that JAX may trace, and so
compiles for each shape. Samples of estimators change their number with each fold of a
cross-validation: here is NumPy.
"""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from widelimit._text import warn
from widelimit.estimators.weighted import WeightedSet
from widelimit.predict.factor import System
from widelimit.predict.solvers.base import Solver


class Resolvent(abc.ABC):
    """What has been factorised; it is pickled with an estimator."""

    @abc.abstractmethod
    def apply(self, b: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Returns Kr^-1 (1 - E) b."""

    @abc.abstractmethod
    def inverse(self) -> Float[np.ndarray, "n n"]:
        """Returns Kr^-1."""

    @abc.abstractmethod
    def log_determinant(self) -> float:
        """Returns log det Kr."""


class SpectralResolvent(Resolvent):
    """By eigenvalues, for all times; zero ones contribute nothing.

    Args:
      evals: eigenvalues of K.
      evecs: its eigenvectors, as columns.
      ridge: what is added to the eigenvalues.
      tau: the time in units of 1 / eigenvalue; None is infinite.
    """

    def __init__(
        self,
        evals: Float[np.ndarray, " n"],
        evecs: Float[np.ndarray, "n n"],
        ridge: float,
        tau: float | None = None,
    ) -> None:
        """Keeps them."""
        self.evals, self.evecs, self.ridge, self.tau = evals, evecs, ridge, tau

    @classmethod
    def of(cls, data: WeightedSet, name: str) -> SpectralResolvent:
        """Returns the resolvent without a ridge, which `regularised` adds.

        Raises:
          ValueError: a kernel with negative eigenvalues beyond rounding.
        """
        factor = data.trainer(name, 0.0, None).spectral().factor
        assert factor is not None
        return cls(np.asarray(factor.state.evals), np.asarray(factor.state.evecs), 0.0)

    def regularised(self, ridge: float, tau: float | None = None) -> SpectralResolvent:
        """Returns the resolvent with another ridge, at a time."""
        if not ridge and not self.evals.all():
            warn(
                "expected a kernel of full rank without noise, got one that is singular to working "
                "precision: the result is the limit of vanishing noise; noise=1e-3 avoids that",
                RuntimeWarning,
            )
        return SpectralResolvent(self.evals, self.evecs, ridge, tau)

    def apply(self, b: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Returns Kr^-1 (1 - E) b."""
        total = self.evals + self.ridge
        progress = 1.0 if self.tau is None else -np.expm1(-total * self.tau)
        return self.evecs @ ((progress * _reciprocal(total))[:, None] * (self.evecs.T @ b))

    def inverse(self) -> Float[np.ndarray, "n n"]:
        """Returns Kr^-1."""
        return (self.evecs * _reciprocal(self.evals + self.ridge)) @ self.evecs.T

    def log_determinant(self) -> float:
        """Returns log det Kr; minus infinity for a singular one."""
        with np.errstate(divide="ignore"):
            return float(np.log(self.evals + self.ridge).sum())


class SolverResolvent(Resolvent):
    """By a solver of `widelimit.predict`, for infinite time."""

    def __init__(self, data: WeightedSet, name: str, ridge: float, solver: Solver) -> None:
        """Factorises the kernel.

        Raises:
          ValueError: a kernel that the solver refuses.
        """
        self._system: System = data.trainer(name, ridge, solver).inverse()
        self._size = len(data.weights)

    def apply(self, b: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Returns Kr^-1 b."""
        assert self._system.factor is not None
        with jax.enable_x64(True):
            return np.asarray(self._system.factor.solve(jnp.asarray(b)), np.float64)

    def inverse(self) -> Float[np.ndarray, "n n"]:
        """Returns Kr^-1."""
        return self.apply(np.eye(self._size))

    def log_determinant(self) -> float:
        """Returns log det Kr.

        Raises:
          NotImplementedError: a solver without determinants.
        """
        assert self._system.factor is not None
        with jax.enable_x64(True):
            return float(self._system.factor.log_determinant())


def _reciprocal(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)
