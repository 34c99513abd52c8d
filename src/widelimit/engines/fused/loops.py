"""From formulas of an activation to loops over slices, compiled once and called by their addresses.

The formulas of an activation are found by its name, which numba takes as a constant: machine code
on disk is then known by that name, and not by objects of one process.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import overload, register_jitable

from widelimit.engines.fused import compiled_formulas as compiled_formulas
from widelimit.engines.fused.activations.base import FusedActivation, activation_named
from widelimit.engines.fused.activations.relu import FusedRelu
from widelimit.engines.fused.compiling import INLINED, called_by_address, loop
from widelimit.engines.fused.constants import CONSTANTS, ZERO
from widelimit.engines.fused.formulas import select


def formula(role: str) -> Any:
    """Returns a stand-in for a formula of an activation, whose name is its first argument."""

    def stand_in(name: Any, *arguments: Any) -> Any:
        raise NotImplementedError("expected to be compiled")

    def compiled(name: Any, *arguments: Any) -> Any:
        function = getattr(activation_named(name.literal_value), role)
        compute_inner = register_jitable(**INLINED)(inspect.unwrap(function))

        def compute(name: Any, *arguments: Any) -> Any:
            return compute_inner(*arguments)

        return inspect.unwrap(compute)

    overload(stand_in, prefer_literal=True, jit_options=INLINED)(compiled)
    return stand_in


_record, _pair, _own, _pair_gap, _gap = map(formula, ("record", "pair", "own", "pair_gap", "gap"))


def _recorded(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
    """Returns what is recorded of a position."""
    raise NotImplementedError("expected to be compiled")


@overload(_recorded, prefer_literal=True, jit_options=INLINED)
def _compiled_recorded(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
    def one(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
        return (numbers[i],)

    def two(name: Any, numbers: Any, i: Any, plane: Any) -> Any:
        return numbers[i], numbers[plane + i]

    return inspect.unwrap(one if activation_named(name.literal_value).planes == 1 else two)


def _record_loop(name: str) -> Callable[..., None]:
    """Returns a loop that records n variances; of the second numbers after `plane` entries."""

    def record(variances: Any, to: Any, p: Any, cst: Any, plane: Any, n: Any) -> None:
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        for i in range(n):
            found = _record(name, variances[i], numbers, constants)
            to[i] = found[0]
            to[plane + i] = found[-1]

    return record


def _pairs_loop(name: str, masked: bool) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of n pairs of positions over K and T."""

    def pairs(
        k: Any, t: Any, one: Any, two: Any, mask: Any, p: Any, cst: Any, work: Any, plane: Any,
        real: Any, n: Any,
    ) -> None:  # fmt: skip
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        for i in range(n):
            first, second = _recorded(name, one, i, plane), _recorded(name, two, i, plane)
            value, slope = _pair(name, k[i], first, second, numbers, constants)
            t[i] *= slope
            k[i] = value

    def inside(
        k: Any, t: Any, one: Any, two: Any, mask: Any, p: Any, cst: Any, work: Any, plane: Any,
        real: Any, n: Any,
    ) -> None:  # fmt: skip
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        zero = constants[ZERO]
        for i in range(n):
            first, second = _recorded(name, one, i, plane), _recorded(name, two, i, plane)
            value, slope = _pair(name, k[i], first, second, numbers, constants)
            tangent, keep = t[i] * slope, mask[i] > zero
            t[i] = select(keep, tangent, zero)
            k[i] = select(keep, value, zero)

    return inside if masked else pairs


def _own_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of n positions with themselves over K and T."""

    def own(k: Any, t: Any, mask: Any, p: Any, cst: Any, n: Any) -> None:
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        zero = constants[ZERO]
        for i in range(n):
            value, slope = _own(name, k[i], numbers, constants)
            tangent, keep = t[i] * slope, mask[i] > zero
            t[i] = select(keep, tangent, zero)
            k[i] = select(keep, value, zero)

    return own


def _rows_loop(name: str, carries: bool) -> Callable[..., None]:
    """Returns a loop that writes K', T' and the gap of one sample with n others."""

    def dropped(
        k: Any, t: Any, g: Any, one: Any, two: Any, p: Any, cst: Any, work: Any, plane1: Any,
        plane2: Any, has_gap: Any, n: Any,
    ) -> None:  # fmt: skip
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        first = _recorded(name, one, types.uint64(0), plane1)
        for i in range(n):
            second = _recorded(name, two, i, plane2)
            value, slope = _pair(name, k[i], first, second, numbers, constants)
            t[i] *= slope
            k[i] = value

    def carried(
        k: Any, t: Any, g: Any, one: Any, two: Any, p: Any, cst: Any, work: Any, plane1: Any,
        plane2: Any, has_gap: Any, n: Any,
    ) -> None:  # fmt: skip
        constants, numbers = carray(cst, CONSTANTS), (p[0], p[1], p[2], p[3], p[4], p[5])
        first = _recorded(name, one, types.uint64(0), plane1)
        if not has_gap:
            for i in range(n):
                g[i] = _gap(name, k[i], first, _recorded(name, two, i, plane2), constants)
        for i in range(n):
            second = _recorded(name, two, i, plane2)
            value, slope, gap = _pair_gap(name, k[i], g[i], first, second, numbers, constants)
            t[i] *= slope
            k[i] = value
            g[i] = gap

    return carried if carries else dropped


# Of each loop: how many pointers to numbers it takes, and then how many counts.
_ARGUMENTS = {"record": (4, 2), "pairs": (8, 3), "own": (5, 1), "rows": (8, 4)}


@functools.lru_cache(maxsize=1024)
def _compiled(activation: Any, dtype: np.dtype, role: str) -> Any:
    name = activation.name
    module = None if activation.loops is None else importlib.import_module(activation.loops)
    if module is not None and role in module.LOOPS:
        function = module.LOOPS[role](name)
    elif role == "own" and activation.own is None:
        return None
    else:
        function = {
            "record": lambda: _record_loop(name),
            "pairs": lambda: _pairs_loop(name, activation.masked),
            "own": lambda: _own_loop(name),
            "rows": lambda: _rows_loop(name, activation.pair_gap is not None),
        }[role]()
    pointers, counts = _ARGUMENTS[role]
    number = types.CPointer(numba.from_dtype(dtype))
    signature = types.void(*[number] * pointers, *[types.uint64] * counts)
    # Formulas of others may change without a change of this package.
    return called_by_address(signature, function, kept="#" not in name)


def address(activation: type[FusedActivation], dtype: np.dtype, role: str) -> int:
    """Returns where the machine code of a loop is: 'record', 'pairs', 'own' or 'rows'.

    0 if a position with itself is a pair like others.
    """
    found = _compiled(activation, np.dtype(dtype), role)  # type: ignore[arg-type]
    return 0 if found is None else int(found.address)


# The most frequent activation is compiled into the interpreter: slices may be short.
relu_pairs = loop(_pairs_loop(FusedRelu.name, masked=False))


def is_compiled_in(activation: type[FusedActivation]) -> bool:
    """Returns whether the interpreter of images has the loop of an activation itself."""
    return activation is FusedRelu
