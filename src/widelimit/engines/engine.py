"""What computes the kernels of a network: the contract of an engine."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Generic, TypeAlias, TypeVar

from jaxtyping import Array, PyTree

from widelimit.kernel.get import parse_get, select_fields
from widelimit.kernel.kernel import Kernel
from widelimit.typing import Get, Inputs, Pattern, Scalar

_COMPUTED = ("nngp", "ntk", "cov1", "cov2")


Prepared = TypeVar("Prepared")


class Engine(abc.ABC, Generic[Prepared]):
    """Computes the kernels of one network between inputs of one shape.

    Samples are prepared once, alone; pairs of prepared samples then give kernels. `kernel_fn`,
    `wl.gram`, `wl.batch` and ensembles ask an engine for nothing else. One of your own is a class
    with this contract, given by `kernel_fn(..., engine=MyEngine)`, `wl.gram(..., engine=MyEngine)`:
    it is called as `MyEngine(net, shape, request)`, where `shape` is that of x1, and
    `request.fields` names the arrays wanted, among "nngp", "ntk", "cov1" and "cov2".

    Attributes:
      name: the name of the engine.
      reason: one line for people: why it was chosen.
      target_bytes: a tile that takes more bytes is no faster.
      halves: whether tiles are quick, and one of samples with themselves takes half the work.
    """

    name: str = "own"
    reason: str = "given by the caller"
    target_bytes: int = 2**26
    halves: bool = False

    @abc.abstractmethod
    def prepare(self, x: Inputs) -> Prepared:
        """Returns what `pairs` reads of samples.

        Args:
          x: array [n, ...] of the working dtype, or a tree of them for networks of several inputs.
        """

    @abc.abstractmethod
    def pairs(self, first: Prepared, second: Prepared | None) -> Mapping[str, Array]:
        """Returns the arrays wanted, by name: "nngp" and "ntk" [n1, n2], "cov1" [n1], "cov2" [n2].

        Arrays of NumPy are handed over: the engine neither keeps nor changes them.

        Args:
          first: prepared samples.
          second: likewise, or None for the kernels of the first with themselves.
        """

    def sample_bytes(self) -> int:
        """Returns the bytes that `prepare` keeps of one sample."""
        return 0

    def pair_bytes(self, n1: int, n2: int) -> int:
        """Returns the most bytes that `pairs` takes for n1 and n2 samples, result included."""
        return 16 * n1 * n2


EngineMaker: TypeAlias = Callable[..., Engine]
"""What makes an engine of a network, a shape and a `Request`: the class of one."""


class NetworkEngine(Engine[Prepared]):
    """An engine of this package, which also knows patterns, masks and whole Kernels."""

    @abc.abstractmethod
    def prepare(
        self, x: Inputs, pattern: Pattern = None, mask_constant: Scalar | None = None
    ) -> Prepared:
        """Returns samples prepared; see `Engine.prepare`.

        Args:
          x: the samples.
          pattern: their graph pattern.
          mask_constant: entries of x equal to it are masked.
        """

    @abc.abstractmethod
    def kernels(self, first: Prepared, second: Prepared | None, share: bool) -> PyTree[Kernel]:
        """Returns a `Kernel` that holds the arrays wanted, or a tree of them.

        Args:
          first: prepared samples.
          second: likewise, or None for the kernels of the first with themselves.
          share: whether no x2 was given, so that nothing is said of one.
        """

    def select(self, first: Prepared, second: Prepared | None, get: Get, share: bool) -> PyTree:
        """Returns what `get` asks for of the kernels, as arrays of JAX or arrays handed over.

        Args:
          first: prepared samples.
          second: likewise, or None for the kernels of the first with themselves.
          get: None, a name or a tuple of names, among the fields wanted.
          share: whether no x2 was given.
        """
        return select_fields(self.kernels(first, second, share), get)

    def pairs(self, first: Prepared, second: Prepared | None) -> Mapping[str, Array]:
        """Returns the arrays wanted, by name; see `Engine.pairs`.

        Raises:
          TypeError: a network with several outputs.
        """
        kernel = self.kernels(first, second, share=False)
        if isinstance(kernel, list | tuple):
            raise TypeError(f"expected a network with one output, got {len(kernel)}")
        found = {name: getattr(kernel, name) for name in _COMPUTED}
        return {name: value for name, value in found.items() if value is not None}


def answer(
    engine: Engine[Prepared], first: Prepared, second: Prepared | None, get: Get, share: bool
) -> PyTree:
    """Returns what `get` asks for of the kernels between prepared samples.

    Args:
      engine: what computes them.
      first: samples of x1.
      second: samples of x2, None for x1.
      get: None, a name or a tuple of names.
      share: whether no x2 was given.

    Raises:
      ValueError: fields that an engine of the caller does not compute.
    """
    if isinstance(engine, NetworkEngine):
        return engine.select(first, second, get, share)
    try:
        names = parse_get(get, _COMPUTED, default=())
    except ValueError as error:
        error.add_note("an engine of your own computes no others")
        raise
    found = engine.pairs(first, second)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"expected {', '.join(names)} from {type(engine).__name__}.pairs, got no "
            f"{', '.join(missing)}"
        )
    return select_fields(found, get)
