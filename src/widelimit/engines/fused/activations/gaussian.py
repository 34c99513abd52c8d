"""a exp(b x^2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.constants import HALF, ONE, ZERO
from widelimit.layers.elementwise import Gaussian


class FusedGaussian(FusedActivation):
    """p = 2 b, 4 b^2, a^2, 4 a^2 b^2. Recorded is 1 - 2 b q; NaN where the expectation diverges."""

    layers = (Gaussian,)

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        a, b = float(layer.a), float(layer.b)
        return 2 * b, 4 * b * b, a * a, 4 * a * a * b * b

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        rest = cst[ONE] - p[0] * q
        return (rest if rest > cst[ZERO] else np.sqrt(-cst[ONE]),)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        determinant = first[0] * second[0] - p[1] * c * c
        root = np.sqrt(determinant)
        return p[2] / root, p[3] * c / (determinant * root)

    @staticmethod
    def partials(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one, half = cst[ONE], cst[HALF]
        inverse = one / (first[0] * second[0] - p[1] * c * c)
        root = np.sqrt(inverse)
        value, steep = p[2] * root, p[3] * inverse * root
        slope, by1, by2 = (
            steep * c,
            half * p[0] * inverse * second[0],
            half * p[0] * inverse * first[0],
        )
        three = one + one + one
        curve = steep + three * p[1] * c * inverse * slope
        return slope, by1 * value, by2 * value, curve, three * by1 * slope, three * by2 * slope

    @staticmethod
    def own(q: Any, p: Any, cst: Any) -> Any:
        one, zero = cst[ONE], cst[ZERO]
        determinant = one - (p[0] + p[0]) * q  # (1 - 2 b q)^2 - (2 b q)^2
        root = np.sqrt(determinant if determinant > zero else np.sqrt(-one))
        return p[2] / root, p[3] * q / (determinant * root)
