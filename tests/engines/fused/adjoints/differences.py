"""Derivatives by finite differences of compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

STEP = 1e-5


def along(function: Callable[[Any], float], at: np.ndarray, direction: np.ndarray) -> float:
    """Returns the derivative of a function along a direction, of fourth order in the step."""
    near, far = (
        function(at + step * direction) - function(at - step * direction)
        for step in (STEP, 2 * STEP)
    )
    return (8 * near - far) / (12 * STEP)


def close(found: float, expected: float) -> bool:
    """Returns whether a derivative is that of the differences, up to their rounding."""
    return abs(found - expected) < 1e-7 * (1 + abs(expected))
