"""Linear systems by a Cholesky factor."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import ArrayLike, Float

from widelimit._pytree import is_concrete
from widelimit.predict import in_place
from widelimit.predict.solvers.base import Solver, System, Truth
from widelimit.typing import Scalar


class Cholesky(Solver):
    """A direct solver of positive definite systems; its state is the lower factor [r, r].

    It computes means, covariances and the marginal likelihood of posteriors, and training to
    infinite time. Kernels that are singular by rounding raise ValueError.
    """

    traceable: ClassVar[bool] = True

    def factorise(self, system: System) -> jax.Array | None:
        """Returns the lower triangular factor."""
        if not system.is_on_host():
            return jnp.linalg.cholesky(system.matrix())
        lower = in_place.cholesky(system.host_matrix())
        return None if lower is None else in_place.to_jax(lower)

    def solve(self, state: Float[jax.Array, "r r"], b: ArrayLike) -> jax.Array:
        """Returns K^-1 b for b [r, c]."""
        return _half(state, _half(state, b), transposed=True)

    def quadratic(self, state: Float[jax.Array, "r r"], b: ArrayLike) -> jax.Array:
        """Returns b^T K^-1 b as the Gram matrix of L^-1 b."""
        half = _half(state, b)
        return half.T @ half

    def log_determinant(self, state: Float[jax.Array, "r r"]) -> jax.Array:
        """Returns log det K, a scalar."""
        return 2.0 * jnp.log(jnp.diagonal(state)).sum()

    def is_trusted(self, state: Float[jax.Array, "r r"], rows: int, floor: Scalar) -> Truth:
        """Returns whether the smallest eigenvalue is at least `floor`; pivots are not below it."""
        pivots = state.diagonal()
        return (pivots.min() ** 2 >= floor) & super().is_trusted(state, rows, floor)


def _half(lower: jax.Array, b: ArrayLike, transposed: bool = False) -> jax.Array:
    """Returns L^-1 b, or L^-T b."""
    if is_concrete(lower, b) and jax.default_backend() == "cpu":
        return in_place.solve_lower(lower, b, transposed)
    return solve_triangular(lower, b, lower=True, trans=int(transposed))
