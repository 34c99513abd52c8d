"""Kernels of lowered networks with spatial axes; plain JAX runs the layers behind them."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit._cache import Cache
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Offsets
from widelimit.covariance.signal import Signal
from widelimit.engines.fused.adjoints.cotangents import Cotangents, Pulled
from widelimit.engines.fused.adjoints.images import ImageAdjoints
from widelimit.engines.fused.adjoints.order import is_read_up, missing_partials
from widelimit.engines.fused.engine import ImageKernels, Prepared, pair_order
from widelimit.engines.fused.geometry import store_places, stored_pairs
from widelimit.engines.fused.instructions import AVERAGE, FINAL
from widelimit.engines.fused.kernels import KernelValues, NetworkKernel, rounded
from widelimit.engines.fused.near import nearly_equal
from widelimit.engines.fused.stages import SpatialProgram, Stage
from widelimit.engines.fused.tape import has_counted, has_smooth
from widelimit.engines.plan import make_site, output_need
from widelimit.engines.reference import leave
from widelimit.engines.request import Request
from widelimit.layers.base import Layer, Site
from widelimit.layers.functions import evaluates_functions, layers_of
from widelimit.layers.step import step

_ORIGIN = "<space>"  # stands for all weights before the program ends


class SpatialKernel(NetworkKernel):
    """The kernel of a network with spatial axes; `dtype` is that of the layers behind, too."""

    def __init__(
        self, program: SpatialProgram, net: Layer, signal: Signal, request: Request
    ) -> None:
        self._signal, self._request, self._program, self._net = signal, request, program, net
        self._order = signal.to_canonical()
        anew = evaluates_functions(self._tail) or program.kept is not None
        self._tail_step = _tail_step if anew else _compiled_tail_step
        self._public_dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        self._in_float64 = any(
            getattr(layer, "subtracts", False) for layer in layers_of(self._tail)
        )
        self.dtype = np.dtype(np.float64) if self._in_float64 else self._public_dtype
        smooth = self._in_float64 or any(has_smooth(stage.activations) for stage in program.stages)
        self._inner = np.dtype(np.float64) if smooth else self._public_dtype
        self.itemsize = self._inner.itemsize
        self.sample_bytes = program.room * self.itemsize
        if program.kept is not None:
            # K and T: kept, with a zero behind, gathered, reordered, in the result; places.
            self.kept_entries = 14 * store_places(program.stages[-1].out, program.kept)[1]
        self.counted = any(has_counted(stage.activations) for stage in program.stages)
        self.undifferentiable = _no_way_back(program) or (
            "layers behind its program want float64" if self.dtype != self._public_dtype else None
        )
        self.whole = program.kept is not None or self.dtype != self._public_dtype
        self._sites = Cache(16)
        self._variances_wanted = self._site_of((1, 1)).need_in.own.wanted

    @functools.cached_property
    def engine(self) -> ImageKernels:
        """The loops, bound to hyper-parameters."""
        return ImageKernels(self._program, self._net, self._inner, self._public_dtype == np.float32)

    @functools.cached_property
    def adjoint(self) -> ImageAdjoints:
        """The loops that run backwards."""
        return ImageAdjoints(self._program, self._net)

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return self._program.stages

    def head(self, net: Layer) -> Layer:
        """Returns a network with the identity in place of the layers behind the program."""
        return self._program.head(net)

    @functools.cached_property
    def _precise(self) -> ImageKernels:
        """The same in float64, for pairs that float32 cannot tell apart."""
        return ImageKernels(self._program, self._net, np.float64, True)

    @functools.cached_property
    def _tail(self) -> Layer:
        """The layers behind the spatial axes."""
        return self._program.tail(self._net)

    def _site_of(self, sizes: tuple[int, int]) -> Site:
        return self._sites.get(sizes, lambda: self._site(*sizes))

    def _site(self, n1: int, n2: int) -> Site:
        """Returns the site of the layers behind the spatial axes."""
        signal = self._program.signal_out.with_samples(n1, n2)
        need = output_need(self._tail.output_signal(signal), False, self._request.variances)
        return make_site(self._tail, signal, need, (None, None), (None, None))

    def prepare(self, x: Any) -> Prepared:
        """Returns images with their variances at every layer."""
        return self.engine.prepare(self._planes(x))

    def prepare_to_pull(self, x: Any) -> Prepared:
        """Returns images as `pull` takes them."""
        return self.adjoint.kernels.prepare(self._planes(x))

    def _planes(self, x: Any) -> np.ndarray:
        """Returns inputs as images [n, channels, rows, columns]."""
        images = np.moveaxis(np.asarray(x).transpose(self._order), -1, 1)
        return images.reshape(len(images), *self._program.image)

    def pull(
        self, first: Prepared, second: Prepared | None, given: Cotangents, inputs: bool
    ) -> Pulled:
        """Returns what cotangents become: see `ImageAdjoints.pull`."""
        numbers, *sides = self.adjoint.pull(first, second, given, inputs)
        back, spatial = np.argsort(self._order), self._signal.spatial
        return Pulled(
            numbers,
            *(
                None
                if x is None
                else np.moveaxis(x.reshape(*x.shape[:2], *spatial), 1, -1).transpose(back)
                for x in sides
            ),
        )

    def names(self, symmetric: bool) -> tuple[str, ...]:
        """Returns which values there are."""
        asked = {
            "nngp": True,
            "ntk": self._program.tangent,
            "cov1": self._variances_wanted,
            "cov2": self._variances_wanted and not symmetric,
        }
        return tuple(itertools.compress(asked, asked.values()))

    def values(self, first: Prepared, second: Prepared | None) -> KernelValues:
        """Returns the values between prepared images; None stands for `first`."""
        if self._program.kept is not None:
            return self._kept_values(first, second)
        k, t = self._matrix(first, second)
        cov1 = cov2 = None
        if self._variances_wanted:
            cov1 = k.diagonal() if second is None else self._variances(first)
            cov2 = None if second is None else self._variances(second)
        return KernelValues(k, t if self._program.tangent else None, cov1, cov2)

    def _kept_values(self, first: Prepared, second: Prepared | None) -> KernelValues:
        """Returns the covariances of all pairs of positions."""
        other = first if second is None else second
        n1, n2 = len(first.digests), len(other.digests)
        site = self._site_of((n1, n2))
        pairs = pair_order(n1, n2, symmetric=second is None)
        values = self._pairs(first, other, pairs)
        cross, signal = site.need_in.cross, site.signal_in
        out = np.empty((2, n1, n2, cross.count, signal.positions), self.dtype)
        if second is None:
            out[:, pairs[:, 1], pairs[:, 0]] = self._laid_out(values, cross, signal, turned=True)
        out[:, pairs[:, 0], pairs[:, 1]] = self._laid_out(values, cross, signal)
        cov1, cov2 = self._own(first, site), None if second is None else self._own(second, site)
        return KernelValues(out[0], out[1] if self._program.tangent else None, cov1, cov2)

    def _own(self, images: Prepared, site: Site) -> np.ndarray:
        """Returns the covariances of every image with itself [n, d, p]."""
        n, own = len(images.digests), site.need_in.own
        if not own.wanted:
            return np.zeros((n, 0, site.signal_in.positions), self.dtype)
        same = np.stack([np.arange(n), np.arange(n)], axis=1)
        values = self.engine.kernels(images, images, same)
        return self._laid_out(values, own, site.signal_in)[0]

    def _laid_out(
        self, values: np.ndarray, offsets: Offsets, signal: Signal, *, turned: bool = False
    ) -> np.ndarray:
        """Returns what is kept of pairs [m, 2, room] at offsets [2, m, d, p]."""
        kept, level = self._program.kept, self._program.stages[-1].out
        assert kept is not None
        places = stored_pairs(level, kept, offsets.partners(signal.spatial), turned=turned)
        padded = np.pad(values, ((0, 0), (0, 0), (0, 1)))
        return rounded(padded[..., places].swapaxes(0, 1), self.dtype)

    def kernel(self, first: Prepared, second: Prepared | None, share: bool) -> Any:
        """Returns the kernel between prepared images; None stands for `first`."""
        sizes = len(first.digests), len((first if second is None else second).digests)
        return self.public(self.values(first, second), sizes, second is None, share)

    def public(
        self, values: KernelValues, sizes: tuple[int, int], symmetric: bool, share: bool
    ) -> Any:
        """Returns values, which may be traced, between sets of those sizes behind the tail."""
        if values.cov1 is None:
            nothing = (np.zeros((n, 0, 1), self.dtype) for n in sizes)
            values = values._replace(cov1=next(nothing), cov2=None if symmetric else next(nothing))
        site = self._site_of(sizes)
        request = self._request._replace(symmetric=symmetric, share=share)
        return leave(self._behind(values, site), site, request)

    def _behind(self, start: KernelValues, site: Site) -> Covariances:
        """Returns the covariances behind the tail, which smooth layers compute in float64."""
        arguments = self._tail, start, site, self._request.tangent, self._program.gaussian
        if not self._in_float64:
            return self._tail_step(*arguments)
        with jax.enable_x64(True):
            found = self._tail_step(*arguments)
            return jax.tree.map(
                lambda v: v.astype(self._public_dtype) if v.dtype == np.float64 else v, found
            )

    def _matrix(self, first: Prepared, second: Prepared | None) -> np.ndarray:
        """Returns K and T [2, n1, n2] at the end of the spatial axes; symmetric to the bit."""
        other = first if second is None else second
        n1, n2 = len(first.digests), len(other.digests)
        pairs = pair_order(n1, n2, symmetric=second is None)
        values = self._pairs(first, other, pairs)
        dtype = self.dtype
        out = np.empty((2, n1, n2), dtype)
        values = rounded(values, dtype)
        out[:, pairs[:, 0], pairs[:, 1]] = values.T
        if second is None:
            out[:, pairs[:, 1], pairs[:, 0]] = values.T
        return out

    def _pairs(self, first: Prepared, second: Prepared, pairs: np.ndarray) -> np.ndarray:
        """Returns K and T of pairs [m, 2], of those that are nearly equal through float64."""
        values = self.engine.kernels(first, second, pairs)
        if self._inner == np.float32:
            near = nearly_equal(first.images, second.images, pairs)
            if near.any():
                values[near] = self._precise.between(first.images, second.images, pairs[near])
        return values

    def _variances(self, images: Prepared) -> np.ndarray:
        """Returns the covariance of every image with itself [n]."""
        n = len(images.digests)
        if images.variances is not None:
            return images.variances.astype(self.dtype)
        same = np.stack([np.arange(n), np.arange(n)], axis=1)
        return self.engine.kernels(images, images, same)[:, 0].astype(self.dtype)


def _no_way_back(program: SpatialProgram) -> str | None:
    """Returns why a program does not run backwards, None if it does."""
    if program.kept is not None:
        return "positions are left at the end of its program"
    if any(level.circular for stage in program.stages for level in stage.levels):
        return "space is circular"
    if any(stage.code[:, AVERAGE].any() for stage in program.stages):
        return "a normalisation runs over positions"
    if not all(is_read_up(stage.code, int(stage.sizes[FINAL])) for stage in program.stages):
        return "its program computes what nothing reads"
    return next(filter(None, (missing_partials(s.activations) for s in program.stages)), None)


def _tail_step(
    tail: Layer, start: KernelValues, site: Site, tangent: bool, gaussian: bool
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
