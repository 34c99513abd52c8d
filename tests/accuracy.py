"""Errors of activation formulas over their whole range, on either engine.

Inputs are pairs of vectors of two features. What is right is computed from them in extended
precision, by `tests.engines.fused.oracle` and by exact rational moments of polynomials.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.engines.fused import oracle
from widelimit import stax
from widelimit.layers import elementwise as e

LAYERS = {
    "Relu": stax.Relu(),
    "ABRelu": stax.ABRelu(-0.7, 0.4),
    "LeakyRelu": stax.LeakyRelu(0.2),
    "Abs": stax.Abs(),
    "Sign": stax.Sign(),
    "Erf": stax.Erf(),
    "Erf, scaled": stax.Erf(1.3, 0.7, 0.2),
    "Sigmoid_like": stax.Sigmoid_like(),
    "Gelu": stax.Gelu(),
    "Sin": stax.Sin(),
    "Sin, scaled": stax.Sin(1.2, 0.7, 0.3),
    "Cos": stax.Cos(),
    "Rbf": stax.Rbf(0.5),
    "Gaussian": stax.Gaussian(1.1, -0.6),
    "Exp": stax.Exp(0.9, 0.3),
    "ExpNormalized": stax.ExpNormalized(0.7, -0.9, True),
    "Gabor": stax.Gabor(),
    "Monomial": stax.Monomial(2),
    "RectifiedMonomial": stax.RectifiedMonomial(2),
    "Polynomial": stax.Polynomial((0.3, -0.2, 0.5, 0.1)),
    "Hermite": stax.Hermite(3),
}

VARIANCES = (1e-8, 1e-5, 1e-2, 0.4, 1.0, 6.0, 1e2, 1e4, 1e6, 1e8, 1e10)
FEW_VARIANCES = (1e-8, 1.0, 1e4, 1e10)
DISTANCES = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 0.1, 0.5, 1 - 1e-3, 1.0)
FEW_DISTANCES = (0.0, 1e-12, 1e-6, 0.1, 1.0)


class Pairs(NamedTuple):
    """Vectors of x1 [n1, 2] and of x2 [n2, 2]."""

    x1: np.ndarray
    x2: np.ndarray


def pairs(variances: Any, distances: Any, dtype: Any) -> Pairs:
    """Returns vectors of all variances, at correlations of 1 - distance and distance - 1.

    Those of x2 are also of variances that differ little from those of x1.
    """
    # Multiples of a direction of few bits are exact.
    roots = np.sqrt(2 * np.asarray(variances)) / 5
    near = np.concatenate([roots, roots * 1.0005, roots * 1.03])
    x1, x2 = (r.astype(np.float32).astype(np.float64) for r in (roots, near))
    x1, x2 = (_short(r)[:, None] * np.array([3.0, 4.0]) for r in (x1, x2))
    turned = []
    for distance in distances:
        angle = 2 * math.asin(math.sqrt(distance / 2))
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        turned += [x2 @ turn if distance else x2, -x2 @ turn if distance else -x2]
    return Pairs(x1.astype(dtype), np.concatenate(turned).astype(dtype))


def _short(x: np.ndarray) -> np.ndarray:
    """Returns numbers rounded to 20 bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**20), exponent - 20)


def truth(layer: Any, inputs: Pairs, b_std: float | None) -> tuple[np.ndarray, ...]:
    """Returns K and T after Dense(b_std=b_std) and the layer, and kdot."""
    wide = [x.astype(np.longdouble) for x in inputs]
    bias = np.longdouble(b_std or 0) ** 2
    c = wide[0] @ wide[1].T / 2 + bias
    q1, q2 = ((x * x).sum(1) / 2 + bias for x in wide)
    k, slope = dual(layer, c, q1[:, None], q2[None])
    return k, c * slope, slope


def scales(layer: Any, inputs: Pairs, b_std: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns sqrt(K11 K22) and sqrt(T11 T22) of every pair: no entry of a kernel is larger."""
    sides = []
    for x in inputs:
        wide = x.astype(np.longdouble)
        q = (wide * wide).sum(1) / 2 + np.longdouble(b_std or 0) ** 2
        k, slope = dual(layer, q, q, q)
        sides.append((np.sqrt(k), np.sqrt(q * slope)))
    (k1, t1), (k2, t2) = sides
    return k1[:, None] * k2, t1[:, None] * t2


def dual(layer: Any, c: Any, q1: Any, q2: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns k and kdot in extended precision."""
    match layer:
        case e.Gabor():
            return _gabor(*np.broadcast_arrays(c, q1, q2))
        case e.Monomial(degree=degree):
            return _polynomial([0] * degree + [1], c, q1, q2)
        case e.Polynomial(coef=coef):
            return _polynomial(coef, c, q1, q2)
        case e.Hermite(degree=degree):
            basis = np.eye(degree + 1)[degree]
            k, slope = _polynomial(np.polynomial.hermite_e.herme2poly(basis), c, q1, q2)
            return k / math.factorial(degree), slope / math.factorial(degree)
        case e.RectifiedMonomial(degree=2):
            return _rectified_square(*np.broadcast_arrays(c, q1, q2))
    return oracle.dual(layer, c, q1, q2)


def _gabor(c: Any, q1: Any, q2: Any) -> tuple[np.ndarray, np.ndarray]:
    v, t = np.maximum(q1 * q2 - c * c, 0), q1 + q2
    z = 1 + 2 * t + 4 * v
    k, slope = np.zeros_like(c), np.zeros_like(c)
    for sign in (1, -1):  # E exp(-u^2 - v^2) cos(u - sign v) / 2, and its derivative in c
        exponent = -(t + 4 * v - 2 * sign * c) / (2 * z)
        # exponent' = sign / z - 4 c (1 - (t + 4 v - 2 sign c) / z) / z, since v' = -2 c
        growth = sign / z + 4 * c * (1 + 2 * exponent) / z + 4 * c / z
        k += sign * np.exp(exponent) / (2 * np.sqrt(z))
        slope += sign * np.exp(exponent) / (2 * np.sqrt(z)) * growth
    return k, slope


def _polynomial(coef: Any, c: Any, q1: Any, q2: Any) -> tuple[np.ndarray, np.ndarray]:
    """E u^i v^j = (i - 1) q1 E u^(i-2) v^j + j c E u^(i-1) v^(j-1), exactly."""
    c, q1, q2 = np.broadcast_arrays(c, q1, q2)
    a = [Fraction(float(x)) for x in coef]
    found = [
        _moments(a, *map(_fraction, entry)) for entry in zip(c.flat, q1.flat, q2.flat, strict=True)
    ]
    k, slope = np.array([[_long(x) for x in pair] for pair in found]).T
    return k.reshape(c.shape), slope.reshape(c.shape)


def _moments(a: list[Fraction], c: Fraction, q1: Fraction, q2: Fraction) -> tuple[Any, Any]:
    n = len(a)
    m: dict[tuple[int, int], Fraction] = {}
    for i in range(n):
        for j in range(n):
            if i == 0:
                m[i, j] = Fraction(1) if j == 0 else (j - 1) * q2 * m.get((0, j - 2), Fraction(0))
            else:
                below = (i - 1) * q1 * m.get((i - 2, j), Fraction(0))
                m[i, j] = below + j * c * m.get((i - 1, j - 1), Fraction(0))
    pairs = [(i, j) for i in range(n) for j in range(n)]
    k = sum((a[i] * a[j] * m[i, j] for i, j in pairs), Fraction(0))
    inner = [(i, j) for i, j in pairs if i and j]
    return k, sum((a[i] * a[j] * i * j * m[i - 1, j - 1] for i, j in inner), Fraction(0))


def _fraction(x: Any) -> Fraction:
    high = float(x)
    return Fraction(high) + Fraction(float(x - np.longdouble(high)))


def _long(x: Fraction) -> Any:
    high = float(x)
    return np.longdouble(high) + np.longdouble(float(x - Fraction(high)))


def _rectified_square(c: Any, q1: Any, q2: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cho and Saul (2009), degree 2, and 4 times degree 1."""
    pi = np.longdouble(oracle.PI)
    root = np.sqrt(np.maximum(q1 * q2 - c * c, 0))
    angle = pi - np.arctan2(root, c)
    k = (3 * root * c + angle * (q1 * q2 + 2 * c * c)) / (2 * pi)
    return k, 4 * (root + angle * c) / (2 * pi)


def kernels(
    layer: Any, inputs: Pairs, b_std: float | None, engine: str, dtype: Any, spatial: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns K and T after Dense (or Conv) and the layer, as an engine computes them."""
    if spatial:
        net = stax.serial(stax.Conv(1, (1,), b_std=b_std), layer, stax.Flatten())
        inputs = Pairs(*(x[:, None] for x in inputs))
    else:
        net = stax.serial(stax.Dense(1, b_std=b_std), layer)
    with jax.enable_x64(np.dtype(dtype) == np.float64):
        found = net.kernel_fn(*inputs, ("nngp", "ntk"), engine=engine)
        return np.asarray(found.nngp), np.asarray(found.ntk)


class Errors(NamedTuple):
    """Largest errors of K and of T, relative to the scale of the pair, and where they are."""

    k: float
    t: float
    where: tuple[Any, Any]


def measure(
    layer: Any, inputs: Pairs, b_std: float | None, engine: str, dtype: Any, spatial: bool
) -> Errors:
    """Returns the errors of one layer; every entry whose value is finite must be."""
    found = kernels(layer, inputs, b_std, engine, dtype, spatial)
    largest, where = [], []
    with np.errstate(all="ignore"):
        right, scale = truth(layer, inputs, b_std), scales(layer, inputs, b_std)
        # 0 times an infinite slope is no number
        narrow = [np.isfinite(value.astype(dtype)) for value in right]
        finite = narrow[0], narrow[1] & narrow[2]
        for a, b, s, mask in zip(found, right, scale, finite, strict=False):
            assert np.isfinite(a[mask]).all(), (layer, np.argwhere(~np.isfinite(a) & mask)[:5])
            difference = np.where(mask, np.abs(a - b), 0)
            at = np.finfo(np.float32).tiny  # smaller numbers may be zero
            relative = np.where(difference > at, difference / np.minimum(s, 1e300), 0)
            where.append(np.unravel_index(relative.argmax(), a.shape))
            largest.append(float(relative.max()))
    return Errors(*largest, (where[0], where[1]))
