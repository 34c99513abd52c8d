"""Choice between functions with the same result, by counting their operations in traces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxtyping import PyTree

from widelimit.tracing.jaxprs import Equation, Equations, Value, shape_of

_K = TypeVar("_K")

# Costs in multiply-adds of a large matrix product, measured on CPUs: of a number read or written
# beside those products, and of a multiply-add of a product without a matrix library, such as a
# convolution in groups.
TRAFFIC = 4.0
GROUPED = 8.0


def cheapest(ways: Mapping[_K, Callable[..., PyTree]], *args: PyTree) -> _K:
    """Returns the key of the function with the fewest operations, the first of equals.

    Functions that cannot be traced, such as those that need a derivative that does not exist, are
    left out. If no function can be traced, the error of the first is raised.

    Args:
      ways: functions with the same result.
      args: arguments of all functions, arrays or their shapes; they are only traced.
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
    """Returns the cost of a traced function, in multiply-adds.

    All rounds of a `scan` count; the number of rounds of a `while_loop` is unknown and counts as
    one.
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
    # Other operations are fused: each costs one pass over its result.
    return TRAFFIC * size if name not in _FREE else 0.0


# Operations that only change the description of an array, or make numbers where they are used.
_FREE = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "iota", "copy", "stop_gradient"}


def _taps(params: Mapping[str, Any], kernel: tuple[int, ...]) -> float:
    """Returns the multiply-adds of a convolution per number of its result."""
    taps = math.prod(kernel) / max(kernel[params["dimension_numbers"].rhs_spec[0]], 1)
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    return taps * (GROUPED if grouped else 1.0)


def _size(value: Value) -> int:
    return math.prod(shape_of(value))
