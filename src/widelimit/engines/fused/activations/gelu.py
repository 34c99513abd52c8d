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
    def partials(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        # With P = (1 + q1) (1 + q2) and D = P - c^2, the angle arcsin(c / sqrt P) has the
        # derivatives 1 / sqrt D by c and -c / (2 (1 + q1) sqrt D) by q1.
        one, half, scale = cst[ONE], cst[HALF], cst[INV_2PI]
        a, b, q1, q2 = first[0], second[0], first[1], second[1]
        product, q = a * b, q1 * q2
        rest = product - c * c
        inverse = one / rest
        root = np.sqrt(inverse)
        x = c / np.sqrt(product)
        t = abs(x)
        t = t if t < one else one
        arc = x * angle_ratio(np.sqrt((one - t) * (one + t)), cst)
        total, three = a + b, one + one + one
        slope = half * half + scale * (arc + c * root * (inverse + total / product))
        curve = scale * root * (one + inverse * (one + three * c * c * inverse + total))
        bend = (c * c + q * rest) * root / product
        turn = half * c * root
        k1 = (q2 * rest + q * b) * root / product - bend * (one / a + half * b * inverse)
        k2 = (q1 * rest + q * a) * root / product - bend * (one / b + half * a * inverse)
        s1 = one / a + inverse * (three * b * inverse + total / a) + (one + one) / (a * a)
        s2 = one / b + inverse * (three * a * inverse + total / b) + (one + one) / (b * b)
        return (
            slope, scale * (k1 - c * turn / a), scale * (k2 - c * turn / b),
            curve, -(scale * turn * s1), -(scale * turn * s2),
        )  # fmt: skip

    @staticmethod
    def own(q: Any, p: Any, cst: Any) -> Any:
        one, scale = cst[ONE], cst[INV_2PI]
        quarter = cst[HALF] * cst[HALF]
        total, rest = one + q, one + q + q  # rest is total^2 - q^2
        root, x = np.sqrt(rest), q / total
        arc = x * angle_ratio(root / total, cst)
        value = quarter * q + scale * (x * x * (one / root + root) + q * arc)
        return value, quarter + scale * (arc + x / root * (total / rest + one + one))
