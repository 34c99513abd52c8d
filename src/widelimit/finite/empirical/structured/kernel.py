"""The tangent kernel by structured derivatives, and reports of the rules that it used."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from widelimit.finite.empirical.jacobian import OutputFunction
from widelimit.finite.empirical.kernel_axes import KernelAxes, kernel_dtype
from widelimit.finite.empirical.structured.analysis import Analysis, analyse, compatible
from widelimit.finite.empirical.structured.derivatives import Batch, derivatives_of
from widelimit.finite.empirical.structured.pairs import Chosen, Derivative, kernel_of_parameter
from widelimit.finite.empirical.structured.program import program_of
from widelimit.tracing.varying import varying_axes, varying_like


class LeafReport(NamedTuple):
    """Report on the structured derivatives by one parameter.

    Attributes:
      name: its path in the tree of parameters.
      shape: its shape.
      rules: names of the primitives that it enters, each with a rule; empty without structure.
      reason: the reason for contracting its Jacobian instead; empty with structure.
      whole: whether its Jacobian is formed, from factors or directly.
      cost: multiply-adds of the contraction, memory traffic included.
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


@dataclasses.dataclass(frozen=True)
class Structured:
    """Structured derivatives as a way to compute tangent kernels.

    Attributes:
      reports: list to which the reports of each call are appended; None for no reports.
    """

    reports: list[LeafReport] | None = None

    def __call__(
        self, f1: OutputFunction, f2: OutputFunction | None, params: PyTree, axes: KernelAxes
    ) -> Array:
        """Returns the tangent kernel of two outputs, summed over trace axes.

        Args:
          f1: function of the parameters that returns one real array.
          f2: a second such function, with output of the same rank; None for f1.
          params: tree of real arrays.
          axes: trace and diagonal axes of the outputs.
        """
        batches = Batch(), None if f2 is None else Batch()
        return self.of_samples(lambda _: f1, lambda _: f2 or f1, batches, params, axes)

    def of_samples(
        self,
        f1: Callable[[list[Array]], OutputFunction],
        f2: Callable[[list[Array]], OutputFunction],
        batches: tuple[Batch, Batch | None],
        params: PyTree,
        axes: KernelAxes,
    ) -> Array:
        """Returns the same for functions of single samples: the work per sample is done once.

        Args:
          f1: maps the arrays of a sample to a function of the parameters.
          f2: the same for the second output.
          batches: the samples of both; None for those of f1, which then is f2.
          params: tree of real arrays.
          axes: trace and diagonal axes of the outputs of all samples.
        """
        one = _Side(f1, batches[0], params)
        two = None if batches[1] is None else _Side(f2, batches[1], params)
        kernel, reports = _kernel(one, two, params, axes)
        if self.reports is not None:
            self.reports.extend(reports)
        return kernel


structured = Structured()


class Explanation(tuple[LeafReport, ...]):
    """The reports on all parameters; as text, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def explain(
    compute: Callable[[Structured, PyTree], Array],
    params: PyTree,
    names: Sequence[str] | None = None,
) -> Explanation:
    """Returns the rules for each parameter, or the reason for having none; only traces.

    Args:
      compute: function `compute(structured, params)` that returns a kernel.
      params: tree of arrays, or of their shapes.
      names: names of the parameters; None for their paths.
    """
    recorder = Structured([])
    jax.eval_shape(lambda p: compute(recorder, p), params)
    reports = recorder.reports or []
    if names is not None:
        pairs = zip(reports, names, strict=True) if reports else ()
        reports = [report._replace(name=name) for report, name in pairs]
    return Explanation(reports)


class _Side:
    """One of the two functions, traced, and its samples."""

    def __init__(
        self, function: Callable[[list[Array]], OutputFunction], batch: Batch, params: PyTree
    ) -> None:
        leaves, tree = jax.tree.flatten(params)
        one = [_sample(a) for a in batch.arrays]

        def flat(leaves: list[Array], arrays: list[Array]) -> Array:
            return function(arrays)(jax.tree.unflatten(tree, leaves))

        self.batch = batch
        self.program = program_of(flat, leaves, one)
        (output,) = self.program.outputs
        self.like = self.program.types[output]
        if varying_axes(self.like):  # the parameters of one device
            self.program = program_of(flat, varying_like(leaves, self.like), one)
            (output,) = self.program.outputs
        self.analysis = analyse(self.program, len(leaves))
        shape = list(self.program.types[output].shape)
        if batch.axis is not None:
            shape[batch.axis] = batch.arrays[0].shape[0]
        self.shape = tuple(shape)
        self.dtype = self.program.types[output].dtype

    def derivatives(self, leaves: Sequence[Array]) -> dict[int, list[Derivative]]:
        leaves = varying_like(leaves, self.like)
        return derivatives_of(self.program, leaves, self.analysis, self.batch)


def _sample(array: Array) -> Array | jax.ShapeDtypeStruct:
    """Returns the argument with which to trace a function of one sample."""
    if len(array) and varying_axes(array):
        return array[0]
    return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)


def _kernel(
    one: _Side, other: _Side | None, params: PyTree, axes: KernelAxes
) -> tuple[Array, list[LeafReport]]:
    """Returns the kernel, and a report on every parameter."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    leaves = [jnp.asarray(leaf) for _, leaf in paths]
    two = one
    if other is not None:
        one, two = _agreed(one, other)
    shape = axes.kernel_shape(one.shape, two.shape)
    total = jnp.zeros(shape, kernel_dtype(one.dtype, two.dtype, *(x.dtype for x in leaves)))
    if 0 in (*one.shape, *two.shape):
        return total, []
    first = one.derivatives(leaves)
    second = None if other is None else two.derivatives(leaves)
    parts, reports = [], []
    for leaf, (path, value) in enumerate(paths):
        chosen = Chosen(False, 0.0)
        if leaf in first and (second is None or leaf in second):
            other_side = None if second is None else second[leaf]
            part, chosen = kernel_of_parameter(first[leaf], other_side, axes, len(one.shape))
            parts += [] if part is None else [part]
        reason = one.analysis.without.get(leaf, "")
        rules = {use.rule for use in one.analysis.uses.get(leaf, ())}
        reports.append(
            LeafReport(
                jax.tree_util.keystr(path),
                jnp.shape(value),
                tuple(sorted(rules)),
                reason,
                chosen.whole or bool(reason),
                chosen.cost,
            )
        )
    return functools.reduce(operator.add, parts, total), reports


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
    return dataclasses.replace(analysis, uses=uses, without={**analysis.without, leaf: reason})
