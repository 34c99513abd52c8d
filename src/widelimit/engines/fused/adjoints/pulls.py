"""Loops that pull cotangents of K' and T' back through an activation, made from its partials."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import overload

from widelimit.engines.fused import compiled_formulas as compiled_formulas
from widelimit.engines.fused.activations.base import FusedActivation, activation_named
from widelimit.engines.fused.compiling import INLINED, called_by_address, loop, read, write
from widelimit.engines.fused.constants import CONSTANTS, ZERO
from widelimit.engines.fused.formulas import select
from widelimit.engines.fused.loops import formula

_partials, _partials_gap, _gap = map(formula, ("partials", "partials_gap", "gap"))


def _ends(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
    """Returns what is recorded of a position, which a loop only reads."""
    raise NotImplementedError("expected to be compiled")


@overload(_ends, prefer_literal=True, jit_options=INLINED)
def _compiled_ends(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
    def one(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
        return (read(numbers, i),)

    def two(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
        return read(numbers, i), read(numbers, plane + i)

    return inspect.unwrap(one if activation_named(name.literal_value).planes == 1 else two)


@loop
def _pull(partials: Any, t: Any, k_bar: Any, t_bar: Any, to: Any, i: Any) -> None:
    """Writes the cotangents of K, T, q1 and q2 of one pair."""
    slope, lift1, lift2, curve, turn1, turn2 = partials
    bent = t * t_bar
    write(to[0], i, k_bar * slope + bent * curve)
    write(to[1], i, t_bar * slope)
    write(to[2], i, k_bar * lift1 + bent * turn1)
    write(to[3], i, k_bar * lift2 + bent * turn2)


def _rows_loop(name: str, carries: bool) -> Callable[..., None]:
    """Returns a loop over the pairs of one sample with n others."""

    def dropped(
        k: Any, t: Any, g: Any, k_bar: Any, t_bar: Any, one: Any, two: Any, p: Any, cst: Any,
        to_k: Any, to_t: Any, to_q1: Any, to_q2: Any, plane1: Any, plane2: Any, has_gap: Any,
        n: Any,
    ) -> None:  # fmt: skip
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        first, to = _ends(name, one, types.uint64(0), plane1), (to_k, to_t, to_q1, to_q2)
        for i in range(n):
            second = _ends(name, two, i, plane2)
            found = _partials(name, read(k, i), first, second, numbers, constants)
            _pull(found, read(t, i), read(k_bar, i), read(t_bar, i), to, i)

    def carried(
        k: Any, t: Any, g: Any, k_bar: Any, t_bar: Any, one: Any, two: Any, p: Any, cst: Any,
        to_k: Any, to_t: Any, to_q1: Any, to_q2: Any, plane1: Any, plane2: Any, has_gap: Any,
        n: Any,
    ) -> None:  # fmt: skip
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        first, to = _ends(name, one, types.uint64(0), plane1), (to_k, to_t, to_q1, to_q2)
        for i in range(n):
            second, c = _ends(name, two, i, plane2), read(k, i)
            gap = select(has_gap > 0, read(g, i), _gap(name, c, first, second, constants))
            found = _partials_gap(name, c, gap, first, second, numbers, constants)
            _pull(found, read(t, i), read(k_bar, i), read(t_bar, i), to, i)

    return carried if carries else dropped


def _pairs_loop(name: str) -> Callable[..., None]:
    """Returns a loop over n pairs of positions; outside of images it writes zeros."""

    def pairs(
        k: Any, t: Any, mask: Any, k_bar: Any, t_bar: Any, one: Any, two: Any, p: Any, cst: Any,
        to_k: Any, to_t: Any, to_q1: Any, to_q2: Any, plane: Any, n: Any,
    ) -> None:  # fmt: skip
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        zero, to = constants[ZERO], (to_k, to_t, to_q1, to_q2)
        for i in range(n):
            first, second = _ends(name, one, i, plane), _ends(name, two, i, plane)
            slope, lift1, lift2, curve, turn1, turn2 = _partials(
                name, read(k, i), first, second, numbers, constants
            )
            inside = read(mask, i) > zero
            found = (
                select(inside, slope, zero), select(inside, lift1, zero),
                select(inside, lift2, zero), select(inside, curve, zero),
                select(inside, turn1, zero), select(inside, turn2, zero),
            )  # fmt: skip
            _pull(found, read(t, i), read(k_bar, i), read(t_bar, i), to, i)

    return pairs


# Of each loop: how many pointers to numbers it takes, and then how many counts.
_ARGUMENTS = {"rows": (13, 4), "pairs": (13, 2)}


@functools.lru_cache(maxsize=256)
def _compiled(activation: Any, dtype: np.dtype, role: str) -> Any:
    name = activation.name
    if role == "rows":
        function = _rows_loop(name, activation.partials_gap is not None)
    else:
        function = _pairs_loop(name)
    pointers, counts = _ARGUMENTS[role]
    number = types.CPointer(numba.from_dtype(dtype))
    signature = types.void(*[number] * pointers, *[types.uint64] * counts)
    return called_by_address(signature, function, kept="#" not in name)


def pull_address(activation: type[FusedActivation], dtype: np.dtype, role: str) -> int:
    """Returns where the machine code of a loop is: 'rows' or 'pairs'."""
    return int(_compiled(activation, np.dtype(dtype), role).address)  # type: ignore[arg-type]
