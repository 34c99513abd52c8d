"""Checks in a trace that outputs depend on parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from jaxtyping import PyTree

from widelimit._pytree import Outline
from widelimit.tracing.jaxprs import Equations, shape_of, variables_of
from widelimit.tracing.varying import varying_axes, varying_like

# Operations along axes of a mesh that do not send data.
_LOCAL = {"pvary", "pcast", "axis_index"}


def check_dependence(
    f: Callable[..., PyTree], params: Sequence[Outline], arguments: PyTree
) -> None:
    """Raises if no derivative of f with respect to the parameters exists.

    Derivatives whose values are zero are not detected.

    Args:
      f: f(params, arguments).
      params: real arrays, or their shapes and dtypes.
      arguments: tree of arrays, or of their shapes and dtypes.

    Raises:
      ValueError: no output depends on any of these parameters; or, inside `jax.shard_map`, outputs
        on one device depend on arrays of another.
    """
    everything = params, arguments

    def derivative(p: list[jax.Array], tangents: list[jax.Array], arguments: PyTree) -> PyTree:
        p, tangents, arguments = varying_like((p, tangents, arguments), everything)
        return jax.jvp(lambda p: f(p, arguments), (p,), (tangents,))[1]

    traced = Equations.of(derivative, params, params, arguments)
    axes = varying_axes(everything)
    if axes:
        _check_separate(traced, axes)
    count = len(jax.tree.leaves(params))
    reached = {v for v in traced.inputs[count : 2 * count] if 0 not in shape_of(v)}
    if not reached:
        return
    for equation in traced:
        if not reached.isdisjoint(variables_of(equation.inputs)):
            reached.update(equation.outputs)
    if reached.isdisjoint(variables_of(traced.outputs)):
        raise ValueError(
            "expected f that depends on the chosen parameters, got one whose derivatives with "
            "respect to them do not exist: is it f(params, x), and are the parameters used?"
        )


def _check_separate(traced: Equations, axes: frozenset[str]) -> None:
    """Raises if a trace exchanges arrays along axes of a mesh.

    The derivatives of the outputs on one device with respect to the parameters would be spread over
    all devices, and those of several devices would be summed.
    """
    for equation in traced.walk():
        name, params = equation.name, equation.params
        named = params.get("axes", params.get("axis_name", ()))
        named = named if isinstance(named, tuple) else (named,)
        if name not in _LOCAL and any(isinstance(a, str) and a in axes for a in named):
            raise ValueError(
                f"expected f that treats devices separately inside jax.shard_map, got one with "
                f"{name} along {named}: gather the arrays before, and pass them as an argument"
            )
