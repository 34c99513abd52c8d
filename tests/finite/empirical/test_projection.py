import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.finite.empirical.small import inputs, mlp, mlp_params
from tests.tolerance import assert_close


@pytest.mark.usefixtures("x64")
def test_estimates_lie_within_their_errors():
    params, key = mlp_params(), jax.random.key(1)
    x1, x2 = inputs(4), inputs(3, 2)
    first, second = (
        wl.projected_gradients(mlp, params, x, key, 2000, batch_size=100) for x in (x1, x2)
    )
    assert first.features.shape == (4, 2, 3, 2000)
    for other, x in ((None, None), (second, x2)):
        for trace, diagonal in (((-1,), ()), ((), (1,))):
            kernel, error = first.estimate(other, trace, diagonal)
            exact = wl.empirical_ntk_fn(mlp, trace, diagonal)(x1, x, params)
            assert (np.abs(kernel - exact) <= 5 * error).all()
            assert (np.abs(kernel - exact) > 0.3 * error).any()
    # The error that the docstring states.
    kernel, error = first.estimate(None, ())
    diagonal = np.einsum("aabbcc->abc", kernel), np.einsum("aabbcc->abc", error)
    assert_close(diagonal[1] / diagonal[0], np.full((4, 2, 3), np.sqrt(2 / 2000)), rtol=0.25)


def test_directions_belong_to_the_key_and_the_parameters():
    def f(params, x):
        return x @ params["w"] + params["b"]

    params, x, key = {"w": jnp.ones((4, 1)), "b": jnp.float32(0)}, inputs(3), jax.random.key(0)
    own = wl.projected_gradients(f, params, x, key, 3, subset="b").features
    assert_close(own, jnp.broadcast_to(own[:1], own.shape))
    again = wl.projected_gradients(f, params, inputs(5, 8), key, 3, subset="b").features
    assert_close(again[:3], own)


def test_wrong_numbers_of_directions():
    params, x, key = mlp_params(), inputs(2), jax.random.key(0)
    for wrong in (0, True):
        with pytest.raises(ValueError, match="dimension of at least 1"):
            wl.projected_gradients(mlp, params, x, key, wrong)
    two, three = (wl.projected_gradients(mlp, params, x, key, k) for k in (2, 3))
    with pytest.raises(ValueError, match="same number of directions"):
        two.estimate(three)
    with pytest.raises(TypeError, match="expected other to be ProjectedGradients"):
        two.estimate(x)


def test_no_samples():
    gradients = wl.projected_gradients(
        lambda p, x: x @ p, jnp.ones((3, 2)), jnp.ones((0, 3)), jax.random.key(0), 4
    )
    assert gradients.features.shape == (0, 2, 4)
    assert gradients.estimate().kernel.shape == (0, 0)
