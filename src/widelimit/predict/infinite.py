"""InfiniteEnsemble: an infinite ensemble of networks trained on data, as one object."""

import copy
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from widelimit._pytree import own
from widelimit._text import shown
from widelimit.gram.compute import kernel_fn_of, unwrapped
from widelimit.gram.sizes import DEFAULT_MEMORY, parse_memory
from widelimit.predict import moments
from widelimit.predict.checks import as_targets, check_finite_inputs, check_scalar
from widelimit.predict.dynamics import Times
from widelimit.predict.ensemble import call_kernel
from widelimit.predict.factor import Ridge, TrainKernel
from widelimit.predict.matrices import Targets, check_test_test, row_shape
from widelimit.predict.precision import resolution, result_dtype
from widelimit.predict.solvers.base import Solver, check_solver, require
from widelimit.typing import Inputs, KernelArray, KernelFunction, NetworkLike, TargetsLike


class InfiniteEnsemble:
    """An infinite ensemble of infinitely wide networks, trained on (x, y) or conditioned on it.

    It is a Gaussian over functions: `mean` is the average network, `std`, `var` and `cov` measure
    how much the outputs differ between networks (epistemic uncertainty), and `sample` draws
    networks. Observations differ from the outputs by `noise`; `std(x, noise=True)` is the standard
    deviation of an observation, epistemic uncertainty and noise together.

    inference="gradient_descent": every layer is trained from a random start by gradient descent
    with a small `learning_rate` on 0.5 mean((f - y)^2), until infinite time or for the steps of
    `at(t)`. With the NNGP kernel K, the NTK T, Tr = T + noise^2 I + jitter, N = y.size,
    mean = A y and covariance = K_tt + A K_dd A^T - A K_dt - K_td A^T (arXiv:1902.06720), where
    A = T_td Tr^-1 (1 - exp(-Tr learning_rate t / N)). Here `noise` is a ridge that pulls each
    network towards its initialisation. With noise, networks do not interpolate the training
    targets.

    inference="bayes": the exact Gaussian process posterior, with prior covariance K and targets
    with independent noise. With Kr = K + noise^2 I + jitter, mean = K_td Kr^-1 y and
    covariance = K_tt - K_td Kr^-1 K_dt (arXiv:1711.00165).

    Outputs are independent of each other and share one covariance. Systems are solved in float64;
    results have the dtype of the kernel, and variances below its rounding (in float32 about 1e-6
    of those before training, more where the kernel is nearly singular) are not resolved; negative
    ones are returned as zero.

    Everything may be traced by JAX: to differentiate `log_marginal_likelihood` with respect to a
    network or to `noise`, make the ensemble inside the function. With x64 off, only first
    derivatives in reverse mode exist (`jax.grad`, `jax.jacrev`, not `jax.jvp`, `jax.jacfwd`); with
    x64 on, all do. Traced numbers cannot be checked; a failed factorisation there is NaN.

    Args:
      net_or_kernel_fn: a network, a triple `(init_fn, apply_fn, kernel_fn)`, or a function
        `kernel_fn(x1, x2, get)` of kernels.
      x: training inputs [n, ...].
      y: training targets [n, outputs], or [n, h, ..., outputs] for a kernel (n, n, h, h, ...).
      inference: "gradient_descent" or "bayes".
      learning_rate: size of a step: the time is learning_rate t.
      noise: standard deviation of the noise of observations, in units of y.
      jitter: ridge for numerical stability alone, in units of the mean diagonal of the kernel
        that is factorised. None takes max(1e-10, 32 sqrt(n) eps) with the rounding error eps of
        the kernel's dtype (4e-5 in float32 for n = 100): just above the errors by which rounding
        makes a kernel singular, so that repeated inputs without noise do not fail. With 0 and
        noise=0 a kernel that is singular by rounding gives the limit of a vanishing ridge, with a
        RuntimeWarning; see `predict.gp_inference`.
      solver: solver of the regularised kernel, a `predict.Solver`: `Cholesky()`, `Spectral()`,
        `ConjugateGradients()` or your own. None takes a Cholesky factor, or the eigenbasis
        for finite times and for kernels that are singular by rounding.
      memory: bytes, or text like "4GiB", for computing kernels, beside the inputs and the kernels
        themselves: larger kernels are computed in tiles (`wl.gram`). For the memory of the
        ensemble itself see `wl.plan(net, shape).ensemble_bytes`.

    Raises:
      TypeError: if the first argument is neither a network nor a function, `solver` is not a
        solver, or numbers are traced and the solver does not take these.
      ValueError: if x, y or the kernel is not finite, shapes do not fit, `inference` is unknown,
        `noise`, `jitter` or `learning_rate` is negative, or the regularised kernel is indefinite
        (with "gradient_descent" when it is first used). NaN in inputs is padding if `kernel_fn` is
        `functools.partial(kernel_fn, mask_constant=nan)`.

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

    def __new__(
        cls, net_or_kernel_fn: object = None, *_: object, **__: object
    ) -> "InfiniteEnsemble":
        """Returns an instance, of a subclass if the first argument is a store of kernels."""
        stored = getattr(net_or_kernel_fn, "ensemble_class", None)
        chosen = stored() if cls is InfiniteEnsemble and callable(stored) else cls
        return super().__new__(chosen)

    def __init__(
        self,
        net_or_kernel_fn: NetworkLike | tuple[object, object, KernelFunction],
        x: Inputs,
        y: TargetsLike,
        *,
        inference: str = "gradient_descent",
        learning_rate: ArrayLike = 1.0,
        noise: ArrayLike = 0.0,
        jitter: ArrayLike | None = None,
        solver: Solver | None = None,
        memory: str | float | int = DEFAULT_MEMORY,
    ) -> None:
        """Computes the kernels of the training set; see the class for the arguments."""
        self._kernel_fn = kernel_fn_of(net_or_kernel_fn)
        self._start(x, y, inference, learning_rate, noise, jitter, solver, memory)
        self._x, y = own(x), self._y

        kernels = self._call(x, None, self._kernel_names)
        targets = Targets.of(y, (-1,))._replace(name="y")
        samples, targeted = jnp.shape(kernels["nngp"])[0], jnp.shape(y)[0]
        if samples != targeted:
            raise ValueError(
                f"expected as many samples in x as in y, got {samples} in x, {targeted} in y"
            )
        for kernel in kernels.values():
            targets.check_train_train("the kernel of x", kernel)
        self._nngp, driving = kernels["nngp"], kernels[self._kernel_names[-1]]
        self._layout = moments.Layout(inference == "bayes", targets, result_dtype(driving))
        ridge = self._ridge(jitter, driving, math.prod(targets.kept_shape))
        self._train_kernel = TrainKernel("kernel of x", driving, ridge, _advise, solver)
        if self._layout.bayes:
            self._train_kernel.inverse()

    def _start(
        self,
        x: Inputs,
        y: TargetsLike,
        inference: str,
        learning_rate: ArrayLike,
        noise: ArrayLike,
        jitter: ArrayLike | None,
        solver: Solver | None,
        memory: str | float | int,
    ) -> None:
        """Checks the arguments, and stores those that predictions need."""
        self._memory = parse_memory(memory)
        if not (isinstance(inference, str) and inference in ("gradient_descent", "bayes")):
            raise ValueError(
                f"expected inference 'gradient_descent' or 'bayes', got {shown(inference)}"
            )
        y = as_targets("y", y)
        check_scalar("learning_rate", learning_rate)
        check_scalar("noise", noise)
        check_scalar("jitter", 0.0 if jitter is None else jitter)
        check_solver(solver)
        if jnp.ndim(y) < 2:
            raise ValueError(
                f"expected y of shape [n, outputs], got {jnp.shape(y)}; for one output y[:, None]"
            )
        check_finite_inputs("x", x, unwrapped(self._kernel_fn, {})[1])
        self._kernel_names = ["nngp"] if inference == "bayes" else ["nngp", "ntk"]
        self._x, self._y, self._noise = x, y, noise
        self._learning_rate, self._times, self._solver = learning_rate, Times(), solver

    def _ridge(self, jitter: ArrayLike | None, driving: KernelArray, size: int) -> Ridge:
        """Returns the ridge of noise and jitter, for a kernel of `size` outputs."""
        if jitter is None:
            jitter = max(1e-10, 32 * math.sqrt(size) * resolution(driving))
        return Ridge(relative=jitter, absolute=self._noise * self._noise)

    def at(self, t: ArrayLike | None) -> "InfiniteEnsemble":
        """Returns the ensemble after t steps of gradient descent; it shares kernels and factors.

        Args:
          t: time in steps, or an array of times: its axes come first in every result. Infinity is
            the limit of finite times, through the eigenbasis.

        Raises:
          ValueError: if inference is "bayes", or a concrete t is negative.
          NotImplementedError: if the solver has no functions of eigenvalues.
        """
        if self._layout.bayes:
            raise ValueError(
                "expected inference='gradient_descent' for an ensemble at a time t, got 'bayes': a "
                "posterior is not trained and has no time"
            )
        if t is not None:
            require(self._solver, "apply")
        view = copy.copy(self)
        view._times = Times.of(t, self._learning_rate)
        return view

    def mean(self, x: Inputs) -> Array:
        """Returns the outputs [t, outputs] of the average network at x.

        Args:
          x: inputs [t, ...].

        Raises:
          ValueError: if the concrete training kernel is indefinite.
        """
        return moments.ensemble_mean(self._evidence(x, covariance=False), layout=self._layout)

    def cov(self, x: Inputs, noise: bool = False) -> Array:
        """Returns the covariance [t, t] of an output at x between networks, equal for all outputs.

        Args:
          x: inputs [t, ...].
          noise: whether to return the covariance of observations, with noise^2 on the diagonal.

        Raises:
          ValueError: as `mean`, or if variances are far below zero, as happens with estimated
            kernels from different draws.
        """
        added = self._noise if noise else 0.0
        return moments.ensemble_covariance(self._evidence(x), added, layout=self._layout)

    def var(self, x: Inputs, noise: bool = False) -> Array:
        """Returns the variance [t, outputs] of the outputs at x between networks.

        Args:
          x: inputs [t, ...].
          noise: whether to return that of observations instead, var + noise^2.

        Raises:
          ValueError: as `cov`.
        """
        added = self._noise if noise else 0.0
        return moments.ensemble_variance(self._evidence(x), added, layout=self._layout)

    def std(self, x: Inputs, noise: bool = False) -> Array:
        """Returns the standard deviation [t, outputs] of the outputs at x between networks.

        Args:
          x: inputs [t, ...].
          noise: whether to return that of observations instead, sqrt(var + noise^2).

        Raises:
          ValueError: as `cov`.
        """
        added = self._noise if noise else 0.0
        return moments.ensemble_variance(self._evidence(x), added, layout=self._layout, root=True)

    def sample(self, key: Array, x: Inputs, n: int) -> Array:
        """Returns the outputs at x of n networks drawn from the ensemble, [n, t, outputs].

        Args:
          key: a JAX random key.
          x: inputs [t, ...].
          n: number of networks.

        Raises:
          ValueError: as `cov`, or if the ensemble is at an array of times.
        """
        if self._times.shape:
            raise ValueError(
                "expected an ensemble at one time to sample from, got times of shape "
                f"{self._times.shape}"
            )
        evidence = self._evidence(x)
        shape = self._layout.targets.full_shape(row_shape(evidence.nngp_td))
        normal = jax.random.normal(key, (n, *shape))
        return moments.ensemble_sample(evidence, normal, layout=self._layout)

    def loss(self, x: Inputs, y: TargetsLike) -> moments.Loss:
        """Returns the mean and standard deviation of 0.5 mean((f(x) - y)^2) over networks f.

        The moments are exact: with f - y ~ N(m, S) over D entries, mean = (|m|^2 + tr S) / 2 D and
        std^2 = (4 m^T S m + 2 tr S^2) / (2 D)^2.

        Args:
          x: inputs [t, ...].
          y: targets [t, outputs].

        Raises:
          ValueError: as `cov`, or if y is not finite or of the wrong shape.
        """
        y = as_targets("y", y)
        evidence = self._evidence(x)
        shape = self._layout.targets.full_shape(row_shape(evidence.nngp_td))
        if jnp.shape(y) != shape:
            raise ValueError(f"expected y of shape {shape} for these inputs, got {jnp.shape(y)}")
        return moments.ensemble_loss(evidence, y, layout=self._layout)

    def log_marginal_likelihood(self) -> Array:
        """Returns the log probability density of y under the prior and the noise, a scalar.

        -y^T Kr^-1 y / 2 - log det Kr / 2 - n log(2 pi) / 2, summed over outputs (arXiv:1711.00165).

        Raises:
          ValueError: if inference is not "bayes", or the regularised kernel is singular: such a
            prior has no density, and a vanishing ridge no limit.
          NotImplementedError: if the solver has no determinant.
        """
        self._require_density()
        require(self._solver, "log_determinant")
        system = self._train_kernel.cholesky()
        return moments.log_marginal_likelihood(system, self._y, layout=self._layout)

    def _require_density(self) -> None:
        if not self._layout.bayes:
            raise ValueError(
                "expected inference='bayes' for a marginal likelihood, got 'gradient_descent': "
                "networks trained from a random start are not a posterior of a probability model"
            )

    def _call(
        self, x1: PyTree, x2: PyTree, names: list[str], apart: bool = False
    ) -> dict[str, KernelArray]:
        return call_kernel(self._kernel_fn, x1, x2, names, self._memory, {}, apart)

    def _evidence(self, x: Inputs, covariance: bool = True) -> moments.Evidence:
        """Returns the arrays needed for predictions at x."""
        check_finite_inputs("x", x, unwrapped(self._kernel_fn, {})[1])
        names = self._kernel_names if covariance else self._kernel_names[-1:]
        k_td, nngp_tt = self._call(x, self._x, names, apart=covariance), None
        for kernel in k_td.values():
            name = "the kernel of x and the training inputs"
            self._layout.targets.check_test_train(name, kernel)
        driving_td = k_td[names[-1]]
        if covariance:
            nngp_tt = self._call(x, None, ["nngp"])["nngp"]
            check_test_test("the kernel of x", nngp_tt, driving_td)
        system = self._times.factorise(self._train_kernel)
        nngp_td = k_td.get("nngp", driving_td)
        trained = covariance and not self._layout.bayes
        nngp_dd = self._nngp if trained else None
        return moments.Evidence(
            *(system, self._times, self._y, nngp_dd, driving_td, nngp_td, nngp_tt)
        )


def _advise(relative: float, absolute: float) -> str:
    return (
        f"noise={math.sqrt(absolute):.1e} (a standard deviation in units of y), or "
        f"jitter={relative:.0e}, would do"
    )
