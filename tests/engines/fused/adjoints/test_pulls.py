"""Loops that pull cotangents back through activations, against derivatives of the duals."""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import numpy as np
import pytest

from widelimit import stax
from widelimit.engines.fused.activations.base import activation_of
from widelimit.engines.fused.adjoints.pulls import pull_address
from widelimit.engines.fused.constants import table
from widelimit.engines.fused.loops import address

RNG = np.random.default_rng(0)
N = 37
LAYERS = [
    stax.Relu(),
    stax.ABRelu(-0.4, 1.3),
    stax.Abs(),
    stax.Erf(1.2, 0.7, 0.1),
    stax.Sin(1.1, 0.8, 0.3),
    stax.Rbf(0.4),
    stax.Exp(0.7, 0.4),
    stax.Gaussian(1.1, -0.4),
    stax.Gelu(),
]


def call(at: int, arrays: list[np.ndarray], counts: list[int]) -> None:
    """Calls machine code on arrays and counts."""
    kinds = [ctypes.c_void_p] * len(arrays) + [ctypes.c_uint64] * len(counts)
    ctypes.CFUNCTYPE(None, *kinds)(at)(*(array.ctypes.data for array in arrays), *counts)


def recorded(activation: Any, q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Returns what is recorded of variances [2 n]."""
    out = np.zeros(2 * len(q))
    plane = len(q) if activation.planes > 1 else 0
    call(address(activation, q.dtype, "record"), [q, out, p, table(q.dtype)], [plane, len(q)])
    return out


def pulled(layer: Any, c: Any, q1: Any, q2: Any, t: Any, k_bar: Any, t_bar: Any) -> Any:
    """Returns the cotangents of K, T, q1 and q2 [4, n] of pairs of positions."""
    activation: Any = activation_of(layer)
    p = np.zeros(6)
    numbers = activation.numbers(layer)
    p[: len(numbers)] = numbers
    ends = [recorded(activation, q, p) for q in (q1, q2)]
    out = np.zeros((4, len(c)))
    inside = np.ones(len(c))
    inputs = [c, t, inside, k_bar, t_bar, *ends, p, table(c.dtype), *out]
    call(pull_address(activation, c.dtype, "pairs"), inputs, [len(c), len(c)])
    return out


def expected(layer: Any, c: Any, q1: Any, q2: Any, t: Any, k_bar: Any, t_bar: Any) -> Any:
    """Returns the same by plain JAX."""

    def through(c: Any, t: Any, q1: Any, q2: Any) -> Any:
        dual = layer.dual(c, q1, q2, None)
        return dual.k, t * dual.kdot

    return np.stack(jax.vjp(through, c, t, q1, q2)[1]((k_bar, t_bar)))


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_partials(layer: Any) -> None:
    rho = RNG.uniform(-0.99, 0.99, N)
    q1, q2 = RNG.uniform(0.2, 2.0, (2, N))
    t, k_bar, t_bar = RNG.standard_normal((3, N))
    given = (rho * np.sqrt(q1 * q2), q1, q2, t, k_bar, t_bar)
    with jax.enable_x64(True):
        np.testing.assert_allclose(pulled(layer, *given), expected(layer, *given), 1e-9, 1e-12)


@pytest.mark.parametrize("layer", LAYERS[:3], ids=repr)
def test_zero_and_equal_inputs_at_a_kink(layer: Any) -> None:
    q1, q2, c = np.array([0.0, 0.0, 1.7]), np.array([0.0, 0.8, 1.7]), np.array([0.0, 0.0, 1.7])
    t, k_bar, t_bar = RNG.standard_normal((3, 3))
    k_bar[0] = 0  # what c is a product of is zero too
    given = (c, q1, q2, t, k_bar, t_bar)
    with jax.enable_x64(True):
        np.testing.assert_allclose(pulled(layer, *given), expected(layer, *given), 1e-12, 1e-14)


def test_outside_of_images_all_is_zero() -> None:
    activation: Any = activation_of(LAYERS[0])
    n, full = 16, np.ones(16)
    out, p = np.ones((4, n)), np.ones(6)
    inputs = [
        full,
        full,
        np.zeros(n),
        full,
        full,
        np.ones(32),
        np.ones(32),
        p,
        table(p.dtype),
        *out,
    ]
    call(pull_address(activation, p.dtype, "pairs"), inputs, [n, n])
    assert not out.any()
