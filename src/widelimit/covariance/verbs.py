"""Operations of layers on covariances: window sums, weights, nonlinearities, scales, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from widelimit.activations import Dual
from widelimit.covariance.covariances import (
    Covariances,
    Features,
    cross_variances,
    same_entry,
    variances,
)
from widelimit.covariance.offsets import Need
from widelimit.covariance.pairs import apply_stencils, rezero, shift
from widelimit.covariance.parts import Pairing
from widelimit.covariance.signal import Signal
from widelimit.covariance.stencil import Stencil
from widelimit.typing import Arrays, Scalar


class Affine(NamedTuple):
    """The four numbers of an affine layer: K' = w A[K] + b and T' = w A[T] + u A[K] + v.

    A[.] is the average over the inputs of an output. None is a structural zero.

    Attributes:
      w: factor of both kernels, the variance of the weights.
      b: variance of the biases.
      u: factor of the NNGP in the NTK.
      v: constant in the NTK.
    """

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

    def total(value: Array, part: Pairing) -> Array:
        return scale * apply_stencils(value, windows, part.of(cov.need), part.of(need))

    return cov.map(total, signal=signal, need=need)


def affine(cov: Covariances, numbers: Affine, signal: Signal) -> Covariances:
    """Returns the covariances after a layer that multiplies channels by fresh random weights.

    Args:
      cov: covariances, averaged over the inputs of each output.
      numbers: the four numbers of the layer.
      signal: shapes of the output.
    """
    w, b, u, v = numbers

    def grow(value: Array, part: Pairing) -> Array:
        if b is None:
            return w * value
        return rezero(w * value + b, part.of(cov.need), signal.spatial)

    ntk: Array | float | None = cov.ntk
    if cov.tangent and not (ntk is None and u is None and v is None):
        ntk = 0.0 if ntk is None else w * ntk
        ntk = ntk if u is None else ntk + u * cov.nngp
        ntk = jnp.asarray(ntk if v is None else ntk + v, cov.nngp.dtype)
        ntk = rezero(jnp.broadcast_to(ntk, cov.nngp.shape), cov.need.cross, signal.spatial)
    gap = None if cov.gap is None else w * cov.gap
    grown = cov.replace(ntk=None).map(grow, signal=signal, gaussian=True)
    return grown.replace(ntk=ntk, gap=gap)


class ElementwiseRule(NamedTuple):
    """The functions of a nonlinearity that `elementwise` calls; see `ElementwiseLayer`.

    Attributes:
      features: returns features of variances.
      dual: returns the `Dual` from a covariance, two features and a gap.
      variance: returns E[f(u)^2] from features.
    """

    features: Callable[[Array], Arrays]
    dual: Callable[[Array, Arrays, Arrays, Array], Dual]
    variance: Callable[[Arrays], Array]


def elementwise(cov: Covariances, rule: ElementwiseRule) -> Covariances:
    """Returns the covariances after a nonlinearity: K' = E[f f], T' = T E[f' f'].

    Args:
      cov: covariances of its Gaussian input.
      rule: the functions of the nonlinearity.
    """
    var1, var2 = variances(cov)
    feat1 = rule.features(var1)
    feat2 = feat1 if cov.symmetric else rule.features(var2)
    features = feat1, feat2
    own1 = _own_elementwise(cov, rule, cov.cov1, Pairing.OWN1, features)
    own2 = None
    if cov.cov2 is not None:
        own2 = _own_elementwise(cov, rule, cov.cov2, Pairing.OWN2, features)
    f1, f2 = cov.ends(Pairing.CROSS, features)
    k, kdot, gap = rule.dual(cov.nngp, f1, f2, _gap(cov))
    if cov.gap is None and cov.signal.positions > 1:
        gap = None  # a window over space has dropped it, and the next one would drop it again
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
    """Returns the carried gap, or the equal difference (exactly 0 on the diagonal)."""
    if cov.gap is not None:
        return cov.gap
    q1, q2 = cross_variances(cov)
    return (q1 + q2) / 2 - cov.nngp


def _own_elementwise(
    cov: Covariances,
    rule: ElementwiseRule,
    own: Array,
    part: Pairing,
    features: tuple[Features, Features],
) -> Array:
    """Returns the self-covariances [n, d, p] after a nonlinearity; variances are exact."""
    variance = rule.variance(features[part.sides[0]])
    offsets, spatial = cov.need.own, cov.signal.spatial
    if offsets.count == 1:
        return variance[:, None]
    left, right = cov.ends(part, features)
    q = own[:, offsets.zero_index]
    gap = (q[:, None] + shift(q, offsets, spatial)) / 2 - own
    k = rezero(rule.dual(own, left, right, gap).k, offsets, spatial)
    return k.at[:, offsets.zero_index].set(variance)


def position_mean(cov: Covariances, signal: Signal, need: Need) -> Covariances:
    """Returns the mean over equal positions (Flatten): no spatial axes, not Gaussian."""

    def mean(value: Array, part: Pairing) -> Array:
        if not part.of(need).wanted:
            return value[..., :0, :1]
        return value[..., part.of(cov.need).zero_index, :].mean(-1)[..., None, None]

    return cov.map(mean, gap=True, signal=signal, need=need, gaussian=False)


def position_pool(
    cov: Covariances, signal: Signal, need: Need, counts: tuple[float | Array, float | Array]
) -> Covariances:
    """Returns the sum over all pairs of positions, divided by a count for each side.

    Args:
      cov: covariances at all offsets.
      signal: shapes of the output, without spatial axes.
      need: offsets of the output.
      counts: divisors of x1 [n1] and of x2 [n2], or numbers.
    """
    columns = [jnp.reshape(c, (-1, 1, 1)) for c in counts]

    def total(value: Array, part: Pairing) -> Array:
        if not part.of(need).wanted:
            return value[..., :1]
        first, second = (columns[side] for side in part.sides)
        weight = first * second if part.own else first[:, None] * second[None]
        return value.sum((-1, -2), keepdims=True) / weight

    return cov.map(total, signal=signal, need=need)


def normalise(
    cov: Covariances, v1: Float[Array, "#n1 #p"], v2: Float[Array, "#n2 #p"]
) -> Covariances:
    """Returns the covariances of activations divided by sqrt(v1) and sqrt(v2).

    Args:
      cov: covariances.
      v1: positive normalisers [n1, p] (axes along which they are constant may have size 1).
      v2: positive normalisers [n2, p].
    """
    q1, q2 = variances(cov)
    full = jnp.broadcast_to(v1, q1.shape), jnp.broadcast_to(v2, q2.shape)
    zero = cov.need.own.zero_index

    def scaled(value: Array, part: Pairing) -> Array:
        w1, w2 = cov.ends(part, full)
        out = value * (jax.lax.rsqrt(w1) * jax.lax.rsqrt(w2))  # the product w1 w2 may overflow
        if not part.own:
            return out
        return out.at[:, zero].set(value[:, zero] / full[part.sides[0]])

    return cov.map(scaled).replace(gap=_normalised_gap(cov, full))


def _normalised_gap(cov: Covariances, full: tuple[Array, Array]) -> Array | None:
    """Returns the gap of activations divided by the roots of normalisers [n, p]."""
    if cov.gap is None:
        return None
    q1, q2 = cross_variances(cov)
    w1, w2 = cov.ends(Pairing.CROSS, full)
    scale = jax.lax.rsqrt(w1) * jax.lax.rsqrt(w2)
    # (q1/w1 + q2/w2)/2 - c/sqrt(w1 w2), written in small differences for similar normalisers.
    similar = (w1 < 4 * w2) & (w2 < 4 * w1)
    other = jnp.where(similar, w2, w1)
    r = jnp.sqrt(other / w1)
    excess = (other - w1) / (w1 * (r + 1))
    small = scale * (cov.gap + excess * (q1 * excess + (q1 - q2)) / (2 * r))
    gap = jnp.where(similar, small, (q1 / w1 + q2 / w2) / 2 - cov.nngp * scale)
    return rezero(gap, cov.need.cross, cov.signal.spatial)


def scale_same(cov: Covariances, factor: Scalar) -> Covariances:
    """Returns the covariances with entries of equal sample and position multiplied by a factor.

    Cross-covariances change only if x2 is x1: independent noise of two different inputs is
    uncorrelated even if the inputs are equal.
    """
    zero = np.zeros((1, cov.need.own.count, 1), bool)
    zero[:, cov.need.own.zero_index] = True

    def scaled(value: Array, part: Pairing) -> Array:
        if part.own:
            same = jnp.broadcast_to(zero, value.shape)
        elif cov.symmetric:
            same = same_entry(cov)
        else:
            return value
        return jnp.where(same, value * factor, value)

    return cov.map(scaled, gaussian=False)


def apply_masks(cov: Covariances, mask1: Array | None, mask2: Array | None) -> Covariances:
    """Returns the covariances with zeros where either position is masked.

    Args:
      cov: covariances.
      mask1: bool [n1, p], True where every channel of x1 is masked; None masks nothing.
      mask2: bool [n2, p], the same for x2; ignored if symmetric.
    """
    if cov.symmetric:
        mask2 = mask1
    if mask1 is None and mask2 is None:
        return cov
    keep1 = _keep(mask1, (cov.signal.n1, cov.signal.positions))
    keep2 = _keep(mask2, (cov.signal.n2, cov.signal.positions))

    def hidden(value: Array, part: Pairing) -> Array:
        left, right = cov.ends(part, (keep1, keep2))
        return jnp.where(left & right, value, 0)

    # The gap would include the variance of a masked partner: later layers use the difference.
    return cov.map(hidden)


def _keep(mask: Array | None, shape: tuple[int, int]) -> Array:
    return jnp.ones(shape, bool) if mask is None else ~mask
