"""Covariances inside a network, as stored. Only this file and `verbs` index their axes.

    nngp, ntk, gap   [n1, n2, d, p]   cov( z(x1[n1])[p], z(x2[n2])[p + d] )
    cov1, cov2       [n, d, p]        the same for an image with itself

d runs over stored offsets, p over flat positions; a network without spatial axes has one of each.
Invariant: entries whose partner p + d lies outside the image are zero after every verb.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from widelimit._pytree import pytree, static
from widelimit.covariance.offsets import Need
from widelimit.covariance.pairs import permute_axes, relayout, shift
from widelimit.covariance.parts import Pairing, Parts
from widelimit.covariance.signal import Signal

# Origins other than fresh weights: raw input, and a Kernel from outside.
INPUT = "<input>"
KERNEL = "<kernel>"

Features: TypeAlias = PyTree[Shaped[Array, "..."]]
"""Quantities of single positions: trees of arrays [..., n, p]."""


@pytree
class Covariances:
    """Covariances of one activation of x1 with one of x2, by offset.

    Attributes:
      nngp: covariance [n1, n2, d, p].
      ntk: tangent kernel, same shape; None while structurally zero, or if not requested.
      gap: (q1 + q2) / 2 - c, half the mean squared distance. It is carried along because the
        difference would lose all digits for near-duplicates; None after a layer that cannot carry
        it.
      cov1: covariance of each image of x1 with itself, [n1, d, p].
      cov2: the same for x2, [n2, d, p]; None means symmetric (x2 is x1).
      signal: shapes here.
      need: the stored offsets.
      tangent: whether the NTK is requested.
      gaussian: whether channels are independent Gaussians given the inputs.
      origins: the fresh weights that this activation depends on without further fresh weights in
        between. Activations that share an origin are correlated.
    """

    nngp: Float[Array, "n1 n2 d p"]
    ntk: Float[Array, "n1 n2 d p"] | None
    gap: Float[Array, "n1 n2 d p"] | None
    cov1: Float[Array, "n1 e p"]
    cov2: Float[Array, "n2 e p"] | None
    signal: Signal = static()
    need: Need = static()
    tangent: bool = static()
    gaussian: bool = static()
    origins: frozenset[str] = static()

    @property
    def symmetric(self) -> bool:
        """Whether x2 is x1."""
        return self.cov2 is None

    def replace(self, **changes: Any) -> Covariances:
        """Returns a copy with some fields changed.

        Args:
          **changes: new values by name of the field.
        """
        return dataclasses.replace(self, **changes)

    @property
    def parts(self) -> Parts:
        """The arrays, without the gap."""
        return Parts(self.nngp, self.ntk, self.cov1, self.cov2)

    def map(
        self, function: Callable[[Array, Pairing], Array], *, gap: bool = False, **changes: object
    ) -> Covariances:
        """Returns a copy with every array replaced by a function of it; the NTK as the NNGP.

        Args:
          function: returns the new array from an array [..., d, p] and its part.
          gap: whether the gap is mapped as the NNGP is, or dropped.
          **changes: other fields of the copy.
        """
        mapped = None if self.gap is None or not gap else function(self.gap, Pairing.CROSS)
        arrays = self.parts.map(function)._asdict()
        return self.replace(**{**arrays, "gap": mapped, **changes})

    def ends(self, part: Pairing, features: tuple[Features, Features]) -> tuple[Features, Features]:
        """Returns quantities of both ends of pairs, shaped to broadcast against a part.

        Args:
          part: the part.
          features: trees of arrays [..., n, p] of x1 and of x2.

        Returns:
          Trees of arrays [..., n1, 1, 1, p] at p and [..., 1, n2, d, p] at p + d; of samples with
          themselves [..., n, 1, p] and [..., n, d, p].
        """
        first, second = (features[side] for side in part.sides)
        offsets, spatial = part.of(self.need), self.signal.spatial

        def left(f: Array) -> Array:
            return f[..., None, :] if part.own else f[..., None, None, :]

        def right(f: Array) -> Array:
            moved = shift(f, offsets, spatial)
            return moved if part.own else moved[..., None, :, :, :]

        return jax.tree.map(left, first), jax.tree.map(right, second)


def cross_variances(cov: Covariances) -> tuple[Array, Array]:
    """Returns variances that broadcast against the cross-covariance.

    Returns:
      q1 [n1, 1, 1, p] at p, and q2 [1, n2, d, p] at p + d.
    """
    return cov.ends(Pairing.CROSS, variances(cov))


def variances(cov: Covariances) -> tuple[Array, Array]:
    """Returns the variances [n, p] of both sides."""
    zero = cov.need.own.zero_index
    var1 = cov.cov1[:, zero]
    return var1, var1 if cov.cov2 is None else cov.cov2[:, zero]


def at_offsets(cov: Covariances, need: Need) -> Covariances:
    """Returns the covariances at other offsets, all of which are stored.

    Raises:
      AssertionError: an offset is not stored.
    """
    for old, new in ((cov.need.cross, need.cross), (cov.need.own, need.own)):
        if new.wanted:
            assert old.wanted, (old, new)
            axes = zip(old.axes, new.axes, strict=True)
            assert all(set(w) <= set(s) for s, w in axes), (old, new)
    return embed(cov, need)


def embed(cov: Covariances, need: Need) -> Covariances:
    """Returns the covariances at other offsets; pairs that were not stored are zero."""
    if need == cov.need:
        return cov
    spatial = cov.signal.spatial

    def read(value: Array, part: Pairing) -> Array:
        return relayout(value, part.of(cov.need), part.of(need), spatial)

    return cov.map(read, gap=True, need=need)


def exact_diagonal(cov: Covariances) -> Covariances:
    """Returns symmetric covariances whose diagonal is exactly the variance, with gap 0."""
    if not cov.symmetric or not cov.need.own.wanted:
        return cov
    same = same_entry(cov)
    variance = variances(cov)[0][:, None, None, :]
    return cov.replace(
        nngp=jnp.where(same, variance, cov.nngp),
        gap=None if cov.gap is None else jnp.where(same, 0, cov.gap),
    )


def same_entry(cov: Covariances) -> Array:
    """Returns a mask [n, n, d, p]: same sample and same position."""
    zero = np.zeros((1, 1, cov.need.cross.count, 1), bool)
    zero[..., cov.need.cross.zero_index, :] = True
    equal = jnp.eye(cov.signal.n1, dtype=bool)[:, :, None, None] & zero
    return jnp.broadcast_to(equal, cov.nngp.shape)


def transpose_space(
    cov: Covariances, order: tuple[int, ...], spatial: tuple[int, ...], need: Need
) -> Covariances:
    """Returns the covariances with spatial axes in another order.

    Args:
      cov: covariances, stored in the present order.
      order: the present place of each new axis.
      spatial: present sizes.
      need: offsets in the new order.
    """
    if order == tuple(range(len(order))):
        return cov

    def permute(value: Array, part: Pairing) -> Array:
        return permute_axes(value, part.of(cov.need), spatial, order)

    return cov.map(permute, need=need)


def same_sample(cov: Covariances) -> Array:
    """Returns the covariances [n, d, p] of equal samples, from those of all pairs.

    For symmetric covariances that hold at least the own offsets: after a layer that mixes samples,
    self-covariances are this diagonal.
    """
    n = cov.nngp.shape[0]
    diagonal = cov.nngp[np.arange(n), np.arange(n)]
    return relayout(diagonal, cov.need.cross, cov.need.own, cov.signal.spatial)
