"""Kernels of functions that treat samples independently, from one sample at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from widelimit.finite.empirical.implementations import Implementation
from widelimit.finite.empirical.jacobian import (
    OutputFunction,
    jacobian,
    jacobian_contraction,
    kernel_of_jacobians,
)
from widelimit.finite.empirical.kernel_axes import KernelAxes
from widelimit.finite.empirical.structured import Batch, Structured
from widelimit.tracing.varying import varying_like


@dataclasses.dataclass(frozen=True, eq=False)
class SampledOutput:
    """One output of a network, sample by sample.

    Attributes:
      function: maps the arrays of one sample to its output as a function of the parameters; the
        axis of samples of that output has size 1.
      arrays: the arrays of all samples, samples first.
      axis: the axis of samples of the output.
    """

    function: Callable[[list[Array]], OutputFunction]
    arrays: list[Array]
    axis: int

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.arrays[0].shape[0]

    def shape(self, params: PyTree) -> tuple[int, ...]:
        """Returns the shape of the output of all samples."""
        one = list(self.one(params).shape)
        one[self.axis] = self.count
        return tuple(one)

    def one(self, params: PyTree) -> jax.ShapeDtypeStruct:
        """Returns shape and dtype of the output of one sample."""
        structs = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in self.arrays]

        def of_sample(arrays: list[Array], params: PyTree) -> Array:
            return self.function(varying_like(arrays, self.arrays))(params)

        return jax.eval_shape(of_sample, structs, params)

    def jacobian(self, params: PyTree) -> PyTree:
        """Returns the Jacobian of the output of all samples."""
        rows = jax.vmap(lambda arrays: jacobian(self.function(arrays), params))(self.arrays)
        return jax.tree.map(self._merged, rows)

    def _merged(self, row: Array) -> Array:
        """Returns an array [n, ..., 1, ...] with samples moved to their axis of the output."""
        return jnp.moveaxis(row, 0, self.axis).squeeze(self.axis + 1)


def kernel_of_samples(
    implementation: Implementation,
    first: SampledOutput,
    second: SampledOutput | None,
    params: PyTree,
    axes: KernelAxes,
) -> Array:
    """Returns the kernel of two outputs, summed over trace axes.

    Args:
      implementation: computes the kernel of two single samples; for Jacobians and structured
        derivatives, the work per sample is done once.
      first: the first output.
      second: the second; None for the first.
      params: tree of real arrays.
      axes: trace and diagonal axes of the output.
    """
    other = first if second is None else second
    if implementation is jacobian_contraction:
        j1 = first.jacobian(params)
        j2 = j1 if second is None else second.jacobian(params)
        return kernel_of_jacobians(j1, j2, axes, (first.shape(params), other.shape(params)))

    if isinstance(implementation, Structured):
        two = None if second is None else Batch(second.arrays, second.axis)
        batches = Batch(first.arrays, first.axis), two
        return implementation.of_samples(first.function, other.function, batches, params, axes)

    def of_pair(arrays1: list[Array], arrays2: list[Array]) -> Array:
        return implementation(first.function(arrays1), other.function(arrays2), params, axes)

    rank, axis = len(first.one(params).shape), first.axis
    if axis in axes.trace:
        return jax.vmap(of_pair)(first.arrays, other.arrays).sum(0)
    # The number of axes of the kernel in front of that of samples.
    before = sum(1 + (a in axes.kept(rank)) for a in range(axis) if a not in axes.trace)
    if axis in axes.diagonal:
        pairs = jax.vmap(of_pair)(first.arrays, other.arrays)
        return jnp.moveaxis(pairs, 0, before).squeeze(before + 1)
    pairs = jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(first.arrays, other.arrays)
    return jnp.moveaxis(pairs, (0, 1), (before, before + 1)).squeeze((before + 2, before + 3))
