"""Gradient descent in steps, with momentum and weight decay, as functions of an eigenvalue.

Gradient descent on 0.5 mean((f - y)^2) + (w / 2) |theta - theta(0)|^2 over N targets, for f linear
in theta with kernel K, moves along each eigenvector of K independently. Let l be an eigenvalue of
Kr = K + N w I and x = rate l / N. The distance e of the parameters from their limit, and the
velocity u of the optimiser times the rate, take the step

    u' = m u + x e,    e' = e - u'           (heavy ball)
    u' = m u + x e,    e' = e - x e - m u'   (Nesterov)

or (e', u') = M(x) (e, u), from u = 0. After n steps e is p_n(x) = (M^n)[0, 0] times its initial
value, and residuals change outputs through the response (1 - p_n) / l. Powers are taken by
squaring, in terms of A = 1 - M^n: nothing cancels where x is small. Everything here is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from widelimit.predict.spectral import RESPONSE, SpectralFunction
from widelimit.tracing.varying import varying_like
from widelimit.typing import Scalar

# Beyond it float64 cannot distinguish odd numbers of steps from even ones.
BITS = 53
MOST_STEPS = 2.0**BITS

# Eigenvalues whose ratio is below it are far apart. Products are stable down to a ratio of 1 / 2:
# b tends to 1 / x, and rounding errors change by a factor of 1 - high / low at every squaring.
_APART = 0.7


class Descent(NamedTuple):
    """The optimiser, without its learning rate.

    Attributes:
      momentum: m.
      nesterov: 1 for the gradient after the step of the momentum (Nesterov), 0 for the heavy ball.
    """

    momentum: Any
    nesterov: Any

    def stable_below(self) -> Scalar:
        """Returns the x = rate l / N at which training stops converging, for m < 1."""
        return 2 * (1 + self.momentum) / (1 + 2 * self.nesterov * self.momentum)


class Progress(NamedTuple):
    """Number and kind of steps of training: the parameters of functions of an eigenvalue.

    Attributes:
      steps: numbers of steps n [m], infinity among them.
      size: rate / N, a scalar.
      descent: the optimiser.
    """

    steps: jax.Array
    size: jax.Array
    descent: Descent


class _Divided(NamedTuple):
    """A function of x at two places and its divided difference between them; they multiply."""

    first: jax.Array
    second: jax.Array
    between: jax.Array

    def __add__(self, other: Any) -> _Divided:
        return jax.tree.map(jnp.add, self, other)

    def __sub__(self, other: Any) -> _Divided:
        return jax.tree.map(jnp.subtract, self, other)

    def __mul__(self, other: Any) -> _Divided:
        between = self.first * other.between + self.between * other.second
        return _Divided(self.first * other.first, self.second * other.second, between)


_Entry: TypeAlias = jax.Array | _Divided


class _Steps(NamedTuple):
    """A = 1 - M^n for some n, as [[x b, u], [-x c, v]]; entries are arrays or `_Divided`."""

    b: Any
    c: Any
    u: Any
    v: Any

    def then(self, other: _Steps, x: _Entry) -> _Steps:
        """Returns A of the sum of both numbers of steps, A + A' - A A'."""
        xb, xc = x * self.b, x * self.c
        return _Steps(
            self.b + other.b - xb * other.b + self.u * other.c,
            self.c + other.c - xc * other.b - self.v * other.c,
            self.u + other.u - xb * other.u - self.u * other.v,
            self.v + other.v + xc * other.u - self.v * other.v,
        )


_Carry: TypeAlias = tuple[_Steps, _Steps, jax.Array]


def _one_step(descent: Descent, constant: Callable[[jax.Array], _Entry]) -> _Steps:
    m, ahead = descent
    entries = 1 + ahead * m, jnp.ones_like(m), m * (1 - ahead + ahead * m), 1 - m
    return _Steps(*map(constant, entries))


def _after(step: _Steps, x: _Entry, count: jax.Array) -> _Steps:
    """Returns A after `count` steps, an array of finite numbers that broadcasts with entries."""

    def choose(condition: jax.Array, yes: _Steps, no: _Steps) -> _Steps:
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

    def bit(carry: _Carry, _: None) -> tuple[_Carry, None]:
        total, power, left = carry
        total = choose(left % 2 == 1, total.then(power, x), total)
        left = jnp.floor(left / 2)
        # Powers that are not needed are not computed: they may overflow.
        power = choose(left > 0, power.then(power, x), power)
        return (total, power, left), None

    zero = varying_like(jax.tree.map(jnp.zeros_like, step), x, count, step)
    start = zero, varying_like(step, zero), count
    return jax.lax.scan(bit, start, length=BITS)[0][0]


def _finite(progress: Progress) -> jax.Array:
    """Returns numbers of steps [m], 0 where they are infinite."""
    return jax.lax.stop_gradient(jnp.where(jnp.isinf(progress.steps), 0.0, progress.steps))


@jax.jit
def _learnt(l: jax.Array, progress: Progress) -> jax.Array:
    """Returns (1 - p_n) / x [m, r] after finite numbers of steps, also at x = 0."""
    count = _finite(progress)[:, None]
    x, zero = (progress.size * l)[None, :], jnp.zeros((count.shape[0], l.shape[0]), l.dtype)
    step = _one_step(progress.descent, lambda entry: entry + zero)
    learnt = _after(step, x, count).b
    is_number_of_steps = (count >= 0) & (count <= MOST_STEPS) & (count == jnp.floor(count))
    return jnp.where(is_number_of_steps, learnt, jnp.nan)


@jax.jit
def _learnt_divided(l: jax.Array, progress: Progress) -> tuple[jax.Array, jax.Array]:
    """Returns the divided differences of p_n and (1 - p_n) / x at all pairs, for finite n."""
    rows, r = progress.steps.shape[0], l.shape[0]
    shapes = (rows, r, 1), (rows, 1, r), (rows, r, r)
    first, second, between = (jnp.zeros(shape, l.dtype) for shape in shapes)

    def constant(entry: jax.Array) -> _Divided:
        return _Divided(entry + first, entry + second, between)

    scaled = progress.size * l
    one = jnp.ones((1, 1, 1), l.dtype)
    x = _Divided(scaled[None, :, None], scaled[None, None, :], one)
    count = _finite(progress)[:, None, None]
    learnt = _after(_one_step(progress.descent, constant), x, count).b
    # Far apart, after many steps, nothing cancels in the quotient itself, where products of powers
    # of two very different matrices would multiply rounding errors at every squaring.
    low, high = jnp.minimum(x.first, x.second), jnp.maximum(x.first, x.second)
    patience = jnp.minimum(count, 1 / (1 - progress.descent.momentum))
    apart = (low < _APART * high) & (count * patience * high > 1)
    value, gap = _learnt(l, progress), jnp.where(apart, x.first - x.second, 1.0)

    def divided(value: jax.Array, between: jax.Array) -> jax.Array:
        return jnp.where(apart, (value[:, :, None] - value[:, None, :]) / gap, between)

    left = divided(-scaled[None, :] * value, -(x * learnt).between)
    return left, divided(value, learnt.between)


def _endless(l: jax.Array, progress: Progress) -> tuple[jax.Array, jax.Array]:
    """Returns whether n is infinite [m, 1], and 1 where that converges, else NaN [1, r]."""
    converges = (progress.size * l < progress.descent.stable_below()) & (
        progress.descent.momentum < 1
    )
    return jnp.isinf(progress.steps)[:, None], jnp.where(converges, 1.0, jnp.nan)[None, :]


def _left_value(l: jax.Array, progress: Progress) -> jax.Array:
    left = 1 - progress.size * l[None, :] * _learnt(l, progress)
    endless, converged = _endless(l, progress)
    left = jnp.where(endless, 0.0 * converged, left)
    return jnp.where(l[None, :] == 0, 1.0, left)


def _response_value(l: jax.Array, progress: Progress) -> jax.Array:
    endless, converged = _endless(l, progress)
    inverse = converged / jnp.where(l == 0, 1.0, l)[None, :]
    response = jnp.where(endless, inverse, progress.size * _learnt(l, progress))
    return jnp.where(l[None, :] == 0, 0.0, response)


def _left_divided(l: jax.Array, progress: Progress) -> jax.Array:
    left, _ = _learnt_divided(l, progress)
    endless, converged = _endless(l, progress)
    return jnp.where(endless[..., None], 0.0 * converged[..., None], progress.size * left)


def _response_divided(l: jax.Array, progress: Progress) -> jax.Array:
    _, learnt = _learnt_divided(l, progress)
    response = progress.size**2 * learnt
    # A frozen eigenvalue (l = 0) has response 0, as in `spectral`.
    value = _response_value(l, progress)
    low = jnp.minimum(l[:, None], l[None, :])[None]
    high = jnp.maximum(l[:, None], l[None, :])[None]
    total = value[:, :, None] + value[:, None, :]
    frozen = jnp.where(high == 0, 0.0, total / jnp.where(high == 0, 1.0, high))
    endless, converged = _endless(l, progress)
    limit = RESPONSE.divided(l, jnp.where(jnp.isinf(progress.steps), jnp.inf, 0.0))
    limit = limit * converged[..., None]
    return jnp.where(endless[..., None], limit, jnp.where(low == 0, frozen, response))


def _slope(
    value: Callable[[jax.Array, Progress], jax.Array],
) -> Callable[[jax.Array, Progress, Progress], jax.Array]:
    """Returns the derivative of a value along a change of rate or momentum."""

    def slope(l: jax.Array, progress: Progress, change: Progress) -> jax.Array:
        return jax.jvp(lambda p: value(l, p), (progress,), (change,))[1]

    return slope


# p_n, the remaining fraction of the distance of parameters from their limit.
LEFT = SpectralFunction(_left_value, _left_divided, _slope(_left_value))
# (1 - p_n) / l, the response of outputs to residuals.
STEPPED_RESPONSE = SpectralFunction(_response_value, _response_divided, _slope(_response_value))
