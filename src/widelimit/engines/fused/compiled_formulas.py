"""The scalar functions of `formulas` as numba compiles them: polynomials of a degree per dtype."""

from __future__ import annotations

import inspect
from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic, overload

from widelimit.engines.fused.compiling import INLINED
from widelimit.engines.fused.constants import ANGLE, EXP
from widelimit.engines.fused.formulas import (
    angle,
    angle_of_gap,
    angle_ratio,
    exp_polynomial,
    exponential,
    kink_partials,
    scaled,
    select,
)


@overload(angle_ratio, inline="never")
def _angle_ratio(t: Any, cst: Any) -> Any:
    a = ANGLE
    if cst.dtype == numba.float32:

        def single(t: Any, cst: Any) -> Any:
            r = cst[a + 9] * t + cst[a + 8]
            r = (r * t + cst[a + 7]) * t + cst[a + 6]
            r = (r * t + cst[a + 5]) * t + cst[a + 4]
            r = (r * t + cst[a + 3]) * t + cst[a + 2]
            return (r * t + cst[a + 1]) * t + cst[a]

        return inspect.unwrap(single)

    def double(t: Any, cst: Any) -> Any:
        r = cst[a + 18]
        r = (r * t + cst[a + 17]) * t + cst[a + 16]
        r = (r * t + cst[a + 15]) * t + cst[a + 14]
        r = (r * t + cst[a + 13]) * t + cst[a + 12]
        r = (r * t + cst[a + 11]) * t + cst[a + 10]
        r = (r * t + cst[a + 9]) * t + cst[a + 8]
        r = (r * t + cst[a + 7]) * t + cst[a + 6]
        r = (r * t + cst[a + 5]) * t + cst[a + 4]
        r = (r * t + cst[a + 3]) * t + cst[a + 2]
        return (r * t + cst[a + 1]) * t + cst[a]

    return inspect.unwrap(double)


@overload(exp_polynomial, inline="never")
def _exp_polynomial_of(r: Any, cst: Any) -> Any:
    a = EXP
    if cst.dtype == numba.float32:

        def single(r: Any, cst: Any) -> Any:
            y = cst[a + 6]
            y = (y * r + cst[a + 5]) * r + cst[a + 4]
            y = (y * r + cst[a + 3]) * r + cst[a + 2]
            return (y * r + cst[a + 1]) * r + cst[a]

        return inspect.unwrap(single)

    def double(r: Any, cst: Any) -> Any:
        y = cst[a + 12]
        y = (y * r + cst[a + 11]) * r + cst[a + 10]
        y = (y * r + cst[a + 9]) * r + cst[a + 8]
        y = (y * r + cst[a + 7]) * r + cst[a + 6]
        y = (y * r + cst[a + 5]) * r + cst[a + 4]
        y = (y * r + cst[a + 3]) * r + cst[a + 2]
        return (y * r + cst[a + 1]) * r + cst[a]

    return inspect.unwrap(double)


@overload(exponential, jit_options=INLINED)
def _exponential(x: Any, cst: Any) -> Any:
    return inspect.unwrap(exponential)


@overload(angle, jit_options=INLINED)
def _angle(c: Any, u: Any, s: Any, cst: Any) -> Any:
    return inspect.unwrap(angle)


@overload(angle_of_gap, jit_options=INLINED)
def _angle_of_gap(c: Any, gap: Any, first: Any, second: Any, cst: Any) -> Any:
    return inspect.unwrap(angle_of_gap)


@overload(kink_partials, jit_options=INLINED)
def _kink_partials(c: Any, sine: Any, theta: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
    return inspect.unwrap(kink_partials)


@overload(select, jit_options=INLINED)
def _select(condition: Any, yes: Any, no: Any) -> Any:
    def compute(condition: Any, yes: Any, no: Any) -> Any:
        return _selected(condition, yes, no)

    return inspect.unwrap(compute)


def _without_branches(_: Any, condition: Any, yes: Any, no: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return yes(condition, yes, no), generate


_selected: Any = intrinsic(_without_branches)


@overload(scaled, jit_options=INLINED)
def _scaled(y: Any, k: Any) -> Any:
    def compute(y: Any, k: Any) -> Any:
        return y * _power(k)

    return inspect.unwrap(compute)


def _power_of_two(_: Any, k: Any) -> Any:
    """Returns 2^k by its bits."""
    bits, mantissa, bias = (32, 23, 127) if k == numba.float32 else (64, 52, 1023)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(bits)
        exponent = builder.add(builder.fptosi(arguments[0], integer), integer(bias))
        shifted = builder.shl(exponent, integer(mantissa))
        return builder.bitcast(shifted, arguments[0].type)

    return k(k), generate


_power: Any = intrinsic(_power_of_two)
