"""Linear systems by eigenvalues and eigenvectors."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from widelimit._pytree import is_concrete
from widelimit.predict import in_place
from widelimit.predict.solvers.base import Solver, System, Truth
from widelimit.predict.spectral import AtTimes, Eigenbasis
from widelimit.typing import Scalar

# The entries of a kernel that was computed in its own dtype are off by several eps, so eigenvalues
# below ZERO_BELOW floors count as zero, or below twice the most negative one, which measures the
# error. Float32 kernels of ten layers of Erf on 200 points of a line come out at -50 floors; beyond
# INDEFINITE_BELOW it cannot be rounding.
ZERO_BELOW = 8.0
INDEFINITE_BELOW = 128.0


class Spectral(Solver):
    """A direct solver in the eigenbasis, also of singular systems; its state is an `Eigenbasis`.

    Eigenvalues lost in rounding are zero and contribute nothing, which is the limit of a vanishing
    ridge. It computes means and covariances of posteriors, and training to any time, but not the
    marginal likelihood. It takes about ten times as long as a Cholesky factor.
    """

    traceable: ClassVar[bool] = True
    failure: ClassVar[str] = "indefinite"

    def factorise(self, system: System) -> Eigenbasis | None:
        """Returns the eigendecomposition, with eigenvalues lost in rounding set to zero."""
        if system.is_on_host():
            evals, evecs = in_place.eigh(system.host_matrix())
            alive = live(evals, system.noise_floor(), np)
            constant = Eigenbasis(None, in_place.to_jax(alive), in_place.to_jax(evecs))
            return None if np.isnan(alive).any() else constant
        matrix = system.matrix()
        constants = jax.lax.stop_gradient((matrix, system.noise_floor()))
        lowest_first, eigenvectors = jnp.linalg.eigh(constants[0])
        alive = live(lowest_first, constants[1], jnp)
        failed = is_concrete(alive) and bool(jnp.isnan(alive).any())
        return None if failed else Eigenbasis(matrix, alive, eigenvectors)

    def solve(self, state: Eigenbasis, b: ArrayLike) -> jax.Array:
        """Returns the limit of (K + d I)^-1 b for d to 0, for b [r, c]."""
        return state.response(jnp.full((1,), jnp.inf), jnp.asarray(b)[None])[0]

    def apply(
        self, state: Eigenbasis, function: AtTimes, b: Float[jax.Array, "times r c"]
    ) -> jax.Array:
        """Returns f(K) b [m, r, c] for b [1 or m, r, c]."""
        return state.apply(function.function, function.tau, b)

    def is_trusted(self, state: Eigenbasis, rows: int, floor: Scalar) -> Truth:
        """Returns True: eigenvalues lost in rounding are zero already."""
        del state, rows, floor
        return True


def live(evals: Any, floor: Any, xp: Any) -> Any:
    """Returns eigenvalues, by NumPy or jax.numpy, with those lost in rounding set to zero.

    All are NaN if the lowest cannot be negative by rounding.
    """
    solver_error = len(evals) * np.finfo(np.float64).eps * xp.abs(evals).max()
    lowest = evals.min()
    lost = xp.maximum(ZERO_BELOW * floor + solver_error, -2.0 * lowest)
    alive = xp.where(xp.abs(evals) <= lost, 0.0, evals)
    trusted = lowest >= -(INDEFINITE_BELOW * floor + solver_error)
    return xp.where(trusted, alive, xp.nan)
