"""Infinite ensembles of networks trained by gradient descent, from a kernel function and data."""

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import is_concrete, own, same_values
from widelimit._text import shown
from widelimit.gram.compute import kernel_fn_of, kernels_between, unwrapped
from widelimit.gram.sizes import DEFAULT_MEMORY, parse_memory
from widelimit.kernel.get import KERNELS, as_asked, parse_get
from widelimit.predict.checks import (
    as_flag,
    as_targets,
    check_finite_inputs,
    check_scalar,
    test_set_advice,
)
from widelimit.predict.dynamics import Times
from widelimit.predict.factor import Ridge, System, TrainKernel, remedy
from widelimit.predict.matrices import (
    Axes,
    Targets,
    check_test_test,
    from_matrix,
    to_matrix,
)
from widelimit.predict.posterior import Gaussian, Prediction, needed_train_kernels, predict_test
from widelimit.predict.precision import in_float64, result_dtype
from widelimit.predict.selection import (
    DRIVING_KERNEL,
    MODES,
    is_one_kernel,
    pick,
    prior_kernel,
)
from widelimit.predict.stepping import Descent
from widelimit.typing import (
    Bytes,
    Get,
    Inputs,
    KernelArray,
    KernelFunction,
    Keywords,
    NetworkLike,
    Scalars,
    TargetsLike,
)


def call_kernel(
    kernel_fn: KernelFunction,
    x1: PyTree,
    x2: PyTree,
    names: Sequence[str],
    memory: int,
    kwargs: Keywords,
    apart: bool = False,
) -> dict[str, KernelArray]:
    """Returns the named kernels between two sets of inputs, computed in tiles that fit memory.

    Raises:
      ValueError: if one is missing; or if `apart` asks for separate kernels, and `kernel_fn`
        returns a single array.
    """
    get = names[0] if len(names) == 1 else tuple(names)
    kernels = kernels_between(kernel_fn, x1, x2, get, memory, kwargs)
    if apart and len(names) > 1 and is_one_kernel(kernels):
        raise ValueError(
            f"expected the result of kernel_fn for get={get} to hold both kernels, since the "
            "covariance of trained networks needs both, got a single array"
        )
    return {name: pick(kernels, name, "the result of kernel_fn", name) for name in names}


class EnsemblePrediction:
    """The predict_fn of `gradient_descent_mse_ensemble`; owns training kernels and factors."""

    def __init__(
        self,
        kernel_fn: NetworkLike,
        x_train: Inputs,
        y_train: KernelArray,
        learning_rate: ArrayLike,
        ridge: Ridge,
        trace_axes: Axes,
        memory: int,
        kernel_kwargs: Keywords,
        descent: Descent | None = None,
    ) -> None:
        """Stores the arguments; kernels are computed and factorised at first use.

        Raises:
          TypeError: if `kernel_fn` is not a kernel function.
          ValueError: if inputs are not finite where they are not masked.
        """
        kernel_fn = kernel_fn_of(kernel_fn)
        check_finite_inputs("x_train", x_train, unwrapped(kernel_fn, kernel_kwargs)[1])
        self._kernel_fn, self._x, self._y = kernel_fn, own(x_train), y_train
        self._learning_rate, self._descent = own(learning_rate), descent
        self._ridge, self._kwargs = ridge, own(kernel_kwargs)
        self._targets, self._memory = Targets.of(y_train, trace_axes), memory
        self._kernels: dict[str, KernelArray] = {}
        self._driving_kernels: dict[str, TrainKernel] = {}

    def __call__(
        self,
        t: Scalars | None = None,
        x_test: Inputs = None,
        get: Get = None,
        compute_cov: bool = False,
        **kernel_kwargs: PyTree,
    ) -> PyTree:
        """Returns mean and covariance of the outputs of the ensemble after t steps.

        Args:
          t: times in steps, of any shape; None is infinite time by Cholesky, `jnp.inf` infinite
            time through the eigenbasis (they agree up to rounding).
          x_test: test inputs; None means the training set.
          get: "nngp" (only the last layer is trained; at t=None Bayesian inference), "ntk" (all
            layers are trained), "ntkgp" (a prior whose covariance is the NTK, trained by it), or a
            tuple of these; None means ("nngp", "ntk").
          compute_cov: whether to return `Gaussian(mean, covariance)` rather than the mean.
          **kernel_kwargs: keywords of `kernel_fn` for the test set; the training set must have
            the same keywords. A pair of arrays has one array per input, and is paired anew
            between test and training set; any other value must be the same for both.

        Returns:
          For one mode the mean or a `Gaussian`; for a tuple a namedtuple with one field per mode.
          The axes of t come first in means and covariances.

        Raises:
          ValueError: if a mode is unknown, a concrete t is negative, keywords do not fit those of
            the training set, shapes do not fit, or a concrete training kernel is not finite or
            indefinite.

        Warns:
          RuntimeWarning: if a concrete training kernel is singular by rounding (t=None).
        """
        modes, compute_cov = parse_get(get, MODES, KERNELS), as_flag("compute_cov", compute_cov)
        times = Times.of(t, self._learning_rate, self._descent)
        if x_test is None:
            # At infinite time the covariance is zero.
            moved = compute_cov and times.steps is not None
            k_dd = self._train_kernels(_needed(modes, moved), _mixes(modes, moved))
            results = [self._on_train(mode, times, k_dd, compute_cov) for mode in modes]
            return as_asked("Gaussians", get, modes, results)
        return as_asked(
            "Gaussians", get, modes, self._on_test(modes, times, x_test, compute_cov, kernel_kwargs)
        )

    def _call(
        self, x1: PyTree, x2: PyTree, names: Sequence[str], kwargs: Keywords, apart: bool = False
    ) -> dict[str, KernelArray]:
        return call_kernel(self._kernel_fn, x1, x2, names, self._memory, kwargs, apart)

    def _train_kernels(self, names: list[str], apart: bool) -> dict[str, KernelArray]:
        missing = [name for name in names if name not in self._kernels]
        if not missing:
            return self._kernels
        # Concrete data stay concrete inside the user's jit.
        now = is_concrete(self._x, self._kwargs)
        with jax.ensure_compile_time_eval() if now else contextlib.nullcontext():
            fresh = self._call(self._x, None, missing, self._kwargs, apart)
        for kernel in fresh.values():
            self._targets.check_train_train("kernel_fn(x_train, None)", kernel)
        if is_concrete(fresh):
            self._kernels.update(fresh)
        return self._kernels | fresh

    def _driving(self, name: str, kernel: KernelArray) -> TrainKernel:
        if name in self._driving_kernels:
            return self._driving_kernels[name]
        advice = remedy(None if self._descent is None else self._y.size)
        driving = TrainKernel(f"{name} of x_train", kernel, self._ridge, advice)
        if is_concrete(kernel):
            self._driving_kernels[name] = driving
        return driving

    def _on_train(
        self, mode: str, times: Times, k_dd: dict[str, KernelArray], compute_cov: bool
    ) -> Prediction:
        name = DRIVING_KERNEL[mode]
        dtype = result_dtype(k_dd[name])
        if times.steps is None:
            mean = jnp.asarray(self._y).astype(dtype)
            zeros = jnp.zeros(k_dd[name].shape, dtype)
            return Gaussian(mean, zeros) if compute_cov else mean
        return _predict_train(
            *(self._driving(name, k_dd[name]).spectral(), times, self._y, k_dd),
            mode=mode,
            compute_cov=compute_cov,
            targets=self._targets,
            dtype=dtype,
        )

    def _on_test(
        self,
        modes: tuple[str, ...],
        times: Times,
        x_test: PyTree,
        compute_cov: bool,
        kwargs: Keywords,
    ) -> list[Prediction]:
        between, within = _test_kwargs(self._kwargs, kwargs)
        names, apart = _needed(modes, compute_cov), _mixes(modes, compute_cov)
        k_dd = self._train_kernels(names, apart)
        k_td = self._call(x_test, self._x, names, between, apart)
        for kernel in k_td.values():
            self._targets.check_test_train("kernel_fn(x_test, x_train)", kernel)
        k_tt = {}
        if compute_cov:
            priors = sorted({prior_kernel(mode) for mode in modes})
            k_tt = self._call(x_test, None, priors, within)
            for name, kernel in k_tt.items():
                check_test_test("kernel_fn(x_test, None)", kernel, k_td[name])
        return [self._test_mode(mode, times, k_dd, k_td, k_tt) for mode in modes]

    def _test_mode(
        self,
        mode: str,
        times: Times,
        k_dd: dict[str, KernelArray],
        k_td: dict[str, KernelArray],
        k_tt: dict[str, KernelArray],
    ) -> Prediction:
        name = DRIVING_KERNEL[mode]
        system = times.factorise(self._driving(name, k_dd[name]))
        prior = k_tt.get(prior_kernel(mode))
        return predict_test(
            *(system, times, self._y, needed_train_kernels(mode, k_dd, prior), k_td, prior),
            mode=mode,
            targets=self._targets,
            dtype=result_dtype(k_dd[name]),
        )


@in_float64
def _predict_train(
    system: System,
    times: Times,
    y: jax.Array,
    k_dd: dict[str, jax.Array],
    *,
    mode: str,
    compute_cov: bool,
    targets: Targets,
    dtype: jnp.dtype,
) -> Prediction:
    """Returns the mean (1 - E) y on the training set at finite times, or a `Gaussian`."""
    dynamics, rows = times.progressing(system, y.size), targets.kept_shape
    aims = targets.to_matrix(y)
    mean = times.unflatten(targets.from_matrix(aims[None] - dynamics.decay(aims), rows))
    if not compute_cov:
        return mean.astype(dtype)
    if mode == "ntk":
        covariance = dynamics.trained_train_covariance(to_matrix("nngp", k_dd["nngp"]))
    else:
        covariance = dynamics.train_covariance()
    covariance = times.unflatten(from_matrix(covariance, rows, rows))
    return Gaussian(mean.astype(dtype), covariance.astype(dtype))


def gradient_descent_mse_ensemble(
    kernel_fn: NetworkLike,
    x_train: Inputs,
    y_train: TargetsLike,
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
    *,
    memory: Bytes = DEFAULT_MEMORY,
    **kernel_kwargs: PyTree,
) -> EnsemblePrediction:
    """Returns `predict_fn(t, x_test, get, compute_cov)`: infinite ensembles during training.

    The loss is 0.5 mean((f - y)^2) over all N entries of `y_train`, trained by gradient descent in
    the limit of small steps, from initial outputs of mean zero and the covariance of the prior.
    With Kr = K + ridge I and E = exp(-Kr learning_rate t / N), where K is the NNGP kernel for
    "nngp" and the NTK for "ntk" and "ntkgp", the mean is (1 - E) y on the training set and
    K_td Kr^-1 (1 - E) y on a test set (arXiv:1902.06720). Covariances:

        nngp, ntkgp   train  Kr E^2        test  K_tt - K_td Kr^-1 (1 - E^2) K_dt
        ntk           train  E k_dd E      test  k_tt + A k_dd A^T - A k_dt - k_td A^T,

    with A = K_td Kr^-1 (1 - E) and the NNGP kernel k ("ntkgp": arXiv:2007.05864). At t=None E = 0,
    and on the training set the mean is y and the covariance zero. Eigenvalues of Kr within
    rounding of zero count as zero: along them nothing moves, at any time. At t=None the result is
    then the limit of a vanishing ridge, with a RuntimeWarning; see `gp_inference`.

    `predict_fn` computes the training kernels and their factorisations at first use and caches
    them; it may be jitted. Systems are solved in float64; results have the dtype of the kernel. If
    the training kernel depends on values traced by JAX, then nothing can be checked, nothing is
    cached, and a failed factorisation, also of a singular kernel, gives NaN.

    Args:
      kernel_fn: a function `kernel_fn(x1, x2, get, **kwargs)` of kernels (n1, n2, h1, h2, ...),
        such as that of a network.
      x_train: training inputs.
      y_train: targets (n, h, ..., outputs).
      learning_rate: size of a step: the time is learning_rate t.
      diag_reg: the ridge, in units of the mean diagonal of K.
      diag_reg_absolute_scale: whether `diag_reg` is the ridge itself.
      trace_axes: the axes of `y_train` that the kernel lacks, along which outputs are independent
        given the inputs.
      memory: bytes, or text like "4GiB", for computing kernels, beside the inputs and the kernels
        themselves: larger kernels are computed in tiles, see `wl.gram`. Traced inputs are computed
        in one call.
      **kernel_kwargs: keywords of `kernel_fn` for the training set. Entries masked by
        `mask_constant` need not be finite (it may be NaN).

    Raises:
      TypeError: if `kernel_fn` is not a kernel function.
      ValueError: if `x_train` or `y_train` is not finite, or `learning_rate` or `diag_reg` is
        negative or not a single number. `predict_fn` raises it for indefinite kernels; the error
        gives the smallest eigenvalue and a ridge that is large enough.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import predict, stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> x, y = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0], [-1.0]])
      >>> predict_fn = predict.gradient_descent_mse_ensemble(kernel_fn, x, y, diag_reg=1e-4)
      >>> mean, cov = predict_fn(x_test=x, get="ntk", compute_cov=True)
      >>> mean.shape, cov.shape
      ((2, 1), (2, 2))
    """
    y_train = as_targets("y_train", y_train)
    advice = test_set_advice(
        "gradient_descent_mse_ensemble(kernel_fn, x_train, y_train)(t, x_test)"
    )
    check_scalar("learning_rate", learning_rate, advice)
    ridge = Ridge.of(diag_reg, diag_reg_absolute_scale, advice)
    return EnsemblePrediction(
        *(kernel_fn, x_train, y_train, learning_rate, ridge, trace_axes),
        *(parse_memory(memory), kernel_kwargs),
    )


def _needed(modes: Sequence[str], compute_cov: bool) -> list[str]:
    """Returns the names of the kernels that the modes need, in a fixed order."""
    names = {DRIVING_KERNEL[mode] for mode in modes}
    if compute_cov:
        names |= {prior_kernel(mode) for mode in modes}
    return sorted(names)


def _mixes(modes: Sequence[str], compute_cov: bool) -> bool:
    """Returns whether a covariance needs both kernels."""
    return compute_cov and "ntk" in modes


def _test_kwargs(train: Keywords, test: Keywords) -> tuple[Keywords, Keywords]:
    """Returns the keywords of kernel_fn between test and training set, and within the test set."""
    between, within = dict(train), dict(train)
    for name, value in test.items():
        if name not in train:
            raise ValueError(
                f"expected keywords of kernel_fn that the training set has, "
                f"{sorted(train)}, got {name!r}"
            )
        if _is_pair(train[name]) and _is_pair(value):
            between[name] = (value[0], train[name][1])
        elif not same_values(train[name], value):
            raise ValueError(
                f"expected {name!r} to be the same as for the training set, or a pair of arrays "
                f"for both, got {shown(value)} and {shown(train[name])}"
            )
        within[name] = value
    return between, within


def _is_pair(value: PyTree) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(value))
    )
