"""Numbers of the compiled formulas, in one array per dtype: loops must not mix precisions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

ZERO, ONE, HALF, TWO, PI, HALF_PI, INV_2PI = range(7)
LOG2E, LN2_HIGH, LN2_LOW, MAX_EXP, MIN_EXP, INFINITY = range(7, 13)
NEARLY_ONE = 13  # correlations above it are one, up to rounding
ANGLE = 16  # coefficients of arccos(t) / sqrt(1 - t^2) on [0, 1]
EXP = 48  # coefficients of exp(r) on [-ln 2 / 2, ln 2 / 2]
CONSTANTS = 72

# Degrees at which the error is below that of rounding.
ANGLE_DEGREE = {np.dtype(np.float32): 9, np.dtype(np.float64): 18}
EXP_DEGREE = {np.dtype(np.float32): 6, np.dtype(np.float64): 12}
EXP_LIMIT = {np.dtype(np.float32): 125, np.dtype(np.float64): 1020}


@functools.lru_cache(maxsize=2)
def table(dtype: np.dtype) -> np.ndarray:
    """Returns the constants in one array; the names above are the places of its entries."""
    dtype = np.dtype(dtype)
    limit = EXP_LIMIT[dtype]
    out = np.zeros(CONSTANTS, np.float64)
    out[ZERO : INV_2PI + 1] = 0, 1, 0.5, 2, math.pi, math.pi / 2, 0.5 / math.pi
    out[LOG2E] = 1 / math.log(2)
    # The second number is what rounding cut off ln 2.
    out[LN2_HIGH], out[LN2_LOW] = _split(math.log(2), 2.3190468138462996e-17)
    out[MAX_EXP], out[MIN_EXP] = limit * math.log(2), -limit * math.log(2)
    out[INFINITY] = math.inf
    out[NEARLY_ONE] = 1 - 2 * np.finfo(dtype).eps  # c times both 1 / sqrt(c), rounded
    angle = _interpolate(_angle_ratio, ANGLE_DEGREE[dtype], (0.0, 1.0))
    out[ANGLE : ANGLE + len(angle)] = angle
    power = _interpolate(np.exp, EXP_DEGREE[dtype], (-math.log(2) / 2, math.log(2) / 2))
    power[0] = 1  # exp(0) is 1 to the bit
    out[EXP : EXP + len(power)] = power
    out = out.astype(dtype)
    out.setflags(write=False)
    return out


def _interpolate(
    function: Callable[[np.ndarray], np.ndarray], degree: int, domain: tuple[float, float]
) -> np.ndarray:
    fit = Chebyshev.interpolate(function, degree, domain=domain)
    return fit.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef


def _angle_ratio(t: np.ndarray) -> np.ndarray:
    """Returns theta / sin(theta) for t = cos(theta): smooth at t = 1, singular only at -1."""
    theta = 2 * np.arcsin(np.sqrt((1 - t) / 2))
    sine = np.sqrt((1 - t) * (1 + t))
    return np.where(sine == 0, 1, theta / np.where(sine == 0, 1, sine))


def _split(value: float, rest: float) -> tuple[float, float]:
    """Returns a value as a number of few bits and the rest: k times the first is exact."""
    high = float(np.float32(np.round(value * 2**12) / 2**12))
    return high, (value - high) + rest
