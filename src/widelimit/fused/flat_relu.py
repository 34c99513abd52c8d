"""The ReLU family on rows of a kernel matrix, from the distances of pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.fused.compiling import loop
from widelimit.fused.constants import BEND, HALF, NEARLY_ONE, ONE, PI, SMALL, ZERO
from widelimit.fused.formulas import angle_ratio


@loop
def relu(
    buf: Any, k: Any, t: Any, g: Any, n: Any, p: Any, cst: Any, first: Any, root: Any, prep: Any,
    firsts: Any, roots: Any,
) -> None:  # fmt: skip
    """The dual of a min(x, 0) + b max(x, 0), from the gap where the two inputs are near.

    With s = sqrt(q), 1 - rho = (G - (s1 - s2)^2 / 2) / (s1 s2) where G < s1 s2. Elsewhere
    correlations of one up to rounding are one, and so are those of minus one.
    """
    one, zero, pi, almost = cst[ONE], cst[ZERO], cst[PI], cst[NEARLY_ONE]
    more = cst[HALF] * (one + (one - almost) + (one - almost))  # half, and its rounding
    slope, kink = p[0], p[1]
    for i in range(n):
        other = prep[roots + i]
        u, s, apart = first * prep[firsts + i], root * other, root - other
        c, gap = buf[k + i], buf[g + i]
        r = c * u
        r = one if (u > zero) & (s <= zero) else r  # two zero inputs have the angle 0
        a = abs(r)
        a = a if a < almost else one
        close = (gap - more * apart * apart) * u
        away = close if gap < s else one - a
        away = away if away > zero else zero
        a = one - away
        sine = np.sqrt(away * (one + a))
        theta = sine * angle_ratio(a, cst)
        near = r > zero
        theta = theta if near else pi - theta
        rho = a if near else -a
        arc = s * kink * (sine - theta * rho)
        buf[t + i] *= slope - kink * theta
        buf[k + i] = slope * c + arc
        buf[g + i] = slope * gap - arc


@loop
def relu_with_area(
    buf: Any, k: Any, t: Any, g: Any, z: Any, h: Any, n: Any, p: Any, cst: Any, first: Any,
    root: Any, prep: Any, firsts: Any, roots: Any,
) -> None:  # fmt: skip
    """The same where a smooth nonlinearity follows, from the area: see `duals.kinked`."""
    one, zero, pi, small = cst[ONE], cst[ZERO], cst[PI], cst[SMALL]
    slope, kink, fold = p[0], p[1], p[2]
    for i in range(n):
        u, s = first * prep[firsts + i], root * prep[roots + i]
        c, area = buf[k + i], buf[z + i]
        r = one if (u > zero) & (s <= zero) else c * u
        a = abs(r)
        a = a if a < one else one
        sine = area * u if s > zero else zero
        acute = sine * angle_ratio(a, cst)
        square = acute * acute
        series = (cst[BEND + 7] * square + cst[BEND + 6]) * square + cst[BEND + 5]
        series = (series * square + cst[BEND + 4]) * square + cst[BEND + 3]
        series = (series * square + cst[BEND + 2]) * square + cst[BEND + 1]
        series = (series * square + cst[BEND]) * square
        bend = kink * (sine * series if acute < small else sine - acute * a)
        near = r > zero
        theta = acute if near else pi - acute
        arc = bend if near else bend + kink * pi * a
        value = slope * r + arc
        below = (not near) & (value < zero)
        rest = slope * (sine * sine / (one + a))
        rest += zero if near else (kink * pi * a if below else fold * a)
        rest += bend if below else -bend
        square = rest * (slope + slope - rest)
        buf[t + i] *= slope - kink * theta
        buf[k + i] = slope * c + s * arc
        buf[g + i] = slope * buf[g + i] - s * arc
        buf[h + i] = slope * buf[h + i] + s * arc
        buf[z + i] = s * np.sqrt(square if square > zero else zero)
