"""Branches: made by FanOut, joined by FanInSum, FanInProd and FanInConcat."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance.branches import (
    check_gaussian,
    check_uncorrelated,
    independent_sum,
    weighted_sum,
    with_tangents_of_all,
)
from widelimit.covariance.covariances import Covariances, at_offsets
from widelimit.covariance.linear_maps import concatenate_positions, concatenate_samples
from widelimit.covariance.offsets import Offsets
from widelimit.covariance.signal import Signal
from widelimit.kernel.masking import all_masked
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import same_need
from widelimit.layers.step import select_each
from widelimit.typing import (
    Arrays,
    Covs,
    Masks,
    Moduli,
    Needs,
    Params,
    Shapes,
    Signals,
)


@pytree
class FanOut(Layer):
    """Returns a layer that hands its input to several branches.

    Args:
      num: number of branches.

    Raises:
      ValueError: `num` is less than 1.

    Example:
      >>> from widelimit import stax
      >>> stax.FanOut(2).output_shape((8, 3))
      ((8, 3), (8, 3))
    """

    structural = True

    num: int = static()

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"expected at least 1 branch, got num={self.num}")

    def output_shape(self, shape: Shapes) -> Shapes:
        return (shape,) * self.num

    def output_signal(self, signal: Signals) -> Signals:
        return (signal,) * self.num

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        return [x] * self.num

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        return (mask,) * self.num

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return functools.reduce(same_need, need)

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        return (moduli,) * self.num

    def propagate(self, cov: Covs, site: Site) -> Covs:
        return select_each([cov] * self.num, site.need_out)


class _FanIn(Layer):
    """Base class of joins of branches."""

    def output_shape(self, shape: Shapes) -> Shapes:
        _check_branches(shape)
        if len(set(shape)) > 1:
            raise ValueError(
                f"expected branches of equal shape, got {' and '.join(map(str, shape))}"
            )
        return shape[0]

    def output_signal(self, signal: Signals) -> Signals:
        _check_branches(signal)
        axes = {(s.batch_axis, s.channel_axis) for s in signal}
        if len(axes) > 1:
            raise ValueError(f"expected equal batch and channel axes in all branches, got {axes}")
        first = signal[0]
        shape1 = self.output_shape(tuple(s.shape1 for s in signal))
        shape2 = self.output_shape(tuple(s.shape2 for s in signal))
        return Signal(shape1, shape2, first.batch_axis, first.channel_axis)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        return all_masked(mask or ())

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return (need,) * len(signal)

    def propagate(self, cov: Covs, site: Site) -> Covariances:
        return cov[0] if len(cov) == 1 else self._join(cov, site)

    def _join(self, cov: Sequence[Covariances], site: Site) -> Covariances:
        """Returns the covariances of the output of several branches."""
        raise NotImplementedError


@pytree
class FanInSum(_FanIn):
    """Returns a layer that sums its branches.

    K = sum_i K_i and T = sum_i T_i, for independent zero-mean Gaussian branches.

    Raises:
      ValueError: branches of different shapes, or no branches.
      NotImplementedError: a branch is not Gaussian, or two branches are correlated: their kernels
        do not add.

    Example:
      A residual block:

      >>> from widelimit import stax
      >>> block = stax.serial(
      ...     stax.FanOut(2),
      ...     stax.parallel(stax.Identity(), stax.serial(stax.Relu(), stax.Dense(64))),
      ...     stax.FanInSum(),
      ... )
      >>> stax.serial(stax.Dense(64), block, stax.Dense(1)).output_shape((8, 3))
      (8, 1)
    """

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        return functools.reduce(operator.add, x)

    def _join(self, cov: Sequence[Covariances], site: Site) -> Covariances:
        return independent_sum(cov, [None] * len(cov), site.signal_out, site.need_out)


@pytree
class FanInProd(_FanIn):
    """Returns a layer that multiplies its branches elementwise.

    K = prod_i K_i and T = sum_i T_i prod_{j != i} K_j, for independent branches.

    Raises:
      ValueError: branches of different shapes, or no branches.
      NotImplementedError: two branches are correlated.
    """

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        return functools.reduce(operator.mul, x)

    def _join(self, cov: Sequence[Covariances], site: Site) -> Covariances:
        cov = with_tangents_of_all(cov)
        cov = [at_offsets(branch, site.need_out) for branch in cov]
        check_uncorrelated(cov, "product")

        def product(parts: Sequence[Array]) -> Array:
            return functools.reduce(operator.mul, parts)

        nngps = [c.nngp for c in cov]
        terms = [
            product([*nngps[:i], c.ntk, *nngps[i + 1 :]])
            for i, c in enumerate(cov)
            if c.ntk is not None
        ]
        return cov[0].replace(
            nngp=product(nngps),
            ntk=functools.reduce(operator.add, terms) if terms else None,
            gap=None,
            cov1=product([c.cov1 for c in cov]),
            cov2=None if cov[0].symmetric else product([c.cov2 for c in cov if c.cov2 is not None]),
            signal=site.signal_out,
            gaussian=False,
            origins=frozenset().union(*(c.origins for c in cov)),
        )


@pytree
class FanInConcat(_FanIn):
    """Returns a layer that concatenates its branches.

    Along channels the kernels average, weighted by the branches' numbers of channels; branches
    may be correlated there. Along batch or space each branch keeps its own kernels, and pairs of
    entries of two branches have none: independent zero-mean branches have covariance zero, and
    their tangents share no weights that matter.

    Args:
      axis: axis to concatenate along.

    Raises:
      ValueError: branches disagree in an axis other than `axis`.
      NotImplementedError: at kernel time, along batch or space, a branch that is not Gaussian, or
        two that are correlated.
    """

    axis: int = static(default=-1)

    def output_shape(self, shape: Shapes) -> Shapes:
        _check_branches(shape)
        axis = self._axis(len(shape[0]))
        rest = {(*s[:axis], None, *s[axis + 1 :]) for s in shape}
        if len(rest) > 1:
            listed = " and ".join(map(str, shape))
            raise ValueError(f"expected branches that agree but for axis {axis}, got {listed}")
        sizes = [s[axis] for s in shape]
        total = -1 if min(sizes) < 0 else sum(sizes)
        return (*shape[0][:axis], total, *shape[0][axis + 1 :])

    def _axis(self, ndim: int) -> int:
        if not -ndim <= self.axis < ndim:
            raise ValueError(f"expected an axis of branches with {ndim} axes, got {self.axis}")
        return self.axis % ndim

    def _space(self, signal: Signal) -> int | None:
        """Returns the index of the spatial axis that grows, or None."""
        axis = self._axis(signal.ndim)
        return signal.spatial_axes.index(axis) if axis in signal.spatial_axes else None

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        return jnp.concatenate(list(x), axis=self.axis)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        if mask is None or all(m is None for m in mask):
            return None
        present = [m.shape for m in mask if m is not None]
        axis = self._axis(len(shape[0]))
        # Axes along which all masks are constant keep size 1: later layers check this for channels.
        single = [i != axis and all(m[i] == 1 for m in present) for i in range(len(shape[0]))]
        full = []
        for m, s in zip(mask, shape, strict=True):
            sizes = tuple(1 if one else size for one, size in zip(single, s, strict=True))
            full.append(jnp.zeros(sizes, bool) if m is None else jnp.broadcast_to(m, sizes))
        return jnp.concatenate(full, axis=axis)

    def needs(self, need: Needs, signal: Signals) -> Needs:
        if self._space(signal[0]) is None:
            return super().needs(need, signal)
        return tuple(need.map(functools.partial(Offsets.clip, shape=s.spatial)) for s in signal)

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        space = self._space(signal[0])
        return tuple(None if i == space else m for i, m in enumerate(moduli[0]))

    def mixes_samples(self, signal: Signals) -> bool:
        return len(signal) > 1 and self._axis(signal[0].ndim) == signal[0].batch_axis

    def _join(self, cov: Sequence[Covariances], site: Site) -> Covariances:
        cov = with_tangents_of_all(cov)
        signal, need = site.signal_out, site.need_out
        if self._axis(signal.ndim) == signal.channel_axis:
            cov = [at_offsets(branch, need) for branch in cov]
            widths = [s.channels for s in site.signal_in]
            shares = [w / sum(widths) for w in widths]
            return weighted_sum(cov, shares, site.signal_out, gaussian=False)
        check_gaussian(cov, "to concatenate along batch or space")
        check_uncorrelated(cov, "concatenation along batch or space")
        space = self._space(signal)
        if space is None:
            return concatenate_samples(list(cov), signal, need)
        return concatenate_positions(list(cov), space, signal, need)


def _check_branches(tree: object) -> None:
    branched = isinstance(tree, tuple) and bool(tree) and not isinstance(tree[0], int)
    if not branched:
        got = "one array" if tree else "none"
        raise ValueError(f"expected a list or tuple of branches (as FanOut makes them), got {got}")
