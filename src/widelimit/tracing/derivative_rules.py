"""Functions with custom derivative rules among the equations of a trace."""

from __future__ import annotations

import inspect
import os

import jax

from widelimit.tracing.jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn

_LIBRARY = os.path.dirname(inspect.getfile(jax)) + os.sep
# Files of JAX whose functions run the rules of users, and JAX's own functions with such rules.
_CARRIERS = tuple(
    os.path.join(_LIBRARY, "_src", *path)
    for path in (("custom_derivatives.py",), ("ad_checkpoint.py",), ("lax", "control_flow"))
)
_OWN = ("relu", "relu6", "log1mexp")


def has_rule(equation: JaxprEqn) -> bool:
    """Returns whether an equation calls a function with a custom derivative rule."""
    return equation.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))


def places(equation: JaxprEqn) -> tuple[str, ...] | None:
    """Returns the source lines of a function and its rule; None if both are JAX's own.

    Rules of JAX do not change. A user's rule may belong to a function of JAX.
    """
    params = equation.params
    body = params.get("call_jaxpr", params.get("fun_jaxpr"))
    rules = [part for name, part in params.items() if name.startswith(("jvp", "fwd", "bwd"))]
    jaxpr = body.jaxpr if isinstance(body, ClosedJaxpr) else body
    sources = tuple(map(_place, (jaxpr, *rules)))
    where = [text.rpartition(" at ")[2] for text in sources]
    if not all(file.startswith(_LIBRARY) for file in where):
        return sources
    if not any(file.startswith(_CARRIERS) for file in where):
        return None
    is_own = (
        sources[0].partition(" at ")[0] in _OWN
        and not where[0].startswith(_CARRIERS)
        and not (isinstance(jaxpr, Jaxpr) and any(map(has_rule, jaxpr.eqns)))
    )
    return None if is_own else sources


def _place(function: object) -> str:
    """Returns the name, file and line of a function, as far as they are known."""
    return str(getattr(getattr(function, "debug_info", None), "func_src_info", None))
