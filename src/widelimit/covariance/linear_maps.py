"""Fixed linear maps of positions and samples, applied to both copies of every covariance.

Selection, one matrix per axis, contraction with a constant array, and concatenation. What they say
of an activation z they say of its tangents too, so the NTK is mapped like the NNGP.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Num

from widelimit.covariance.covariances import Covariances, at_offsets, map_values
from widelimit.covariance.offsets import Need, Offsets
from widelimit.covariance.pair_matrices import PairMatrices, close_pairs, open_pairs, position_maps
from widelimit.covariance.pairs import relayout
from widelimit.covariance.signal import Signal


def take_positions(
    cov: Covariances, positions: tuple[tuple[int, ...], ...], signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances of some positions of every axis.

    Args:
      cov: covariances.
      positions: per spatial axis the position that each one of the result reads.
      signal: shapes of the result.
      need: offsets of the result, before axes of size 1 are dropped.
    """
    spatial = cov.signal.spatial

    def read(value: Array, stored: Offsets, wanted: Offsets) -> Array:
        return relayout(value, stored, wanted, spatial, positions)

    gap = None if cov.gap is None else read(cov.gap, cov.need.cross, need.cross)
    return map_values(cov, read, signal, need).replace(gap=gap)


def take_samples(cov: Covariances, part: slice, signal: Signal) -> Covariances:
    """Returns the covariances of the samples x1[part] and x2[part]."""

    def cross(value: Array | None) -> Array | None:
        return None if value is None else value[part, part]

    return cov.replace(
        nngp=cross(cov.nngp),
        ntk=cross(cov.ntk),
        gap=cross(cov.gap),
        cov1=cov.cov1[part],
        cov2=None if cov.cov2 is None else cov.cov2[part],
        signal=signal,
    )


def axis_maps(cov: Covariances, maps: dict[int, Num[Array, "_ _"]], need: Need) -> Covariances:
    """Returns the covariances after one linear map for each of some spatial axes.

    Args:
      cov: covariances, at all offsets of the mapped axes.
      maps: matrix [out, in] by spatial axis.
      need: offsets after; those of the other axes are as before.
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

    Self-covariances become zeros: those of layers that mix samples are not read.

    Args:
      cov: covariances.
      m1: matrix [out, n1] of x1.
      m2: matrix [out, n2] of x2.
      signal: shapes after.
    """

    def cross(value: Array | None) -> Array | None:
        return None if value is None else jnp.einsum("am,mndp,bn->abdp", m1, value, m2)

    return cov.replace(
        nngp=cross(cov.nngp),
        ntk=cross(cov.ntk),
        gap=None,
        cov1=jnp.zeros((m1.shape[0], *cov.cov1.shape[1:]), cov.cov1.dtype),
        cov2=None
        if cov.cov2 is None
        else jnp.zeros((m2.shape[0], *cov.cov2.shape[1:]), cov.cov2.dtype),
        signal=signal,
    )


class Contraction(NamedTuple):
    """How a constant array meets an activation: every axis has a label, shared where they meet.

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
        """Returns which of some spatial axes the constant has a part in."""
        return tuple(i for i, label in enumerate(space) if label in self.constant)


def contract(
    cov: Covariances, constant: Array, plan: Contraction, signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances after a product with a constant, on both copies.

    Args:
      cov: covariances, at all offsets of the axes summed over.
      constant: the constant.
      plan: which axes meet.
      signal: shapes after.
      need: offsets after.
    """
    axes, axes_out = plan.opened(plan.space), plan.opened(plan.space_out)
    sizes = [cov.signal.spatial[i] for i in axes]
    size_out = math.prod(signal.spatial[i] for i in axes_out)
    opened = open_pairs(cov, axes)
    labels = sorted({*plan.constant, plan.samples, plan.samples_out})

    def copy(side: int, *names: int) -> list[int]:
        return [2 * labels.index(name) + side for name in names]

    kept = [2 * len(labels), 2 * len(labels) + 1]  # offsets and positions of the other axes
    within = [plan.space[i] for i in axes]
    within_out = [plan.space_out[i] for i in axes_out]

    def mapped(value: Array, samples: list[int], samples_out: list[int]) -> Array:
        lead = value.shape[: len(samples) + 2]
        grid = value.reshape(*lead, *sizes, *sizes)
        pairs = [*samples, *kept, *copy(0, *within), *copy(1, *within)]
        out = [*samples_out, *kept, *copy(0, *within_out), *copy(1, *within_out)]
        left, right = (copy(side, *plan.constant) for side in (0, 1))
        product: Any = jnp.einsum(constant, left, grid, pairs, constant, right, out)
        return product.reshape(*product.shape[: len(samples) + 2], size_out, size_out)

    def cross(value: Array | None) -> Array | None:
        if value is None:
            return None
        before, after = ([*copy(0, s), *copy(1, s)] for s in (plan.samples, plan.samples_out))
        return mapped(value, before, after)

    def own(value: Array, count: int) -> Array:
        if not plan.mixes_samples:
            return mapped(value, copy(0, plan.samples), copy(0, plan.samples))
        return jnp.zeros((count, *value.shape[1:3], size_out, size_out), value.dtype)  # not read

    nngp = cross(opened.nngp)
    assert nngp is not None
    cov2 = None if opened.cov2 is None else own(opened.cov2, signal.n2)
    after = PairMatrices(nngp, cross(opened.ntk), own(opened.cov1, signal.n1), cov2)
    out = close_pairs(cov, after, axes_out, signal, need)
    if cov.gap is None or constant.ndim:
        return out
    return out.replace(gap=jnp.square(constant) * cov.gap)


def concatenate_positions(
    branches: list[Covariances], axis: int, signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances of uncorrelated branches side by side along a spatial axis.

    Pairs of positions of two branches have covariance zero.

    Args:
      branches: covariances of the branches.
      axis: the spatial axis.
      signal: shapes of the result.
      need: offsets of the result.
    """

    def joined(values: list[Array], kind: str) -> Array:
        wanted = getattr(need, kind)
        parts = []
        for value, branch in zip(values, branches, strict=True):
            spatial = branch.signal.spatial
            # Rows of the result hold each offset at the same p, so blocks need no shift.
            block = relayout(value, getattr(branch.need, kind), wanted, spatial)
            parts.append(block.reshape(*block.shape[:-2], *wanted.counts, *spatial))
        lead = parts[0].shape[: parts[0].ndim - 2 * len(signal.spatial)]
        whole = jnp.concatenate(parts, axis=axis - len(signal.spatial))
        return whole.reshape(*lead, wanted.count, signal.positions)

    return _joined(branches, lambda v: joined(v, "cross"), lambda v: joined(v, "own"), signal, need)


def concatenate_samples(branches: list[Covariances], signal: Signal, need: Need) -> Covariances:
    """Returns the covariances of uncorrelated branches as one batch.

    Samples of two branches have covariance zero.

    Args:
      branches: covariances of the branches.
      signal: shapes of the result.
      need: offsets of the result.
    """
    branches = [at_offsets(branch, need) for branch in branches]

    def cross(values: list[Array]) -> Array:
        rows, before = [], 0
        for value in values:
            after = signal.n2 - before - value.shape[1]
            rows.append(jnp.pad(value, ((0, 0), (before, after), (0, 0), (0, 0))))
            before += value.shape[1]
        return jnp.concatenate(rows)

    return _joined(branches, cross, jnp.concatenate, signal, need)


def _joined(
    branches: list[Covariances],
    cross: Callable[[list[Array]], Array],
    own: Callable[[list[Array]], Array],
    signal: Signal,
    need: Need,
) -> Covariances:
    """Returns branches joined array by array, given how arrays of each kind are joined."""
    ntk = None
    if any(b.ntk is not None for b in branches):
        ntk = cross([jnp.zeros_like(b.nngp) if b.ntk is None else b.ntk for b in branches])
    others = [b.cov2 for b in branches if b.cov2 is not None]
    return branches[0].replace(
        nngp=cross([b.nngp for b in branches]),
        ntk=ntk,
        gap=None,
        cov1=own([b.cov1 for b in branches]),
        cov2=own(others) if others else None,
        signal=signal,
        need=need,
        origins=frozenset().union(*(b.origins for b in branches)),
    )
