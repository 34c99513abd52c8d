"""Any function, by its Mehler series: Tanh, Silu, Elementwise and the like."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float

from widelimit.activations import series
from widelimit.covariance.signal import Signal
from widelimit.engines.fused.activations.base import FusedActivation, RefusedError
from widelimit.engines.fused.instructions import HEAD
from widelimit.layers.base import Layer
from widelimit.layers.numerical import (
    Elementwise,
    ElementwiseNumerical,
    Elu,
    Mish,
    Selu,
    SeriesLayer,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
)

# What is recorded of a variance q: how many terms of the series count, 1 / root, lift, mean, the
# tails of f and of f', and then the terms, see `activations.series.Features`.
COUNT, INVERSE, LIFT, MEAN, VALUE_TAIL, SLOPE_TAIL = 0, 1, 2, 3, 4, 8
UNROLLED = 4  # terms that a loop takes at a time

# The head of a table, and what stands for each panel of log2 q: the number of terms that count, and
# Chebyshev coefficients of these columns and of the terms.
LOWEST, PANELS, TERMS, STEP, FLOOR, DEGREE, WIDTH = range(7)
TABLE_HEAD = 8
SQUARE_EVEN, SQUARE_ODD, SLOPE_EVEN, SLOPE_ODD, COLUMN_MEAN, FIRST_TERM = range(6)
NODES = 16

_LARGEST = 100.0  # variances up to which the series is known: see `activations.series`
# Share of E[f^2], and of E[f'^2], that terms may have which are left out.
_CUT, _CUT_SINGLE = 1e-12, 1e-9
_ZERO = 1e-15  # and that counts as rounding
_INTERPOLATED = 1e-10  # the last Chebyshev coefficients, of all
_LEAST = 1.0  # log2 of the variance up to which a table has to reach


class FusedSeries(FusedActivation):
    """p is the table of the function; a slice takes as many terms as its variances need."""

    layers: ClassVar[tuple[type[Layer], ...]] = (
        *(Tanh, Sigmoid, Softplus, Elu, Selu, Silu, Mish),
        *(Elementwise, ElementwiseNumerical),
    )
    masked = False
    counts = True
    loops = "widelimit.engines.fused.series_loops"

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return ()

    @classmethod
    def planes_of(cls, layer: Any) -> int:
        return HEAD + series.terms(layer.order())

    @classmethod
    def table(cls, layer: Any, single: bool) -> Float[np.ndarray, "entries"]:
        """Returns the coefficients of the function at all variances.

        Raises:
          RefusedError: the function has a jump, varies too quickly, or reads traced values.
        """
        leaves, structure = jax.tree.flatten(layer)
        return _table(structure, tuple(map(float, leaves)), _CUT_SINGLE if single else _CUT)

    @classmethod
    def counted(cls, table: Float[np.ndarray, "entries"]) -> int:
        return int(table[TERMS])

    @classmethod
    def averages(cls, layer: Any, signal: Signal) -> bool:
        """Returns False.

        Raises:
          RefusedError: formulas of the caller, or another derivative.
        """
        if getattr(layer, "nngp_fn", None) is not None:
            raise RefusedError(f"{layer.label} has formulas of its own")
        if layer.derivative() is not None:
            raise RefusedError(f"{layer.label} has a derivative of its own")
        return False


@functools.lru_cache(maxsize=64)
def _table(structure: Any, leaves: tuple[float, ...], cut: float) -> np.ndarray:
    layer: SeriesLayer = jax.tree.unflatten(structure, leaves)
    degree = series.terms(layer.order())
    low, high = np.log2(series.FLOOR), np.log2(_LARGEST)
    panels = int(np.ceil(high - low))
    width = (high - low) / panels
    points = np.polynomial.chebyshev.chebpts1(NODES)
    middles = low + width * (np.arange(panels) + 0.5)
    q = 2 ** (middles[:, None] + width / 2 * points)
    try:
        found = series.integrals(layer.activation, q.ravel(), degree)
    except jax.errors.TracerArrayConversionError:
        raise RefusedError(f"the function of {layer.label} reads traced values") from None
    values = found.values.reshape(panels, NODES, -1)
    sums = np.concatenate([found.squares, found.mean[:, None]], axis=1).reshape(panels, NODES, 5)
    weights = np.arange(1, degree + 1)  # of E[f'^2] over those of E[f^2] / q
    # Odd functions, but for a constant, have every second term.
    energy = values**2
    odd = (energy[..., 1::2].sum(-1) <= _ZERO * energy.sum(-1)).all()
    step = 2 if odd else 1
    values, weights = values[..., ::step], weights[::step]
    counts = _counts(q, values, weights, sums, cut)
    columns = np.concatenate([sums, values], axis=-1)
    to_chebyshev = np.linalg.inv(np.polynomial.chebyshev.chebvander(points, NODES - 1))
    coefficients = np.einsum("jn,pnc->pjc", to_chebyshev, columns)
    jumps = found.jumps.reshape(panels, NODES).any(axis=1)
    known = _known(jumps | _varies(coefficients, weights))
    if low + width * known < _LEAST:
        raise RefusedError(f"{layer.label} has a jump, a kink beside 0, or narrow features")
    body = np.concatenate([counts[:, None], coefficients.reshape(panels, -1)], axis=1)
    head = np.zeros(TABLE_HEAD)
    head[[LOWEST, PANELS, TERMS, STEP]] = low, known, values.shape[-1], step
    head[[FLOOR, DEGREE, WIDTH]] = series.FLOOR, degree, width
    out = np.concatenate([head, body.ravel()])
    out.setflags(write=False)
    return out


def _counts(
    q: np.ndarray, values: np.ndarray, weights: np.ndarray, sums: np.ndarray, cut: float
) -> np.ndarray:
    """Returns how many terms count in every panel, in whole steps of the loop."""
    squares = sums[..., SQUARE_EVEN] + sums[..., SQUARE_ODD]
    slopes = sums[..., SLOPE_EVEN] + sums[..., SLOPE_ODD]
    parts = (
        (q[..., None] * values**2, squares - sums[..., COLUMN_MEAN] ** 2, squares),
        (weights * values**2, slopes, slopes),
    )
    counts = np.zeros(len(q))
    for energy, known, scale in parts:
        beyond = np.maximum(known - energy.sum(-1), 0)[..., None]
        rest = np.cumsum(energy[..., ::-1], axis=-1)[..., ::-1] + beyond
        counts = np.maximum(counts, (rest > cut * scale[..., None]).sum(-1).max(-1))
    return np.minimum(np.ceil(counts / UNROLLED) * UNROLLED, values.shape[-1])


def _varies(coefficients: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns in which panels the last Chebyshev coefficients are large."""
    terms = coefficients[..., FIRST_TERM:] * np.sqrt(weights)
    size = np.sqrt((terms**2).sum(-1))  # of all terms, by panel and degree
    large: np.ndarray = size[:, -2:].sum(-1) > _INTERPOLATED * size.max(-1)
    return large


def _known(bad: np.ndarray) -> int:
    """Returns how many panels there are before the first bad one."""
    return int(np.argmax(bad)) if bad.any() else len(bad)
