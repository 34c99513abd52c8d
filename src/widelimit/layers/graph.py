"""Message passing over the edges of graphs."""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from widelimit._pytree import is_concrete, pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.pair_matrices import position_maps
from widelimit.covariance.signal import Signal
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.options import option_name
from widelimit.layers.shapes import checked_axis
from widelimit.typing import (
    Arrays,
    Axes,
    Function,
    Needs,
    Params,
    Pattern,
    Shapes,
    Signals,
)


class AggregateImplementation(enum.Enum):
    """The representation of graphs: matrices of weights (DENSE) or lists of edges (SPARSE)."""

    DENSE = "DENSE"
    SPARSE = "SPARSE"


def _identity(pattern: Pattern) -> Pattern:
    return pattern


@pytree
class Aggregate(Layer):
    """Returns a sum over the edges of a graph: each position receives from its neighbours.

    With P[tail, head] the weight of the edge from tail to head, out[head] = sum_tail P[tail, head]
    x[tail], so K' = P1^T K P2 and T' = P1^T T P2, sample by sample. Graphs are passed at call time:
    `apply_fn(params, x, pattern=p)` and `kernel_fn(x1, x2, pattern=(p1, p2))`. Without a pattern
    the layer is the identity; for x2=None, p2 is p1 and may be None.

    A DENSE pattern is an array (batch, X_1..X_K, X_1..X_K) of weights, tail before head, over the
    sizes X_k of the K aggregated axes. A SPARSE one is an array of ints (batch, edges, K, 2), or
    (batch, edges, 2) where K = 1, of coordinates (tail, head); repeated edges add up, and an edge
    whose head has a negative coordinate is padding. Other edges with coordinates outside the graph
    are errors in `apply_fn` with concrete patterns, and are left out of traced patterns and of
    kernels.

    Source: arXiv:1905.13192.

    Args:
      aggregate_axis: axes of the input that positions of the graph run over, in the order of the
        pattern; None means all spatial axes.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.
      to_dense: returns the dense pattern from the user's own format; not used for SPARSE.
      implementation: an `AggregateImplementation` or its name.

    Raises:
      ValueError: an unknown implementation, axes that the input does not have, a pattern of
        another shape, or an edge to or from a position outside the graph.
      TypeError: edges that are not ints.
      NotImplementedError: a kernel with a pattern for only one of x1 and x2.
    """

    aggregate_axis: Axes | None = static(default=None)
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)
    to_dense: Function = static(default=_identity)
    implementation: str | AggregateImplementation = static(default="DENSE")

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        name = option_name(AggregateImplementation, "implementation", self.implementation)
        put("implementation", name)
        if self.aggregate_axis is not None:
            put("aggregate_axis", tuple(int(axis) for axis in np.ravel(self.aggregate_axis)))

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Shapes) -> Shapes:
        self._axes(self._signal(shape))
        return shape

    def _signal(self, shape: Shapes) -> Signal:
        ends = checked_axis(self.batch_axis, shape), checked_axis(self.channel_axis, shape)
        return Signal(shape, shape, *ends)

    def _axes(self, signal: Signal) -> tuple[int, ...]:
        """Returns the aggregated axes of the input, in the order of the pattern."""
        spatial, ndim = signal.spatial_axes, signal.ndim
        if self.aggregate_axis is None:
            return spatial
        listed: Iterable[int] = np.ravel(self.aggregate_axis).tolist()
        axes = tuple(a % ndim if -ndim <= a < ndim else a for a in listed)
        if len(set(axes)) < len(axes) or not set(axes) <= set(spatial):
            raise ValueError(
                f"expected aggregate_axis to name distinct spatial axes among {spatial} of an "
                f"input of shape {signal.shape1}, got {self.aggregate_axis}"
            )
        return axes

    # The finite layer.

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        pattern = context.pattern
        if pattern is None:
            return x
        signal = self._signal(x.shape)
        axes = sorted(self._axes(signal))
        rest = [a for a in range(x.ndim) if a not in (signal.batch_axis, *axes)]
        order = (signal.batch_axis, *axes, *rest)
        ordered = x.transpose(order)
        rows = ordered.reshape(len(ordered), math.prod(x.shape[a] for a in axes), -1)
        if self.implementation == "DENSE":
            out = jnp.matmul(self._dense(pattern, signal), rows)
        else:
            out = jax.vmap(_sum_over_edges)(rows, *self._edges(pattern, signal))
        return out.reshape(ordered.shape).transpose(np.argsort(order))

    # The infinite layer.

    def needs(self, need: Needs, signal: Signals) -> Needs:
        touched = self._spatial(signal)
        return need.map(lambda offsets: offsets.widen(touched, signal.spatial))

    def _spatial(self, signal: Signal) -> tuple[int, ...]:
        """Returns the places of the aggregated axes among the spatial ones, in order."""
        return tuple(sorted(signal.spatial_axes.index(axis) for axis in self._axes(signal)))

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        first, second = site.patterns
        if first is None and second is None:
            return cov
        if first is None or (second is None and not cov.symmetric):
            missing = "x1" if first is None else "x2"
            raise NotImplementedError(
                f"expected patterns for both x1 and x2, or for neither, got none for {missing}: "
                "pass the identity as its pattern"
            )
        one = self._matrix(first, site.signal_in, site.signal_in.shape1)
        two = one if cov.symmetric else self._matrix(second, site.signal_in, site.signal_in.shape2)
        maps = one.astype(cov.nngp.dtype), two.astype(cov.nngp.dtype)
        return position_maps(
            cov, maps, self._spatial(site.signal_in), site.signal_out, site.need_out
        )

    def _matrix(self, pattern: Pattern, signal: Signal, shape: tuple[int, ...]) -> Array:
        """Returns the pattern of one side as a linear map of positions, [n, head, tail]."""
        side = Signal(shape, shape, signal.batch_axis, signal.channel_axis)
        if self.implementation == "DENSE":
            return self._dense(pattern, side)
        tail, head = self._edges(pattern, side)
        size = math.prod(shape[axis] for axis in self._axes(side))
        sample = jnp.arange(len(head))[:, None]
        return jnp.zeros((len(head), size, size)).at[sample, head, tail].add(1, mode="drop")

    # Patterns.

    def _sizes(self, signal: Signal) -> tuple[int, ...]:
        """Returns the sizes of the graph, in the order of the pattern."""
        return tuple(signal.shape1[axis] for axis in self._axes(signal))

    def _dense(self, pattern: Pattern, signal: Signal) -> Array:
        """Returns a dense pattern as maps of positions [n, head, tail], axes in ascending order."""
        pattern = jnp.asarray(self.to_dense(pattern))
        sizes = self._sizes(signal)
        expected = (signal.n1, *sizes, *sizes)
        if pattern.shape != expected:
            raise ValueError(
                f"expected a dense pattern of shape {expected} (batch, tail, head) for an input of "
                f"shape {signal.shape1}, got {pattern.shape}"
            )
        rank = np.argsort(self._axes(signal))
        ordered = pattern.transpose(0, *(1 + len(sizes) + rank), *(1 + rank))
        return ordered.reshape(signal.n1, math.prod(sizes), math.prod(sizes))

    def _edges(self, pattern: Pattern, signal: Signal) -> tuple[Array, Array]:
        """Returns flat tails and heads [n, edges]; omitted edges have indices past the end."""
        sizes = np.array(self._sizes(signal), np.int32)
        shape, count = jnp.shape(pattern), len(sizes)
        fits = len(shape) == 4 and shape[2:] == (count, 2)
        fits = fits or (count == 1 and len(shape) == 3 and shape[2] == 2)
        if not fits or shape[0] != signal.n1:
            also = f" or ({signal.n1}, edges, 2)" if count == 1 else ""
            raise ValueError(
                f"expected a sparse pattern of shape ({signal.n1}, edges, {count}, 2){also} for an "
                f"input of shape {signal.shape1}, got {shape}"
            )
        pattern = jnp.asarray(pattern)
        if not jnp.issubdtype(pattern.dtype, jnp.integer):
            raise TypeError(f"expected edges as ints in a sparse pattern, got {pattern.dtype}")
        ends = pattern.astype(np.int32).reshape(*shape[:2], count, 2)
        padding = (ends[..., 1] < 0).any(-1)
        limits = sizes.reshape(1, 1, count, 1)
        inside = ((ends >= 0) & (ends < limits)).all((-1, -2))
        if is_concrete(pattern):
            _check_edges(np.asarray(ends), np.asarray(inside | padding), tuple(sizes.tolist()))
        rank = np.argsort(self._axes(signal))
        steps = [math.prod(sizes[rank][k + 1 :].tolist()) for k in range(count)]
        strides = np.array(steps, ends.dtype).reshape(1, 1, count, 1)
        flat = (ends[:, :, rank] * strides).sum(2)
        flat = jnp.where(inside[..., None], flat, math.prod(sizes.tolist()))
        return flat[..., 0], flat[..., 1]


def _sum_over_edges(rows: Array, tail: Array, head: Array) -> Array:
    """Returns activations [p, c] summed over the edges of one graph."""
    sent = rows.at[tail].get(mode="fill", fill_value=0)
    return jnp.zeros_like(rows).at[head].add(sent, mode="drop")


def _check_edges(ends: np.ndarray, fine: np.ndarray, sizes: tuple[int, ...]) -> None:
    """Raises if an edge other than padding has an end outside the graph."""
    if fine.all():
        return
    sample, edge = np.argwhere(~fine)[0]
    tail, head = ends[sample, edge, :, 0].tolist(), ends[sample, edge, :, 1].tolist()
    raise ValueError(
        f"expected edges between positions of a graph of sizes {sizes}, or padding with a negative "
        f"head, got edge {edge} of sample {sample} from {tail} to {head}"
    )
