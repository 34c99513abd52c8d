"""Which covariance entries are kept: positions by offset, found backwards from the output.

The covariance of two images is a function of two positions p and p'. It is stored by offset
d = p' - p, and only at the offsets that some later layer reads.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Offsets:
    """A set of true signed offsets per spatial axis; the stored set is their product.

    Attributes:
      axes: per spatial axis, its offsets in ascending order.
    """

    axes: tuple[tuple[int, ...], ...]

    @staticmethod
    def zero(ndim: int) -> Offsets:
        """Returns the set that pairs each position with itself only."""
        return Offsets(((0,),) * ndim)

    @staticmethod
    def full(shape: tuple[int, ...]) -> Offsets:
        """Returns the set that pairs each position of an image of `shape` with every other."""
        return Offsets(tuple(tuple(range(1 - size, size)) for size in shape))

    def __or__(self, other: Offsets) -> Offsets:
        pairs = zip(self.axes, other.axes, strict=True)
        return Offsets(tuple(tuple(sorted({*a, *b})) for a, b in pairs))

    def clip(self, shape: tuple[int, ...]) -> Offsets:
        """Returns the offsets that pair at least one position of an image of `shape`."""
        pairs = zip(self.axes, shape, strict=True)
        return Offsets(tuple(tuple(d for d in axis if abs(d) < size) for axis, size in pairs))

    @property
    def count(self) -> int:
        """The number of stored offsets (the length of axis d)."""
        return math.prod(len(axis) for axis in self.axes)

    @property
    def zero_index(self) -> int:
        """The place of offset 0 along axis d. Every stored set contains it."""
        index = 0
        for axis in self.axes:
            index = index * len(axis) + axis.index(0)
        return index

    def entries(self, shape: tuple[int, ...]) -> int:
        """Returns how many stored entries pair two positions inside the image."""
        pairs = zip(self.axes, shape, strict=True)
        return math.prod(sum(size - abs(d) for d in axis) for axis, size in pairs)


@dataclasses.dataclass(frozen=True)
class Need:
    """The offsets read at one place of a network.

    Attributes:
      cross: offsets of the covariance of x1 with x2.
      own: offsets of the covariance of an image with itself; offset 0 is its variance.
    """

    cross: Offsets
    own: Offsets

    @staticmethod
    def zero(ndim: int) -> Need:
        """Returns the need for equal positions only."""
        return Need(Offsets.zero(ndim), Offsets.zero(ndim))

    @staticmethod
    def full(shape: tuple[int, ...]) -> Need:
        """Returns the need for every pair of positions."""
        return Need(Offsets.full(shape), Offsets.full(shape))

    def __or__(self, other: Need) -> Need:
        return Need(self.cross | other.cross, self.own | other.own)


@functools.lru_cache(maxsize=256)
def partner_table(offsets: Offsets, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns where p + d lies.

    Returns:
      Two arrays [d, p]: the flat index of p + d (0 where outside), and whether it is inside.
    """
    ndim = len(shape)
    positions = np.array(list(itertools.product(*map(range, shape))), dtype=np.int32)
    steps = np.array(list(itertools.product(*offsets.axes)), dtype=np.int32)
    partner = positions.reshape(1, math.prod(shape), ndim) + steps.reshape(offsets.count, 1, ndim)
    inside = np.all((partner >= 0) & (partner < np.array(shape, dtype=np.int32)), axis=-1)
    weights = np.array([math.prod(shape[i + 1 :]) for i in range(len(shape))], dtype=np.int32)
    return np.where(inside, partner @ weights, 0), inside


@functools.lru_cache(maxsize=256)
def pair_table(offsets: Offsets, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the pair (p, p') is stored.

    Returns:
      Two arrays [p, p']: the flat index into [d, p] (0 where not stored), and whether it is
      stored.
    """
    partner, inside = partner_table(offsets, shape)
    size = math.prod(shape)
    index = np.zeros((size, size), np.int32)
    stored = np.zeros((size, size), bool)
    d, p = np.nonzero(inside)
    index[p, partner[d, p]] = d * size + p
    stored[p, partner[d, p]] = True
    return index, stored
