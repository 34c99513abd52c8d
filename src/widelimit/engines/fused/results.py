"""Results of the compiled interpreters as kernels: what stands behind them runs in plain JAX."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit._cache import Cache
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Offsets
from widelimit.covariance.signal import Signal
from widelimit.engines.fused.engine import ImageKernels, Prepared, pair_order
from widelimit.engines.fused.flat import FlatProgram, PreparedRows, RowKernels
from widelimit.engines.fused.geometry import store_places, stored_pairs
from widelimit.engines.fused.stages import SpatialProgram
from widelimit.engines.fused.tape import has_counted, has_smooth
from widelimit.engines.plan import make_site, output_need
from widelimit.engines.reference import leave
from widelimit.engines.request import Request
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer, Site
from widelimit.layers.functions import evaluates_functions, layers_of
from widelimit.layers.step import step

_ORIGIN = "<space>"  # stands for all weights before the program ends


class FlatKernel:
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
        signal = with_samples(self._signal_out, len(first.x), len(other.x))
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


class SpatialKernel:
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
        signal = with_samples(self._program.signal_out, n1, n2)
        need = output_need(self._tail.output_signal(signal), False, self._request.variances)
        return make_site(self._tail, signal, need, (None, None), (None, None))

    def prepare(self, x: Any) -> Prepared:
        """Returns images with their variances at every layer."""
        images = np.moveaxis(np.asarray(x).transpose(self._signal.to_canonical()), -1, 1)
        return self._engine.prepare(images.reshape(len(images), *self._program.image))

    @property
    def kept_entries(self) -> int:
        """Numbers that are kept of a pair at the end of the program, and what lays them out."""
        program = self._program
        if program.kept is None:
            return 0
        # K and T: kept, with a zero behind, gathered, cast, turned, in the result; and places.
        return 14 * store_places(program.stages[-1].out, program.kept)[1]

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


def with_samples(signal: Signal, n1: int, n2: int) -> Signal:
    """Returns the description of other numbers of samples."""

    def resized(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        return (*shape[: signal.batch_axis], n, *shape[signal.batch_axis + 1 :])

    shapes = resized(signal.shape1, n1), resized(signal.shape1, n2)
    return dataclasses.replace(signal, shape1=shapes[0], shape2=shapes[1])
