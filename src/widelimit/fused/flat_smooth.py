"""Smooth nonlinearities on rows of a kernel matrix, from the distances of pairs.

Where variances are large they lose no digits: see `flat_marks.py` for G, Z and H, and
`nonlinear.py` for the loops that need none of them. Of every sample three numbers are recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.fused import nonlinear
from widelimit.fused.compiling import loop
from widelimit.fused.constants import HALF, INV_2PI, ONE, ZERO
from widelimit.fused.formulas import angle_ratio, exponential
from widelimit.fused.instructions import ERF, EXP, EXP_NORMALIZED, GAUSSIAN, GELU, SIGN, SIN
from widelimit.fused.smooth import gelu_pair, sine_pair


@loop
def record_flat(kind: Any, careful: Any, q: Any, p: Any, cst: Any) -> Any:
    """Returns the first two numbers of a sample with variance q; the second is sqrt(q) here."""
    first, second = nonlinear.record(kind, q, p, cst)
    if careful and kind not in (SIGN, EXP_NORMALIZED):
        second = np.sqrt(q)
    return first, second


@loop
def careful(
    kind: Any, buf: Any, slots: Any, n: Any, p: Any, cst: Any, own: Any, prep: Any, at: Any
) -> None:
    """Writes K' and T' over K and T.

    Args:
      kind: the nonlinearity.
      buf: scratch.
      slots: places of K, T, G, Z and H.
      n: number of pairs.
      p: parameters of the nonlinearity.
      cst: constants of the dtype.
      own: the numbers of the sample of x1.
      prep: those of x2.
      at: where the first, second and third of the samples of the slice are.
    """
    k, t, g, z, h = slots
    if kind in (ERF, GAUSSIAN):
        _ratio(kind, buf, k, t, z, n, p, cst, own, prep, at)
    elif kind == GELU:
        _gelu(buf, k, t, g, z, n, cst, own, prep, at)
    elif kind == SIGN:
        _sign(buf, k, t, z, n, cst, own, prep, at)
    elif kind == SIN:
        for i in range(n):
            value, slope = sine_pair(buf[k + i], buf[g + i], buf[h + i], p, cst)
            buf[t + i] *= slope
            buf[k + i] = value
    else:
        _exp(buf, k, t, h if kind == EXP else g, n, p, cst)


@loop
def _ratio(
    kind: Any, buf: Any, k: Any, t: Any, z: Any, n: Any, p: Any, cst: Any, own: Any, prep: Any,
    at: Any,
) -> None:  # fmt: skip
    """Erf and Gaussian, of x = t c u with u = 1 / sqrt((1 + t q1) (1 + t q2)).

    1 - x^2 is u1^2 + (1 - u1^2) u2^2 + (t Z u)^2.
    """
    inner = p[0] if kind == ERF else -p[0]
    first, root = own[0], own[1]
    square = first * first
    rest = inner * (root * root) * square  # 1 - u1^2
    firsts = at[0]
    for i in range(n):
        other = prep[firsts + i]
        u, c = first * other, buf[k + i]
        area = inner * buf[z + i] * u
        cosine = np.sqrt(square + rest * (other * other) + area * area)
        v = u / cosine
        if kind == ERF:
            x = inner * c * u
            buf[t + i] *= p[3] * v
            buf[k + i] = p[1] * (x * angle_ratio(cosine, cst)) + p[2]
        else:
            buf[t + i] *= p[3] * c * v * (v * v)
            buf[k + i] = p[2] * v


@loop
def _gelu(
    buf: Any, k: Any, t: Any, g: Any, z: Any, n: Any, cst: Any, own: Any, prep: Any, at: Any
) -> None:
    """X Phi(x), and the gap after it: gap / 2 - J + (J1 + J2) / 2, the third of the numbers."""
    half = cst[HALF]
    first, root, bend = own
    square = first * first
    rest = root * root * square
    firsts, roots, bends = at
    for i in range(n):
        other = prep[firsts + i]
        u, c = first * other, buf[k + i]
        area, y = buf[z + i] * u, root * prep[roots + i] * u
        more = other * other
        cosine = np.sqrt(square + rest * more + area * area)
        value, slope, both = gelu_pair(c, c * u, cosine, u, y * y, square + more, cst)
        buf[t + i] *= slope
        buf[k + i] = value
        buf[g + i] = half * (buf[g + i] + (bend + prep[bends + i])) - both


@loop
def _sign(buf: Any, k: Any, t: Any, z: Any, n: Any, cst: Any, own: Any, prep: Any, at: Any) -> None:
    """2 arcsin(rho) / pi; no derivative."""
    one, zero = cst[ONE], cst[ZERO]
    scale = cst[INV_2PI] * (one + one + one + one)
    first, firsts = own[0], at[0]
    for i in range(n):
        u = first * prep[firsts + i]
        r, sine = buf[k + i] * u, buf[z + i] * abs(u)
        sine = sine if sine < one else one
        value = scale * (r * angle_ratio(sine, cst))
        value = value if value < one else one
        buf[k + i] = value if value > -one else -one
        buf[t + i] = zero


@loop
def _exp(buf: Any, k: Any, t: Any, distance: Any, n: Any, p: Any, cst: Any) -> None:
    """Rbf, of the gap, and Exp, of half the mean squared sum: see `nonlinear.py`."""
    rate, scale, slope = p[1] * p[2], p[3], p[4]
    for i in range(n):
        root = scale * exponential(rate * buf[distance + i], cst)
        value = root * root
        buf[t + i] *= slope * value
        buf[k + i] = value


@loop
def distances_after(
    known: Any, buf: Any, slots: Any, n: Any, cst: Any, own: Any, prep: Any, at: Any, gap: Any,
    rest: Any,
) -> None:  # fmt: skip
    """Writes G, and Z and H if `rest`, after a nonlinearity.

    Args:
      known: whether G is known already, and the third numbers are not variances but J.
      buf: scratch.
      slots: places of K, T, G, Z and H.
      n: number of pairs.
      cst: constants of the dtype.
      own: the numbers of the sample of x1.
      prep: those of x2.
      at: where the numbers of the samples of the slice are.
      gap: whether any are wanted.
      rest: whether Z and H are.
    """
    half, zero = cst[HALF], cst[ZERO]
    eight = cst[ONE] / (half * half * half)
    k, _, g, z, h = slots
    first, roots, thirds = own[2], at[1], at[2]
    if known:
        first += half * own[1] * own[1]
    if not gap:
        return
    if not known:
        for i in range(n):
            value = half * (first + prep[thirds + i]) - buf[k + i]
            buf[g + i] = value if value > zero else zero
    if rest:
        for i in range(n):
            other = prep[thirds + i]
            if known:
                root = prep[roots + i]
                other += half * root * root
            c, near, total, apart = buf[k + i], buf[g + i], first + other, first - other
            close = (total - near) * near - half * half * apart * apart
            value = close if eight * near < total else first * other - c * c
            buf[z + i] = np.sqrt(value if value > zero else zero)
            buf[h + i] = half * total + c
