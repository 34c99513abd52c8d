"""Windows along one spatial axis: the inputs of each output, and the map of pairs of these.

A `Stencil` is a table of taps: the input position that each output reads through each tap.
Convolutions tie both copies of an axis to the same tap (their weights are independent); pooling
and resizing do not. Everything else follows from the table: the offsets needed at the input, and
the map from stored input pairs to stored output pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Real

from widelimit.covariance.offsets import Offsets


class Window(NamedTuple):
    """A plain window, with the arguments of `jax.lax.reduce_window`."""

    size: int
    stride: int
    dilation: int
    padding: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Stencil:
    """The inputs that the outputs along one axis read.

    Attributes:
      size_in: size of the axis at the input.
      table: array [t, o], the input position that output o reads through tap t; -1 for none.
      weights: array [o], the weight of every output.
      tied: whether both copies of the axis read through the same tap.
      window: the equivalent plain window with weights 1, or None.
    """

    size_in: int
    table: Int[np.ndarray, "taps out"]
    weights: Real[np.ndarray, "out"]
    tied: bool
    window: Window | None = None

    @property
    def size_out(self) -> int:
        """Size of the axis at the output."""
        return self.table.shape[1]

    def matrix(self) -> np.ndarray:
        """Returns the linear map of one copy of the axis, an array [o, i]."""
        out = np.zeros((self.size_out, self.size_in))
        tap, o = np.nonzero(self.table >= 0)
        np.add.at(out, (o, self.table[tap, o]), self.weights[o])
        return out

    def tap_pairs(self) -> list[tuple[int, int]]:
        """Returns the pairs of taps through which a pair of outputs reads."""
        taps = range(len(self.table))
        return [(t, t) for t in taps] if self.tied else list(itertools.product(taps, taps))


def out_size(size: int, window: int, stride: int, dilation: int, padding: tuple[int, int]) -> int:
    """Returns the number of outputs of a window along an axis; not positive if it does not fit."""
    return (size + sum(padding) - (window - 1) * dilation - 1) // stride + 1


def same_padding(size: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    """Returns the padding for ceil(size / stride) outputs, the larger part behind."""
    out = -(-size // stride)
    total = max((out - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


@functools.lru_cache(maxsize=512)
def window_stencil(
    size: int,
    window: int,
    stride: int,
    dilation: int,
    padding: tuple[int, int],
    *,
    circular: bool = False,
    tied: bool = True,
    normalise: bool = False,
) -> Stencil:
    """Returns the stencil of a convolution or pooling along one axis.

    Args:
      size: size of the axis.
      window: number of taps.
      stride: step between outputs.
      dilation: step between taps.
      padding: positions added before and behind; they are zero, or wrap around if circular.
      circular: whether the axis wraps around.
      tied: convolution (True) or pooling.
      normalise: whether to divide every output by its number of taps inside the axis.
    """
    out = np.arange(out_size(size, window, stride, dilation, padding))
    taps = np.arange(window).reshape(window, 1)
    read = out.reshape(1, -1) * stride + taps * dilation - padding[0]
    inside = (read >= 0) & (read < size)
    table = read % size if circular else np.where(inside, read, -1)
    counts = np.maximum(inside.sum(0), 1)
    weights = 1 / counts if normalise else np.ones(len(out))
    plain = tied and not circular and not normalise
    return Stencil(
        size, table, weights, tied, Window(window, stride, dilation, padding) if plain else None
    )


@functools.lru_cache(maxsize=512)
def transposed_stencil(
    size: int,
    size_out: int,
    window: int,
    stride: int,
    dilation: int,
    before: int,
    *,
    circular: bool = False,
) -> Stencil:
    """Returns the stencil of a transposed convolution along one axis.

    Output o reads input i through tap t where i stride + before = o + t dilation: a convolution of
    the input with its positions spread out by `stride`, after `before` zeros. The circular one is
    the adjoint of a circular convolution padded by `before`: there i stride - before = o - t
    dilation.

    Args:
      size: size of the axis at the input.
      size_out: size at the output.
      window: number of taps.
      stride: distance between inputs.
      dilation: step between taps.
      before: padding in front of the spread input.
      circular: whether the output wraps around.
    """
    out = np.arange(size_out).reshape(1, -1)
    taps = np.arange(window).reshape(window, 1) * dilation
    read = (out - taps + before) % size_out if circular else out + taps - before
    position, rest = np.divmod(read, stride)
    inside = (rest == 0) & (position >= 0) & (position < size)
    table = np.where(inside, position, -1)
    return Stencil(size, table, np.ones(size_out), tied=True)


@functools.lru_cache(maxsize=512)
def index_stencil(size: int, positions: tuple[int, ...]) -> Stencil:
    """Returns the stencil that reads one position of an axis per output.

    Args:
      size: size of the axis.
      positions: the position of each output.
    """
    table = np.array(positions, dtype=np.int64).reshape(1, -1)
    return Stencil(size, table, np.ones(len(positions)), tied=True)


@functools.lru_cache(maxsize=1024)
def needed(stencil: Stencil, offsets: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the input offsets that these output offsets read, 0 always included."""
    inputs = {0}
    o = np.arange(stencil.size_out)
    for d, (a, b) in itertools.product(offsets, stencil.tap_pairs()):
        first = o[(o + d >= 0) & (o + d < stencil.size_out)]
        left, right = stencil.table[a, first], stencil.table[b, first + d]
        both = (left >= 0) & (right >= 0)
        inputs.update(np.unique(right[both] - left[both]).tolist())
    return tuple(sorted(inputs))


def needed_offsets(stencils: tuple[Stencil, ...], offsets: Offsets) -> Offsets:
    """Returns the offsets that a layer with one stencil per axis reads.

    Args:
      stencils: one stencil per spatial axis.
      offsets: offsets needed at the output.
    """
    if not offsets.wanted:
        return Offsets.none(len(stencils))
    return Offsets(tuple(map(needed, stencils, offsets.axes)))


class AxisTerm(NamedTuple):
    """One term of the map from stored input pairs to stored output pairs along one axis.

    Attributes:
      rows: array [rows_out], the input row that each output row reads.
      matrix: array [rows_out, size_in, size_out], the map of positions per output row.
    """

    rows: np.ndarray
    matrix: np.ndarray


@functools.lru_cache(maxsize=256)
def axis_terms(stencil: Stencil, old: Offsets, new: Offsets) -> tuple[AxisTerm, ...]:
    """Returns the map of pairs along one axis, a sum of terms.

    Args:
      stencil: the stencil.
      old: offsets of the input, of this axis only.
      new: offsets of the output, of this axis only.
    """
    (partner,) = new.partners((stencil.size_out,))
    (places,) = old.places((stencil.size_in,))
    row, o = np.nonzero(partner >= 0)
    o2 = partner[row, o]
    entries = []
    for a, b in stencil.tap_pairs():
        i, i2 = stencil.table[a, o], stencil.table[b, o2]
        both = (i >= 0) & (i2 >= 0)
        place = places[i[both], i2[both]]
        if (place < 0).any():
            raise AssertionError("a pair of positions is read that is not stored")
        weight = stencil.weights[o[both]] * (1.0 if stencil.tied else stencil.weights[o2[both]])
        entries.append((row[both], place // stencil.size_in, i[both], o[both], weight))
    return _collect(entries, len(partner), stencil)


def _collect(entries: list[tuple], rows_out: int, stencil: Stencil) -> tuple[AxisTerm, ...]:
    """Returns entries (row out, row in, i, o, weight) as terms that read one input row each."""
    out, read, i, o, weight = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    pairs, term_of = np.unique(np.stack([out, read]), axis=1, return_inverse=True)
    rank = np.zeros(pairs.shape[1], int)
    for k in range(1, pairs.shape[1]):  # sorted by output row: count the input rows of each
        rank[k] = rank[k - 1] + 1 if pairs[0, k] == pairs[0, k - 1] else 0
    terms = []
    for r in range(int(rank.max(initial=0)) + 1):
        rows = np.zeros(rows_out, np.int32)
        chosen = rank == r
        rows[pairs[0, chosen]] = pairs[1, chosen]
        matrix = np.zeros((rows_out, stencil.size_in, stencil.size_out))
        mine = chosen[term_of.reshape(-1)]
        np.add.at(matrix, (out[mine], i[mine], o[mine]), weight[mine])
        terms.append(AxisTerm(rows, matrix))
    return tuple(terms)
