"""Dense: formulas, axes, parameterisations, frozen layers, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.stax import Dense, Relu, serial

KEY = jax.random.PRNGKey(0)


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def covariance(x1, x2):
    return x1 @ x2.T / x1.shape[1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("b_std", [None, 0.0, 0.3])
def test_ntk_parameterisation(b_std):
    x1, x2 = inputs(4, 3), inputs(2, 3, seed=1)
    net = serial(Dense(7, 1.3, b_std), Dense(2, 0.8, b_std))
    b = (b_std or 0) ** 2
    k1 = 1.3**2 * covariance(x1, x2) + b
    k2 = 0.8**2 * k1 + b
    kernel = net.kernel_fn(x1, x2)
    assert_close(kernel.nngp, k2)
    assert_close(kernel.ntk, k2 + 0.8**2 * k1)
    assert_close(kernel.cov1, 0.8**2 * (1.3**2 * (x1**2).mean(1) + b) + b)
    assert kernel.is_gaussian
    assert kernel.shape1 == (4, 2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("b_std", [None, 0.0, 0.3])
def test_standard_parameterisation(b_std):
    x1, x2 = inputs(4, 3), inputs(2, 3, seed=1)
    net = serial(
        Dense(7, 1.3, b_std, parameterization="Standard", s=(1, 4)),
        Dense(2, 0.8, b_std, parameterization="standard", s=(4, 1)),
    )
    b, one = (b_std or 0) ** 2, 0 if b_std is None else 1
    k0 = covariance(x1, x2)
    k1 = 1.3**2 * k0 + b
    t1 = 3 * k0 + one
    kernel = net.kernel_fn(x1, x2, ("nngp", "ntk"))
    assert_close(kernel.nngp, 0.8**2 * k1 + b)
    assert_close(kernel.ntk, 7 * k1 + 0.8**2 * t1 + one)


@pytest.mark.usefixtures("x64")
def test_standard_parameters_and_outputs():
    layer = Dense(500, 1.5, 0.3, parameterization="standard", s=(2, 3))
    shape, (w, b) = layer.init_fn(KEY, (-1, 40))
    assert shape == (-1, 1500)
    assert w.shape == (40, 1500)
    assert b.shape == (1, 1500)
    assert float(w.std()) == pytest.approx(1.5 / np.sqrt(20), rel=0.02)
    assert float(b.std()) == pytest.approx(0.3, rel=0.05)
    x = inputs(3, 40)
    assert_close(layer.apply_fn((w, b), x), x @ w / np.sqrt(2) + b)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axes", [(0, -1), (1, 0), (-1, 1), (2, 0), (0, 1)])
def test_any_axes(axes):
    batch, channel = axes
    layer = Dense(6, 1.2, 0.4, batch, channel)
    shape = [0, 0, 0]
    shape[batch], shape[channel] = 3, 5
    space = shape.index(0)
    shape[space] = 2
    x = inputs(*shape)
    out_shape, (w, b) = layer.init_fn(KEY, shape)
    assert b.shape == tuple(6 if i == channel % 3 else 1 for i in range(3))
    rows = np.moveaxis(x, (batch, space, channel), (0, 1, 2))
    expected = 1.2 / np.sqrt(5) * rows @ w + 0.4 * b.reshape(1, 1, 6)
    out = layer.apply_fn((w, b), x)
    assert out.shape == out_shape
    assert_close(np.moveaxis(out, (batch, space, channel), (0, 1, 2)), expected)

    kernel = layer.kernel_fn(x)
    expected = 1.2**2 * np.einsum("npc,mqc->nmpq", rows, rows) / 5 + 0.4**2
    assert_close(kernel.nngp, expected)
    assert_close(kernel.ntk, expected)
    assert (kernel.batch_axis, kernel.channel_axis) == (batch % 3, channel % 3)
    assert kernel.shape1 == out_shape


def test_no_bias_no_parameter():
    _, (w, b) = Dense(3).init_fn(KEY, (1, 2))
    assert b is None
    assert w.shape == (2, 3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_frozen_layers(parameterization):
    x1, x2 = inputs(4, 3), inputs(2, 3, seed=1)

    def net(*trainable):
        return serial(
            *(Dense(3, 1.3, 0.3, parameterization=parameterization, trainable=t) for t in trainable)
        )

    both, first, last, none = (
        net(*t).kernel_fn(x1, x2)
        for t in ((True, True), (True, False), (False, True), (False,) * 2)
    )
    assert_close(first.ntk + last.ntk, both.ntk)
    assert_close(none.ntk, np.zeros((4, 2)))
    assert_close(first.nngp, both.nngp)
    assert float(jnp.abs(last.ntk).max()) > 0


def test_gradient_of_frozen_parameters_is_zero():
    net = serial(Dense(4, 1.0, 0.1, trainable=False), Relu(), Dense(2))
    _, params = net.init_fn(KEY, (1, 3))
    x = inputs(2, 3).astype(np.float32)
    grad = jax.grad(lambda p: net.apply_fn(p, x).sum())(params)
    assert not np.any(grad[0][0])
    assert not np.any(grad[0][1])
    assert np.any(grad[2][0])
    thawed = serial(Dense(4, 1.0, 0.1), Relu(), Dense(2))
    assert_close(net.apply_fn(params, x), thawed.apply_fn(params, x))


def test_integer_widths_and_numbers_of_any_kind():
    layer = Dense(np.int64(3), np.float32(1.5), np.sqrt(2))
    assert layer.init_fn(KEY, (-1, 2))[0] == (-1, 3)
    assert type(layer.W_std) is float
    assert type(layer.b_std) is float


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"out_dim": 0}, ValueError, "out_dim of at least 1, got 0"),
        ({"out_dim": 3.5}, TypeError, "an int for out_dim, got 3.5"),
        ({"W_std": None}, TypeError, "a number for W_std, got None"),
        ({"W_std": np.ones(2)}, TypeError, "a number for W_std"),
        ({"b_std": jnp.ones(1)}, TypeError, "a number for b_std"),
        ({"parameterization": "mup"}, ValueError, "'ntk' or 'standard', got 'mup'"),
        ({"s": (1, 0)}, ValueError, "two positive scales"),
        ({"s": (1, 1, 1)}, ValueError, "two positive scales"),
    ],
)
def test_bad_arguments(arguments, error, message):
    wrong = TypeError if error is TypeError else error
    with pytest.raises(wrong, match=message):
        Dense(**{"out_dim": 3, **arguments})


def test_bad_shapes():
    with pytest.raises(ValueError, match="an axis of an input of shape"):
        Dense(3, channel_axis=3).init_fn(KEY, (2, 3))
    with pytest.raises(ValueError, match="batch and channel axes"):
        Dense(3).init_fn(KEY, (2,))
    with pytest.raises(ValueError, match=r"batch axis 2 .* with 2 axes, .*: x\[..., None\] has one"):
        ValueError, match=r"batch axis 2 .* got one with 2 axes.*: x\[..., None\] has"
    ):
        Dense(3, batch_axis=2).kernel_fn(inputs(3, 4))
    with pytest.raises(ValueError, match="different batch and channel axes"):
        Dense(3, batch_axis=1).kernel_fn(inputs(3, 4))
    with pytest.raises(ValueError, match="expected 2 channels, as in init_fn, got 4"):
        Dense(3).apply_fn(Dense(3).init_fn(KEY, (1, 2))[1], inputs(3, 4))
    with pytest.raises(ValueError, match=r"expected batch and channel axes \(0, 1\)") as error:
        serial(Dense(3, batch_axis=1, channel_axis=0), Relu(), Dense(4)).kernel_fn(inputs(3, 4))
    assert "at serial[2].Dense" in error.value.__notes__
