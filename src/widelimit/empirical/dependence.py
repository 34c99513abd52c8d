"""Whether outputs depend on parameters at all, read off a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def check_dependence(f: Callable[..., Any], params: list[Any], arguments: Any) -> None:
    """Raises if no derivative of f with respect to the parameters exists.

    Derivatives that happen to be zero are none of its business.

    Args:
      f: f(params, arguments).
      params: real arrays, or their shapes and dtypes.
      arguments: tree of arrays, or of their shapes and dtypes.

    Raises:
      ValueError: no output depends on any of these parameters.
    """

    def derivative(p: list[Any], tangents: list[Any], arguments: Any) -> Any:
        return jax.jvp(lambda p: f(p, arguments), (p,), (tangents,))[1]

    traced = jax.make_jaxpr(derivative)(params, params, arguments)
    jaxpr = traced.jaxpr
    count = len(jax.tree.leaves(params))
    reached = {v for v in jaxpr.invars[count : 2 * count] if v.aval.size}
    if not reached:
        return
    for equation in jaxpr.eqns:
        if any(not hasattr(v, "val") and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    if not any(not hasattr(v, "val") and v in reached for v in jaxpr.outvars):
        raise ValueError(
            "expected f that depends on the chosen parameters, got one whose derivatives with "
            "respect to them do not exist: is it f(params, x), and are the parameters used?"
        )
