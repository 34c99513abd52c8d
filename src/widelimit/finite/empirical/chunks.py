"""Tangent kernels within a memory budget, from Jacobians computed in chunks."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from widelimit._pytree import AnyArray, is_concrete
from widelimit.finite.empirical.auto import multiply_adds
from widelimit.finite.empirical.budget import Chunks, Schedule, choose_chunks
from widelimit.finite.empirical.jacobian_rows import (
    JacobianRows,
    SlotRows,
    traced_call,
    work_of_call,
)
from widelimit.finite.empirical.kernel_axes import KernelAxes, kernel_dtype, kernel_of_arrays
from widelimit.finite.empirical.loops import ForLoop, compiled_loop, python_loop
from widelimit.finite.empirical.outputs import Call, Output
from widelimit.tracing.varying import varying_like
from widelimit.typing import Integer

_PAIRS = KernelAxes()

_Carry: TypeAlias = tuple[Array, list[Array], list[Array]]
_Place: TypeAlias = tuple[Integer, Integer, Integer]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _fill(
    rows: JacobianRows,
    group: tuple[int, ...],
    buffers: list[Array],
    at: Integer,
    params: list[AnyArray],
    arrays: PyTree,
    samples: Array,
    entries: Array,
) -> list[Array]:
    """Returns buffers [rows, *leaf] with computed rows from place `at` on."""
    leaves = rows.compute(group, Call(rows.network, params, arrays), samples, entries)
    return [
        lax.dynamic_update_slice_in_dim(buffer, leaf.astype(buffer.dtype), at, 0)
        for buffer, leaf in zip(buffers, leaves, strict=True)
    ]


def _add_tile(
    kernel: Array, first: list[Array], second: list[Array], at: Integer, place: _Place, size: int
) -> Array:
    """Returns the kernels [slots, rows, columns] with products of rows added, leaf by leaf.

    Args:
      kernel: the sums so far.
      first: rows [rows, *leaf].
      second: rows of which `size` are taken.
      at: the first of these rows.
      place: slot, row and column of the products in the kernel.
      size: number of rows of `second`.
    """
    for a, b in zip(first, second, strict=True):
        kernel = _add_product(kernel, a, b, at, place, size)
    return kernel


@functools.partial(jax.jit, static_argnums=5, donate_argnums=0)
def _add_product(kernel: Array, a: Array, b: Array, at: Integer, place: _Place, size: int) -> Array:
    """Returns the kernels with products of rows of one leaf added; see `_add_tile`."""
    if size < len(b):
        b = lax.dynamic_slice_in_dim(b, at, size, 0)
    # One leaf after the other, also inside a larger program.
    kernel, b = lax.optimization_barrier((kernel, b))
    tile = kernel_of_arrays(a.reshape(len(a), -1), b.reshape(size, -1), _PAIRS, 1)
    old = lax.dynamic_slice(kernel, place, (1, *tile.shape))
    return lax.dynamic_update_slice(kernel, old + tile[None].astype(kernel.dtype), place)


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """The work of one kernel in chunks of Jacobians.

    Attributes:
      output: the output.
      resident: rows that are held.
      streamed: rows that stream past them; None for the same rows.
      swapped: whether the resident rows are those of x2.
      chunks: the chunks.
    """

    output: Output
    resident: SlotRows
    streamed: SlotRows | None
    swapped: bool
    chunks: Chunks

    @classmethod
    def of(cls, first: Call, second: Call | None, output: Output, memory: int) -> Work:
        """Returns the work of an output with entries.

        Raises:
          ValueError: not even two rows of the Jacobian fit.
        """
        parts = (2,) if jnp.issubdtype(output.dtype, jnp.complexfloating) else ()
        one = SlotRows.of(first, output, output.shapes[0] + parts)
        other = None if second is None else SlotRows.of(second, output, output.shapes[1] + parts)
        real = jax.eval_shape(first.network.parameters.real, first.params)
        bytes_ = [leaf.size * leaf.dtype.itemsize for leaf in real]
        counts = one.count, None if other is None else other.count
        chunks = choose_chunks(
            counts, bytes_, len(one.samples), memory, lambda g: work_of_call(one, output, g, memory)
        )
        swapped = other is not None and other.count < one.count
        resident, streamed = (other, one) if other is not None and swapped else (one, other)
        return cls(output, resident, streamed, swapped, chunks)

    @property
    def cost(self) -> float:
        """The cost in multiply-adds."""
        chunks, other = self.chunks, self.streamed or self.resident
        real = jax.eval_shape(self.resident.call.network.parameters.real, self.resident.call.params)
        schedule = Schedule.of(chunks, other.count, self.streamed is None)
        resident = chunks.blocks * chunks.resident
        streamed = int(schedule.counts.sum()) * chunks.streamed
        pairs = chunks.resident * (streamed + resident * (self.streamed is None))
        cost = float(pairs * sum(leaf.size for leaf in real))
        for group in chunks.groups:
            call = traced_call(self.resident, self.output, group, chunks.called)
            cost += (resident + streamed) * multiply_adds(call) / chunks.called
        return cost * len(self.resident.samples)

    def run(self) -> Array:
        """Returns the kernel in the layout of kernels.

        On concrete arrays chunks are calls of compiled functions, on traced ones loops.
        """
        chunks, same = self.chunks, self.streamed is None
        other = self.resident if self.streamed is None else self.streamed
        schedule = Schedule.of(chunks, other.count, same)
        height = chunks.blocks * chunks.resident
        width = height if same else -(-other.count // chunks.streamed) * chunks.streamed
        sizes = [self.output.shapes[0][a] for a in self.output.axes.diagonal]
        real = self.resident.call.network.parameters.real(self.resident.call.params)
        dtype = kernel_dtype(*(leaf.dtype for leaf in real))
        arrays = real, self.resident.call.arrays, other.call.arrays
        kernel = varying_like(jnp.zeros((math.prod(sizes), height, width), dtype), arrays)
        eager = is_concrete(self.resident.call.params, self.resident.call.arrays, other.call.arrays)
        loop = python_loop if eager else compiled_loop
        ids = self.resident.padded(height), other.padded(width)
        for group in chunks.groups:
            leaves = [real[i] for i in group]
            if not sum(leaf.size for leaf in leaves):
                continue
            if not eager:  # one group after the other
                kernel, leaves = lax.optimization_barrier((kernel, leaves))
            kernel = self._add_group(group, leaves, kernel, schedule, ids, loop)
        if schedule.known is not None:
            step = np.ones((chunks.resident,) * 2, bool)
            computed = np.kron(schedule.known, step)[None]
            kernel = jnp.where(computed, kernel, kernel.swapaxes(1, 2))
        kernel = kernel[:, : self.resident.count, : other.count]
        if self.swapped:
            kernel = kernel.swapaxes(1, 2)
        first, second = (other, self.resident) if self.swapped else (self.resident, other)
        kernel = kernel.reshape(*sizes, *first.kept, *second.kept)
        rank = len(self.output.axes.trace) + len(sizes) + len(first.kept)
        return kernel.transpose(self.output.axes.zipped_order(rank))

    def _add_group(
        self,
        group: tuple[int, ...],
        leaves: list[Array],
        kernel: Array,
        schedule: Schedule,
        ids: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
        loop: ForLoop,
    ) -> Array:
        """Returns the kernels with those of a group of parameters added."""
        chunks, other = self.chunks, self.streamed or self.resident
        size = chunks.streamed
        streams = bool(schedule.counts.any())
        held = [jnp.zeros((chunks.resident, *v.shape), v.dtype) for v in leaves]
        passing = [jnp.zeros((size, *v.shape), v.dtype) for v in leaves if streams]
        held, passing = varying_like((held, passing), kernel)
        count = max(math.prod(self.output.shapes[0][a] for a in self.output.axes.diagonal), 1)
        fill = functools.partial(_filled, self.output, chunks.called, group, loop=loop)

        def slot_step(slot: Integer, carry: _Carry) -> _Carry:
            def block_step(block: Integer, carry: _Carry) -> _Carry:
                kernel, held, passing = carry
                start = block * chunks.resident
                held = fill(self.resident, held, ids[0], slot, start)
                if self.streamed is None:
                    kernel = loop(
                        chunks.resident // size,
                        lambda i, kernel: _add_tile(
                            kernel,
                            held,
                            held,
                            i * size,
                            (slot % count, start, start + i * size),
                            size,
                        ),
                        kernel,
                    )

                def chunk_step(
                    chunk: Integer, carry: tuple[Array, list[Array]]
                ) -> tuple[Array, list[Array]]:
                    kernel, passing = carry
                    column = _pick(schedule.starts, (block, chunk))
                    passing = fill(other, passing, ids[1], slot, column)
                    place = slot % count, start, column
                    return _add_tile(kernel, held, passing, 0, place, size), passing

                if streams:
                    chunks_here = _pick(schedule.counts, (block,))
                    kernel, passing = loop(chunks_here, chunk_step, (kernel, passing))
                return kernel, held, passing

            return loop(chunks.blocks, block_step, carry)

        carry = (kernel, held, passing)
        return loop(len(self.resident.samples), slot_step, carry)[0]


def _filled(
    output: Output,
    called: int,
    group: tuple[int, ...],
    side: SlotRows,
    buffers: list[Array],
    ids: tuple[np.ndarray, np.ndarray],
    slot: Integer,
    start: Integer,
    loop: ForLoop,
) -> list[Array]:
    """Returns buffers filled with the rows of a slot from `start` on."""
    rows = side.rows(output, called)
    size = len(buffers[0])

    def step(i: Integer, buffers: list[Array]) -> list[Array]:
        at = i * called
        if loop is python_loop and start + at >= side.count:
            return buffers  # padding of the last chunk, which is cut off
        samples, entries = (_pick_rows(v, slot, start + at, called) for v in ids)
        arrays = side.call.params, side.call.arrays
        return _fill(rows, group, buffers, at, *arrays, samples, entries)

    return loop(size // called, step, buffers)


def _pick(table: np.ndarray, index: tuple[Integer, ...]) -> Integer:
    """Returns an entry of a table, as a Python integer if the index is one."""
    if all(isinstance(i, int) for i in index):
        return int(table[index])
    return jnp.asarray(table)[index]


def _pick_rows(table: np.ndarray, slot: Integer, start: Integer, count: int) -> Array | np.ndarray:
    """Returns consecutive entries of a row of a table."""
    if isinstance(slot, int) and isinstance(start, int):
        return table[slot, start : start + count]
    return lax.dynamic_slice(jnp.asarray(table), (slot, start), (1, count))[0]
