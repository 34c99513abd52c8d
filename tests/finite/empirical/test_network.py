import jax.numpy as jnp
import pytest

import widelimit as wl
from tests.finite.empirical.small import inputs
from tests.tolerance import assert_close
from widelimit.finite.empirical.network import complex_kernel


class Module:
    """A model that cannot be hashed, like those that hold arrays."""

    __hash__ = None

    def __init__(self, scale):
        self.scale = scale

    def __eq__(self, other):
        return self.scale == other.scale

    def __call__(self, params, x):
        return self.scale * x @ params


def test_models_that_cannot_be_hashed():
    x, params = inputs(3), jnp.ones((4, 2))
    for scale in (jnp.float32(1), jnp.float32(2)):
        module = Module(scale)
        assert_close(wl.empirical_ntk_fn(module)(x, None, params), scale**2 * (x @ x.T))
        assert_close(wl.NTKOperator(module, params, x).diagonal()[:, 0], scale**2 * (x * x).sum(1))
    with pytest.raises(TypeError, match="expected a function"):
        wl.empirical_ntk_fn(3)


def test_kernels_of_parts_make_one_of_complex_numbers():
    a, b = jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])
    expected = (a[0] + 1j * a[1]) * (b[0] - 1j * b[1])
    assert_close(complex_kernel(jnp.outer(a, b)), expected)
