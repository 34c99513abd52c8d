"""Factors of the derivatives of a program by its parameters: values inside it and cotangents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit.empirical.structured.analysis import Analysis
from widelimit.empirical.structured.factors import Factor, OneHot
from widelimit.empirical.structured.links import Pick, Read, Use, Window
from widelimit.empirical.structured.pairs import Derivative, merged
from widelimit.empirical.structured.program import Path, Place, Program, evaluate


def derivatives_of(
    program: Program, leaves: Sequence[Array], analysis: Analysis
) -> dict[int, list[Derivative]]:
    """Returns the derivatives of the one output by every parameter, as factors.

    Args:
      program: of parameters, with one output.
      leaves: the parameters.
      analysis: their uses; those without structure get the Jacobian.
    """
    uses = [use for each in analysis.uses.values() for use in each]
    uses += [_direct(leaf, leaves[leaf]) for leaf in analysis.without]
    inside = sorted({use.place for use in uses if use.place is not None})
    whole = sorted(analysis.without)
    reads = {part.source for part in _reads(uses) if isinstance(part.source, tuple)}

    def run(shifts: list[Array], chosen: list[Array]) -> tuple[Array, dict[Place, Array]]:
        args = list(leaves)
        for leaf, value in zip(whole, chosen, strict=True):
            args[leaf] = value
        shifted = dict(zip(inside, shifts, strict=True))
        (output,), found = evaluate(program, args, shifted, reads)
        return output, [found[place] for place in order]

    order = sorted(reads)
    zeros = [jnp.zeros(*_type_of(program, place)) for place in inside]
    output, pull, values = jax.vjp(run, zeros, [leaves[leaf] for leaf in whole], has_aux=True)
    shifts, jacobians = _rows(output, pull, (zeros, [leaves[leaf] for leaf in whole]))
    found = dict(zip(order, values, strict=True))
    cotangents: dict[Any, Array] = dict(zip(inside, shifts, strict=True))
    cotangents.update(zip(whole, jacobians, strict=True))
    result: dict[int, list[Derivative]] = {}
    for use in uses:
        cotangent = cotangents[use.leaf if use.place is None else use.place]
        result.setdefault(use.leaf, []).append(_derivative(use, cotangent, output.ndim, found))
    return {leaf: merged(each) for leaf, each in result.items()}


def _direct(leaf: int, value: Array) -> Use:
    """Returns the use that stands for all uses of a parameter: its cotangent is the Jacobian."""
    return Use(leaf, (), value.shape, None, tuple(range(value.ndim)))


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


def _rows(output: Array, pull: Callable[..., Any], inputs: Any) -> Any:
    """Returns the derivatives of all entries of the output: [*output, *input] for every input."""
    basis = jnp.eye(output.size, dtype=output.dtype).reshape(output.size, *output.shape)
    rows = jax.vmap(pull)(basis)
    if jnp.iscomplexobj(output):
        # Of a real input: the pullback keeps the real part only.
        other = jax.vmap(pull)(-1j * basis)
        rows = jax.tree.map(lambda a, b: a if jnp.iscomplexobj(a) else a + 1j * b, rows, other)
    return jax.tree.map(lambda x, like: x.reshape(output.shape + like.shape), rows, inputs)


def _derivative(
    use: Use, cotangent: Array, rank: int, values: Mapping[Place, Array]
) -> Derivative:
    """Returns the factors of one use."""
    out = tuple(("out", axis) for axis in range(rank))
    if use.change is not None:
        cotangent = cotangent.reshape(cotangent.shape[: rank + len(use.loops)] + use.change)
    parts: list[Factor | OneHot] = [Factor(cotangent, (*out, *use.loops, *use.labels))]
    parts += [_part(part, values) for part in use.parts if not isinstance(part, Window)]
    for window in reversed([part for part in use.parts if isinstance(part, Window)]):
        parts = [_cut(part, window) for part in parts]
    return Derivative(tuple(parts), use.frame, use.shape)


def _part(part: Read | Pick, values: Mapping[Place, Array]) -> Factor | OneHot:
    if isinstance(part, Pick):
        index = _part(part.index, values)
        assert isinstance(index, Factor)
        return OneHot(index.array, index.labels, part.picked, part.size)
    if not isinstance(part.source, tuple):
        return Factor(jnp.asarray(part.source), part.labels)
    change = part.change
    for _ in part.loops if change is not None else ():
        change = jax.vmap(change)
    array = values[part.source] if change is None else change(values[part.source])
    return Factor(array, (*part.loops, *part.labels))


def _cut(part: Factor | OneHot, window: Window) -> Factor | OneHot:
    """Returns a factor along a window of one of its labels."""
    if window.outer not in part.labels:
        return part
    axis = part.labels.index(window.outer)
    labels = (*part.labels[:axis], window.inner, *part.labels[axis + 1 :])
    array = part.array if isinstance(part, Factor) else part.index
    array = jax.lax.slice_in_dim(array, window.start, window.start + window.size, axis=axis)
    if isinstance(part, Factor):
        return Factor(array, labels)
    return part._replace(index=array, labels=labels)
