"""Scalar functions for formulas of activations; `compiled_formulas` tells numba what they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.constants import (
    HALF,
    INFINITY,
    LN2_HIGH,
    LN2_LOW,
    LOG2E,
    MAX_EXP,
    MIN_EXP,
    NEARLY_ONE,
    ONE,
    PI,
    ZERO,
)


def angle_ratio(t: Any, cst: Any) -> Any:
    """Returns arccos(t) / sqrt(1 - t^2) for t in [0, 1]."""
    raise NotImplementedError("expected to be compiled")


def exp_polynomial(r: Any, cst: Any) -> Any:
    """Returns exp(r) for |r| <= ln 2 / 2."""
    raise NotImplementedError("expected to be compiled")


def scaled(y: Any, k: Any) -> Any:
    """Returns y 2^k, for whole k of a float and results that are normal numbers."""
    raise NotImplementedError("expected to be compiled")


def select(condition: Any, yes: Any, no: Any) -> Any:
    """Returns one of two numbers of one type, both computed: loops stay free of branches."""
    return yes if condition else no


def exponential(x: Any, cst: Any) -> Any:
    """Returns exp(x); infinity where it overflows, 0 where it underflows, NaN for NaN."""
    bounded = x if x > cst[MIN_EXP] else cst[MIN_EXP]  # NaN becomes the bound: k must be finite
    bounded = bounded if bounded < cst[MAX_EXP] else cst[MAX_EXP]
    k = np.floor(bounded * cst[LOG2E] + cst[HALF])
    r = (bounded - k * cst[LN2_HIGH]) - k * cst[LN2_LOW]
    y = scaled(exp_polynomial(r, cst), k)
    y = select(x < cst[MIN_EXP], cst[ZERO], y)
    y = select(x > cst[MAX_EXP], cst[INFINITY], y)
    return select(x == x, y, x)


def angle(c: Any, u: Any, s: Any, cst: Any) -> Any:
    """Returns sine and angle of two vectors. Two zero ones have the angle 0.

    Args:
      c: covariance.
      u: product of both 1 / sqrt(q), which is -1 for a zero vector.
      s: product of both sqrt(q).
      cst: constants.
    """
    one, zero, pi, near = cst[ONE], cst[ZERO], cst[PI], cst[NEARLY_ONE]
    r = c * u
    r = one if (u > zero) & (s <= zero) else r
    a = abs(r)
    a = a if a < near else one
    sine = np.sqrt((one - a) * (one + a))
    theta = sine * angle_ratio(a, cst)
    return sine, pi - theta if r < zero else theta


def kink_partials(c: Any, sine: Any, theta: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
    """Returns the partials of K' = p0 c + p1 (area - theta c) and of its factor p0 - p1 theta.

    The area is sqrt(q1 q2 - c^2). The angle has derivative 0 where the area is 0.
    """
    one, zero, half = cst[ONE], cst[ZERO], cst[HALF]
    area = (first[1] * second[1]) * sine
    bends = area > zero
    curve = select(bends, p[1] / select(bends, area, one), zero)
    half1, half2 = half * first[0] * first[0], half * second[0] * second[0]
    lift, turn = p[1] * area, -(c * curve)
    return p[0] - p[1] * theta, lift * half1, lift * half2, curve, turn * half1, turn * half2


def angle_of_gap(c: Any, gap: Any, first: Any, second: Any, cst: Any) -> Any:
    """Returns sine, angle and cosine of two vectors from the gap (q1 + q2) / 2 - c.

    With s = sqrt(q), 1 - rho = (gap - (s1 - s2)^2 / 2) / (s1 s2): cancels at large gaps. `first`
    and `second` are (1 / sqrt(q), sqrt(q)) at both ends.
    """
    one, zero, half, pi = cst[ONE], cst[ZERO], cst[HALF], cst[PI]
    u, s, apart = first[0] * second[0], first[1] * second[1], first[1] - second[1]
    r = c * u
    away = (gap - half * apart * apart) * u
    away = away if gap * u < one else one - r
    zeros = (u > zero) & (s <= zero)  # two zero inputs have the angle 0
    r, away = one if zeros else r, zero if zeros else away
    near = r > zero
    away = away if near else one + r
    away = away if away > zero else zero
    a = one - away
    sine = np.sqrt(away * (one + a))
    theta = sine * angle_ratio(a, cst)
    return sine, theta if near else pi - theta, a if near else -a
