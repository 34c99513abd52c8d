"""The regularised train-train kernel, its factorisations, and the checks that they can be trusted.

A factorisation of concrete numbers is checked on the host. A kernel that is singular by rounding
alone is solved in its eigenbasis, with a warning; an indefinite one raises ValueError. Traced
numbers can do neither: there a failed factorisation is NaN.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from widelimit._pytree import is_concrete, own
from widelimit._text import warn
from widelimit.predict import in_place
from widelimit.predict.checks import as_flag, check_finite, check_real, check_scalar
from widelimit.predict.matrices import to_matrix
from widelimit.predict.precision import in_float64, resolution
from widelimit.predict.spectral import Spectral

# Rounding errors of relative size eps move the eigenvalues of an n x n kernel by about
# sqrt(n) eps times its largest entry, the noise floor. The entries of a kernel that was computed in
# its own dtype are off by several eps, so eigenvalues below ZERO_BELOW floors count as zero, or
# below twice the most negative one, which measures the error. Float32 kernels of ten layers of Erf
# on 200 points of a line come out at -50 floors; beyond INDEFINITE_BELOW it cannot be rounding.
# A Cholesky factor is used if the smallest eigenvalue is at least one floor. Pivots alone do not
# tell: those of a matrix with one eigenvalue of rounding errors may all be large.
ZERO_BELOW = 8.0
INDEFINITE_BELOW = 128.0

# Kernels are checked so many rows at a time.
_ROWS = 512
# From a start that is drawn at random, these find an eigenvalue far below all others.
_INVERSE_ITERATIONS = 3

Remedy = Callable[[float, float], str]


class Ridge(NamedTuple):
    """What is added to the diagonal: relative times the mean diagonal, plus absolute."""

    relative: Any = 0.0
    absolute: Any = 0.0

    @classmethod
    def of(cls, diag_reg: Any, diag_reg_absolute_scale: Any, advice: str = "") -> "Ridge":
        """The ridge of the parameters of this package's functions.

        Raises:
          TypeError: if diag_reg is no number, or diag_reg_absolute_scale neither True nor False.
          ValueError: if diag_reg is negative, or an array: then with the advice.
        """
        check_scalar("diag_reg", diag_reg, advice)
        diag_reg = own(diag_reg)
        absolute = as_flag("diag_reg_absolute_scale", diag_reg_absolute_scale)
        return cls(0.0, diag_reg) if absolute else cls(diag_reg, 0.0)


class Cholesky(NamedTuple):
    """The lower triangular factor [r, r] of a positive definite float64 matrix."""

    lower: jax.Array

    def solve(self, b: jax.Array | np.ndarray) -> jax.Array:
        """K^-1 b for b [r, c]."""
        return self._solve(self.half_solve(b), transposed=True)

    def half_solve(self, b: jax.Array | np.ndarray) -> jax.Array:
        """L^-1 b for b [r, c], whose Gram matrix is b^T K^-1 b."""
        return self._solve(b, transposed=False)

    def _solve(self, b: jax.Array | np.ndarray, transposed: bool) -> jax.Array:
        if is_concrete(self.lower, b) and jax.default_backend() == "cpu":
            return in_place.solve_lower(self.lower, b, transposed)
        return solve_triangular(self.lower, b, lower=True, trans=int(transposed))

    def log_determinant(self) -> jax.Array:
        """Log det K, a scalar."""
        return 2.0 * jnp.log(jnp.diagonal(self.lower)).sum()

    def is_trusted(self, floor: Any, xp: Any) -> Any:
        """Whether the smallest eigenvalue is at least `floor`, by NumPy or jax.numpy.

        It is found from above by inverse iteration, and is no larger than the smallest pivot.
        """
        rows = self.lower.shape[0]
        vector = xp.asarray(np.random.default_rng(0).normal(size=(rows, 1)))
        for _ in range(_INVERSE_ITERATIONS):
            vector = xp.asarray(self.solve(vector / xp.linalg.norm(vector)))
        pivots = xp.diagonal(xp.asarray(self.lower))
        # A NaN compares false.
        return (pivots.min() ** 2 >= floor) & (floor * xp.linalg.norm(vector) <= 1.0)


class System(NamedTuple):
    """The matrix K + ridge I as arrays that JAX can trace, to be used in float64.

    Attributes:
      kernel: zipped train-train kernel K; None where there is a factor of concrete numbers.
      ridge: what is added to its diagonal.
      eps: relative rounding error of the kernel's entries.
      factor: its factorisation if there is one already.
    """

    kernel: Any
    ridge: Ridge
    eps: Any
    factor: Cholesky | Spectral | None = None

    def matrix(self) -> jax.Array:
        """K + ridge I [r, r]."""
        matrix = to_matrix("kernel", self.kernel)
        matrix = (matrix + matrix.T) / 2
        return matrix + self.added() * jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def added(self) -> jax.Array:
        """The ridge, a scalar."""
        mean_diagonal = jnp.diagonal(to_matrix("kernel", self.kernel)).mean()
        return self.ridge.relative * mean_diagonal + self.ridge.absolute

    def cholesky(self) -> Cholesky:
        """The Cholesky factor of the matrix; NaN if it is singular to working precision."""
        if isinstance(self.factor, Cholesky):
            return self.factor
        matrix = self.matrix()
        lower = jnp.linalg.cholesky(matrix)
        constants = jax.lax.stop_gradient((lower, self._noise_floor(matrix)))
        trusted = Cholesky(constants[0]).is_trusted(constants[1], jnp)
        return Cholesky(jnp.where(trusted, lower, jnp.nan))

    def spectral(self) -> Spectral:
        """The eigendecomposition, with those lost in rounding set to zero; NaN if indefinite."""
        if isinstance(self.factor, Spectral):
            return self.factor
        matrix = self.matrix()
        evals, evecs = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
        floor = jax.lax.stop_gradient(self._noise_floor(matrix))
        return Spectral(matrix, _live(evals, floor, jnp), evecs)

    def _noise_floor(self, matrix: jax.Array) -> jax.Array:
        return np.sqrt(len(matrix)) * self.eps * jnp.diagonal(matrix).max()


def _live(evals: Any, floor: Any, xp: Any) -> Any:
    """Eigenvalues, by NumPy or jax.numpy, of which those lost in rounding are zero.

    All are NaN if the lowest cannot be negative by rounding.
    """
    solver_error = len(evals) * np.finfo(np.float64).eps * xp.abs(evals).max()
    lowest = evals.min()
    lost = xp.maximum(ZERO_BELOW * floor + solver_error, -2.0 * lowest)
    live = xp.where(xp.abs(evals) <= lost, 0.0, evals)
    trusted = lowest >= -(INDEFINITE_BELOW * floor + solver_error)
    return xp.where(trusted, live, xp.nan)


@in_float64
def _matrix_and_ridge(system: System) -> tuple[jax.Array, jax.Array]:
    return system.matrix(), system.added()


@in_float64
def _cholesky(system: System) -> Cholesky:
    return system.cholesky()


@in_float64
def _spectral(system: System) -> Spectral:
    return system.spectral()


def _host_cholesky(system: System) -> Cholesky | None:
    """What `System.cholesky` returns, on the host; None for NaN."""
    matrix = in_place.regularised(system.kernel, *system.ridge)
    floor = np.sqrt(len(matrix)) * system.eps * matrix.diagonal().max()
    lower = in_place.cholesky(matrix)
    if lower is None:
        return None
    factor = Cholesky(in_place.to_jax(lower))
    return factor if factor.is_trusted(floor, np) else None


def _host_spectral(system: System) -> Spectral | None:
    """What `System.spectral` returns but for the matrix, on the host; None for NaN."""
    matrix = in_place.regularised(system.kernel, *system.ridge)
    floor = np.sqrt(len(matrix)) * system.eps * matrix.diagonal().max()
    evals, evecs = in_place.eigh(matrix)
    live = _live(evals, floor, np)
    if np.isnan(live).any():
        return None
    return Spectral(None, in_place.to_jax(live), in_place.to_jax(evecs))


class TrainKernel:
    """A regularised train-train kernel, which owns its factorisations.

    Concrete, it is factorised when that is first asked for, even inside the user's `jax.jit`, and
    checked. Traced, it is factorised wherever it is used: a tracer must not outlive its trace.
    """

    def __init__(self, name: str, kernel: Any, ridge: Ridge, remedy: Remedy) -> None:
        """Checks the kernel.

        Args:
          name: what errors call the kernel.
          kernel: zipped train-train kernel.
          ridge: what to add to the diagonal.
          remedy: words of an error, from a relative and an absolute ridge that would do.

        Raises:
          TypeError: if the kernel is complex.
          ValueError: if a concrete kernel is not finite or not symmetric.
        """
        kernel = own(kernel)
        check_real(name, kernel)
        check_finite(name, kernel)
        self._name, self._remedy = name, remedy
        self._bare = System(kernel, ridge, resolution(kernel))
        self._is_concrete = is_concrete(self._bare)
        self._factorised: dict[Callable[[System], Any], System | None] = {}
        self._warned = False
        if is_concrete(kernel):
            _check_symmetric(name, np.asarray(kernel), self._bare.eps)

    def plain(self) -> System:
        """The system, not factorised."""
        return self._bare

    def cholesky(self) -> System:
        """The system, with its Cholesky factor if it is concrete.

        Raises:
          ValueError: if the matrix is concrete and singular or indefinite to working precision:
            the factorisation fails, or its smallest eigenvalue is below sqrt(n) eps times the
            largest diagonal entry, where eps belongs to the kernel's own dtype.
        """
        system = self._factor(_cholesky, _host_cholesky)
        if system is None:
            raise ValueError(self._failure("singular or indefinite to working precision"))
        return system

    def spectral(self) -> System:
        """The system, with its eigendecomposition if it is concrete.

        Raises:
          ValueError: if the matrix is concrete and has a negative eigenvalue beyond rounding.
        """
        system = self._factor(_spectral, _host_spectral)
        if system is None:
            raise ValueError(self._failure("indefinite"))
        return system

    def inverse(self) -> System:
        """The system, with what solves it if it is concrete: the limit of a vanishing ridge.

        That is its Cholesky factor. If there is none to be trusted it is its eigendecomposition,
        in which eigenvalues lost in rounding are zero and contribute nothing: a RuntimeWarning says
        so, once.

        Raises:
          ValueError: if the matrix is concrete and has a negative eigenvalue beyond rounding.
        """
        system = self._factor(_cholesky, _host_cholesky)
        if system is not None:
            return system
        system = self.spectral()
        if not self._warned and isinstance(system.factor, Spectral):
            self._warned = True
            evals = np.asarray(system.factor.evals)
            warn(
                f"{self._failure('singular to working precision')}. {np.sum(evals == 0)} of "
                f"{evals.size} eigenvalues are lost in rounding and left out: the result is the "
                "limit of a vanishing ridge",
                RuntimeWarning,
            )
        return system

    def _factor(
        self, traced: Callable[[System], Any], on_host: Callable[[System], Any]
    ) -> System | None:
        """The system with a factor if it is concrete, None if that cannot be trusted; kept."""
        if not self._is_concrete:
            return self._bare
        if traced not in self._factorised:
            with jax.ensure_compile_time_eval():
                on_cpu = jax.default_backend() == "cpu"
                factor = (on_host if on_cpu else traced)(self._bare)
            failed = factor is None or not (on_cpu or _is_finite(factor))
            # Nothing but the factor is read: the kernel would be copied to float64 at every use.
            kept = None if failed else self._bare._replace(kernel=None, factor=factor)
            self._factorised[traced] = kept
        return self._factorised[traced]

    def _failure(self, failure: str) -> str:
        """What was expected and what came: the smallest eigenvalue, and ridges that would do."""
        with jax.ensure_compile_time_eval():
            matrix, ridge = (np.asarray(value) for value in _matrix_and_ridge(self._bare))
        import scipy.linalg  # here, for a light `import widelimit`

        smallest = float(scipy.linalg.eigvalsh(matrix, subset_by_index=[0, 0])[0])
        diagonal = matrix.diagonal()
        floor = np.sqrt(len(matrix)) * self._bare.eps * max(diagonal.max(), 0.0)
        absolute = ridge + 2.0 * max(0.0, -smallest) + 100.0 * floor
        relative = absolute / max(diagonal.mean() - ridge, np.finfo(np.float64).tiny)
        advice = self._remedy(_round_up(relative), _round_up(absolute))
        added = f" after adding {float(ridge):.3g} to its diagonal" if ridge else ""
        return (
            f"expected a positive definite {self._name}, got one that is {failure}{added}: its "
            f"smallest eigenvalue is {smallest:.6g}, its largest diagonal entry "
            f"{diagonal.max():.6g}; {advice}"
        )


def _is_finite(factor: Any) -> bool:
    return not any(np.isnan(np.asarray(leaf)).any() for leaf in jax.tree.leaves(factor))


def advise_diag_reg(relative: float, absolute: float) -> str:
    """Words for the ridge that would do, in the parameters of the functions of this package."""
    return (
        f"diag_reg={relative:.0e} (relative to the mean diagonal), or diag_reg={absolute:.0e} with "
        "diag_reg_absolute_scale=True, would do"
    )


def remedy(descent_size: int | None) -> Remedy:
    """Words for the ridge, or for the weight decay of steps of gradient descent to N targets."""
    if descent_size is None:
        return advise_diag_reg

    def advise(relative: float, absolute: float) -> str:
        del relative
        return f"weight_decay={_round_up(absolute / descent_size):.0e} would do"

    return advise


def _round_up(x: float) -> float:
    """The next number with one significant digit; nothing at all asks for 1."""
    if not 0 < x < np.inf:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(x))
    return float(np.ceil(x / unit) * unit)


def _check_symmetric(name: str, kernel: np.ndarray, eps: float) -> None:
    matrix = to_matrix(name, kernel)
    largest = difference = 0.0
    for start in range(0, len(matrix), _ROWS):  # in pieces, for the sake of memory
        rows, columns = matrix[start : start + _ROWS], matrix[:, start : start + _ROWS]
        largest = max(largest, float(np.abs(rows).max(initial=0.0)))
        difference = max(difference, float(np.abs(rows - columns.T).max(initial=0.0)))
    if difference > np.sqrt(eps) * largest:
        raise ValueError(
            f"expected {name} to be symmetric, got entries that differ from their mirror image by "
            f"up to {difference:.3g}, where the largest entry is {largest:.3g}"
        )
