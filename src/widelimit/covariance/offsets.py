"""The covariance entries that are stored: positions by offset, determined from the output back.

The covariance of two images is a function of two positions p and p'. It is stored by offset
d = p' - p, and only at the offsets that some later layer reads.

A set of offsets is stored row by row along each axis. If a set is closed modulo M, one row holds
two true offsets, d and d - M: their ranges of p do not overlap if the modulus M is at least the
size of the axis, so nothing is padded and each pair is stored once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection

import numpy as np


@dataclasses.dataclass(frozen=True)
class Offsets:
    """A set of true signed offsets per spatial axis; the stored set is their product.

    Attributes:
      axes: per spatial axis, its offsets in ascending order.
      moduli: per spatial axis the modulus that folds it, None if rows are true offsets; empty if no
        axis is folded.
      wanted: False for the empty set, of which nothing is stored.
    """

    axes: tuple[tuple[int, ...], ...]
    moduli: tuple[int | None, ...] = ()
    wanted: bool = True

    @staticmethod
    def zero(ndim: int) -> Offsets:
        """Returns the set {0}, which pairs each position with itself only.

        Args:
          ndim: number of spatial axes.
        """
        return Offsets(((0,),) * ndim)

    @staticmethod
    def none(ndim: int) -> Offsets:
        """Returns the empty set.

        Args:
          ndim: number of spatial axes.
        """
        return Offsets(((),) * ndim, wanted=False)

    @staticmethod
    def full(shape: tuple[int, ...]) -> Offsets:
        """Returns the set of all offsets of an image.

        Args:
          shape: sizes of the spatial axes.
        """
        return Offsets(tuple(tuple(range(1 - size, size)) for size in shape))

    def __or__(self, other: Offsets) -> Offsets:
        if not (self.wanted and other.wanted):
            return self if self.wanted else other
        pairs = zip(self.axes, other.axes, strict=True)
        return Offsets(tuple(tuple(sorted({*a, *b})) for a, b in pairs))

    def widen(self, axes: Collection[int], shape: tuple[int, ...]) -> Offsets:
        """Returns the set with every offset along some axes.

        Args:
          axes: the spatial axes to widen.
          shape: sizes of the spatial axes.
        """
        if not self.wanted:
            return self
        pairs = enumerate(zip(self.axes, Offsets.full(shape).axes, strict=True))
        return Offsets(tuple(full if i in axes else some for i, (some, full) in pairs))

    def permute(self, order: tuple[int, ...]) -> Offsets:
        """Returns the set with its axes in another order.

        Args:
          order: the present place of each new axis.
        """
        moduli = tuple(self.moduli[i] for i in order) if self.moduli else ()
        return Offsets(tuple(self.axes[i] for i in order), moduli, self.wanted)

    def clip(self, shape: tuple[int, ...]) -> Offsets:
        """Returns the offsets that occur between positions of an image.

        Args:
          shape: sizes of the spatial axes.
        """
        pairs = zip(self.axes, shape, strict=True)
        axes = tuple(tuple(d for d in axis if abs(d) < size) for axis, size in pairs)
        return Offsets(axes, wanted=self.wanted)

    def fold(self, shape: tuple[int, ...], moduli: tuple[int, ...]) -> Offsets:
        """Returns the set with every axis folded where that takes fewer rows.

        Args:
          shape: sizes of the spatial axes.
          moduli: modulus per axis.
        """
        folds = tuple(map(_useful_modulus, self.axes, shape, moduli)) if self.wanted else ()
        return Offsets(self.axes, folds if any(folds) else (), self.wanted)

    @functools.cached_property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Per axis the stored rows: true offsets, or residues for a folded axis."""
        moduli = self.moduli or (None,) * len(self.axes)
        return tuple(
            axis if m is None else tuple(sorted({d % m for d in axis}))
            for axis, m in zip(self.axes, moduli, strict=True)
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of rows per axis."""
        return tuple(len(rows) for rows in self.rows)

    @property
    def count(self) -> int:
        """The number of stored rows (the length of axis d)."""
        return math.prod(self.counts) if self.wanted else 0

    @property
    def zero_index(self) -> int:
        """The index of offset 0 along axis d. Every set but the empty one contains it."""
        index = 0
        for rows in self.rows:
            index = index * len(rows) + rows.index(0)
        return index

    def entries(self, shape: tuple[int, ...]) -> int:
        """Returns how many stored entries pair two positions inside the image.

        Args:
          shape: sizes of the spatial axes.
        """
        pairs = zip(self.axes, shape, strict=True)
        count = math.prod(sum(size - abs(d) for d in axis) for axis, size in pairs)
        return count if self.wanted else 0

    def partners(self, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Returns per axis the partner p + d as an array [rows, p]; -1 outside the image.

        Args:
          shape: sizes of the spatial axes.
        """
        moduli = self.moduli or (None,) * len(self.axes)
        return tuple(map(_axis_partners, self.rows, moduli, shape))

    def places(self, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Returns per axis the place of the pair (p, p') in storage, as an array [p, p'].

        Entries are flat indices into [rows, p]; -1 if the pair is not stored.

        Args:
          shape: sizes of the spatial axes.
        """
        moduli = self.moduli or (None,) * len(self.axes)
        return tuple(map(_axis_places, self.rows, moduli, shape))


def _useful_modulus(axis: tuple[int, ...], size: int, modulus: int) -> int | None:
    """Returns the modulus if the axis is closed under it and takes fewer rows with it, or None."""
    if modulus < size or len({d % modulus for d in axis}) == len(axis):
        return None
    values = set(axis)
    partners = (d - modulus if d > 0 else d + modulus for d in axis)
    closed = all(p in values for p in partners if abs(p) < size)
    return modulus if closed else None


@functools.lru_cache(maxsize=1024)
def _axis_partners(rows: tuple[int, ...], modulus: int | None, size: int) -> np.ndarray:
    positions = np.arange(size, dtype=np.int32)
    steps = np.array(rows, dtype=np.int32).reshape(len(rows), 1)
    partner = positions.reshape(1, size) + steps
    if modulus is not None:
        partner = partner % modulus
    return np.where((partner >= 0) & (partner < size), partner, -1).astype(np.int32)


@functools.lru_cache(maxsize=1024)
def _axis_places(rows: tuple[int, ...], modulus: int | None, size: int) -> np.ndarray:
    partner = _axis_partners(rows, modulus, size)
    places = np.full((size, size), -1, np.int32)
    row, p = np.nonzero(partner >= 0)
    places[p, partner[row, p]] = row * size + p
    return places


def fitting_moduli(
    offsets: Offsets, shape: tuple[int, ...], wished: tuple[int | None, ...] | None
) -> tuple[int, ...]:
    """Returns a modulus per axis: the preferred one if large enough, else the smallest possible.

    Args:
      offsets: the offsets needed there.
      shape: sizes of the spatial axes.
      wished: preferred moduli, which keep rows in place through a layer; None for no preference.
    """
    moduli = []
    for axis, size, wish in zip(offsets.axes, shape, wished or (None,) * len(shape), strict=True):
        step = math.gcd(*axis) or 1
        least = -(-size // step) * step
        moduli.append(wish if wish is not None and wish >= size else least)
    return tuple(moduli)


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
    def zero(ndim: int, own: bool = True) -> Need:
        """Returns the need for equal positions only.

        Args:
          ndim: number of spatial axes.
          own: whether self-covariances are needed.
        """
        zero = Offsets.zero(ndim)
        return Need(zero, zero if own else Offsets.none(ndim))

    @staticmethod
    def full(shape: tuple[int, ...], own: bool = True) -> Need:
        """Returns the need for every pair of positions.

        Args:
          shape: sizes of the spatial axes.
          own: whether self-covariances are needed.
        """
        full = Offsets.full(shape)
        return Need(full, full if own else Offsets.none(len(shape)))

    def map(self, function: Callable[[Offsets], Offsets]) -> Need:
        """Returns the need with both sets replaced by a function of them.

        Args:
          function: returns a set of offsets from another one.
        """
        return Need(function(self.cross), function(self.own))

    def __or__(self, other: Need) -> Need:
        return Need(self.cross | other.cross, self.own | other.own)

    def with_variances(self) -> Need:
        """Returns the need with the variances (own offset 0) added."""
        return Need(self.cross, self.own | Offsets.zero(len(self.cross.axes)))

    def fold(self, shape: tuple[int, ...], moduli: tuple[int, ...]) -> Need:
        """Returns the need with both sets folded where that takes fewer rows.

        Args:
          shape: sizes of the spatial axes.
          moduli: modulus per axis.
        """
        return self.map(lambda offsets: offsets.fold(shape, moduli))
