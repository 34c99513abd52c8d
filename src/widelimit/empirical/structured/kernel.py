"""The tangent kernel by structured derivatives, and what it did."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit.empirical.axes import Axes, kernel_dtype
from widelimit.empirical.structured.analysis import Analysis, analyse, compatible
from widelimit.empirical.structured.derivatives import derivatives_of
from widelimit.empirical.structured.pairs import Chosen, kernel_of_parameter
from widelimit.empirical.structured.program import Program, trace

Function = Callable[[Any], Array]


class LeafReport(NamedTuple):
    """How structured derivatives treat one parameter.

    Attributes:
      name: its path in the tree of parameters.
      shape: its shape.
      rules: names of the primitives that it enters, each with a rule; empty without structure.
      reason: why its Jacobian is contracted instead; empty with structure.
      whole: whether its Jacobian is formed, from factors or not.
      cost: multiply-adds of the contraction, traffic of memory included.
    """

    name: str
    shape: tuple[int, ...]
    rules: tuple[str, ...]
    reason: str
    whole: bool
    cost: float

    def __str__(self) -> str:
        how = "Jacobian" if self.whole else "factors"
        why = f"no rule: {self.reason}" if self.reason else ", ".join(self.rules) or "unused"
        return f"{self.name or '(itself)'} {list(self.shape)}: {how} ({why}), {self.cost:.2g}"


def structured(
    f1: Function,
    f2: Function | None,
    params: Any,
    axes: Axes,
    samples: tuple[int, int] = (1, 1),
) -> Array:
    """Returns the tangent kernel by structured derivatives, summed over trace axes.

    Args:
      f1: takes parameters, returns one array.
      f2: likewise, of the same rank; None stands for f1.
      params: a tree of inexact arrays.
      axes: of the outputs.
      samples: how many samples of each side this call is vectorised over: they decide in which
        order to multiply, not the result.
    """
    return _both(f1, f2, params, axes, samples)[0]


def explain(
    f1: Function,
    f2: Function | None,
    params: Any,
    axes: Axes,
    samples: tuple[int, int] = (1, 1),
) -> tuple[LeafReport, ...]:
    """Returns which rules `structured` applies to each parameter, and why it has none.

    Nothing is computed: the functions are only traced.

    Args:
      f1: as in `structured`.
      f2: likewise.
      params: arrays, or their shapes.
      axes: as in `structured`.
      samples: likewise.
    """
    reports: list[LeafReport] = []

    def traced(params: Any) -> Array:
        kernel, found = _both(f1, f2, params, axes, samples)
        reports.extend(found)
        return kernel

    jax.eval_shape(traced, params)
    return tuple(reports)


def _both(
    f1: Function, f2: Function | None, params: Any, axes: Axes, samples: tuple[int, int]
) -> tuple[Array, list[LeafReport]]:
    paths = jax.tree_util.tree_leaves_with_path(params)
    leaves = [jnp.asarray(leaf) for _, leaf in paths]
    one = _Side(f1, params)
    two = one if f2 is None else _Side(f2, params)
    if two is not one:
        one, two = _agreed(one, two)
    shape = axes.kernel_shape(one.shape, two.shape)
    total = jnp.zeros(shape, kernel_dtype(one.dtype, two.dtype, *(x.dtype for x in leaves)))
    if 0 in (*one.shape, *two.shape):
        return total, []
    first = derivatives_of(one.program, leaves, one.analysis)
    second = first if two is one else derivatives_of(two.program, leaves, two.analysis)
    parts, reports = [], []
    for leaf, (path, value) in enumerate(paths):
        chosen = Chosen(False, 0.0)
        if leaf in first and leaf in second:
            part, chosen = kernel_of_parameter(
                first[leaf], second[leaf], axes, len(one.shape), samples
            )
            parts += [] if part is None else [part]
        reports.append(
            LeafReport(
                jax.tree_util.keystr(path),
                jnp.shape(value),
                tuple(sorted({use.rule for use in one.analysis.uses.get(leaf, ())})),
                one.analysis.without.get(leaf, ""),
                chosen.whole or leaf in one.analysis.without,
                chosen.cost,
            )
        )
    return functools.reduce(operator.add, parts, total), reports


class _Side:
    """One of the two functions, traced."""

    program: Program
    analysis: Analysis

    def __init__(self, function: Function, params: Any) -> None:
        leaves, tree = jax.tree.flatten(params)
        self.program = trace(lambda *leaves: function(tree.unflatten(leaves)), *leaves)
        self.analysis = analyse(self.program)
        (output,) = self.program.outputs
        self.shape = tuple(self.program.types[output].shape)
        self.dtype = self.program.types[output].dtype


def _agreed(one: _Side, two: _Side) -> tuple[_Side, _Side]:
    """Returns both sides, without structure for parameters that they use in different ways."""
    for leaf in {*one.analysis.uses, *two.analysis.uses}:
        uses1, uses2 = (side.analysis.uses.get(leaf, ()) for side in (one, two))
        lost = leaf in one.analysis.without or leaf in two.analysis.without
        if lost or not compatible(uses1, uses2):
            for side in (one, two):
                side.analysis = _without(side.analysis, leaf)
    return one, two


def _without(analysis: Analysis, leaf: int) -> Analysis:
    """Returns an analysis in which a parameter has no structure, if it is used at all."""
    if leaf not in analysis.uses:
        return analysis
    uses = {key: value for key, value in analysis.uses.items() if key != leaf}
    reason = "used in another way by the other function"
    return dataclasses.replace(
        analysis, uses=uses, without={**analysis.without, leaf: reason}
    )
