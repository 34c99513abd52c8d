"""Duals of piecewise powers: arc-cosine kernels."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from widelimit.activations.base import PI, Dual, constant, determinant, like, reciprocal, sqrt, unit


@jax.custom_jvp
def _angle(v: Array, c: Array) -> Array:
    """Returns `theta = atan2(sqrt v, c)` in [0, pi], the angle between the two inputs.

    It is pi/2 for `v = c = 0`: a zero input has no direction. Derivatives: `c / (2 s (v +
    c^2))` and `-s / (v + c^2)` with `s = sqrt v`; zero where `s` is zero.
    """
    # Reverse mode inside a scan drops custom derivatives of linearised functions, and second
    # derivatives then differentiate this body. atan2 distinguishes 0.0 from -0.0.
    zero = (v == 0) & (c == 0)
    return jnp.arctan2(jnp.where(zero, 1, sqrt(v)), c)


@_angle.defjvp
def _angle_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (v, c), (dv, dc) = primals, tangents
    s = sqrt(v)
    inverse = reciprocal(v + c * c)
    return _angle(v, c), c * reciprocal(2 * s) * inverse * dv - s * inverse * dc


@jax.custom_jvp
def _arc(v: Array, c: Array) -> Array:
    """Returns `F = sqrt v - theta c`, the nonlinear part of the arc-cosine kernel.

    Derivatives: `s / (2 (v + c^2))` and `-theta + c s / (v + c^2)`. Both are bounded, so along
    `v = q1 q2 - c^2` the total `dF/dc` is `-theta` without cancellation of singular terms.
    """
    return sqrt(v) - _angle(v, c) * c


@_arc.defjvp
def _arc_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (v, c), (dv, dc) = primals, tangents
    sine = sqrt(v) * reciprocal(v + c * c)
    return _arc(v, c), sine / 2 * dv + (c * sine - _angle(v, c)) * dc


def _slope_angle(v: Array, c: Array, q1: Array, q2: Array) -> Array:
    """Returns the angle for `kdot`, which is 0 for two zero inputs: these count as identical."""
    return jnp.where((q1 == 0) & (q2 == 0), 0, _angle(v, c))


def _scaled(c: Array, q1: Array, q2: Array, gap: Array | None) -> tuple[Array, Array, Array]:
    """Returns the determinant and `c` in units of both ends, and the factor back."""
    u1, u2 = unit(q1), unit(q2)
    small, back = u1 * u2, (1 / u1) * (1 / u2)
    ratio = c * small
    if gap is None:
        return determinant(ratio, q1 * u1 * u1, q2 * u2 * u2, None), ratio, back
    return determinant(ratio, q1 * small, q2 * small, gap * small), ratio, back


def abrelu(c: Array, q1: Array, q2: Array, gap: Array | None, a: ArrayLike, b: ArrayLike) -> Dual:
    """Returns the dual of `f(x) = a min(x, 0) + b max(x, 0)`, with a gap if `gap` is not None.

    With `A = (a^2 + b^2) / 2`, `g = (a - b)^2 / (2 pi)`, `s = sqrt(q1 q2 - c^2)` and
    `theta = atan2(s, c)`: `k = A c + g (s - theta c)` and `kdot = A - g theta` (the arc-cosine
    kernels of Cho and Saul 2009). If one variance is zero, `theta` is pi/2; if both are, it is 0 in
    `kdot`: a zero input counts as orthogonal to all others but zero, so that `kdot` is positive
    semi-definite.

    Args:
      c: covariance.
      q1: variance of the first variable.
      q2: variance of the second variable.
      gap: half the mean squared distance of the two, or None.
      a: slope for negative inputs.
      b: slope for positive inputs.
    """
    a, b = like(c, a, b)
    mean_slope, kink = (a * a + b * b) / 2, (a - b) ** 2 / (2 * PI)
    v, ratio, scale = _scaled(c, q1, q2, gap)
    arc = scale * kink * _arc(v, ratio)
    return Dual(
        k=mean_slope * c + arc,
        kdot=mean_slope - kink * _slope_angle(v, ratio, q1, q2),
        gap=None if gap is None else mean_slope * gap - arc,
    )


def sign(c: Array, q1: Array, q2: Array, gap: Array | None) -> Dual:
    """Returns the dual of `f(x) = sign x`: `k = 1 - 2 theta / pi`; `kdot` is 0 by convention.

    `theta` is the angle of `abrelu`, and pi/2 at zero variance, since `sign 0 = 0`. The true
    `dk/dc` is `2 / (pi s)`, but the gradients of a finite network vanish.
    """
    v, c, _ = _scaled(c, q1, q2, gap)
    return Dual(1 - 2 / PI * _angle(v, c), constant(0, c, q1, q2))


def rectified_monomial(c: Array, q1: Array, q2: Array, gap: Array | None, degree: int) -> Dual:
    """Returns the dual of `f(x) = x^degree` for `x >= 0`, else 0: the arc-cosine kernels.

    `kdot = degree^2 k_{degree-1}`; for degree 0 it is 0 by convention, as for `sign`. Degree 0
    has `f(0) = 1`: if both variances are zero `k` is 1, if one of them is, 1/2.

    Cho and Saul (2009) compute `k` by repeated derivatives in the angle. Here it is a recursion by
    Stein's lemma without divisions by numbers that may vanish (see `_rectified_moment`).

    Args:
      c: covariance.
      q1: variance of the first variable.
      q2: variance of the second variable.
      gap: half the mean squared distance of the two, or None.
      degree: a static integer, at least 0.
    """
    v, c, scale = _scaled(c, q1, q2, gap)
    if degree == 0:
        at_zero = jnp.where((q1 == 0) & (q2 == 0), 1, 0.5).astype(c.dtype)
        k = jnp.where((q1 == 0) | (q2 == 0), at_zero, _rectified_moment(0, v, c))
        return Dual(k, constant(0, c, q1, q2))
    k = scale**degree * _rectified_moment(degree, v, c)
    if degree == 1:
        return Dual(k, (PI - _slope_angle(v, c, q1, q2)) / (2 * PI))
    return Dual(k, degree**2 * scale ** (degree - 1) * _rectified_moment(degree - 1, v, c))


def _rectified_moments(degree: int, v: Array, c: Array) -> tuple[list[Array], list[Array]]:
    """Returns `M_0, ..., M_degree` and `N_0, ..., N_degree` as functions of `v = q1 q2 - c^2`, `c`.

    `M_k = E[u^k v^k; u, v > 0]` and `N_k = E[u^k v^(k+2); u, v > 0] / q2`, which is symmetric.
    Stein's lemma: `N_k = (k + 1) M_k + k c N_{k-1}`, `M_k = (k - 1) p N_{k-2} + k c M_{k-1}`
    with `p = q1 q2`, started by the closed forms of `M_0`, `M_1`, `N_0`.
    """
    p = v + c * c
    first = (PI - _angle(v, c)) / (2 * PI)
    moments = [first, (_arc(v, c) + PI * c) / (2 * PI)]
    mixed = [first + c * sqrt(v) * reciprocal(p) / (2 * PI)]
    for k in range(1, degree + 1):
        if k > 1:
            moments.append((k - 1) * p * mixed[k - 2] + k * c * moments[k - 1])
        mixed.append((k + 1) * moments[k] + k * c * mixed[k - 1])
    return moments, mixed


def _rectified_moment(degree: int, v: Array, c: Array) -> Array:
    return _smooth_moment(degree, v, c) if degree > 1 else _rectified_moments(1, v, c)[0][degree]


def _smooth_moment_value(degree: int, v: Array, c: Array) -> Array:
    return _rectified_moments(degree, v, c)[0][degree]


def _smooth_moment_jvp(
    degree: int,
    primals: tuple[Array, Array],
    tangents: tuple[Array, Array],
) -> tuple[Array, Array]:
    # dM/dp = d (d - 1) N / 2 and dM/dc = d^2 M_{d-1} at fixed p = v + c^2. Differentiating the
    # recursion itself would leave 1/s terms that cancel each other.
    (v, c), (dv, dc) = primals, tangents
    slope = degree * (degree - 1) / 2 * _rectified_moments(degree - 2, v, c)[1][degree - 2]
    below = degree**2 * _rectified_moment(degree - 1, v, c)
    return _smooth_moment(degree, v, c), slope * dv + (below + 2 * c * slope) * dc


_smooth_moment = jax.custom_jvp(_smooth_moment_value, nondiff_argnums=(0,))
_smooth_moment.defjvp(_smooth_moment_jvp)
