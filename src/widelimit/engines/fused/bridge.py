"""Between the fused engine and the rest: which networks it runs."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

import jax

from widelimit._cache import Cache, kept_with
from widelimit.covariance.signal import Signal
from widelimit.engines.engine import NetworkEngine
from widelimit.engines.fused import activations as activations
from widelimit.engines.fused.activations.base import RefusedError, registered
from widelimit.engines.fused.flat import FlatProgram, lower_flat
from widelimit.engines.fused.kernels import FlatKernel
from widelimit.engines.fused.lowering import lower
from widelimit.engines.fused.parallel import count_threads
from widelimit.engines.fused.spatial_kernels import SpatialKernel
from widelimit.engines.fused.stages import SpatialProgram
from widelimit.engines.plan import behind_flatten, make_site, output_need
from widelimit.engines.reference import ReferenceEngine, check_series
from widelimit.engines.request import Request
from widelimit.kernel.get import KERNELS, parse_get, select_fields
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer
from widelimit.layers.context import Context
from widelimit.layers.functions import layers_of
from widelimit.layers.numerical import SeriesLayer
from widelimit.layers.reshape import Flatten
from widelimit.typing import Get

# Bytes of tiles beyond which larger ones are no faster. Without space any tile goes in strips.
_FLAT_TILE, _TILE = 2**30, 2**27
_SCRATCH = 2**21  # bytes of a thread's slices, and of what it has pooled


# Programs of recent networks, by structure: hyper-parameters do not matter.
_programs = Cache(64)


def _program(net: Layer, signal: Any, tangent: bool) -> SpatialProgram | FlatProgram | str:
    """Returns the program of a network, or why there is none."""
    one = signal.with_samples(1, 1) if isinstance(signal, Signal) else signal

    def alike() -> Any:
        key = jax.tree.structure(net), one, tangent, registered()
        return _programs.get(key, lambda: _lowered(net, one, tangent))

    # Structures take a while to compare.
    found: SpatialProgram | FlatProgram | str = kept_with(
        net, ("program", one, tangent, registered()), alike
    )
    return found


def _lowered(net: Layer, signal: Any, tangent: bool) -> SpatialProgram | FlatProgram | str:
    if not isinstance(signal, Signal):
        return "the network has several inputs"
    try:
        if signal.spatial:
            return lower(net, signal, tangent)
        need = output_need(net.output_signal(signal), diagonal_spatial=False, own=False)
        site = make_site(net, signal, need, (None, None), (None, None))
        return lower_flat(net, site, tangent)
    except RefusedError as error:
        return str(error)
    except (ValueError, NotImplementedError):  # the reference engine says what, for all samples
        return "its layers do not fit each other, or not one sample alone"


def refusal(
    net: Layer, signal: Any, tangent: bool = True, diagonal_spatial: bool = False
) -> str | None:
    """Returns why the fused engine does not run a network on such inputs; None if it does."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    if jax.default_backend() != "cpu":
        return f"the default device is a {jax.default_backend()}"
    found = _program(net, signal, tangent)
    if diagonal_spatial and isinstance(found, SpatialProgram) and found.kept is not None:
        return "equal positions alone are asked for"
    return found if isinstance(found, str) else None


def network_kernel(
    net: Layer, shape: Any, request: Request
) -> tuple[FlatKernel | SpatialKernel, Flatten | None]:
    """Returns the kernel of a network, and a Flatten before it.

    Raises:
      ValueError: the fused engine does not run the network.
    """
    inner, flatten, signal = behind_flatten(net, (shape, shape), request.axes)
    program = _program(inner, signal, request.tangent)
    if isinstance(program, str):
        raise ValueError(f"expected a network that the fused engine runs, but {program}")
    if isinstance(program, FlatProgram):
        return FlatKernel(program, inner, signal, request), flatten
    return SpatialKernel(program, inner, signal, request), flatten


class FusedEngine(NetworkEngine):
    """Whole networks on slices of covariances that stay in cache, on a CPU."""

    name = "fused"
    reason = "pieces of covariances stay in cache; compiled by numba"

    def __init__(self, net: Layer, shape: Any, request: Request) -> None:
        """Makes an engine.

        Args:
          net: a network without a `refusal`.
          shape: shape of x1; the number of samples does not matter.
          request: what is asked for.

        Raises:
          ValueError: the fused engine does not run the network.
        """
        self._kernel, self._flatten = network_kernel(net, shape, request)
        self._kernel.engine  # noqa: B018 - bound now, since a table may be refused
        self._series = any(isinstance(layer, SeriesLayer) for layer in layers_of(net))
        self._asked = net, shape, request
        self.halves = isinstance(self._kernel, FlatKernel)
        self.target_bytes = _FLAT_TILE if self.halves else _TILE

    @functools.cached_property
    def _reference(self) -> ReferenceEngine:
        """The engine of what this one leaves."""
        return ReferenceEngine(*self._asked, "variances are large")

    def sample_bytes(self) -> int:
        """Returns the bytes that `prepare` keeps of one sample."""
        return self._kernel.sample_bytes

    def pair_bytes(self, n1: int, n2: int) -> int:
        """Returns the most bytes that `pairs` takes for n1 and n2 samples, result included."""
        # Products of inputs or sums of pairs in float64, K and T, and their public copies.
        pairs = n1 * n2 * (16 + (6 + self._kernel.kept_entries) * self._kernel.itemsize)
        behind = self._reference.pair_bytes(n1, n2) if self._kernel.kept_entries else 0
        return pairs + behind + _SCRATCH * count_threads()

    def prepare(self, x: Any, pattern: Any = None, mask_constant: Any = None) -> Any:
        """Returns samples with their variances at all layers.

        Raises:
          ValueError: patterns or masks.
        """
        if pattern is not None or mask_constant is not None:
            raise ValueError("expected inputs without patterns and masks for the fused engine")
        images = x if self._flatten is None else self._flatten.apply((), x, Context())
        prepared = self._kernel.prepare(images)
        return _SeriesSamples(x, prepared) if self._kernel.counted else prepared

    def kernels(self, first: Any, second: Any, share: bool) -> Kernel:
        """Returns the kernel between prepared samples."""
        if self._kernel.counted:
            found = self._counted_kernels(first, second, share)
        else:
            found = self._kernel.kernel(first, second, share)
        if self._series:
            check_series(found)
        return found

    def select(self, first: Any, second: Any, get: Get, share: bool) -> Any:
        """Returns what `get` asks for; arrays of NumPy without spatial axes."""
        kernel = self._kernel
        if isinstance(kernel, FlatKernel) and not self._series and {*parse_get(get)} <= {*KERNELS}:
            return select_fields(kernel.matrices(first, second), get)
        return super().select(first, second, get, share)

    def _counted_kernels(
        self, first: _SeriesSamples, second: _SeriesSamples | None, share: bool
    ) -> Any:
        """Returns the kernel of a network with series, by plain JAX where variances are large."""
        if first.known and (second is None or second.known):
            return self._kernel.kernel(
                first.prepared, None if second is None else second.prepared, share
            )
        prepare = self._reference.prepare
        return self._reference.kernels(
            prepare(first.x), None if second is None else prepare(second.x), share
        )


class _SeriesSamples(NamedTuple):
    """Samples, as they are and prepared."""

    x: Any
    prepared: Any

    @property
    def known(self) -> bool:
        """Whether the tables of all series reach as far as the variances of these samples."""
        return not self.prepared.lost
