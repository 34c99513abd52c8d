"""Gradient descent of the mean squared error in steps of a finite size, in closed form."""

from typing import Any

from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import is_concrete, own
from widelimit._text import shown
from widelimit.gram.sizes import DEFAULT_MEMORY, parse_memory
from widelimit.predict.checks import as_targets, check_scalar, test_set_advice
from widelimit.predict.ensemble import EnsemblePrediction
from widelimit.predict.factor import Ridge
from widelimit.predict.gradient_flow import TrainedOutputs
from widelimit.predict.matrices import Axes
from widelimit.predict.selection import check_is_array
from widelimit.predict.stepping import Descent
from widelimit.typing import Bytes, Inputs, NetworkLike, SquareKernel, TargetsLike


def discrete_gradient_descent_mse(
    k_train_train: SquareKernel,
    y_train: TargetsLike,
    learning_rate: ArrayLike = 1.0,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    weight_decay: ArrayLike = 0.0,
    trace_axes: Axes = (-1,),
) -> TrainedOutputs:
    """Returns `predict_fn(t, fx_train_0, fx_test_0, k_test_train)`: outputs after t steps.

    The parameters of a linear (or infinitely wide) network are trained from theta(0) by full-batch
    gradient descent, as by `optax.sgd` and `torch.optim.SGD`: with g the gradient of

        0.5 mean((f - y)^2) + weight_decay / 2 |theta - theta(0)|^2

    over all N entries of `y_train`, one step is v = momentum v + g, theta = theta - learning_rate v
    from v = 0, and with `nesterov` theta = theta - learning_rate (g + momentum v). Its outputs are

        f_train(t) = f_train(0) + K_dd Kr^-1 (1 - P) (y - f_train(0))
        f_test(t) = f_test(0) + K_td Kr^-1 (1 - P) (y - f_train(0)),

    Kr = K + N weight_decay I, where P is a polynomial of degree t in learning_rate Kr / N:
    (1 - learning_rate Kr / N)^t without momentum. These outputs agree with a run up to rounding
    errors, after any number of steps, at the cost of one eigendecomposition. For small learning
    rates, at fixed learning_rate t, they tend to those of `gradient_descent_mse`; with momentum to
    those at its time t / (1 - momentum). Steps that are too long diverge as they do in a run: see
    `max_learning_rate`.

    Weight decay pulls towards the initial parameters, not towards zero: only then does training
    depend on kernels alone. Eigenvalues of Kr within rounding of zero count as zero: along them
    nothing moves. Systems are solved in float64; results have the dtype of `k_train_train`. Kernels
    and targets may be traced by JAX. Then nothing can be checked: a failed factorisation gives NaN,
    as do t that are not whole numbers of steps up to 2^53, and infinitely many steps that diverge.

    `predict_fn` takes whole numbers t of steps, of any shape; None or `jnp.inf` is the limit of
    infinitely many. Its other arguments and its result are those of `gradient_descent_mse`.

    Args:
      k_train_train: kernel of the training set with itself (n, n, h, h, ...), commonly the NTK, of
        an infinite network or of a finite one (`empirical_ntk_fn`), whose own outputs then
        are `fx_train_0` and `fx_test_0`.
      y_train: targets (n, h, ..., outputs).
      learning_rate: the size of a step.
      momentum: fraction of the velocity that a step preserves, at least 0 and below 1.
      nesterov: whether the gradient is taken after the step of the momentum (Nesterov).
      weight_decay: strength of the pull towards the initial parameters, a term of the loss.
      trace_axes: the axes of `y_train` that the kernel lacks, along which outputs are independent
        given the inputs.

    Raises:
      TypeError: if `nesterov` is not a bool.
      ValueError: if the kernel or `y_train` is not finite, their shapes do not fit,
        `learning_rate` or `weight_decay` is negative, or `momentum` is not in [0, 1). `predict_fn`
        raises it for indefinite kernels, for t that are not whole numbers, and for infinitely many
        steps that diverge.

    Example:
      >>> import jax.numpy as jnp
      >>> predict_fn = discrete_gradient_descent_mse(2 * jnp.eye(2), jnp.ones((2, 1)), 0.5)
      >>> predict_fn(t=jnp.array([0, 1, 2]))[:, 0, 0]  # each step halves the residual
      Array([0.  , 0.5 , 0.75], dtype=float32)
    """
    check_is_array("k_train_train", k_train_train)
    targets = as_targets("y_train", y_train)
    call = "discrete_gradient_descent_mse(k_train_train, y_train)(t, 0.0, 0.0, k_test_train)"
    descent, ridge = _optimiser(learning_rate, momentum, nesterov, weight_decay, targets.size, call)
    return TrainedOutputs(k_train_train, targets, learning_rate, ridge, trace_axes, descent)


def discrete_gradient_descent_mse_ensemble(
    kernel_fn: NetworkLike,
    x_train: Inputs,
    y_train: TargetsLike,
    learning_rate: ArrayLike = 1.0,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    weight_decay: ArrayLike = 0.0,
    trace_axes: Axes = (-1,),
    *,
    memory: Bytes = DEFAULT_MEMORY,
    **kernel_kwargs: PyTree,
) -> EnsemblePrediction:
    """Returns `predict_fn(t, x_test, get, compute_cov)`: infinite ensembles after t steps.

    The networks of `gradient_descent_mse_ensemble`, trained by the optimiser of
    `discrete_gradient_descent_mse` instead of gradient flow. Initial outputs have mean zero and the
    covariance k of the prior: the NNGP kernel for "nngp" and "ntk", the NTK for "ntkgp". With
    A = K_td Kr^-1 (1 - P), Kr and P as there, on a test set the mean is A y and the covariance
    k_tt + A k_dd A^T - A k_dt - k_td A^T. On the training set, read d for t.

    Weight decay pulls the parameters and adds no noise to the prior, unlike `diag_reg` of
    `gradient_descent_mse_ensemble`. `predict_fn` takes whole numbers t of steps; None or `jnp.inf`
    is the limit of infinitely many, through the eigendecomposition. Its other arguments are those
    of `gradient_descent_mse_ensemble`.

    Args:
      kernel_fn: a function `kernel_fn(x1, x2, get, **kwargs)` of kernels (n1, n2, h1, h2, ...),
        such as that of a network.
      x_train: training inputs.
      y_train: targets (n, h, ..., outputs).
      learning_rate: the size of a step.
      momentum: fraction of the velocity that a step preserves, at least 0 and below 1.
      nesterov: whether the gradient is taken after the step of the momentum (Nesterov).
      weight_decay: strength of the pull towards the initial parameters.
      trace_axes: the axes of `y_train` that the kernel lacks.
      memory: bytes, or text like "4GiB", for computing kernels, beside the inputs and the kernels
        themselves: larger kernels are computed in tiles, see `wl.gram`. Traced inputs are computed
        in one call.
      **kernel_kwargs: keywords of `kernel_fn` for the training set.

    Raises:
      TypeError: if `nesterov` is not a bool, or `kernel_fn` is not a kernel function.
      ValueError: if `x_train` or `y_train` is not finite, `learning_rate` or `weight_decay` is
        negative, or `momentum` is not in [0, 1). `predict_fn` raises it for indefinite kernels, for
        t that are not whole numbers, and for infinitely many steps that diverge.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import predict, stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> x, y = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0], [-1.0]])
      >>> predict_fn = predict.discrete_gradient_descent_mse_ensemble(kernel_fn, x, y, 1.0, 0.9)
      >>> mean, cov = predict_fn(t=100, x_test=x, get="ntk", compute_cov=True)
      >>> mean.shape, cov.shape
      ((2, 1), (2, 2))
    """
    targets = as_targets("y_train", y_train)
    call = "discrete_gradient_descent_mse_ensemble(kernel_fn, x_train, y_train)(t, x_test)"
    descent, ridge = _optimiser(learning_rate, momentum, nesterov, weight_decay, targets.size, call)
    return EnsemblePrediction(
        *(kernel_fn, x_train, targets, learning_rate, ridge, trace_axes),
        *(parse_memory(memory), kernel_kwargs, descent),
    )


def _optimiser(
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    nesterov: object,
    weight_decay: ArrayLike,
    size: int,
    call: str,
) -> tuple[Descent, Ridge]:
    """Returns the optimiser, and its weight decay as a ridge of the kernel, for `size` targets.

    Errors for an array passed in place of a number advise `call` instead.
    """
    check_scalar("learning_rate", learning_rate, test_set_advice(call))
    check_momentum(momentum)
    check_scalar("weight_decay", weight_decay)
    if not isinstance(nesterov, bool):
        raise TypeError(f"expected nesterov to be True or False, got {shown(nesterov)}")
    return Descent(own(momentum), float(nesterov)), Ridge(0.0, size * weight_decay)


def check_momentum(momentum: Any) -> None:
    """Raises unless a concrete momentum is a number of at least 0 and below 1."""
    check_scalar("momentum", momentum)
    if is_concrete(momentum) and not momentum < 1:
        raise ValueError(f"expected momentum below 1, got {shown(momentum)}")
