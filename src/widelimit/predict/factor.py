"""The regularised train-train kernel, its factorisations, and the checks that they can be trusted.

A factorisation of concrete numbers is checked on the host and raises ValueError when it fails.
Traced numbers cannot raise: there a failed factorisation is NaN.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.scipy.linalg import solve_triangular

from widelimit.predict.checks import (
    as_float64,
    check_finite,
    check_not_negative,
    is_concrete,
    resolution,
)
from widelimit.predict.matrices import to_matrix
from widelimit.predict.spectral import Spectral

# Rounding errors of relative size eps move the eigenvalues of an n x n kernel by about
# sqrt(n) eps times its largest entry. The entries of a kernel that was computed in its own dtype
# are off by several eps, which this factor covers where it decides that an eigenvalue is zero.
ROUNDINGS_PER_ENTRY = 8.0

Remedy = Callable[[float, float], str]


def advise_diag_reg(relative: float, absolute: float) -> str:
    """Words for the ridge that would do, in the parameters of the functions of this package."""
    return (
        f"diag_reg={relative:.0e} (relative to the mean diagonal), or diag_reg={absolute:.0e} with "
        "diag_reg_absolute_scale=True, would do"
    )


class Cholesky(NamedTuple):
    """The lower triangular factor [r, r] of a positive definite float64 matrix."""

    lower: jax.Array

    def solve(self, b: jax.Array) -> jax.Array:
        """K^-1 b for b [r, c]."""
        return solve_triangular(self.lower, self.half_solve(b), lower=True, trans=1)

    def half_solve(self, b: jax.Array) -> jax.Array:
        """L^-1 b for b [r, c], whose Gram matrix is b^T K^-1 b."""
        return solve_triangular(self.lower, b, lower=True)

    def log_determinant(self) -> jax.Array:
        """Log det K, a scalar."""
        return 2.0 * jnp.log(diagonal(self.lower)).sum()


def diagonal(matrix: jax.Array) -> jax.Array:
    """The diagonals [..., r] of square matrices [..., r, r], by products.

    Indexing would not do: its transpose mixes float64 and float32 outside the context.
    """
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    return (matrix * jnp.broadcast_to(eye, matrix.shape)).sum(-1)


@contextlib.contextmanager
def float64(*inputs: Any) -> Iterator[None]:
    """A context of float64; concrete inputs stay concrete in it, even inside the user's jit."""
    with contextlib.ExitStack() as stack:
        if is_concrete(*inputs):
            stack.enter_context(jax.ensure_compile_time_eval())
        stack.enter_context(jax.enable_x64(True))
        yield


class Ridge(NamedTuple):
    """What is added to the diagonal: relative times the mean diagonal, plus absolute."""

    relative: Any = 0.0
    absolute: Any = 0.0

    @classmethod
    def of(cls, diag_reg: Any, diag_reg_absolute_scale: bool) -> "Ridge":
        """The ridge of the parameters of this package's functions.

        Raises:
          ValueError: if diag_reg is negative.
        """
        check_not_negative("diag_reg", diag_reg)
        return cls(0.0, diag_reg) if diag_reg_absolute_scale else cls(diag_reg, 0.0)


class RidgeKernel:
    """The matrix K + ridge I over the training set in float64, factorised when first asked.

    Attributes:
      kernel: K, unregularised, float64 [r, r], symmetric.
      matrix: K + ridge I.
    """

    kernel: jax.Array
    matrix: jax.Array

    def __init__(
        self, name: str, kernel: Any, ridge: Ridge, remedy: Remedy = advise_diag_reg
    ) -> None:
        """Checks the kernel and adds the ridge.

        Args:
          name: what errors call the kernel.
          kernel: zipped train-train kernel.
          ridge: what to add to the diagonal.
          remedy: words of an error, from a relative and an absolute ridge that would do.

        Raises:
          ValueError: if a concrete kernel is not finite or not symmetric.
        """
        check_finite(name, kernel)
        self._name, self._remedy, self._eps = name, remedy, resolution(kernel)
        with float64(kernel):
            full = to_matrix(name, as_float64(kernel))
            self.kernel = (full + full.T) / 2
        _check_symmetric(name, full, self._eps)
        with float64(self.kernel, ridge):
            added = ridge.relative * diagonal(self.kernel).mean() + as_float64(ridge.absolute)
            eye = jnp.eye(self.kernel.shape[0], dtype=jnp.float64)
            self.matrix = self.kernel + added * eye
        self._ridge = added
        self._cholesky: Cholesky | None = None
        self._spectral: Spectral | None = None

    def cholesky(self) -> Cholesky:
        """The Cholesky factor of the matrix.

        Traced and failed, it is NaN.

        Raises:
          ValueError: if the matrix is concrete and singular or indefinite to working precision:
            the factorisation fails, or its smallest pivot is below sqrt(n) eps times the largest
            diagonal entry, where eps belongs to the kernel's own dtype.
        """
        if self._cholesky is not None:
            return self._cholesky
        with float64(self.matrix):
            lower = jnp.linalg.cholesky(self.matrix)
            smallest = diagonal(lower).min() ** 2
            # A NaN compares false.
            trusted = smallest >= self._noise_floor()
            factor = Cholesky(jnp.where(trusted, lower, jnp.nan))
        if is_concrete(factor):
            if not bool(trusted):
                self._refuse("singular or indefinite to working precision")
            self._cholesky = factor
        return factor

    def spectral(self) -> Spectral:
        """The eigendecomposition of the matrix, with eigenvalues lost in rounding set to zero.

        Traced and indefinite, it is NaN.

        Raises:
          ValueError: if the matrix is concrete and has a negative eigenvalue beyond rounding.
        """
        if self._spectral is not None:
            return self._spectral
        with float64(self.matrix):
            evals, evecs = jnp.linalg.eigh(jax.lax.stop_gradient(self.matrix))
            solver_error = evals.shape[0] * np.finfo(np.float64).eps * jnp.abs(evals).max()
            lost = jax.lax.stop_gradient(ROUNDINGS_PER_ENTRY * self._noise_floor() + solver_error)
            trusted = (evals >= -lost).all()
            evals = jnp.where(jnp.abs(evals) <= lost, 0.0, evals)
            factor = Spectral(self.matrix, jnp.where(trusted, evals, jnp.nan), evecs)
        if is_concrete(factor):
            if not bool(trusted):
                self._refuse("indefinite")
            self._spectral = factor
        return factor

    def _noise_floor(self) -> jax.Array:
        return np.sqrt(self.matrix.shape[0]) * self._eps * diagonal(self.matrix).max()

    def _refuse(self, what: str) -> None:
        matrix, ridge = np.asarray(self.matrix), float(self._ridge)
        smallest = float(scipy.linalg.eigvalsh(matrix, subset_by_index=[0, 0])[0])
        with jax.enable_x64(True):
            floor = float(self._noise_floor())
        absolute = ridge + 2.0 * max(0.0, -smallest) + 100.0 * floor
        relative = absolute / max(float(np.trace(matrix)) / len(matrix) - ridge, floor)
        added = f" after adding {ridge:.3g} to its diagonal" if ridge else ""
        raise ValueError(
            f"expected a positive definite {self._name}, got one that is {what}{added}: its "
            f"smallest eigenvalue is {smallest:.6g}, its largest diagonal entry "
            f"{matrix.diagonal().max():.6g}; "
            f"{self._remedy(_round_up(relative), _round_up(absolute))}"
        )


def _round_up(x: float) -> float:
    """The next number with one significant digit; a diagonal of zeros asks for 1."""
    if not x > 0:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(x))
    return float(np.ceil(x / unit) * unit)


def _check_symmetric(name: str, matrix: jax.Array, eps: float) -> None:
    if not is_concrete(matrix):
        return
    values = np.asarray(matrix)
    difference = float(np.abs(values - values.T).max(initial=0.0))
    largest = float(np.abs(values).max(initial=0.0))
    if difference > np.sqrt(eps) * largest:
        raise ValueError(
            f"expected {name} to be symmetric, got entries that differ from their mirror image by "
            f"up to {difference:.3g}, where the largest entry is {largest:.3g}"
        )
