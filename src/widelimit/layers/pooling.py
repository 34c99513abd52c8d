"""Pooling over space: AvgPool, SumPool, GlobalAvgPool and GlobalSumPool."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal
from widelimit.covariance.stencil import Stencil, needed_offsets
from widelimit.covariance.verbs import position_pool, stencils
from widelimit.kernel.masking import one_channel
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import check_one_input, checked_axis
from widelimit.layers.windows import PaddingLike, Windows, as_padding, as_sizes, wrap
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


class _SpatialLayer(Layer):
    """Base class of layers that act on the spatial axes."""

    batch_axis: int
    channel_axis: int

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def _spatial_axes(self, shape: Shapes) -> tuple[int, ...]:
        check_one_input(shape)
        ends = checked_axis(self.batch_axis, shape), checked_axis(self.channel_axis, shape)
        return tuple(axis for axis in range(len(shape)) if axis not in ends)


class _Pool(_SpatialLayer):
    """Base class of pooling over windows."""

    window_shape: Sizes
    strides: Sizes | None
    padding: PaddingLike

    average: ClassVar[bool] = True
    edges: ClassVar[bool] = False

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        put("window_shape", as_sizes("window_shape", self.window_shape))
        ndim = len(self.window_shape)
        if self.strides is not None:
            put("strides", as_sizes("strides", self.strides, ndim))
        put("padding", as_padding(self.padding, ndim, "window"))

    @property
    def windows(self) -> Windows:
        shape = as_sizes("window_shape", self.window_shape)
        ndim = len(shape)
        strides = as_sizes("strides", self.strides, ndim)
        return Windows(shape, strides, (1,) * ndim, as_padding(self.padding, ndim))

    def output_shape(self, shape: Shapes) -> Shapes:
        axes = self._spatial_axes(shape)
        sizes = self.windows.output(tuple(shape[axis] for axis in axes))
        out = list(shape)
        for axis, size in zip(axes, sizes, strict=True):
            out[axis] = size
        return tuple(out)

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        windows, axes = self.windows, self._spatial_axes(x.shape)
        self.output_shape(x.shape)
        pads = windows.pads(tuple(x.shape[axis] for axis in axes))
        if windows.circular:
            x, pads = wrap(x, pads, axes), ((0, 0),) * len(axes)
        shape, strides, padding = [1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim
        for axis, k, s, pad in zip(axes, windows.shape, windows.strides, pads, strict=True):
            shape[axis], strides[axis], padding[axis] = k, s, pad

        def total(value: Array) -> Array:
            zero = np.zeros((), value.dtype)[()]
            return jax.lax.reduce_window(value, zero, jax.lax.add, shape, strides, padding)

        if self.edges:
            inside = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
            return total(x) / jnp.broadcast_to(
                total(jnp.ones(inside, x.dtype)), self.output_shape(x.shape)
            )
        return total(x) / math.prod(windows.shape) if self.average else total(x)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        if mask is None:
            return None
        axes = self._spatial_axes(shape)
        full = [size if axis in axes else m for axis, (size, m) in enumerate(_pairs(shape, mask))]
        return self.windows.centres(jnp.broadcast_to(mask, full), axes)

    def _stencils(self, spatial: tuple[int, ...]) -> tuple[Stencil, ...]:
        return self.windows.stencils(spatial, tied=False, normalise=self.edges)

    def needs(self, need: Needs, signal: Signals) -> Needs:
        taps = self._stencils(signal.spatial)
        return need.map(functools.partial(needed_offsets, taps))

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        return self.windows.moduli(moduli)

    def operations(self, site: Site) -> int:
        return 4 * sum(k * k for k in self.windows.shape)

    def temporaries(self, site: Site) -> tuple[float, int]:
        return self.windows.temporaries(site.need_in)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        for mask in site.masks_in:
            one_channel(mask, site.signal_in, self.label)
        taps = self._stencils(site.signal_in.spatial)
        plain_mean = self.average and not self.edges
        scale = 1 / math.prod(self.window_shape) ** 2 if plain_mean else 1.0
        return stencils(cov, taps, scale, site.signal_out, site.need_out)


def _pairs(shape: Shapes, mask: Array) -> Iterator[tuple[int, int]]:
    return zip(shape, mask.shape, strict=True)


@pytree
class AvgPool(_Pool):
    """Returns an average over windows.

    K' and T' are the means of K and T over pairs of positions in the two windows.

    Args:
      window_shape: sizes of the window, one per spatial axis.
      strides: steps between outputs; None means ones.
      padding: 'SAME', 'VALID', 'CIRCULAR', or a pair (before, behind) per axis.
      normalize_edges: divide by the number of positions inside the image ('SAME' only) instead of
        the size of the window.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Raises:
      ValueError: strides, padding or an input that do not fit the window.
      TypeError: sizes that are not ints.

    Example:
      >>> from widelimit import stax
      >>> stax.AvgPool((2, 2), strides=(2, 2)).output_shape((8, 32, 32, 64))
      (8, 16, 16, 64)
    """

    window_shape: Sizes = static()
    strides: Sizes | None = static(default=None)
    padding: PaddingLike = static(default="VALID")
    normalize_edges: bool = static(default=False)
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)

    @property
    def edges(self) -> bool:  # type: ignore[override]
        return self.normalize_edges and self.padding == "SAME"


@pytree
class SumPool(_Pool):
    """Returns a sum over windows.

    K' and T' are the sums of K and T over pairs of positions in the two windows.

    Args:
      window_shape: sizes of the window, one per spatial axis.
      strides: steps between outputs; None means ones.
      padding: 'SAME', 'VALID', 'CIRCULAR', or a pair (before, behind) per axis.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Raises:
      ValueError: strides, padding or an input that do not fit the window.
      TypeError: sizes that are not ints.
    """

    average = False

    window_shape: Sizes = static()
    strides: Sizes | None = static(default=None)
    padding: PaddingLike = static(default="VALID")
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)


@pytree
class _GlobalPool(_SpatialLayer):
    """Base class of pooling over all positions."""

    average: ClassVar[bool] = True

    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)

    def output_shape(self, shape: Shapes) -> Shapes:
        axes = self._spatial_axes(shape)
        return tuple(size for axis, size in enumerate(shape) if axis not in axes)

    def output_axes(self, signal: Signal) -> tuple[int, int]:
        batch = int(signal.batch_axis > signal.channel_axis)
        return batch, 1 - batch

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        axes = self._spatial_axes(x.shape)
        if not self.average:
            return x.sum(axes)
        if context.mask is None:
            return x.mean(axes)
        counts = jnp.broadcast_to(~context.mask, x.shape).sum(axes)
        return x.sum(axes) / jnp.maximum(counts, 1)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        return None if mask is None else mask.all(self._spatial_axes(shape))

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return Need.full(signal.spatial, own=need.own.wanted)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        signal = site.signal_in
        masks = tuple(one_channel(mask, signal, self.label) for mask in site.masks_in)
        first, second = (self._count(mask, signal) for mask in masks)
        counts = first, first if cov.symmetric else second
        return position_pool(cov, site.signal_out, site.need_out, counts)

    def _count(self, mask: Array | None, signal: Signal) -> float | Array:
        """Returns the number of positions that a mean divides by."""
        if not self.average:
            return 1.0
        if mask is None:
            return float(signal.positions)
        return jnp.maximum((~mask).sum(-1), 1)


@pytree
class GlobalAvgPool(_GlobalPool):
    """Returns the average over all positions, without spatial axes.

    K' and T' are the means of K and T over all pairs of positions; masked positions do not count.

    Args:
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Example:
      >>> from widelimit import stax
      >>> stax.GlobalAvgPool().output_shape((8, 32, 32, 64))
      (8, 64)
    """


@pytree
class GlobalSumPool(_GlobalPool):
    """Returns the sum over all positions, without spatial axes.

    K' and T' are the sums of K and T over all pairs of positions.

    Args:
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.
    """

    average = False
