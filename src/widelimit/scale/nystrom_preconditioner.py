"""A preconditioner of low rank from some columns of a kernel."""

from functools import cached_property

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from widelimit.gram.sizes import parse_memory
from widelimit.predict.precision import resolution
from widelimit.scale.operator import Operator, rows_at_a_time
from widelimit.typing import Bytes

# A row of the factor takes 8 bytes per landmark, and the column that it comes from up to 8.
_BYTES_PER_LANDMARK = 16


def default_rank(n: int, memory: Bytes = "4GiB") -> int:
    """Returns n / 10 landmarks, or as many as fit into the memory (n / 37 for n = 10^5)."""
    return max(1, min(-(-n // 10), parse_memory(memory) // (_BYTES_PER_LANDMARK * n)))


class NystromPreconditioner:
    """P = F F^T + shift I, where F F^T is the Nystrom approximation of a kernel K.

    F = K[:, S] L^-T with K[S, S] = L L^T for landmarks S; shift = ridge + mean(diag(K - F F^T)).
    What the approximation leaves out is a positive semidefinite matrix; spread evenly it would add
    that mean to the ridge. With the ridge alone P would be too small in every direction that F
    lacks, and eigenvalues of P^-1 (K + ridge I) would reach (what is left out) / ridge. See
    arXiv:2110.02820.

    Landmarks are drawn uniformly, with a seed: they are known before any entry is, so one call
    of `operator.columns` fetches all of them, where greedy choices ask for columns again and again,
    each time a pass over stored tiles. Those that depend on others within rounding are dropped by
    the pivots of a Cholesky factorisation. All is float64; it takes 8 n rank bytes, and about
    2 n rank^2 operations once.

    Args:
      operator: the kernel [n, n].
      ridge: what is added to its diagonal.
      rank: number of landmarks; None takes `default_rank`.
      seed: of the draw.

    Attributes:
      factor: F [n, rank].
      shift: a scalar.

    Raises:
      ValueError: if the rank is not between 1 and n, or the landmarks' kernel or the ridge is zero.

    Example:
      >>> import numpy as np
      >>> from widelimit.scale.operator import DenseOperator
      >>> kernel = np.diag([1.0, 1.0, 4.0, 4.0])
      >>> NystromPreconditioner(DenseOperator(kernel), 0.5, rank=4).solve(np.ones((4, 1)))[-1]
      array([0.222])
    """

    def __init__(
        self, operator: Operator, ridge: float, *, rank: int | None = None, seed: int = 0
    ) -> None:
        n = operator.shape[0]
        rank = default_rank(n) if rank is None else rank
        if not 1 <= rank <= n:
            raise ValueError(f"expected a rank between 1 and {n}, got {rank}")
        landmarks = np.sort(np.random.default_rng(seed).choice(n, rank, replace=False))
        self.factor = nystrom_factor(operator.columns(landmarks), landmarks)
        left = operator.diagonal() - np.einsum("ij,ij->i", self.factor, self.factor)
        self.shift = float(ridge + np.maximum(left, 0.0).mean())
        if not self.shift > 0:
            raise ValueError(
                "expected a positive ridge beside a kernel that its landmarks determine, got "
                f"{ridge}: a ridge of 1e-10 times the mean diagonal would do"
            )

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """The eigenvalues s and eigenvectors V of F^T F."""
        evals, evecs = scipy.linalg.eigh(self.factor.T @ self.factor)
        return np.maximum(evals, 0.0), evecs

    @cached_property
    def _cholesky(self) -> tuple[np.ndarray, bool]:
        inner = self.factor.T @ self.factor
        inner[np.diag_indices_from(inner)] += self.shift
        return scipy.linalg.cho_factor(inner, lower=True, overwrite_a=True)

    def solve(self, b: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """Returns P^-1 b, by Woodbury's formula."""
        inner = scipy.linalg.cho_solve(self._cholesky, self.factor.T @ b)
        return (b - self.factor @ inner) / self.shift

    def inverse_root(self, b: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """Returns P^(-1/2) b, the symmetric root.

        P^(-1/2) = (I - F V d V^T F^T) / sqrt(shift) with d = (1 - sqrt(shift / (s + shift))) / s.
        """
        evals, evecs = self._spectrum
        root = np.sqrt(self.shift / (evals + self.shift))
        # (1 - root) / s, without a difference of nearly equal numbers.
        weights = 1.0 / ((evals + self.shift) * (1.0 + root))
        inner = evecs @ (weights[:, None] * (evecs.T @ (self.factor.T @ b)))
        return (b - self.factor @ inner) / np.sqrt(self.shift)

    def log_determinant(self) -> float:
        """Returns log det P."""
        evals, _ = self._spectrum
        n, rank = self.factor.shape
        return float(np.log(evals + self.shift).sum() + (n - rank) * np.log(self.shift))


def nystrom_factor(columns: np.ndarray, landmarks: np.ndarray) -> Float64[np.ndarray, "n r"]:
    """Returns F [n, r] of K[:, S] K[S, S]^-1 K[S, :] = F F^T, for columns K[:, S].

    Landmarks whose pivots are within rounding of zero are left out.

    Raises:
      ValueError: if all of them are.
    """
    lower, kept = independent(columns[landmarks], resolution(columns))
    factor = np.empty((len(columns), len(kept)))
    step = rows_at_a_time(len(landmarks))
    for start in range(0, len(columns), step):
        rows = slice(start, start + step)
        block = columns[rows][:, kept].astype(np.float64)
        factor[rows] = scipy.linalg.solve_triangular(lower, block.T, lower=True).T
    return factor


def independent(matrix: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Cholesky factor of the rows and columns that are independent, and which.

    Raises:
      ValueError: if there are none.
    """
    matrix = np.array(matrix, np.float64, order="F")
    lowest = 4 * np.sqrt(len(matrix)) * eps * matrix.diagonal().max(initial=0.0)
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(matrix, tol=lowest, lower=1)
    if not (rank and lowest > 0):
        raise ValueError("expected landmarks with positive kernels, got zero or negative ones")
    return np.tril(lower[:rank, :rank]), pivots[:rank] - 1
