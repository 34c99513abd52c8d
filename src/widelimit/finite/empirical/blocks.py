"""Tangent kernels within a memory budget, from factors of Jacobians of blocks of samples.

The values and cotangents of a block of samples are computed once and held, which takes much less
memory than its Jacobian; their products for two blocks are the kernel between them, parameter by
parameter.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from widelimit._pytree import is_concrete
from widelimit.finite.empirical.block_plan import Blocks, choose_blocks
from widelimit.finite.empirical.kernel_axes import kernel_dtype
from widelimit.finite.empirical.loops import ForLoop, compiled_loop, python_loop
from widelimit.finite.empirical.outputs import Call, Output
from widelimit.finite.empirical.slot_factors import AXES, NetworkArguments, SlotFactors, slot_counts
from widelimit.finite.empirical.structured.derivatives import Values
from widelimit.finite.empirical.structured.halves import mirrored
from widelimit.finite.empirical.structured.pairs import kept_labels
from widelimit.tracing.varying import varying_axes
from widelimit.typing import Integer

_Slot: TypeAlias = tuple[Integer, Integer]
_Carry: TypeAlias = tuple[Array, Values, Values | None]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _fill(
    factors: SlotFactors,
    held: Values,
    at: Integer,
    arguments: NetworkArguments,
    samples: Array,
    slot: _Slot,
) -> Values:
    """Returns the values of a block with those of some samples written from place `at` on."""
    computed = factors.values(arguments.picked(samples), slot)

    def put(old: Array, new: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(old, new, at, 0)

    cotangents, varying = jax.tree.map(put, held[:2], computed[:2])
    return Values(cotangents, varying, computed.fixed)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _add(
    factors: SlotFactors,
    leaf: int,
    kernel: Array,
    first: Values,
    second: Values | None,
    place: tuple[Integer, ...],
    mirror: tuple[Integer, ...] | None,
) -> Array:
    """Returns the kernel with the part of one parameter added, in its place and mirrored."""
    # One parameter after the other, also inside a larger program.
    kernel, first, second = lax.optimization_barrier((kernel, first, second))
    tile = factors.kernel(leaf, first, second)
    if tile is None:
        return kernel
    kernel = _added(kernel, tile, place)
    if mirror is None:
        return kernel
    return _added(kernel, mirrored(tile, kept_labels(AXES, factors.factors.rank)), mirror)


def _added(kernel: Array, tile: Array, place: tuple[Integer, ...]) -> Array:
    old = lax.dynamic_slice(kernel, place, tile.shape)
    return lax.dynamic_update_slice(kernel, old + tile.astype(kernel.dtype), place)


@dataclasses.dataclass(frozen=True, eq=False)
class BlockWork:
    """The work of one kernel in blocks.

    Attributes:
      output: the output.
      held: samples whose blocks are held.
      passing: samples whose blocks pass them; None for the same samples.
      swapped: whether the held samples are x2.
      factors: the factors to compute and multiply.
      chunks: the blocks.
      cost: multiply-adds.
    """

    output: Output
    held: NetworkArguments
    passing: NetworkArguments | None
    swapped: bool
    factors: SlotFactors
    chunks: Blocks
    cost: float

    @classmethod
    def of(cls, first: Call, second: Call | None, output: Output, memory: int) -> BlockWork:
        """Returns the work with the largest blocks that fit.

        Raises:
          ValueError: samples are not mapped, or on a trace or diagonal axis, or x1 and x2 have
            different shapes; or not even two samples fit.
        """
        problem = _problem(first, second, output)
        if problem:
            raise ValueError(f"expected {problem}, for structured derivatives within memory")
        one = NetworkArguments.of(first)
        two = None if second is None else NetworkArguments.of(second)
        if two is not None and one.types() != two.types():
            raise ValueError(
                "expected x1 and x2 whose samples have the same shapes, for structured "
                "derivatives within memory"
            )
        swapped = two is not None and two.size < one.size
        held, passing = (two, one) if two is not None and swapped else (one, two)
        plan = choose_blocks(first.network, output, held, passing, memory)
        return cls(output, held, passing, swapped, *plan)

    def run(self) -> Array:
        """Returns the kernel in the layout of kernels."""
        blocks, factors = self.chunks, self.factors
        eager = is_concrete(*self.held, *self._side(1))
        loop: ForLoop = python_loop if eager else compiled_loop
        whole = slot_counts(self.output)
        rounds = whole[0] // blocks.traces, whole[1] // blocks.diagonals
        sizes = blocks.samples[0] * blocks.blocks, blocks.samples[1] * blocks.passing
        real = jax.eval_shape(factors.network.parameters.real, self.held.params)
        dtype = kernel_dtype(factors.dtype, *(leaf.dtype for leaf in real))
        kernel = jnp.zeros(factors.kernel_shape(whole[1], sizes), dtype)
        axis = 1 + 2 * (factors.axis - 2)
        alone = self.passing is None and blocks.blocks == 1

        def place(slot: _Slot, i: Integer, j: Integer) -> tuple[Integer, ...]:
            starts: list[Integer] = [slot[1], *(0,) * (kernel.ndim - 1)]
            starts[axis : axis + 2] = i * blocks.samples[0], j * blocks.samples[1]
            return tuple(map(jnp.int32, starts))

        def slot_step(index: Integer, carry: _Carry) -> _Carry:
            slot = index // rounds[1] * blocks.traces, index % rounds[1] * blocks.diagonals

            def row_step(i: Integer, carry: _Carry) -> _Carry:
                kernel, first, second = carry
                first = self._filled(first, 0, i, slot, loop)
                if self.passing is None:
                    kernel = self._add_tile(kernel, first, None, place(slot, i, i), None)
                if second is None:
                    return kernel, first, second

                def column_step(j: Integer, carry: tuple[Array, Values]) -> tuple[Array, Values]:
                    kernel, second = carry
                    second = self._filled(second, 1, j, slot, loop)
                    mirror = place(slot, j, i) if self.passing is None else None
                    tile = self._add_tile(kernel, first, second, place(slot, i, j), mirror)
                    return tile, second

                columns = i if self.passing is None else blocks.passing
                kernel, second = loop(columns, column_step, (kernel, second))
                return kernel, first, second

            return loop(blocks.blocks, row_step, carry)

        carry = kernel, self._zeros(0), None if alone else self._zeros(1)
        return self._finished(loop(math.prod(rounds), slot_step, carry)[0])

    def _side(self, side: int) -> NetworkArguments:
        return self.passing or self.held if side else self.held

    def _zeros(self, side: int) -> Values:
        """Returns zeros for the values of a block of one side."""
        types = self.factors.values_types(self._side(side), self.chunks.samples[side])
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), types)

    def _filled(
        self, values: Values, side: int, index: Integer, slot: _Slot, loop: ForLoop
    ) -> Values:
        """Returns the values of a block of one side, written over others."""
        arguments = self._side(side)
        size, step = self.chunks.samples[side], self.chunks.called[side]
        start, last = index * size, arguments.size - 1

        def fill(i: Integer, values: Values) -> Values:
            at = jnp.minimum(i * step, size - step)
            samples = jnp.minimum(start + at + jnp.arange(step), last)
            return _fill(self.factors, values, at, arguments, samples, slot)

        return loop(-(-size // step), fill, values)

    def _add_tile(
        self,
        kernel: Array,
        first: Values,
        second: Values | None,
        place: tuple[Integer, ...],
        mirror: tuple[Integer, ...] | None,
    ) -> Array:
        """Returns the kernel with the tile of two blocks, or of one with itself, added."""
        for leaf in self.factors.factors.uses:
            kernel = _add(self.factors, leaf, kernel, first, second, place, mirror)
        return kernel

    def _finished(self, kernel: Array) -> Array:
        """Returns a kernel [diagonal, *pairs of kept] without padding, in the public layout."""
        axis = 1 + 2 * (self.factors.axis - 2)
        counts = self.held.size, self._side(1).size
        for a, n in zip((axis, axis + 1), counts, strict=True):
            kernel = lax.slice_in_dim(kernel, 0, n, axis=a)
        if self.swapped:
            kernel = mirrored(kernel, kept_labels(AXES, self.factors.factors.rank))
        axes, shape = self.output.axes, self.output.shapes[0]
        kernel = kernel.reshape(*(shape[a] for a in axes.diagonal), *kernel.shape[1:])
        rest = iter(range(len(axes.diagonal), kernel.ndim))
        order: list[int] = []
        for a in range(len(axes.trace) + len(axes.diagonal) + self.factors.factors.rank - 2):
            if a in axes.diagonal:
                order.append(axes.diagonal.index(a))
            elif a not in axes.trace:
                order += [next(rest), next(rest)]
        return kernel.transpose(order)


def _problem(first: Call, second: Call | None, output: Output) -> str | None:
    """Returns the requirement that the call does not meet, or None."""
    if output.axis is None:
        return "vmap_axes"
    if output.axis in (*output.axes.trace, *output.axes.diagonal):
        return "samples on an axis that is neither a trace nor a diagonal axis"
    if second is not None and second.network != first.network:
        return "x1 and x2 that f treats in the same way"
    if varying_axes((first.params, first.arrays, second and second.arrays)):
        return "arrays outside `jax.shard_map`"
    return None
