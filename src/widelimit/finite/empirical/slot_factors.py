"""Factors of the derivatives of one output at some of its trace and diagonal indices (slots)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from widelimit._pytree import AnyArray
from widelimit.finite.empirical.kernel_axes import KernelAxes
from widelimit.finite.empirical.network import Network, real_output
from widelimit.finite.empirical.outputs import Call, Output
from widelimit.finite.empirical.structured.analysis import analyse
from widelimit.finite.empirical.structured.derivatives import Batch, Factors, Values
from widelimit.finite.empirical.structured.pairs import kernel_of_parameter
from widelimit.finite.empirical.structured.program import program_of
from widelimit.typing import Integer

# Outputs are [trace, diagonal, *kept].
AXES = KernelAxes((0,), (1,))

Struct = jax.ShapeDtypeStruct
_Structs: TypeAlias = tuple[Struct, ...]
SLOT = Struct((), jnp.int32), Struct((), jnp.int32)


class NetworkArguments(NamedTuple):
    """The arguments of a network for some samples: arrays, or their shapes.

    Attributes:
      params: arrays of its parameters.
      mapped: arrays of the samples, samples first.
      shared: other arrays.
    """

    params: list[AnyArray]
    mapped: list[Array]
    shared: list[AnyArray]

    @classmethod
    def of(cls, call: Call) -> NetworkArguments:
        """Returns the arguments of a call whose samples are mapped."""
        return cls(call.params, *call.network.inputs.split(call.arrays))

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.mapped[0].shape[0]

    def of_samples(self, number: int) -> PyTree:
        """Returns the shapes and dtypes of the same arguments with `number` samples."""
        params, mapped, shared = self.types()
        several = (Struct((number, *a.shape), a.dtype) for a in mapped)
        return NetworkArguments(*map(list, (params, several, shared)))  # type: ignore[arg-type]

    def picked(self, samples: Array) -> NetworkArguments:
        """Returns the arguments for some of the samples."""
        return self._replace(mapped=[jnp.take(a, samples, axis=0) for a in self.mapped])

    def types(self) -> tuple[_Structs, _Structs, _Structs]:
        """Returns the shapes and dtypes of all arrays; those of one sample for mapped arrays."""
        mapped = tuple(Struct(a.shape[1:], a.dtype) for a in self.mapped)
        params, shared = (
            tuple(Struct(jnp.shape(a), jnp.result_type(a)) for a in arrays)
            for arrays in (self.params, self.shared)
        )
        return params, mapped, shared


@dataclasses.dataclass(frozen=True, eq=False)
class SlotFactors:
    """The factors of an output, for a number of trace and diagonal indices at a time.

    Attributes:
      network: the function.
      factors: the factors of its program.
      axis: the axis of samples in [trace, diagonal, *kept].
      shape: the shape [trace, diagonal, *kept] of one sample.
      dtype: dtype of the output.
    """

    network: Network
    factors: Factors
    axis: int
    shape: tuple[int, ...]
    dtype: jnp.dtype

    def values(self, arguments: NetworkArguments, slot: tuple[Integer, Integer]) -> Values:
        """Returns the factors of the derivatives of all samples.

        Args:
          arguments: the samples.
          slot: first trace index and first diagonal index.
        """
        leaves = self.network.parameters.real(arguments.params)
        shared = [*arguments.params, *arguments.shared, *(jnp.asarray(s, jnp.int32) for s in slot)]
        return self.factors.values(leaves, Batch(arguments.mapped, self.axis, shared))

    def kernel(self, leaf: int, first: Values, second: Values | None) -> Array | None:
        """Returns the part of the kernel [diagonal, *pairs of kept] of one parameter."""
        one = self.factors.derivatives(leaf, first, self.axis)
        other = None if second is None else self.factors.derivatives(leaf, second, self.axis)
        return kernel_of_parameter(one, other, AXES, self.factors.rank)[0]

    def values_types(self, arguments: NetworkArguments, samples: int) -> Values:
        """Returns the shapes and dtypes of the values of a number of samples."""
        return jax.eval_shape(self.values, arguments.of_samples(samples), SLOT)

    def kernel_shape(self, diagonals: int, samples: tuple[int, int]) -> tuple[int, ...]:
        """Returns the shape of the kernel for numbers of diagonal indices and of samples."""
        one, two = ((self.shape[0], diagonals, *self.shape[2:]) for _ in samples)
        one, two = (
            (*shape[: self.axis], n, *shape[self.axis + 1 :])
            for shape, n in zip((one, two), samples, strict=True)
        )
        return AXES.kernel_shape(one, two)


def slot_counts(output: Output) -> tuple[int, int]:
    """Returns the numbers of trace and of diagonal indices of an output."""
    shape = output.shapes[0]
    trace, diagonal = (math.prod(shape[a] for a in axes) for axes in output.axes)
    return trace, diagonal


def slot_factors(
    output: Output, arguments: NetworkArguments, network: Network, sizes: tuple[int, int]
) -> SlotFactors:
    """Returns the factors of an output whose samples are mapped; cached.

    Args:
      output: the output; its samples are not on a trace or diagonal axis.
      arguments: the arguments of the network.
      network: the function.
      sizes: numbers of trace and diagonal indices at a time.
    """
    assert output.axis is not None
    return _slot_factors(network, output.index, output.axis, output.axes, sizes, arguments.types())


@functools.lru_cache(maxsize=64)
def _slot_factors(
    network: Network,
    index: int,
    axis: int,
    axes: KernelAxes,
    sizes: tuple[int, int],
    types: tuple[_Structs, _Structs, _Structs],
) -> SlotFactors:
    params, mapped, shared = map(list, types)
    real = jax.eval_shape(network.parameters.real, params)

    def output(
        real: list[Array],
        mapped: list[Array],
        params: list[AnyArray],
        shared: list[AnyArray],
        trace: Array,
        diagonal: Array,
    ) -> Array:
        y = real_output(network.one(params, mapped, shared, real)[index])
        paired = axes.kept(y.ndim)
        y = y.transpose((*axes.trace, *axes.diagonal, *paired))
        traced = math.prod(y.shape[: len(axes.trace)])
        y = y.reshape(traced, -1, *y.shape[y.ndim - len(paired) :])
        starts = trace, diagonal, *(jnp.int32(0),) * len(paired)
        return lax.dynamic_slice(y, starts, (*sizes, *y.shape[2:]))

    program = program_of(output, real, mapped, params, shared, *SLOT)
    like = program.types[program.outputs[0]]
    factors = Factors(program, analyse(program, len(real), len(params) + len(shared) + 2))
    place = 2 + axes.kept(axis + 1).index(axis)
    return SlotFactors(network, factors, place, tuple(like.shape), jnp.dtype(like.dtype))
