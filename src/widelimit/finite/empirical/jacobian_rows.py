"""Rows of Jacobians: their indices, and calls that compute some of them."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from widelimit._pytree import AnyArray
from widelimit.finite.empirical.jacobian import unit_row
from widelimit.finite.empirical.network import Network, real_output
from widelimit.finite.empirical.outputs import Call, Output
from widelimit.gram.liveness import live_bytes
from widelimit.tracing.jaxprs import Equations, bytes_of

# One call computes as many rows as fit into this fraction of the budget.
_MOST_CALLED = 32
_CALLED_SHARE = 8


@dataclasses.dataclass(frozen=True)
class JacobianRows:
    """The static description of rows of the Jacobian of one output of a network.

    Attributes:
      network: the function.
      index: index of the leaf of f(params, x).
      mapped: whether samples are mapped, so that a row needs one sample only.
      called: number of rows that one call computes.
    """

    network: Network
    index: int
    mapped: bool
    called: int

    def compute(
        self, group: tuple[int, ...], call: Call, samples: Array, entries: Array
    ) -> list[Array]:
        """Returns rows [called, *leaf] of the leaves of a group.

        Args:
          group: indices of the parameters.
          call: the network with its arrays, samples first if they are mapped.
          samples: sample of every row.
          entries: entry of the raveled real output of every row.
        """
        real = self.network.parameters.real(call.params)

        def row(sample: Array, entry: Array) -> list[Array]:
            def f(chosen: list[Array]) -> Array:
                full = list(real)
                for i, leaf in zip(group, chosen, strict=True):
                    full[i] = leaf
                if not self.mapped:
                    return real_output(
                        self.network.whole(call.params, call.arrays, full)[self.index]
                    )
                mapped, shared = call.arrays
                one = [lax.dynamic_index_in_dim(a, sample, 0, keepdims=False) for a in mapped]
                return real_output(self.network.one(call.params, one, shared, full)[self.index])

            return unit_row(f, [real[i] for i in group], entry)

        if self.called == 1:  # a convolution of one sample is faster without `vmap`
            return [leaf[None] for leaf in row(samples[0], entries[0])]
        return jax.vmap(row)(samples, entries)


@dataclasses.dataclass(frozen=True, eq=False)
class SlotRows:
    """All rows of one set of inputs, by slot: an index of trace and diagonal axes.

    Attributes:
      call: the network, with samples first in its arrays if they are mapped.
      samples: array [slots, rows], the sample of every row.
      entries: array [slots, rows], the entry of the raveled real output of one sample, or of all.
      kept: shape of the axes of the output that rows run over.
    """

    call: Call
    samples: np.ndarray
    entries: np.ndarray
    kept: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of rows of a slot."""
        return self.samples.shape[1]

    @classmethod
    def of(cls, call: Call, output: Output, shape: tuple[int, ...]) -> SlotRows:
        """Returns the rows of an output of this real shape."""
        axes, rank = output.axes, len(shape)
        slots, paired = (*axes.trace, *axes.diagonal), axes.kept(rank)
        places = np.moveaxis(
            np.indices(shape, np.int32), [1 + a for a in (*slots, *paired)], range(1, 1 + rank)
        )
        places = places.reshape(rank, math.prod(shape[a] for a in slots), -1)
        samples = np.zeros_like(places[0])
        single = list(shape)
        if output.axis is not None:
            samples = places[output.axis].copy()
            places[output.axis] = 0
            single[output.axis] = 1
            call = dataclasses.replace(call, arrays=call.network.inputs.split(call.arrays))
        entries = samples * 0
        for axis in range(rank):
            entries = entries * single[axis] + places[axis]
        return cls(call, samples, entries, tuple(shape[a] for a in paired))

    def rows(self, output: Output, called: int) -> JacobianRows:
        """Returns the static description of the rows."""
        return JacobianRows(self.call.network, output.index, output.axis is not None, called)

    def padded(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns samples and entries of `count` rows, the last repeated."""
        where = np.minimum(np.arange(count), self.count - 1)
        return self.samples[:, where], self.entries[:, where]


def work_of_call(
    side: SlotRows, output: Output, group: tuple[int, ...], memory: int
) -> tuple[int, int]:
    """Returns the bytes of a call beside its arguments, and its number of rows.

    On a CPU batched convolutions with a different derivative per sample are slow: one row per call.
    """
    equations = traced_call(side, output, group, 1)
    one = _work(equations)
    convolves = any(equation.name == "conv_general_dilated" for equation in equations.walk())
    if convolves and jax.default_backend() == "cpu":
        return one, 1
    more = max(_work(traced_call(side, output, group, 2)) - one, 1)
    called = int(max(1, min(_MOST_CALLED, (memory // _CALLED_SHARE - one) // more)))
    return one + (called - 1) * more, called


def traced_call(side: SlotRows, output: Output, group: tuple[int, ...], called: int) -> Equations:
    """Returns the equations of a call that computes `called` rows."""
    rows = side.rows(output, called)
    ids = jax.ShapeDtypeStruct((called,), np.int32)

    def call(params: list[AnyArray], arrays: PyTree, samples: Array, entries: Array) -> list[Array]:
        return rows.compute(group, Call(side.call.network, params, arrays), samples, entries)

    return Equations.of(call, side.call.params, side.call.arrays, ids, ids)


def _work(call: Equations) -> int:
    return live_bytes(call) - bytes_of(call.inputs)
