"""Duals of analytic functions in closed form."""

# Every dual takes a gap, even if it does not use it.
# ruff: noqa: ARG001

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from widelimit.activations.base import (
    PI,
    Dual,
    determinant,
    exp_minus_exp,
    half_distance,
    like,
    reciprocal,
    sqrt,
)


def erf(
    c: Array,
    q1: Array,
    q2: Array,
    gap: Array | None,
    a: ArrayLike = 1.0,
    b: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
) -> Dual:
    """Returns the dual of the scaled error function.

    `f(x) = a erf(b x) + offset` (Williams 1997). With `D = 1 + 2 b^2 (q1 + q2) + 4 b^4 (q1 q2 -
    c^2)`: `k = a^2 (2 / pi) atan2(2 b^2 c, sqrt D) + offset^2`, `kdot = a^2 b^2 (4 / pi) / sqrt D`.
    """
    a, b, offset = like(c, a, b, offset)
    twice = 2 * b * b
    root = jnp.sqrt(1 + twice * (q1 + q2) + twice * twice * determinant(c, q1, q2, gap))
    k = a * a * (2 / PI) * jnp.arctan2(twice * c, root) + offset * offset
    return Dual(k, a * a * twice * (2 / PI) / root)


def gelu(c: Array, q1: Array, q2: Array, gap: Array | None) -> Dual:
    """Returns the dual of `f(x) = x Phi(x)`, Phi the normal distribution function (2002.08517).

    With `P = (1 + q1)(1 + q2)`, `D = P - c^2 = 1 + q1 + q2 + (q1 q2 - c^2)`, `phi = atan2(c,
    sqrt D)`: `k = c / 4 + [(c^2 + q1 q2 D) / (P sqrt D) + c phi] / (2 pi)` and
    `kdot = 1 / 4 + phi / (2 pi) + c / (2 pi sqrt D) [1 / D + (2 + q1 + q2) / P]`.
    """
    one = (1 + q1) * (1 + q2)
    total = q1 + q2
    d = 1 + total + determinant(c, q1, q2, gap)
    root = jnp.sqrt(d)
    phi = jnp.arctan2(c, root)
    bend = c * c / (one * root) + q1 / (1 + q1) * (q2 / (1 + q2)) * root
    k = c / 4 + (bend + c * phi) / (2 * PI)
    kdot = 1 / 4 + (phi + c / root * (1 / d + (2 + total) / one)) / (2 * PI)
    return Dual(k, kdot)


def sin(
    c: Array,
    q1: Array,
    q2: Array,
    gap: Array | None,
    a: ArrayLike = 1.0,
    b: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
) -> Dual:
    """Returns the dual of a sine.

    `f(x) = a sin(b x + offset)`. With `near = exp(-b^2 gap)` and `far = exp(-b^2 ((q1 + q2) / 2 +
    c))`: `k = a^2 / 2 [near - cos(2 offset) far]`, `kdot = a^2 b^2 / 2 [near + cos(2 offset) far]`.
    """
    a, b, offset = like(c, a, b, offset)
    square = b * b
    close = -square * half_distance(c, q1, q2, gap)
    apart = -square * ((q1 + q2) / 2 + c)
    far = jnp.exp(apart)
    odd = exp_minus_exp(close, apart, 2 * square * c)
    k = a * a / 2 * (odd + 2 * jnp.sin(offset) ** 2 * far)
    return Dual(k, a * a * square / 2 * (jnp.exp(close) + jnp.cos(2 * offset) * far))


def rbf(c: Array, q1: Array, q2: Array, gap: Array | None, gamma: ArrayLike = 1.0) -> Dual:
    """Returns the dual of `f(x) = sqrt(2) sin(sqrt(2 gamma) x + pi/4)`: `k = exp(-2 gamma gap)`.

    `gap` is `(q1 + q2) / 2 - c`, so that `k` is the squared-exponential kernel
    `exp(-gamma (q1 + q2 - 2 c))`, and `kdot = 2 gamma k`.
    """
    (gamma,) = like(c, gamma)
    k = jnp.exp(-2 * gamma * half_distance(c, q1, q2, gap))
    return Dual(k, 2 * gamma * k)


def gabor(c: Array, q1: Array, q2: Array, gap: Array | None) -> Dual:
    """Returns the dual of `f(x) = exp(-x^2) sin x`.

    With `t = q1 + q2`, `d = 4 (q1 q2 - c^2)`, `Z = 1 + 2 t + d` and `e_-+ = exp(-(t + d -+ 2c) /
    (2 Z))`: `k = (e_- - e_+) / (2 sqrt Z)`, `kdot = [e_+ (S - R) + e_- (S + R)] / (2 Z^(5/2))`
    where `S = 1 + 2 t + 4 (c^2 + q1 q2)` and `R = 4 c (d + 3 t + 2)`.
    """
    total = q1 + q2
    v = determinant(c, q1, q2, gap)
    d = 4 * v
    z = 1 + 2 * total + d
    root = jnp.sqrt(z)
    close, apart = -(total + d - 2 * c) / (2 * z), -(total + d + 2 * c) / (2 * z)
    k = exp_minus_exp(close, apart, 2 * c / z) / (2 * root)
    even = (1 + 2 * total + d + 8 * c * c) / z
    odd = 4 * c * ((d + 3 * total + 2) / z)
    kdot = (jnp.exp(apart) * (even - odd) + jnp.exp(close) * (even + odd)) / (2 * z * root)
    return Dual(k, kdot)


def exp(
    c: Array, q1: Array, q2: Array, gap: Array | None, a: ArrayLike = 1.0, b: ArrayLike = 1.0
) -> Dual:
    """Returns the dual of the exponential.

    `f(x) = a exp(b x)`: `k = a^2 exp(b^2 ((q1 + q2) / 2 + c))`, `kdot = b^2 k`. `gap` is not used.
    """
    a, b = like(c, a, b)
    k = a * a * jnp.exp(b * b * ((q1 + q2) / 2 + c))
    return Dual(k, b * b * k)


def gaussian(
    c: Array, q1: Array, q2: Array, gap: Array | None, a: ArrayLike = 1.0, b: ArrayLike = -1.0
) -> Dual:
    """Returns the dual of `f(x) = a exp(b x^2)`, NaN where the expectation diverges.

    With `D = 1 - 2 b (q1 + q2) + 4 b^2 (q1 q2 - c^2)`: `k = a^2 / sqrt D` and
    `kdot = 4 a^2 b^2 c / D^(3/2)`. For `b > 0` this holds while `1 - 2 b q1`, `1 - 2 b q2` and
    `D` are positive; beyond, the integral is infinite.
    """
    a, b = like(c, a, b)
    d = 1 - 2 * b * (q1 + q2) + 4 * b * b * determinant(c, q1, q2, gap)
    finite = (1 - 2 * b * q1 > 0) & (1 - 2 * b * q2 > 0) & (d > 0)
    root = jnp.sqrt(jnp.where(finite, d, jnp.nan))
    k = a * a / root
    return Dual(k, 4 * b * b * c * k / (root * root))


def exp_normalized(
    c: Array,
    q1: Array,
    q2: Array,
    gap: Array | None,
    gamma: ArrayLike = 1.0,
    shift: ArrayLike = -1.0,
    clip: bool = False,
) -> Dual:
    """Returns `k = r exp(gamma (rho + shift))`, `r = sqrt(q1 q2)`, `rho = c / r` (1605.06265).

    `kdot = gamma exp(gamma (rho + shift))`. It is defined by its kernel, without a nonlinearity. If
    one variance is zero `rho` counts as 0, if both are zero as 1. `gap` is not used.

    Args:
      c: covariance.
      q1: variance of the first variable.
      q2: variance of the second variable.
      gap: ignored.
      gamma: rate of the exponential.
      shift: added to the correlation.
      clip: whether to clip `rho` to [-1, 1] against rounding; derivatives pass through.
    """
    gamma, shift = like(c, gamma, shift)
    r = sqrt(q1 * q2)
    rho = jnp.where((q1 == 0) & (q2 == 0), 1, c * reciprocal(r))
    if clip:
        rho = rho + lax.stop_gradient(jnp.where(rho > 1, 1 - rho, jnp.where(rho < -1, -1 - rho, 0)))
    shape = jnp.exp(gamma * (rho + shift))
    return Dual(r * shape, gamma * shape)
