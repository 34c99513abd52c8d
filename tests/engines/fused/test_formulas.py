"""Scalar functions of the compiled loops against numpy over their whole range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from widelimit.engines.fused import compiled_formulas as compiled_formulas
from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.constants import table
from widelimit.engines.fused.formulas import angle_ratio, exponential

DTYPES = [np.float32, np.float64]


def _exponentials(x: Any, cst: Any, out: Any) -> Any:
    for i in range(len(x)):
        out[i] = exponential(x[i], cst)


def _ratios(x: Any, cst: Any, out: Any) -> Any:
    for i in range(len(x)):
        out[i] = angle_ratio(x[i], cst)


def mapped(function: Any, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    loop(function)(x, table(x.dtype), out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential(dtype: Any) -> None:
    cst = table(np.dtype(dtype))
    eps = float(np.finfo(dtype).eps)
    limit = 86.0 if dtype is np.float32 else 706.0
    x = np.concatenate(
        [
            np.linspace(-limit, limit, 20001),
            np.linspace(-1, 1, 20001),
            np.log(2) * (np.arange(-100, 101) + 0.5),
        ]
    ).astype(dtype)
    true = np.exp(x.astype(np.longdouble))
    found = mapped(_exponentials, x)
    assert np.abs(found / true - 1).max() < 10 * eps
    assert mapped(_exponentials, np.zeros(1, dtype))[0] == 1
    big = np.array([np.inf, 1e30, 800.0, -np.inf, -1e30, -800.0, np.nan], dtype)
    out = mapped(_exponentials, big)
    assert np.isposinf(out[:3]).all()
    assert (out[3:6] == 0).all()
    assert np.isnan(out[6])
    assert out.dtype == cst.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_angle_ratio(dtype: Any) -> None:
    x = np.concatenate([np.linspace(0, 1, 20001), 1 - np.logspace(-16, -1, 200)]).astype(dtype)
    t = x.astype(np.longdouble)
    angle = 2 * np.arcsin(np.sqrt((1 - t) / 2))
    sine = np.sqrt((1 - t) * (1 + t))
    true = np.where(sine == 0, 1, angle / np.where(sine == 0, 1, sine))
    assert np.abs(mapped(_ratios, x) / true - 1).max() < 20 * np.finfo(dtype).eps
    assert np.isnan(mapped(_ratios, np.array([np.nan], dtype)))[0]


def test_the_table_is_made_once_and_not_written() -> None:
    cst = table(np.dtype(np.float32))
    assert cst is table(np.dtype(np.float32))
    with pytest.raises(ValueError, match="read-only"):
        cst[0] = 1
