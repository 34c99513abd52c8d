"""Rbf and Exp: one exponential of the covariance and both variances."""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.formulas import exponential
from widelimit.layers.elementwise import Exp, Rbf


class FusedExponential(FusedActivation):
    """p = 1/2, rate, sign of the variances, scale, factor of kdot. Recorded is q / 2."""

    layers = (Rbf, Exp)

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        if isinstance(layer, Rbf):
            gamma = float(layer.gamma)
            return 0.5, 2 * gamma, -1.0, 1.0, 2 * gamma
        a, b = float(layer.a), float(layer.b)
        return 0.5, b * b, 1.0, a * a, b * b

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return (p[0] * q,)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        value = p[3] * exponential(p[1] * (c + p[2] * (first[0] + second[0])), cst)
        return value, p[4] * value

    @staticmethod
    def partials(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        value = p[3] * exponential(p[1] * (c + p[2] * (first[0] + second[0])), cst)
        slope, along = p[4] * value, p[0] * p[1] * p[2]
        return (
            p[1] * value,
            along * value,
            along * value,
            p[1] * slope,
            along * slope,
            along * slope,
        )
