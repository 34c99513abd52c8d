"""Gradient flow of any loss, with momentum, by a solver of differential equations."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import is_concrete, own
from widelimit._samples import check_finite
from widelimit._text import shown
from widelimit.predict.checks import as_targets, check_scalar, test_set_advice
from widelimit.predict.dynamics import Times
from widelimit.predict.equation import Loss, ODEState, Problem, Tolerance, Velocity, integrate
from widelimit.predict.factor import Ridge, TrainKernel, advise_diag_reg
from widelimit.predict.gradient_flow import check_fits
from widelimit.predict.matrices import Axes, Targets, row_shape
from widelimit.predict.precision import result_dtype
from widelimit.predict.selection import check_is_array
from widelimit.typing import KernelArray, Scalar, Scalars, SquareKernel, TargetsLike, TestKernel


class TrainedByOde:
    """The predict_fn of `gradient_descent`; owns the training kernel."""

    def __init__(
        self,
        loss: Loss,
        kernel: KernelArray,
        y_train: KernelArray,
        learning_rate: ArrayLike,
        momentum: ArrayLike | None,
        trace_axes: Axes,
        tolerance: Tolerance,
    ) -> None:
        """Checks the kernel; see `gradient_descent` for the arguments."""
        self._targets = Targets.of(y_train, trace_axes)
        self._targets.check_train_train("k_train_train", kernel)
        self._dtype = result_dtype(kernel)
        ridge = Ridge.of(0.0, False)
        self._kernel = TrainKernel("k_train_train", kernel, ridge, advise_diag_reg).plain()
        self._y, self._learning_rate, self._momentum = y_train, own(learning_rate), own(momentum)
        self._loss, self._tolerance = loss, tolerance

    def __call__(
        self,
        t: Scalars | None = None,
        fx_train_or_state_0: ArrayLike | ODEState | None = 0.0,
        fx_test_0: ArrayLike | None = None,
        k_test_train: TestKernel | None = None,
    ) -> PyTree:
        """Returns the outputs after t steps of gradient descent.

        Args:
          t: finite times in steps, of any shape and in any order, counted from the initial outputs
            or state.
          fx_train_or_state_0: initial outputs on the training set, shaped like the targets or a
            scalar; None counts as 0, and only test outputs are returned. Or an `ODEState`, such as
            an earlier result at one time: training is resumed there.
          fx_test_0: initial outputs on a test set, or a scalar; None for training outputs only.
          k_test_train: kernel between test and training set (t, n, ...); needed with outputs on a
            test set.

        Returns:
          Outputs on the training set, on the test set, or the pair of both; an `ODEState` if one
          was passed. The axes of t come first.

        Raises:
          ModuleNotFoundError: diffrax is not installed; the message names the extra to install.
          ValueError: if t is None or not finite, both initial outputs are None, a kernel is missing
            or of the wrong shape, there is a velocity without momentum, or the equation cannot be
            solved in `max_steps` steps.
        """
        times = _finite_times(t)
        first = fx_train_or_state_0
        start = self._start(first, fx_test_0)
        if start.fx_test is not None:
            if k_test_train is None:
                raise ValueError("expected k_test_train beside outputs on a test set, got None")
            self._targets.check_test_train("k_test_train", k_test_train)
        self._check_shapes(start, k_test_train)
        k_test_train = None if start.fx_test is None else k_test_train
        problem = Problem(
            *(self._kernel, times, self._y, start, k_test_train),
            *(self._learning_rate, self._momentum),
        )
        velocity = Velocity(self._loss, self._targets)
        state = integrate(problem, velocity, self._tolerance, self._dtype)
        if isinstance(first, ODEState):
            return state
        if fx_test_0 is None:
            return state.fx_train
        return state.fx_test if first is None else (state.fx_train, state.fx_test)

    def _start(self, first: PyTree, fx_test_0: ArrayLike | None) -> ODEState:
        """Returns the initial state; only `fx_train` is certain not to be None."""
        if not isinstance(first, ODEState):
            if first is None and fx_test_0 is None:
                raise ValueError(
                    "expected fx_train_or_state_0, fx_test_0 or both, got None for both"
                )
            first = ODEState(first, fx_test_0)
        elif fx_test_0 is not None:
            raise ValueError(
                "expected fx_test_0=None beside an ODEState, which has a field fx_test, got an "
                f"array of shape {jnp.shape(fx_test_0)}"
            )
        velocities = [q for q in (first.qx_train, first.qx_test) if q is not None]
        if velocities and self._momentum is None:
            raise ValueError(
                "expected no velocities qx_train and qx_test without momentum, got an ODEState "
                "that has them"
            )
        if first.qx_test is not None and first.fx_test is None:
            raise ValueError("expected fx_test beside qx_test in an ODEState, got None")
        zero = None if self._momentum is None else 0.0
        return ODEState(
            0.0 if first.fx_train is None else first.fx_train,
            first.fx_test,
            zero if first.qx_train is None else first.qx_train,
            None if first.fx_test is None else zero if first.qx_test is None else first.qx_test,
        )

    def _check_shapes(self, start: ODEState, k_test_train: KernelArray | None) -> None:
        train = self._targets.shape
        test: tuple[int, ...] = ()
        if start.fx_test is not None and k_test_train is not None:
            test = self._targets.full_shape(row_shape(k_test_train))
        shapes = {"fx_train": train, "qx_train": train, "fx_test": test, "qx_test": test}
        for name, shape in shapes.items():
            value = getattr(start, name)
            if value is not None:
                check_fits(name, value, shape)
                check_finite(name, value)


def gradient_descent(
    loss: Loss,
    k_train_train: SquareKernel,
    y_train: TargetsLike,
    learning_rate: ArrayLike = 1.0,
    momentum: ArrayLike | None = None,
    trace_axes: Axes = (-1,),
    *,
    rtol: Scalar = 1e-8,
    atol: Scalar = 1e-8,
    max_steps: SupportsIndex = 2**18,
) -> TrainedByOde:
    """Returns `predict_fn(t, fx_train_or_state_0, fx_test_0, k_test_train)` for any loss.

    Outputs f of a linear or infinitely wide network, trained by gradient descent on `loss(f, y)` in
    the limit of small steps (arXiv:1902.06720), follow

        df_train/dtau = -K_dd grad loss(f_train)
        df_test/dtau = -K_td grad loss(f_train),

    tau = learning_rate t, where t counts steps. With momentum m, as of `optax.sgd`, they have
    velocities q that start at 0, df/dtau = q, tau = sqrt(learning_rate) t, and

        dq/dtau = -K grad loss(f_train) + (m - 1) / sqrt(learning_rate) q.

    The equation is solved by an adaptive explicit Runge-Kutta method (Tsitouras 5(4), of diffrax),
    which steps to each requested time, and takes about as many steps as training by gradient
    descent at the largest stable learning rate. It works in float64, except inside `jax.jit` and on
    values traced by JAX with float64 off: there it works in float32 with tolerances of at least
    1e-6, since diffrax is compiled outside the code that turns float64 on. Gradient flow of a
    convex loss damps errors, so that little accuracy is lost. `gradient_descent_mse` and
    `discrete_gradient_descent_mse` have closed forms for the mean squared error, which are faster
    and exact.

    Times are finite: many losses, such as cross-entropy, have no finite limit, and how far one is
    from it does not follow from velocities. Results have the dtype of `k_train_train`. `predict_fn`
    can be jitted, vmapped and differentiated in reverse mode. On traced values nothing can be
    checked: a solver that gives up, and times that are negative or not finite, then give NaN.

    Args:
      loss: a function `loss(fx, y_train)` of outputs and targets, both in the shape of the targets,
        which returns one number; differentiable by JAX.
      k_train_train: kernel of the training set with itself (n, n, h, h, ...), commonly the NTK.
      y_train: targets (n, h, ..., outputs), for cross-entropy one-hot or probabilities.
      learning_rate: size of a step.
      momentum: fraction of the velocity that a step preserves, between 0 and 1; None is gradient
        flow without inertia.
      trace_axes: the axes of `y_train` that the kernel lacks, along which outputs are independent
        given the inputs.
      rtol: error of a step of the solver relative to outputs and velocities.
      atol: error of a step of the solver where these are small.
      max_steps: largest number of steps of the solver, over all times.

    Raises:
      TypeError: if `loss` is not a function, or `max_steps` is not an int.
      ValueError: if the kernel or `y_train` is not finite, their shapes do not fit, or a number is
        out of range.

    Example:
      Logits of a network that starts from 0, trained on cross-entropy:

      >>> import jax, jax.numpy as jnp
      >>> def cross_entropy(fx, y):
      ...     return -jnp.mean(jnp.sum(jax.nn.log_softmax(fx) * y, axis=-1))
      >>> kernel, labels = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.eye(2)
      >>> predict_fn = gradient_descent(cross_entropy, kernel, labels, learning_rate=0.1)
      >>> jax.nn.softmax(predict_fn(t=jnp.array([0.0, 100.0])))[:, 0, 0]
      Array([0.5   , 0.8982], dtype=float32)
    """
    if not callable(loss):
        raise TypeError(f"expected a function loss(fx, y_train), got {type(loss).__name__}")
    check_is_array("k_train_train", k_train_train)
    y_train = as_targets("y_train", y_train)
    call = "gradient_descent(loss, k_train_train, y_train)(t, 0.0, 0.0, k_test_train)"
    check_scalar("learning_rate", learning_rate, test_set_advice(call))
    if momentum is not None:
        _check_inertia(momentum, learning_rate)
    for name, value in (("rtol", rtol), ("atol", atol)):
        check_scalar(name, value)
        if not 0 < value < 1:
            raise ValueError(f"expected {name} between 0 and 1, got {shown(value)}")
    if isinstance(max_steps, bool) or not hasattr(max_steps, "__index__"):
        raise TypeError(f"expected max_steps to be an int, got {shown(max_steps)}")
    if operator.index(max_steps) < 1:
        raise ValueError(f"expected max_steps of at least 1, got {max_steps}")
    tolerance = Tolerance(float(rtol), float(atol), operator.index(max_steps))
    return TrainedByOde(
        loss, k_train_train, y_train, learning_rate, momentum, trace_axes, tolerance
    )


def _finite_times(t: Scalars | None) -> Times:
    """Returns the times t.

    Raises:
      ValueError: if they are None, or concrete and not finite or negative.
    """
    explanation = (
        "many losses have no finite limit (cross-entropy has none on separable data); "
        "gradient_descent_mse has the limit of the mean squared error"
    )
    if t is None:
        raise ValueError(f"expected finite times t, got None: {explanation}")
    times = Times.of(t, 1.0)
    if is_concrete(t) and np.isposinf(np.asarray(t, np.float64)).any():
        raise ValueError(f"expected finite times t, got {shown(t)}: {explanation}")
    return times


def _check_inertia(momentum: Any, learning_rate: ArrayLike) -> None:
    """Raises ValueError unless concrete numbers make an equation with momentum."""
    check_scalar("momentum", momentum)
    if is_concrete(momentum) and momentum > 1:
        raise ValueError(f"expected momentum of at most 1, got {shown(momentum)}")
    if is_concrete(learning_rate) and learning_rate == 0:
        raise ValueError("expected a learning_rate above 0 with momentum, got 0")
