"""Layers given as three functions: triples, the `layer` decorator, triples passed on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import stax
from widelimit.stax import (
    Dense,
    FanInConcat,
    FanInProd,
    FanInSum,
    FanOut,
    Identity,
    Relu,
    parallel,
    repeat,
    serial,
)

KEY = jax.random.PRNGKey(0)
X1 = np.random.default_rng(0).standard_normal((4, 5))
X2 = np.random.default_rng(1).standard_normal((3, 5))


@stax.layer
def Scale(factor):
    """Multiplies by a number."""

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, **kwargs):
        return factor * inputs

    def kernel_fn(k, **kwargs):
        return k * factor

    return init_fn, apply_fn, kernel_fn


def fresh_dense(width):
    """A Dense layer by hand; it does not keep the shapes in the Kernel up to date."""

    def init_fn(rng, input_shape):
        return [*input_shape[:-1], width], jax.random.normal(rng, (input_shape[-1], width))

    def apply_fn(params, inputs, **kwargs):
        return inputs @ params / inputs.shape[-1] ** 0.5

    def kernel_fn(k):
        ntk = None if k.ntk is None else k.nngp + k.ntk  # None where nobody asks for it
        return k.replace(ntk=ntk, is_gaussian=True)

    return init_fn, apply_fn, kernel_fn


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [X2, None], ids=["x2", "None"])
def test_triple_inside_a_network(x2):
    net = serial(fresh_dense(6), Relu(), fresh_dense(3), Relu(), Dense(2, 1.2))
    ours = serial(Dense(6), Relu(), Dense(3), Relu(), Dense(2, 1.2))
    k, expected = net.kernel_fn(X1, x2), ours.kernel_fn(X1, x2)
    for field in ("nngp", "ntk", "cov1", "cov2", "x1_is_x2"):
        actual, desired = getattr(k, field), getattr(expected, field)
        assert (actual is None) == (desired is None)
        assert actual is None or np.allclose(actual, desired, rtol=1e-12, atol=0)
    assert k.shape1 == expected.shape1
    shape, params = net.init_fn(KEY, (-1, 5))
    assert shape == (-1, 2)
    assert net.apply_fn(params, X1).shape == (4, 2)
    assert_close(net.kernel_fn(X1, x2, "nngp"), expected.nngp)


@pytest.mark.usefixtures("x64")
def test_shapes_are_those_of_init():
    kernel = serial(fresh_dense(6)).kernel_fn(X1, X2)
    assert (kernel.shape1, kernel.shape2) == ((4, 6), (3, 6))
    # Widths enter: the mean over channels is weighted by them.
    wide = serial(FanOut(2), parallel(fresh_dense(6), Dense(2, 2.0)), FanInConcat())
    assert_close(wide.kernel_fn(X1, X2, "nngp"), X1 @ X2.T / 5 * (6 + 2 * 4) / 8)


@pytest.mark.usefixtures("x64")
def test_decorated_layer():
    layer = Scale(3.0)
    assert Scale.__name__ == "Scale"
    assert [function.__name__ for function in layer] == ["Scale"] * 3
    net = serial(Dense(4), layer, Relu(), Dense(2))
    expected = serial(Dense(4, 3.0), Relu(), Dense(2)).kernel_fn(X1, X2, "nngp")
    assert_close(net.kernel_fn(X1, X2, "nngp"), expected)
    assert_close(layer.apply_fn((), X1, rng=KEY, foo=1), 3 * X1)
    assert_close(layer.kernel_fn(X1, X2, "nngp"), 9 * X1 @ X2.T / 5)
    assert layer.kernel_fn(X1, X2, "ntk").shape == ()
    assert_close(layer.kernel_fn(Dense(4).kernel_fn(X1)).ntk, 9 * Dense(4).kernel_fn(X1).ntk)


@pytest.mark.usefixtures("x64")
def test_spatial_and_repeated():
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    body = serial(Scale(1.1), Dense(5))
    expected = serial(Dense(5, 1.1), Dense(5, 1.1)).kernel_fn(x, None, "nngp")
    assert_close(repeat(body, 2).kernel_fn(x, None, "nngp"), expected)


def test_correlation_is_not_forgotten():
    # A layer that passes Gaussians on may or may not have weights of its own: taken as without.
    branches = parallel(Scale(2.0), Identity())
    with pytest.raises(NotImplementedError, match="independent branches"):
        serial(Dense(4), FanOut(2), branches, FanInSum()).kernel_fn(X1)
    with pytest.raises(NotImplementedError, match="independent branches"):
        serial(Dense(4), Relu(), FanOut(2), branches, FanInProd()).kernel_fn(X1)
    # Gaussian out of something else: by fresh weights.
    residual = parallel(serial(Relu(), fresh_dense(4)), Identity())
    kernel = serial(Dense(4), FanOut(2), residual, FanInSum()).kernel_fn(X1)
    expected = serial(
        Dense(4), FanOut(2), parallel(serial(Relu(), Dense(4)), Identity()), FanInSum()
    ).kernel_fn(X1)
    assert_close(kernel.nngp, expected.nngp)


def test_joins_and_forks_given_as_functions():
    fan_out = (
        lambda rng, shape: ([shape] * 2, ()),
        lambda params, x, **kwargs: [x, x],
        lambda k: [k, k],
    )
    fan_in = (
        lambda rng, shapes: (shapes[0], ()),
        lambda params, xs, **kwargs: xs[0] + xs[1],
        lambda ks: ks[0].replace(nngp=ks[0].nngp + ks[1].nngp, cov1=ks[0].cov1 + ks[1].cov1),
    )
    net = serial(fan_out, parallel(Dense(3), Dense(3)), fan_in)
    assert_close(net.kernel_fn(X1, None, "nngp"), 2 * Dense(3).kernel_fn(X1, None, "nngp"))
    assert net.init_fn(KEY, (-1, 5))[0] == (-1, 3)


def test_a_repassed_triple_is_the_network():
    net = serial(Dense(3), Relu())
    init_fn, apply_fn, kernel_fn = net
    assert serial((init_fn, apply_fn, kernel_fn)).layers[0] is net
    assert serial([init_fn, apply_fn, kernel_fn]).layers[0] is net
    assert serial(tuple(net)).layers[0] is net

    def apply_twice(params, inputs, **kwargs):
        return 2 * apply_fn(params, inputs, **kwargs)

    changed = serial((init_fn, apply_twice, kernel_fn))
    assert changed.layers[0] is not net
    _, params = changed.init_fn(KEY, (-1, 5))
    assert_close(changed.apply_fn(params, X1), 2 * net.apply_fn(params[0], X1))
    assert_close(changed.kernel_fn(X1, X2, "ntk"), net.kernel_fn(X1, X2, "ntk"))
    swapped = serial((apply_fn, init_fn, kernel_fn))
    assert swapped.layers[0] is not net


def test_masks():
    x = np.where(np.arange(5) < 3, X1, 7.0)
    net = serial(Scale(2.0), Dense(3))
    expected = serial(Dense(3, 2.0)).kernel_fn(x, None, "nngp", mask_constant=7.0)
    assert_close(net.kernel_fn(x, None, "nngp", mask_constant=7.0), expected)
    with pytest.raises(NotImplementedError, match="keeps its shape"):
        serial(fresh_dense(3)).kernel_fn(x, mask_constant=7.0)


def test_refused_functions():
    with pytest.raises(TypeError, match="layer or a triple of functions"):
        serial((1, 2, 3))
    with pytest.raises(TypeError, match="layer or a triple of functions"):
        serial((jnp.sin, jnp.cos))
    flatten = (
        lambda rng, shape: ((shape[0], shape[1] * shape[2]), ()),
        lambda params, x, **kwargs: x.reshape(len(x), -1),
        lambda k: k,
    )
    with pytest.raises(
        ValueError, match=r"\(2, 2\), .* shapes \(2, 4\) .* got .* \(2, 2, 2, 2\)"
    ) as error:
        serial(Dense(2), flatten).kernel_fn(X1.reshape(2, 2, 5))
    assert "at serial[1].Foreign" in error.value.__notes__


@stax.layer
def Shift(std):
    """Adds a random bias, with all that it does to a Kernel."""

    def init_fn(rng, input_shape):
        return input_shape, jax.random.normal(rng, (input_shape[-1],))

    def apply_fn(params, inputs, **kwargs):
        return inputs + std * params

    def kernel_fn(k, **kwargs):
        def shifted(value):
            return None if value is None else value + std**2

        return k.replace(
            nngp=shifted(k.nngp), ntk=shifted(k.ntk), cov1=shifted(k.cov1), cov2=shifted(k.cov2)
        )

    return init_fn, apply_fn, kernel_fn


@pytest.mark.usefixtures("x64")
def test_tangent_kernel_of_one_number():
    net = serial(Shift(0.7), Dense(1))
    right = X1 @ X2.T / 5 + 2 * 0.49
    assert_close(net.kernel_fn(X1, X2, "ntk"), right)
    assert_close(jax.jit(lambda x1, x2: net.kernel_fn(x1, x2, "ntk"))(X1, X2), right)
    assert_close(serial(Shift(0.7)).kernel_fn(X1, X2, "ntk"), np.full((4, 3), 0.49))
    assert serial(Scale(2.0)).kernel_fn(X1, X2, "ntk").shape == ()
