"""Training to any time by one block-Lanczos pass over a kernel that is known by its products."""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from widelimit.predict.checks import check_scalar
from widelimit.predict.dynamics import Times
from widelimit.predict.solvers.eigenbasis import live
from widelimit.predict.spectral import RESPONSE, AtTimes
from widelimit.predict.stepping import STEPPED_RESPONSE, Descent, Progress
from widelimit.scale.advice import advise_ridge, noise_floor
from widelimit.scale.checkpoint import Location, identity
from widelimit.scale.lanczos import BlockLanczos, Function
from widelimit.scale.operator import Operator, as_vectors
from widelimit.typing import Scalars

# Convergence is looked at every so many steps, against the result of so many steps before.
_EVERY = 5


@dataclasses.dataclass(frozen=True)
class DynamicsResult:
    """What training has done to the residuals b at each time.

    Attributes:
      value: g_t(K) b with the response g_t(l) = (1 - exp(-l tau)) / l: outputs at a test point are
        K(x*, X) value. The shape of the times comes first.
      error: estimate, with the shape of the times, of the error e of predictions: at a test point
        they are off by at most e times sqrt(K(x*, x*)), if e is right. It is the change over the
        last five steps, so the error itself is mostly far smaller.
      residual: norm of b - (K + ridge I) value - d value / d tau relative to b, with the shape of
        the times: 0 if the result is exact. At infinite time it is that of the linear system.
      steps: passes over the kernel.
      seconds: time that this call took.
    """

    value: Float64[np.ndarray, "*times n c"]
    error: Float64[np.ndarray, "*times"]
    residual: Float64[np.ndarray, "*times"]
    steps: int
    seconds: float


def dynamics(
    operator: Operator,
    b: Float64[np.ndarray, "n c"],
    times: Scalars,
    *,
    learning_rate: float = 1.0,
    ridge: float = 0.0,
    descent: Descent | None = None,
    size: int | None = None,
    tol: float = 1e-8,
    max_steps: int = 500,
    checkpoint: Location | None = None,
) -> DynamicsResult:
    """Returns the response (K + ridge I)^-1 (1 - exp(-(K + ridge I) learning_rate t / N)) b.

    With b = y - f0, the outputs at time t are f_t = f0 + K(x*, X) response (arXiv:1902.06720). All
    times, infinity among them, come from one Krylov space of K and b, which knows no ridge and no
    learning rate: with a checkpoint another call for other times or ridges, or discrete steps,
    reads the space and adds to it what it lacks. Eigenvalues within rounding of zero count as zero:
    along them nothing moves, as in `predict`.

    Args:
      operator: the kernel K [n, n].
      b: targets minus initial outputs.
      times: t in steps, of any shape; infinity is the limit.
      learning_rate: the step.
      ridge: what is added to the diagonal.
      descent: gradient descent in discrete steps, with momentum, in place of the flow.
      size: N, the number of targets; None takes that of b.
      tol: largest error of predictions where K(x*, x*) is the mean diagonal, relative to the root
        mean square of b.
      max_steps: largest number of passes.
      checkpoint: path or URL of a store, or of any folder, in whose group `krylov` the basis is
        kept.

    Raises:
      ValueError: if times are negative, b is not finite, the kernel has a negative eigenvalue
        beyond rounding, infinitely many discrete steps diverge, or the estimated error does not
        reach the tolerance.

    Example:
      >>> import numpy as np
      >>> from widelimit.scale.operator import DenseOperator
      >>> kernel, b = DenseOperator(np.diag([1.0, 2.0])), np.ones((2, 1))
      >>> dynamics(kernel, b, [0.0, np.inf]).value[:, :, 0]
      array([[0. , 0. ],
             [1. , 0.5]])
    """
    b = as_vectors(b, operator.shape[0])
    check_scalar("learning_rate", learning_rate)
    count = Times.of(np.asarray(times), learning_rate, descent)
    function = response_function(count, b.size if size is None else size)
    basis = krylov_basis(operator, b, checkpoint)
    result = Response(basis, operator, ridge).reach(function, b, tol, max_steps)
    shape = count.shape
    return dataclasses.replace(
        result,
        value=result.value.reshape(*shape, *b.shape),
        error=result.error.reshape(shape),
        residual=result.residual.reshape(shape),
    )


def krylov_basis(
    operator: Operator, b: Float64[np.ndarray, "n c"], checkpoint: Location | None
) -> BlockLanczos:
    """Returns the Krylov basis of a kernel and b, as far as the checkpoint has it."""
    name = "" if checkpoint is None else identity(operator)
    return BlockLanczos(operator.matmat, b, checkpoint, name)


def response_function(times: Times, size: int) -> AtTimes:
    """Returns the response to training as a function of eigenvalues, for N targets."""
    with jax.enable_x64(True):
        if times.descent is None:
            return AtTimes(RESPONSE, times.tau(size))
        progress = Progress(
            jnp.asarray(times.steps, float).reshape(-1),
            jnp.asarray(times.learning_rate / size, float),
            Descent(*(jnp.asarray(value, float) for value in times.descent)),
        )
        return AtTimes(STEPPED_RESPONSE, progress)


class Response:
    """Functions of a regularised kernel on the start of a Krylov basis, extended where needed.

    Attributes:
      basis: the basis, which other functions share.
      operator: the kernel that spans it.
      ridge: what is added to the diagonal of the kernel.
    """

    def __init__(self, basis: BlockLanczos, operator: Operator, ridge: float) -> None:
        check_scalar("ridge", ridge)
        self.basis, self.operator, self.ridge = basis, operator, float(ridge)
        self._floor = noise_floor(operator)
        self._scale = float(np.sqrt(operator.diagonal().mean()))

    def reach(
        self, function: AtTimes, b: Float64[np.ndarray, "n c"], tol: float, max_steps: int
    ) -> DynamicsResult:
        """Returns f(K + ridge I) b at m flat times, as exactly as asked for.

        Raises:
          ValueError: as `dynamics`.
        """
        started, basis = time.monotonic(), self.basis
        at, length = self._shifted(function), float(np.linalg.norm(b))
        allowed = tol * length / np.sqrt(b.size) / self._scale
        basis.extend(min(2 * _EVERY, max_steps) - basis.steps)
        while True:
            coefficients, error = self._with_error(at)
            residual = self._residual(coefficients) / (length or 1.0)
            # A change may be small where nothing has converged; then residuals are large.
            if (error <= allowed).all() and (residual <= np.sqrt(tol)).all():
                break
            if basis.steps >= max_steps:
                raise ValueError(
                    f"expected an error of at most {allowed:.1e} within {max_steps} steps, got "
                    f"about {error.max():.1e} and a residual of {residual.max():.1e}: a larger "
                    "max_steps, tol, noise, jitter or ridge would do"
                )
            basis.extend(min(_EVERY, max_steps - basis.steps))
        value = self._combined(coefficients)
        return DynamicsResult(value, error, residual, basis.steps, time.monotonic() - started)

    def _with_error(self, at: Function) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients [m, k, c], and by how much in the norm of the kernel they changed [m]."""
        basis = self.basis
        now = basis.coefficients(at)
        if basis.exhausted:
            return now, np.zeros(len(now))
        before = basis.coefficients(at, max(1, basis.steps - _EVERY))
        change = now.copy()
        change[:, : before.shape[1]] -= before
        energy = (change * (basis.projected() @ change)).sum(1)
        return now, np.sqrt(np.maximum(energy, 0.0)).max(-1, initial=0.0)

    def _combined(self, coefficients: np.ndarray) -> np.ndarray:
        """The basis times coefficients [m, k, c], in one pass over the basis: [m, n, c]."""
        times, size, columns = coefficients.shape
        flat = coefficients.transpose(1, 0, 2).reshape(size, times * columns)
        return self.basis.combine(flat).reshape(-1, times, columns).swapaxes(0, 1)

    def _residual(self, coefficients: np.ndarray) -> np.ndarray:
        """The norm of Q B times the last block of coefficients [m]."""
        if self.basis.exhausted:
            return np.zeros(len(coefficients))
        coupling = self.basis.last_coupling()
        last = coefficients[:, -coupling.shape[1] :]
        return np.linalg.norm(np.einsum("vw,mwc->mvc", coupling, last), axis=(1, 2))

    def _shifted(self, function: AtTimes) -> Callable[[np.ndarray], np.ndarray]:
        """The function of K + ridge I as one of the eigenvalues of T."""

        def at(evals: np.ndarray) -> np.ndarray:
            if not evals.size:
                return np.zeros((len(jax.tree.leaves(function.tau)[0]), 0))  # b is zero
            alive = live(evals + self.ridge, self._floor, np)
            if np.isnan(alive).any():
                raise ValueError(self._failure(float(evals.min())))
            values = _on_host(function, alive)
            if np.isnan(values).any():
                raise ValueError(
                    "expected a learning rate at which infinitely many steps converge, got one at "
                    f"which training diverges: the largest eigenvalue is {evals.max():.6g}"
                )
            return values

        return at

    def _failure(self, lowest: float) -> str:
        enough = 100.0 * self._floor - 2.0 * lowest
        return (
            f"expected a positive definite kernel after adding {self.ridge:.3g} to its diagonal, "
            f"got one with an eigenvalue of at most {lowest + self.ridge:.6g}: "
            f"{advise_ridge(enough)}"
        )


def _on_host(function: AtTimes, evals: np.ndarray) -> np.ndarray:
    """The values [m, k], computed at a power of two of eigenvalues so that few sizes compile."""
    padded = np.full(1 << (len(evals) - 1).bit_length(), evals[-1])
    padded[: len(evals)] = evals
    with jax.enable_x64(True):
        return np.asarray(function(padded))[:, : len(evals)]
