"""x^d for x >= 0, else 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.polynomial import polynomial

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.activations.relu import FusedRelu
from widelimit.layers.elementwise import RectifiedMonomial

# The head of a table, before the coefficients of P, Q and R, the highest powers first.
DEGREE, COEFFICIENTS = range(2)
LEAST = 6  # numbers that `record` reads


class FusedRectifiedMonomial(FusedActivation):
    """At unit variances k = phi P(rho) + sine / (2 pi) Q(rho), phi = (pi - theta) / (2 pi).

    P and Q are polynomials of the degrees d and d - 1; E[f' f'] is phi P' + sine / (2 pi) R.
    Recorded are 1 / sqrt(q) and sqrt(q).
    """

    layers = (RectifiedMonomial,)
    planes = 2
    masked = False
    loops = "widelimit.engines.fused.rectified_loops"

    record = staticmethod(FusedRelu.record)

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return ()

    @classmethod
    def table(cls, layer: Any, single: bool) -> Float[np.ndarray, "entries"]:
        degree = int(layer.degree)
        moments = _moments(degree)
        rows = np.zeros((3, degree + 1))
        below = degree**2 * moments[max(degree - 1, 0)][1]
        for row, part in zip(rows, (*moments[degree], below), strict=True):
            row[: len(part)] = part[::-1]
        values = np.concatenate([[degree], rows.ravel()])
        return np.pad(values, (0, max(0, LEAST - len(values))))


def _moments(degree: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns P and Q of M_0 to M_degree, lowest power first: see `activations.kinked`."""
    one, x, nothing = np.ones(1), np.array([0.0, 1.0]), np.zeros(0)
    moments = [(one, nothing), (x, one)]
    mixed = [(one, x)]

    def combined(a: int, first: Any, b: int, second: Any) -> Any:
        parts = zip(first, second, strict=True)
        return tuple(polynomial.polyadd(a * u, b * polynomial.polymul(x, v)) for u, v in parts)

    for k in range(1, degree + 1):
        if k > 1:
            moments.append(combined(k - 1, mixed[k - 2], k, moments[k - 1]))
        mixed.append(combined(k + 1, moments[k], k, mixed[k - 1]))
    return moments
