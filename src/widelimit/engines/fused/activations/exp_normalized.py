"""The activation whose kernel is sqrt(q1 q2) exp(gamma (rho + shift))."""

from __future__ import annotations

import math
from typing import Any

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.activations.relu import FusedRelu
from widelimit.engines.fused.constants import ONE, ZERO
from widelimit.engines.fused.formulas import exponential
from widelimit.layers.elementwise import ExpNormalized


class FusedExpNormalized(FusedActivation):
    """p = gamma, shift, bound of |rho|. Recorded are 1 / sqrt(q), sqrt(q); two zeros correlate."""

    layers = (ExpNormalized,)
    planes = 2
    masked = False  # K and square roots are zero outside, and T is zero there already

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        bound = 1.0 if layer.do_clip else math.inf
        return float(layer.gamma), float(layer.shift), bound

    record = staticmethod(FusedRelu.record)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one, zero, bound = cst[ONE], cst[ZERO], p[2]
        u, s = first[0] * second[0], first[1] * second[1]
        r = c * u
        r = one if (u > zero) & (s <= zero) else r
        r = r if r < bound else bound
        r = r if r > -bound else -bound
        value = exponential(p[0] * (r + p[1]), cst)
        return s * value, p[0] * value
