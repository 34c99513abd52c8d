"""The ReLU family: a min(x, 0) + b max(x, 0)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from widelimit.engines.fused.activations.base import FusedActivation
from widelimit.engines.fused.constants import HALF, NEARLY_ONE, ONE, PI, ZERO
from widelimit.engines.fused.formulas import angle_ratio
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
        one, zero, pi, near = cst[ONE], cst[ZERO], cst[PI], cst[NEARLY_ONE]
        u, s = first[0] * second[0], first[1] * second[1]
        r = c * u
        r = one if (u > zero) & (s <= zero) else r
        a = abs(r)
        a = a if a < near else one
        sine = np.sqrt((one - a) * (one + a))
        theta = sine * angle_ratio(a, cst)
        theta = pi - theta if r < zero else theta
        kdot = p[0] - p[1] * theta
        return p[1] * (s * sine) + kdot * c, kdot

    @staticmethod
    def own(q: Any, p: Any, cst: Any) -> Any:
        return p[0] * q, p[0]

    @staticmethod
    def pair_gap(c: Any, gap: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        """With s = sqrt(q), 1 - rho = (gap - (s1 - s2)^2 / 2) / (s1 s2): cancels at large gaps."""
        one, zero, half, pi = cst[ONE], cst[ZERO], cst[HALF], cst[PI]
        slope, kink = p[0], p[1]
        u, s, apart = first[0] * second[0], first[1] * second[1], first[1] - second[1]
        r = c * u
        away = (gap - half * apart * apart) * u
        away = away if gap * u < one else one - r
        zeros = (u > zero) & (s <= zero)  # two zero inputs have the angle 0
        r, away = one if zeros else r, zero if zeros else away
        near = r > zero
        away = away if near else one + r
        away = away if away > zero else zero
        a = one - away
        sine = np.sqrt(away * (one + a))
        theta = sine * angle_ratio(a, cst)
        theta = theta if near else pi - theta
        rho = a if near else -a
        arc = s * kink * (sine - theta * rho)
        return slope * c + arc, slope - kink * theta, slope * gap - arc

    @staticmethod
    def gap(c: Any, first: Any, second: Any, cst: Any) -> Any:
        return cst[HALF] * (first[1] * first[1] + second[1] * second[1]) - c
