"""What layers do to covariances: window sums, fresh weights, nonlinearities, scales, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from widelimit.activations import Dual
from widelimit.covariance.covariances import (
    Covariances,
    cross_variances,
    map_values,
    pair_features,
    same_entry,
    variances,
)
from widelimit.covariance.offsets import Need, Offsets
from widelimit.covariance.pairs import apply_stencils, rezero, shift
from widelimit.covariance.signal import Signal
from widelimit.covariance.stencil import Stencil
from widelimit.typing import Arrays, Scalar


class Affine(NamedTuple):
    """The four numbers of an affine layer: K' = w A[K] + b and T' = w A[T] + u A[K] + v."""

    w: Scalar
    b: Scalar | None
    u: Scalar | None
    v: Scalar | None


def stencils(
    cov: Covariances, windows: tuple[Stencil, ...], scale: float, signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances after a layer that sums over one stencil per spatial axis.

    Args:
      cov: covariances.
      windows: one stencil per spatial axis.
      scale: factor of all sums.
      signal: shapes of the output.
      need: offsets of the output.
    """

    def total(value: Array, stored: Offsets, wanted: Offsets) -> Array:
        return scale * apply_stencils(value, windows, stored, wanted)

    return map_values(cov, total, signal, need)


def affine(cov: Covariances, numbers: Affine, signal: Signal) -> Covariances:
    """Returns the covariances after a layer that multiplies channels by fresh random weights."""
    w, b, u, v = numbers

    def grow(value: Array, own: bool = False) -> Array:
        offsets = cov.need.own if own else cov.need.cross
        out = w * value if b is None else w * value + b
        return out if b is None else rezero(out, offsets, signal.spatial)

    ntk: Any = cov.ntk
    if cov.tangent and not (ntk is None and u is None and v is None):
        ntk = 0.0 if ntk is None else w * ntk
        ntk = ntk if u is None else ntk + u * cov.nngp
        ntk = jnp.asarray(ntk if v is None else ntk + v, cov.nngp.dtype)
        ntk = rezero(jnp.broadcast_to(ntk, cov.nngp.shape), cov.need.cross, signal.spatial)
    return cov.replace(
        nngp=grow(cov.nngp),
        ntk=ntk,
        gap=None if cov.gap is None else w * cov.gap,
        cov1=grow(cov.cov1, own=True),
        cov2=None if cov.cov2 is None else grow(cov.cov2, own=True),
        signal=signal,
        gaussian=True,
    )


class ElementwiseRule(NamedTuple):
    """What `elementwise` needs of a nonlinearity; see `layers.elementwise.ElementwiseLayer`."""

    features: Callable[[Array], Arrays]
    dual: Callable[[Array, Arrays, Arrays, Array], Dual]
    variance: Callable[[Arrays], Array]


def elementwise(cov: Covariances, rule: ElementwiseRule) -> Covariances:
    """Returns the covariances after a nonlinearity: K' = E[f f], T' = T E[f' f']."""
    var1, var2 = variances(cov)
    feat1 = rule.features(var1)
    feat2 = feat1 if cov.symmetric else rule.features(var2)
    own1 = _own_elementwise(cov, rule, cov.cov1, feat1)
    own2 = None if cov.cov2 is None else _own_elementwise(cov, rule, cov.cov2, feat2)
    f1, f2 = pair_features(cov, feat1, feat2)
    k, kdot, gap = rule.dual(cov.nngp, f1, f2, _gap(cov))
    if cov.gap is None and cov.signal.positions > 1:
        gap = None  # a window over space dropped it, and the next one would again
    offsets, spatial = cov.need.cross, cov.signal.spatial
    return cov.replace(
        nngp=rezero(k, offsets, spatial),
        ntk=None if cov.ntk is None else rezero(cov.ntk * kdot, offsets, spatial),
        gap=None if gap is None else rezero(gap, offsets, spatial),
        cov1=own1,
        cov2=own2,
        gaussian=False,
    )


def _gap(cov: Covariances) -> Array:
    """Returns the carried gap, or the difference it stands for (exactly 0 on the diagonal)."""
    if cov.gap is not None:
        return cov.gap
    q1, q2 = cross_variances(cov)
    return (q1 + q2) / 2 - cov.nngp


def _own_elementwise(cov: Covariances, rule: ElementwiseRule, own: Array, features: Any) -> Array:
    """Returns the self-covariances [n, d, p] after a nonlinearity; variances are exact."""
    variance = rule.variance(features)
    offsets, spatial = cov.need.own, cov.signal.spatial
    if offsets.count == 1:
        return variance[:, None]
    left = jax.tree.map(lambda f: f[..., :, None, :], features)
    right = jax.tree.map(lambda f: shift(f, offsets, spatial), features)
    q = own[:, offsets.zero_index]
    gap = (q[:, None] + shift(q, offsets, spatial)) / 2 - own
    k = rezero(rule.dual(own, left, right, gap).k, offsets, spatial)
    return k.at[:, offsets.zero_index].set(variance)


def position_mean(cov: Covariances, signal: Signal, need: Need) -> Covariances:
    """Returns the mean over equal positions (Flatten): no spatial axes, not Gaussian."""

    def mean(value: Array, stored: Offsets, wanted: Offsets) -> Array:
        if not wanted.wanted:
            return value[..., :0, :1]
        return value[..., stored.zero_index, :].mean(-1)[..., None, None]

    gap = None if cov.gap is None else mean(cov.gap, cov.need.cross, need.cross)
    return map_values(cov, mean, signal, need).replace(gap=gap, gaussian=False)


def position_pool(
    cov: Covariances, signal: Signal, need: Need, counts: tuple[Any, Any]
) -> Covariances:
    """Returns the sum over all pairs of positions, divided by a count of each side.

    Args:
      cov: covariances at all offsets.
      signal: shapes of the output, without spatial axes.
      need: offsets of the output.
      counts: divisors of x1 [n1] and of x2 [n2], or numbers.
    """
    first, second = (jnp.reshape(c, (-1, 1, 1)) for c in counts)

    def total(value: Array, weight: Array) -> Array:
        return value.sum((-1, -2), keepdims=True) / weight

    cross = first[:, None] * second[None]
    own = need.own.wanted
    cov1, cov2 = cov.cov1, cov.cov2
    return cov.replace(
        nngp=total(cov.nngp, cross),
        ntk=None if cov.ntk is None else total(cov.ntk, cross),
        gap=None,
        cov1=total(cov1, first**2) if own else cov1[:, :, :1],
        cov2=None if cov2 is None else total(cov2, second**2) if own else cov2[:, :, :1],
        signal=signal,
        need=need,
    )


def normalise(
    cov: Covariances, v1: Float[Array, "#n1 #p"], v2: Float[Array, "#n2 #p"]
) -> Covariances:
    """Returns the covariances of activations divided by sqrt(v1) and sqrt(v2).

    Args:
      cov: covariances.
      v1: positive normalisers [n1, p] (singleton axes where they do not vary).
      v2: likewise [n2, p].
    """
    q1, q2 = cross_variances(cov)
    full = (jnp.broadcast_to(v, q.shape) for v, q in zip((v1, v2), variances(cov), strict=True))
    w1, w2 = pair_features(cov, *full)
    scale = jax.lax.rsqrt(w1) * jax.lax.rsqrt(w2)  # the product w1 w2 may overflow
    gap = cov.gap
    if gap is not None:
        # (q1/w1 + q2/w2)/2 - c/sqrt(w1 w2), for similar normalisers by small differences only.
        similar = (w1 < 4 * w2) & (w2 < 4 * w1)
        other = jnp.where(similar, w2, w1)
        r = jnp.sqrt(other / w1)
        excess = (other - w1) / (w1 * (r + 1))
        small = scale * (gap + excess * (q1 * excess + (q1 - q2)) / (2 * r))
        gap = jnp.where(similar, small, (q1 / w1 + q2 / w2) / 2 - cov.nngp * scale)
        gap = rezero(gap, cov.need.cross, cov.signal.spatial)

    def own(value: Array, v: Array) -> Array:
        v = jnp.broadcast_to(v, (value.shape[0], value.shape[-1]))
        right = shift(v, cov.need.own, cov.signal.spatial)
        scaled = value * (jax.lax.rsqrt(v)[:, None] * jax.lax.rsqrt(right))
        return scaled.at[:, cov.need.own.zero_index].set(value[:, cov.need.own.zero_index] / v)

    return cov.replace(
        nngp=cov.nngp * scale,
        ntk=None if cov.ntk is None else cov.ntk * scale,
        gap=gap,
        cov1=own(cov.cov1, v1),
        cov2=None if cov.cov2 is None else own(cov.cov2, v2),
    )


def scale_same(cov: Covariances, factor: Any) -> Covariances:
    """Returns the covariances with entries of equal sample and position multiplied by a factor.

    Cross-covariances are touched only where x2 is x1: independent noise drawn for two different
    inputs is uncorrelated even when they are equal.
    """
    zero = np.zeros((1, cov.need.own.count, 1), bool)
    zero[:, cov.need.own.zero_index] = True

    def own(value: Array) -> Array:
        return jnp.where(jnp.broadcast_to(zero, value.shape), value * factor, value)

    def cross(value: Array | None) -> Array | None:
        if value is None or not cov.symmetric:
            return value
        return jnp.where(same_entry(cov), value * factor, value)

    return cov.replace(
        nngp=cross(cov.nngp),
        ntk=cross(cov.ntk),
        gap=None,
        cov1=own(cov.cov1),
        cov2=None if cov.cov2 is None else own(cov.cov2),
        gaussian=False,
    )


def apply_masks(cov: Covariances, mask1: Array | None, mask2: Array | None) -> Covariances:
    """Returns the covariances with zeros wherever either position is masked.

    Args:
      cov: covariances.
      mask1: bool [n1, p], True where every channel of x1 is masked; None masks nothing.
      mask2: likewise for x2; ignored when symmetric.
    """
    if cov.symmetric:
        mask2 = mask1
    if mask1 is None and mask2 is None:
        return cov
    keep1 = _keep(mask1, (cov.signal.n1, cov.signal.positions))
    keep2 = _keep(mask2, (cov.signal.n2, cov.signal.positions))
    left, right = pair_features(cov, keep1, keep2)
    cross = left & right

    def own(value: Array, keep: Array) -> Array:
        partner = shift(keep, cov.need.own, cov.signal.spatial)
        return jnp.where(keep[:, None] & partner, value, 0)

    return cov.replace(
        nngp=jnp.where(cross, cov.nngp, 0),
        ntk=None if cov.ntk is None else jnp.where(cross, cov.ntk, 0),
        # (q1 + q2)/2 - c no longer has a zeroed partner's variance in it: take the difference.
        gap=None,
        cov1=own(cov.cov1, keep1),
        cov2=None if cov.cov2 is None else own(cov.cov2, keep2),
    )


def _keep(mask: Array | None, shape: tuple[int, int]) -> Array:
    return jnp.ones(shape, bool) if mask is None else ~mask
