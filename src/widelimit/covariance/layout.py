"""Covariances from inputs, and conversion to and from the public layout.

The public layout of a covariance is (n1, n2, H, H, W, W, ...): both copies of each spatial axis
side by side; with equal positions only, (n1, n2, H, W, ...).
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from widelimit.covariance.covariances import INPUT, Covariances, exact_diagonal
from widelimit.covariance.offsets import Need, Offsets
from widelimit.covariance.pairs import from_pairs, rezero, shift, to_pairs
from widelimit.covariance.signal import Signal


def input_covariances(
    x1: Float[Array, "..."],
    x2: Float[Array, "..."] | None,
    signal: Signal,
    need: Need,
    tangent: bool,
) -> Covariances:
    """Returns K = mean over channels of x1 x2, uncentred; the NTK is structurally zero.

    Products are accumulated in float64 for every dtype of x: the gap of two near-duplicates
    is a difference that float32 would lose.

    Args:
      x1: inputs in the axes of `signal`.
      x2: inputs in the same axes, or None for x1.
      signal: shapes and axes.
      need: offsets to store.
      tangent: whether the NTK is requested.
    """
    z1 = _canonical(x1, signal)
    z2 = z1 if x2 is None else _canonical(x2, signal)
    spatial, dtype = signal.spatial, x1.dtype
    moved2 = _shift_channels(z2, need.cross, spatial)
    with jax.enable_x64(True):
        wide1, wide2 = z1.astype(jnp.float64), moved2.astype(jnp.float64)
        c = _dot(wide1, wide2, ((2, 3), (1, 2))).transpose(1, 2, 3, 0) / signal.channels
        q1 = jnp.mean(jnp.square(wide1), axis=-1).reshape(signal.n1, 1, 1, signal.positions)
        q2 = jnp.mean(jnp.square(wide2), axis=-1).reshape(1, *c.shape[1:])
        gap = _flush((q1 + q2) / 2 - c, q1 + q2).astype(dtype)
        c = c.astype(dtype)
    cov = Covariances(
        nngp=_mirror_same(rezero(c, need.cross, spatial), x2, spatial),
        ntk=None,
        gap=_mirror_same(rezero(gap, need.cross, spatial), x2, spatial),
        cov1=_self_covariance(z1, need.own, signal),
        cov2=None if x2 is None else _self_covariance(z2, need.own, signal),
        signal=signal,
        need=need,
        tangent=tangent,
        gaussian=False,
        origins=frozenset({INPUT}),
    )
    return exact_diagonal(cov)


def _canonical(x: Array, signal: Signal) -> Array:
    """Returns x as [n, p, channels]."""
    z = x.transpose(signal.to_canonical())
    return z.reshape(z.shape[0], signal.positions, signal.channels)


def _shift_channels(z: Array, offsets: Offsets, spatial: tuple[int, ...]) -> Array:
    """Returns z [n, p, c] read at p + d, as [n, d, p, c]."""
    return jnp.moveaxis(shift(jnp.moveaxis(z, -1, 1), offsets, spatial), 1, -1)


def _self_covariance(z: Array, offsets: Offsets, signal: Signal) -> Array:
    """Returns the covariance [n, d, p] of each image with itself."""
    moved = _shift_channels(z, offsets, signal.spatial)
    with jax.enable_x64(True):
        own = _dot(z.astype(jnp.float64), moved.astype(jnp.float64), ((2, 3), (0, 0), (1, 2)))
        own = (own.swapaxes(1, 2) / signal.channels).astype(z.dtype)
    return rezero(own, offsets, signal.spatial)


def _flush(gap: Array, scale: Array) -> Array:
    """Returns gaps with rounding errors set to zero; derivatives are those of the input.

    The angle between equal samples is then 0, not the square root of a rounding error.
    """
    noise = 8 * np.finfo(np.float64).eps * scale
    flushed = jnp.where(gap > noise, gap, 0)
    return gap + jax.lax.stop_gradient(flushed - gap)


def _dot(a: Array, b: Array, pairs: tuple[tuple[int, int], ...]) -> Array:
    """Returns the product contracted over the first pair of axes; the others are batch axes.

    jnp.einsum would set its result type, which vmap and transposition would truncate when they run
    after float64 is off again.
    """
    contracted, *batch = pairs
    left, right = zip(*batch, strict=True)
    return jax.lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), (left, right)))


def _mirror_same(value: Array, x2: Array | None, spatial: tuple[int, ...]) -> Array:
    """Returns the array with its lower triangle copied from the upper one, if x2 is x1.

    A matrix product is symmetric only up to rounding. With spatial axes the result is mirrored at
    the output instead, where both copies of each position exist.
    """
    return mirror(value) if x2 is None and not spatial else value


def mirror(value: Array) -> Array:
    """Returns an array [n, n, ...] with its lower triangle copied from the upper one."""
    n = value.shape[0]
    upper = np.triu(np.ones((n, n), bool)).reshape(n, n, *(1,) * (value.ndim - 2))
    return jnp.where(jnp.broadcast_to(upper, value.shape), value, value.swapaxes(0, 1))


def to_public(value: Array, offsets: Offsets, spatial: tuple[int, ...], diagonal: bool) -> Array:
    """Returns covariances [..., d, p] in the public layout.

    Args:
      value: covariances by offset.
      offsets: the stored offsets; all of them unless `diagonal`.
      spatial: sizes of the spatial axes.
      diagonal: whether to return equal positions only.
    """
    if diagonal or not spatial:
        return value[..., offsets.zero_index, :].reshape(*value.shape[:-2], *spatial)
    lead, ndim = value.shape[:-2], len(spatial)
    pairs = to_pairs(value, offsets, spatial, tuple(range(ndim)))
    pairs = pairs.reshape(*lead, *spatial, *spatial)
    return pairs.transpose(*range(len(lead)), *_zipped(len(lead), ndim))


def from_public(value: Array, offsets: Offsets, spatial: tuple[int, ...], diagonal: bool) -> Array:
    """Returns an array in the public layout as [..., d, p]; the inverse of `to_public`."""
    size, ndim = math.prod(spatial), len(spatial)
    if diagonal or not spatial:
        lead = value.shape[: value.ndim - ndim]
        full = value.reshape(*lead, 1, size)
        return full if offsets.wanted else full[..., :0, :]
    lead = value.shape[: value.ndim - 2 * ndim]
    if not offsets.wanted:
        return jnp.zeros((*lead, 0, size), value.dtype)
    first = range(len(lead), value.ndim, 2)
    pairs = value.transpose(*range(len(lead)), *first, *(i + 1 for i in first))
    return from_pairs(pairs.reshape(*lead, 1, 1, size, size), offsets, spatial, tuple(range(ndim)))


def _zipped(lead: int, ndim: int) -> list[int]:
    """Returns the axes H, H', W, W', ... of an array laid out (lead..., H, W, ..., H', W', ...)."""
    pairs = ((lead + i, lead + ndim + i) for i in range(ndim))
    return list(itertools.chain.from_iterable(pairs))
