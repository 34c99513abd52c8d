"""A function with its inputs, as a function of the chosen parameters alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from widelimit._pytree import AnyArray, AnyArrays, Outline
from widelimit.finite.empirical.arguments import (
    Arguments,
    Constants,
    MappedAxes,
    is_array,
    join_arrays,
    mapped_axes,
    path_text,
    split_arrays,
)
from widelimit.finite.empirical.subset import choose_leaves
from widelimit.tracing.traced import TracedFunction, shape_like, trace, type_of
from widelimit.typing import ApplyFunction, Params, Subset


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The static description of parameters: how chosen ones become real arrays, and back.

    A complex array counts as two: its real and its imaginary part.

    Attributes:
      constants: leaves that are not arrays. They do not enter comparisons: the equations of f do.
      chosen: for every array, whether the kernel includes derivatives with respect to it.
    """

    constants: Constants = dataclasses.field(compare=False)
    chosen: tuple[bool, ...]

    @classmethod
    def of(cls, params: Params, subset: Subset) -> tuple[Parameters, list[AnyArray]]:
        """Returns the description and the arrays of a tree of parameters.

        Raises:
          TypeError: chosen leaves that are not floating-point or complex numbers.
          ValueError: an invalid subset.
        """
        flags = choose_leaves(params, subset)
        # Chosen Python numbers become arrays.
        leaves, structure = jax.tree.flatten(params)
        leaves = [
            jnp.asarray(leaf) if flag and not is_array(leaf) else leaf
            for leaf, flag in zip(leaves, flags, strict=True)
        ]
        arrays, constants = split_arrays(jax.tree.unflatten(structure, leaves))
        chosen = [f for leaf, f in zip(leaves, flags, strict=True) if is_array(leaf)]
        return cls(constants, tuple(chosen)), arrays

    @classmethod
    def fixed(cls, params: Params) -> tuple[Parameters, list[AnyArray]]:
        """Returns the description and the arrays of parameters of which none is chosen."""
        arrays, constants = split_arrays(params)
        return cls(constants, (False,) * len(arrays)), arrays

    def real(self, arrays: AnyArrays) -> list[Array]:
        """Returns the chosen parameters as real arrays."""
        real = []
        for array, flag in self._flagged(arrays):
            if flag and jnp.iscomplexobj(array):
                real += [jnp.real(array), jnp.imag(array)]
            elif flag:
                real.append(jnp.asarray(array))
        return real

    def filled(self, arrays: AnyArrays, real: list[Array]) -> list[AnyArray]:
        """Returns the arrays of all parameters, with the chosen ones from real arrays."""
        values = iter(real)
        filled: list[AnyArray] = []
        for array, flag in self._flagged(arrays):
            if flag and jnp.iscomplexobj(array):
                filled.append(jax.lax.complex(next(values), next(values)))
            else:
                filled.append(next(values) if flag else array)
        return filled

    def _flagged(self, arrays: AnyArrays) -> Iterator[tuple[AnyArray, bool]]:
        """Returns the arrays of parameters, the first of `arrays`, with their flags."""
        return zip(arrays[: len(self.chosen)], self.chosen, strict=True)


@dataclasses.dataclass(frozen=True)
class StaticInputs:
    """The static description of inputs and keywords of f.

    Attributes:
      constants: leaves that are not arrays; they do not enter comparisons either.
      mapped: the axis of samples of every array, None for arrays that all samples share.
      outputs: the user's axes of samples of the outputs; None if samples are not mapped.
    """

    constants: Constants = dataclasses.field(compare=False)
    mapped: tuple[int | None, ...]
    outputs: Constants | None

    @classmethod
    def of(cls, arguments: Arguments, vmap_axes: PyTree) -> tuple[StaticInputs, list[AnyArray]]:
        """Returns the description and the arrays of inputs.

        Raises:
          TypeError: axes that are not integers.
          ValueError: axes that do not fit the inputs, or numbers of samples that differ.
        """
        x = jax.tree.map(_as_array, arguments.x)
        arrays, constants = split_arrays((x, arguments.kwargs))
        if vmap_axes is None:
            return cls(constants, (None,) * len(arrays), None), arrays
        axes = MappedAxes.of(vmap_axes)
        mapped = mapped_axes(axes.inputs, x, "x")
        for name, axis in sorted(axes.of_kwargs(arguments.kwargs).items()):
            mapped += mapped_axes(axis, arguments.kwargs[name], f"keyword {name}")
        leaves = jax.tree.leaves((x, arguments.kwargs))
        array_axes = [axis for axis, leaf in zip(mapped, leaves, strict=True) if is_array(leaf)]
        counts = {a.shape[i] for a, i in zip(arrays, array_axes, strict=True) if i is not None}
        if len(counts) != 1:
            raise ValueError(
                "expected vmap_axes that map inputs with one number of samples, got "
                f"{sorted(counts) or 'no mapped input'}"
            )
        return cls(constants, tuple(array_axes), Constants.of(axes.outputs)), arrays

    def count(self, arrays: AnyArrays) -> int:
        """Returns the number of samples, 0 if they are not mapped."""
        pairs = zip(arrays, self.mapped, strict=True)
        return next((a.shape[axis] for a, axis in pairs if axis is not None), 0)

    def split(self, arrays: AnyArrays) -> tuple[list[Array], list[AnyArray]]:
        """Returns the mapped arrays with samples first, and the shared ones."""
        pairs = list(zip(arrays, self.mapped, strict=True))
        mapped = [jnp.moveaxis(a, axis, 0) for a, axis in pairs if axis is not None]
        return mapped, [a for a, axis in pairs if axis is None]

    def some(self, mapped: list[Array], shared: AnyArrays) -> list[AnyArray]:
        """Returns the arrays of a batch of some samples, from arrays with samples first."""
        batch, common = iter(mapped), iter(shared)
        return [
            next(common) if axis is None else jnp.moveaxis(next(batch), 0, axis)
            for axis in self.mapped
        ]

    def resized(self, arrays: AnyArrays, count: int | None) -> Sequence[Outline]:
        """Returns the arrays, mapped ones as shapes of `count` samples; all unchanged for None."""
        if count is None:
            return arrays

        def struct(array: AnyArray, axis: int | None) -> Outline:
            if axis is None:
                return array
            shape = (*array.shape[:axis], count, *array.shape[axis + 1 :])
            return shape_like(array, shape)

        return list(map(struct, arrays, self.mapped))


@dataclasses.dataclass(frozen=True)
class Network:
    """A traced function f with its inputs; see `Call.of`.

    Arrays of parameters are followed by those that f reads besides its arguments.

    Attributes:
      parameters: static description of its parameters.
      inputs: static description of its inputs.
      programs: the equations of f, by the number of samples of a batch; None is all samples.
    """

    parameters: Parameters
    inputs: StaticInputs
    programs: tuple[tuple[int | None, Traced], ...]

    @classmethod
    def of(
        cls,
        f: ApplyFunction,
        parameters: Parameters,
        inputs: StaticInputs,
        params: AnyArrays,
        arrays: AnyArrays,
        counts: tuple[int | None, ...],
    ) -> tuple[Network, list[AnyArray]]:
        """Returns the network, and the arrays of its parameters and those that f reads.

        Args:
          f: f(params, x, **kwargs).
          parameters: static description of its parameters.
          inputs: static description of its inputs.
          params: arrays of its parameters.
          arrays: arrays of its inputs and keywords.
          counts: numbers of samples to trace f for.

        Raises:
          TypeError: outputs that are not arrays.
        """

        def call(params: list[AnyArray], arrays: list[AnyArray]) -> PyTree:
            x, kwargs = join_arrays(arrays, inputs.constants)
            out = f(join_arrays(params, parameters.constants), x, **kwargs)
            output_leaves(out)
            return out

        programs: list[tuple[int | None, Traced]] = []
        values = list(params)
        for count in counts:
            program, constants = trace(call, params, inputs.resized(arrays, count))
            programs.append((count, Traced(program, len(values), len(constants))))
            values += constants
        return cls(parameters, inputs, tuple(programs)), values

    def fits(self, inputs: StaticInputs, traced: AnyArrays, arrays: AnyArrays) -> bool:
        """Returns whether the trace of f is valid for batches of these inputs.

        Args:
          inputs: static description of the inputs.
          traced: arrays of the inputs of the trace.
          arrays: arrays of these inputs.
        """
        same = inputs == self.inputs and inputs.constants == self.inputs.constants
        return same and all(
            list(map(type_of, inputs.resized(traced, count)))
            == list(map(type_of, inputs.resized(arrays, count)))
            for count, _ in self.programs
        )

    def whole(self, params: AnyArrays, arrays: Sequence[Outline], real: list[Array]) -> list[Array]:
        """Returns the outputs of all samples, with these real parameters."""
        return self._outputs(None, params, arrays, real)

    def some(
        self, params: AnyArrays, mapped: list[Array], shared: AnyArrays, real: list[Array]
    ) -> list[Array]:
        """Returns the outputs of a batch of some samples, from arrays with samples first."""
        arrays = self.inputs.some(mapped, shared)
        return self._outputs(mapped[0].shape[0], params, arrays, real)

    def one(
        self, params: AnyArrays, mapped: list[Array], shared: AnyArrays, real: list[Array]
    ) -> list[Array]:
        """Returns the outputs of a batch of one sample, from arrays without its axis."""
        return self.some(params, [a[None] for a in mapped], shared, real)

    def _outputs(
        self, count: int | None, params: AnyArrays, arrays: Sequence[Outline], real: list[Array]
    ) -> list[Array]:
        traced = dict(self.programs)[count]
        out = traced(params, self.parameters.filled(params, real), arrays)
        return output_leaves(out)

    def output_axes(self) -> list[int | None]:
        """Returns the axis of samples of every output, None for outputs that are not mapped."""
        if self.inputs.outputs is None:
            return [None] * len(jax.tree.leaves(self.outputs))
        return mapped_axes(self.inputs.outputs.tree, self.outputs, "outputs of f")

    @property
    def outputs(self) -> PyTree:
        """Tree of the outputs, with shapes for a batch of one if samples are mapped."""
        return self.programs[0][1].program.outputs


class Traced(NamedTuple):
    """The equations of a network on a batch.

    Attributes:
      program: the equations.
      start: index of the first array that it reads besides its arguments, among the arrays of
        parameters and those that follow.
      size: number of these arrays.
    """

    program: TracedFunction
    start: int
    size: int

    def __call__(
        self, params: AnyArrays, filled: list[AnyArray], arrays: Sequence[Outline]
    ) -> PyTree:
        """Returns the tree of outputs; `filled` are the arrays of parameters to take."""
        return self.program(params[self.start : self.start + self.size], filled, arrays)


def output_names(out: PyTree) -> list[str]:
    """Returns the name of every output in errors."""
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(out))
    return [f"an output{path_text(path)}" for path in paths]


def output_leaves(out: PyTree) -> list[Array]:
    """Returns the arrays of an output.

    Raises:
      TypeError: leaves that are not arrays, or a tree without leaves.
    """
    leaves = jax.tree_util.tree_leaves_with_path(out)
    if not leaves:
        raise TypeError(f"expected arrays as outputs of f, got {out!r}")
    for path, leaf in leaves:
        if not is_array(leaf):
            raise TypeError(
                f"expected arrays as outputs of f, got {type(leaf).__name__}{path_text(path)}"
            )
    return [jnp.asarray(leaf) for _, leaf in leaves]


def real_output(y: Array) -> Array:
    """Returns a real array, for complex numbers both parts along a new last axis."""
    return jnp.stack([y.real, y.imag], -1) if jnp.iscomplexobj(y) else y


def complex_kernel(kernel: Array) -> Array:
    """Returns the kernel of complex outputs from that of their parts, of shape [..., 2, 2].

    With A the derivatives of a complex output with respect to real parameters it is A1 A2^H.
    """
    real = kernel[..., 0, 0] + kernel[..., 1, 1]
    return jax.lax.complex(real, kernel[..., 1, 0] - kernel[..., 0, 1])


def _as_array(leaf: PyTree) -> PyTree:
    """Returns numbers as arrays, anything else unchanged."""
    is_number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
    return jnp.asarray(leaf) if is_number else leaf
