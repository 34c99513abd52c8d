"""Preconditioned conjugate gradients for many right hand sides that share every pass."""

import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from widelimit.predict.checks import check_scalar
from widelimit.scale.advice import advise_ridge, smallest_ridge
from widelimit.scale.checkpoint import Arrays, Checkpoint, Location, digest, identity
from widelimit.scale.nystrom_preconditioner import NystromPreconditioner
from widelimit.scale.operator import Operator, as_vectors, check_product

# A true residual so many times the recursive one says that the recursion has lost its way.
_ASTRAY = 10.0


@dataclass(frozen=True)
class PCGResult:
    """What conjugate gradients found, and how well it solves the system.

    Attributes:
      value: the solution.
      iterations: passes over the kernel that each column took.
      residuals: norms of the recursive residuals at each iteration, relative to those of the right
        hand sides; the first row is 1.
      residual: norms of the true residuals b - (K + ridge I) value, computed once at the end.
      seconds: time that this call took.
    """

    value: Float64[np.ndarray, "n c"]
    iterations: Int[np.ndarray, " c"]
    residuals: Float64[np.ndarray, "k c"]
    residual: Float64[np.ndarray, " c"]
    seconds: float


def solve(
    operator: Operator,
    b: Float64[np.ndarray, "n c"],
    *,
    ridge: float,
    preconditioner: NystromPreconditioner | None = None,
    tol: float = 1e-6,
    maxiter: int = 1000,
    checkpoint: Location | None = None,
) -> PCGResult:
    """Returns (K + ridge I)^-1 b for a kernel K that is known by its products.

    Columns are solved independently of each other and share each pass; those that have converged
    leave it. A residual of 1e-3 is enough for predictions of a classifier, 1e-6 for weights. The
    number of passes is about sqrt(c) log(2 / tol) / 2, where c is the condition number after
    preconditioning (arXiv:2110.02820).

    Args:
      operator: the kernel K [n, n].
      b: right hand sides.
      ridge: what is added to the diagonal.
      preconditioner: an approximation of K + ridge I; None makes a `NystromPreconditioner`.
      tol: largest norm of a residual relative to that of its right hand side.
      maxiter: largest number of passes.
      checkpoint: path or URL of a store, or of any folder, in whose group `solve` the state is
        written after every pass. A call with the same arguments goes on from there, and returns the
        same bits as one that was never interrupted; one with another `tol` or `maxiter` goes on
        too. None writes nothing.

    Raises:
      ValueError: if b is not finite or of the wrong shape; if the regularised kernel is not
        positive definite, or solutions do not converge, or the true residual is above the tolerance
        and more than 10 times the recursive one: with a ridge that would do.

    Example:
      >>> import numpy as np
      >>> from widelimit.scale.operator import DenseOperator
      >>> solve(DenseOperator(np.diag([1.0, 3.0])), np.ones((2, 1)), ridge=1.0).value
      array([[0.5 ],
             [0.25]])
    """
    started, b = time.monotonic(), as_vectors(b, operator.shape[0])
    check_scalar("ridge", ridge)
    if not 0 < tol < 1:
        raise ValueError(f"expected tol between 0 and 1, got {tol}")
    if preconditioner is None:
        preconditioner = NystromPreconditioner(operator, ridge)
    solve = _Solve(operator, b, float(ridge), preconditioner, tol)
    slots = None if checkpoint is None else Checkpoint(checkpoint, solve.fingerprint())
    solve.start(None if slots is None else slots.read())
    solve.run(maxiter, slots)
    solve.finish(slots)
    return PCGResult(
        *(solve.state["x"], solve.state["iterations"], solve.state["residuals"]),
        *(solve.state["true"], time.monotonic() - started),
    )


class _Solve:
    """One run; its state is a dictionary of arrays, from which it can go on."""

    def __init__(
        self,
        operator: Operator,
        b: np.ndarray,
        ridge: float,
        preconditioner: NystromPreconditioner,
        tol: float,
    ) -> None:
        self.operator, self.b, self.ridge = operator, b, ridge
        self.preconditioner, self.tol = preconditioner, tol
        norms = np.linalg.norm(b, axis=0)
        self.norms = np.where(norms > 0, norms, 1.0)
        self.state: Arrays = {}

    def fingerprint(self) -> str:
        approximation = self.preconditioner
        return digest(
            *(identity(self.operator), self.b, self.ridge, approximation.shift),
            *(approximation.factor.shape, approximation.factor[:1], approximation.factor[-1:]),
        )

    def start(self, saved: Arrays | None) -> None:
        """Begins, or goes on from a state that was saved."""
        if saved is not None:
            self.state = saved
            return
        z = self.preconditioner.solve(self.b)
        self.state = {
            "x": np.zeros_like(self.b),
            "r": self.b.copy(),
            "p": z,
            "rz": _dots(self.b, z),
            "residuals": (np.linalg.norm(self.b, axis=0) / self.norms)[None],
            "iterations": np.zeros(self.b.shape[1], int),
        }

    def run(self, maxiter: int, slots: Checkpoint | None) -> None:
        """Iterates until all columns have converged."""
        while (active := np.flatnonzero(self.state["residuals"][-1] > self.tol)).size:
            if len(self.state["residuals"]) > maxiter:
                raise ValueError(
                    f"expected residuals of {self.tol:.1e} within {maxiter} passes, got "
                    f"{self.state['residuals'][-1].max():.1e}: a larger maxiter, tol, noise or "
                    "jitter, or rank of the preconditioner would do; a checkpoint goes on here"
                )
            self.state = self._next(active)
            if slots is not None:
                slots.write(self.state)

    def _next(self, active: np.ndarray) -> Arrays:
        """The state after one more pass for the active columns."""
        old = {key: value.copy() for key, value in self.state.items() if key != "true"}
        p, rz = old["p"][:, active], old["rz"][active]
        q = self._product(p)
        energy = _dots(p, q)
        self._check_definite(p, energy)
        rate = rz / energy
        r = old["r"][:, active] - rate * q
        z = self.preconditioner.solve(r)
        left = _dots(r, z)
        old["x"][:, active] += rate * p
        old["r"][:, active], old["rz"][active] = r, left
        old["p"][:, active] = z + (left / rz) * p
        residual = old["residuals"][-1].copy()
        residual[active] = np.linalg.norm(r, axis=0) / self.norms[active]
        old["residuals"] = np.vstack([old["residuals"], residual])
        old["iterations"][active] += 1
        return old

    def finish(self, slots: Checkpoint | None) -> None:
        """Computes the true residual, unless it is known."""
        if "true" not in self.state:
            error = self.b - self._product(self.state["x"])
            self.state = self.state | {"true": np.linalg.norm(error, axis=0) / self.norms}
            if slots is not None:
                slots.write(self.state)
        self._check_true(self.state["true"], self.state["residuals"][-1])

    def _product(self, v: np.ndarray) -> np.ndarray:
        return check_product(self.operator.matmat(v)) + self.ridge * v

    def _check_definite(self, p: np.ndarray, energy: np.ndarray) -> None:
        if (energy > 0).all():
            return
        worst = int(np.argmin(energy / _dots(p, p)))
        count = len(self.state["residuals"])
        raise ValueError(
            f"expected a positive definite kernel after adding {self.ridge:.3g} to its diagonal, "
            f"got p^T (K + ridge I) p = {energy[worst]:.3g} at pass {count}: "
            f"{advise_ridge(smallest_ridge(self.operator, p[:, worst : worst + 1]))}"
        )

    def _check_true(self, true: np.ndarray, recursive: np.ndarray) -> None:
        astray = (true > _ASTRAY * recursive) & (true > self.tol)
        if not astray.any():
            return
        worst = int(np.argmax(np.where(astray, true, 0.0)))
        # Rounding limits the true residual to about eps * largest eigenvalue / ridge.
        enough = self.ridge * true[worst] / self.tol
        enough = enough if enough > 0 else smallest_ridge(self.operator, self.b[:, :1])
        raise ValueError(
            f"expected a true residual near the recursive one of {recursive[worst]:.1e}, got "
            f"{true[worst]:.1e}: the kernel is too nearly singular for float64 at "
            f"tol={self.tol:.1e}; {advise_ridge(enough)}, or tol={_ASTRAY * true[worst]:.0e}"
        )


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The products u^T v of columns [c]."""
    return np.einsum("ij,ij->j", u, v)
