"""Between the fused engine and the rest: which networks it runs, and its results as covariances."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit._cache import Cache, kept_with
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Offsets
from widelimit.covariance.signal import Signal
from widelimit.engines.engine import NetworkEngine
from widelimit.engines.fused import activations as activations
from widelimit.engines.fused.activations.base import RefusedError, registered
from widelimit.engines.fused.engine import ImageKernels, Prepared, pair_order
from widelimit.engines.fused.flat import FlatProgram, PreparedRows, RowKernels, lower_flat
from widelimit.engines.fused.geometry import store_places, stored_pairs
from widelimit.engines.fused.lowering import SpatialProgram, lower
from widelimit.engines.fused.parallel import count_threads
from widelimit.engines.fused.tape import has_counted, has_smooth
from widelimit.engines.plan import behind_flatten, make_site, output_need
from widelimit.engines.reference import ReferenceEngine, check_series, leave
from widelimit.engines.request import Request
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.functions import evaluates_functions, layers_of
from widelimit.layers.numerical import SeriesLayer
from widelimit.layers.step import step

# Bytes of tiles beyond which larger ones are no faster. Without space any tile goes in strips.
_FLAT_TILE, _TILE = 2**30, 2**27
_SCRATCH = 2**21  # bytes of a thread's slices, and of what it has pooled
_ORIGIN = "<space>"  # stands for all weights before the spatial axes ended


# Programs of recent networks, by structure: hyper-parameters do not matter.
_programs = Cache(64)


def _program(net: Layer, signal: Any, tangent: bool) -> SpatialProgram | FlatProgram | str:
    """Returns the program of a network, or why there is none."""
    one = _with_samples(signal, 1, 1) if isinstance(signal, Signal) else signal

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
        inner, self._flatten, signal = behind_flatten(net, (shape, shape), request.axes)
        program = _program(inner, signal, request.tangent)
        if isinstance(program, str):
            raise ValueError(f"expected a network that the fused engine runs, but {program}")
        self._kernel: _FlatKernel | _SpatialKernel
        if isinstance(program, FlatProgram):
            self._kernel = _FlatKernel(program, inner, signal, request)
        else:
            self._kernel = _SpatialKernel(program, inner, signal, request)
        self._series = any(isinstance(layer, SeriesLayer) for layer in layers_of(net))
        self._asked = net, shape, request
        self.halves = isinstance(program, FlatProgram)
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


class _FlatKernel:
    """The kernel of a network without spatial axes."""

    kept_entries = 0

    def __init__(self, program: FlatProgram, net: Layer, signal: Signal, request: Request) -> None:
        self._signal, self._request, self._program = signal, request, program
        self._signal_out = net.output_signal(signal)
        self._dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        inner = np.float64 if has_smooth(program.activations) else self._dtype
        self.counted = has_counted(program.activations)
        self._engine = RowKernels(program, net, inner, self._dtype == np.float32)

    def prepare(self, x: Any) -> PreparedRows:
        """Returns inputs with their variances at every layer."""
        return self._engine.prepare(np.asarray(x).transpose(self._signal.to_canonical()))

    @property
    def sample_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""
        return self._signal.channels * 8 + (self._program.places + 2) * self.itemsize + 8

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self._engine.dtype.itemsize

    def kernel(self, first: PreparedRows, second: PreparedRows | None, share: bool) -> Kernel:
        """Returns the kernel between prepared inputs; None stands for `first`."""
        other = first if second is None else second
        program, fields = self._program, self._request.fields
        signal = _with_samples(self._signal_out, len(first.x), len(other.x))
        tangent = "ntk" in fields and program.tangent
        # No copies: the arrays lie where JAX wants them, and nobody else holds them.
        k, t = (
            None if values is None else jnp.from_dlpack(_rounded(values, self._dtype))
            for values in self._engine.kernels(first, second, ("nngp" in fields, tangent))
        )
        if "ntk" in fields and not tangent:  # as the reference: a scalar before the first weights
            shape = (len(first.x), len(other.x)) if program.weighted else ()
            t = jnp.zeros(shape, self._dtype)
        return Kernel(
            nngp=k,
            ntk=t,
            cov1=jnp.array(first.variances) if "cov1" in fields else None,
            cov2=jnp.array(other.variances) if "cov2" in fields and not share else None,
            x1_is_x2=jnp.asarray(second is None) if "x1_is_x2" in fields else None,
            is_gaussian=program.gaussian,
            is_reversed=False,
            is_input=False,
            diagonal_batch=True,
            diagonal_spatial=False,
            shape1=signal.shape1,
            shape2=signal.shape2,
            batch_axis=signal.batch_axis,
            channel_axis=signal.channel_axis,
            mask1=None,
            mask2=None,
        )


class _SpatialKernel:
    """The kernel of a network with spatial axes."""

    def __init__(
        self, program: SpatialProgram, net: Layer, signal: Signal, request: Request
    ) -> None:
        self._signal, self._request, self._program = signal, request, program
        self._tail = program.tail(net)
        anew = evaluates_functions(self._tail) or program.kept is not None
        self._tail_step = _tail_step if anew else _compiled_tail_step
        self._dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        self._in_float64 = any(
            getattr(layer, "subtracts", False) for layer in layers_of(self._tail)
        )
        self._tail_dtype = np.dtype(np.float64) if self._in_float64 else self._dtype
        smooth = self._in_float64 or any(has_smooth(stage.activations) for stage in program.stages)
        inner = np.float64 if smooth else self._dtype
        self._engine = ImageKernels(program, net, inner, self._dtype == np.float32)
        self.counted = any(has_counted(stage.activations) for stage in program.stages)
        self._sites = Cache(16)

    def _site(self, n1: int, n2: int) -> Site:
        """Returns the site of the layers behind the spatial axes."""
        signal = _with_samples(self._program.signal_out, n1, n2)
        need = output_need(self._tail.output_signal(signal), False, self._request.variances)
        return make_site(self._tail, signal, need, (None, None), (None, None))

    def prepare(self, x: Any) -> Prepared:
        """Returns images with their variances at every layer."""
        images = np.moveaxis(np.asarray(x).transpose(self._signal.to_canonical()), -1, 1)
        return self._engine.prepare(images.reshape(len(images), *self._program.image))

    @property
    def kept_entries(self) -> int:
        """Numbers that are kept of a pair at the end of the program, as they are and laid out."""
        program = self._program
        if program.kept is None:
            return 0
        return 6 * store_places(program.stages[-1].out, program.kept)[1]

    @property
    def sample_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""
        return self._program.room * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self._engine.dtype.itemsize

    def kernel(self, first: Prepared, second: Prepared | None, share: bool) -> Any:
        """Returns the kernel between prepared images; None stands for `first`."""
        sizes = len(first.digests), len((first if second is None else second).digests)
        site = self._sites.get(sizes, lambda: self._site(*sizes))
        if self._program.kept is not None:
            start = self._kept_start(first, second, site)
        else:
            start = self._summed_start(first, second, site)
        request = self._request._replace(symmetric=second is None, share=share)
        return leave(self._behind(start, site), site, request)

    def _summed_start(self, first: Prepared, second: Prepared | None, site: Site) -> _Start:
        """Returns the covariances where all positions are summed."""
        values = self._matrix(first, second)
        wanted = site.need_in.own.wanted
        if second is None and wanted:
            cov1, cov2 = values[0].diagonal(), None
        else:
            cov1 = self._variances(first, wanted)
            cov2 = None if second is None else self._variances(second, wanted)
        ntk = values[1] if self._program.tangent else None
        return _Start(values[0], ntk, cov1, cov2)

    def _kept_start(self, first: Prepared, second: Prepared | None, site: Site) -> _Start:
        """Returns the covariances of all pairs of positions."""
        other = first if second is None else second
        n1, n2 = len(first.digests), len(other.digests)
        pairs = pair_order(n1, n2, symmetric=second is None)
        values = self._engine.kernels(first, other, pairs)
        cross, tangent = site.need_in.cross, self._program.tangent
        out = np.empty((2, n1, n2, cross.count, site.signal_in.positions), self._tail_dtype)
        if second is None:
            turned = self._laid_out(values, cross, site.signal_in, turned=True)
            out[:, pairs[:, 1], pairs[:, 0]] = turned
        out[:, pairs[:, 0], pairs[:, 1]] = self._laid_out(values, cross, site.signal_in)
        cov2 = None if second is None else self._own(second, site)
        return _Start(out[0], out[1] if tangent else None, self._own(first, site), cov2)

    def _own(self, images: Prepared, site: Site) -> np.ndarray:
        """Returns the covariances of every image with itself [n, d, p]."""
        n, own = len(images.digests), site.need_in.own
        if not own.wanted:
            return np.zeros((n, 0, site.signal_in.positions), self._tail_dtype)
        same = np.stack([np.arange(n), np.arange(n)], axis=1)
        values = self._engine.kernels(images, images, same)
        return self._laid_out(values, own, site.signal_in)[0]

    def _laid_out(
        self, values: np.ndarray, offsets: Offsets, signal: Signal, *, turned: bool = False
    ) -> np.ndarray:
        """Returns what is kept of pairs [m, 2, room] at offsets [2, m, d, p]."""
        kept, level = self._program.kept, self._program.stages[-1].out
        assert kept is not None
        places = stored_pairs(level, kept, offsets.partners(signal.spatial), turned=turned)
        padded = np.pad(values, ((0, 0), (0, 0), (0, 1)))
        return _rounded(padded[..., places].swapaxes(0, 1), self._tail_dtype)

    def _behind(self, start: _Start, site: Site) -> Covariances:
        """Returns the covariances behind the tail, which smooth layers compute in float64."""
        arguments = self._tail, start, site, self._request.tangent, self._program.gaussian
        if not self._in_float64:
            return self._tail_step(*arguments)
        with jax.enable_x64(True):
            found = self._tail_step(*arguments)
            return jax.tree.map(
                lambda v: v.astype(self._dtype) if v.dtype == np.float64 else v, found
            )

    def _matrix(self, first: Prepared, second: Prepared | None) -> np.ndarray:
        """Returns K and T [2, n1, n2] at the end of the spatial axes; symmetric to the bit."""
        other = first if second is None else second
        n1, n2 = len(first.digests), len(other.digests)
        pairs = pair_order(n1, n2, symmetric=second is None)
        values = self._engine.kernels(first, other, pairs)
        dtype = self._tail_dtype
        out = np.empty((2, n1, n2), dtype)
        values = _rounded(values, dtype)
        out[:, pairs[:, 0], pairs[:, 1]] = values.T
        if second is None:
            out[:, pairs[:, 1], pairs[:, 0]] = values.T
        return out

    def _variances(self, images: Prepared, wanted: bool) -> np.ndarray:
        """Returns the covariance of every image with itself [n], or nothing [n, 0]."""
        n = len(images.digests)
        if not wanted:
            return np.zeros((n, 0, 1), self._tail_dtype)
        if images.variances is not None:
            return images.variances.astype(self._tail_dtype)
        same = np.stack([np.arange(n), np.arange(n)], axis=1)
        return self._engine.kernels(images, images, same)[:, 0].astype(self._tail_dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns numbers in a dtype, infinite where that does not hold them."""
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


class _Start(NamedTuple):
    """Covariances at the end of the program, with axes [d, p] where there still is space.

    Arrays of NumPy: what is compiled takes them sooner than JAX makes arrays of them.

    Attributes:
      nngp: [n1, n2].
      ntk: likewise, None without a tangent.
      cov1: of the images of x1 [n1], or nothing [n1, 0, 1].
      cov2: likewise; None if x2 is x1.
    """

    nngp: np.ndarray
    ntk: np.ndarray | None
    cov1: np.ndarray
    cov2: np.ndarray | None


def _tail_step(
    tail: Layer, start: _Start, site: Site, tangent: bool, gaussian: bool
) -> Covariances:
    """Returns the covariances behind the tail."""
    cov = Covariances(
        nngp=_shaped(start.nngp),
        ntk=None if start.ntk is None else _shaped(start.ntk),
        gap=None,
        cov1=_shaped(start.cov1),
        cov2=None if start.cov2 is None else _shaped(start.cov2),
        signal=site.signal_in,
        need=site.need_in,
        tangent=tangent,
        gaussian=gaussian,
        origins=frozenset({_ORIGIN}),
    )
    return step(tail, cov, site)


# Without spatial axes there is nothing that has to be compiled layer by layer.
_compiled_tail_step = jax.jit(_tail_step, static_argnums=(3, 4))


def _shaped(values: Any) -> jax.Array:
    """Returns values with one offset and one position, unless they have these axes already."""
    values = jnp.asarray(values)
    return values if values.ndim > 2 else values[..., None, None]


def _with_samples(signal: Signal, n1: int, n2: int) -> Signal:
    """Returns the description of other numbers of samples."""

    def resized(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        return (*shape[: signal.batch_axis], n, *shape[signal.batch_axis + 1 :])

    shapes = resized(signal.shape1, n1), resized(signal.shape1, n2)
    return dataclasses.replace(signal, shape1=shapes[0], shape2=shapes[1])
