"""Covariances with spatial axes opened: all pairs of their positions as matrices."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.pairs import from_pairs, to_pairs
from widelimit.covariance.signal import Signal


class PairMatrices(NamedTuple):
    """Covariances with some spatial axes opened: all pairs of their positions as matrices.

    P runs over the flat positions of the opened axes, d and p over the others.

    Attributes:
      nngp: [n1, n2, d, p, P, P'].
      ntk: the same, or None.
      cov1: [n1, d, p, P, P'].
      cov2: [n2, d, p, P, P'], or None where x2 is x1.
    """

    nngp: Array
    ntk: Array | None
    cov1: Array
    cov2: Array | None


def open_pairs(cov: Covariances, axes: tuple[int, ...]) -> PairMatrices:
    """Returns the covariances as matrices over all pairs of positions of some spatial axes."""
    spatial = cov.signal.spatial

    def cross(value: Array | None) -> Array | None:
        return None if value is None else to_pairs(value, cov.need.cross, spatial, axes)

    def own(value: Array) -> Array:
        return to_pairs(value, cov.need.own, spatial, axes)

    nngp = cross(cov.nngp)
    assert nngp is not None
    cov2 = None if cov.cov2 is None else own(cov.cov2)
    return PairMatrices(nngp, cross(cov.ntk), own(cov.cov1), cov2)


def close_pairs(
    cov: Covariances, matrices: PairMatrices, axes: tuple[int, ...], signal: Signal, need: Need
) -> Covariances:
    """Returns covariances from matrices over pairs of positions; the gap is dropped.

    Args:
      cov: covariances before.
      matrices: covariances after, with the axes opened.
      axes: the opened spatial axes.
      signal: shapes after.
      need: offsets after. Own matrices are not read where none are needed.
    """
    spatial = signal.spatial

    def cross(value: Array | None) -> Array | None:
        return None if value is None else from_pairs(value, need.cross, spatial, axes)

    def own(value: Array) -> Array:
        return from_pairs(value, need.own, spatial, axes)

    return cov.replace(
        nngp=cross(matrices.nngp),
        ntk=cross(matrices.ntk),
        gap=None,
        cov1=own(matrices.cov1),
        cov2=None if matrices.cov2 is None else own(matrices.cov2),
        signal=signal,
        need=need,
    )


def position_maps(
    cov: Covariances,
    maps: tuple[Array, Array],
    axes: tuple[int, ...],
    signal: Signal,
    need: Need,
) -> Covariances:
    """Returns the covariances after linear maps of positions, K' = M1 K M2^T, T' likewise.

    Args:
      cov: covariances.
      maps: matrix of x1, [n1, Q, P] (or [1, Q, P] for all samples), and of x2, likewise.
      axes: the spatial axes whose flat positions are P.
      signal: shapes after.
      need: offsets after.
    """
    m1, m2 = maps
    opened = open_pairs(cov, axes)

    def cross(value: Array | None) -> Array | None:
        if value is None:
            return None
        left = jnp.matmul(m1[:, None, None, None], value)
        return jnp.matmul(left, m2[None, :, None, None].swapaxes(-1, -2))

    def own(value: Array, m: Array) -> Array:
        return jnp.matmul(jnp.matmul(m[:, None, None], value), m[:, None, None].swapaxes(-1, -2))

    nngp = cross(opened.nngp)
    assert nngp is not None
    cov2 = None if opened.cov2 is None else own(opened.cov2, m2)
    after = PairMatrices(nngp, cross(opened.ntk), own(opened.cov1, m1), cov2)
    return close_pairs(cov, after, axes, signal, need)
