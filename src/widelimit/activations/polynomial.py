"""Duals of polynomials."""

# Every dual takes a gap, even if it does not use it.
# ruff: noqa: ARG001

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from widelimit.activations.base import Dual, constant, like


def _even_power_sum(c: Array, w: Array, degree: int, lead: float) -> Array:
    """Returns `lead sum_i degree! / (l! i!^2 4^i) c^l w^i` over `l + 2 i = degree`, `l, i >= 0`."""
    square = c * c
    total = jnp.full(jnp.broadcast_shapes(c.shape, w.shape), lead, c.dtype)
    power = jnp.ones_like(w)
    for i in range(1, degree // 2 + 1):
        power = power * w
        ways = math.factorial(degree) // (math.factorial(degree - 2 * i) * math.factorial(i) ** 2)
        total = total * square + lead * ways / 4**i * power
    return total * c if degree % 2 else total


def monomial(c: Array, q1: Array, q2: Array, gap: Array | None, degree: int) -> Dual:
    """Returns the dual of `f(x) = x^degree`, for a static integer `degree >= 0`.

    `k = sum_l degree!^2 / (l! ((degree-l)/2)!^2 2^(degree-l)) c^l (q1 q2)^((degree-l)/2)` over
    the `l` of the parity of `degree` (Isserlis); `kdot` is `degree^2` times the same for
    `degree - 1`. `gap` is not used.
    """
    w = q1 * q2
    k = _even_power_sum(c, w, degree, float(math.factorial(degree)))
    if degree == 0:
        return Dual(k, jnp.zeros_like(k))
    return Dual(k, _even_power_sum(c, w, degree - 1, float(degree * math.factorial(degree))))


def hermite(c: Array, q1: Array, q2: Array, gap: Array | None, degree: int) -> Dual:
    """Returns the dual of the normalised probabilists' Hermite polynomial `He_d / sqrt(d!)`.

    It holds for any variance: He_d of a Gaussian of variance q has the coefficients of x^d with
    powers of `q` replaced by powers of `q - 1` (multiplication theorem), so that
    `k = sum_l d! / (l! ((d-l)/2)!^2 2^(d-l)) c^l ((q1-1)(q2-1))^((d-l)/2)`; this is `c^d` at unit
    variances. `kdot` is `d` times the same for `d - 1`. `degree` is a static integer >= 0;
    `gap` is not used.
    """
    w = (q1 - 1) * (q2 - 1)
    k = _even_power_sum(c, w, degree, 1.0)
    if degree == 0:
        return Dual(k, jnp.zeros_like(k))
    return Dual(k, _even_power_sum(c, w, degree - 1, float(degree)))


def polynomial(
    c: Array, q1: Array, q2: Array, gap: Array | None, coefficients: Sequence[ArrayLike]
) -> Dual:
    """Returns the dual of `f(x) = sum_i coefficients[i] x^i`; no coefficients mean `f = 0`.

    `k = sum_l g_l(q1) g_l(q2) c^l`, where `g_l(q) = sum_i coefficients[2i+l] (2i+l)! q^i /
    (2^i i! sqrt(l!))` is the Hermite coefficient of `f` over `q^(l/2)`, without divisions by a
    variance. `kdot` is the derivative in `c`. `gap` is not used.

    Args:
      c: covariance.
      q1: variance of the first variable.
      q2: variance of the second variable.
      gap: ignored.
      coefficients: scalars, lowest power first; they may be traced.
    """
    scalars = like(c, *coefficients)
    k, kdot = constant(0, c, q1, q2), constant(0, c, q1, q2)
    for order in reversed(range(len(scalars))):
        product = _hermite_coefficient(q1, scalars, order) * _hermite_coefficient(
            q2, scalars, order
        )
        k = k * c + product
        if order > 0:
            kdot = kdot * c + order * product
    return Dual(k, kdot)


def _hermite_coefficient(q: Array, scalars: list[Array], order: int) -> Array:
    total = jnp.zeros_like(q)
    for i in reversed(range((len(scalars) - 1 - order) // 2 + 1)):
        power = 2 * i + order
        ways = math.factorial(power) / (2**i * math.factorial(i) * math.sqrt(math.factorial(order)))
        total = total * q + ways * scalars[power]
    return total
