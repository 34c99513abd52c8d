import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.finite.empirical.small import full_kernel, inputs, mlp, mlp_params
from tests.tolerance import assert_close


@pytest.mark.usefixtures("x64")
def test_products_of_several_outputs_meet():
    params, x1, x2 = mlp_params(), inputs(4), inputs(3, 2)

    def f(params, x):
        y = mlp(params, x)
        return {"a": y[:, 0], "b": y[:, 1] * 2}

    def joined(params, x):
        return jnp.stack([f(params, x)["a"], f(params, x)["b"]], 1)

    v = {"a": inputs(3, 3, 3), "b": inputs(3, 4, 3)}
    product = wl.empirical_ntk_vp_fn(f, x1, x2, params)(v)
    full = full_kernel(joined, params, x1, x2)
    expected = np.tensordot(full, np.stack([v["a"], v["b"]], 1), 3)
    assert_close(product["a"], expected[:, 0])
    assert_close(product["b"], expected[:, 1])
    jitted = jax.jit(lambda v: wl.empirical_ntk_vp_fn(f, x1, x2, params)(v))(v)
    assert_close(jitted["b"], product["b"])
    own = wl.empirical_ntk_vp_fn(joined, x2, None, params, subset="w2")
    full = full_kernel(lambda w2, x: joined({**params, "w2": w2}, x), params["w2"], x2)
    v = np.stack([v["a"], v["b"]], 1)
    assert_close(own(v), np.tensordot(full, v, 3))
    assert_close(own(1j * v), 1j * np.tensordot(full, v, 3))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_inputs_of_two_dtypes(dtypes):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mlp_params())
    x1, x2 = (inputs(n).astype(dtype) for n, dtype in zip((4, 3), dtypes, strict=True))
    v = mlp(params, x2)
    expected = np.tensordot(full_kernel(mlp, params, x1, x2), v, 3)
    assert_close(wl.empirical_ntk_vp_fn(mlp, x1, x2, params)(v), expected, rtol=1e-5)
    for way in wl.NtkImplementation:
        ntk = wl.empirical_ntk_fn(mlp, (), implementation=way)(x1, x2, params)
        assert ntk.dtype == jnp.float64
        assert_close(jnp.einsum("abcdef,bdf->ace", ntk, v), expected, rtol=1e-5)


def test_wrong_vectors():
    product = wl.empirical_ntk_vp_fn(mlp, inputs(2), inputs(3), mlp_params())
    with pytest.raises(ValueError, match=r"vector of shape \(3, 2, 3\)"):
        product(jnp.ones((2, 2, 3)))
    with pytest.raises(ValueError, match="expected a vector like"):
        product([jnp.ones((3, 2, 3))])
    with pytest.raises(ValueError, match="depends on the chosen"):
        wl.empirical_ntk_vp_fn(lambda p, x: x, inputs(2), None, mlp_params())
