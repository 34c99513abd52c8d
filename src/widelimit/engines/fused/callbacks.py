"""What compiled code of JAX calls back: values of samples, and cotangents pulled back.

By `buffer_callback`, which hands over the memory of the arrays. The arguments of `pure_callback`
are arrays of JAX, which may not be there yet; to wait for them blocks the threads that bring them.
For the same reason nothing of JAX is called in a callback.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from widelimit._cache import Cache, kept_with
from widelimit.engines.fused.adjoints.cotangents import Cotangents
from widelimit.engines.fused.bridge import network_kernel
from widelimit.engines.fused.kernels import FlatKernel
from widelimit.engines.fused.spatial_kernels import SpatialKernel
from widelimit.engines.plan import leading_flatten
from widelimit.engines.request import Request
from widelimit.layers.base import Layer
from widelimit.layers.reshape import Flatten


@dataclasses.dataclass(frozen=True)
class TracedCall:
    """What is static of a call; equal for equal calls, so that they share what is compiled.

    Attributes:
      structure: of the network.
      constants: its hyper-parameters, None for those that are traced.
      shape: shape of x1.
      request: what is asked for.
      dtype: the working dtype.
      share: whether no x2 was given.
    """

    structure: Any
    constants: tuple[float | None, ...]
    shape: tuple[int, ...]
    request: Request
    dtype: np.dtype
    share: bool = False

    def network(self, numbers: Any) -> Layer:
        """Returns the network with traced hyper-parameters, or with numbers in their place."""
        given = iter(() if numbers is None else numbers)
        leaves = [next(given) if value is None else value for value in self.constants]
        net: Layer = jax.tree.unflatten(self.structure, leaves)
        return net

    def flatten(self) -> Flatten | None:
        """Returns the Flatten that the network begins with, or None."""
        return leading_flatten(self.network([1.0] * len(self.constants)))[1]

    def activation_numbers(self) -> set[int]:
        """Returns which of the traced hyper-parameters belong to nonlinearities of the program."""
        places = itertools.count()
        leaves = [next(places) if value is None else -1 for value in self.constants]
        net, _ = leading_flatten(jax.tree.unflatten(self.structure, leaves))
        layers = self.template().nonlinearities(net)
        return {leaf for leaf in jax.tree.leaves(layers) if leaf >= 0}

    def sizes(self, x1: Any, x2: Any) -> tuple[int, int]:
        """Returns how many samples there are."""
        flatten, axis = self.flatten(), self.template().batch_axis
        shapes = (x1.shape, (x1 if x2 is None else x2).shape)
        n1, n2 = (s[axis] if flatten is None else flatten.output_shape(s)[axis] for s in shapes)
        return n1, n2

    def template(self) -> FlatKernel | SpatialKernel:
        """Returns the kernel of a network of this structure, made once."""
        return _templates.get(dataclasses.replace(self, share=False), self._make_template)

    def _make_template(self) -> FlatKernel | SpatialKernel:
        some = [1.0] * len(self.constants)
        return network_kernel(self.network(some), self.shape, self.request)[0]


_templates = Cache(64)


@dataclasses.dataclass(frozen=True)
class _Host:
    """What is called back, by NumPy alone.

    Attributes:
      call: what is static.
      axes: how many axes the hyper-parameters, x1 and x2 have; under `vmap` more stand in front.
      template: the kernel of networks of this structure.
    """

    call: TracedCall
    axes: tuple[int, int, int]
    template: FlatKernel | SpatialKernel = dataclasses.field(compare=False)

    def _bound(self, numbers: bytes) -> FlatKernel | SpatialKernel:
        """Returns the kernel of the network with these hyper-parameters."""
        if not numbers:
            return self.template
        values = np.frombuffer(numbers, self.call.dtype).tolist()

        def bind() -> FlatKernel | SpatialKernel:
            return self.template.of(leading_flatten(self.call.network(values))[0])

        return kept_with(self.template, numbers, bind)

    def _calls(self, lead: tuple[int, ...], given: Any, backwards: bool) -> Iterator[_OneCall]:
        """Yields the calls that `vmap` has put together, one by one."""
        arrays: list[Any] = [None if v is None else np.asarray(v) for v in given]

        @functools.lru_cache(maxsize=2)  # samples that calls share
        def samples(side: int, place: tuple[int, ...], numbers: bytes) -> _FiniteSamples:
            return _FiniteSamples.of(self._bound(numbers), arrays[side][place], backwards)

        for index in np.ndindex(lead):
            places = [
                () if array is None else _place(array.shape[: array.ndim - axes], index)
                for array, axes in zip(arrays, self.axes, strict=True)
            ]
            numbers = b"" if arrays[0] is None else arrays[0][places[0]].tobytes()
            first = samples(1, places[1], numbers)
            second = None if arrays[2] is None else samples(2, places[2], numbers)
            yield _OneCall(index, self._bound(numbers), first, second)


class ValuesHost(_Host):
    """Writes values of samples into arrays."""

    def __call__(self, _: Any, out: dict[str, Any], *given: Any) -> None:
        """Writes the values of all calls."""
        targets = {name: np.asarray(array) for name, array in out.items()}
        name, target = next(iter(targets.items()))
        lead = target.shape[: target.ndim - _value_axes(name)]
        for one in self._calls(lead, given, backwards=False):
            _write(one, {name: target[one.place] for name, target in targets.items()})


@dataclasses.dataclass(frozen=True)
class PullHost(_Host):
    """Writes what cotangents of values become at the numbers of instructions and at the samples.

    Attributes:
      inputs: whether those of samples are wanted.
    """

    inputs: bool = False

    def __call__(
        self, _: Any, out: dict[str, Any], numbers: Any, x1: Any, x2: Any, given: dict[str, Any]
    ) -> None:
        """Writes the cotangents of all calls; NaN where a sample is not finite."""
        targets = {name: np.asarray(array) for name, array in out.items()}
        cotangents = {name: np.asarray(array) for name, array in given.items()}
        lead = targets["numbers"].shape[:-2]
        for one in self._calls(lead, (numbers, x1, x2), backwards=True):
            found = one.kernel.pull(
                one.first.prepared,
                None if one.second is None else one.second.prepared,
                Cotangents(**{n: _one_of(v, n, one.place) for n, v in cotangents.items()}),
                self.inputs,
            )
            with np.errstate(over="ignore"):
                for name, target in targets.items():
                    target[one.place] = getattr(found, name) if one.finite else np.nan


class _OneCall(NamedTuple):
    """One of the calls that `vmap` has put together.

    Attributes:
      place: where its results stand.
      kernel: of the network.
      first: samples of x1.
      second: those of x2, or None.
    """

    place: tuple[int, ...]
    kernel: FlatKernel | SpatialKernel
    first: _FiniteSamples
    second: _FiniteSamples | None

    @property
    def finite(self) -> bool:
        """Whether all samples are."""
        sides = (self.first, self.second)
        return all(bool(side.finite.all()) for side in sides if side is not None)


class _FiniteSamples(NamedTuple):
    """Samples, and which of them are finite.

    Attributes:
      finite: [n].
      prepared: the samples, with zeros for those that are not.
    """

    finite: np.ndarray
    prepared: Any

    @classmethod
    def of(
        cls, kernel: FlatKernel | SpatialKernel, x: np.ndarray, backwards: bool
    ) -> _FiniteSamples:
        """Returns samples as the kernel reads them, or as its derivatives do."""
        features = tuple(axis for axis in range(x.ndim) if axis != kernel.batch_axis)
        finite = np.isfinite(x).all(axis=features)
        if not finite.all():
            x = np.where(np.expand_dims(finite, features), x, 0)
        return cls(finite, kernel.prepare_to_pull(x) if backwards else kernel.prepare(x))


def _write(one: _OneCall, targets: dict[str, np.ndarray]) -> None:
    """Writes the values of samples, NaN for those that are not finite."""
    first, second = one.first, one.second
    values = one.kernel.values(first.prepared, None if second is None else second.prepared)
    other = first if second is None else second
    with np.errstate(over="ignore"):
        for name, target in targets.items():
            target[...] = getattr(values, name)
            if name != "cov2":
                target[~first.finite] = np.nan
            if name != "cov1":
                target[..., ~other.finite] = np.nan


def _value_axes(name: str) -> int:
    """Returns how many axes values have."""
    return 1 if name in ("cov1", "cov2") else 2


def _one_of(values: np.ndarray, name: str, index: tuple[int, ...]) -> np.ndarray:
    """Returns the values of one call."""
    found: np.ndarray = values[_place(values.shape[: values.ndim - _value_axes(name)], index)]
    return found


def _place(lead: tuple[int, ...], index: tuple[int, ...]) -> tuple[int, ...]:
    """Returns where an argument of a call stands; it has axes of size 1 where calls share it."""
    return tuple(0 if size == 1 else i for size, i in zip(lead, index, strict=True))
