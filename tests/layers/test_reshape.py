"""Flatten and Identity: shapes, axes, the mean over positions, Flatten on raw input."""

import jax
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.stax import (
    Cos,
    Dense,
    FanInProd,
    FanInSum,
    FanOut,
    Flatten,
    Identity,
    Relu,
    parallel,
    serial,
)

KEY = jax.random.PRNGKey(0)
X1 = np.random.default_rng(0).standard_normal((3, 2, 4, 5))
X2 = np.random.default_rng(1).standard_normal((2, 2, 4, 5))


def flat(x):
    return x.reshape(len(x), -1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("out", [0, 1, -1, -2])
def test_batch_axis_out(out):
    layer = Flatten(batch_axis_out=out)
    transposed = out % 2 == 1
    expected = flat(X1).T if transposed else flat(X1)
    shape, params = layer.init_fn(KEY, (3, 2, 4, 5))
    assert params == ()
    assert shape == expected.shape
    assert_close(layer.apply_fn((), X1), expected)
    kernel = layer.kernel_fn(X1, X2)
    assert_close(kernel.nngp, flat(X1) @ flat(X2).T / 40)
    assert (kernel.batch_axis, kernel.channel_axis) == ((1, 0) if transposed else (0, 1))
    assert kernel.shape1 == shape
    assert not kernel.is_gaussian
    assert kernel.ntk.shape == ()
    axes = {"batch_axis": 1, "channel_axis": 0} if transposed else {}
    later = serial(Identity(), Flatten(batch_axis_out=out), Dense(3, 1.2, 0.1, **axes), Relu())
    first = serial(Flatten(batch_axis_out=out), Dense(3, 1.2, 0.1, **axes), Relu())
    assert_close(first.kernel_fn(X1, X2, "ntk"), later.kernel_fn(X1, X2, "ntk"))
    assert_close(serial(first).kernel_fn(X1, X2, "ntk"), later.kernel_fn(X1, X2, "ntk"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch", [1, 2, 3, -1, -2, -4])
def test_batch_axis(batch):
    x1, x2 = (np.moveaxis(x, 0, batch) for x in (X1, X2))
    expected = flat(X1) @ flat(X2).T / 40
    assert_close(Flatten(batch).kernel_fn(x1, x2, "nngp"), expected)
    assert_close(serial(Identity(), Flatten(batch)).kernel_fn(x1, x2, "nngp"), expected)
    assert_close(Flatten(batch).apply_fn((), x1), flat(X1))


@pytest.mark.usefixtures("x64")
def test_mean_over_positions():
    plain, kernel = (
        serial(Dense(6, 1.2, 0.1), Cos(), *last).kernel_fn(X1, X2) for last in ((), (Flatten(),))
    )
    for field in ("nngp", "ntk"):
        assert_close(getattr(kernel, field), np.einsum("nmhhww->nm", getattr(plain, field)) / 8)
    assert_close(kernel.cov1, np.einsum("nhhww->n", plain.cov1) / 8)
    assert kernel.shape1 == (3, 48)
    assert not kernel.is_gaussian


@pytest.mark.usefixtures("x64")
def test_masks_are_flattened():
    x = X1.copy()
    x[0, 1] = x[1, :, :, 2] = 9.0
    hidden = np.where(x == 9.0, 0, x)
    kernel = Flatten().kernel_fn(x, None, mask_constant=9.0)
    assert_close(kernel.nngp, flat(hidden) @ flat(hidden).T / 40)
    assert_close(kernel.mask1, flat(x == 9.0))
    out = Flatten().apply_fn((), x, mask_constant=9.0)
    assert_close(out.mask, flat(x == 9.0))
    later = serial(Dense(3, 1.1, 0.2), Cos(), Flatten()).kernel_fn(x, None, mask_constant=9.0)
    assert later.mask1.shape == (3, 24)


@pytest.mark.usefixtures("x64")
def test_identity_of_branches():
    net = serial(FanOut(2), Identity(), parallel(Dense(3), Dense(3)), FanInSum())
    x1, x2 = flat(X1), flat(X2)
    assert_close(net.kernel_fn(x1, x2, "ntk"), 2 * Dense(3).kernel_fn(x1, x2, "ntk"))
    assert Identity().init_fn(KEY, [(1, 2), (1, 3)])[0] == ((1, 2), (1, 3))


@pytest.mark.usefixtures("x64")
def test_given_axes():
    x = np.moveaxis(X1, 0, 2)
    kernel = Identity().kernel_fn(x, None, batch_axis=2, channel_axis=0)
    assert (kernel.batch_axis, kernel.channel_axis) == (2, 0)
    rows = np.moveaxis(x, (2, 0), (0, 3))
    assert_close(kernel.nngp, np.einsum("nhwc,mgvc->nmhgwv", rows, rows) / 2)
    assert_close(
        Dense(3).kernel_fn(X1, None, "nngp", batch_axis=0), Dense(3).kernel_fn(X1, None, "nngp")
    )
    with pytest.raises(ValueError, match=r"axes .* as this layer states, got"):
        Dense(3).kernel_fn(X1, channel_axis=1)
    with pytest.raises(ValueError, match="the batch axis 0 that Flatten states, got 1"):
        Flatten().kernel_fn(X1, batch_axis=1)


def test_refusals():
    with pytest.raises(ValueError, match="batch_axis_out to be 0, 1, -1 or -2, got 2"):
        Flatten(batch_axis_out=2)
    for call in (lambda: Flatten(5).init_fn(KEY, (3, 2)), lambda: Flatten(5).kernel_fn(X1)):
        with pytest.raises(ValueError, match="an axis of an input of shape"):
            call()
    with pytest.raises(ValueError, match="expected one input, got 2 branches"):
        Flatten().kernel_fn([X1, X1])
    for first in ((), (Identity(),)):  # on raw input and later
        with pytest.raises(ValueError, match=r"axes \(0, 1\) as this layer states, got \(1, 0\)"):
            serial(*first, Flatten(batch_axis_out=1), Dense(3)).kernel_fn(X1)
    with pytest.raises(ValueError, match=r"Gaussian input .* got .*Flatten"):
        serial(Dense(3), Flatten(), Relu()).kernel_fn(X1)
    with pytest.raises(ValueError, match="one array"):
        serial(Dense(3), Flatten(), FanInProd()).kernel_fn(X1)
