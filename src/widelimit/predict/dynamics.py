"""Networks after training: how residuals become outputs, and prior covariance a posterior one.

Gradient descent on 0.5 mean((f - y)^2) over N targets, in the limit of small steps, moves the
outputs f of linear or infinitely wide networks by df/dtau = -K (f - y), where tau is
learning_rate t / N. A fraction E = exp(-K tau) of a residual is left, and what has been learnt
reaches a test point through K_td K^-1 (1 - E): K^-1 (1 - E) is called the response. Arrays here
are float64 matrices with one leading axis of times.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.predict.checks import check_not_negative
from widelimit.predict.factor import Cholesky, System, TrainKernel
from widelimit.predict.spectral import Spectral


class Converged(NamedTuple):
    """Infinite time, E = 0, by a Cholesky factor; one leading axis of size 1."""

    cholesky: Cholesky

    def response(self, b: jax.Array) -> jax.Array:
        """K^-1 b [1, r, c] for b [r, c]."""
        return self.cholesky.solve(b)[None]

    def covariance(self, prior: jax.Array, k_td: jax.Array) -> jax.Array:
        """The posterior prior - K_td K^-1 K_dt [1, t, t]; what is subtracted is a Gram matrix."""
        half = self.cholesky.half_solve(k_td.T)
        return _symmetric(prior - half.T @ half)[None]


class Evolving(NamedTuple):
    """Times tau [m], in units that already hold the learning rate and 1 / N, E = exp(-K tau)."""

    spectral: Spectral
    tau: jax.Array

    def response(self, b: jax.Array) -> jax.Array:
        """K^-1 (1 - E) b [m, r, c] for b [r, c]."""
        return self.spectral.response(self.tau, b[None])

    def covariance(self, prior: jax.Array, k_td: jax.Array) -> jax.Array:
        """The posterior prior - K_td K^-1 (1 - E^2) K_dt [m, t, t]."""
        learnt = k_td @ self.spectral.response(2 * self.tau, k_td.T[None])
        return _symmetric(prior[None] - learnt)

    def decay(self, b: jax.Array) -> jax.Array:
        """E b [m, r, c] for b [r, c]."""
        return self.spectral.decay(self.tau, b[None])

    def train_covariance(self) -> jax.Array:
        """K E^2 [m, r, r], the covariance on the training set when K itself is the prior."""
        return _symmetric(self.spectral.decayed(2 * self.tau))

    def trained_train_covariance(self, nngp: jax.Array) -> jax.Array:
        """E K E [m, r, r] on the training set, where E is of the NTK and K is the NNGP kernel."""
        left = self.spectral.decay(self.tau, nngp[None])
        return _symmetric(self.spectral.decay(self.tau, left.swapaxes(-1, -2)))


Dynamics = Converged | Evolving


def trained_covariance(
    dynamics: Dynamics, prior: jax.Array, ntk_td: jax.Array, nngp_td: jax.Array, nngp_dd: jax.Array
) -> jax.Array:
    """The covariance of outputs [m, t, t] that start from the NNGP prior and move by the NTK.

    prior + A K_dd A^T - A K_dt - K_td A^T with A = T_td T^-1 (1 - E); arXiv:1902.06720.
    """
    response = dynamics.response(ntk_td.T)
    influence = response.swapaxes(-1, -2)
    cross = influence @ nngp_td.T
    moved = influence @ nngp_dd @ response
    return _symmetric(prior[None] + moved - cross - cross.swapaxes(-1, -2))


def _symmetric(matrix: jax.Array) -> jax.Array:
    return (matrix + matrix.swapaxes(-1, -2)) / 2


class Times(NamedTuple):
    """Training times as they were given, arrays that JAX can trace.

    Attributes:
      steps: t, of any shape; None is infinite time by Cholesky.
      learning_rate: time that passes in a step.
    """

    steps: Any = None
    learning_rate: Any = 1.0

    @classmethod
    def of(cls, t: Any, learning_rate: Any) -> "Times":
        """The times t.

        Raises:
          ValueError: if a concrete t is negative or NaN.
        """
        if t is None:
            return cls()
        check_not_negative("t", t)
        return cls(t if hasattr(t, "dtype") else np.asarray(t), learning_rate)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of t, which leads the shape of every result."""
        return tuple(np.shape(self.steps)) if self.steps is not None else ()

    def factorise(self, kernel: TrainKernel) -> System:
        """The training kernel, in the factorisation that these times ask for."""
        return kernel.cholesky() if self.steps is None else kernel.spectral()

    def tau(self, size: int) -> jax.Array:
        """learning_rate t / N, flat [m], for N targets."""
        endless = jnp.isinf(self.steps)
        # Infinity times a learning rate has no derivative worth having: it is 0.
        tau = self.learning_rate * jnp.where(endless, 0.0, self.steps) / size
        return jnp.where(endless, jnp.inf, tau).reshape(-1)

    def dynamics(self, system: System, size: int) -> Dynamics:
        """What the training kernel does in these times to N targets; call it in float64."""
        if self.steps is None:
            return Converged(system.cholesky())
        return Evolving(system.spectral(), self.tau(size))

    def unflatten(self, results: jax.Array) -> jax.Array:
        """Results with the flat axis of times [m, ...] in the shape of t (..., ...)."""
        return results.reshape(self.shape + results.shape[1:])
