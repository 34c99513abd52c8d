"""The differential equation of outputs under a loss, and its solution by diffrax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from widelimit._pytree import is_concrete, pytree
from widelimit.predict.dynamics import Times
from widelimit.predict.factor import System
from widelimit.predict.matrices import Targets, row_shape, to_matrix
from widelimit.predict.precision import in_float64
from widelimit.tracing.traced import Snapshot
from widelimit.tracing.varying import varying_axes
from widelimit.typing import Arrays

Loss = Callable[[jax.Array, jax.Array], jax.Array]

# Smallest tolerances in float32, whose results have an error of 6e-8 anyway.
_TOLERANCE_32 = 1e-6
# Steps that reverse mode stores of a path; the others are computed again.
_CHECKPOINTS = 64


@pytree
class ODEState:
    """Outputs during training and their velocities, at one time or with a leading axis of times.

    Attributes:
      fx_train: outputs on the training set; None counts as 0.
      fx_test: outputs on a test set; None if there is none.
      qx_train: velocity of `fx_train` with respect to sqrt(learning_rate) t; None without
        momentum, or 0.
      qx_test: velocity of `fx_test`.
    """

    fx_train: Arrays = None
    fx_test: Arrays = None
    qx_train: Arrays = None
    qx_test: Arrays = None


class Tolerance(NamedTuple):
    """The accuracy of the solution, and the largest number of steps."""

    rtol: float
    atol: float
    max_steps: int


class Velocity:
    """The right-hand side of the equation; equal for losses that do the same, so compiled once.

    Attributes:
      targets: layout of the training targets.
    """

    def __init__(self, loss: Loss, targets: Targets) -> None:
        self._loss, self.targets = Snapshot(loss, targets.shape, targets.shape), targets

    def __hash__(self) -> int:
        return hash((self._loss, self.targets))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Velocity):
            return False
        return self._loss == other._loss and self.targets == other.targets

    def __call__(self, tau: Any, state: ODEState, args: PyTree) -> ODEState:
        """Returns the velocity of a state; it does not depend on time."""
        del tau
        k_dd, k_td, y, friction = args
        gradient = self.targets.to_matrix(jax.grad(self._loss)(state.fx_train, y))
        train = -self.targets.from_matrix(k_dd @ gradient, self.targets.kept_shape)
        test = None
        if state.fx_test is not None:
            rows = tuple(state.fx_test.shape[axis] for axis in self.targets.kept)
            test = -self.targets.from_matrix(to_matrix("k_test_train", k_td) @ gradient, rows)
        if friction is None:
            return ODEState(train, test)
        return ODEState(
            state.qx_train,
            state.qx_test,
            train - friction * state.qx_train,
            None if test is None else test - friction * state.qx_test,
        )

    def check_loss(self, fx: jax.Array, y: jax.Array) -> None:
        """Raises ValueError unless the loss is one real number."""
        out = jax.eval_shape(self._loss, fx, y)
        leaf = out if hasattr(out, "shape") else None
        if leaf is None or leaf.shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
            got = type(out).__name__ if leaf is None else f"{leaf.dtype} of shape {leaf.shape}"
            raise ValueError(f"expected loss(fx, y_train) to be one real number, got {got}")


class Problem(NamedTuple):
    """The arrays that training depends on.

    Attributes:
      kernel: train-train kernel.
      times: training times.
      y: targets.
      start: initial state.
      k_test_train: test-train kernel, None without a test set.
      learning_rate: size of a step.
      momentum: None for gradient flow without inertia.
    """

    kernel: System
    times: Times
    y: Any
    start: ODEState
    k_test_train: Any
    learning_rate: Any
    momentum: Any


def integrate(
    problem: Problem, velocity: Velocity, tolerance: Tolerance, dtype: jnp.dtype
) -> ODEState:
    """Returns the states at all times, in the dtype of results."""
    # Inside a user's jit everything computed is traced.
    now = is_concrete(problem) and is_concrete(jnp.zeros(()))
    if not now and jnp.result_type(float) != jnp.float64:
        tolerance = tolerance._replace(
            rtol=max(tolerance.rtol, _TOLERANCE_32), atol=max(tolerance.atol, _TOLERANCE_32)
        )
        problem = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), problem)
        return _integrated(problem, velocity=velocity, tolerance=tolerance, dtype=dtype)
    return in_float64(_integrated)(problem, velocity=velocity, tolerance=tolerance, dtype=dtype)


def _integrated(
    problem: Problem, *, velocity: Velocity, tolerance: Tolerance, dtype: jnp.dtype
) -> ODEState:
    kernel, times, y, start, k_test_train, learning_rate, momentum = problem
    targets = velocity.targets
    test = () if k_test_train is None else targets.full_shape(row_shape(k_test_train))
    shapes = ODEState(targets.shape, test, targets.shape, test)
    names = [field.name for field in dataclasses.fields(start)]
    parts = {name: getattr(start, name) for name in names}
    first = ODEState(
        **{
            name: None if value is None else jnp.broadcast_to(value, getattr(shapes, name))
            for name, value in parts.items()
        }
    )
    velocity.check_loss(first.fx_train, y)
    steps = times.steps.reshape(-1)
    if not steps.size:
        states = jax.tree.map(lambda value: jnp.zeros((0, *value.shape)), first)
    else:
        rate = learning_rate if momentum is None else jnp.sqrt(learning_rate)
        friction = None if momentum is None else (1 - momentum) / rate
        args = kernel.matrix(), k_test_train, y, friction
        states = _integrate(velocity, rate * steps, first, args, tolerance)
    return jax.tree.map(lambda value: times.unflatten(value).astype(dtype), states)


def _integrate(
    velocity: Velocity, tau: jax.Array, first: ODEState, args: PyTree, tolerance: Tolerance
) -> ODEState:
    """Returns the states at times tau [m], in their order.

    Raises:
      ValueError: if concrete states cannot be reached in `max_steps`.
      NotImplementedError: inside `jax.shard_map` with its default check.
    """
    try:
        import diffrax  # here, since it is an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'predict.gradient_descent needs diffrax; install it with: pip install "widelimit[ode]"',
            name=error.name,
        ) from error
    finite = jnp.isfinite(tau) & (tau >= 0)
    order = jnp.argsort(jnp.where(finite, tau, 0.0))
    sorted_tau = jnp.where(finite, tau, 0.0)[order]
    adaptive = diffrax.PIDController(rtol=tolerance.rtol, atol=tolerance.atol)
    try:
        solution = diffrax.diffeqsolve(
            *(diffrax.ODETerm(velocity), diffrax.Tsit5(), 0.0, sorted_tau[-1], None, first, args),
            saveat=diffrax.SaveAt(ts=sorted_tau),
            stepsize_controller=diffrax.ClipStepSizeController(adaptive, step_ts=sorted_tau),
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=_CHECKPOINTS),
            max_steps=tolerance.max_steps,
            throw=False,
        )
    except TypeError as error:
        if not varying_axes((tau, first, args)):
            raise
        raise NotImplementedError(
            "expected jax.shard_map(..., check_vma=False) around predict.gradient_descent, got the "
            "default check, which the loops of diffrax do not pass"
        ) from error
    succeeded = solution.result == diffrax.RESULTS.successful
    if is_concrete(succeeded) and not bool(succeeded):
        raise ValueError(
            f"expected to reach t in {tolerance.max_steps} steps of the solver, got no solution: "
            "use a larger max_steps, larger rtol and atol, or check that the loss is smooth and "
            "finite"
        )
    places = jnp.argsort(order)

    def in_order(value: jax.Array) -> jax.Array:
        reached = (finite & succeeded).reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.where(reached, value[places], jnp.nan)

    return jax.tree.map(in_order, solution.ys)
