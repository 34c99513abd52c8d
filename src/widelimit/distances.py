"""Distances of pairs through layers: what float32 would lose in covariances and variances.

A `Distance` holds three numbers that are never negative: half the mean squared difference of two
activations, half that of their sum, and the area between them. Each is updated without
subtracting nearly equal numbers. Only the first carries derivatives; see `duals.base`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit.covariance import Covariances, cross_variances
from widelimit.duals.base import Distance, determinant, gap_of, reciprocal, sqrt


def from_gap(gap: Array, c: Array, q1: Array, q2: Array) -> Distance:
    """Returns the distance of pairs of which the gap is known besides the covariances."""
    area = sqrt(determinant(c, q1, q2, gap))
    return Distance(gap, *jax.lax.stop_gradient((area, (q1 + q2) / 2 + c)))


def affine_distance(distance: Distance, w: Any, b: Any) -> Distance:
    """Returns the distance after a layer with K' = w K + b; b may be None."""
    gap, area, span = distance
    if b is None:
        return Distance(w * gap, *jax.lax.stop_gradient((w * area, w * span)))
    # (w q1 + b)(w q2 + b) - (w c + b)^2
    square = jnp.square(w * area) + 2 * w * b * gap
    return Distance(w * gap, *jax.lax.stop_gradient((sqrt(square), w * span + 2 * b)))


def normalised_distance(cov: Covariances, w1: Array, w2: Array, scale: Array) -> Distance | None:
    """Returns the distance of activations divided by sqrt(w1) and sqrt(w2).

    Args:
      cov: covariances before.
      w1: squares of the divisors of x1; they broadcast against the NNGP.
      w2: those of x2.
      scale: 1 / sqrt(w1 w2).
    """
    if cov.distance is None:
        return None
    # (q1/w1 + q2/w2)/2 - c/sqrt(w1 w2) written with small differences only.
    q1, q2 = cross_variances(cov)
    r = jnp.sqrt(w2 / w1)
    excess = (w2 - w1) / (w1 * (r + 1))
    more = excess * (q1 * excess + (q1 - q2)) / (2 * r)
    gap, area, span = cov.distance
    rest = scale * area, scale * (span + more)
    return Distance(scale * (gap + more), *jax.lax.stop_gradient(rest))


def distance_of_sum(branches: Sequence[Covariances], weights: Sequence[Any]) -> Distance | None:
    """Returns the distance after a weighted sum of uncorrelated branches.

    None if one of them has none, or if there are no variances.

    Args:
      branches: covariances.
      weights: factor of the covariances of each; None is 1.
    """
    if any(branch.distance is None for branch in branches) or not branches[0].need.own.wanted:
        return None  # where nobody reads variances, nobody reads distances

    def weighted(cov: Covariances, weight: Any) -> tuple[Any, ...]:
        assert cov.distance is not None
        parts = (cov.nngp, *cross_variances(cov), cov.distance)
        return parts if weight is None else jax.tree.map(lambda part: part * weight, parts)

    pairs = (weighted(cov, weight) for cov, weight in zip(branches, weights, strict=True))
    distance: Distance = functools.reduce(_sum_of_two, pairs)[3]
    return distance


def _sum_of_two(one: Any, two: Any) -> tuple[Any, ...]:
    """Returns covariance, variances and distance of the sum of two pairs that have the same."""
    (c, q1, q2, (gap, area, span)), (d, r1, r2, (gap2, area2, span2)) = one, two
    # With s = sqrt q, t = sqrt r: V = V1 + V2 + (s1 t2 - s2 t1)^2 + 2 (s1 s2 t1 t2 - c d).
    s1, s2, t1, t2 = map(sqrt, (q1, q2, r1, r2))
    s, t = s1 * s2, t1 * t2
    near = area * (area * reciprocal(s + jnp.abs(c)))  # s - |c|
    near2 = area2 * (area2 * reciprocal(t + jnp.abs(d)))
    alike = near * t + jnp.abs(c) * near2
    mixed = jnp.where(c * d >= 0, alike, s * t - c * d)
    square = jnp.square(area) + jnp.square(area2) + jnp.square(s1 * t2 - s2 * t1) + 2 * mixed
    rest = jax.lax.stop_gradient((sqrt(square), span + span2))
    return c + d, q1 + r1, q2 + r2, Distance(gap + gap2, *rest)


def distance_after(cov: Covariances, gap: Any, k: Array, v1: Array, v2: Array) -> Distance | None:
    """Returns the distance after a nonlinearity.

    Args:
      cov: covariances before.
      gap: what its dual says; None stands for the difference.
      k: the covariance after it.
      v1: variances of x1 after it; they broadcast against the covariance.
      v2: those of x2.
    """
    if cov.distance is None and cov.signal.positions > 1:
        return None  # a window over space dropped it, and the next one would again
    if isinstance(gap, Distance):
        return gap
    # The difference is taken here, before a bias or a sum adds to what it is taken of.
    return from_gap((v1 + v2) / 2 - k if gap is None else gap_of(gap), k, v1, v2)
