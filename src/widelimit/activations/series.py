"""Duals of any nonlinearity by its Hermite series (Mehler's formula).

With `h_l` the normalised probabilists' Hermite polynomials and `rho = c / sqrt(q1 q2)`,

    E[f(u) f(v)] = sum_l a_l(q1) a_l(q2) rho^l,        a_l(q) = E[f(sqrt(q) z) h_l(z)],

and `E[f'(u) f'(v)]` is the same sum over the coefficients of `f'`. The coefficients are
one-dimensional integrals: `features` computes them once per variance, and `series` combines two
variances and a covariance at one multiply-add per term. The result is symmetric and positive
semi-definite by construction.

**The tail.** Degrees above `L` of one parity carry `r^2 = E[f^2] - sum a_l^2` of the variance
and `e^2` of that of `f'`, both known from one-dimensional integrals. They are represented by two
degrees, `L + 1` (or `L + 2`) and about `8 L`, with the weights that reproduce `r^2` and `e^2`.
So `k` is exact at rho = 1 and rho = -1, `kdot` too while the mean degree of the tail is below
`8 L`, and both are positive semi-definite.

**Accuracy** at the default order, measured against quadrature in two dimensions for rho in
[-1, 1]: largest error of `k` relative to its value at rho = 1, and after a slash that of `kdot`.

    ==========  ===============  ===============  ===============  ===============
    f           variances <= 4   10               25               100
    ==========  ===============  ===============  ===============  ===============
    tanh        1e-11 / 3e-9     2e-8 / 5e-6      3e-6 / 5e-4      1e-4 / 2e-2
    sigmoid     2e-15 / 3e-15    2e-14 / 2e-11    3e-10 / 2e-7     1e-6 / 5e-4
    softplus    1e-15 / 2e-15    1e-14 / 1e-12    1e-12 / 6e-10    4e-9 / 2e-6
    silu        2e-15 / 2e-15    2e-14 / 6e-12    9e-11 / 4e-8     1e-7 / 6e-5
    mish        3e-15 / 3e-14    5e-12 / 2e-9     3e-9 / 2e-6      4e-7 / 3e-4
    elu         2e-8 / 1e-5      5e-8 / 3e-5      1e-7 / 8e-5      4e-7 / 3e-4
    selu        5e-7 / 3e-4      6e-7 / 3e-4      7e-7 / 4e-4      9e-7 / 5e-4
    ReLU        2e-6 / 9e-4      2e-6 / 9e-4      2e-6 / 9e-4      2e-6 / 9e-4
    gelu        1e-15 / 1e-15    1e-13 / 5e-11    5e-9 / 2e-6      1e-6 / 7e-4
    erf         2e-15 / 2e-13    3e-9 / 6e-7      3e-6 / 5e-4      2e-4 / 2e-2
    ==========  ===============  ===============  ===============  ===============

The error grows with the steepness of `f` on the scale `sqrt(q)`, and is largest beyond
|rho| = 0.99. At rho = 1 and -1 of equal variances up to 1e8 both are accurate to 1e-11. Otherwise,
for variances above 100, a result with an error above 1e-8 (1e-5 in float32) of the value at
rho = 1 is NaN, and `kernel_fn` refuses it: that is so for about |rho| > 0.9, and always for
functions with narrow features far from 0, such as sin. A kink at 0 is integrated exactly, but its
coefficients decay slowly (`selu`, a ReLU); a kink or a jump elsewhere also costs accuracy in the
integrals.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from widelimit.activations import Dual
from widelimit.activations.base import sqrt
from widelimit.tracing.varying import varying_like

ORDER = 192
"""Least number of terms of a series."""

_CHUNK = 16  # terms unrolled in one step of the loop
TAIL = 8  # ratio of the two degrees that represent the tail
_BATCH = 1024  # number of variances whose integrals are in memory at once

FLOOR = 1e-10
"""Smaller variances are integrated as if they had this value. It balances the error of the value,
O(FLOOR), against that of its derivatives, which divide by sqrt(q)."""

# Fractions of the variance that count as rounding error.
_TAIL_NOISE = 1e-14
_JUMP_NOISE = 1e-9

# Panels of the integrals: short ones next to 0, for features that are narrow at large q.
_SHORT = (0.0, 2e-5, 6e-5, 2e-4, 6e-4, 2e-3, 6e-3, 0.018, 0.05, 0.15)
_SHORT_NODES = 16
# Above this variance, results whose error may exceed these fractions of the value at rho = 1 (in
# float32, in float64) are NaN.
_LARGE = 100.0
_TOLERANCE = (1e-5, 1e-8)
_FINE = 1e-2  # and so are integrals with more than this fraction in `_finest`
_EDGES = (0.15, 0.4, 1.0, 2.2, 3.8, 5.6, 7.6, 9.6, 11.6, 13.6)


class Features(NamedTuple):
    """The features of a variance for a series. Leading axes are listed; axes of variances follow.

    Attributes:
      mean: `E[f]`, no leading axis.
      variance: `E[f^2]`, no leading axis.
      root: square root of the variance, kept away from zero; no leading axis.
      lift: square root of the amount added to the variance for that; no leading axis.
      values: `[L]`, `a_(l+1) / root`.
      slopes: `[L]`, the coefficients of `f'`.
      value_tail: `[4]`, the coefficients of `f` at the degrees of `_tail_degrees`.
      slope_tail: `[4]`, the coefficients of `f'` at one degree less.
    """

    mean: Array
    variance: Array
    root: Array
    lift: Array
    values: Array
    slopes: Array
    value_tail: Array
    slope_tail: Array


def features(
    fn: Callable[[Array], Array],
    q: Array,
    order: int = ORDER,
    df: Callable[[Array], Array] | None = None,
) -> Features:
    """Returns the Hermite coefficients of `fn` at variances `q`, in the dtype of `q`.

    The integrals are computed in float64 for every dtype. They are differentiable in `q`, zero
    included, and in anything that `fn` closes over. Call it under `jax.jit`: a call outside
    compiles its integrals again.

    Args:
      fn: an elementwise function on arrays. Continuous, or with a jump at 0.
      q: variances, any shape.
      order: a lower bound on the number of terms.
      df: the derivative of `fn`; by default from `jax.jvp`. `kdot` is its expectation, so a step
        function has `kdot = 0`, as the finite network has.
    """
    integrate = functools.partial(_integrate, fn, df, terms(order), q.dtype)
    columns = lax.map(jax.checkpoint(integrate), q.ravel(), batch_size=_BATCH)
    return jax.tree.map(lambda f: f.T.reshape(f.shape[1:] + q.shape), columns)


def terms(order: int) -> int:
    """Returns the number of terms of a series of at least this order."""
    return _CHUNK * math.ceil(max(order, ORDER) / _CHUNK)


class Integrals(NamedTuple):
    """One-dimensional integrals of a function at some variances [m], in NumPy and float64.

    Attributes:
      squares: `[m, 4]`, mean squares of the even and the odd part of `f`, then of `f'`.
      mean: `[m]`, `E[f]`.
      values: `[m, L]`, `a_(l+1) / sqrt(q)`, for `f` without jumps.
      jumps: `[m]`, whether `f` has a jump, as far as the nodes resolve it.
    """

    squares: np.ndarray
    mean: np.ndarray
    values: np.ndarray
    jumps: np.ndarray


def integrals(fn: Callable[[Array], Array], q: np.ndarray, degrees: int) -> Integrals:
    """Returns the integrals of `features`, without derivatives.

    Args:
      fn: an elementwise function on arrays.
      q: variances [m], at least `FLOOR`.
      degrees: number of terms, from `terms`.

    Raises:
      jax.errors.TracerArrayConversionError: `fn` reads traced values.
    """
    rule, root = _rule(degrees), np.sqrt(q)[:, None]
    with jax.enable_x64(True):
        parts = jax.jit(functools.partial(_parts, fn, None))(jnp.asarray(root * rule.nodes))
        even, odd, even_slope, odd_slope = map(np.asarray, parts)
    squares = np.stack([v**2 @ rule.weights for v in (even, odd, even_slope, odd_slope)], axis=1)
    slopes = np.empty((len(q), degrees))
    slopes[:, ::2], slopes[:, 1::2] = even_slope @ rule.even_below.T, odd_slope @ rule.odd.T
    direct = np.empty_like(slopes)
    direct[:, ::2], direct[:, 1::2] = odd @ rule.odd.T / root, even @ rule.even.T / root
    values = slopes / np.sqrt(np.arange(1, degrees + 1))
    noise = _JUMP_NOISE**2 * squares[:, 2:].sum(1, keepdims=True)
    jumps = ((direct - values) ** 2 > noise).any(axis=1)
    return Integrals(squares, even @ rule.weights, values, jumps)


def _tail_degrees(terms: int) -> tuple[int, int, int, int]:
    """Returns the near and far degree of the odd, then of the even part; `terms` is even."""
    return terms + 1, TAIL * terms + 1, terms + 2, TAIL * terms + 2


def variance(f: Features) -> Array:
    """Returns `E[f(u)^2]`, in the shape of the variances from which `f` was made."""
    return f.variance


def series(c: Array, f1: Features, f2: Features) -> Dual:
    """Returns the dual at covariances `c`, in the shape and dtype of `c`.

    It takes the memory of a few arrays like `c`, for any number of terms.

    Args:
      c: covariances.
      f1: features of the first variances; their trailing axes broadcast against `c`.
      f2: features of the second variances; their trailing axes broadcast against `c`.
    """
    # Zero inputs count as identical (rho = 1), as for a ReLU.
    rho = (c + f1.lift * f2.lift) / (f1.root * f2.root)
    rho = rho + lax.stop_gradient(jnp.clip(rho, -1, 1) - rho)

    def step(
        sums: tuple[Array, Array], terms: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        k, kdot = sums
        for value1, value2, slope1, slope2 in zip(*(t[::-1] for t in terms), strict=True):
            k = k * rho + value1 * value2
            kdot = kdot * rho + slope1 * slope2
        return (k, kdot), None

    shape = jnp.broadcast_shapes(c.shape, f1.root.shape, f2.root.shape)
    zero = varying_like(jnp.zeros(shape, c.dtype), c, f1, f2)
    chunks = tuple(
        t.reshape((-1, _CHUNK, *t.shape[1:])) for t in (f1.values, f2.values, f1.slopes, f2.slopes)
    )
    (k, kdot), _ = lax.scan(jax.checkpoint(step), (zero, zero), chunks, reverse=True)
    k = f1.mean * f2.mean + c * k
    for i, degree in enumerate(_tail_degrees(f1.values.shape[0])):
        power = lax.integer_pow(rho, degree - 1)
        k = k + f1.value_tail[i] * f2.value_tail[i] * power * rho
        kdot = kdot + f1.slope_tail[i] * f2.slope_tail[i] * power
    lost_k, lost_kdot = _lost(rho, f1, f2)
    return Dual(jnp.where(lost_k, jnp.nan, k), jnp.where(lost_kdot, jnp.nan, kdot))


def _lost(rho: Array, f1: Features, f2: Features) -> list[Array]:
    """Returns where `k` and `kdot` of large variances depend on the degrees of the tail.

    The fraction of the tail in the value at rho = 1 bounds the error. It falls like |rho|^L, and
    for nearly equal or opposite variables like the mean squared distance.
    """
    tolerance = _TOLERANCE[rho.dtype == jnp.float64]
    q, size = lax.stop_gradient((f1.root * f2.root, jnp.abs(rho)))
    apart = jnp.where(1 - size > 4 * jnp.finfo(rho.dtype).eps, q * (1 - size), 0)
    apart = apart + lax.stop_gradient(f1.root - f2.root) ** 2 / 2
    nearby = jnp.minimum(lax.integer_pow(size, f1.values.shape[0]), apart)
    shares = []
    for f in (f1, f2):
        tails = (f.value_tail**2).sum(0), (f.slope_tail**2).sum(0)
        totals = f.variance, (f.slopes**2).sum(0) + tails[1]
        some = zip(tails, totals, strict=True)
        shares.append([sqrt(a) / sqrt(jnp.where(b > 0, b, 1)) for a, b in some])
    pairs = zip(*lax.stop_gradient(shares), strict=True)
    return [(q > _LARGE) & (one * two * nearby > tolerance) for one, two in pairs]


class _Rule(NamedTuple):
    """Nodes z > 0 of a symmetric rule, and `weight * h_l(z)` as a table for each set of degrees."""

    nodes: np.ndarray
    weights: np.ndarray
    odd: np.ndarray  # l = 1, 3, ..., L - 1
    even: np.ndarray  # l = 2, 4, ..., L
    even_below: np.ndarray  # l = 0, 2, ..., L - 2
    fine: np.ndarray  # see `_finest`


@functools.lru_cache(maxsize=8)
def _rule(terms: int) -> _Rule:
    """Returns Gauss-Legendre panels for integrals against the normal density, even in z.

    A panel boundary at 0 makes a kink there exact, and the panels next to it are short, since
    f(sqrt(q) z) varies on the scale 1 / sqrt(q). h_l has wave number sqrt(l) at most.
    """
    count = 12 + math.ceil(math.sqrt(terms))
    parts = _panels(_SHORT, _SHORT_NODES), _panels(_EDGES, count)
    z, w = (np.concatenate(part) for part in zip(*parts, strict=True))
    w = w * np.exp(-z * z / 2) * math.sqrt(2 / math.pi)
    h = [np.ones_like(z), z]
    for l in range(1, terms):
        h.append((z * h[l] - math.sqrt(l) * h[l - 1]) / math.sqrt(l + 1))
    table = np.stack(h) * w
    return _Rule(z, w, table[1::2], table[2::2], table[:-1:2], _finest(count) * w)


def _finest(count: int) -> np.ndarray:
    """Returns the map to the two finest modes of every panel, and to 100 times the last panel.

    If these are a large part of an integral, the nodes do not resolve it or end too early.
    """
    sizes = [_SHORT_NODES] * (len(_SHORT) - 1) + [count] * (len(_EDGES) - 1)
    out = np.zeros((len(sizes), 2, sum(sizes)))
    for panel, (n, end) in enumerate(zip(sizes, np.cumsum(sizes), strict=True)):
        points = np.polynomial.legendre.leggauss(n)[0]
        modes = np.polynomial.legendre.legvander(points, n - 1) * (2 * np.arange(n) + 1)
        out[panel, :, end - n : end] = modes[:, -2:].T
    last = np.where(np.arange(sum(sizes)) >= sum(sizes) - count, 100, 0)
    return np.concatenate([out.reshape(-1, sum(sizes)), last[None]])


def _panels(edges: tuple[float, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes and weights of `count` Gauss-Legendre points on each of some panels."""
    points, weights = np.polynomial.legendre.leggauss(count)
    half, middle = np.diff(edges) / 2, (np.asarray(edges)[1:] + np.asarray(edges)[:-1]) / 2
    nodes = middle[:, None] + half[:, None] * points
    return nodes.ravel(), (half[:, None] * weights).ravel()


def _integrate(
    fn: Callable[[Array], Array],
    df: Callable[[Array], Array] | None,
    terms: int,
    dtype: np.dtype,
    q: Array,
) -> Features:
    """Returns the features of one variance (a scalar)."""
    rule = _rule(terms)
    with jax.enable_x64(True):
        q = q.astype(jnp.float64)
        added = lax.stop_gradient(jnp.maximum(FLOOR - q, 0))
        floored = q + added
        root = jnp.sqrt(floored)
        even, odd, even_slope, odd_slope = _parts(fn, df, root * rule.nodes)
        weigh = functools.partial(_product, rule.weights)
        mean, square = weigh(even), weigh(even * even) + weigh(odd * odd)
        a_odd, a_even = _product(rule.odd, odd), _product(rule.even, even)
        d_even, d_odd = _product(rule.even_below, even_slope), _product(rule.odd, odd_slope)

        square_slope = weigh(even_slope * even_slope) + weigh(odd_slope * odd_slope)
        noise, slope_noise = _TAIL_NOISE * square, _TAIL_NOISE * square_slope
        lost, slope_lost = (
            (q > _LARGE) & (abs(_product(rule.fine, a * a + b * b)).sum() > _FINE * total)
            for a, b, total in ((even, odd, square), (even_slope, odd_slope, square_slope))
        )
        odd_tail = _tail(
            _excess(weigh(odd * odd), a_odd, noise),
            _excess(weigh(even_slope * even_slope), d_even, slope_noise),
            floored,
            _tail_degrees(terms)[:2],
        )
        even_tail = _tail(
            _excess(weigh(even * even) - mean * mean, a_even, noise),
            _excess(weigh(odd_slope * odd_slope), d_odd, slope_noise),
            floored,
            _tail_degrees(terms)[2:],
        )
        slopes = _interleave(d_even, d_odd)
        values = _values(_interleave(a_odd, a_even) / root, slopes, square_slope)
        value_tail = jnp.stack([odd_tail[0], odd_tail[1], even_tail[0], even_tail[1]])
        mean = jnp.where(lost, jnp.nan, mean)
        result = Features(
            mean=mean,
            # E[f^2], summed as `series` does, without the cancellation of E[f^2] - E[f]^2
            variance=mean * mean + q * (values * values).sum() + (value_tail * value_tail).sum(),
            root=root,
            lift=jnp.sqrt(added),
            values=values,
            slopes=jnp.where(slope_lost, jnp.nan, slopes),
            value_tail=value_tail,
            slope_tail=jnp.stack([odd_tail[2], odd_tail[3], even_tail[2], even_tail[3]]),
        )
        return jax.tree.map(lambda f: f.astype(dtype), result)


def _parts(
    fn: Callable[[Array], Array],
    df: Callable[[Array], Array] | None,
    x: Array,
) -> tuple[Array, Array, Array, Array]:
    """Returns the even and the odd part of `fn` at `x`, then those of its derivative."""

    def both(x: Array) -> tuple[Array, Array]:
        if df is not None:
            return fn(x).astype(x.dtype), df(x).astype(x.dtype)
        value, slope = jax.jvp(fn, (x,), (jnp.ones_like(x),))
        return value.astype(x.dtype), slope.astype(x.dtype)

    (right, right_slope), (left, left_slope) = both(x), both(-x)
    even, odd = (right + left) / 2, (right - left) / 2
    return even, odd, (right_slope + left_slope) / 2, (right_slope - left_slope) / 2


def _product(table: np.ndarray, x: Array) -> Array:
    # jnp.matmul sets its result type, and its transpose, which runs after float64 is off again,
    # would be truncated to float32.
    return lax.dot(jnp.asarray(table), x)


def _interleave(first: Array, second: Array) -> Array:
    return jnp.stack([first, second], axis=-1).reshape(-1)


def _values(from_fn: Array, slopes: Array, square_slope: Array) -> Array:
    """Returns `a_(l+1) / root`, without dividing by `root` where `fn` is continuous.

    By Stein's lemma it is then `slopes / sqrt(l + 1)`, whose derivatives are accurate at zero
    variance. The two differ by the jumps of `fn`.
    """
    from_slopes = slopes / np.sqrt(np.arange(1, slopes.size + 1))
    jump = from_fn - from_slopes
    real = jump * jump > _JUMP_NOISE**2 * square_slope
    return from_slopes + jnp.where(real, jump, 0)


def _excess(square: Array, coefficients: Array, noise: Array) -> Array:
    """Returns a mean square minus the squares of coefficients, 0 if that is rounding error."""
    rest = square - (coefficients * coefficients).sum()
    return jnp.where(rest > noise, rest, 0)


def _tail(
    square: Array, square_slope: Array, q: Array, degrees: tuple[int, int]
) -> tuple[Array, Array, Array, Array]:
    """Returns coefficients at the near and far degree: two of the function, two of its derivative.

    The derivative of degree n with coefficient b has mean square n b^2 / q. The far degree takes
    the part of the derivative that the near one cannot have.
    """
    near, far = degrees
    excess = (q * square_slope - near * square) / (far - near)
    far_square = jnp.where(excess > 0, jnp.where(excess < square, excess, square), 0)
    near_square = square - far_square
    share = near * near_square / q
    near_slope = jnp.where(share < square_slope, share, square_slope)
    far_slope = square_slope - near_slope
    return sqrt(near_square), sqrt(far_square), sqrt(near_slope), sqrt(far_slope)
