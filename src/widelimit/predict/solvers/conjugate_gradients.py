"""Linear systems by conjugate gradients, from products alone."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike, Float

from widelimit._pytree import is_concrete
from widelimit._text import shown
from widelimit.predict.solvers.base import Solver, System, Truth
from widelimit.tracing.varying import varying_like, varying_together
from widelimit.typing import Scalar

Product = Callable[[jax.Array], jax.Array]


class Solution(NamedTuple):
    """The result of conjugate gradients.

    Attributes:
      value: the solution, in the shape of the right-hand side.
      residual: the norm of its residual relative to that of the right-hand side, a scalar.
      is_definite: whether v^T A v was positive for all search directions v.
    """

    value: jax.Array
    residual: jax.Array
    is_definite: jax.Array

    def checked(self, tol: float, advice: str) -> jax.Array:
        """Returns the value; without convergence it raises, or is NaN if anything is traced.

        Raises:
          ValueError: if a concrete residual is above the tolerance; the message ends in `advice`.
        """
        if not is_concrete(self.residual):
            return jnp.where(self.residual <= tol, self.value, jnp.nan)
        largest = float(jnp.max(self.residual, initial=0.0))
        if not largest <= tol:
            raise ValueError(
                f"expected conjugate gradients to reach a residual of {tol:.1e}, got "
                f"{largest:.1e}: {advice}"
            )
        return self.value


def conjugate_gradients(
    product: Product, b: jax.Array, tol: float, maxiter: int | None
) -> Solution:
    """Returns the solution u of A u = b, with its derivatives.

    Args:
      product: u -> A u, for a symmetric or Hermitian A.
      b: array of any shape.
      tol: largest norm of the residual relative to that of b.
      maxiter: largest number of products; None for ten times the size of b.
    """
    most = 10 * b.size if maxiter is None else maxiter

    def norm2(v: jax.Array) -> jax.Array:
        return jnp.vdot(v, v, precision=lax.Precision.HIGHEST).real

    def solve(product: Product, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Half of the tolerance: the residual of the recursion differs a little from the true one.
        enough = (tol / 2) ** 2 * norm2(b)

        def goes_on(carry: Any) -> jax.Array:
            return (carry[3] > enough) & (carry[-1] < most)

        def step(carry: Any) -> Any:
            u, r, p, r2, is_definite, count = carry
            q = product(p)
            energy = jnp.vdot(p, q, precision=lax.Precision.HIGHEST).real
            rate = (r2 / energy).astype(b.dtype)
            u, r = u + rate * p, r - rate * q
            left = norm2(r)
            p = r + (left / r2).astype(b.dtype) * p
            return u, r, p, left, is_definite & (energy > 0), count + 1

        start = varying_like((jnp.zeros_like(b), jnp.asarray(True)), b)
        first = start[0], b, b, norm2(b), start[1], 0
        result = lax.while_loop(goes_on, step, first)
        return result[0], result[4]

    u, is_definite = lax.custom_linear_solve(product, b, solve, symmetric=True, has_aux=True)
    error, norm = jnp.linalg.norm(b - product(u)), jnp.linalg.norm(b)
    residual = lax.stop_gradient(error / jnp.where(norm > 0, norm, 1))
    return Solution(u, residual, is_definite)


class _IndefiniteError(ValueError):
    """Raised when conjugate gradients meet a negative eigenvalue."""


@dataclass(frozen=True)
class ConjugateGradients(Solver):
    """An iterative solver of positive definite systems; its state is the matrix [r, r].

    It computes means and covariances of posteriors, and training to infinite time. Each right-hand
    side, an output or a test point, takes about sqrt(c) products with the matrix, where c is its
    largest eigenvalue over the smallest: with few right-hand sides and much noise, fewer operations
    than a Cholesky factor.

    Attributes:
      tol: largest norm of the residual relative to that of the right-hand side.
      maxiter: largest number of products; None for ten times the size r.

    Raises:
      ValueError: if `tol` or `maxiter` is not positive; from an ensemble, if solutions do not
        converge or the kernel is indefinite. Traced results are NaN then.
    """

    tol: float = 1e-8
    maxiter: int | None = None
    traceable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not (isinstance(self.tol, float | np.floating) and 0 < self.tol < 1):
            raise ValueError(f"expected tol between 0 and 1, got {shown(self.tol)}")
        is_count = isinstance(self.maxiter, int | np.integer) and self.maxiter >= 1
        if self.maxiter is not None and not is_count:
            raise ValueError(f"expected maxiter of at least 1, or None, got {shown(self.maxiter)}")

    def factorise(self, system: System) -> jax.Array:
        """Returns the matrix."""
        return system.matrix()

    def solve(self, state: Float[jax.Array, "r r"], b: ArrayLike) -> jax.Array:
        """Returns K^-1 b for b [r, c], column by column.

        Raises:
          ValueError: if concrete columns do not converge, or meet a negative eigenvalue.
        """
        result = _columns(state, jnp.asarray(b), tol=float(self.tol), maxiter=self.maxiter)
        if is_concrete(result) and not bool(result.is_definite.all()):
            raise _IndefiniteError(
                "expected a positive definite kernel for conjugate gradients, got one with a "
                "negative eigenvalue: use a larger noise or jitter"
            )
        good = jnp.where(result.is_definite, result.residual, jnp.nan)
        advice = "use a larger noise, jitter, tol or maxiter, or solver=None"
        return result._replace(residual=good[None]).checked(self.tol, advice)

    def is_trusted(self, state: Float[jax.Array, "r r"], rows: int, floor: Scalar) -> Truth:
        """Returns whether no eigenvalue is negative or below `floor`."""
        try:
            return super().is_trusted(state, rows, floor)
        except _IndefiniteError:
            return False


@functools.partial(jax.jit, static_argnames=("tol", "maxiter"))
def _columns(matrix: jax.Array, b: jax.Array, tol: float, maxiter: int | None) -> Solution:
    """Returns the solutions for the columns of b, each with its residual [c]."""
    matrix, b = varying_together(matrix, b)

    def solve(column: jax.Array) -> Solution:
        return conjugate_gradients(lambda v: matrix @ v, column, tol, maxiter)

    return jax.vmap(solve, in_axes=1, out_axes=Solution(1, 0, 0))(b)  # type: ignore[arg-type]
