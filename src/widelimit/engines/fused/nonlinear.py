"""Nonlinearities and normalisations of slices: K' and T' in place, from products over both ends.

Each has three parts. `record` turns the variance q of one position of one image into one or two
numbers, kept per image. `U` and `S` hold, per pair of positions, the product (or the sum) of the
first and of the second of these. The loop turns K and T into K' and T'. The formulas are those of
`widelimit.activations`, arranged so that what depends on one end alone is done once. ReLU, the most
frequent one, takes the numbers of both ends itself, without products in between: see `relu.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.constants import HALF, INV_2PI, NEARLY_ONE, ONE, ZERO
from widelimit.engines.fused.formulas import angle_ratio, exponential
from widelimit.engines.fused.instructions import (
    ERF,
    EXP,
    EXP_NORMALIZED,
    GAUSSIAN,
    GELU,
    NORM,
    RBF,
    RELU,
    SIGN,
    SIN,
)


@loop
def adds(kind: Any) -> Any:
    """Returns whether U is a sum."""
    return kind in (SIN, RBF, EXP)


@loop
def paired(kind: Any) -> Any:
    """Returns whether S is used."""
    return kind in (RELU, GELU, EXP_NORMALIZED)


@loop
def exact(kind: Any) -> Any:
    """Returns whether there is a formula of its own for a position with itself."""
    return kind in (RELU, SIGN, ERF, GAUSSIAN, GELU)


@loop
def record(kind: Any, q: Any, p: Any, cst: Any) -> Any:
    """Returns the two numbers of a position with variance q. `p` holds the layer's parameters."""
    one, zero = cst[ONE], cst[ZERO]
    first, second = zero, zero
    if kind in (RELU, SIGN, EXP_NORMALIZED):
        second = np.sqrt(q)
        first = one / second if q > zero else -one  # U > 0 and S = 0 tell that both are zero
    elif kind == ERF:
        first = one / np.sqrt(one + p[0] * q)
    elif kind in (SIN, RBF, EXP):
        first = p[0] * q
    elif kind == GAUSSIAN:
        first = one - p[0] * q
        first = first if first > zero else np.sqrt(-one)  # the expectation diverges
    elif kind == GELU:
        first, second = one + q, q
    elif kind == NORM:
        first = one / np.sqrt(q + p[0])
    return first, second


@loop
def record_row(
    kind: Any, variances: Any, at: Any, prep: Any, to: Any, plane: Any, n: Any, p: Any, cst: Any
) -> None:
    """Writes the numbers of n positions beside each other; those of the second plane if used."""
    if kind in (RELU, EXP_NORMALIZED):  # one formula, in vectors where the kind is constant
        for i in range(n):
            prep[to + i], prep[to + plane + i] = record(RELU, variances[at + i], p, cst)
        return
    for i in range(n):
        first, second = record(kind, variances[at + i], p, cst)
        prep[to + i] = first
        if paired(kind):
            prep[to + plane + i] = second


@loop
def apply(
    kind: Any, buf: Any, k: Any, t: Any, U: Any, S: Any, mask: Any, n: Any, p: Any, cst: Any
) -> None:
    """Writes K' and T' over K and T; of ReLU see `relu.py`."""
    if kind == ERF:
        _erf(buf, k, t, U, mask, n, p, cst)
    elif kind == SIN:
        _sin(buf, k, t, U, mask, n, p, cst)
    elif kind in (RBF, EXP):
        _exp(buf, k, t, U, mask, n, p, cst)
    elif kind == GAUSSIAN:
        _gaussian(buf, k, t, U, mask, n, p, cst)
    elif kind == GELU:
        _gelu(buf, k, t, U, S, mask, n, cst)
    elif kind == EXP_NORMALIZED:
        _exp_normalized(buf, k, t, U, S, n, p, cst)
    elif kind == NORM:
        _norm(buf, k, t, U, n)
    elif kind == SIGN:
        _sign(buf, k, t, U, mask, n, cst)


@loop
def apply_exact(kind: Any, buf: Any, k: Any, t: Any, mask: Any, n: Any, p: Any, cst: Any) -> None:
    """Writes K' and T' of a position with itself, where the general formula has a kink or cancels.

    In the smooth ones what is 1 - x^2 elsewhere is a product of factors that do not cancel.
    """
    if kind == RELU:
        slope = p[0]
        for i in range(n):
            buf[k + i] *= slope
            buf[t + i] *= slope
    elif kind == SIGN:
        for i in range(n):
            buf[k + i] = cst[ONE] if buf[k + i] > cst[ZERO] else cst[ZERO]
            buf[t + i] = cst[ZERO]
    elif kind == ERF:
        _erf_exact(buf, k, t, mask, n, p, cst)
    elif kind == GAUSSIAN:
        _gaussian_exact(buf, k, t, mask, n, p, cst)
    elif kind == GELU:
        _gelu_exact(buf, k, t, n, cst)


@loop
def _sign(buf: Any, k: Any, t: Any, U: Any, mask: Any, n: Any, cst: Any) -> None:
    """Sign: 2 arcsin(rho) / pi, without cancellation for small rho; no derivative."""
    one, zero, near = cst[ONE], cst[ZERO], cst[NEARLY_ONE]
    scale = cst[INV_2PI] * (one + one + one + one)
    for i in range(n):
        r = buf[k + i] * buf[U + i]
        r = r if r < near else one
        r = r if r > -near else -one
        arcsine = r * angle_ratio(np.sqrt((one - r) * (one + r)), cst)
        value = scale * arcsine if abs(r) < one else r
        buf[k + i] = value if buf[mask + i] > zero else zero
        buf[t + i] = zero


@loop
def _erf(buf: Any, k: Any, t: Any, U: Any, mask: Any, n: Any, p: Any, cst: Any) -> None:
    """Dual of a erf(b x) + c: p = 2 b^2, 2 a^2 / pi, c^2, 4 a^2 b^2 / pi."""
    one, zero = cst[ONE], cst[ZERO]
    inner, outer, shift, slope = p[0], p[1], p[2], p[3]
    for i in range(n):
        u = buf[U + i]
        x = inner * buf[k + i] * u
        a = abs(x)
        a = a if a < one else one
        cosine = np.sqrt((one - a) * (one + a))
        arc = x * angle_ratio(cosine, cst)  # arcsin x, without cancellation for small x
        inside = buf[mask + i] > zero
        buf[t + i] *= slope * u / cosine
        buf[k + i] = outer * arc + shift if inside else zero


@loop
def _erf_exact(buf: Any, k: Any, t: Any, mask: Any, n: Any, p: Any, cst: Any) -> None:
    one, zero = cst[ONE], cst[ZERO]
    for i in range(n):
        q = p[0] * buf[k + i]
        u = one / (one + q)
        x = q * u
        cosine = np.sqrt(u * (one + x))  # u is 1 - x
        inside = buf[mask + i] > zero
        buf[t + i] *= p[3] * u / cosine
        buf[k + i] = p[1] * (x * angle_ratio(cosine, cst)) + p[2] if inside else zero


@loop
def _sin(buf: Any, k: Any, t: Any, U: Any, mask: Any, n: Any, p: Any, cst: Any) -> None:
    """Dual of a sin(b x + c): p = 1/2, b^2, a^2 / 2, cos 2c.

    The exponent is 0 where K is q to the bit.
    """
    rate, scale, phase, zero = p[1], p[2], p[3], cst[ZERO]
    for i in range(n):
        c, u = buf[k + i], buf[U + i]
        near = scale * exponential(rate * (c - u), cst)
        far = scale * phase * exponential(-rate * (c + u), cst)
        inside = buf[mask + i] > zero
        buf[t + i] = buf[t + i] * (rate * (near + far)) if inside else zero
        buf[k + i] = near - far if inside else zero


@loop
def _exp(buf: Any, k: Any, t: Any, U: Any, mask: Any, n: Any, p: Any, cst: Any) -> None:
    """Rbf and Exp: p = 1/2, rate, sign of U, scale, factor of kdot."""
    rate, sign, scale, slope, zero = p[1], p[2], p[3], p[4], cst[ZERO]
    for i in range(n):
        value = scale * exponential(rate * (buf[k + i] + sign * buf[U + i]), cst)
        value = value if buf[mask + i] > zero else zero
        buf[t + i] *= slope * value
        buf[k + i] = value


@loop
def _gaussian(buf: Any, k: Any, t: Any, U: Any, mask: Any, n: Any, p: Any, cst: Any) -> None:
    """Dual of a exp(b x^2): p = 2 b, 4 b^2, a^2, 4 a^2 b^2. NaN where the expectation diverges."""
    square, scale, slope, zero = p[1], p[2], p[3], cst[ZERO]
    for i in range(n):
        c = buf[k + i]
        inside = buf[mask + i] > zero
        determinant = buf[U + i] - square * c * c
        root = np.sqrt(determinant)
        buf[t + i] = buf[t + i] * (slope * c / (determinant * root)) if inside else zero
        buf[k + i] = scale / root if inside else zero


@loop
def _gaussian_exact(buf: Any, k: Any, t: Any, mask: Any, n: Any, p: Any, cst: Any) -> None:
    one, zero = cst[ONE], cst[ZERO]
    for i in range(n):
        q = buf[k + i]
        inside = buf[mask + i] > zero
        determinant = one - (p[0] + p[0]) * q  # (1 - 2 b q)^2 - (2 b q)^2
        root = np.sqrt(determinant if determinant > zero else np.sqrt(-one))
        buf[t + i] = buf[t + i] * (p[3] * q / (determinant * root)) if inside else zero
        buf[k + i] = p[2] / root if inside else zero


@loop
def _gelu(buf: Any, k: Any, t: Any, U: Any, S: Any, mask: Any, n: Any, cst: Any) -> None:
    """Dual of x Phi(x): U = (1 + q1) (1 + q2), S = q1 q2."""
    one, zero, scale = cst[ONE], cst[ZERO], cst[INV_2PI]
    quarter = cst[HALF] * cst[HALF]
    for i in range(n):
        c, P, q = buf[k + i], buf[U + i], buf[S + i]
        rest = P - c * c
        root = np.sqrt(rest)
        x = c / np.sqrt(P)
        a = abs(x)
        a = a if a < one else one
        arc = x * angle_ratio(np.sqrt((one - a) * (one + a)), cst)  # arcsin x
        inside = buf[mask + i] > zero
        value = quarter * c + scale * ((c * c + q * rest) / (P * root) + c * arc)
        slope = quarter + scale * (arc + c / root * (one / rest + (one - q) / P + one))
        buf[t + i] = buf[t + i] * slope if inside else zero
        buf[k + i] = value if inside else zero


@loop
def _gelu_exact(buf: Any, k: Any, t: Any, n: Any, cst: Any) -> None:
    one, scale = cst[ONE], cst[INV_2PI]
    quarter = cst[HALF] * cst[HALF]
    for i in range(n):
        q = buf[k + i]
        p, rest = one + q, one + q + q  # rest is p^2 - q^2
        root, x = np.sqrt(rest), q / p
        arc = x * angle_ratio(root / p, cst)
        buf[k + i] = quarter * q + scale * (x * x * (one / root + root) + q * arc)
        slope = arc + x / root * (p / rest + one + one)
        buf[t + i] *= quarter + scale * slope


@loop
def _exp_normalized(buf: Any, k: Any, t: Any, U: Any, S: Any, n: Any, p: Any, cst: Any) -> None:
    """Dual sqrt(q1 q2) exp(gamma (rho + shift)): p = gamma, shift, bound of |rho|.

    No mask: K and S are zero outside, and T is zero there already. Two zero inputs correlate.
    """
    rate, shift, bound = p[0], p[1], p[2]
    one, zero = cst[ONE], cst[ZERO]
    for i in range(n):
        u, s = buf[U + i], buf[S + i]
        r = buf[k + i] * u
        r = one if (u > zero) & (s <= zero) else r
        r = r if r < bound else bound
        r = r if r > -bound else -bound
        value = exponential(rate * (r + shift), cst)
        buf[t + i] *= rate * value
        buf[k + i] = s * value


@loop
def _norm(buf: Any, k: Any, t: Any, U: Any, n: Any) -> None:
    """Normalisation by the square roots of both variances."""
    for i in range(n):
        u = buf[U + i]
        buf[k + i] *= u
        buf[t + i] *= u
