"""Sign."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.activations.relu import FusedRelu
from widelimit.engines.fused.constants import HALF, INV_2PI, NEARLY_ONE, ONE, ZERO
from widelimit.engines.fused.formulas import angle_of_gap, angle_ratio
from widelimit.layers.piecewise import Sign


class FusedSign(FusedActivation):
    """2 arcsin(rho) / pi, without cancellation for small rho; no derivative.

    Recorded are 1 / sqrt(q) and sqrt(q).
    """

    layers = (Sign,)
    smooth = False
    planes = 2
    masked = False

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return ()

    record = staticmethod(FusedRelu.record)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one, zero, near = cst[ONE], cst[ZERO], cst[NEARLY_ONE]
        scale = cst[INV_2PI] * (one + one + one + one)
        r = c * (first[0] * second[0])
        r = r if r < near else one
        r = r if r > -near else -one
        arcsine = r * angle_ratio(np.sqrt((one - r) * (one + r)), cst)
        return scale * arcsine if abs(r) < one else r, zero

    @staticmethod
    def own(q: Any, p: Any, cst: Any) -> Any:
        return cst[ONE] if q > cst[ZERO] else cst[ZERO], cst[ZERO]

    @staticmethod
    def pair_gap(c: Any, gap: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one, zero, half = cst[ONE], cst[ZERO], cst[HALF]
        u, s = first[0] * second[0], first[1] * second[1]
        _, theta, _ = angle_of_gap(c, gap, first, second, cst)
        away = (cst[INV_2PI] + cst[INV_2PI]) * (theta + theta)
        beside_zero = zero if u > zero else half
        return one - away if s > zero else zero, zero, away if s > zero else beside_zero

    gap = staticmethod(FusedRelu.gap)
