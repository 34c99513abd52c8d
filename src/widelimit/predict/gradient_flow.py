"""Gradient flow of the mean squared error in closed form, from initial outputs."""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import own
from widelimit.predict.checks import as_targets, check_real, check_scalar, test_set_advice
from widelimit.predict.dynamics import Times
from widelimit.predict.factor import Ridge, System, TrainKernel, remedy
from widelimit.predict.matrices import Axes, Targets, row_shape, to_matrix
from widelimit.predict.precision import in_float64, result_dtype
from widelimit.predict.selection import check_is_array
from widelimit.predict.stepping import Descent
from widelimit.typing import KernelArray, Scalars, SquareKernel, TargetsLike, TestKernel


class TrainedOutputs:
    """The predict_fn of `gradient_descent_mse`; owns the training kernel and its factors."""

    def __init__(
        self,
        kernel: KernelArray,
        y_train: KernelArray,
        learning_rate: ArrayLike,
        ridge: Ridge,
        trace_axes: Axes,
        descent: Descent | None = None,
    ) -> None:
        """Checks the kernel; it is factorised at first use.

        Args:
          kernel: train-train kernel.
          y_train: targets.
          learning_rate: size of a step.
          ridge: the ridge to add to the diagonal of the kernel.
          trace_axes: the axes of the targets that the kernel lacks.
          descent: the optimiser, None for gradient flow.

        Raises:
          ValueError: a kernel that does not fit the targets, or is not finite.
        """
        self._targets = Targets.of(y_train, trace_axes)
        self._targets.check_train_train("k_train_train", kernel)
        self._dtype = result_dtype(kernel)
        self._y, self._learning_rate, self._descent = y_train, own(learning_rate), descent
        size = None if descent is None else y_train.size
        self._kernel = TrainKernel("k_train_train", kernel, ridge, remedy(size))

    def __call__(
        self,
        t: Scalars | None = None,
        fx_train_0: ArrayLike | None = 0.0,
        fx_test_0: ArrayLike | None = None,
        k_test_train: TestKernel | None = None,
    ) -> PyTree:
        """Returns the outputs after t steps of gradient descent.

        Args:
          t: times in steps, of any shape; None is infinite time by Cholesky, `jnp.inf` infinite
            time through the eigenbasis (they agree up to rounding).
          fx_train_0: initial outputs on the training set, shaped like the targets or a scalar;
            None counts as 0, and only test outputs are returned.
          fx_test_0: initial outputs on a test set, or a scalar; None for training outputs only.
          k_test_train: kernel between test and training set (t, n, ...); needed with `fx_test_0`.

        Returns:
          Outputs on the training set, on the test set, or the pair of both; the axes of t come
          first.

        Raises:
          ValueError: if both initial outputs are None, a kernel is missing or of the wrong shape,
            a concrete t is negative, or the concrete training kernel is indefinite; for steps
            of a finite size also if t is not whole, or infinitely many steps diverge.

        Warns:
          RuntimeWarning: if the concrete training kernel is singular by rounding (t=None).
        """
        if fx_train_0 is None and fx_test_0 is None:
            raise ValueError("expected fx_train_0, fx_test_0 or both, got None for both")
        if fx_test_0 is not None and k_test_train is None:
            raise ValueError("expected k_test_train beside fx_test_0, got None")
        times = Times.of(t, self._learning_rate, self._descent)
        initial = 0.0 if fx_train_0 is None else fx_train_0
        check_fits("fx_train_0", initial, self._targets.shape)
        static = {"targets": self._targets, "dtype": self._dtype}
        train, test = None, None
        if fx_train_0 is not None and times.steps is None:
            train = jnp.asarray(self._y).astype(self._dtype)
        elif fx_train_0 is not None:
            train = _train(self._kernel.spectral(), times, self._y, initial, **static)
        if fx_test_0 is not None:
            self._targets.check_test_train("k_test_train", k_test_train)
            assert k_test_train is not None
            shape = self._targets.full_shape(row_shape(k_test_train))
            check_fits("fx_test_0", fx_test_0, shape)
            system = times.factorise(self._kernel)
            arrays = (system, times, self._y, initial, fx_test_0, k_test_train)
            test = _test(*arrays, **static)
        return test if train is None else train if test is None else (train, test)


@in_float64
def _train(
    system: System,
    times: Times,
    y: jax.Array,
    fx_train_0: jax.Array,
    *,
    targets: Targets,
    dtype: jnp.dtype,
) -> jax.Array:
    """Returns y + E (f_train(0) - y)."""
    dynamics = times.progressing(system, y.size)
    aims = targets.to_matrix(y)
    start = targets.to_matrix(jnp.broadcast_to(fx_train_0, y.shape))
    outputs = targets.from_matrix(aims[None] + dynamics.decay(start - aims), targets.kept_shape)
    return times.unflatten(outputs).astype(dtype)


@in_float64
def _test(
    system: System,
    times: Times,
    y: jax.Array,
    fx_train_0: jax.Array,
    fx_test_0: jax.Array,
    k_test_train: jax.Array,
    *,
    targets: Targets,
    dtype: jnp.dtype,
) -> jax.Array:
    """Returns f_test(0) + K_td Kr^-1 (1 - E) (y - f_train(0))."""
    rows = row_shape(k_test_train)
    residual = targets.to_matrix(y - jnp.broadcast_to(fx_train_0, y.shape))
    driving = to_matrix("k_test_train", k_test_train)
    learnt = driving @ times.dynamics(system, y.size).response(residual)
    start = jnp.broadcast_to(fx_test_0, targets.full_shape(rows))
    return times.unflatten(start[None] + targets.from_matrix(learnt, rows)).astype(dtype)


def gradient_descent_mse(
    k_train_train: SquareKernel,
    y_train: TargetsLike,
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
) -> TrainedOutputs:
    """Returns `predict_fn(t, fx_train_0, fx_test_0, k_test_train)`: outputs during training.

    The loss is 0.5 mean((f - y)^2) over all N entries of `y_train`, trained by gradient descent in
    the limit of small steps (arXiv:1902.06720). With Kr = K + ridge I and
    E = exp(-Kr learning_rate t / N),

        f_train(t) = y + E (f_train(0) - y)
        f_test(t) = f_test(0) + K_td Kr^-1 (1 - E) (y - f_train(0)),

    and at t=None f_train = y, E = 0. Eigenvalues of Kr within rounding of zero count as zero:
    along them nothing moves, at any time. At t=None the result is then the limit of a vanishing
    ridge, with a RuntimeWarning; see `gp_inference`. Systems are solved in float64; results have
    the dtype of `k_train_train`. Kernels and targets may be traced by JAX. Then nothing can be
    checked, and a failed factorisation, also of a singular kernel, gives NaN.

    Args:
      k_train_train: kernel of the training set with itself (n, n, h, h, ...), commonly the NTK.
      y_train: targets (n, h, ..., outputs).
      learning_rate: size of a step: the time is learning_rate t.
      diag_reg: the ridge, in units of the mean diagonal of K.
      diag_reg_absolute_scale: whether `diag_reg` is the ridge itself.
      trace_axes: the axes of `y_train` that the kernel lacks, along which outputs are independent
        given the inputs.

    Raises:
      ValueError: if the kernel or `y_train` is not finite, their shapes do not fit, or
        `learning_rate` or `diag_reg` is negative or not a single number. `predict_fn` raises it for
        indefinite kernels; the error gives the smallest eigenvalue and a ridge that is large
        enough.

    Example:
      >>> import jax.numpy as jnp
      >>> predict_fn = gradient_descent_mse(2 * jnp.eye(2), jnp.ones((2, 1)))
      >>> predict_fn(t=jnp.array([0.0, 1.0]))[:, 0, 0]
      Array([0.    , 0.6321206], dtype=float32)
    """
    check_is_array("k_train_train", k_train_train)
    y_train = as_targets("y_train", y_train)
    call = "gradient_descent_mse(k_train_train, y_train)(fx_test_0=0.0, k_test_train=...)"
    check_scalar("learning_rate", learning_rate, test_set_advice(call))
    ridge = Ridge.of(diag_reg, diag_reg_absolute_scale, test_set_advice(call))
    return TrainedOutputs(k_train_train, y_train, learning_rate, ridge, trace_axes)


def check_fits(name: str, initial: ArrayLike, shape: tuple[int, ...]) -> None:
    """Raises unless outputs are real, and a scalar or of `shape` up to axes of size 1."""
    check_real(name, initial)
    have = tuple(jnp.shape(initial))
    same_rank = len(have) == len(shape)
    if have and not (same_rank and all(h in (1, w) for h, w in zip(have, shape, strict=True))):
        raise ValueError(f"expected {name} to be a scalar or of shape {shape}, got {have}")
