"""The memory of a function, estimated from its trace without compiling it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from widelimit.tracing.jaxprs import (
    Equation,
    Equations,
    Value,
    Var,
    bytes_of,
    shape_of,
    variables_of,
)


def live_bytes(function: Equations) -> int:
    """Returns the most bytes alive at any time in a traced function, arguments included.

    The estimate assumes that every operation writes its result to memory, and that results are
    freed after their last use: compilers fuse operations and need less. Reshapes take no memory.
    """
    arguments = [*function.inputs, *function.constants]
    same: dict[Value, Var] = {}
    equations = []
    for equation in function:
        if _is_reshaped(equation):
            (source,) = variables_of(equation.inputs)
            same[equation.outputs[0]] = same.get(source, source)
        else:
            equations.append(equation)

    def used(values: Sequence[Value]) -> set[Var]:
        return {same.get(v, v) for v in variables_of(values)}

    last = {v: i for i, eqn in enumerate(equations) for v in used(eqn.inputs)}
    permanent = {*arguments, *used(function.outputs)}
    live = peak = bytes_of(arguments)
    for i, equation in enumerate(equations):
        out, read = bytes_of(equation.outputs), bytes_of(equation.inputs)
        inside = max((live_bytes(body) - read for body in equation.bodies), default=0)
        peak = max(peak, live + max(out, inside))
        unused = [v for v in equation.outputs if v not in last and v not in permanent]
        freed = {v for v in used(equation.inputs) if last[v] == i and v not in permanent}
        live += out - bytes_of(unused) - bytes_of(list(freed))
    return peak


def _is_reshaped(equation: Equation) -> bool:
    """Returns whether the result holds the same numbers as its input, in the same order."""
    if equation.name == "transpose":
        shape = shape_of(equation.inputs[0])
        order = [a for a in equation.params["permutation"] if shape[a] != 1]
    else:
        order = []
    names = "transpose", "reshape", "squeeze", "expand_dims"
    return (
        equation.name in names
        and order == sorted(order)
        and len(variables_of(equation.inputs)) == 1
    )


def tile_costs(tile: Callable[[int], Equations]) -> tuple[float, float]:
    """Returns the bytes per pair and per sample of a tile, from tiles of 2 and 4 samples per side.

    Args:
      tile: function from the number of samples per side to the traced tile.
    """
    two, four = (live_bytes(tile(n)) for n in (2, 4))
    per_pair = max((four - 2 * two) / 8, two / 16)
    return per_pair, max((two - 4 * per_pair) / 4, 0.0)
