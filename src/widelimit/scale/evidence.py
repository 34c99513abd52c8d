"""The marginal likelihood of targets under a kernel that is known by its products."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from widelimit.scale.advice import advise_ridge, smallest_ridge
from widelimit.scale.lanczos import BlockLanczos
from widelimit.scale.nystrom_preconditioner import NystromPreconditioner
from widelimit.scale.operator import Operator
from widelimit.scale.pcg import PCGResult

# Quadratures stop when their last steps changed the result by this share of its standard error.
_SHARE = 0.1
_EVERY = 3


@dataclass(frozen=True)
class Determinant:
    """An estimate of log det (K + ridge I).

    Attributes:
      value: the estimate.
      error: its standard error: from probe to probe, and what the last steps of the quadrature
        changed.
      steps: passes over the kernel.
    """

    value: float
    error: float
    steps: int


@dataclass(frozen=True)
class LikelihoodEstimate:
    """An estimate of the log marginal likelihood, summed over outputs.

    Attributes:
      value: the estimate.
      error: its standard error, that of the determinant times half the number of outputs, and the
        bound on what the residuals of the solutions change.
      fit: y^T (K + ridge I)^-1 y, summed over outputs.
      determinant: of one output.
    """

    value: float
    error: float
    fit: float
    determinant: Determinant


def estimate_determinant(
    operator: Operator,
    *,
    ridge: float,
    preconditioner: NystromPreconditioner | None = None,
    probes: int = 16,
    seed: int = 0,
    max_steps: int = 200,
) -> Determinant:
    """Returns log det (K + ridge I) by stochastic Lanczos quadrature (Ubaru et al., 2017).

    log det (K + ridge I) = log det P + tr log(P^-1/2 (K + ridge I) P^-1/2): the first part is
    exact, and the trace is the mean of z^T log(...) z over random signs z [n], the quadratures of
    all of which come from one block-Lanczos pass. The closer the preconditioner P is, the less
    there is to estimate, and the fewer steps it takes.

    Args:
      operator: the kernel K [n, n].
      ridge: what is added to its diagonal.
      preconditioner: an approximation of K + ridge I; None makes a `NystromPreconditioner`.
      probes: number of random vectors; with n of them or more the trace is exact.
      seed: of the vectors.
      max_steps: largest number of passes.

    Raises:
      ValueError: if the regularised kernel is not positive definite, there are fewer than 2 probes,
        or the quadrature does not converge.

    Example:
      >>> import numpy as np
      >>> from widelimit.scale.operator import DenseOperator
      >>> kernel = DenseOperator(np.diag([1.0, 3.0, 7.0]))
      >>> bool(np.isclose(estimate_determinant(kernel, ridge=1.0).value, np.log(2 * 4 * 8)))
      True
    """
    if probes < 2:
        raise ValueError(f"expected at least 2 probes, whose spread is the error, got {probes}")
    approximation = preconditioner or NystromPreconditioner(operator, ridge)
    n = operator.shape[0]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n, probes))
    z = np.eye(n) if probes >= n else signs

    def product(v: np.ndarray) -> np.ndarray:
        u = approximation.inverse_root(v)
        return approximation.inverse_root(operator.matmat(u) + ridge * u)

    basis = BlockLanczos(product, z)
    before = np.inf
    while True:
        basis.extend(min(_EVERY, max_steps - basis.steps))
        trace, error = _trace(basis, probes >= n)
        if trace is None:
            raise ValueError(
                f"expected a positive definite kernel after adding {ridge:.3g} to its diagonal, "
                f"got a negative eigenvalue: {advise_ridge(smallest_ridge(operator, z[:, :1]))}"
            )
        change = 0.0 if basis.exhausted else abs(trace - before)
        if change <= max(_SHARE * error, 1e-12 * n):
            value = approximation.log_determinant() + trace
            return Determinant(float(value), float(np.hypot(error, change)), basis.steps)
        if basis.steps >= max_steps:
            raise ValueError(
                f"expected the quadrature to converge within {max_steps} steps, got a last change "
                f"of {change:.1e}: a larger rank of the preconditioner or max_steps would do"
            )
        before = trace


def _trace(basis: BlockLanczos, exact: bool) -> tuple[float | None, float]:
    """The trace of the logarithm and its standard error; None for a negative eigenvalue."""
    if np.linalg.eigvalsh(basis.projected())[0] <= 0:
        return None, 0.0
    coefficients = basis.coefficients(lambda evals: np.log(evals)[None])[0]
    start = basis.start
    values = np.einsum("wc,wc->c", start, coefficients[: len(start)])
    if exact:
        return float(values.sum()), 0.0
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def likelihood_of(
    y: Float64[np.ndarray, "n c"], solution: PCGResult, determinant: Determinant
) -> LikelihoodEstimate:
    """Returns -(fit + c (log det + n log 2 pi)) / 2 from the solution of the system for y.

    See arXiv:1711.00165.
    """
    n, outputs = y.shape
    fit = float(np.einsum("nc,nc->", y, solution.value))
    norms = np.linalg.norm(y, axis=0) * np.linalg.norm(solution.value, axis=0)
    missed = float((solution.residual * norms).sum())
    value = -0.5 * (fit + outputs * (determinant.value + n * math.log(2 * math.pi)))
    return LikelihoodEstimate(value, 0.5 * (outputs * determinant.error + missed), fit, determinant)
