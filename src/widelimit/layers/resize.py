"""Resampling of images: ImageResize."""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
from jax.image import ResizeMethod
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.linear_maps import axis_maps, sample_maps
from widelimit.covariance.signal import Signal
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import check_one_input
from widelimit.typing import (
    Arrays,
    Masks,
    Moduli,
    Needs,
    Params,
    Shapes,
    Signals,
    Sizes,
)

_KEEP = -1


@pytree
class ImageResize(Layer):
    """Returns a layer that resamples its input to another size, as `jax.image.resize`.

    z = (M_1 x ... x M_S) x with one matrix per axis, so K' = M K M^T and T' = M T M^T with M on
    both copies of every axis.

    Args:
      shape: sizes of the output, one per axis; -1 keeps the size.
      method: name or member of `jax.image.ResizeMethod`. Kernels exist for linear and nearest.
      antialias: whether linear filters are widened where an axis shrinks.
      precision: precision of the products of the finite layer.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Raises:
      ValueError: an unknown method, sizes that do not fit, or (at kernel time) a channel axis that
        is resized.
      NotImplementedError: at kernel time, a method other than linear and nearest.
      TypeError: sizes that are not ints.
    """

    shape: Sizes = static()
    method: str | jax.image.ResizeMethod = static()
    antialias: bool = static(default=True)
    precision: jax.lax.PrecisionLike = static(default=jax.lax.Precision.HIGHEST)
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)

    def __post_init__(self) -> None:
        try:
            shape = tuple(operator.index(size) for size in self.shape)
        except TypeError:
            raise TypeError(f"expected a sequence of ints for shape, got {self.shape!r}") from None
        if any(size < 1 and size != _KEEP for size in shape):
            raise ValueError(f"expected sizes of at least 1, or -1 to keep one, got {shape}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "method", _as_method(self.method))

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Shapes) -> Shapes:
        check_one_input(shape)
        if len(shape) != len(self.shape):
            raise ValueError(
                f"expected an input with {len(self.shape)} axes, as in shape={self.shape}, got "
                f"shape {shape}"
            )
        pairs = zip(shape, self.shape, strict=True)
        return tuple(old if new == _KEEP else new for old, new in pairs)

    def output_signal(self, signal: Signals) -> Signals:
        out = super().output_signal(signal)
        if self.shape[signal.channel_axis] != _KEEP:
            raise ValueError(
                f"expected -1 for the channel axis {signal.channel_axis} in a kernel, got "
                f"shape={self.shape}: infinitely many channels cannot be resized"
            )
        if self.method not in ("linear", "nearest"):
            raise NotImplementedError(
                f"expected method 'linear' or 'nearest' in a kernel, got '{self.method}'"
            )
        return out

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        shape = self.output_shape(x.shape)
        return jax.image.resize(x, shape, self.method, self.antialias, self.precision)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        if mask is None:
            return None
        visible = ~mask
        for axis, (old, new) in enumerate(zip(shape, self.output_shape(shape), strict=True)):
            if old != new and mask.shape[axis] > 1:
                reads = jnp.abs(self._matrix(old, new)) > 1e-9  # zero up to rounding otherwise
                counts = jnp.tensordot(reads.astype(int), visible.astype(int), (1, axis))
                visible = jnp.moveaxis(counts > 0, 0, axis)
        return ~visible

    def _matrix(self, old: int, new: int) -> Array:
        """Returns the matrix [new, old] of one axis in float64."""
        with jax.enable_x64(True):
            identity = jnp.eye(old, dtype=jnp.float64)
            return jax.image.resize(identity, (new, old), self.method, self.antialias)

    def _resized(self, signal: Signal) -> dict[int, tuple[int, int]]:
        """Returns old and new sizes of the spatial axes that change."""
        sizes = zip(signal.spatial, signal.spatial_axes, strict=True)
        pairs = ((old, self.shape[axis]) for old, axis in sizes)
        return {i: (a, b) for i, (a, b) in enumerate(pairs) if b not in (_KEEP, a)}

    def needs(self, need: Needs, signal: Signals) -> Needs:
        resized = self._resized(signal)
        return need.map(lambda offsets: offsets.widen(resized, signal.spatial))

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        resized = self._resized(signal)
        return tuple(None if i in resized else m for i, m in enumerate(moduli))

    def pairs_samples(self, signal: Signals) -> bool:
        return self.shape[signal.batch_axis] != _KEEP

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        signal, dtype = site.signal_in, cov.nngp.dtype
        sizes = self._resized(signal).items()
        maps = {i: self._matrix(*pair).astype(dtype) for i, pair in sizes}
        cov = axis_maps(cov, maps, site.need_out)
        if not self.pairs_samples(signal):
            return cov
        new = self.shape[signal.batch_axis]
        m1, m2 = (self._matrix(n, new).astype(dtype) for n in (signal.n1, signal.n2))
        return sample_maps(cov, m1, m2, site.signal_out)


def _as_method(method: object) -> str:
    """Returns the plain name of a resize method.

    Raises:
      ValueError: neither a `ResizeMethod` nor a name of one.
    """
    if isinstance(method, str):
        method = ResizeMethod.from_string(method)
    if not isinstance(method, ResizeMethod):
        raise ValueError(f"expected the name of a resize method or a ResizeMethod, got {method!r}")
    return method.name.lower()
