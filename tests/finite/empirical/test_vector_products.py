import jax
import jax.numpy as jnp
import pytest
from jax import lax

import widelimit as wl
from tests.finite.empirical.small import full_kernel, inputs
from tests.quick import jit
from tests.tolerance import assert_close
from widelimit.finite.empirical.vector_products import pushed


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def network(params, x):
    return lax.scan(lambda h, _: (square(h @ params["w"]), None), x, None, length=2)[0]


def test_directions_of_functions_with_a_rule_for_reverse_mode_alone():
    params, x = {"w": jnp.eye(2) + 0.1, "unused": jnp.ones(3)}, inputs(3, size=2)
    full = full_kernel(network, {"w": params["w"]}, x)
    operator = wl.NTKOperator(network, params, x, batch_size=2)
    v = jnp.ones((3, 2))
    assert_close(operator @ v, jnp.einsum("abcd,cd->ab", full, v), rtol=1e-5)
    directions = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)

    def along(params, keep):
        return jax.vmap(pushed(lambda p: network(p, x), params, keep=keep))(directions)

    for keep in (False, True):  # homogeneous of degree 6 in the weights
        out = jit(lambda p, keep=keep: (along(p, keep), network(p, x)))(params)
        assert_close(out[0], jnp.stack([6 * out[1], 12 * out[1]]), rtol=1e-5)


def test_functions_without_reverse_mode():
    def loop(params, x):
        return lax.while_loop(lambda h: (h**2).sum() < 9, lambda h: h * params["w"][None], x)

    params, x = {"w": jnp.asarray([1.5, 2.0])}, jnp.ones((1, 2))
    by = {
        name: wl.empirical_ntk_fn(loop, implementation=name)
        for name in ("JACOBIAN_CONTRACTION", "AUTO", "NTK_VECTOR_PRODUCTS")
    }
    assert_close(by["JACOBIAN_CONTRACTION"](x, None, params), [[(9 + 16) / 2]], rtol=1e-6)
    assert_close(by["AUTO"](x, None, params), [[(9 + 16) / 2]], rtol=1e-6)
    with pytest.raises(ValueError, match="Reverse-mode"):
        by["NTK_VECTOR_PRODUCTS"](x, None, params)
