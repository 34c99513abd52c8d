"""How much memory a function takes, read off its trace without compiling it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any


def live_bytes(jaxpr: Any) -> int:
    """Returns the most bytes alive at any time in a traced function, arguments included.

    Every operation is taken to write its result to memory, and results to be freed after their
    last use: compilers fuse operations and need less.

    Args:
      jaxpr: what `jax.make_jaxpr(function)(...)` returns.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    arguments = [*inner.invars, *inner.constvars]
    last = {v: i for i, eqn in enumerate(inner.eqns) for v in eqn.invars if _is_variable(v)}
    kept = {v for v in (*arguments, *inner.outvars) if _is_variable(v)}
    live = peak = sum(map(_size, arguments))
    for i, eqn in enumerate(inner.eqns):
        out = sum(map(_size, eqn.outvars))
        given = sum(map(_size, eqn.invars))
        inside = max((live_bytes(sub) - given for sub in inner_functions(eqn)), default=0)
        peak = max(peak, live + max(out, inside))
        unused = sum(_size(v) for v in eqn.outvars if v not in last and v not in kept)
        done = {v for v in eqn.invars if _is_variable(v) and last[v] == i and v not in kept}
        live += out - unused - sum(map(_size, done))
    return peak


def tile_costs(trace: Callable[[int], Any]) -> tuple[float, float]:
    """Returns bytes per pair and per sample of a tile, from tiles of 2 and of 4 samples per side.

    Args:
      trace: number of samples per side -> jaxpr of the tile.
    """
    two, four = (live_bytes(trace(n)) for n in (2, 4))
    per_pair = max((four - 2 * two) / 8, two / 16)
    return per_pair, max((two - 4 * per_pair) / 4, 0.0)


def _is_variable(value: Any) -> bool:
    return not hasattr(value, "val")  # else a literal


def _size(value: Any) -> int:
    shape = getattr(value.aval, "shape", ())
    return math.prod(shape) * getattr(getattr(value.aval, "dtype", None), "itemsize", 0)


def inner_functions(eqn: Any) -> Iterator[Any]:
    """Yields the functions that an operation calls."""
    for value in eqn.params.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one
