"""Choice between ways to compute the same thing, by counting what they do; nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxtyping import PyTree

from widelimit.tracing.jaxprs import Equation, Equations, Value, shape_of

_K = TypeVar("_K")

# What an operation takes, in multiply-adds of a large matrix product, as measured on CPUs: a number
# that is read or written beside those products, and one of a product that no matrix library does,
# such as a convolution in groups.
TRAFFIC = 4.0
GROUPED = 8.0


def cheapest(ways: Mapping[_K, Callable[..., PyTree]], *args: PyTree) -> _K:
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
            counts[key] = multiply_adds(Equations.of(way, *args))
        except (TypeError, ValueError) as error:
            failures.append(error)
    if not counts:
        raise failures[0]
    return min(counts, key=lambda key: counts[key])


def multiply_adds(function: Equations) -> float:
    """Returns what a traced function takes, in multiply-adds.

    The rounds of a `scan` are multiplied out, those of a `while_loop` unknown: it counts as one.
    """
    return sum(map(_multiply_adds, function), start=0.0)


def _multiply_adds(equation: Equation) -> float:
    name, inputs, outputs = equation.name, equation.inputs, equation.outputs
    bodies = [multiply_adds(body) for body in equation.bodies]
    if bodies:
        rounds = equation.params.get("length", 1) if name == "scan" else 1
        return float(rounds * (max(bodies) if name == "cond" else sum(bodies)))
    size = sum(map(_size, outputs))
    traffic = TRAFFIC * (sum(map(_size, inputs)) + size)
    if name == "dot_general":
        ((summed, _), _) = equation.params["dimension_numbers"]
        rows = shape_of(inputs[0])
        return size * math.prod(rows[a] for a in summed) + traffic
    if name == "conv_general_dilated":
        return size * _taps(equation.params, shape_of(inputs[1])) + traffic
    # Other operations are fused: each takes one pass over its result.
    return TRAFFIC * size if name not in _FREE else 0.0


# Changes of the description of an array, and numbers that are made where they are used.
_FREE = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "iota", "copy", "stop_gradient"}


def _taps(params: Mapping[str, Any], kernel: tuple[int, ...]) -> float:
    """Returns the multiply-adds of a convolution for each number of its result."""
    taps = math.prod(kernel) / max(kernel[params["dimension_numbers"].rhs_spec[0]], 1)
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    return taps * (GROUPED if grouped else 1.0)


def _size(value: Value) -> int:
    return math.prod(shape_of(value))
