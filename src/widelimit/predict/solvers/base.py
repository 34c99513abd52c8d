"""The contract of a solver, and the linear system of a training set that it solves."""

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

# Enough, from a random start, to find an eigenvalue far below all others.
_INVERSE_ITERATIONS = 3

# Optional methods: the operation that needs each of them, and a solver that has it.
_OPTIONAL = {
    "apply": ("functions of eigenvalues, which finite times need", "Spectral()"),
    "log_determinant": ("a determinant, which the marginal likelihood needs", "Cholesky()"),
}


Truth: TypeAlias = bool | np.bool_ | jax.Array
"""A truth value, which may be traced."""


class Ridge(NamedTuple):
    """The ridge added to the diagonal: relative times the mean diagonal, plus absolute."""

    relative: Any = 0.0
    absolute: Any = 0.0

    @classmethod
    def of(cls, diag_reg: ArrayLike, diag_reg_absolute_scale: object, advice: str = "") -> "Ridge":
        """Returns the ridge from the parameters of this package's functions.

        Raises:
          TypeError: if `diag_reg` is not a number, or `diag_reg_absolute_scale` not a bool.
          ValueError: if `diag_reg` is negative, or an array: then with the advice.
        """
        check_scalar("diag_reg", diag_reg, advice)
        diag_reg = own(diag_reg)
        absolute = as_flag("diag_reg_absolute_scale", diag_reg_absolute_scale)
        return cls(0.0, diag_reg) if absolute else cls(diag_reg, 0.0)


class System(NamedTuple):
    """The symmetric matrix K + ridge I of a training set with r outputs, to be used in float64.

    Attributes:
      kernel: zipped train-train kernel K, which JAX may trace; None if there is a factor of
        concrete numbers.
      ridge: the ridge added to its diagonal.
      eps: relative rounding error of the kernel's entries.
      factor: the solver, and its factorisation if it exists already; None before one is chosen.
    """

    kernel: Any
    ridge: Ridge
    eps: Any
    factor: "Factorisation | None" = None

    def matrix(self) -> jax.Array:
        """Returns K + ridge I [r, r]."""
        matrix = jnp.asarray(to_matrix("kernel", self.kernel), float)
        matrix = (matrix + matrix.T) / 2
        return matrix + self.added() * jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def host_matrix(self) -> np.ndarray:
        """Returns K + ridge I [r, r], if concrete, as a new NumPy array, free to be overwritten."""
        return in_place.regularised(self.kernel, *self.ridge)

    def added(self) -> jax.Array:
        """Returns the ridge, a scalar."""
        return self.ridge.relative * self._diagonal().mean() + self.ridge.absolute

    def noise_floor(self) -> jax.Array:
        """Returns the size of rounding errors in eigenvalues: smaller eigenvalues are noise."""
        diagonal = self._diagonal()
        return np.sqrt(len(diagonal)) * self.eps * (diagonal.max() + self.added())

    def is_concrete(self) -> bool:
        """Returns whether the matrix is concrete, not traced by JAX."""
        return is_concrete(self.kernel, self.ridge)

    def is_on_host(self) -> bool:
        """Returns whether the matrix is concrete, and JAX computes on the CPU."""
        return self.is_concrete() and jax.default_backend() == "cpu"

    def factorised(self, solver: "Solver") -> "Factorisation":
        """Returns the factorisation; call it in float64.

        Args:
          solver: the solver to use unless the system has one already.
        """
        factor = Factorisation(None, solver) if self.factor is None else self.factor
        return factor.of(self) if factor.state is None else factor

    def _diagonal(self) -> jax.Array:
        return jnp.asarray(to_matrix("kernel", self.kernel).diagonal(), float)


class Solver(abc.ABC):
    """Base class of solvers of (K + ridge I) u = b, with K the kernel of the training set.

    Your own solver is a class with `factorise` and `solve`, and `apply` if possible; pass an
    instance to `InfiniteEnsemble(..., solver=...)`. All arrays are float64. The factorisation of a
    concrete kernel is cached, and checked: if three solutions show that the smallest eigenvalue is
    below the rounding errors of the kernel, a ValueError recommends a ridge.

    Attributes:
      traceable: whether it works on arrays that JAX traces, inside `jax.jit` or `jax.grad`. Then
        states are trees of arrays, and failures are NaN. Otherwise traced arrays are refused.
      failure: description, in errors, of a matrix that `factorise` refuses.
    """

    traceable: ClassVar[bool] = False
    failure: ClassVar[str] = "singular or indefinite to working precision"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abc.abstractmethod
    def factorise(self, system: System) -> Any:
        """Returns the state that is passed to the other methods, anything but None.

        Args:
          system: the linear system: `system.matrix()` is K + ridge I [r, r] as an array of JAX,
            `system.host_matrix()` the same as a new NumPy array, for concrete numbers only.

        Returns:
          The state; None for a concrete matrix that is not positive definite, for which an error
          then gives the smallest eigenvalue.
        """

    @abc.abstractmethod
    def solve(self, state: Any, b: Any) -> ArrayLike:
        """Returns (K + ridge I)^-1 b [r, c].

        Args:
          state: the result of `factorise`.
          b: right-hand sides [r, c].
        """

    def apply(self, state: Any, function: AtTimes, b: Any) -> ArrayLike:
        """Returns f(K + ridge I) b [m, r, c], with a function f for each of m times.

        Training for a finite time needs it, since exp(-K t) is such a function.

        Args:
          state: the result of `factorise`.
          function: returns f of eigenvalues [r], as [m, r]. Set eigenvalues lost in rounding to
            exactly 0: nothing moves along them.
          b: arrays [m, r, c], or [1, r, c] for all times.

        Raises:
          NotImplementedError: the solver has no such method.
        """
        del state, function, b
        raise _refusal(self, "apply")

    def quadratic(self, state: Any, b: Any) -> ArrayLike:
        """Returns b^T (K + ridge I)^-1 b [c, c].

        Args:
          state: the result of `factorise`.
          b: right-hand sides [r, c].
        """
        return b.T @ jnp.asarray(self.solve(state, b))

    def log_determinant(self, state: Any) -> ArrayLike:
        """Returns log det (K + ridge I), a scalar; the marginal likelihood needs it.

        Args:
          state: the result of `factorise`.

        Raises:
          NotImplementedError: the solver has no such method.
        """
        del state
        raise _refusal(self, "log_determinant")

    def is_trusted(self, state: Any, rows: int, floor: Scalar) -> Truth:
        """Returns whether the smallest of the eigenvalues, all positive, is at least `floor`.

        Inverse iteration estimates that eigenvalue from above.

        Args:
          state: the result of `factorise`.
          rows: r, the size of the matrix.
          floor: the bound.
        """
        xp: Any = np if is_concrete(state, floor) else jnp
        vector = xp.asarray(np.random.default_rng(0).normal(size=(rows, 1)))
        for _ in range(_INVERSE_ITERATIONS):
            vector = xp.asarray(self.solve(state, vector / xp.linalg.norm(vector)))
        return floor * xp.linalg.norm(vector) <= 1.0  # a NaN compares false


def require(solver: Solver | None, method: str) -> None:
    """Raises NotImplementedError if a solver lacks an optional method; None has all of them."""
    if solver is not None and getattr(type(solver), method) is getattr(Solver, method):
        raise _refusal(solver, method)


def _refusal(solver: Solver, method: str) -> NotImplementedError:
    what, instead = _OPTIONAL[method]
    return NotImplementedError(
        f"expected a solver with {what}, got {type(solver).__name__}, which has no {method}: "
        f"use solver={instead} or solver=None"
    )


@pytree
class Factorisation:
    """A solver with its state; JAX treats a concrete one as a constant.

    Attributes:
      state: the result of `factorise`, None before.
      solver: the solver.
    """

    state: Any = static()
    solver: Solver = static()

    def of(self, system: System) -> "Factorisation":
        """Returns the factorisation of a system; a failed one has state None, or NaN if traced."""
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
        """Returns K^-1 b for b [r, c]."""
        return self._checked("solve", b.shape, (b,))

    def apply(self, function: SpectralFunction, tau: PyTree, b: jax.Array) -> jax.Array:
        """Returns f(K, tau) b [m, r, c] at times tau [m], for b [1 or m, r, c]."""
        shape = (len(jax.tree.leaves(tau)[0]), *b.shape[1:])
        return self._checked("apply", shape, (AtTimes(function, tau), b))

    def quadratic(self, b: jax.Array) -> jax.Array:
        """Returns b^T K^-1 b [c, c] for b [r, c]."""
        return self._checked("quadratic", (b.shape[1],) * 2, (b,))

    def log_determinant(self) -> jax.Array:
        """Returns log det K, a scalar."""
        return self._checked("log_determinant", (), ())

    def _checked(
        self, method: str, shape: tuple[int, ...], arguments: tuple[object, ...]
    ) -> jax.Array:
        """Returns the result of a method of the solver, as an array of JAX.

        Raises:
          TypeError: if arrays are traced and the solver does not take these.
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
                "that JAX traces: call it outside jax.jit, jax.grad and the like, or use "
                "solver=None or one with traceable=True"
            )


def _unless(trusted: Truth, leaf: jax.Array) -> jax.Array:
    """Returns the leaf of a state, NaN unless it can be trusted; integers cannot be NaN."""
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jnp.where(trusted, leaf, jnp.nan) if inexact else leaf


def check_solver(solver: object) -> None:
    """Raises TypeError unless it is None or a solver."""
    if not (solver is None or isinstance(solver, Solver)):
        raise TypeError(
            "expected solver to be None or a widelimit.predict.Solver such as Cholesky(), got "
            f"{shown(solver)}"
        )
