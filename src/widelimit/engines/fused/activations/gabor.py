"""exp(-x^2) sin x."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.constants import HALF, ONE, TWO
from widelimit.engines.fused.formulas import exponential
from widelimit.layers.elementwise import Gabor


class FusedGabor(FusedActivation):
    """k = e sinh(x) / sqrt Z and kdot = e (S cosh(x) + R sinh(x)) / Z^(5/2).

    With t = q1 + q2 and d = 4 (q1 q2 - c^2): Z = 1 + 2 t + d, x = c / Z, e = exp(-(t + d) / (2 Z)),
    S = Z + 8 c^2 and R = 4 c (d + 3 t + 2). |x| is at most 1/4, so that a short series of the sine
    has all digits. Recorded is q; p are ratios of coefficients of that series.
    """

    layers = (Gabor,)
    masked = False  # K is zero where c is

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return 1 / 6, 1 / 20, 1 / 42, 1 / 72, 1 / 110

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return (q,)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one, two = cst[ONE], cst[TWO]
        four = two + two
        total, apart = first[0] + second[0], cst[HALF] * (first[0] - second[0])
        gap = cst[HALF] * total - c
        close = gap * (total - gap) - apart * apart  # q1 q2 - c^2, zero at coinciding positions
        d = four * (close if four * gap < total else first[0] * second[0] - c * c)
        z = one + two * total + d
        x = c / z
        y = x * x
        sine = one + y * p[2] * (one + y * p[3] * (one + y * p[4]))
        sine = x * (one + y * p[0] * (one + y * p[1] * sine))
        cosine = np.sqrt(one + sine * sine)
        scale = exponential(-(total + d) / (two * z), cst) / np.sqrt(z)
        even = (z + two * four * c * c) / z
        odd = four * c * ((d + total + two * (total + one)) / z)
        return scale * sine, scale * (even * cosine + odd * sine) / z
