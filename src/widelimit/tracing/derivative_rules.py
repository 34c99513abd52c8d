"""Functions with derivative rules of their own, as they stand among the equations of a trace."""

from __future__ import annotations

import inspect
import os

import jax

from widelimit.tracing.jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn

_LIBRARY = os.path.dirname(inspect.getfile(jax)) + os.sep
# Files whose functions carry out rules of users, and what JAX itself gives to the first.
_CARRIERS = tuple(
    os.path.join(_LIBRARY, "_src", *path)
    for path in (("custom_derivatives.py",), ("ad_checkpoint.py",), ("lax", "control_flow"))
)
_OWN = ("relu", "relu6", "log1mexp")


def has_rule(equation: JaxprEqn) -> bool:
    """Returns whether an equation calls a function with a derivative rule of its own."""
    return equation.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))


def places(equation: JaxprEqn) -> tuple[str, ...] | None:
    """Returns where a function and its rule are written; None if both are JAX's own.

    Rules of JAX do not change. A rule of a user may belong to a function of JAX.
    """
    params = equation.params
    body = params.get("call_jaxpr", params.get("fun_jaxpr"))
    rules = [part for name, part in params.items() if name.startswith(("jvp", "fwd", "bwd"))]
    jaxpr = body.jaxpr if isinstance(body, ClosedJaxpr) else body
    found = tuple(map(_place, (jaxpr, *rules)))
    where = [text.rpartition(" at ")[2] for text in found]
    if not all(file.startswith(_LIBRARY) for file in where):
        return found
    if not any(file.startswith(_CARRIERS) for file in where):
        return None
    is_own = (
        found[0].partition(" at ")[0] in _OWN
        and not where[0].startswith(_CARRIERS)
        and not (isinstance(jaxpr, Jaxpr) and any(map(has_rule, jaxpr.eqns)))
    )
    return None if is_own else found


def _place(function: object) -> str:
    """Returns the name, file and line of a function, as far as they are known."""
    return str(getattr(getattr(function, "debug_info", None), "func_src_info", None))
