"""Networks after training: outputs from residuals, and posterior covariance from the prior.

Gradient descent on 0.5 mean((f - y)^2) over N targets, in the limit of small steps, moves the
outputs f of linear or infinitely wide networks by df/dtau = -K (f - y), where tau is
learning_rate t / N. A fraction E = exp(-K tau) of a residual remains, and a residual changes the
output at a test point by K_td K^-1 (1 - E) times itself: K^-1 (1 - E) is called the response. Steps
of a finite size do the same with other functions of K. Arrays here are float64 matrices with one
leading axis of times.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from widelimit._pytree import is_concrete
from widelimit._text import shown
from widelimit.predict.checks import check_not_negative
from widelimit.predict.factor import TrainKernel
from widelimit.predict.solvers.base import Factorisation, System
from widelimit.predict.solvers.cholesky import Cholesky
from widelimit.predict.solvers.eigenbasis import Spectral
from widelimit.predict.spectral import DECAY, RESPONSE, Eigenbasis
from widelimit.predict.stepping import LEFT, MOST_STEPS, STEPPED_RESPONSE, Descent, Progress


@runtime_checkable
class RightFactor(Protocol):
    """A matrix [r, r], or anything else to the right of `@`: some are known by products alone."""

    def __rmatmul__(self, left: Any) -> Any:
        """Returns left [m, t, r] times the matrix."""


class Converged(NamedTuple):
    """Infinite time, E = 0; one leading axis of size 1."""

    factor: Factorisation

    def response(self, b: jax.Array) -> jax.Array:
        """Returns K^-1 b [1, r, c] for b [r, c]."""
        return self.factor.solve(b)[None]

    def covariance(self, prior: jax.Array, k_td: jax.Array) -> jax.Array:
        """Returns the posterior prior - K_td K^-1 K_dt [1, t, t]."""
        return _symmetric(prior - self.factor.quadratic(k_td.T))[None]


class Evolving(NamedTuple):
    """Times tau [m], in units that already hold the learning rate and 1 / N, E = exp(-K tau)."""

    factor: Factorisation
    tau: jax.Array

    def response(self, b: jax.Array) -> jax.Array:
        """Returns K^-1 (1 - E) b [m, r, c] for b [r, c]."""
        return self.factor.apply(RESPONSE, self.tau, b[None])

    def covariance(self, prior: jax.Array, k_td: jax.Array) -> jax.Array:
        """Returns the posterior prior - K_td K^-1 (1 - E^2) K_dt [m, t, t]."""
        learnt = k_td @ self.factor.apply(RESPONSE, 2 * self.tau, k_td.T[None])
        return _symmetric(prior[None] - learnt)

    def decay(self, b: jax.Array) -> jax.Array:
        """Returns E b [m, r, c] for b [r, c]."""
        return self.factor.apply(DECAY, self.tau, b[None])

    def train_covariance(self) -> jax.Array:
        """Returns K E^2 [m, r, r], the training covariance when K itself is the prior."""
        return _symmetric(self.factor.state.decayed(2 * self.tau))

    def trained_train_covariance(self, nngp: jax.Array) -> jax.Array:
        """Returns E K E [m, r, r], the training covariance: E of the NTK, K the NNGP kernel."""
        left = self.factor.apply(DECAY, self.tau, nngp[None])
        return _symmetric(self.factor.apply(DECAY, self.tau, left.swapaxes(-1, -2)))


class Stepping(NamedTuple):
    """Steps of gradient descent: p = p_n(Kr) and the response (1 - p) / Kr of `stepping`.

    Attributes:
      spectral: Kr = K + ridge I, where the ridge is that of weight decay.
      progress: numbers of steps [m], and the optimiser.
      ridge: a scalar.
    """

    spectral: Eigenbasis
    progress: Progress
    ridge: jax.Array

    def response(self, b: jax.Array) -> jax.Array:
        """Returns Kr^-1 (1 - p) b [m, r, c] for b [r, c]."""
        return self.spectral.apply(STEPPED_RESPONSE, self.progress, b[None])

    def covariance(self, prior: jax.Array, k_td: jax.Array) -> jax.Array:
        """Returns the covariance [m, t, t] of outputs with the prior K, trained by K itself."""
        return trained_covariance(self, prior, k_td, k_td, self._kernel())

    def decay(self, b: jax.Array) -> jax.Array:
        """Returns the rest of a residual, (1 - K Kr^-1 (1 - p)) b [m, r, c] for b [r, c]."""
        return self._decay(b[None])

    def train_covariance(self) -> jax.Array:
        """Returns the training covariance [m, r, r] when K itself is the prior."""
        return self.trained_train_covariance(self._kernel())

    def trained_train_covariance(self, nngp: jax.Array) -> jax.Array:
        """Returns the training covariance [m, r, r] when the prior is the NNGP kernel."""
        return _symmetric(self._decay(self._decay(nngp[None]).swapaxes(-1, -2)))

    def _decay(self, b: jax.Array) -> jax.Array:
        left = self.spectral.apply(LEFT, self.progress, b)
        return left + self.ridge * self.spectral.apply(STEPPED_RESPONSE, self.progress, b)

    def _kernel(self) -> jax.Array:
        matrix, evals, evecs = self.spectral
        if matrix is None:
            matrix = (evecs * evals[None, :]) @ evecs.T
        return matrix - self.ridge * jnp.eye(len(evals), dtype=evals.dtype)


Dynamics = Converged | Evolving | Stepping


def trained_covariance(
    dynamics: Dynamics,
    prior: jax.Array,
    ntk_td: jax.Array,
    nngp_td: jax.Array,
    nngp_dd: RightFactor,
) -> jax.Array:
    """Returns the covariance [m, t, t] of outputs with the NNGP prior, trained by the NTK.

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
    """Training times as the user passed them, arrays that JAX can trace.

    Attributes:
      steps: t, of any shape; None is infinite time by Cholesky, in the eigenbasis if the kernel is
        singular by rounding, or by the user's solver.
      learning_rate: time per step.
      descent: the optimiser whose steps are counted; None is gradient flow, the limit of small
        steps.
    """

    steps: Any = None
    learning_rate: Any = 1.0
    descent: Descent | None = None

    @classmethod
    def of(cls, t: Any, learning_rate: ArrayLike, descent: Descent | None = None) -> "Times":
        """Returns the times t; for an optimiser they are numbers of steps, and None is infinity.

        Raises:
          ValueError: if a concrete t is negative or NaN, or not a whole number of steps.
        """
        if t is None and descent is None:
            return cls()
        t = np.inf if t is None else t
        check_not_negative("t", t)
        if descent is not None:
            _check_steps(t)
        return cls(t if hasattr(t, "dtype") else np.asarray(t), learning_rate, descent)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of t, which leads the shape of every result."""
        return tuple(np.shape(self.steps)) if self.steps is not None else ()

    def factorise(self, kernel: TrainKernel) -> System:
        """Returns the training kernel, factorised as these times require."""
        return kernel.inverse() if self.steps is None else kernel.spectral()

    def tau(self, size: int) -> jax.Array:
        """Returns learning_rate t / N, flat [m], for N targets."""
        endless = jnp.isinf(self.steps)
        # The derivative of infinity times a learning rate is set to 0.
        tau = self.learning_rate * jnp.where(endless, 0.0, self.steps) / size
        return jnp.where(endless, jnp.inf, tau).reshape(-1)

    def dynamics(self, system: System, size: int) -> Dynamics:
        """Returns the dynamics of N targets at these times; call it in float64."""
        if self.steps is None:
            return Converged(system.factorised(Cholesky()))
        return self.progressing(system, size)

    def progressing(self, system: System, size: int) -> Evolving | Stepping:
        """Returns the dynamics of N targets at times other than None; call it in float64.

        Raises:
          ValueError: if infinitely many steps of a concrete optimiser diverge.
        """
        factor = system.factorised(Spectral())
        if self.descent is None:
            return Evolving(factor, self.tau(size))
        progress = Progress(self.steps.reshape(-1), self.learning_rate / size, self.descent)
        _check_converges(factor.state, progress, size)
        return Stepping(factor.state, progress, system.ridge.absolute)

    def unflatten(self, results: jax.Array) -> jax.Array:
        """Returns results with the flat axis of times [m, ...] in the shape of t (..., ...)."""
        return results.reshape(self.shape + results.shape[1:])


def _check_steps(t: ArrayLike) -> None:
    """Raises ValueError unless concrete numbers of steps are whole and at most 2^53."""
    if not is_concrete(t):
        return
    steps = np.asarray(t, np.float64)
    finite = steps[np.isfinite(steps)]
    if (finite != np.floor(finite)).any():
        raise ValueError(f"expected t in whole steps, got {shown(t)}")
    if (finite > MOST_STEPS).any():
        raise ValueError(f"expected t of at most 2^53 steps, or infinity, got {shown(t)}")


def _check_converges(spectral: Eigenbasis, progress: Progress, size: int) -> None:
    """Raises ValueError if infinitely many concrete steps diverge."""
    if not is_concrete(spectral.evals, progress) or not np.isinf(np.asarray(progress.steps)).any():
        return
    largest, rate = float(spectral.evals[-1]), float(progress.size) * size
    below = float(progress.descent.stable_below()) * size / largest if largest > 0 else np.inf
    if rate >= below:
        raise ValueError(
            f"expected a learning rate below {below:.6g} for infinitely many steps, got "
            f"{rate:.6g}: training diverges"
        )
