"""Nonlinearities by series, at variances that their terms resolve or do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import stax


def _two_dimensional(slope, q, rho):
    """E[f'(u) f'(v)] of a slope that vanishes beyond 30, by quadrature along sum and difference."""
    nodes, weights = np.polynomial.legendre.leggauss(1200)
    total, apart = np.sqrt(q * (1 + rho)), np.sqrt(q * (1 - rho))
    u, v = nodes * min(60, 12 * total), nodes * min(60, 12 * apart)
    du, dv = weights * min(60, 12 * total), weights * min(60, 12 * apart)
    y1, y2 = (u[:, None] + v) / np.sqrt(2), (u[:, None] - v) / np.sqrt(2)
    density = np.exp(-(u[:, None] ** 2) / total**2 / 2 - v**2 / apart**2 / 2)
    return du @ (slope(y1) * slope(y2) * density) @ dv / (2 * np.pi * total * apart)


LARGE = {
    "tanh": (stax.Tanh(), lambda y: 1 / np.cosh(y) ** 2),
    "sigmoid": (stax.Sigmoid(), lambda y: 1 / np.cosh(y / 2) ** 2 / 4),
    "elementwise": (stax.Elementwise(lambda y: y / jnp.sqrt(1 + y**2)), None),
}


class TestLargeVariances:
    @pytest.mark.parametrize("q", [1e4, 1e6, 1e8])
    @pytest.mark.parametrize("name", ["tanh", "sigmoid"])
    def test_one_input(self, name, q):
        layer, slope = LARGE[name]
        y, w = np.polynomial.legendre.leggauss(2000)
        density = np.exp(-((60 * y) ** 2) / 2 / q) / np.sqrt(2 * np.pi * q)
        right = 60 * (w * slope(60 * y) ** 2 * density).sum()
        with jax.enable_x64(True):
            x = np.array([[np.sqrt(2 * q), 0.0]])
            found = stax.serial(stax.Dense(1), layer).kernel_fn(x, None, "ntk")
            np.testing.assert_allclose(found[0, 0], q * right, rtol=1e-8)

    @pytest.mark.parametrize("rho", [-0.8, 0.3, 0.9])
    @pytest.mark.parametrize("name", ["tanh", "sigmoid"])
    def test_two_inputs_at_moderate_correlations(self, name, rho):
        layer, slope = LARGE[name]
        net = stax.serial(stax.Dense(1), layer)
        for q in (1e4, 1e8):
            x = np.sqrt(2 * q) * np.array([[1, 0], [rho, np.sqrt(1 - rho**2)]])
            with jax.enable_x64(True):
                found = net.kernel_fn(x, None, "ntk")
            right = rho * q * _two_dimensional(slope, q, rho)
            np.testing.assert_allclose(found[0, 1], right, rtol=1e-8)

    @pytest.mark.parametrize("name", LARGE)
    def test_what_is_not_known_is_refused(self, name):
        net = stax.serial(stax.Dense(1), LARGE[name][0], stax.Dense(1))
        x = 300 * np.array([[1, 0], [0.999, np.sqrt(1 - 0.999**2)]])
        with pytest.raises(ValueError, match="variances of at most 100"):
            net.kernel_fn(x, None, "ntk")
        traced = jax.jit(lambda x: net.kernel_fn(x, None, "ntk"))(x)
        assert np.isnan(traced[0, 1])
        assert np.isfinite(traced[0, 0])

    @pytest.mark.parametrize("sign", [1, -1])
    def test_parallel_inputs_of_different_sizes_are_refused(self, sign):
        # K of sqrt(2) (10 z) and sqrt(2) (3000 z) was off by 4e-3, T by 19 %.
        net = stax.serial(stax.Dense(1), stax.Tanh())
        x = np.sqrt(2) * np.array([[10.0, 0.0], [3000.0 * sign, 0.0]])
        with jax.enable_x64(True):
            with pytest.raises(ValueError, match="variances of at most 100"):
                net.kernel_fn(x, None, "ntk")
            assert np.isfinite(net.kernel_fn(x, x[:1] * 0.01, "ntk")).all()
            assert np.isfinite(net.kernel_fn(300 * x[:1], np.copy(300 * x[:1]), "ntk")).all()

    @pytest.mark.parametrize("fn", [jnp.sin, lambda y: jnp.exp(y / 4)])
    def test_integrals_that_are_not_resolved_are_refused(self, fn):
        # E sin(u)^2 was off by 1.5e-3 at a variance of 1000, E exp(u / 4)^2 by 99 %.
        net = stax.serial(stax.Dense(1), stax.Elementwise(fn))
        x = np.array([[np.sqrt(2000), 0.0]])
        with pytest.raises(ValueError, match="variances of at most 100"):
            net.kernel_fn(x, None, "nngp")
        assert np.isfinite(net.kernel_fn(0.3 * x, None, "nngp")).all()
