"""a erf(b x) + c."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.constants import HALF, ONE, ZERO
from widelimit.engines.fused.formulas import angle_ratio
from widelimit.layers.elementwise import Erf


class FusedErf(FusedActivation):
    """p = 2 b^2, 2 a^2 / pi, c^2, 4 a^2 b^2 / pi. Recorded is 1 / sqrt(1 + p[0] q)."""

    layers = (Erf,)

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        a, b, c = float(layer.a), float(layer.b), float(layer.c)
        return 2 * b * b, 2 * a * a / math.pi, c * c, 4 * a * a * b * b / math.pi

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return (cst[ONE] / np.sqrt(cst[ONE] + p[0] * q),)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one = cst[ONE]
        u = first[0] * second[0]
        x = p[0] * c * u
        a = abs(x)
        a = a if a < one else one
        cosine = np.sqrt((one - a) * (one + a))
        arc = x * angle_ratio(cosine, cst)  # arcsin x, without cancellation for small x
        return p[1] * arc + p[2], p[3] * u / cosine

    @staticmethod
    def partials(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one = cst[ONE]
        u = first[0] * second[0]
        x = p[0] * c * u
        square = (one - x) * (one + x)
        square = square if square > cst[ZERO] else one
        rest = one / square
        root = np.sqrt(rest)
        # d log u / dq at both ends.
        fall = -(cst[HALF] * p[0])
        fall1, fall2 = fall * first[0] * first[0], fall * second[0] * second[0]
        slope, arc = p[3] * u * root, p[1] * x * root
        curve = slope * rest * x * p[0] * u
        return slope, arc * fall1, arc * fall2, curve, slope * rest * fall1, slope * rest * fall2

    @staticmethod
    def own(q: Any, p: Any, cst: Any) -> Any:
        one = cst[ONE]
        scaled = p[0] * q
        u = one / (one + scaled)
        x = scaled * u
        cosine = np.sqrt(u * (one + x))  # u is 1 - x
        return p[1] * (x * angle_ratio(cosine, cst)) + p[2], p[3] * u / cosine
