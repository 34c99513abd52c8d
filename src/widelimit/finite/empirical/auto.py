"""Choice between ways to compute the same thing, by counting what they do; nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

_K = TypeVar("_K")

# What an operation takes, in multiply-adds of a large matrix product, as measured on CPUs: a number
# that is read or written beside those products, and one of a product that no matrix library does,
# such as a convolution in groups.
TRAFFIC = 4.0
GROUPED = 8.0


def cheapest(ways: Mapping[_K, Callable[..., Any]], *args: Any) -> _K:
    """Returns the key of the function that takes the fewest operations, the first of equals.

    Functions that cannot be traced, such as those that need a derivative that does not exist, are
    left out. If none can be, the first says why.

    Args:
      ways: functions with the same result.
      args: of all of them, arrays or their shapes; only traced.
    """
    counts: dict[_K, float] = {}
    failures: list[Exception] = []
    for key, way in ways.items():
        try:
            counts[key] = multiply_adds(jax.make_jaxpr(way)(*args))
        except (TypeError, ValueError) as error:
            failures.append(error)
    if not counts:
        raise failures[0]
    return min(counts, key=lambda key: counts[key])


def multiply_adds(jaxpr: Any) -> float:
    """Returns what a traced function takes, in multiply-adds.

    The rounds of a `scan` are multiplied out, those of a `while_loop` unknown: it counts as one.

    Args:
      jaxpr: what `jax.make_jaxpr(function)(...)` returns.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(eqn) for eqn in inner.eqns)


def _equation(eqn: Any) -> float:
    name = eqn.primitive.name
    bodies = [multiply_adds(body) for body in _inner(eqn)]
    if bodies:
        rounds = eqn.params.get("length", 1) if name == "scan" else 1
        return float(rounds * (max(bodies) if name == "cond" else sum(bodies)))
    moved = sum(_size(v) for v in (*eqn.invars, *eqn.outvars))
    if name == "dot_general":
        ((summed, _), _) = eqn.params["dimension_numbers"]
        rows = eqn.invars[0].aval.shape
        return _size(eqn.outvars[0]) * math.prod(rows[a] for a in summed) + TRAFFIC * moved
    if name == "conv_general_dilated":
        return _convolution(eqn) + TRAFFIC * moved
    # Other operations are fused: each takes one pass over its result.
    return TRAFFIC * sum(_size(v) for v in eqn.outvars) if name not in _FREE else 0.0


# Changes of the description of an array, and numbers that are made where they are used.
_FREE = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "iota", "copy", "stop_gradient"}


def _convolution(eqn: Any) -> float:
    """Returns the multiply-adds of a convolution."""
    params = eqn.params
    kernel = eqn.invars[1].aval.shape
    taps = math.prod(kernel) / max(kernel[params["dimension_numbers"].rhs_spec[0]], 1)
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    return _size(eqn.outvars[0]) * taps * (GROUPED if grouped else 1.0)


def _size(value: Any) -> int:
    return math.prod(getattr(value.aval, "shape", ()))


def _inner(eqn: Any) -> Iterator[Any]:
    """Yields the functions that an operation calls."""
    for value in eqn.params.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one
