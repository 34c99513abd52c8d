"""The ReLU family: a min(x, 0) + b max(x, 0)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.constants import HALF, ONE, ZERO
from widelimit.engines.fused.formulas import angle, angle_of_gap, kink_partials
from widelimit.layers.piecewise import ABRelu, Abs, LeakyRelu, Relu


class FusedRelu(FusedActivation):
    """p = (a^2 + b^2) / 2, (a - b)^2 / (2 pi). Recorded are 1 / sqrt(q) and sqrt(q).

    Two zero inputs have the angle 0, and so have correlations of one up to rounding: where K is q
    to the bit, K' is q' to the bit.
    """

    layers = (Relu, ABRelu, LeakyRelu, Abs)
    planes = 2
    smooth = False
    masked = False  # K and square roots are zero outside, and T is zero there already

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        a, b = (float(slope) for slope in layer.slopes())
        return (a * a + b * b) / 2, (a - b) ** 2 / (2 * math.pi)

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        root = np.sqrt(q)
        return cst[ONE] / root if q > cst[ZERO] else -cst[ONE], root  # both zero: u > 0, s = 0

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        s = first[1] * second[1]
        sine, theta = angle(c, first[0] * second[0], s, cst)
        kdot = p[0] - p[1] * theta
        return p[1] * (s * sine) + kdot * c, kdot

    @staticmethod
    def own(q: Any, p: Any, cst: Any) -> Any:
        return p[0] * q, p[0]

    @staticmethod
    def pair_gap(c: Any, gap: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        slope, kink, s = p[0], p[1], first[1] * second[1]
        sine, theta, rho = angle_of_gap(c, gap, first, second, cst)
        arc = s * kink * (sine - theta * rho)
        return slope * c + arc, slope - kink * theta, slope * gap - arc

    @staticmethod
    def gap(c: Any, first: Any, second: Any, cst: Any) -> Any:
        return cst[HALF] * (first[1] * first[1] + second[1] * second[1]) - c

    @staticmethod
    def partials(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        sine, theta = angle(c, first[0] * second[0], first[1] * second[1], cst)
        return kink_partials(c, sine, theta, first, second, p, cst)

    @staticmethod
    def partials_gap(c: Any, gap: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        sine, theta, _ = angle_of_gap(c, gap, first, second, cst)
        return kink_partials(c, sine, theta, first, second, p, cst)
