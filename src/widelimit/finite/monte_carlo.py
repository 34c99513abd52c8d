"""Kernels of wide finite networks, averaged over random draws of their parameters."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, SupportsIndex, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from widelimit._pytree import own
from widelimit.finite.empirical import NtkImplementation, empirical_kernel_fn
from widelimit.gram.batch import batch
from widelimit.gram.devices import resolve_devices
from widelimit.kernel.get import KERNELS, named_tuple
from widelimit.tracing.traced import compiled
from widelimit.typing import (
    ApplyFunction,
    Axes,
    Get,
    InitFunction,
    Inputs,
    KernelArray,
    KernelFunction,
    Key,
    Keywords,
    Params,
    Size,
    VmapAxes,
)


class Estimate(NamedTuple):
    """An average over random networks.

    Attributes:
      mean: the average, an array or a tuple as `get` says.
      standard_error: the standard error of that average, entry by entry and in the same form:
        sqrt(sum |k_i - mean|^2 / (n (n - 1))) of n draws; NaN of a single one.
    """

    mean: PyTree
    standard_error: PyTree


class MonteCarloKernelFn:
    """The kernel function of `monte_carlo_kernel_fn`.

    Attributes:
      works_in_tiles: True: it cuts inputs into tiles, so that callers need not.
    """

    works_in_tiles = True

    def __init__(
        self,
        init_fn: InitFunction,
        kernel_fn: Callable[..., PyTree],
        key: Key,
        counts: tuple[int, ...],
        is_generator: bool,
        tiled: Callable[[KernelFunction, int], KernelFunction],
        takes_rng: bool,
        standard_error: bool,
    ) -> None:
        """Stores the arguments.

        Args:
          init_fn: function (key, shape) -> (shape, params).
          kernel_fn: function (x1, x2, get, params, **kwargs) -> kernels.
          key: random key of all draws.
          counts: numbers of draws, ascending.
          is_generator: whether averages are yielded at each of these.
          tiled: function (kernel function, number of samples) -> kernel function in tiles.
          takes_rng: whether the network takes a random key.
          standard_error: whether to return an `Estimate`.
        """
        self._init_fn, self._kernel_fn, self._key = init_fn, kernel_fn, own(key)
        self._counts, self._is_generator, self._tiled = counts, is_generator, tiled
        self._takes_rng, self._standard_error = takes_rng, standard_error

    def __call__(
        self, x1: Inputs, x2: Inputs = None, get: Get = None, **apply_kwargs: object
    ) -> PyTree:
        """Returns the average kernels between x1 and x2, or an iterator of running averages.

        Args:
          x1: inputs, an array or a tree of them.
          x2: inputs, or None for x1.
          get: "nngp", "ntk", or a tuple of names; None means ("nngp", "ntk").
          **apply_kwargs: keywords of `apply_fn`. Pairs of arrays belong to x1 and x2.

        Returns:
          For a name an array, for a tuple a named tuple `MonteCarloKernel`; a tree of these for
          networks with several outputs. With `standard_error=True` an `Estimate` of two such
          results. For several numbers of draws an iterator over them.

        Raises:
          TypeError: a random key among the keywords, or an `init_fn` that does not return a pair.
          ValueError: an unknown `get`, inputs without samples, or as `empirical_kernel_fn` does.
        """
        if "rng" in apply_kwargs:
            raise TypeError("expected no rng, got one: every draw derives its random key from key")
        leaves = jax.tree.leaves(x1)
        if not leaves or not all(jnp.ndim(leaf) and len(leaf) for leaf in leaves):
            raise ValueError(
                f"expected x1 with samples, got shapes {[jnp.shape(leaf) for leaf in leaves]}"
            )
        averages = self._averages(own(x1), own(x2), get, own(apply_kwargs))
        return averages if self._is_generator else next(averages)

    def _averages(self, x1: Inputs, x2: Inputs, get: Get, kwargs: Keywords) -> Iterator[PyTree]:
        shape = jax.tree.map(jnp.shape, x1)
        init = compiled(lambda key: _drawn(self._init_fn(key, shape)), self._key)
        running, reported = None, set(self._counts)
        for i in range(self._counts[-1]):
            init_key, rng = jax.random.split(jax.random.fold_in(self._key, i))
            extra = {"rng": rng} if self._takes_rng else {}
            kernels = self._draw(init(init_key), x1, x2, get, {**kwargs, **extra})
            running = _Running.start(kernels) if running is None else running.add(kernels)
            if running.n in reported:
                yield self._result(running)

    def _draw(self, params: Params, x1: Inputs, x2: Inputs, get: Get, kwargs: Keywords) -> PyTree:
        """Returns the kernels of one network."""

        def kernel_fn(x1: Inputs, x2: Inputs, get: Get, **kwargs: PyTree) -> PyTree:
            return self._kernel_fn(x1, x2, get, params, **kwargs)

        largest = max(len(leaf) for leaf in jax.tree.leaves((x1, x2)))
        return self._tiled(kernel_fn, largest)(x1, x2, get, **kwargs)

    def _result(self, running: _Running) -> PyTree:
        mean = _named(running.mean)
        if not self._standard_error:
            return mean
        return Estimate(mean, _named(running.standard_error()))


def _drawn(result: PyTree) -> Params:
    """Returns the parameters from the result of an init_fn.

    Raises:
      TypeError: it is not a pair.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        got = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        raise TypeError(f"expected init_fn(key, shape) to return (output_shape, params), got {got}")
    return result[1]


class _Running(NamedTuple):
    """Running average of kernels: their number, mean, and sum of squares about it."""

    n: int
    mean: PyTree
    squares: PyTree

    @classmethod
    def start(cls, kernels: PyTree) -> _Running:
        """Returns the running average of one draw."""
        return cls(1, kernels, jax.tree.map(lambda k: abs(k) * 0, kernels))

    def add(self, kernels: PyTree) -> _Running:
        """Returns the running average with one more draw."""
        n = self.n + 1

        def add_square(
            squares: KernelArray, k: KernelArray, old: KernelArray, new: KernelArray
        ) -> KernelArray:
            return squares + ((k - old) * (k - new).conj()).real

        mean = jax.tree.map(lambda old, k: old + (k - old) / n, self.mean, kernels)
        squares = jax.tree.map(add_square, self.squares, kernels, self.mean, mean)
        return _Running(n, mean, squares)

    def standard_error(self) -> PyTree:
        """Returns the standard error of the average, NaN for one draw."""
        if self.n == 1:
            return jax.tree.map(lambda squares: squares + np.nan, self.squares)
        pairs = self.n * (self.n - 1)
        return jax.tree.map(lambda squares: (squares / pairs) ** 0.5, self.squares)


def monte_carlo_kernel_fn(
    init_fn: InitFunction,
    apply_fn: ApplyFunction,
    key: Key,
    n_samples: Size | Iterable[Size],
    batch_size: Size = 0,
    device_count: Size = -1,
    store_on_device: bool = True,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: VmapAxes = None,
    implementation: NtkImplementation | int | str = NtkImplementation.JACOBIAN_CONTRACTION,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
    *,
    standard_error: bool = False,
) -> MonteCarloKernelFn:
    """Returns `kernel_fn(x1, x2=None, get=None, **apply_kwargs)`: averages over random networks.

    Draw i takes `init_key, rng = split(fold_in(key, i))`, the parameters
    `init_fn(init_key, x1.shape)[1]` and, if `apply_fn` takes one, the key `rng` for dropout. So the
    first n draws are the same for every number of samples, in every call, and for every batch size
    (except for dropout: its noise differs between batches). Calls with different inputs draw the
    same networks, so that their averages are kernels of one ensemble.

    At width n the average is the infinite kernel plus a bias of order 1 / n (zero for one hidden
    layer). The `standard_error` falls as 1 / sqrt(n_samples) and does not include the bias.

    Args:
      init_fn: function `(key, input_shape) -> (output_shape, params)`, jittable.
      apply_fn: function `apply_fn(params, x, **kwargs)`.
      key: random key, of the old or the new kind.
      n_samples: number of networks; or an iterable of numbers: `kernel_fn` then yields the running
        average at each, in ascending order.
      batch_size: number of samples of x2, and of x1 per device, in a tile; 0 for all.
      device_count: number of devices that share the rows of x1; -1 for all local ones, 0 for the
        first alone.
      store_on_device: whether kernels are summed on devices; otherwise they are arrays of NumPy.
      trace_axes: axes of the outputs to take the mean over.
      diagonal_axes: axes of which only equal indices are returned.
      vmap_axes: axes of the samples; see `empirical_ntk_fn`.
      implementation: the way to compute the NTK; see `NtkImplementation`.
      _j_rules: ignored; for compatibility.
      _s_rules: ignored; for compatibility.
      _fwd: ignored; for compatibility.
      standard_error: whether to return `Estimate(mean, standard_error)` instead of the mean.

    Raises:
      TypeError: functions or counts of another type, or `n_samples` neither an int nor an iterable.
      ValueError: `n_samples` below 1, empty, or with entries that are not ints of at least 1; a
        wrong number of devices.
      KeyError: an unknown implementation.

    Example:
      >>> import jax, numpy as np
      >>> import widelimit as nt
      >>> from widelimit import stax
      >>> init_fn, apply_fn, _ = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))
      >>> kernel_fn = nt.monte_carlo_kernel_fn(
      ...     init_fn, apply_fn, jax.random.key(0), 10, standard_error=True
      ... )
      >>> mean, error = kernel_fn(np.eye(3), None, "ntk")
      >>> mean.shape, error.shape
      ((3, 3), (3, 3))
    """
    del _j_rules, _s_rules, _fwd
    if not callable(init_fn):
        raise TypeError(f"expected a function init_fn(key, shape), got {type(init_fn).__name__}")
    kernel_fn = empirical_kernel_fn(apply_fn, trace_axes, diagonal_axes, vmap_axes, implementation)
    counts, is_generator = _counts(n_samples)
    batch_size, device_count = (
        operator.index(n) if _is_int(n) else n for n in (batch_size, device_count)
    )
    # Checks the numbers.
    batch(kernel_fn, batch_size, device_count, store_on_device)
    devices = 1 if device_count == 0 else len(resolve_devices(None)) if device_count == -1 else 2

    def tiled(one: KernelFunction, largest: int) -> KernelFunction:
        if not batch_size and devices == 1 and store_on_device:
            return one
        # Without a size one tile holds all samples: choosing one would take a trace for every draw.
        return batch(one, batch_size or largest, device_count, store_on_device)

    return MonteCarloKernelFn(
        *(init_fn, kernel_fn, key, counts, is_generator, tiled),
        takes_rng=_takes_rng(apply_fn),
        standard_error=standard_error,
    )


def _counts(n_samples: Size | Iterable[Size]) -> tuple[tuple[int, ...], bool]:
    """Returns the numbers of draws, ascending, and whether there may be several."""
    if _is_int(n_samples):
        numbers, several = [n_samples], False
    elif isinstance(n_samples, Iterable):
        numbers, several = list(n_samples), True
    else:
        raise TypeError(
            f"expected n_samples to be an int or an iterable of ints, got {n_samples!r}"
        )
    if not numbers or not all(_is_int(n) and operator.index(n) > 0 for n in numbers):
        raise ValueError(f"expected n_samples of at least 1, in ints, got {n_samples!r}")
    return tuple(sorted({operator.index(n) for n in numbers})), several


def _is_int(value: object) -> TypeGuard[SupportsIndex]:
    if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsIndex):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _takes_rng(apply_fn: ApplyFunction) -> bool:
    """Returns whether a function takes a keyword `rng`; True if its signature is unknown."""
    try:
        parameters = inspect.signature(apply_fn).parameters.values()
    except (TypeError, ValueError):
        return True
    keywords = {p.name for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}
    return "rng" in keywords or any(p.kind is p.VAR_KEYWORD for p in parameters)


def _named(kernels: PyTree) -> PyTree:
    """Returns the tree with named tuples of kernels renamed `MonteCarloKernel`."""

    def is_named(value: object) -> bool:
        return isinstance(value, tuple) and {*getattr(value, "_fields", ("",))} <= {*KERNELS}

    def renamed(value: PyTree) -> PyTree:
        return named_tuple("MonteCarloKernel", value._fields)(*value) if is_named(value) else value

    return jax.tree.map(renamed, kernels, is_leaf=is_named)
