"""Polynomials: x^d, Hermite polynomials, and sums of powers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.layers.base import Layer
from widelimit.layers.elementwise import Hermite, Monomial, Polynomial

# The head of a table, before the coefficients of every g_l, the highest l and power first.
TERMS, POWERS, SHIFT, COEFFICIENTS = range(4)


class FusedPolynomial(FusedActivation):
    """k = sum_l g_l(q1) g_l(q2) c^l; p is the table of the polynomials g_l. Recorded are all g_l.

    With He_l / sqrt(l!) for the terms, a polynomial of a Gaussian of variance q has coefficients
    g_l(q) q^(l/2), and g_l is a polynomial of q: see `activations.polynomial`.
    """

    layers: ClassVar[tuple[type[Layer], ...]] = (Monomial, Polynomial, Hermite)
    smooth = False
    masked = False
    loops = "widelimit.engines.fused.polynomial_loops"

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return ()

    @classmethod
    def planes_of(cls, layer: Any) -> int:
        match layer:
            case Polynomial(coef=coef):  # which may be traced
                return max(1, len(coef))
        return int(layer.degree) + 1

    @classmethod
    def table(cls, layer: Any, single: bool) -> Float[np.ndarray, "entries"]:
        scalars = _coefficients(layer)
        terms, powers = len(scalars), (len(scalars) + 1) // 2
        shift = 1.0 if isinstance(layer, Hermite) else 0.0
        rows = np.zeros((terms, powers))
        for l in range(terms):
            for i in range((terms - 1 - l) // 2 + 1):
                rows[terms - 1 - l, powers - 1 - i] = scalars[2 * i + l] * _ways(2 * i + l, i)
        return np.concatenate([[terms, powers, shift], rows.ravel()])


def _coefficients(layer: Any) -> list[float]:
    """Returns the coefficients of powers of x, from 1 on.

    Those of He_d / sqrt(d!) at variance q are those of x^d / sqrt(d!) at q - 1.
    """
    match layer:
        case Polynomial(coef=coef):
            return [float(value) for value in coef] or [0.0]
        case Monomial(degree=degree):
            return [0.0] * int(degree) + [1.0]
    return [0.0] * int(layer.degree) + [1 / math.sqrt(math.factorial(int(layer.degree)))]


def _ways(power: int, i: int) -> float:
    """Returns the coefficient of q^i in g_l of x^power, with l = power - 2 i."""
    ways = math.factorial(power) // (2**i * math.factorial(i))
    return ways / math.sqrt(math.factorial(power - 2 * i))
