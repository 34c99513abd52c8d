"""The iterative solver of ensembles: everything from products with the kernel."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import ArrayLike, Float

from widelimit.gram.sizes import parse_memory
from widelimit.predict.solvers.base import Solver, System
from widelimit.predict.spectral import AtTimes
from widelimit.scale.checkpoint import Location, digest
from widelimit.scale.dynamics import Response, krylov_basis
from widelimit.scale.evidence import Determinant, estimate_determinant
from widelimit.scale.lanczos import BlockLanczos
from widelimit.scale.nystrom_preconditioner import NystromPreconditioner
from widelimit.scale.operator import DenseOperator, Operator
from widelimit.scale.pcg import PCGResult, solve
from widelimit.typing import Bytes

# Columns share a Krylov basis as long as one of so many steps fits into memory.
_STEPS = 100


@dataclass(frozen=True)
class Krylov(Solver):
    """A solver that reads a kernel by its products alone; its state is a `KrylovState`.

    It has everything that an ensemble asks for: solutions by preconditioned conjugate gradients
    (`solve`), functions of eigenvalues by block Lanczos (`dynamics`), and the determinant by
    stochastic Lanczos quadrature (`estimate_determinant`), which is an estimate. On kernels in
    memory it may replace `predict.ConjugateGradients` where a preconditioner or finite times are
    needed; it is not traceable.

    Attributes:
      tol: of residuals of solutions relative to their right hand sides, and of predictions at
        finite times relative to the targets.
      maxiter: largest number of passes over the kernel.
      rank: of the preconditioner; None takes `default_rank`.
      seed: of its landmarks, and of the probes.
      probes: random vectors for the determinant.
      memory: bytes, or text like "4GiB", that a Krylov basis may take.

    Example:
      >>> import numpy as np
      >>> from widelimit import InfiniteEnsemble, stax
      >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> x, y = np.eye(2), np.array([[1.0], [-1.0]])
      >>> ensemble = InfiniteEnsemble(net, x, y, noise=0.1, solver=Krylov(rank=1))
      >>> ensemble.at(3.0).mean(x).shape
      (2, 1)
    """

    tol: float = 1e-8
    maxiter: int = 1000
    rank: int | None = None
    seed: int = 0
    probes: int = 16
    memory: Bytes = "4GiB"
    failure: ClassVar[str] = "indefinite"

    def factorise(self, system: System) -> "KrylovState":
        """Returns the products of the system and its ridge."""
        matrix, ridge = system.host_matrix(), float(system.added())
        matrix[np.diag_indices_from(matrix)] -= ridge
        return KrylovState(DenseOperator(matrix), ridge, self.rank, self.seed)

    def solve(self, state: "KrylovState", b: ArrayLike) -> np.ndarray:
        """Returns (K + ridge I)^-1 b for b [r, c]."""
        return self.solution(state, np.asarray(b, np.float64)).value

    def solution(self, state: "KrylovState", b: Float[np.ndarray, "r c"]) -> PCGResult:
        """Returns the solution with its residuals; that of the targets is kept."""
        told = state.is_targets(b)
        if told and state.solved is not None:
            return state.solved
        result = solve(
            state.operator,
            b,
            ridge=state.ridge,
            preconditioner=state.preconditioner,
            tol=self.tol,
            maxiter=self.maxiter,
            checkpoint=state.location if told else None,
        )
        if told:
            state.solved = result
        return result

    def apply(
        self, state: "KrylovState", function: AtTimes, b: Float[ArrayLike, "times r c"]
    ) -> np.ndarray:
        """Returns f(K + ridge I) b [m, r, c] for b [1 or m, r, c]."""
        columns = np.asarray(b, np.float64)
        if len(columns) > 1:
            each = [self.apply(state, function, columns[i : i + 1]) for i in range(len(columns))]
            return np.stack([result[i] for i, result in enumerate(each)])
        width = max(1, parse_memory(self.memory) // (8 * columns.shape[1] * _STEPS))
        groups = [columns[0, :, i : i + width] for i in range(0, columns.shape[2], width)]
        return np.concatenate([self._apply(state, function, group) for group in groups], axis=-1)

    def log_determinant(self, state: "KrylovState") -> float:
        """Returns an estimate of log det (K + ridge I); see `determinant` for its error."""
        return self.determinant(state).value

    def determinant(self, state: "KrylovState") -> Determinant:
        """Returns the estimate of log det (K + ridge I) with its error, which is kept."""
        if state.determinant is None:
            state.determinant = estimate_determinant(
                state.operator,
                ridge=state.ridge,
                preconditioner=state.preconditioner,
                probes=self.probes,
                seed=self.seed,
            )
        return state.determinant

    def _apply(self, state: "KrylovState", function: AtTimes, b: np.ndarray) -> np.ndarray:
        response = Response(state.basis(b), state.operator, state.ridge)
        return response.reach(function, b, self.tol, self.maxiter).value


@dataclass
class KrylovState:
    """A kernel by its products, and what has been computed from them.

    Attributes:
      operator: the kernel.
      ridge: what is added to its diagonal.
      rank: of the preconditioner.
      seed: of its landmarks.
      location: path or URL where states for the targets are written; None for nowhere.
      targets: digest of the targets, whose solution and Krylov basis are kept.
      solved: the solution for the targets.
      determinant: the estimate of the determinant.
    """

    operator: Operator
    ridge: float
    rank: int | None = None
    seed: int = 0
    location: Location | None = None
    targets: str | None = None
    solved: PCGResult | None = None
    determinant: Determinant | None = None
    _basis: BlockLanczos | None = field(default=None, repr=False)

    @cached_property
    def preconditioner(self) -> NystromPreconditioner:
        """The preconditioner, made when it is first needed: finite times do without."""
        return NystromPreconditioner(self.operator, self.ridge, rank=self.rank, seed=self.seed)

    def is_targets(self, b: np.ndarray) -> bool:
        """Whether these are the targets."""
        return self.targets is not None and digest(np.ascontiguousarray(b)) == self.targets

    def basis(self, b: np.ndarray) -> BlockLanczos:
        """The Krylov basis of b; that of the targets is kept."""
        if not self.is_targets(b):
            return krylov_basis(self.operator, b, None)
        if self._basis is None:
            self._basis = krylov_basis(self.operator, b, self.location)
        return self._basis
