"""x Phi(x)."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.constants import HALF, INV_2PI, ONE
from widelimit.engines.fused.formulas import angle_ratio
from widelimit.layers.elementwise import Gelu


class FusedGelu(FusedActivation):
    """Recorded are 1 + q and q."""

    layers = (Gelu,)
    planes = 2

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return ()

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return cst[ONE] + q, q

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        one, scale = cst[ONE], cst[INV_2PI]
        quarter = cst[HALF] * cst[HALF]
        product, q = first[0] * second[0], first[1] * second[1]
        rest = product - c * c
        root = np.sqrt(rest)
        x = c / np.sqrt(product)
        a = abs(x)
        a = a if a < one else one
        arc = x * angle_ratio(np.sqrt((one - a) * (one + a)), cst)  # arcsin x
        value = quarter * c + scale * ((c * c + q * rest) / (product * root) + c * arc)
        slope = quarter + scale * (arc + c / root * (one / rest + (one - q) / product + one))
        return value, slope

    @staticmethod
    def own(q: Any, p: Any, cst: Any) -> Any:
        one, scale = cst[ONE], cst[INV_2PI]
        quarter = cst[HALF] * cst[HALF]
        total, rest = one + q, one + q + q  # rest is total^2 - q^2
        root, x = np.sqrt(rest), q / total
        arc = x * angle_ratio(root / total, cst)
        value = quarter * q + scale * (x * x * (one / root + root) + q * arc)
        return value, quarter + scale * (arc + x / root * (total / rest + one + one))
