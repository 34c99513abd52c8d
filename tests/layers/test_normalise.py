"""LayerNorm: direct formulas over channels, space and batch; masks; near-duplicates; extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.stax import Dense, Identity, LayerNorm, Relu, serial

KEY = jax.random.PRNGKey(0)
DENSE = Dense(6, 1.3, 0.4)


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("eps", [1e-12, 0.3])
def test_over_channels(eps):
    x1, x2 = inputs(4, 5), inputs(3, 5, seed=1)
    plain, kernel = DENSE.kernel_fn(x1, x2), serial(DENSE, LayerNorm(eps=eps)).kernel_fn(x1, x2)
    scale = 1 / np.sqrt(np.outer(plain.cov1 + eps, plain.cov2 + eps))
    assert_close(kernel.nngp, scale * plain.nngp)
    assert_close(kernel.ntk, scale * plain.ntk)
    assert_close(kernel.cov1, plain.cov1 / (plain.cov1 + eps))
    assert kernel.is_gaussian


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axis", [(-1,), (1, 3), (1, 2, -1), (0, -1), (0, 2, 3)])
def test_over_other_axes(axis):
    x1, x2 = inputs(3, 2, 2, 5), inputs(2, 2, 2, 5, seed=1)
    net = serial(DENSE, LayerNorm(axis))
    plain, kernel = DENSE.kernel_fn(x1, x2), net.kernel_fn(x1, x2)
    over = tuple(a for a in axis if a not in (-1, 3))

    def normaliser(cov):
        variance = np.einsum("nhhww->nhw", cov)
        return np.broadcast_to(variance.mean(over, keepdims=True), variance.shape)

    v1, v2 = normaliser(plain.cov1), normaliser(plain.cov2)
    scale = 1 / np.sqrt(np.einsum("nhw,mgv->nmhgwv", v1, v2))
    assert_close(kernel.nngp, scale * plain.nngp)
    assert_close(kernel.ntk, scale * plain.ntk)
    own = 1 / np.sqrt(np.einsum("nhw,ngv->nhgwv", v1, v1))
    assert_close(kernel.cov1, own * plain.cov1)
    diagonal = net.kernel_fn(x1, x2, "nngp", diagonal_spatial=True)
    assert_close(diagonal, np.einsum("nmhhww->nmhw", kernel.nngp))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axis", [-1, (1, 2)])
def test_masked_positions_do_not_count(axis):
    x = inputs(3, 4, 5)
    x[0, 2:] = x[1, 0] = x[2] = 9.0
    net = serial(DENSE, LayerNorm(axis), Relu(), Dense(2))
    kernel = net.kernel_fn(x, None, ("nngp", "ntk"), mask_constant=9.0)
    # The first sample alone, without its masked positions.
    short = net.kernel_fn(x[:1, :2], None, ("nngp", "ntk"))
    assert_close(kernel.nngp[0, 0, :2, :2], short.nngp[0, 0])
    assert_close(kernel.ntk[0, 0, :2, :2], short.ntk[0, 0])
    assert not np.any(kernel.nngp[2])
    assert not np.any(kernel.nngp[0, :, 2:])
    assert np.isfinite(kernel.ntk).all()


@pytest.mark.usefixtures("x64")
def test_finite_layer():
    x = inputs(3, 4, 5)
    out = LayerNorm((1, 2)).apply_fn((), x)
    assert_close(out.mean((1, 2)), np.zeros(3) + out.mean((1, 2)))
    assert_close(out, (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True))
    x[0, 2:] = 9.0
    masked = LayerNorm((1, 2)).apply_fn((), x, mask_constant=9.0)
    seen = x[0, :2]
    assert_close(masked.masked_value[0, :2], (seen - seen.mean()) / seen.std())
    assert not np.any(masked.masked_value[0, 2:])


def test_near_duplicates_in_float32():
    x = inputs(3, 20).astype(np.float32)
    x = np.concatenate([x, x, x * (1 + 1e-3 * inputs(3, 20, seed=1))]).astype(np.float32)
    net = serial(Dense(4, 1.4), LayerNorm(), *[Relu(), Dense(4, 1.4), LayerNorm()] * 5)
    single = net.kernel_fn(x, None, "ntk")
    with jax.enable_x64(True):
        double = np.asarray(net.kernel_fn(x, None, "ntk"))
    assert np.abs(single / double - 1).max() < 5e-6


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e15])
def test_extreme_variances_in_float32(scale):
    x = (scale * inputs(3, 20)).astype(np.float32)
    net = serial(Dense(4), LayerNorm(eps=1e-30 if scale else 1e-12))
    kernel = net.kernel_fn(x)
    correlation = np.corrcoef(x) if scale else None
    assert np.isfinite(kernel.nngp).all()
    if correlation is not None:
        root = np.sqrt(np.diag(x.astype(np.float64) @ x.T))
        assert_close(kernel.nngp, (x.astype(np.float64) @ x.T / np.outer(root, root)), rtol=1e-5)
    grad = jax.grad(lambda x: net.kernel_fn(x, None, "ntk").sum())(x)
    assert np.isfinite(grad).all()


def test_refusals():
    x = inputs(3, 4, 5)
    with pytest.raises(ValueError, match="axis to hold the channel axis 2, got 1") as error:
        serial(DENSE, LayerNorm(1)).kernel_fn(x)
    assert "at serial[1].LayerNorm" in error.value.__notes__
    for net in (LayerNorm(), serial(DENSE, Relu(), LayerNorm())):
        with pytest.raises(NotImplementedError, match=r"Gaussian input .* for LayerNorm"):
            net.kernel_fn(x)
    for axis in (5, (2, -1)):
        with pytest.raises(ValueError, match="distinct axes of an input with 3 axes"):
            serial(Identity(), LayerNorm(axis)).init_fn(KEY, x.shape)
    with pytest.raises(ValueError, match=r"axes \(1, 2\) as this layer states, got \(0, 2\)"):
        serial(DENSE, LayerNorm(batch_axis=1)).kernel_fn(x)
    assert LayerNorm([0, -1]).axis == (0, -1)
    assert jnp.isfinite(LayerNorm().apply_fn((), jnp.zeros((2, 3)))).all()
