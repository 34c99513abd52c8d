"""The regularised train-train kernel, its factorisations, and the checks of their accuracy.

A factorisation of concrete numbers is checked on the host. A kernel that is singular by rounding
alone is solved in its eigenbasis, with a warning; an indefinite one raises ValueError. With traced
numbers neither is possible: there a failed factorisation is NaN.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import ArrayLike

from widelimit._pytree import is_concrete, own
from widelimit._samples import check_finite
from widelimit._text import warn
from widelimit.predict.checks import check_real
from widelimit.predict.matrices import to_matrix
from widelimit.predict.precision import in_float64, resolution
from widelimit.predict.solvers.base import Factorisation, Solver
from widelimit.predict.solvers.base import Ridge as Ridge
from widelimit.predict.solvers.base import System as System
from widelimit.predict.solvers.cholesky import Cholesky
from widelimit.predict.solvers.eigenbasis import Spectral
from widelimit.predict.spectral import Eigenbasis

# Rounding errors of relative size eps move the eigenvalues of an n x n kernel by about
# sqrt(n) eps times its largest entry, the noise floor. A Cholesky factor is used if the smallest
# eigenvalue is at least one floor. Pivots alone are not enough: all of them may be large although
# one eigenvalue is a rounding error.

# Number of rows of a kernel that are checked at a time.
_ROWS = 512

Remedy = Callable[[float, float], str]


@in_float64
def _matrix_and_ridge(system: System) -> tuple[jax.Array, jax.Array]:
    return system.matrix(), system.added()


class TrainKernel:
    """A regularised train-train kernel, which owns its factorisations.

    A concrete kernel is factorised and checked at first use, even inside the user's `jax.jit`. A
    traced one is factorised wherever it is used: a tracer must not outlive its trace.
    """

    def __init__(
        self,
        name: str,
        kernel: ArrayLike,
        ridge: Ridge,
        remedy: Remedy,
        solver: Solver | None = None,
    ) -> None:
        """Checks the kernel.

        Args:
          name: the name of the kernel in errors.
          kernel: zipped train-train kernel.
          ridge: the ridge to add to the diagonal.
          remedy: returns advice for an error, from a relative and an absolute ridge.
          solver: the user's solver; None for the one of each method below.

        Raises:
          TypeError: if the kernel is complex.
          ValueError: if a concrete kernel is not finite or not symmetric.
        """
        kernel = own(kernel)
        check_real(name, kernel)
        check_finite(name, kernel)
        self._name, self._remedy = name, remedy
        self._solver = solver
        chosen = None if solver is None else Factorisation(None, solver)
        self._bare = System(kernel, ridge, resolution(kernel), chosen)
        self._factorised: dict[type[Solver], System | None] = {}
        self._warned = False
        if is_concrete(kernel):
            _check_symmetric(name, np.asarray(kernel), self._bare.eps)

    def plain(self) -> System:
        """Returns the system, not factorised."""
        return self._bare

    def cholesky(self) -> System:
        """Returns the system with its Cholesky factor, or that of the user's solver, if concrete.

        Raises:
          ValueError: if the matrix is concrete and singular or indefinite to working precision:
            the factorisation fails, or its smallest eigenvalue is below sqrt(n) eps times the
            largest diagonal entry, where eps belongs to the kernel's own dtype.
        """
        return self._by(self._solver or Cholesky())

    def spectral(self) -> System:
        """Returns the system with its eigenbasis, or the user's factorisation, if concrete.

        Raises:
          ValueError: if the matrix is concrete and has a negative eigenvalue beyond rounding.
        """
        return self._by(self._solver or Spectral())

    def inverse(self) -> System:
        """Returns the system factorised, if concrete, for the limit of a vanishing ridge.

        It has a Cholesky factor. If that is not accurate, it has an eigendecomposition instead, in
        which eigenvalues lost in rounding are zero and contribute nothing, and a RuntimeWarning
        says so, once. The user's solver has no such fallback.

        Raises:
          ValueError: if the matrix is concrete and has a negative eigenvalue beyond rounding.
        """
        if self._solver is None and self._factor(Cholesky()) is not None:
            return self.cholesky()
        system = self.spectral()
        lost = _lost(system)
        if lost is not None and lost.any() and not self._warned:
            self._warned = True
            warn(
                f"{self._failure('singular to working precision')}. {lost.sum()} of {lost.size} "
                "eigenvalues are lost in rounding and left out: the result is the limit of a "
                "vanishing ridge",
                RuntimeWarning,
            )
        return system

    def _by(self, solver: Solver) -> System:
        system = self._factor(solver)
        if system is None:
            raise ValueError(self._failure(solver.failure))
        return system

    def _factor(self, solver: Solver) -> System | None:
        """Returns the system, with a cached factor if concrete; None if that is not accurate."""
        if not self._bare.is_concrete():
            return self._bare
        key = type(solver)
        if key not in self._factorised:
            with jax.ensure_compile_time_eval(), jax.enable_x64(True):
                factor = self._bare.factorised(solver)
            # Only the factor is read: the kernel would be copied to float64 at every use.
            solved = self._bare._replace(kernel=None, factor=factor)
            self._factorised[key] = None if factor.state is None else solved
        return self._factorised[key]

    def _failure(self, failure: str) -> str:
        """Returns the message of an error, with the smallest eigenvalue and sufficient ridges."""
        with jax.ensure_compile_time_eval():
            matrix, ridge = (np.asarray(value) for value in _matrix_and_ridge(self._bare))
        import scipy.linalg  # here, for a light `import widelimit`

        smallest = float(scipy.linalg.eigvalsh(matrix, subset_by_index=[0, 0])[0])
        diagonal = matrix.diagonal()
        floor = np.sqrt(len(matrix)) * self._bare.eps * max(diagonal.max(), 0.0)
        absolute = ridge + 2.0 * max(0.0, -smallest) + 100.0 * floor
        relative = absolute / max(diagonal.mean() - ridge, np.finfo(np.float64).tiny)
        advice = self._remedy(round_up(relative), round_up(absolute))
        added = f" after adding {float(ridge):.3g} to its diagonal" if ridge else ""
        return (
            f"expected a positive definite {self._name}, got one that is {failure}{added}: its "
            f"smallest eigenvalue is {smallest:.6g}, its largest diagonal entry "
            f"{diagonal.max():.6g}; {advice}"
        )


def _lost(system: System) -> np.ndarray | None:
    """Returns which eigenvalues of a factorised system are lost in rounding; None if unknown."""
    state = None if system.factor is None else system.factor.state
    return np.asarray(state.evals) == 0 if isinstance(state, Eigenbasis) else None


def advise_diag_reg(relative: float, absolute: float) -> str:
    """Returns advice to use a ridge, in the parameters of the functions of this package."""
    return (
        f"use diag_reg={relative:.0e} (relative to the mean diagonal), or diag_reg={absolute:.0e} "
        "with diag_reg_absolute_scale=True"
    )


def remedy(descent_size: int | None) -> Remedy:
    """Returns a function of advice on a ridge, or on weight decay for descent to N targets."""
    if descent_size is None:
        return advise_diag_reg

    def advise(relative: float, absolute: float) -> str:
        del relative
        return f"use weight_decay={round_up(absolute / descent_size):.0e}"

    return advise


def round_up(x: float) -> float:
    """Returns the number rounded up to one significant digit; 1 for 0."""
    if not 0 < x < np.inf:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(x))
    return float(np.ceil(x / unit) * unit)


def _check_symmetric(name: str, kernel: np.ndarray, eps: float) -> None:
    matrix = to_matrix(name, kernel)
    largest = difference = 0.0
    for start in range(0, len(matrix), _ROWS):  # in pieces, to save memory
        rows, columns = matrix[start : start + _ROWS], matrix[:, start : start + _ROWS]
        largest = max(largest, float(np.abs(rows).max(initial=0.0)))
        difference = max(difference, float(np.abs(rows - columns.T).max(initial=0.0)))
    if difference > np.sqrt(eps) * largest:
        raise ValueError(
            f"expected {name} to be symmetric, got entries that differ from their mirror image by "
            f"up to {difference:.3g}, where the largest entry is {largest:.3g}"
        )
