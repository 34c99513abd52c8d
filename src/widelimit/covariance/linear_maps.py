"""Fixed linear maps of positions and samples, applied to both copies of every covariance.

Selection, one matrix per axis, contraction with a constant array, and concatenation. A linear map
of an activation maps its tangents in the same way, so the NTK is mapped as the NNGP.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Num

from widelimit.covariance.covariances import Covariances, at_offsets
from widelimit.covariance.offsets import Need, Offsets
from widelimit.covariance.pair_matrices import close_pairs, open_pairs, position_maps
from widelimit.covariance.pairs import relayout
from widelimit.covariance.parts import Pairing
from widelimit.covariance.signal import Signal


def take_positions(
    cov: Covariances, positions: tuple[tuple[int, ...], ...], signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances of some positions of every axis.

    Args:
      cov: covariances.
      positions: per spatial axis, the position that each position of the result reads.
      signal: shapes of the result.
      need: offsets of the result, before axes of size 1 are dropped.
    """
    spatial = cov.signal.spatial

    def read(value: Array, part: Pairing) -> Array:
        return relayout(value, part.of(cov.need), part.of(need), spatial, positions)

    return cov.map(read, gap=True, signal=signal, need=need)


def take_samples(cov: Covariances, chosen: slice, signal: Signal) -> Covariances:
    """Returns the covariances of the samples x1[chosen] and x2[chosen]."""

    def take(value: Array, part: Pairing) -> Array:
        return value[(chosen,) * part.axes]

    return cov.map(take, gap=True, signal=signal)


def axis_maps(cov: Covariances, maps: dict[int, Num[Array, "_ _"]], need: Need) -> Covariances:
    """Returns the covariances after a linear map along some spatial axes.

    Args:
      cov: covariances, at all offsets of the mapped axes.
      maps: matrix [out, in] by spatial axis.
      need: offsets after; those of the other axes do not change.
    """
    for i, matrix in maps.items():
        signal = _resized(cov.signal, cov.signal.spatial_axes[i], matrix.shape[0])
        mapped = Need(
            _with_axis_of(cov.need.cross, need.cross, i), _with_axis_of(cov.need.own, need.own, i)
        )
        cov = position_maps(cov, (matrix[None], matrix[None]), (i,), signal, mapped)
    return cov


def _resized(signal: Signal, axis: int, size: int) -> Signal:
    shape1, shape2 = (
        (*shape[:axis], size, *shape[axis + 1 :]) for shape in (signal.shape1, signal.shape2)
    )
    return dataclasses.replace(signal, shape1=shape1, shape2=shape2)


def _with_axis_of(offsets: Offsets, other: Offsets, i: int) -> Offsets:
    """Returns the offsets with those of another set along one axis."""
    if not offsets.wanted:
        return offsets
    axes = (*offsets.axes[:i], other.axes[i], *offsets.axes[i + 1 :])
    plain = (None,) * len(axes)
    before, after = offsets.moduli or plain, other.moduli or plain
    moduli = (*before[:i], after[i], *before[i + 1 :])
    return Offsets(axes, moduli if any(moduli) else ())


def sample_maps(cov: Covariances, m1: Array, m2: Array, signal: Signal) -> Covariances:
    """Returns the covariances of linear combinations of samples, K' = M1 K M2^T.

    Self-covariances become zeros: they are not read after layers that mix samples.

    Args:
      cov: covariances.
      m1: matrix [out, n1] of x1.
      m2: matrix [out, n2] of x2.
      signal: shapes after.
    """

    def combined(value: Array, part: Pairing) -> Array:
        if part.own:
            return jnp.zeros((len((m1, m2)[part.sides[0]]), *value.shape[1:]), value.dtype)
        return jnp.einsum("am,mndp,bn->abdp", m1, value, m2)

    return cov.map(combined, signal=signal)


class Contraction(NamedTuple):
    """Labels of the axes of a constant and an activation; axes multiplied together share a label.

    Attributes:
      constant: labels of the axes of the constant.
      samples: label of the samples of the input.
      space: labels of its spatial axes.
      samples_out: label of the samples of the output.
      space_out: labels of its spatial axes.
    """

    constant: tuple[int, ...]
    samples: int
    space: tuple[int, ...]
    samples_out: int
    space_out: tuple[int, ...]

    @property
    def mixes_samples(self) -> bool:
        """Whether the constant has an axis in common with the samples."""
        return self.samples in self.constant

    def opened(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the indices of the spatial axes whose labels the constant has."""
        return tuple(i for i, label in enumerate(space) if label in self.constant)


def contract(
    cov: Covariances, constant: Array, plan: Contraction, signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances after a product with a constant, on both copies.

    Args:
      cov: covariances, at all offsets of the axes summed over.
      constant: the constant.
      plan: labels of the axes.
      signal: shapes after.
      need: offsets after.
    """
    axes, axes_out = plan.opened(plan.space), plan.opened(plan.space_out)
    sizes = [cov.signal.spatial[i] for i in axes]
    size_out = math.prod(signal.spatial[i] for i in axes_out)
    labels = sorted({*plan.constant, plan.samples, plan.samples_out})

    def copy(side: int, *names: int) -> list[int]:
        return [2 * labels.index(name) + side for name in names]

    rest = [2 * len(labels), 2 * len(labels) + 1]  # offsets and positions of the other axes
    within = [plan.space[i] for i in axes]
    within_out = [plan.space_out[i] for i in axes_out]

    def mapped(value: Array, part: Pairing) -> Array:
        if part.own and plan.mixes_samples:  # not read
            count = (signal.n1, signal.n2)[part.sides[0]]
            return jnp.zeros((count, *value.shape[1:3], size_out, size_out), value.dtype)
        samples, samples_out = (
            [label for side in range(part.axes) for label in copy(side, name)]
            for name in (plan.samples, plan.samples_out)
        )
        lead = value.shape[: part.axes + 2]
        grid = value.reshape(*lead, *sizes, *sizes)
        pairs = [*samples, *rest, *copy(0, *within), *copy(1, *within)]
        out = [*samples_out, *rest, *copy(0, *within_out), *copy(1, *within_out)]
        left, right = (copy(side, *plan.constant) for side in (0, 1))
        product = jnp.einsum(constant, left, grid, pairs, constant, right, out)
        return product.reshape(*product.shape[: part.axes + 2], size_out, size_out)

    out = close_pairs(cov, open_pairs(cov, axes).map(mapped), axes_out, signal, need)
    if cov.gap is None or constant.ndim:
        return out
    return out.replace(gap=jnp.square(constant) * cov.gap)


def concatenate_positions(
    branches: list[Covariances], axis: int, signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances of uncorrelated branches side by side along a spatial axis.

    Positions of different branches have covariance zero.

    Args:
      branches: covariances of the branches.
      axis: the spatial axis.
      signal: shapes of the result.
      need: offsets of the result.
    """

    def joined(values: list[Array], part: Pairing) -> Array:
        offsets = part.of(need)
        parts = []
        for value, branch in zip(values, branches, strict=True):
            spatial = branch.signal.spatial
            # Rows of the result hold each offset at the same p, so blocks need no shift.
            block = relayout(value, part.of(branch.need), offsets, spatial)
            parts.append(block.reshape(*block.shape[:-2], *offsets.counts, *spatial))
        lead = parts[0].shape[: parts[0].ndim - 2 * len(signal.spatial)]
        whole = jnp.concatenate(parts, axis=axis - len(signal.spatial))
        return whole.reshape(*lead, offsets.count, signal.positions)

    return _joined(branches, joined, signal, need)


def concatenate_samples(branches: list[Covariances], signal: Signal, need: Need) -> Covariances:
    """Returns the covariances of uncorrelated branches as one batch.

    Samples of different branches have covariance zero.

    Args:
      branches: covariances of the branches.
      signal: shapes of the result.
      need: offsets of the result.
    """
    branches = [at_offsets(branch, need) for branch in branches]

    def joined(values: list[Array], part: Pairing) -> Array:
        if part.own:
            return jnp.concatenate(values)
        rows, before = [], 0
        for value in values:
            after = signal.n2 - before - value.shape[1]
            rows.append(jnp.pad(value, ((0, 0), (before, after), (0, 0), (0, 0))))
            before += value.shape[1]
        return jnp.concatenate(rows)

    return _joined(branches, joined, signal, need)


def _joined(
    branches: list[Covariances],
    join: Callable[[list[Array], Pairing], Array],
    signal: Signal,
    need: Need,
) -> Covariances:
    """Returns branches joined array by array, with `join` for the arrays of a part."""
    ntk = None
    if any(b.ntk is not None for b in branches):
        ntks = [jnp.zeros_like(b.nngp) if b.ntk is None else b.ntk for b in branches]
        ntk = join(ntks, Pairing.CROSS)
    others = [b.cov2 for b in branches if b.cov2 is not None]
    return branches[0].replace(
        nngp=join([b.nngp for b in branches], Pairing.CROSS),
        ntk=ntk,
        gap=None,
        cov1=join([b.cov1 for b in branches], Pairing.OWN1),
        cov2=join(others, Pairing.OWN2) if others else None,
        signal=signal,
        need=need,
        origins=frozenset().union(*(b.origins for b in branches)),
    )
