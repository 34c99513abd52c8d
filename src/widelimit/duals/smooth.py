"""Duals of analytic functions in closed form."""

# Every dual takes a gap, used or not.
# ruff: noqa: ARG001

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from widelimit.duals.base import (
    PI,
    Dual,
    Gap,
    determinant,
    exp_minus_exp,
    gap_of,
    half_distance,
    half_sum,
    like,
    reciprocal,
    sqrt,
)


def erf(
    c: jax.Array,
    q1: jax.Array,
    q2: jax.Array,
    gap: Gap | None,
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


def gelu(c: jax.Array, q1: jax.Array, q2: jax.Array, gap: Gap | None) -> Dual:
    """Returns the dual of `f(x) = x Phi(x)`, Phi the normal distribution function (2002.08517).

    With `P = (1 + q1)(1 + q2)`, `D = P - c^2 = 1 + q1 + q2 + (q1 q2 - c^2)` and `theta =
    atan2(sqrt D, c)`: `k = c / 2 + J`, `J = [(c^2 + q1 q2 D) / (P sqrt D) - c theta] / (2 pi)`, and
    `kdot = 1 / 2 - theta / (2 pi) + c / (2 pi sqrt D) [1 / D + (2 + q1 + q2) / P]`. The gap
    becomes `gap / 2 - J + (J1 + J2) / 2`, with `J` of either input with itself.
    """
    u1, u2 = 1 / (1 + q1), 1 / (1 + q2)
    d = 1 + (q1 + q2) + determinant(c, q1, q2, gap)
    bend, theta = _gelu_bend(c, q1 * u1, q2 * u2, u1 * u2, d)
    root = jnp.sqrt(d)
    kdot = 1 / 2 + (c / root * (1 / d + (u1 + u2)) - theta) / (2 * PI)
    k = c / 2 + bend
    if gap is None:
        return Dual(k, kdot)
    own1, own2 = (_gelu_bend(q, q * u, q * u, u * u, 1 + 2 * q)[0] for q, u in ((q1, u1), (q2, u2)))
    return Dual(k, kdot, gap_of(gap) / 2 - bend + (own1 + own2) / 2)


def _gelu_bend(
    c: jax.Array, y1: jax.Array, y2: jax.Array, u: jax.Array, d: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `J` and `theta` of `gelu`, with `y = q / (1 + q)` and `u = 1 / P`."""
    root = jnp.sqrt(d)
    theta = jnp.arctan2(root, c)
    return (c * u * (c / root) + y1 * y2 * root - c * theta) / (2 * PI), theta


def sin(
    c: jax.Array,
    q1: jax.Array,
    q2: jax.Array,
    gap: Gap | None,
    a: ArrayLike = 1.0,
    b: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
) -> Dual:
    """Returns the dual of a sine.

    `f(x) = a sin(b x + offset)`. With `near = exp(-b^2 gap)` and `far = exp(-b^2 ((q1 + q2) / 2 +
    c))`: `k = a^2 / 2 [near - cos(2 offset) far]`, `kdot = a^2 b^2 / 2 [near + cos(2 offset) far]`.
    Both are written with `near - far`, which is known where the two are nearly equal.
    """
    a, b, offset = like(c, a, b, offset)
    square = b * b
    close = -square * half_distance(c, q1, q2, gap)
    apart = -square * half_sum(c, q1, q2, gap)
    far = jnp.exp(apart)
    odd = exp_minus_exp(close, apart, 2 * square * c)
    k = a * a / 2 * (odd + 2 * jnp.sin(offset) ** 2 * far)
    return Dual(k, a * a * square / 2 * (odd + 2 * jnp.cos(offset) ** 2 * far))


def rbf(
    c: jax.Array, q1: jax.Array, q2: jax.Array, gap: Gap | None, gamma: ArrayLike = 1.0
) -> Dual:
    """Returns the dual of `f(x) = sqrt(2) sin(sqrt(2 gamma) x + pi/4)`: `k = exp(-2 gamma gap)`.

    `gap` is `(q1 + q2) / 2 - c`, so that `k` is the squared-exponential kernel
    `exp(-gamma (q1 + q2 - 2 c))`, and `kdot = 2 gamma k`.
    """
    (gamma,) = like(c, gamma)
    k = jnp.exp(-2 * gamma * half_distance(c, q1, q2, gap))
    return Dual(k, 2 * gamma * k)


def gabor(c: jax.Array, q1: jax.Array, q2: jax.Array, gap: Gap | None) -> Dual:
    """Returns the dual of `f(x) = exp(-x^2) sin x`.

    With `t = q1 + q2`, `d = 4 (q1 q2 - c^2)`, `Z = 1 + 2 t + d` and `e_-+ = exp(-(t + d -+ 2c) /
    (2 Z))`: `k = (e_- - e_+) / (2 sqrt Z)`, `kdot = [(e_- + e_+) S + (e_- - e_+) R] / (2 Z^(5/2))`
    where `S = 1 + 2 t + 4 (c^2 + q1 q2)` and `R = 4 c (d + 3 t + 2)`.
    """
    total = q1 + q2
    v = determinant(c, q1, q2, gap)
    d = 4 * v
    z = 1 + 2 * total + d
    root = jnp.sqrt(z)
    half_close, half_apart = half_distance(c, q1, q2, gap), half_sum(c, q1, q2, gap)
    close, apart = -(half_close + d / 2) / z, -(half_apart + d / 2) / z
    difference = exp_minus_exp(close, apart, 2 * c / z)
    k = difference / (2 * root)
    even = (1 + 2 * total + d + 8 * c * c) / z
    odd = 4 * c * ((d + 3 * total + 2) / z)
    kdot = ((jnp.exp(close) + jnp.exp(apart)) * even + difference * odd) / (2 * z * root)
    return Dual(k, kdot)


def exp(
    c: jax.Array,
    q1: jax.Array,
    q2: jax.Array,
    gap: Gap | None,
    a: ArrayLike = 1.0,
    b: ArrayLike = 1.0,
) -> Dual:
    """Returns the dual of the exponential.

    `f(x) = a exp(b x)`: `k = a^2 exp(b^2 ((q1 + q2) / 2 + c))`, `kdot = b^2 k`. It is a square,
    which overflows no sooner than `k` does.
    """
    a, b = like(c, a, b)
    k = jnp.square(a * jnp.exp(b * b * half_sum(c, q1, q2, gap) / 2))
    return Dual(k, b * b * k)


def gaussian(
    c: jax.Array,
    q1: jax.Array,
    q2: jax.Array,
    gap: Gap | None,
    a: ArrayLike = 1.0,
    b: ArrayLike = -1.0,
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
    c: jax.Array,
    q1: jax.Array,
    q2: jax.Array,
    gap: Gap | None,
    gamma: ArrayLike = 1.0,
    shift: ArrayLike = -1.0,
    clip: bool = False,
) -> Dual:
    """Returns `k = r exp(gamma (rho + shift))`, `r = sqrt(q1 q2)`, `rho = c / r` (1605.06265).

    `kdot = gamma exp(gamma (rho + shift))`. Defined by its kernel, without a nonlinearity. If one
    variance is zero `rho` counts as 0, if both are as 1. `gap` is not used.

    Args:
        c: covariance.
        q1: variance of the first variable.
        q2: variance of the second variable.
        gap: ignored.
        gamma: rate of the exponential.
        shift: added to the correlation.
        clip: keep `rho` within [-1, 1] against rounding; derivatives pass through.
    """
    gamma, shift = like(c, gamma, shift)
    r = sqrt(q1) * sqrt(q2)  # the product may overflow
    rho = jnp.where((q1 == 0) & (q2 == 0), 1, c * reciprocal(r))
    if clip:
        rho = rho + lax.stop_gradient(jnp.where(rho > 1, 1 - rho, jnp.where(rho < -1, -1 - rho, 0)))
    shape = jnp.exp(gamma * (rho + shift))
    return Dual(r * shape, gamma * shape)
