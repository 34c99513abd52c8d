"""The contract of an engine, which computes the kernels of a network."""

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

    Each sample is prepared once; kernels are then computed from pairs of prepared samples.
    `kernel_fn`, `wl.gram`, `wl.batch` and ensembles use nothing else of an engine. Your own engine
    is a class with this contract: pass it as `kernel_fn(..., engine=MyEngine)` or
    `wl.gram(..., engine=MyEngine)`. It is called as `MyEngine(net, shape, request)`, where `shape`
    is that of x1, and `request.fields` are the names of the requested arrays, among "nngp", "ntk",
    "cov1" and "cov2".

    Attributes:
      name: the name of the engine.
      reason: the reason for which it was chosen, one line of text.
      target_bytes: bytes beyond which larger tiles are not faster.
      halves: whether tiles are quick, and a tile of samples with themselves takes half the work.
    """

    name: str = "own"
    reason: str = "given by the caller"
    target_bytes: int = 2**26
    halves: bool = False

    @abc.abstractmethod
    def prepare(self, x: Inputs) -> Prepared:
        """Returns the samples, prepared for `pairs`.

        Args:
          x: array [n, ...] of the working dtype, or a tree of them for networks of several inputs.
        """

    @abc.abstractmethod
    def pairs(self, first: Prepared, second: Prepared | None) -> Mapping[str, Array]:
        """Returns the requested arrays by name: "nngp", "ntk" [n1, n2], "cov1" [n1], "cov2" [n2].

        NumPy arrays belong to the caller: the engine must neither keep nor change them.

        Args:
          first: prepared samples.
          second: prepared samples, or None for the kernels of the first with themselves.
        """

    def sample_bytes(self) -> int:
        """Returns the bytes that `prepare` stores per sample."""
        return 0

    def pair_bytes(self, n1: int, n2: int) -> int:
        """Returns the peak bytes of `pairs`, result included.

        Args:
          n1: number of samples of x1.
          n2: number of samples of x2.
        """
        return 16 * n1 * n2


EngineMaker: TypeAlias = Callable[..., Engine]
"""A function of a network, a shape and a `Request` that returns an engine: commonly its class."""


class NetworkEngine(Engine[Prepared]):
    """An engine of this package, which also supports patterns, masks and whole Kernels."""

    @abc.abstractmethod
    def prepare(
        self, x: Inputs, pattern: Pattern = None, mask_constant: Scalar | None = None
    ) -> Prepared:
        """Returns the prepared samples; see `Engine.prepare`.

        Args:
          x: the samples.
          pattern: their graph pattern.
          mask_constant: entries of x equal to it are masked.
        """

    @abc.abstractmethod
    def kernels(self, first: Prepared, second: Prepared | None, share: bool) -> PyTree[Kernel]:
        """Returns a `Kernel` with the requested arrays, or a tree of Kernels.

        Args:
          first: prepared samples.
          second: prepared samples, or None for the kernels of the first with themselves.
          share: whether x2 was None, so that the Kernel has no fields of x2.
        """

    def select(self, first: Prepared, second: Prepared | None, get: Get, share: bool) -> PyTree:
        """Returns the fields in `get`, as JAX arrays, or NumPy arrays that belong to the caller.

        Args:
          first: prepared samples.
          second: prepared samples, or None for the kernels of the first with themselves.
          get: None, a name or a tuple of names, among the requested fields.
          share: whether x2 was None.
        """
        return select_fields(self.kernels(first, second, share), get)

    def pairs(self, first: Prepared, second: Prepared | None) -> Mapping[str, Array]:
        """Returns the requested arrays by name; see `Engine.pairs`.

        Raises:
          TypeError: a network with several outputs.
        """
        kernel = self.kernels(first, second, share=False)
        if isinstance(kernel, list | tuple):
            raise TypeError(f"expected a network with one output, got {len(kernel)}")
        arrays = {name: getattr(kernel, name) for name in _COMPUTED}
        return {name: value for name, value in arrays.items() if value is not None}


def answer(
    engine: Engine[Prepared], first: Prepared, second: Prepared | None, get: Get, share: bool
) -> PyTree:
    """Returns the fields in `get` of the kernels between prepared samples.

    Args:
      engine: the engine that computes them.
      first: samples of x1.
      second: samples of x2, None for x1.
      get: None, a name or a tuple of names.
      share: whether x2 was None.

    Raises:
      ValueError: fields that the user's engine does not compute.
    """
    if isinstance(engine, NetworkEngine):
        return engine.select(first, second, get, share)
    try:
        names = parse_get(get, _COMPUTED, default=())
    except ValueError as error:
        error.add_note("your own engine computes only these")
        raise
    arrays = engine.pairs(first, second)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"expected {', '.join(names)} from {type(engine).__name__}.pairs, got no "
            f"{', '.join(missing)}"
        )
    return select_fields(arrays, get)
