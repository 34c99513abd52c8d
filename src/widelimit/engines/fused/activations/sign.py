"""Sign."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.constants import INV_2PI, NEARLY_ONE, ONE, ZERO
from widelimit.engines.fused.formulas import angle_ratio
from widelimit.layers.piecewise import Sign


class FusedSign(FusedActivation):
    """2 arcsin(rho) / pi, without cancellation for small rho; no derivative."""

    layers = (Sign,)
    smooth = False
    masked = False
    without_space = False  # its loop does not carry the gap

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return ()

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return (cst[ONE] / np.sqrt(q) if q > cst[ZERO] else -cst[ONE],)

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
