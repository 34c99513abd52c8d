"""Covariances with opened spatial axes: matrices over all pairs of their positions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.pairs import from_pairs, to_pairs
from widelimit.covariance.parts import Pairing, Parts
from widelimit.covariance.signal import Signal


def open_pairs(cov: Covariances, axes: tuple[int, ...]) -> Parts:
    """Returns the covariances as matrices over all pairs of positions of some spatial axes.

    Returns:
      Arrays [n1, n2, d, p, P, P'], and [n, d, p, P, P'] of samples with themselves, where P runs
      over the flat positions of the opened axes, d and p over the others.
    """

    def opened(value: Array, part: Pairing) -> Array:
        return to_pairs(value, part.of(cov.need), cov.signal.spatial, axes)

    return cov.parts.map(opened)


def close_pairs(
    cov: Covariances, matrices: Parts, axes: tuple[int, ...], signal: Signal, need: Need
) -> Covariances:
    """Returns covariances from matrices over pairs of positions; the gap is dropped.

    Args:
      cov: covariances before.
      matrices: covariances after, with the axes opened.
      axes: the opened spatial axes.
      signal: shapes after.
      need: offsets after. Own matrices are not read if `need.own` is empty.
    """

    def closed(value: Array, part: Pairing) -> Array:
        return from_pairs(value, part.of(need), signal.spatial, axes)

    arrays = matrices.map(closed)._asdict()
    return cov.replace(**arrays, gap=None, signal=signal, need=need)


def position_maps(
    cov: Covariances,
    maps: tuple[Array, Array],
    axes: tuple[int, ...],
    signal: Signal,
    need: Need,
) -> Covariances:
    """Returns the covariances after linear maps of positions, K' = M1 K M2^T and T' = M1 T M2^T.

    Args:
      cov: covariances.
      maps: matrices of x1, [n1, Q, P] (or [1, Q, P] for all samples), and of x2, [n2, Q, P].
      axes: the spatial axes whose flat positions are P.
      signal: shapes after.
      need: offsets after.
    """

    def mapped(value: Array, part: Pairing) -> Array:
        first, second = (maps[side][:, None, None] for side in part.sides)
        if not part.own:
            first, second = first[:, None], second[None]
        return jnp.matmul(jnp.matmul(first, value), second.swapaxes(-1, -2))

    return close_pairs(cov, open_pairs(cov, axes).map(mapped), axes, signal, need)
