"""Scalar functions for formulas of activations; `compiled_formulas` tells numba what they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.constants import (
    HALF,
    INFINITY,
    LN2_HIGH,
    LN2_LOW,
    LOG2E,
    MAX_EXP,
    MIN_EXP,
    ZERO,
)


def angle_ratio(t: Any, cst: Any) -> Any:
    """Returns arccos(t) / sqrt(1 - t^2) for t in [0, 1]."""
    raise NotImplementedError("expected to be compiled")


def exp_polynomial(r: Any, cst: Any) -> Any:
    """Returns exp(r) for |r| <= ln 2 / 2."""
    raise NotImplementedError("expected to be compiled")


def scaled(y: Any, k: Any) -> Any:
    """Returns y 2^k, for whole k of a float and results that are normal numbers."""
    raise NotImplementedError("expected to be compiled")


def select(condition: Any, yes: Any, no: Any) -> Any:
    """Returns one of two numbers of one type, both computed: loops stay free of branches."""
    return yes if condition else no


def exponential(x: Any, cst: Any) -> Any:
    """Returns exp(x); infinity where it overflows, 0 where it underflows, NaN for NaN."""
    bounded = x if x > cst[MIN_EXP] else cst[MIN_EXP]  # NaN becomes the bound: k must be finite
    bounded = bounded if bounded < cst[MAX_EXP] else cst[MAX_EXP]
    k = np.floor(bounded * cst[LOG2E] + cst[HALF])
    r = (bounded - k * cst[LN2_HIGH]) - k * cst[LN2_LOW]
    y = scaled(exp_polynomial(r, cst), k)
    y = select(x < cst[MIN_EXP], cst[ZERO], y)
    y = select(x > cst[MAX_EXP], cst[INFINITY], y)
    return select(x == x, y, x)
