"""a sin(b x + c)."""

from __future__ import annotations

import math
from typing import Any

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.formulas import exponential
from widelimit.layers.elementwise import Sin


class FusedSin(FusedActivation):
    """p = 1/2, b^2, a^2 / 2, cos 2c. Recorded is q / 2: the exponent is 0 where K is q."""

    layers = (Sin,)

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        a, b, c = float(layer.a), float(layer.b), float(layer.c)
        return 0.5, b * b, a * a / 2, math.cos(2 * c)

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return (p[0] * q,)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        rate, scale, phase = p[1], p[2], p[3]
        u = first[0] + second[0]
        near = scale * exponential(rate * (c - u), cst)
        far = scale * phase * exponential(-rate * (c + u), cst)
        return near - far, rate * (near + far)

    @staticmethod
    def partials(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        rate, scale, phase = p[1], p[2], p[3]
        u = first[0] + second[0]
        near = scale * exponential(rate * (c - u), cst)
        far = scale * phase * exponential(-rate * (c + u), cst)
        value, slope, fall = near - far, rate * (near + far), -(p[0] * rate)
        return slope, fall * value, fall * value, rate * rate * value, fall * slope, fall * slope
