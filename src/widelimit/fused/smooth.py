"""Smooth duals of one pair of positions, from what both kinds of programs know of it."""

from __future__ import annotations

from typing import Any

from widelimit.fused.compiling import loop
from widelimit.fused.constants import INV_2PI, ONE, PI, ZERO
from widelimit.fused.formulas import angle_ratio, decay, exponential


@loop
def gelu_pair(c: Any, x: Any, cosine: Any, u: Any, y: Any, total: Any, cst: Any) -> Any:
    """Returns k, kdot and the bend J = k - c / 2 of x Phi(x).

    With P = (1 + q1) (1 + q2): x = c / sqrt(P), cosine = sqrt(1 - x^2), u = 1 / sqrt(P),
    y = q1 q2 / P and total = 1 / (1 + q1) + 1 / (1 + q2).
    """
    one, zero, pi, scale = cst[ONE], cst[ZERO], cst[PI], cst[INV_2PI]
    a = abs(x)
    a = a if a < one else one
    acute = cosine * angle_ratio(a, cst)
    rest = acute if x > zero else pi - acute  # the angle between the two
    inverse = one / cosine
    v = u * inverse
    bend = x * x * v + y * (cosine / u)
    k = scale * (c * (pi - rest) + bend)
    slope = scale * (pi - rest + x * inverse * (v * v + total))
    return k, slope, scale * (bend - c * rest)


@loop
def sine_pair(c: Any, near: Any, far: Any, p: Any, cst: Any) -> Any:
    """Returns k and kdot of a sin(b x + s): p = 1/2, b^2, a^2 / 2, 2 sin(s)^2, 2 cos(s)^2.

    With e = exp(-b^2 near) - exp(-b^2 far) = e^max (1 - exp(-2 b^2 |c|)), which does not cancel,
    near and far being (q1 + q2) / 2 - c and + c.
    """
    one, zero = cst[ONE], cst[ZERO]
    rate, scale = p[1], p[2]
    least = near if c > zero else far
    larger = exponential(-rate * least, cst)
    less = decay((rate + rate) * abs(c), cst)
    odd = larger * less
    smaller = larger * (one - less)
    apart = smaller if c > zero else larger
    odd = odd if c > zero else -odd
    return scale * (odd + p[3] * apart), scale * rate * (odd + p[4] * apart)
