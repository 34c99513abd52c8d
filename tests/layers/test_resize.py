"""ImageResize: finite form, kernels against its matrix on both copies, batch, masks, errors."""

import functools

import jax
import numpy as np
import pytest

from tests.brute_force import same_samples, through
from tests.monte_carlo import agrees, compare
from tests.tolerance import assert_close
from widelimit.stax import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Identity,
    ImageResize,
    Relu,
    serial,
    unmask_fn,
)

KEY = jax.random.PRNGKey(0)
X1 = np.random.default_rng(0).standard_normal((3, 4, 3, 2))
X2 = np.random.default_rng(1).standard_normal((2, 4, 3, 2))
BASE = Conv(3, (2, 2), padding="SAME", W_std=1.3, b_std=0.2)
FLAT = serial(Conv(4, (2, 1), (2, 1), W_std=1.2, b_std=0.1), Relu(), Flatten())
GLOBAL = serial(Relu(), Conv(4, (2, 2), padding="SAME", b_std=0.3), GlobalAvgPool())


@functools.cache
def before(x2: bool):
    return BASE.kernel_fn(X1, X2 if x2 else None, diagonal_batch=False)


def check(layer, x2=True, tails=(FLAT, GLOBAL), mixes=False):
    other = X2 if x2 else None
    expected = through(layer, before(x2))
    actual = serial(BASE, layer).kernel_fn(X1, other)
    assert (actual.shape1, actual.shape2) == (expected.shape1, expected.shape2)
    assert actual.is_gaussian
    assert actual.diagonal_batch != mixes
    for field in ("nngp", "ntk"):
        assert_close(getattr(actual, field), getattr(expected, field))
    for field in ("cov1", "cov2") if x2 else ("cov1",):
        own = getattr(expected, field)
        assert_close(getattr(actual, field), own if mixes else same_samples(own))
    for tail in tails:
        out = serial(BASE, layer, tail).kernel_fn(X1, other, ("nngp", "ntk"))
        wanted = tail.kernel_fn(expected, None, ("nngp", "ntk"))
        assert_close(out.nngp, wanted.nngp)
        assert_close(out.ntk, wanted.ntk)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "method", "x2", "tail"),
    [((-1, 7, -1, -1), "linear", True, FLAT), ((-1, 3, 5, -1), "nearest", False, GLOBAL)],
)
def test_kernel_is_the_map_on_both_copies(shape, method, x2, tail):
    check(ImageResize(shape, method), x2, (tail,))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["linear", "nearest"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(-1, -1, 2, -1), (-1, 6, 2, -1), (-1, 2, 5, -1)])
def test_kernel_sweep(shape, method, antialias):
    check(ImageResize(shape, method, antialias))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [pytest.param(True, marks=pytest.mark.slow), False])
def test_resized_batch(x2):
    tail = serial(Dense(4, 1.2, 0.1), Relu(), Flatten())
    check(ImageResize((4, -1, 2, -1), "linear"), x2, (tail,), mixes=True)


@pytest.mark.usefixtures("x64")
def test_one_spatial_axis():
    x1, x2 = X1[:, :, 0], X2[:, :, 0]
    base = Conv(3, (2,), b_std=0.2)
    layer = ImageResize((-1, 5, -1), "bilinear")
    expected = through(layer, base.kernel_fn(x1, x2, diagonal_batch=False))
    tail = serial(Relu(), AvgPool((2,)), Flatten())
    out = serial(base, layer, tail).kernel_fn(x1, x2, "ntk")
    assert_close(out, tail.kernel_fn(expected, None, "ntk"))


@pytest.mark.usefixtures("x64")
def test_odd_number_of_convolutions_swaps_no_axes():
    """Height and width were taken for each other behind one convolution, and enums crashed."""
    layer = ImageResize((-1, 2, 6, -1), jax.image.ResizeMethod.NEAREST)
    kernel = serial(BASE, layer).kernel_fn(X1, X2, ("nngp", "shape1"))
    assert kernel.nngp.shape == (3, 2, 2, 2, 6, 6)
    assert kernel.shape1 == (3, 2, 6, 3)
    assert_close(kernel.nngp, through(layer, before(True)).nngp)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["linear", "nearest", "cubic"])
def test_finite_layer(method):
    layer = ImageResize((-1, 6, 2, 5), method)
    shape, params = layer.init_fn(KEY, (-1, 4, 3, 2))
    assert (shape, params) == ((-1, 6, 2, 5), ())
    assert_close(layer.apply_fn((), X1), jax.image.resize(X1, (3, 6, 2, 5), method))


@pytest.mark.usefixtures("x64")
def test_masked_where_all_that_contributes_is():
    x = X1[:, :, 0].copy()
    x[0, :2] = x[1, 1:] = 9.0
    layer = ImageResize((-1, 8, -1), "linear")
    out = layer.apply_fn((), x, mask_constant=9.0)
    assert out.mask.shape == (3, 8, 2)
    reads = np.array(jax.image.resize(np.eye(4), (8, 4), "linear")) > 0
    masked = np.isin(x, 9.0)[..., 0]
    np.testing.assert_array_equal(out.mask[..., 0], ~(~masked @ reads.T))
    # ... and the kernel is that of the finite layer on what is left.
    net = serial(Identity(), layer)
    z = np.asarray(unmask_fn(layer.apply_fn)((), x, mask_constant=9.0))
    kernel = net.kernel_fn(x, None, "nngp", mask_constant=9.0)
    assert_close(kernel, np.einsum("npc,mqc->nmpq", z, z) / 2)
    assert layer.mask(np.ones((3, 1, 1), bool), (3, 4, 2)).shape == (3, 1, 1)
    assert layer.apply_fn((), X1[:, :, 0]).shape == (3, 8, 2)


@pytest.mark.slow
def test_limit_of_finite_networks():
    def build(width, out):
        conv = Conv(width, (2,), padding="SAME", W_std=1.3, b_std=0.2)
        layer = ImageResize((-1, 3, -1), "linear")
        return serial(conv, Relu(), layer, Dense(width, 1.2), Relu(), Flatten(), Dense(out))

    assert agrees(compare(build, X1[:2, :, 0], X2[:, :, 0])).all()


def test_refusals():
    for method in ("cubic", "lanczos3"):
        with pytest.raises(NotImplementedError, match="'linear' or 'nearest' in a kernel") as error:
            serial(BASE, ImageResize((-1, 2, 2, -1), method)).kernel_fn(X1)
        assert "at serial[1].ImageResize" in error.value.__notes__
    with pytest.raises(ValueError, match="expected -1 for the channel axis 3 in a kernel"):
        ImageResize((-1, 2, 2, 4), "linear").kernel_fn(X1)
    with pytest.raises(ValueError, match="an input with 3 axes"):
        ImageResize((-1, 2, -1), "linear").init_fn(KEY, X1.shape)
    with pytest.raises(ValueError, match="sizes of at least 1"):
        ImageResize((-1, 0, -1), "linear")
    with pytest.raises(TypeError, match="sequence of ints"):
        ImageResize(3, "linear")
    with pytest.raises(ValueError, match="the name of a resize method"):
        ImageResize((-1, 2, -1), 1)
    with pytest.raises(ValueError, match="method"):
        ImageResize((-1, 2, -1), "blurry")
    assert repr(ImageResize([-1, 2, -1], "bilinear")) == "ImageResize((-1, 2, -1), 'linear')"
