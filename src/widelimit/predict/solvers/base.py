"""The contract of a solver, and the system of a training set that it is given."""

import abc
import math
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import is_concrete, own, pytree, static
from widelimit._text import shown
from widelimit.predict import in_place
from widelimit.predict.checks import as_flag, check_scalar
from widelimit.predict.matrices import row_shape, to_matrix
from widelimit.predict.spectral import AtTimes, SpectralFunction
from widelimit.typing import Scalar

# From a start that is drawn at random, these find an eigenvalue far below all others.
_INVERSE_ITERATIONS = 3

# What not every solver has: what needs it, and solvers that do.
_OPTIONAL = {
    "apply": ("functions of eigenvalues, which finite times need", "Spectral()"),
    "log_determinant": ("a determinant, which the marginal likelihood needs", "Cholesky()"),
}


Truth: TypeAlias = bool | np.bool_ | jax.Array
"""Whether something is so; it may be traced."""


class Ridge(NamedTuple):
    """What is added to the diagonal: relative times the mean diagonal, plus absolute."""

    relative: Any = 0.0
    absolute: Any = 0.0

    @classmethod
    def of(cls, diag_reg: ArrayLike, diag_reg_absolute_scale: object, advice: str = "") -> "Ridge":
        """The ridge of the parameters of this package's functions.

        Raises:
          TypeError: if diag_reg is no number, or diag_reg_absolute_scale neither True nor False.
          ValueError: if diag_reg is negative, or an array: then with the advice.
        """
        check_scalar("diag_reg", diag_reg, advice)
        diag_reg = own(diag_reg)
        absolute = as_flag("diag_reg_absolute_scale", diag_reg_absolute_scale)
        return cls(0.0, diag_reg) if absolute else cls(diag_reg, 0.0)


class System(NamedTuple):
    """The symmetric matrix K + ridge I of a training set with r outputs, to be used in float64.

    Attributes:
      kernel: zipped train-train kernel K, which JAX may trace; None where there is a factor of
        concrete numbers.
      ridge: what is added to its diagonal.
      eps: relative rounding error of the kernel's entries.
      factor: the solver that was chosen, and its factorisation if there is one already.
    """

    kernel: Any
    ridge: Ridge
    eps: Any
    factor: "Factorisation | None" = None

    def matrix(self) -> jax.Array:
        """K + ridge I [r, r]."""
        matrix = jnp.asarray(to_matrix("kernel", self.kernel), float)
        matrix = (matrix + matrix.T) / 2
        return matrix + self.added() * jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def host_matrix(self) -> np.ndarray:
        """The same, if it is concrete, as a new array of NumPy, which may be overwritten."""
        return in_place.regularised(self.kernel, *self.ridge)

    def added(self) -> jax.Array:
        """The ridge, a scalar."""
        return self.ridge.relative * self._diagonal().mean() + self.ridge.absolute

    def noise_floor(self) -> jax.Array:
        """How far rounding errors of the kernel move eigenvalues: smaller ones mean nothing."""
        diagonal = self._diagonal()
        return np.sqrt(len(diagonal)) * self.eps * (diagonal.max() + self.added())

    def is_concrete(self) -> bool:
        """Whether the matrix is known, and not traced by JAX."""
        return is_concrete(self.kernel, self.ridge)

    def is_on_host(self) -> bool:
        """Whether the matrix is known, and JAX computes on the CPU."""
        return self.is_concrete() and jax.default_backend() == "cpu"

    def factorised(self, solver: "Solver") -> "Factorisation":
        """The factorisation, by the given solver if no other was chosen; call it in float64."""
        factor = Factorisation(None, solver) if self.factor is None else self.factor
        return factor.of(self) if factor.state is None else factor

    def _diagonal(self) -> jax.Array:
        return jnp.asarray(to_matrix("kernel", self.kernel).diagonal(), float)


class Solver(abc.ABC):
    """Solves (K + ridge I) u = b, where K is the kernel of the training set.

    One of your own is a class with `factorise` and `solve`, and `apply` where it can, of which an
    instance is given to `InfiniteEnsemble(..., solver=...)`. All arrays are float64. Of concrete
    kernels the factorisation is kept, and checked: three solutions tell whether the smallest
    eigenvalue is above the rounding errors of the kernel, else a ValueError names a ridge that
    would do.

    Attributes:
      traceable: whether it works on arrays that JAX traces, inside `jax.jit` or `jax.grad`. Then
        states are trees of arrays, and failures are NaN. A solver that is not refuses them.
      failure: words for a matrix that `factorise` refuses.
    """

    traceable: ClassVar[bool] = False
    failure: ClassVar[str] = "singular or indefinite to working precision"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abc.abstractmethod
    def factorise(self, system: System) -> Any:
        """Returns the state that the other methods are given, anything but None.

        Args:
          system: its `matrix()` is K + ridge I [r, r] as an array of JAX, its `host_matrix()` a
            new one of NumPy, of a system that is not traced.

        Returns:
          None for a concrete matrix that is not positive definite, of which an error then says how
          far it is from that.
        """

    @abc.abstractmethod
    def solve(self, state: Any, b: Any) -> ArrayLike:
        """Returns (K + ridge I)^-1 b [r, c] for b [r, c]."""

    def apply(self, state: Any, function: AtTimes, b: Any) -> ArrayLike:
        """Returns f(K + ridge I) b [m, r, c], with a function f for each of m times.

        Without it there is no training for a finite time, since exp(-K t) is such a function.

        Args:
          state: what `factorise` returned.
          function: maps eigenvalues [r] to f of them, [m, r]. Those that are lost in rounding
            should be exactly 0: nothing moves along them.
          b: [m, r, c], or [1, r, c] for all times.
        """
        del state, function, b
        raise _refusal(self, "apply")

    def quadratic(self, state: Any, b: Any) -> ArrayLike:
        """Returns b^T (K + ridge I)^-1 b [c, c] for b [r, c]."""
        return b.T @ jnp.asarray(self.solve(state, b))

    def log_determinant(self, state: Any) -> ArrayLike:
        """Returns log det (K + ridge I), a scalar; without it there is no marginal likelihood."""
        del state
        raise _refusal(self, "log_determinant")

    def is_trusted(self, state: Any, rows: int, floor: Scalar) -> Truth:
        """Whether the smallest of the eigenvalues, all positive, is at least `floor`.

        It is found from above by inverse iteration.
        """
        xp: Any = np if is_concrete(state, floor) else jnp
        vector = xp.asarray(np.random.default_rng(0).normal(size=(rows, 1)))
        for _ in range(_INVERSE_ITERATIONS):
            vector = xp.asarray(self.solve(state, vector / xp.linalg.norm(vector)))
        return floor * xp.linalg.norm(vector) <= 1.0  # a NaN compares false


def require(solver: Solver | None, method: str) -> None:
    """Raise NotImplementedError if a solver lacks an optional method; None stands for any."""
    if solver is not None and getattr(type(solver), method) is getattr(Solver, method):
        raise _refusal(solver, method)


def _refusal(solver: Solver, method: str) -> NotImplementedError:
    what, instead = _OPTIONAL[method]
    return NotImplementedError(
        f"expected a solver with {what}, got {type(solver).__name__}, which has no {method}: "
        f"solver={instead} or solver=None would do"
    )


@pytree
class Factorisation:
    """A solver with its state; concrete ones are constants to JAX, whatever they are.

    Attributes:
      state: what `factorise` returned, None before.
      solver: the solver.
    """

    state: Any = static()
    solver: Solver = static()

    def of(self, system: System) -> "Factorisation":
        """The factorisation of a system: None if it fails for a concrete one, NaN for others."""
        concrete, solver = system.is_concrete(), self.solver
        self._check_traceable(system.kernel, system.ridge)
        state, floor = solver.factorise(system), system.noise_floor()
        rows = math.prod(row_shape(system.kernel))
        if concrete:
            is_good = state is not None and bool(solver.is_trusted(state, rows, floor))
            return Factorisation(state if is_good else None, solver)
        constants = jax.lax.stop_gradient((state, floor))
        trusted = solver.is_trusted(constants[0], rows, constants[1])
        return Factorisation(jax.tree.map(lambda leaf: _unless(trusted, leaf), state), solver)

    def solve(self, b: jax.Array) -> jax.Array:
        """K^-1 b for b [r, c]."""
        return self._checked("solve", b.shape, (b,))

    def apply(self, function: SpectralFunction, tau: PyTree, b: jax.Array) -> jax.Array:
        """f(K, tau) b [m, r, c] at times tau [m], for b [1 or m, r, c]."""
        shape = (len(jax.tree.leaves(tau)[0]), *b.shape[1:])
        return self._checked("apply", shape, (AtTimes(function, tau), b))

    def quadratic(self, b: jax.Array) -> jax.Array:
        """b^T K^-1 b [c, c] for b [r, c]."""
        return self._checked("quadratic", (b.shape[1],) * 2, (b,))

    def log_determinant(self) -> jax.Array:
        """Log det K, a scalar."""
        return self._checked("log_determinant", (), ())

    def _checked(
        self, method: str, shape: tuple[int, ...], arguments: tuple[object, ...]
    ) -> jax.Array:
        """What the solver returns, as an array of JAX.

        Raises:
          TypeError: if it is given traced arrays and does not take them.
          ValueError: if the result has another shape.
        """
        self._check_traceable(*[value for value in arguments if not isinstance(value, AtTimes)])
        result = jnp.asarray(getattr(self.solver, method)(self.state, *arguments))
        if result.shape != shape:
            raise ValueError(
                f"expected {method} of {type(self.solver).__name__} to return an array of shape "
                f"{shape}, got {result.shape}"
            )
        return result

    def _check_traceable(self, *arrays: PyTree) -> None:
        if not (self.solver.traceable or is_concrete(arrays)):
            raise TypeError(
                f"expected concrete numbers for the solver {type(self.solver).__name__}, got ones "
                "that JAX traces: call it outside of jax.jit, jax.grad and the like, or give "
                "solver=None or one with traceable=True"
            )


def _unless(trusted: Truth, leaf: jax.Array) -> jax.Array:
    """The leaf of a state, NaN unless it can be trusted; whole numbers cannot say so."""
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jnp.where(trusted, leaf, jnp.nan) if inexact else leaf


def check_solver(solver: object) -> None:
    """Raise TypeError unless it is None or a solver."""
    if not (solver is None or isinstance(solver, Solver)):
        raise TypeError(
            "expected solver to be None or a widelimit.predict.Solver such as Cholesky(), got "
            f"{shown(solver)}"
        )
