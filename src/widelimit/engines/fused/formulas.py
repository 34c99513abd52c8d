"""Scalar functions of the compiled loops: polynomials of a fixed degree per dtype."""

from __future__ import annotations

import inspect
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.constants import (
    ANGLE,
    EXP,
    HALF,
    INFINITY,
    LN2_HIGH,
    LN2_LOW,
    LOG2E,
    MAX_EXP,
    MIN_EXP,
    POWER,
    ZERO,
)


def angle_ratio(t: Any, cst: Any) -> Any:
    """Returns arccos(t) / sqrt(1 - t^2) for t in [0, 1]."""
    raise NotImplementedError("expected to be compiled")


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


def _exp_polynomial(r: Any, cst: Any) -> Any:
    """Returns exp(r) for |r| <= ln 2 / 2."""
    raise NotImplementedError("expected to be compiled")


@overload(_exp_polynomial, inline="never")
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


@loop
def exponential(x: Any, cst: Any) -> Any:
    """Returns exp(x); infinity where it overflows, 0 where it underflows, NaN for NaN."""
    bounded = x if x > cst[MIN_EXP] else cst[MIN_EXP]  # NaN becomes the bound: k must be finite
    bounded = bounded if bounded < cst[MAX_EXP] else cst[MAX_EXP]
    k = np.floor(bounded * cst[LOG2E] + cst[HALF])
    r = (bounded - k * cst[LN2_HIGH]) - k * cst[LN2_LOW]
    middle = POWER + (len(cst) - POWER) // 2
    y = _exp_polynomial(r, cst) * cst[np.uint64(np.int64(k) + middle)]
    y = cst[ZERO] if x < cst[MIN_EXP] else y
    y = cst[INFINITY] if x > cst[MAX_EXP] else y
    return y if x == x else x
