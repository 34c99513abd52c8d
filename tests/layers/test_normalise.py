"""LayerNorm and RMSNorm: formulas over channels, space, batch; masks; near-duplicates; extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.brute_force import same_samples
from tests.monte_carlo import agrees, compare
from tests.tolerance import assert_close
from widelimit.stax import (
    Conv,
    Dense,
    Erf,
    Flatten,
    Identity,
    LayerNorm,
    Relu,
    RMSNorm,
    serial,
)

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
    cov1 = kernel.cov1 if kernel.diagonal_batch else same_samples(kernel.cov1)
    assert_close(cov1, own * plain.cov1)
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


@pytest.mark.optimised
def test_near_duplicates_in_float32():
    x = inputs(3, 20).astype(np.float32)
    x = np.concatenate([x, x, x * (1 + 1e-3 * inputs(3, 20, seed=1))]).astype(np.float32)
    net = serial(Dense(4, 1.4), LayerNorm(), *[Relu(), Dense(4, 1.4), LayerNorm()] * 5)
    single = net.kernel_fn(x, None, "ntk")
    with jax.enable_x64(True):
        double = np.asarray(net.kernel_fn(x, None, "ntk"))
    assert np.abs(single / double - 1).max() < 5e-6


@pytest.mark.optimised
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


@pytest.mark.parametrize("norm", [LayerNorm(eps=1e-30), RMSNorm(eps=1e-30)])
def test_rows_of_very_different_norms_before_a_kink(norm):
    x = inputs(4, 5).astype(np.float32)
    norms = np.exp2([-20, 0, 10, 25]).astype(np.float32)[:, None]
    kernel_fn = serial(Dense(4), norm, Dense(4), Relu(), Dense(4)).kernel_fn
    both, right = (kernel_fn(v, None, ("nngp", "ntk")) for v in (norms * x, x))
    assert_close(both.nngp, right.nngp, rtol=1e-6)
    assert_close(both.ntk, right.ntk, rtol=1e-6)
    grad = jax.grad(lambda x: kernel_fn(norms * x, None, "ntk").sum())(x)
    assert_close(grad, jax.grad(lambda x: kernel_fn(x, None, "ntk").sum())(x), rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [pytest.param(True, marks=pytest.mark.slow), False])
def test_over_the_batch_then_a_nonlinearity(x2):
    x1, other = inputs(3, 2, 5), inputs(2, 2, 5, seed=1) if x2 else None
    tail = serial(Erf(), Dense(4, 1.2), Relu(), Flatten())
    before = DENSE.kernel_fn(x1, other, diagonal_batch=False)
    after = serial(DENSE, LayerNorm((0, 2))).kernel_fn(x1, other)
    assert after.diagonal_batch

    def scale(cov):
        return 1 / np.sqrt(np.einsum("nnhh->nh", cov).mean(0))

    s1 = scale(before.cov1)
    s2 = scale(before.cov2) if x2 else s1
    expected = before.replace(
        nngp=before.nngp * jnp.asarray(np.outer(s1, s2))[None, None],
        ntk=before.ntk * jnp.asarray(np.outer(s1, s2))[None, None],
        cov1=before.cov1 * jnp.asarray(np.outer(s1, s1))[None, None],
        cov2=before.cov2 * jnp.asarray(np.outer(s2, s2))[None, None] if x2 else None,
    )
    assert_close(after.nngp, expected.nngp)
    assert_close(after.cov1, np.einsum("nn...->n...", expected.cov1))
    out = serial(DENSE, LayerNorm((0, 2)), tail).kernel_fn(x1, other, "ntk")
    assert_close(out, tail.kernel_fn(expected, None, "ntk"))


@pytest.mark.slow
@pytest.mark.parametrize("axis", [(1, 2), (0, 2), (0, 1, 2)])
def test_layer_norm_is_the_limit_of_finite_networks(axis):
    def build(width, out):
        conv = Conv(width, (2,), padding="SAME", W_std=1.3, b_std=0.4)
        return serial(conv, LayerNorm(axis), Erf(), Flatten(), Dense(out, 1.1))

    x = inputs(5, 3, 2)
    assert agrees(compare(build, x[:3], x[3:], mixes=True)).all()


@pytest.mark.slow
@pytest.mark.parametrize("axis", [-1, (0, 1, 2)])
def test_rms_norm_of_a_nonlinearity_is_the_limit_of_finite_networks(axis):
    def build(width, out):
        conv = Conv(width, (2,), padding="SAME", W_std=1.3, b_std=0.4)
        norm = RMSNorm(axis, eps=0.1)
        return serial(conv, Relu(), norm, Dense(width, 1.2, 0.1), Erf(), Flatten(), Dense(out))

    x = inputs(5, 3, 2)
    assert agrees(compare(build, x[:3], x[3:], mixes=True)).all()


@pytest.mark.usefixtures("x64")
def test_rms_norm_of_raw_input_is_exact():
    x1, x2 = inputs(3, 4, 2, 5), inputs(2, 4, 2, 5, seed=1)
    layer = RMSNorm((1, -1), eps=0.2)
    z1, z2 = (np.asarray(layer.apply_fn((), x)) for x in (x1, x2))
    assert_close(z1, x1 / np.sqrt((x1**2).mean((1, 3), keepdims=True) + 0.2))
    kernel = layer.kernel_fn(x1, x2)
    assert_close(kernel.nngp, np.einsum("nhwc,mgvc->nmhgwv", z1, z2) / 5)
    assert_close(kernel.cov2, np.einsum("nhwc,ngvc->nhgwv", z2, z2) / 5)
    assert not kernel.is_gaussian


@pytest.mark.usefixtures("x64")
def test_rms_norm_of_a_nonlinearity():
    x = inputs(3, 4, 5)
    net = serial(DENSE, Relu())
    before, after = net.kernel_fn(x), serial(net, RMSNorm(eps=0.1)).kernel_fn(x)
    q = np.einsum("nhh->nh", before.cov1) + 0.1
    scale = 1 / np.sqrt(np.einsum("nh,mg->nmhg", q, q))
    assert_close(after.nngp, scale * before.nngp)
    assert_close(after.ntk, scale * before.ntk)


@pytest.mark.usefixtures("x64")
def test_rms_norm_with_masks():
    x = inputs(3, 4, 1)
    x[0, 2:] = x[1, 0] = x[2] = 9.0
    layer = RMSNorm((1, 2))
    out = layer.apply_fn((), x, mask_constant=9.0)
    seen = x[0, :2]
    assert_close(out.masked_value[0, :2], seen / np.sqrt((seen**2).mean()))
    assert not np.any(out.masked_value[0, 2:])
    z = np.asarray(out.masked_value)[..., 0]
    kernel = layer.kernel_fn(x, None, "nngp", mask_constant=9.0)
    assert_close(kernel, np.einsum("np,mq->nmpq", z, z))


def test_rms_norm_refusals():
    x = inputs(3, 4, 5)
    for net in (RMSNorm(1), serial(DENSE, Relu(), RMSNorm((0, 1)))):
        with pytest.raises(ValueError, match="axis to hold the channel axis 2"):
            net.kernel_fn(x)
    with pytest.raises(NotImplementedError, match="masks equal on all channels for RMSNorm"):
        RMSNorm().kernel_fn(x, mask_constant=9.0)
    assert RMSNorm(1).apply_fn((), x).shape == x.shape


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
