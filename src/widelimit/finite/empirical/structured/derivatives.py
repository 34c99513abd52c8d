"""Factors of the derivatives of a program by its parameters: values inside it and cotangents."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from widelimit._pytree import AnyArray, AnyArrays
from widelimit.finite.empirical.structured.analysis import Analysis
from widelimit.finite.empirical.structured.convolutions import fast_to_derive
from widelimit.finite.empirical.structured.factors import Factor, OneHot
from widelimit.finite.empirical.structured.links import Crop, Pick, Read, Use
from widelimit.finite.empirical.structured.pairs import Derivative, merged
from widelimit.finite.empirical.structured.program import Place, Program, evaluate
from widelimit.tracing.varying import varying_like


class Batch(NamedTuple):
    """Samples on which a program is evaluated one by one.

    Attributes:
      arrays: further arguments of the program, samples first; may be empty.
      axis: the axis of the output of size 1, for the one sample; None without samples.
      shared: the last arguments of the program, the same for all samples.
    """

    arrays: Sequence[Array] = ()
    axis: int | None = None
    shared: AnyArrays = ()


class Values(NamedTuple):
    """The factors of the derivatives by all parameters.

    Attributes:
      cotangents: cotangents of values and parameters, [*output, *value], samples first if any.
      varying: values that depend on samples, samples first if any.
      fixed: values that are the same for all samples.
    """

    cotangents: list[Array]
    varying: list[Array]
    fixed: list[Array]


def derivatives_of(
    program: Program, leaves: Sequence[Array], analysis: Analysis, batch: Batch
) -> dict[int, list[Derivative]]:
    """Returns the derivatives of the single output by every parameter, as factors.

    Args:
      program: program of parameters and the arrays of one sample, with one real output.
      leaves: the parameters.
      analysis: their uses; for parameters without structure the factor is the Jacobian.
      batch: the samples, all of which are in the factors.
    """
    factors = Factors(program, analysis)
    # Without a barrier XLA may compute cotangents again in every product.
    values = lax.optimization_barrier(factors.values(leaves, batch))
    return {leaf: factors.derivatives(leaf, values, batch.axis) for leaf in factors.uses}


class Factors:
    """The factors of the derivatives by parameters, as places of values in a program.

    Attributes:
      uses: the uses of every parameter on which the output depends.
      rank: rank of the output.
    """

    def __init__(self, program: Program, analysis: Analysis) -> None:
        """Collects the values.

        Args:
          program: program of parameters, arrays of one sample and shared ones, with one real
            output.
          analysis: the uses of the parameters; for those without structure the factor is the
            Jacobian.
        """
        self.program = program
        self.uses = {leaf: list(uses) for leaf, uses in analysis.uses.items()}
        for leaf in analysis.without:
            self.uses[leaf] = [_direct(leaf, program.types[program.inputs[leaf]].shape)]
        uses = [use for each in self.uses.values() for use in each]
        self._inside = sorted({use.place for use in uses if use.place is not None})
        self._whole = sorted({use.leaf for use in uses if use.place is None})
        places = [
            (read.source, read.fixed) for read in _reads(uses) if isinstance(read.source, tuple)
        ]
        self._constant = sorted({place for place, fixed in places if fixed})
        self._varying = sorted({place for place, _ in places} - set(self._constant))
        self.rank = len(program.types[program.outputs[0]].shape)

    def values(self, leaves: Sequence[Array], batch: Batch) -> Values:
        """Returns the values for parameters and samples."""

        def of_sample(arrays: list[Array]) -> tuple[list[Array], list[Array]]:
            return self._of_sample(leaves, [*arrays, *batch.shared])

        over = of_sample if batch.axis is None else jax.vmap(of_sample)
        cotangents, varying = over(list(batch.arrays))
        any_sample = [*(array[0] for array in batch.arrays), *batch.shared]
        return Values(cotangents, varying, self._fixed(leaves, any_sample))

    def derivatives(self, leaf: int, values: Values, axis: int | None) -> list[Derivative]:
        """Returns the derivatives of the output by one parameter, as factors.

        Args:
          leaf: number of the parameter.
          values: values for all samples.
          axis: axis of the samples in the output; None without samples.
        """
        cotangents = dict(zip([*self._inside, *self._whole], values.cotangents, strict=True))
        arrays = dict(zip(self._varying, values.varying, strict=True))
        arrays.update(zip(self._constant, values.fixed, strict=True))
        derivatives = []
        for use in self.uses[leaf]:
            cotangent = cotangents[use.leaf if use.place is None else use.place]
            if axis is not None:
                cotangent = _on_axis(cotangent, axis)
            derivatives.append(_derivative(use, cotangent, self.rank, arrays, axis))
        return merged(derivatives)

    def _of_sample(
        self, leaves: Sequence[Array], arrays: Sequence[AnyArray]
    ) -> tuple[list[Array], list[Array]]:
        """Returns cotangents [*output, *value], and values."""
        chosen = [leaves[leaf] for leaf in self._whole]
        zeros = [jnp.zeros(*_type_of(self.program, place)) for place in self._inside]
        out = self.program.types[self.program.outputs[0]]
        zeros, chosen = varying_like((zeros, chosen), out)
        program = fast_to_derive(self.program)

        def run(shifts: list[Array], chosen: list[Array]) -> tuple[Array, list[Array]]:
            args = [*leaves, *arrays]
            for leaf, value in zip(self._whole, chosen, strict=True):
                args[leaf] = value
            shifted = dict(zip(self._inside, shifts, strict=True))
            (output,), derivatives = evaluate(program, args, shifted, self._varying)
            return jnp.asarray(output), [derivatives[place] for place in self._varying]

        output, pull, values = jax.vjp(run, zeros, chosen, has_aux=True)
        basis = jnp.eye(output.size, dtype=output.dtype).reshape(output.size, *output.shape)
        rows = jax.tree.leaves(jax.vmap(pull)(varying_like(basis, output)))
        return [row.reshape(output.shape + row.shape[1:]) for row in rows], values

    def _fixed(self, leaves: Sequence[Array], arrays: Sequence[AnyArray]) -> list[Array]:
        """Returns values that are the same for all samples, from the arrays of any sample."""
        if not self._constant:
            return []
        derivatives = evaluate(self.program, [*leaves, *arrays], {}, self._constant)[1]
        return [derivatives[place] for place in self._constant]


def _on_axis(cotangent: Array, axis: int) -> Array:
    """Returns an array [samples, ..., 1, ...] with the samples moved to the axis of size 1."""
    return jnp.moveaxis(cotangent, 0, axis).squeeze(axis + 1)


def _direct(leaf: int, shape: tuple[int, ...]) -> Use:
    """Returns a single use in place of all uses of a parameter: its cotangent is the Jacobian."""
    return Use(leaf, (), shape, None, tuple(range(len(shape))))


def _reads(uses: Sequence[Use]) -> list[Read]:
    parts = [part for use in uses for part in use.parts]
    reads = [part for part in parts if isinstance(part, Read)]
    return reads + [part.index for part in parts if isinstance(part, Pick)]


def _type_of(program: Program, place: Place) -> tuple[tuple[int, ...], Any]:
    """Returns shape and dtype of a value, with the axes of the scans around it."""
    path, number = place
    lengths = []
    for index in path:
        step = program.steps[index]
        lengths.append(step.params["length"])
        assert step.body is not None
        program = step.body
    aval = program.types[number]
    return (*lengths, *aval.shape), aval.dtype


def _derivative(
    use: Use, cotangent: Array, rank: int, values: Mapping[Place, Array], axis: int | None
) -> Derivative:
    """Returns the factors of one use."""
    out = tuple(("out", a) for a in range(rank))
    if use.change is not None:
        cotangent = cotangent.reshape(cotangent.shape[: rank + len(use.loops)] + use.change)
    parts: list[Factor | OneHot] = [Factor(cotangent, (*out, *use.loops, *use.labels))]
    sample = () if axis is None else (("out", axis),)
    parts += [_part(part, values, sample) for part in use.parts if not isinstance(part, Crop)]
    for crop in reversed([part for part in use.parts if isinstance(part, Crop)]):
        parts = [_cut(part, crop) for part in parts]
    return Derivative(tuple(parts), use.frame, use.shape)


def _part(
    part: Read | Pick, values: Mapping[Place, Array], sample: tuple[Hashable, ...]
) -> Factor | OneHot:
    if isinstance(part, Pick):
        index = _part(part.index, values, sample)
        assert isinstance(index, Factor)
        return OneHot(index.array, index.labels, part.picked, part.size)
    if not isinstance(part.source, tuple):
        return Factor(jnp.asarray(part.source), part.labels)
    leading = (*(() if part.fixed else sample), *part.loops)
    array, change = values[part.source], part.change
    if change is not None:
        for _ in leading:
            change = jax.vmap(change)
        array = change(array)
    return Factor(array, (*leading, *part.labels))


def _cut(part: Factor | OneHot, crop: Crop) -> Factor | OneHot:
    """Returns a factor with one of its labels cropped."""
    if isinstance(part, OneHot) and part.picked == crop.outer:
        part = part._replace(where=part.where - crop.start, picked=crop.inner, size=crop.size)
    if crop.outer not in part.labels:
        return part
    axis = part.labels.index(crop.outer)
    labels = (*part.labels[:axis], crop.inner, *part.labels[axis + 1 :])
    array = part.array if isinstance(part, Factor) else part.where
    array = lax.slice_in_dim(array, crop.start, crop.start + crop.size, axis=axis)
    if isinstance(part, Factor):
        return Factor(array, labels)
    return part._replace(where=array, labels=labels)
