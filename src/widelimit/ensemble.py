"""One object for people: an infinite ensemble of networks that has seen data."""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from widelimit.predict.checks import (
    as_float64,
    check_finite,
    check_not_negative,
    is_concrete,
    resolution,
    result_dtype,
)
from widelimit.predict.dynamics import Dynamics, Times, trained_covariance
from widelimit.predict.ensemble import call_kernel
from widelimit.predict.factor import Ridge, RidgeKernel, diagonal
from widelimit.predict.matrices import (
    Shape,
    Targets,
    check_test_test,
    from_matrix,
    row_shape,
    to_matrix,
)
from widelimit.predict.spectral import Spectral

Inference = Literal["gradient_descent", "bayes"]

# A variance this far below zero, in units of the largest prior variance, is no rounding error.
_NEGATIVE_VARIANCE = 1e-2


class Loss(NamedTuple):
    """The loss of one network drawn from an ensemble, over such draws.

    Attributes:
      mean: expected loss, with the shape of t.
      std: standard deviation of the loss from network to network, with the shape of t.
    """

    mean: Array
    std: Array


class InfiniteEnsemble:
    """An infinite ensemble of infinitely wide networks, trained on (x, y) or conditioned on it.

    It is a Gaussian over functions: `mean` is the average network, `std`, `var` and `cov` say how
    the outputs of the networks differ from one to another (epistemic uncertainty), `sample` draws
    networks. Observations scatter about the outputs by `noise`; `std(x, noise=True)` is the
    standard deviation of an observation, epistemic and noise together.

    inference="gradient_descent": every layer is trained from a random start by gradient descent
    with a small `learning_rate` on 0.5 mean((f - y)^2), until infinite time or for the steps of
    `at(t)`. With the NNGP kernel K, the NTK T, Tr = T + noise^2 I + jitter, N = y.size,
    mean = A y and covariance = K_tt + A K_dd A^T - A K_dt - K_td A^T (arXiv:1902.06720), where
    A = T_td Tr^-1 (1 - exp(-Tr learning_rate t / N)). Here `noise` is a ridge that holds each
    network to its own start. With noise, networks do not interpolate the training targets.

    inference="bayes": the exact Gaussian process posterior, with prior covariance K and targets
    that carry independent noise. With Kr = K + noise^2 I + jitter, mean = K_td Kr^-1 y and
    covariance = K_tt - K_td Kr^-1 K_dt (arXiv:1711.00165).

    Outputs are independent of each other and share one covariance. Systems are solved in float64;
    results have the dtype of the kernel, and variances below its rounding (in float32 about 1e-6
    of those before training, more where the kernel is nearly singular) are not resolved; negative
    ones are returned as zero.

    Everything may be traced by JAX: the gradient of `log_marginal_likelihood` with respect to a
    network or to `noise` is that of a function which makes the ensemble inside. Traced numbers
    cannot be checked; a failed factorisation there is NaN.

    Args:
      net_or_kernel_fn: a network, or a function `kernel_fn(x1, x2, get)` of kernels.
      x: training inputs [n, ...].
      y: training targets [n, outputs], or [n, h, ..., outputs] for a kernel (n, n, h, h, ...).
      inference: "gradient_descent" or "bayes".
      learning_rate: the step, which is the time that passes in one unit of t.
      noise: standard deviation of the noise of observations, in units of y.
      jitter: ridge for the sake of the solver alone, in units of the mean diagonal of the kernel
        that is factorised. None takes max(1e-10, 16 sqrt(n) eps) with the rounding error eps of
        the kernel's dtype (2e-5 in float32 for n = 100): just above the level at which rounding
        makes a kernel singular, so that repeated inputs without noise do not fail.

    Raises:
      TypeError: if the first argument is neither a network nor a function.
      ValueError: if x, y or the kernel is not finite, shapes do not fit, `inference` is unknown,
        `noise`, `jitter` or `learning_rate` is negative, or the regularised kernel is singular
        (with "gradient_descent" when it is first used).

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import InfiniteEnsemble, stax
      >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> x, y = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0], [-1.0]])
      >>> ensemble = InfiniteEnsemble(net, x, y, noise=0.1)
      >>> ensemble.mean(x).shape, ensemble.std(x).shape, ensemble.at(0).cov(x).shape
      ((2, 1), (2, 1), (2, 2))
      >>> bool((ensemble.std(x, noise=True) > ensemble.std(x)).all())
      True
    """

    def __init__(
        self,
        net_or_kernel_fn: Any,
        x: Any,
        y: ArrayLike,
        *,
        inference: Inference = "gradient_descent",
        learning_rate: ArrayLike = 1.0,
        noise: ArrayLike = 0.0,
        jitter: ArrayLike | None = None,
    ) -> None:
        """Computes the kernels of the training set."""
        self._kernel_fn = _kernel_fn_of(net_or_kernel_fn)
        if inference not in ("gradient_descent", "bayes"):
            raise ValueError(f"expected inference 'gradient_descent' or 'bayes', got {inference!r}")
        for leaf in jax.tree.leaves(x):
            check_finite("x", leaf)
        check_finite("y", y)
        check_not_negative("learning_rate", learning_rate)
        check_not_negative("noise", noise)
        if jnp.ndim(y) < 2:
            raise ValueError(
                f"expected y of shape [n, outputs], got {jnp.shape(y)}; for one output y[:, None]"
            )
        self._bayes = inference == "bayes"
        self._x, self._y, self._learning_rate, self._noise = x, y, learning_rate, noise
        self._targets = Targets.of(y, (-1,))

        kernels = self._kernels(x, None)
        for kernel in kernels.values():
            self._targets.check_train_train("the kernel of x", kernel)
        driving = self._driving(kernels)
        self._dtype = result_dtype(driving)
        if jitter is None:
            jitter = max(1e-10, 16 * math.sqrt(np.prod(row_shape(driving))) * resolution(driving))
        check_not_negative("jitter", jitter)
        with jax.enable_x64(True):
            ridge = Ridge(relative=jitter, absolute=as_float64(noise) ** 2)
            self._nngp = to_matrix("nngp", as_float64(kernels["nngp"]))
        self._system = RidgeKernel("kernel of x", driving, ridge, _advise)
        self._times = Times((), None)
        if self._bayes:
            self._system.cholesky()

    def at(self, t: Any) -> "InfiniteEnsemble":
        """The ensemble after t steps of gradient descent, which shares kernels and factors.

        Args:
          t: time in steps; an array of times puts its shape before that of every result. Infinity
            is the limit of finite times, through the eigenbasis.

        Raises:
          ValueError: if inference is "bayes", or a concrete t is negative.
        """
        if self._bayes:
            raise ValueError(
                "expected inference='gradient_descent' for an ensemble at a time t, got 'bayes': a "
                "posterior is not trained and has no time"
            )
        view = copy.copy(self)
        view._times = Times.of(t, self._learning_rate, math.prod(self._targets.shape))
        return view

    def mean(self, x: Any) -> Array:
        """The average network's outputs at x, [t, outputs].

        Raises:
          ValueError: if the concrete training kernel is singular or indefinite.
        """
        k_td = self._test_train(x)
        dynamics = self._times.dynamics(self._system)
        with jax.enable_x64(True):
            mean = self._targets.from_matrix(self._mean(k_td, dynamics), row_shape(k_td["nngp"]))
            return self._times.unflatten(mean).astype(self._dtype)

    def cov(self, x: Any, noise: bool = False) -> Array:
        """The covariance [t, t] of an output at x between networks, equal for all outputs.

        Args:
          x: inputs [t, ...].
          noise: whether to return the covariance of observations, noise^2 on the diagonal added.

        Raises:
          ValueError: as `mean`, or if the result is far from positive, as when kernels are noisy.
        """
        rows, _, covariance = self._moments(x)
        with jax.enable_x64(True):
            eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
            total = covariance + self._noise_variance(noise) * eye[None]
            return self._times.unflatten(from_matrix(total, rows, rows)).astype(self._dtype)

    def var(self, x: Any, noise: bool = False) -> Array:
        """The variance [t, outputs] of the outputs at x between networks; see `std`."""
        variance = self._variance(x, noise)
        with jax.enable_x64(True):
            return variance.astype(self._dtype)

    def std(self, x: Any, noise: bool = False) -> Array:
        """The standard deviation [t, outputs] of the outputs at x between networks.

        Args:
          x: inputs [t, ...].
          noise: whether to return that of observations instead, sqrt(var + noise^2).

        Raises:
          ValueError: as `cov`.
        """
        variance = self._variance(x, noise)
        with jax.enable_x64(True):
            return _root(variance).astype(self._dtype)

    def sample(self, key: Array, x: Any, n: int) -> Array:
        """The outputs at x of n networks drawn from the ensemble, [n, t, outputs].

        Args:
          key: a JAX random key.
          x: inputs [t, ...].
          n: number of networks.

        Raises:
          ValueError: as `cov`, or at an array of times.
        """
        if self._times.shape:
            raise ValueError(
                f"expected an ensemble at one time to sample from, got times of shape "
                f"{self._times.shape}"
            )
        rows, mean, covariance = self._moments(x)
        with jax.enable_x64(True):
            matrix = covariance[0]
            evals, evecs = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
            normal = jax.random.normal(key, (n, *mean.shape[1:]), jnp.float64)
            draws = mean + Spectral(matrix, evals, evecs).root(normal)
            return self._targets.from_matrix(draws, rows).astype(self._dtype)

    def loss(self, x: Any, y: ArrayLike) -> Loss:
        """The mean and standard deviation of 0.5 mean((f(x) - y)^2) over networks f.

        The moments are exact: with f - y ~ N(m, S) over D entries, mean = (|m|^2 + tr S) / 2 D and
        std^2 = (4 m^T S m + 2 tr S^2) / (2 D)^2.

        Raises:
          ValueError: as `cov`, or if y is not finite or of the wrong shape.
        """
        check_finite("y", y)
        rows, mean, covariance = self._moments(x)
        shape = self._targets.full_shape(rows)
        if jnp.shape(y) != shape:
            raise ValueError(f"expected y of shape {shape} for these inputs, got {jnp.shape(y)}")
        with jax.enable_x64(True):
            bias = mean - self._targets.to_matrix(as_float64(y))[None]
            outputs, entries = bias.shape[-1], math.prod(shape)
            trace = diagonal(covariance).sum(-1)
            expected = ((bias**2).sum((-2, -1)) + outputs * trace) / (2 * entries)
            carried = jnp.einsum("mrc,mrs,msc->m", bias, covariance, bias)
            variance = 4 * carried + 2 * outputs * (covariance**2).sum((-2, -1))
            std = _root(variance) / (2 * entries)
            mean_loss, std_loss = self._times.unflatten(expected), self._times.unflatten(std)
            return Loss(mean_loss.astype(self._dtype), std_loss.astype(self._dtype))

    def log_marginal_likelihood(self) -> Array:
        """The logarithm of the probability density of y under the prior and the noise, a scalar.

        -y^T Kr^-1 y / 2 - log det Kr / 2 - n log(2 pi) / 2, summed over outputs (arXiv:1711.00165).

        Raises:
          ValueError: if inference is not "bayes".
        """
        if not self._bayes:
            raise ValueError(
                "expected inference='bayes' for a marginal likelihood, got 'gradient_descent': "
                "networks trained from a random start are no posterior of a probability model"
            )
        with jax.enable_x64(True):
            factor = self._system.cholesky()
            y = self._targets.to_matrix(as_float64(self._y))
            rows, outputs = y.shape
            fit = (factor.half_solve(y) ** 2).sum()
            volume = factor.log_determinant() + rows * math.log(2 * math.pi)
            return (-0.5 * (fit + outputs * volume)).astype(self._dtype)

    def _kernels(self, x1: Any, x2: Any) -> dict[str, Array]:
        names = ["nngp"] if self._bayes else ["nngp", "ntk"]
        return call_kernel(self._kernel_fn, x1, x2, names)

    def _noise_variance(self, noise: bool) -> Array:
        return as_float64(self._noise) ** 2 if noise else jnp.zeros((), jnp.float64)

    def _test_train(self, x: Any) -> dict[str, Array]:
        for leaf in jax.tree.leaves(x):
            check_finite("x", leaf)
        k_td = self._kernels(x, self._x)
        for kernel in k_td.values():
            self._targets.check_test_train("the kernel of x and the training inputs", kernel)
        return k_td

    def _driving(self, kernels: dict[str, Array]) -> Array:
        return kernels["nngp" if self._bayes else "ntk"]

    def _mean(self, k_td: dict[str, Array], dynamics: Dynamics) -> Array:
        """Means [m, t, outputs] in float64."""
        driving = to_matrix("test-train kernel", as_float64(self._driving(k_td)))
        return driving @ dynamics.response(self._targets.to_matrix(as_float64(self._y)))

    def _moments(self, x: Any) -> tuple[Shape, Array, Array]:
        """The kept shape at x, and means [m, t, outputs] and covariances [m, t, t] in float64."""
        k_td = self._test_train(x)
        k_tt = call_kernel(self._kernel_fn, x, None, ["nngp"])["nngp"]
        check_test_test("the kernel of x", k_tt, k_td["nngp"])
        dynamics = self._times.dynamics(self._system)
        with jax.enable_x64(True):
            prior = to_matrix("nngp", as_float64(k_tt))
            nngp_td = to_matrix("nngp", as_float64(k_td["nngp"]))
            if self._bayes:
                covariance = dynamics.covariance(prior, nngp_td)
            else:
                ntk_td = to_matrix("ntk", as_float64(k_td["ntk"]))
                covariance = trained_covariance(dynamics, prior, ntk_td, nngp_td, self._nngp)
            _check_variances(covariance, prior)
            return row_shape(k_tt), self._mean(k_td, dynamics), covariance

    def _variance(self, x: Any, noise: bool) -> Array:
        rows, _, covariance = self._moments(x)
        with jax.enable_x64(True):
            variance = jnp.maximum(diagonal(covariance), 0.0) + self._noise_variance(noise)
            # The same for every output, but in the shape of the mean, to be added to it.
            shape = (*variance.shape, self._targets.shape[-1])
            spread = jnp.broadcast_to(variance[..., None], shape)
            return self._times.unflatten(self._targets.from_matrix(spread, rows))


def _root(variance: Array) -> Array:
    """The square root, with derivative 0 at 0; rounding below 0 counts as 0, NaN stays NaN."""
    zero = variance <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, variance)))


def _check_variances(covariance: Array, prior: Array) -> None:
    """Raise ValueError if a concrete covariance has variances below zero beyond rounding."""
    if not is_concrete(covariance, prior):
        return
    lowest = float(np.asarray(diagonal(covariance)).min(initial=0.0))
    largest = float(np.asarray(diagonal(prior)).max(initial=0.0))
    if lowest < -_NEGATIVE_VARIANCE * largest:
        raise ValueError(
            f"expected variances of at least 0, got {lowest:.3g} where the largest before training "
            f"is {largest:.3g}: the kernels between training and test inputs do not belong "
            "together (estimated ones need the same draws)"
        )


def _kernel_fn_of(net_or_kernel_fn: Any) -> Callable[..., Any]:
    kernel_fn = getattr(net_or_kernel_fn, "kernel_fn", net_or_kernel_fn)
    if not callable(kernel_fn):
        raise TypeError(
            "expected a network with a kernel_fn, or a function kernel_fn(x1, x2, get), got "
            f"{type(net_or_kernel_fn).__name__}"
        )
    return kernel_fn


def _advise(relative: float, absolute: float) -> str:
    return (
        f"noise={math.sqrt(absolute):.1e} (a standard deviation in units of y), or "
        f"jitter={relative:.0e}, would do"
    )
