"""Normalisation layers: LayerNorm and RMSNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances, variances
from widelimit.covariance.signal import Signal
from widelimit.covariance.verbs import normalise
from widelimit.kernel.masking import one_channel
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import check_one_input
from widelimit.typing import Arrays, Needs, Params, Shapes, Signals


@pytree
class _Norm(Layer):
    """Base class of normalisations over channels, and perhaps other axes."""

    axis: int | tuple[int, ...] | list[int] = static(default=-1)
    eps: float = static(default=1e-12)
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)

    def __post_init__(self) -> None:
        axis = self.axis
        object.__setattr__(self, "axis", tuple(axis) if isinstance(axis, list | tuple) else axis)
        object.__setattr__(self, "eps", float(self.eps))

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def normalised_axes(self, ndim: int) -> tuple[int, ...]:
        """Returns the normalised axes as non-negative numbers, ascending.

        Args:
          ndim: number of axes of the input.

        Raises:
          ValueError: axes out of range, or repeated.
        """
        axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        if any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
            raise ValueError(f"expected distinct axes of an input with {ndim} axes, got {axes}")
        return tuple(sorted(a % ndim for a in axes))

    def output_shape(self, shape: Shapes) -> Shapes:
        check_one_input(shape)
        self.normalised_axes(len(shape))
        return shape

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return need.with_variances()

    def mixes_samples(self, signal: Signals) -> bool:
        return signal.batch_axis in self.normalised_axes(signal.ndim)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        signal = site.signal_in
        axes = self.normalised_axes(signal.ndim)
        if signal.channel_axis not in axes:
            raise ValueError(
                f"expected axis to hold the channel axis {signal.channel_axis}, got {self.axis}: "
                "other normalisations have no kernel"
            )
        masks = [one_channel(m, signal, self.label) for m in site.masks_in]
        masks = [masks[0], masks[0]] if cov.symmetric else masks
        v1, v2 = (
            self.eps + _average(var, mask, signal, axes)
            for var, mask in zip(variances(cov), masks, strict=True)
        )
        return normalise(cov, v1, v2)


@pytree
class LayerNorm(_Norm):
    """Returns a layer normalisation without learned scale or shift.

    z = (x - mean) / sqrt(variance + eps) over `axis`, so K' = K / sqrt(v1 v2) and
    T' = T / sqrt(v1 v2), with v = eps + the variance averaged over the axes in `axis` other than
    channels.

    Source: arXiv:1607.06450.

    Args:
      axis: axis or axes normalised over; must hold the channel axis.
      eps: added to the variance.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Raises:
      ValueError: at kernel time, if `axis` lacks the channel axis.
      NotImplementedError: at kernel time, if the input is not Gaussian, or has masks per channel.

    Example:
      >>> from widelimit import stax
      >>> net = stax.serial(stax.Dense(512), stax.LayerNorm(), stax.Relu(), stax.Dense(1))
    """

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        axes = self.normalised_axes(x.ndim)
        if context.mask is None:
            mean = x.mean(axes, keepdims=True)
            variance = x.var(axes, keepdims=True)
            return (x - mean) * jax.lax.rsqrt(variance + self.eps)
        keep = jnp.broadcast_to(~context.mask, x.shape)
        count = jnp.maximum(keep.sum(axes, keepdims=True), 1)
        mean = jnp.where(keep, x, 0).sum(axes, keepdims=True) / count
        variance = jnp.where(keep, jnp.square(x - mean), 0).sum(axes, keepdims=True) / count
        return jnp.where(keep, (x - mean) * jax.lax.rsqrt(variance + self.eps), 0)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        if not cov.gaussian and site.signal_in.channel_axis in self.normalised_axes(
            site.signal_in.ndim
        ):
            raise NotImplementedError(
                "expected a Gaussian input (the output of Dense, Conv, ...) for LayerNorm, got "
                "the output of a nonlinearity or raw input: put a Dense or Conv layer before it"
            )
        return super().propagate(cov, site)


@pytree
class RMSNorm(_Norm):
    """Returns a normalisation by the root mean square, without learned scale.

    z = x / sqrt(mean(x^2) + eps) over `axis`, so K' = K / sqrt(v1 v2) and T' = T / sqrt(v1 v2),
    with v = eps + K of a position with itself, averaged over the axes in `axis` other than
    channels. The input need not be Gaussian: K is the mean of x^2 over channels, also for raw
    input. If `axis` lacks the channel axis, each channel is divided by a different random number,
    and no kernel is known.

    Source: arXiv:1910.07467.

    Args:
      axis: axis or axes normalised over; must hold the channel axis.
      eps: added to the mean square.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Raises:
      ValueError: at kernel time, if `axis` lacks the channel axis.
      NotImplementedError: at kernel time, if the input has masks per channel.
    """

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        axes = self.normalised_axes(x.ndim)
        square = jnp.square(x)
        if context.mask is None:
            return x * jax.lax.rsqrt(square.mean(axes, keepdims=True) + self.eps)
        keep = jnp.broadcast_to(~context.mask, x.shape)
        count = jnp.maximum(keep.sum(axes, keepdims=True), 1)
        mean = jnp.where(keep, square, 0).sum(axes, keepdims=True) / count
        return jnp.where(keep, x * jax.lax.rsqrt(mean + self.eps), 0)


def _average(var: Array, mask: Array | None, signal: Signal, axes: tuple[int, ...]) -> Array:
    """Returns variances [n, p] averaged over the normalised axes other than channels."""
    order = [signal.batch_axis, *signal.spatial_axes]
    over = tuple(i for i, axis in enumerate(order) if axis in axes)
    shape = (var.shape[0], *signal.spatial)
    keep = jnp.ones(shape, bool) if mask is None else ~mask.reshape(shape)
    total = jnp.where(keep, var.reshape(shape), 0).sum(over, keepdims=True)
    count = jnp.maximum(keep.sum(over, keepdims=True), 1)
    return jnp.broadcast_to(total / count, shape).reshape(var.shape)
