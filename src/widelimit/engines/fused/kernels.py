"""Kernels of lowered networks: numbers by compiled loops, and what JAX makes of them.

`prepare` and `values` are NumPy alone, so that compiled code of JAX may call them back.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from widelimit._cache import Cache
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.signal import Signal
from widelimit.engines.fused.engine import ImageKernels, Prepared, pair_order
from widelimit.engines.fused.flat import FlatProgram, PreparedRows, RowKernels
from widelimit.engines.fused.lowering import SpatialProgram
from widelimit.engines.fused.tape import has_counted, has_smooth
from widelimit.engines.plan import make_site, output_need
from widelimit.engines.reference import leave
from widelimit.engines.request import Request
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer, Site
from widelimit.layers.functions import evaluates_functions, layers_of
from widelimit.layers.step import step

_Bound = TypeVar("_Bound", bound="_NetworkKernel")

_ORIGIN = "<space>"  # stands for all weights before the spatial axes ended


class KernelValues(NamedTuple):
    """What compiled loops tell of two sets of samples; None for what is not wanted.

    Arrays of NumPy: what is compiled takes them sooner than JAX makes arrays of them.

    Attributes:
      nngp: K of pairs [n1, n2].
      ntk: T of pairs, likewise.
      cov1: variances of x1 [n1].
      cov2: variances of x2 [n2]; None if x2 is x1.
    """

    nngp: Any = None
    ntk: Any = None
    cov1: Any = None
    cov2: Any = None


class _NetworkKernel:
    """The kernel of a network, bound to its hyper-parameters when it first computes."""

    dtype: np.dtype
    _net: Layer
    _signal: Signal

    @property
    def batch_axis(self) -> int:
        """The axis of the samples in what `prepare` takes."""
        return self._signal.batch_axis

    def names(self, symmetric: bool) -> tuple[str, ...]:
        """Returns which `KernelValues` there are."""
        raise NotImplementedError

    def outline(self, sizes: tuple[int, int], symmetric: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of the values between sets of those sizes."""
        shapes = {"nngp": sizes, "ntk": sizes, "cov1": sizes[:1], "cov2": sizes[1:]}
        names = self.names(symmetric)
        return {name: jax.ShapeDtypeStruct(shapes[name], self.dtype) for name in names}

    def of(self: _Bound, net: Layer) -> _Bound:
        """Returns the kernel of a network that differs in hyper-parameters only."""
        other = copy.copy(self)
        for name in ("engine", "_tail"):
            other.__dict__.pop(name, None)
        other._net = net
        return other


class FlatKernel(_NetworkKernel):
    """The kernel of a network without spatial axes.

    Attributes:
      dtype: of the values.
      counted: whether it holds a series, whose table may end before variances do.
    """

    def __init__(self, program: FlatProgram, net: Layer, signal: Signal, request: Request) -> None:
        self._signal, self._request, self._program = signal, request, program
        self._net, self._signal_out = net, net.output_signal(signal)
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        self.counted = has_counted(program.activations)

    @functools.cached_property
    def engine(self) -> RowKernels:
        """The loops, bound to hyper-parameters."""
        inner = np.float64 if has_smooth(self._program.activations) else self.dtype
        return RowKernels(self._program, self._net, inner, self.dtype == np.float32)

    def prepare(self, x: Any) -> PreparedRows:
        """Returns inputs with their variances at every layer."""
        return self.engine.prepare(np.asarray(x).transpose(self._signal.to_canonical()))

    @property
    def sample_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""
        return self._signal.channels * 8 + (self._program.places + 2) * self.itemsize + 8

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self.engine.dtype.itemsize

    def names(self, symmetric: bool) -> tuple[str, ...]:
        """Returns which values there are."""
        fields = self._request.fields
        asked = {
            "nngp": "nngp" in fields,
            "ntk": "ntk" in fields and self._program.tangent,
            "cov1": "cov1" in fields or (symmetric and "cov2" in fields),
            "cov2": "cov2" in fields and not symmetric,
        }
        return tuple(name for name, wanted in asked.items() if wanted)

    def values(self, first: PreparedRows, second: PreparedRows | None) -> KernelValues:
        """Returns the values between prepared inputs; None stands for `first`."""
        names = self.names(second is None)
        k, t = (
            None if values is None else _rounded(values, self.dtype)
            for values in self.engine.kernels(first, second, ("nngp" in names, "ntk" in names))
        )
        cov1 = first.variances if "cov1" in names else None
        cov2 = second.variances if second is not None and "cov2" in names else None
        return KernelValues(k, t, cov1, cov2)

    def kernel(self, first: PreparedRows, second: PreparedRows | None, share: bool) -> Kernel:
        """Returns the kernel between prepared inputs; None stands for `first`."""
        sizes = len(first.x), len((first if second is None else second).x)
        values = self.values(first, second)
        # No copies: the arrays lie where JAX wants them, and nobody else holds them.
        k, t = (None if v is None else jnp.from_dlpack(v) for v in (values.nngp, values.ntk))
        return self.public(values._replace(nngp=k, ntk=t), sizes, second is None, share)

    def public(
        self, values: KernelValues, sizes: tuple[int, int], symmetric: bool, share: bool
    ) -> Kernel:
        """Returns values, which may be traced, between sets of those sizes as a kernel."""
        program, fields = self._program, self._request.fields
        signal = with_samples(self._signal_out, *sizes)
        t, cov2 = values.ntk, values.cov1 if symmetric else values.cov2
        if "ntk" in fields and t is None:  # as the reference: a scalar before the first weights
            t = jnp.zeros(sizes if program.weighted else (), self.dtype)
        return Kernel(
            nngp=values.nngp,
            ntk=t,
            cov1=jnp.array(values.cov1, self.dtype) if "cov1" in fields else None,
            cov2=jnp.array(cov2, self.dtype) if "cov2" in fields and not share else None,
            x1_is_x2=jnp.asarray(symmetric) if "x1_is_x2" in fields else None,
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


class SpatialKernel(_NetworkKernel):
    """The kernel of a network with spatial axes.

    Attributes:
      dtype: of the values, and of the layers behind the spatial axes.
      counted: see `FlatKernel`.
    """

    def __init__(
        self, program: SpatialProgram, net: Layer, signal: Signal, request: Request
    ) -> None:
        self._signal, self._request, self._program, self._net = signal, request, program, net
        anew = evaluates_functions(self._tail)
        self._tail_step = _tail_step if anew else _compiled_tail_step
        self._public_dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        self._in_float64 = any(
            getattr(layer, "subtracts", False) for layer in layers_of(self._tail)
        )
        self.dtype = np.dtype(np.float64) if self._in_float64 else self._public_dtype
        self.counted = any(has_counted(stage.activations) for stage in program.stages)
        self._sites = Cache(16)
        self._variances_wanted = self._site_of((1, 1)).need_in.own.wanted

    @functools.cached_property
    def engine(self) -> ImageKernels:
        """The loops, bound to hyper-parameters."""
        smooth = any(has_smooth(stage.activations) for stage in self._program.stages)
        inner = np.float64 if self._in_float64 or smooth else self._public_dtype
        return ImageKernels(self._program, self._net, inner, self._public_dtype == np.float32)

    @functools.cached_property
    def _tail(self) -> Layer:
        """The layers behind the spatial axes."""
        return self._program.tail(self._net)

    def _site_of(self, sizes: tuple[int, int]) -> Site:
        return self._sites.get(sizes, lambda: self._site(*sizes))

    def _site(self, n1: int, n2: int) -> Site:
        """Returns the site of the layers behind the spatial axes."""
        signal = with_samples(self._program.signal_out, n1, n2)
        need = output_need(self._tail.output_signal(signal), False, self._request.variances)
        return make_site(self._tail, signal, need, (None, None), (None, None))

    def prepare(self, x: Any) -> Prepared:
        """Returns images with their variances at every layer."""
        images = np.moveaxis(np.asarray(x).transpose(self._signal.to_canonical()), -1, 1)
        return self.engine.prepare(images.reshape(len(images), *self._program.image))

    @property
    def sample_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""
        return self._program.room * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self.engine.dtype.itemsize

    def names(self, symmetric: bool) -> tuple[str, ...]:
        """Returns which values there are."""
        asked = {
            "nngp": True,
            "ntk": self._program.tangent,
            "cov1": self._variances_wanted,
            "cov2": self._variances_wanted and not symmetric,
        }
        return tuple(name for name, wanted in asked.items() if wanted)

    def values(self, first: Prepared, second: Prepared | None) -> KernelValues:
        """Returns the values between prepared images; None stands for `first`."""
        k, t = self._matrix(first, second)
        cov1 = cov2 = None
        if self._variances_wanted:
            cov1 = k.diagonal() if second is None else self._variances(first)
            cov2 = None if second is None else self._variances(second)
        return KernelValues(k, t if self._program.tangent else None, cov1, cov2)

    def kernel(self, first: Prepared, second: Prepared | None, share: bool) -> Any:
        """Returns the kernel between prepared images; None stands for `first`."""
        sizes = len(first.digests), len((first if second is None else second).digests)
        return self.public(self.values(first, second), sizes, second is None, share)

    def public(
        self, values: KernelValues, sizes: tuple[int, int], symmetric: bool, share: bool
    ) -> Any:
        """Returns values, which may be traced, between sets of those sizes behind the tail."""
        if not self._variances_wanted:
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
        values = self.engine.kernels(first, other, pairs)
        dtype = self.dtype
        out = np.empty((2, n1, n2), dtype)
        values = _rounded(values, dtype)
        out[:, pairs[:, 0], pairs[:, 1]] = values.T
        if second is None:
            out[:, pairs[:, 1], pairs[:, 0]] = values.T
        return out

    def _variances(self, images: Prepared) -> np.ndarray:
        """Returns the covariance of every image with itself [n]."""
        n = len(images.digests)
        if images.variances is not None:
            return images.variances.astype(self.dtype)
        same = np.stack([np.arange(n), np.arange(n)], axis=1)
        return self.engine.kernels(images, images, same)[:, 0].astype(self.dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns numbers in a dtype, infinite where that does not hold them."""
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


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
    return values if values.ndim == 3 else values[..., None, None]


def with_samples(signal: Signal, n1: int, n2: int) -> Signal:
    """Returns the description of other numbers of samples."""

    def resized(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        return (*shape[: signal.batch_axis], n, *shape[signal.batch_axis + 1 :])

    shapes = resized(signal.shape1, n1), resized(signal.shape1, n2)
    return dataclasses.replace(signal, shape1=shapes[0], shape2=shapes[1])
