"""Shared parts of duals: their result, the determinant, and functions safe at zero."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

PI = math.pi


class Dual(NamedTuple):
    """Expectations of one nonlinearity over a pair of Gaussian variables.

    Attributes:
      k: `E[f(u) f(v)]`.
      kdot: `E[f'(u) f'(v)]`.
      gap: `(E[f(u)^2] + E[f(v)^2]) / 2 - k` without cancellation, or None if only the difference
        is known.
    """

    k: Float[Array, "..."]
    kdot: Float[Array, "..."]
    gap: Float[Array, "..."] | None = None


def determinant(c: Array, q1: Array, q2: Array, gap: Array | None) -> Array:
    """Returns `q1 q2 - c^2`, at least zero, in the broadcast shape of its arguments.

    With a small `gap` it is computed as `gap (2 m - gap) - ((q1 - q2) / 2)^2`, `m = (q1 + q2) / 2`,
    which is accurate for nearly equal inputs, where `q1 q2 - c^2` consists of rounding errors. With
    a large gap the latter is accurate.

    Rounding can make the value negative, and then it is clipped, but the derivative passes
    through: at identical inputs a smooth dual needs `d(q1 q2 - c^2)/dc = -2c`, not a half of it.
    """
    if gap is None:
        value = q1 * q2 - c * c
    else:
        half = (q1 - q2) / 2
        # Not gap * gap: for a constant gap times a unit XLA would compute the square of the unit.
        close = gap * (q1 + q2 - gap) - half * half
        value = jnp.where(8 * gap < q1 + q2, close, q1 * q2 - c * c)
    return value + lax.stop_gradient(jnp.maximum(-value, 0))


def unit(q: Array) -> Array:
    """Returns a power of two next to `1 / sqrt q`, 1 at zero; without derivatives.

    Products of covariances and variances times the units of both ends do not overflow or underflow,
    and round as before. There are far fewer variances than covariances.
    """
    numbers = jnp.finfo(q.dtype)
    inverse = lax.rsqrt(jnp.maximum(q, 8 * numbers.tiny))
    inverse = lax.reduce_precision(inverse, numbers.nexp, mantissa_bits=0)
    return lax.stop_gradient(jnp.where(q > 0, inverse, 1))


def half_distance(c: Array, q1: Array, q2: Array, gap: Array | None) -> Array:
    """Returns `gap`, or the equal difference `(q1 + q2) / 2 - c` if it is None."""
    return (q1 + q2) / 2 - c if gap is None else gap


def constant(value: ArrayLike, c: Array, q1: Array, q2: Array) -> Array:
    """Returns an array full of `value` in the shape and dtype of a result."""
    return jnp.full(jnp.broadcast_shapes(c.shape, q1.shape, q2.shape), value, c.dtype)


def like(c: Array, *parameters: ArrayLike) -> list[Array]:
    """Returns the parameters as scalars of the dtype of `c`, so that they do not promote it."""
    return [jnp.asarray(p).astype(c.dtype) for p in parameters]


def reciprocal(x: Array) -> Array:
    """Returns `1 / x`, and 0 with zero derivatives where `x` is 0."""
    zero = x == 0
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, x))


def sqrt(x: Array) -> Array:
    """Returns `sqrt(x)`, and 0 for `x <= 0`; all derivatives there are 0 instead of infinite.

    XLA may compute x twice with different rounding, so that it is positive in one test and not in
    the other. `x / sqrt(x)` is then x / 1, which is nearly zero; `sqrt` itself would be 1.
    """
    zero = x <= 0  # False for NaN, so the result is NaN
    return jnp.where(zero, 0, x / jnp.sqrt(jnp.where(zero, 1, x)))


def exp_minus_exp(x: Array, y: Array, difference: Array) -> Array:
    """Returns `e^x - e^y` from `difference = x - y`, accurately for small differences."""
    positive = difference >= 0
    over = -jnp.exp(x) * jnp.expm1(jnp.where(positive, -difference, 0))
    under = jnp.exp(y) * jnp.expm1(jnp.where(positive, 0, difference))
    return jnp.where(positive, over, under)
