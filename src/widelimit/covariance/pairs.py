"""Arrays of pairs of positions, stored by offset: [..., d, p].

d runs over the stored rows of a set of `Offsets`, p over flat positions, both in row-major order
of the spatial axes. Entries whose partner p + d lies outside the image are zero. Functions here
act on one array; `Covariances.map` applies them to all arrays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from widelimit.covariance.offsets import Offsets
from widelimit.covariance.stencil import AxisTerm, Stencil, Window, axis_terms

Shape = tuple[int, ...]


def shift(f: Array, offsets: Offsets, spatial: Shape) -> Array:
    """Returns f[..., p + d] as an array [..., d, p]; places outside the image read position 0."""
    lead, ndim = f.shape[:-1], len(spatial)
    if all(len(rows) == 1 for rows in offsets.rows) and offsets.wanted:
        return f[..., None, :]
    if not offsets.wanted:
        return jnp.zeros((*lead, 0, f.shape[-1]), f.dtype)
    grid = f.reshape(*lead, *spatial)
    for i, partner in enumerate(offsets.partners(spatial)):
        # Present axes: lead, (d_0, p_0), ..., (d_{i-1}, p_{i-1}), remaining positions.
        grid = jnp.take(grid, np.maximum(partner, 0), axis=len(lead) + 2 * i)
    order = [len(lead) + 2 * i + k for k in (0, 1) for i in range(ndim)]
    grid = grid.transpose(*range(len(lead)), *order)
    return grid.reshape(*lead, offsets.count, f.shape[-1])


def rezero(value: Array, offsets: Offsets, spatial: Shape) -> Array:
    """Returns the array [..., d, p] with zeros where p + d is outside the image."""
    inside = [partner >= 0 for partner in offsets.partners(spatial)]
    if all(mask.all() for mask in inside) or not offsets.wanted:
        return value
    grid = _grid(value, offsets, spatial)
    for i, mask in enumerate(inside):
        shape = [1] * grid.ndim
        shape[i - 2 * len(spatial)], shape[i - len(spatial)] = mask.shape
        grid = jnp.where(mask.reshape(shape), grid, 0)
    return grid.reshape(value.shape)


def relayout(
    value: Array,
    old: Offsets,
    new: Offsets,
    spatial: Shape,
    positions: tuple[Shape, ...] | None = None,
) -> Array:
    """Returns the array at other offsets; pairs that were not stored are zero.

    Args:
      value: array [..., d, p].
      old: its offsets.
      new: offsets of the result.
      spatial: sizes of its spatial axes.
      positions: per axis, the position that each position of the result reads; None for itself.
    """
    if positions is None:
        if old == new:
            return value
        positions = tuple(tuple(range(size)) for size in spatial)
    sizes = tuple(map(len, positions))
    lead, size = value.shape[:-2], math.prod(sizes)
    if not new.wanted or not old.wanted:
        return jnp.zeros((*lead, new.count, size), value.dtype)
    grid = _grid(value, old, spatial)
    ndim, start = len(spatial), len(lead)
    tables = zip(old.places(spatial), new.partners(sizes), positions, strict=True)
    for i, (places, partner, reads) in enumerate(tables):
        read = np.array(reads, np.int32)
        table = np.where(partner >= 0, places[read, read[np.maximum(partner, 0)]], -1)
        grid = _take_pairs(grid, table, start + i, start + ndim + i)
    return grid.reshape(*lead, new.count, size)


def permute_axes(value: Array, offsets: Offsets, spatial: Shape, order: Shape) -> Array:
    """Returns the array with its spatial axes in another order, axis `order[i]` at place i."""
    lead, ndim = value.shape[:-2], len(spatial)
    axes = [len(lead) + k + i for k in (0, ndim) for i in order]
    grid = _grid(value, offsets, spatial).transpose(*range(len(lead)), *axes)
    return grid.reshape(value.shape)


def _take_pairs(grid: Array, table: np.ndarray, axis_d: int, axis_p: int) -> Array:
    """Returns the grid with its (d, p) pairs along two axes taken by a table [d', p']."""
    flat = jnp.moveaxis(grid, (axis_d, axis_p), (-2, -1))
    flat = flat.reshape(*flat.shape[:-2], flat.shape[-2] * flat.shape[-1])
    pairs = jnp.take(flat, np.maximum(table, 0), axis=-1)
    if (table < 0).any():
        pairs = jnp.where(jnp.broadcast_to(table >= 0, pairs.shape), pairs, 0)
    return jnp.moveaxis(pairs, (-2, -1), (axis_d, axis_p))


def apply_stencils(
    value: Array, stencils: tuple[Stencil, ...], old: Offsets, new: Offsets
) -> Array:
    """Returns pairs of outputs as sums of pairs of inputs, over one stencil per spatial axis."""
    lead, ndim = value.shape[:-2], len(stencils)
    sizes = math.prod(s.size_out for s in stencils)
    if not new.wanted:
        return jnp.zeros((*lead, 0, sizes), value.dtype)
    grid = _grid(value, old, tuple(s.size_in for s in stencils))
    for i, stencil in enumerate(stencils):
        terms = axis_terms(stencil, axis_of(old, i), axis_of(new, i))
        axes = len(lead) + i, len(lead) + ndim + i
        if stencil.window is not None and len(terms) == 1:
            rows, reads = terms[0].rows, terms[0].matrix.any(axis=1)
            source = _kinds(axis_of(old, i), stencil.size_in, rows)
            ahead, behind = _kinds(axis_of(new, i), stencil.size_out)
            target = _Kinds(ahead & reads, behind & reads)
            grid = _rows(grid, rows, axes[0])
            grid = _window_sum(grid, stencil.window, source, target, axes)
        else:
            parts = [_matrix_sum(grid, term, axes) for term in terms]
            grid = sum(parts[1:], parts[0])
    return grid.reshape(*lead, new.count, sizes)


def axis_of(offsets: Offsets, i: int) -> Offsets:
    """Returns the offsets of one axis."""
    return Offsets((offsets.axes[i],), offsets.moduli[i : i + 1], offsets.wanted)


def _rows(grid: Array, rows: np.ndarray, axis: int) -> Array:
    identity = len(rows) == grid.shape[axis] and (rows == np.arange(len(rows))).all()
    return grid if identity else jnp.take(grid, rows, axis=axis)


def _matrix_sum(grid: Array, term: AxisTerm, axes: tuple[int, int]) -> Array:
    """Returns one term of a map of pairs: rows taken along axis d, a map along axis p."""
    axis_d, axis_p = axes
    letters = [chr(ord("a") + i) for i in range(grid.ndim)]
    out = letters.copy()
    out[axis_p] = "z"
    matrix = jnp.asarray(term.matrix, grid.dtype)
    spec = f"{''.join(letters)},{letters[axis_d]}{letters[axis_p]}z->{''.join(out)}"
    return jnp.einsum(spec, _rows(grid, term.rows, axis_d), matrix)


class _Kinds(NamedTuple):
    """Masks [rows, p] of stored pairs with p' >= p, and of those with p' < p."""

    ahead: np.ndarray
    behind: np.ndarray


def _kinds(offsets: Offsets, size: int, rows: np.ndarray | None = None) -> _Kinds:
    (partner,) = offsets.partners((size,))
    partner = partner if rows is None else partner[rows]
    p = np.arange(size)
    return _Kinds(partner >= p, (partner >= 0) & (partner < p))


def _window_sum(
    grid: Array, window: Window, source: _Kinds, target: _Kinds, axes: tuple[int, int]
) -> Array:
    """Returns sums over a plain window along one axis.

    A folded row holds pairs with p' >= p and pairs with p' < p; a window must not run from one kind
    into the other, so the two are summed separately. `reduce_window` along one axis at a time is
    vectorised, and XLA does not fuse it into its neighbours or compute it twice.
    """
    axis_d, axis_p = axes

    def along(value: int) -> list[int]:
        return [value if axis == axis_p else 1 for axis in range(grid.ndim)]

    def masked(value: Array, mask: np.ndarray) -> Array:
        shape = [1] * grid.ndim
        shape[axis_d], shape[axis_p] = mask.shape
        return jnp.where(mask.reshape(shape), value, 0)

    def total(value: Array) -> Array:
        padding = [window.padding if axis == axis_p else (0, 0) for axis in range(grid.ndim)]
        return jax.lax.reduce_window(
            value,
            np.zeros((), value.dtype)[()],
            jax.lax.add,
            along(window.size),
            along(window.stride),
            padding,
            window_dilation=along(window.dilation),
        )

    if not (source.ahead.any(1) & source.behind.any(1)).any():
        return masked(total(grid), target.ahead | target.behind)
    ahead = masked(total(masked(grid, source.ahead)), target.ahead)
    return ahead + masked(total(masked(grid, source.behind)), target.behind)


def to_pairs(value: Array, offsets: Offsets, spatial: Shape, axes: tuple[int, ...]) -> Array:
    """Returns all pairs of positions along some axes as a matrix.

    Args:
      value: array [..., d, p].
      offsets: stored offsets; pairs not stored are zero.
      spatial: sizes of the spatial axes.
      axes: spatial axes to open, in ascending order.

    Returns:
      Array [..., d, p, P, P'], with d and p over the remaining axes, P and P' over the opened ones.
    """
    lead, ndim = value.shape[:-2], len(spatial)
    start = len(lead)
    size = math.prod(spatial[i] for i in axes)
    if not offsets.wanted:
        return jnp.zeros((*lead, 0, math.prod(spatial) // max(size, 1), size, size), value.dtype)
    grid = _grid(value, offsets, spatial)
    tables = offsets.places(spatial)
    for i in axes:
        grid = _take_pairs(grid, tables[i], start + i, start + ndim + i)
    rest = tuple(i for i in range(ndim) if i not in axes)
    order = [start + k + i for group in (rest, axes) for k in (0, ndim) for i in group]
    count = math.prod(spatial[i] for i in rest)
    rows = math.prod(offsets.counts[i] for i in rest)
    return grid.transpose(*range(start), *order).reshape(*lead, rows, count, size, size)


def from_pairs(matrix: Array, offsets: Offsets, spatial: Shape, axes: tuple[int, ...]) -> Array:
    """Returns an array [..., d, p] from the result of `to_pairs` for the same arguments."""
    lead, ndim = matrix.shape[:-4], len(spatial)
    start = len(lead)
    if not offsets.wanted:
        return jnp.zeros((*lead, 0, math.prod(spatial)), matrix.dtype)
    rest = tuple(i for i in range(ndim) if i not in axes)
    opened = [spatial[i] for i in axes]
    grid = matrix.reshape(
        *lead,
        *(offsets.counts[i] for i in rest),
        *(spatial[i] for i in rest),
        *opened,
        *opened,
    )
    place = {}
    for k in (0, 1):
        for j, i in enumerate(rest):
            place[k, i] = start + k * len(rest) + j
        for j, i in enumerate(axes):
            place[k, i] = start + 2 * len(rest) + k * len(axes) + j
    order = [place[k, i] for k in (0, 1) for i in range(ndim)]
    grid = grid.transpose(*range(start), *order)
    for i in axes:
        (partner,) = axis_of(offsets, i).partners((spatial[i],))
        table = np.where(partner >= 0, np.arange(spatial[i]) * spatial[i] + partner, -1)
        grid = _take_pairs(grid, table, start + i, start + ndim + i)
    return grid.reshape(*lead, offsets.count, math.prod(spatial))


def _grid(value: Array, offsets: Offsets, spatial: Shape) -> Array:
    """Returns [..., d, p] with one axis per spatial axis: [..., d_1, ..., d_S, p_1, ..., p_S]."""
    return value.reshape(*value.shape[:-2], *offsets.counts, *spatial)
