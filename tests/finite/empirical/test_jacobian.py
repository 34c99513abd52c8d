import jax
import jax.numpy as jnp
import pytest

from tests.finite.empirical.small import inputs, mlp, mlp_params
from tests.tolerance import assert_close
from widelimit.finite.empirical.jacobian import jacobian, unit_row


@pytest.mark.usefixtures("x64")
def test_both_modes_agree():
    params, x = {**mlp_params(), "empty": jnp.zeros((0, 2))}, inputs(2)
    reverse, forward = (jacobian(lambda p: mlp(p, x), params, mode) for mode in (False, True))
    for name, leaf in params.items():
        assert reverse[name].shape == forward[name].shape == (2, 2, 3, *leaf.shape)
        assert_close(forward[name], reverse[name])
    row = unit_row(lambda p: mlp(p, x), params, 7)
    assert_close(row["w1"], reverse["w1"][1, 0, 1])


def test_few_parameters_take_forward_passes():
    def passes(size):
        jaxpr = jax.make_jaxpr(
            lambda w: jacobian(lambda w: jnp.tanh(jnp.ones((size, 1)) * w[None]), w)
        )
        return str(jaxpr(jnp.ones(2)))

    assert "f32[2,50,2]" in passes(50) or "f32[50,2,2]" in passes(50)
    assert "f32[100,50,2]" not in passes(50)
