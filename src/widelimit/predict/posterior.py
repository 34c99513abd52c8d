"""Gaussian process posteriors of infinite networks: Bayesian, or after training to convergence."""

import math
import types
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from widelimit._pytree import own
from widelimit.kernel.get import KERNELS, as_asked, parse_get
from widelimit.predict.checks import as_targets, test_set_advice
from widelimit.predict.dynamics import Times, trained_covariance
from widelimit.predict.factor import Ridge, System, TrainKernel, advise_diag_reg
from widelimit.predict.matrices import (
    Axes,
    Targets,
    check_test_test,
    from_matrix,
    row_shape,
    to_matrix,
)
from widelimit.predict.precision import in_float64, result_dtype
from widelimit.predict.selection import (
    DRIVING_KERNEL,
    MODES,
    check_is_kernel,
    is_one_kernel,
    pick,
    prior_kernel,
)
from widelimit.typing import Get, KernelArray, Kernels, TargetsLike


class Gaussian(NamedTuple):
    """A Gaussian over outputs: its mean, and its covariance in the layout of kernels.

    Attributes:
      mean: mean, in the shape of the outputs.
      covariance: covariance (t1, t2, ...) without the trace axes; along those, outputs are
        independent and each has this covariance.
    """

    mean: Float[jax.Array, "..."]
    covariance: Float[jax.Array, "..."]


Prediction: TypeAlias = jax.Array | Gaussian
"""A mean, or a mean and a covariance."""


@in_float64
def predict_test(
    system: System,
    times: Times,
    y: jax.Array,
    k_dd: dict[str, jax.Array],
    k_td: dict[str, jax.Array],
    k_tt: jax.Array | None,
    *,
    mode: str,
    targets: Targets,
    dtype: jnp.dtype,
) -> Prediction:
    """Returns the mean on a test set, or a `Gaussian` if the prior covariance k_tt is given.

    Args:
      system: the regularised kernel of the training set that drives the mode.
      times: training times.
      y: training targets.
      k_dd: train-train kernels by name, zipped like all kernels here; see `needed_train_kernels`.
      k_td: test-train kernels by name.
      k_tt: test-test kernel that is the covariance before training, or None.
      mode: "nngp", "ntk" or "ntkgp".
      targets: layout of the training targets.
      dtype: dtype of the result.
    """
    name = DRIVING_KERNEL[mode]
    rows, driving = row_shape(k_td[name]), to_matrix(name, k_td[name])
    dynamics = times.dynamics(system, math.prod(targets.shape))
    mean = targets.from_matrix(driving @ dynamics.response(targets.to_matrix(y)), rows)
    mean = times.unflatten(mean).astype(dtype)
    if k_tt is None:
        return mean
    prior = to_matrix(name, k_tt)
    if mode == "ntk":
        nngp_td, nngp_dd = to_matrix("nngp", k_td["nngp"]), to_matrix("nngp", k_dd["nngp"])
        covariance = trained_covariance(dynamics, prior, driving, nngp_td, nngp_dd)
    else:
        covariance = dynamics.covariance(prior, driving)
    covariance = times.unflatten(from_matrix(covariance, rows, rows))
    return Gaussian(mean, covariance.astype(dtype))


def needed_train_kernels(
    mode: str, k_dd: dict[str, KernelArray], k_tt: KernelArray | None
) -> dict[str, KernelArray]:
    """Returns only the train-train kernels that `predict_test` reads, to save copies to float64."""
    return {"nngp": k_dd["nngp"]} if mode == "ntk" and k_tt is not None else {}


class GPInference:
    """The predict_fn of `gp_inference`; owns the training kernels and their factors."""

    def __init__(
        self, k_train_train: Kernels, y_train: KernelArray, ridge: Ridge, trace_axes: Axes
    ) -> None:
        """Stores the arguments; each kernel is factorised at first use."""
        self._k_train_train, self._y, self._ridge = _owned(k_train_train), y_train, ridge
        self._targets = Targets.of(y_train, trace_axes)
        self._train_kernels: dict[str, TrainKernel] = {}

    def __call__(
        self, get: Get = None, k_test_train: Kernels = None, k_test_test: Kernels = None
    ) -> PyTree:
        """Returns the posterior on a test set, or on the training set if `k_test_train` is None.

        Args:
          get: "nngp" (Bayesian inference), "ntk" (training to convergence), "ntkgp" (a Gaussian
            process whose prior covariance is the NTK), or a tuple of these; None means
            ("nngp", "ntk"). A kernel that is a single array is used as the one that a mode needs.
          k_test_train: kernel between test and training set, like `k_train_train`; None returns the
            training targets with covariance zero.
          k_test_test: kernel of the test set with itself; None for means alone.

        Returns:
          For one mode the mean, or a `Gaussian` if `k_test_test` is passed; for a tuple a
          namedtuple with one field per mode.

        Raises:
          ValueError: if a mode is unknown, a needed kernel is missing or of the wrong shape, or
            the concrete training kernel is indefinite.

        Warns:
          RuntimeWarning: if the concrete training kernel is singular by rounding.
        """
        modes = parse_get(get, MODES, KERNELS)
        several = len({DRIVING_KERNEL[mode] for mode in modes}) > 1
        mixed = is_one_kernel(self._k_train_train) != is_one_kernel(k_test_train)
        if several and k_test_train is not None and mixed:
            raise ValueError(
                f"expected k_train_train and k_test_train to be an array each, or to hold 'nngp' "
                f"and 'ntk' each, for get={get!r}, got one of either kind: pass the mode of the "
                "array alone, such as get='nngp'"
            )
        return as_asked(
            "Gaussians",
            get,
            modes,
            [self._predict(mode, k_test_train, k_test_test) for mode in modes],
        )

    def _predict(self, mode: str, k_test_train: Kernels, k_test_test: Kernels) -> Prediction:
        name, prior = DRIVING_KERNEL[mode], prior_kernel(mode)
        names = {name} if k_test_test is None or k_test_train is None else {name, prior}
        k_dd = self._pick_all(names, "k_train_train", self._k_train_train, mode)
        for kernel in k_dd.values():
            self._targets.check_train_train("k_train_train", kernel)
        if k_test_train is None:
            dtype = result_dtype(k_dd[name])
            mean = jnp.asarray(self._y).astype(dtype)
            zeros = jnp.zeros(k_dd[name].shape, dtype)
            return mean if k_test_test is None else Gaussian(mean, zeros)
        k_td = self._pick_all(names, "k_test_train", k_test_train, mode)
        for kernel in k_td.values():
            self._targets.check_test_train("k_test_train", kernel)
        k_tt = None
        if k_test_test is not None:
            k_tt = pick(k_test_test, prior, "k_test_test", mode)
            check_test_test("k_test_test", k_tt, k_td[name])
        system = self._train_kernel(name, k_dd[name]).inverse()
        return predict_test(
            *(system, Times(), self._y, needed_train_kernels(mode, k_dd, k_tt), k_td, k_tt),
            mode=mode,
            targets=self._targets,
            dtype=result_dtype(k_dd[name]),
        )

    def _pick_all(
        self, names: set[str], where: str, kernels: Kernels, mode: str
    ) -> dict[str, KernelArray]:
        if len(names) > 1 and is_one_kernel(kernels):
            raise ValueError(
                f"expected {where} to hold both 'nngp' and 'ntk', which the covariance of "
                f"get={mode!r} needs, got a single array"
            )
        return {name: pick(kernels, name, where, mode) for name in sorted(names)}

    def _train_kernel(self, name: str, kernel: KernelArray) -> TrainKernel:
        # A single array is factorised once, whichever kernel it is used as.
        name = "" if is_one_kernel(self._k_train_train) else name
        if name not in self._train_kernels:
            self._train_kernels[name] = TrainKernel(
                "k_train_train", kernel, self._ridge, advise_diag_reg
            )
        return self._train_kernels[name]


def _owned(kernels: Kernels) -> Kernels:
    """Returns the kernels with arrays of NumPy copied, so that later writes do not change them."""
    if not is_one_kernel(kernels):
        names = sorted(set(DRIVING_KERNEL.values()))
        return types.SimpleNamespace(**{n: _owned(getattr(kernels, n, None)) for n in names})
    kernels = own(kernels)
    if isinstance(kernels, np.ndarray):
        kernels.flags.writeable = False  # or it would be copied again
    return kernels


def gp_inference(
    k_train_train: Kernels,
    y_train: TargetsLike,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
) -> GPInference:
    """Returns `predict_fn(get, k_test_train, k_test_test)`: Gaussian process posteriors.

    With Kr = K + ridge I, mean = K_td Kr^-1 y. For "nngp" and "ntkgp" (arXiv:2007.05864), where K
    is the NNGP kernel or the NTK, covariance = K_tt - K_td Kr^-1 K_dt. For "ntk", networks trained
    to convergence (arXiv:1902.06720), K is the NTK in the mean and in A = K_td Kr^-1, and with the
    NNGP kernel k covariance = k_tt + A k_dd A^T - A k_dt - k_td A^T.

    For a Kr that is singular by rounding alone (repeated samples without a ridge), the result is
    the limit of a vanishing ridge, with a RuntimeWarning: it is computed in the eigenbasis, without
    the eigenvalues below 8 sqrt(n) eps times the largest diagonal entry or twice the most negative
    one, where eps is the rounding error of the kernel's dtype. For repeated samples with different
    targets that is the mean of these targets. Negative eigenvalues beyond rounding are an error.

    Systems are solved in float64; results have the dtype of `k_train_train`. Kernels and targets
    may be traced by JAX. Then nothing can be checked, and a failed factorisation, also of a
    singular kernel, gives NaN.

    Args:
      k_train_train: kernel of the training set with itself, (n, n, h, h, ...): an array, or
        anything with fields `nngp` and `ntk`.
      y_train: targets (n, h, ..., outputs).
      diag_reg: the ridge, in units of the mean diagonal of K.
      diag_reg_absolute_scale: whether `diag_reg` is the ridge itself.
      trace_axes: the axes of `y_train` that the kernel lacks, along which outputs are independent
        given the inputs.

    Raises:
      TypeError: if `k_train_train` is a function instead of a kernel.
      ValueError: if `y_train` is not finite, `diag_reg` is negative or not a single number, or
        `trace_axes` are out of range. `predict_fn` raises it for kernels that are not finite, of
        the wrong shape, or indefinite; the error gives the smallest eigenvalue and a ridge that is
        large enough.

    Example:
      >>> import jax.numpy as jnp
      >>> predict_fn = gp_inference(jnp.eye(2), jnp.array([[1.0], [2.0]]), diag_reg=1.0)
      >>> predict_fn("nngp", k_test_train=jnp.array([[0.0, 1.0]]), k_test_test=jnp.eye(1))
      Gaussian(mean=Array([[1.]], dtype=float32), covariance=Array([[0.5]], dtype=float32))
    """
    check_is_kernel("k_train_train", k_train_train)
    y_train = as_targets("y_train", y_train)
    advice = test_set_advice("gp_inference(k_train_train, y_train)(get, k_test_train=...)")
    ridge = Ridge.of(diag_reg, diag_reg_absolute_scale, advice)
    return GPInference(k_train_train, y_train, ridge, trace_axes)
