"""Infinite ensembles on a kernel in a store, by products with it alone."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from widelimit._pytree import pytree, static
from widelimit._text import shown
from widelimit.gram.compute import kernel_fn_of
from widelimit.gram.sizes import DEFAULT_MEMORY
from widelimit.predict import moments
from widelimit.predict.factor import TrainKernel
from widelimit.predict.infinite import InfiniteEnsemble
from widelimit.predict.matrices import Targets
from widelimit.predict.precision import result_dtype
from widelimit.predict.solvers.base import Factorisation, Ridge, Solver, System
from widelimit.scale.checkpoint import digest
from widelimit.scale.evidence import LikelihoodEstimate, likelihood_of
from widelimit.scale.inputs import in_batches
from widelimit.scale.krylov import Krylov, KrylovState
from widelimit.scale.operator import Operator
from widelimit.typing import Inputs, TargetsLike

# Bytes that a row of predictions takes per training sample: kernels and their float64 copies.
_ROW_BYTES = 40


@runtime_checkable
class KernelStore(Protocol):
    """What an ensemble reads of a store."""

    network: Any
    x: Any
    get: tuple[str, ...]
    dtype: Any
    path: Any

    @property
    def count(self) -> int:
        """Number of training samples."""

    def operator(self, get: str = "ntk", backend: str | None = None) -> Operator:
        """Returns one of the kernels by its products."""


@pytree
class StoredKernel:
    """A kernel matrix that is known by its products, to the right of `@`."""

    operator: Operator = static()

    def __rmatmul__(self, left: ArrayLike) -> jax.Array:
        """Returns left [m, t, n] times the matrix."""
        rows = np.asarray(left, np.float64)
        columns = rows.reshape(-1, rows.shape[-1]).T
        product = self.operator.matmat(np.ascontiguousarray(columns))
        return jnp.asarray(product.T.reshape(rows.shape))


class StoredTrainKernel(TrainKernel):
    """The regularised kernel that drives a stored ensemble, without the matrix."""

    def __init__(self, state: KrylovState, solver: Krylov, ridge: Ridge, eps: float) -> None:
        """Keeps the state of the solver."""
        self.state, self.solver, self._solver = state, solver, solver
        self._system = System(None, ridge, eps, Factorisation(state, solver))

    def _by(self, solver: Solver) -> System:
        """The system, which one solver solves whatever is asked for."""
        del solver
        return self._system


class StoredEnsemble(InfiniteEnsemble):
    """An infinite ensemble with training kernels in a store, as `InfiniteEnsemble(store, y)` makes.

    Everything is that of `InfiniteEnsemble`, computed from products with the kernels instead of
    factors: means, and covariances of a moderate number of test points, by solutions to a tolerance
    (`Krylov.tol`, relative residuals); finite times by a Krylov basis to an estimated error; the
    marginal likelihood by random probes, with a standard error. The solution and the Krylov basis
    for y are kept in the store, step by step: another process goes on where one was killed. Nothing
    may be traced by JAX.

    Args:
      store: the kernels of the training inputs: "nngp", and "ntk" for gradient descent.
      y: training targets [n, outputs].
      inference: "gradient_descent" or "bayes".
      learning_rate: the step.
      noise: standard deviation of the noise of observations, in units of y.
      jitter: as for `InfiniteEnsemble`, from the dtype of the store.
      solver: "pcg" (or None), or a `Krylov` of other settings.
      backend: of the operators of the store; None is the choice of the store.
      memory: bytes that kernels with test inputs may take.

    Raises:
      ValueError: as `InfiniteEnsemble`; or if the store lacks a kernel.
      TypeError: if the solver is something else.
    """

    _train_kernel: StoredTrainKernel
    _nngp: StoredKernel  # type: ignore[assignment]

    def __init__(
        self,
        store: KernelStore,
        y: TargetsLike,
        *,
        solver: str | Krylov | None = "pcg",
        inference: str = "gradient_descent",
        learning_rate: ArrayLike = 1.0,
        noise: ArrayLike = 0.0,
        jitter: ArrayLike | None = None,
        backend: str | None = None,
        memory: str | float | int = DEFAULT_MEMORY,
    ) -> None:
        """Checks the arguments; nothing is computed before it is asked for."""
        krylov = _as_krylov(solver)
        self._kernel_fn = kernel_fn_of(store.network)
        self._start(store.x, y, inference, learning_rate, noise, jitter, krylov, memory)
        for name in self._kernel_names:
            if name not in store.get:
                raise ValueError(
                    f"expected a store with the kernels {tuple(self._kernel_names)} for "
                    f"inference={inference!r}, got one with {tuple(store.get)}"
                )
        targets = Targets.of(self._y, (-1,))._replace(name="y")
        if targets.kept_shape != (store.count,):
            raise ValueError(
                f"expected y of shape ({store.count}, outputs) for the samples of the store, got "
                f"{self._y.shape}"
            )
        operators = {name: store.operator(name, backend) for name in self._kernel_names}
        driving = operators[self._kernel_names[-1]]
        self._nngp = StoredKernel(operators["nngp"])
        bayes, sample = inference == "bayes", driving.columns(np.arange(1))
        self._layout = moments.Layout(bayes, targets, result_dtype(sample))
        ridge = self._ridge(jitter, sample, store.count)
        added = float(ridge.relative * driving.diagonal().mean() + ridge.absolute)
        state = KrylovState(driving, added, krylov.rank, krylov.seed, store.path)
        state.targets = digest(self._aims())
        eps = np.finfo(sample.dtype).eps
        self._train_kernel = StoredTrainKernel(state, krylov, ridge, float(eps))

    def mean(self, x: Inputs) -> Array:
        """The average network's outputs at x, [t, outputs], some inputs at a time.

        Raises:
          ValueError: if the kernel is indefinite, or solutions do not converge.
        """
        batches = in_batches(x, self._memory // (_ROW_BYTES * len(self._y)))
        parts = [super(StoredEnsemble, self).mean(batch) for batch in batches]
        return jnp.concatenate(parts, axis=len(self._times.shape))

    def estimate_log_marginal_likelihood(self) -> LikelihoodEstimate:
        """The estimate that `log_marginal_likelihood` returns, with its standard error.

        Raises:
          ValueError: as `log_marginal_likelihood`.
        """
        self._require_density()
        state, solver = self._train_kernel.state, self._train_kernel.solver
        aims = self._aims()
        return likelihood_of(aims, solver.solution(state, aims), solver.determinant(state))

    def _aims(self) -> np.ndarray:
        return np.ascontiguousarray(np.asarray(self._y, np.float64))


def _as_krylov(solver: object) -> Krylov:
    if solver is None or (isinstance(solver, str) and solver == "pcg"):
        return Krylov()
    if not isinstance(solver, Krylov):
        raise TypeError(f"expected solver 'pcg' or a scale.Krylov, got {shown(solver)}")
    return dataclasses.replace(solver)
