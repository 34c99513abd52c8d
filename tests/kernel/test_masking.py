"""Masked inputs: every spelling of the constant, kernels and finite networks, MaskedArray."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.kernel.masking import all_masked, collapse, hide, split_mask
from widelimit.stax import (
    Cos,
    Dense,
    FanInConcat,
    FanInSum,
    FanOut,
    Flatten,
    Identity,
    MaskedArray,
    Relu,
    parallel,
    serial,
    unmask_fn,
)

KEY = jax.random.PRNGKey(0)
X = np.random.default_rng(0).standard_normal((4, 3, 5))
MASK = np.zeros((4, 3, 5), bool)
MASK[0, 1:] = MASK[1, 0] = MASK[2] = True
MASK[3, 0, :2] = MASK[3, 1, 4] = True  # on some channels only: the position stays
NET = serial(Dense(6, 1.2, 0.3), Cos(), Dense(2, 1.1, 0.2))


def masked(constant):
    return np.where(MASK, constant, X)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("constant", [np.inf, np.float64(-np.inf), 7, jnp.nan])
def test_constants(constant):
    expected = NET.kernel_fn(masked(np.nan), None, "ntk", mask_constant=np.nan)
    actual = NET.kernel_fn(masked(constant), None, "ntk", mask_constant=constant)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("constant", [7.0, np.nan])
def test_kernel(constant):
    x = masked(constant)
    kernel = NET.kernel_fn(x, None, mask_constant=constant)
    keep = ~MASK.all(-1)
    pairs = np.einsum("np,mq->nmpq", keep, keep)
    plain = NET.kernel_fn(np.where(MASK, 0, X))
    assert_close(kernel.nngp, pairs * np.asarray(plain.nngp))
    assert_close(kernel.ntk, pairs * np.asarray(plain.ntk))
    own = np.einsum("np,nq->npq", keep, keep)
    assert_close(kernel.cov1, own * np.asarray(plain.cov1))
    np.testing.assert_array_equal(kernel.mask1[..., 0], ~keep)
    assert kernel.mask1.shape == (4, 3, 1)
    assert kernel.mask2 is None

    other = NET.kernel_fn(x, x[:2], mask_constant=constant)
    assert_close(other.nngp, kernel.nngp[:, :2])
    np.testing.assert_array_equal(other.mask2, kernel.mask1[:2])
    same = NET.kernel_fn(x, x.copy(), mask_constant=constant)
    assert bool(same.x1_is_x2)
    np.testing.assert_array_equal(same.mask2, kernel.mask1)


def test_finite_network():
    x = masked(7.0).astype(np.float32)
    keep = ~MASK.all(-1)
    constant = 7.0
    _, params = NET.init_fn(KEY, x.shape)
    out = jax.jit(NET.apply_fn)(params, x, mask_constant=constant)
    assert isinstance(out, MaskedArray)
    np.testing.assert_array_equal(out.mask[..., 0], ~keep)
    plain = NET.apply_fn(params, np.where(MASK, 0, x))
    hidden = unmask_fn(NET.apply_fn)(params, x, mask_constant=constant)
    # The bias of the first layer does not leak through the second.
    assert not np.any(hidden[0, 1:])
    assert_close(hidden, np.where(keep[..., None], np.asarray(plain), 0))


@pytest.mark.usefixtures("x64")
def test_sees_only_what_is_visible():
    net = serial(NET, Flatten(), Dense(2))
    x = np.concatenate([X, np.full((4, 2, 5), 9.0)], 1)
    kernel = net.kernel_fn(x, None, "ntk", mask_constant=9.0)
    # Flatten does not renormalise: the mean is over five positions, two of them zero.
    inner = serial(NET, Flatten()).kernel_fn(X)
    assert_close(kernel, (np.asarray(inner.nngp) + np.asarray(inner.ntk)) * 3 / 5)


def test_constant_is_meant_in_the_dtype_of_the_input():
    for dtype in (np.float16, np.float32):
        with jax.enable_x64(dtype == np.float32):
            x = np.full((2, 3), 0.1, dtype)
            for constant in (0.1, np.float64(0.1)):
                assert not np.any(Identity().kernel_fn(x, None, "nngp", mask_constant=constant))
    x = jnp.full((2, 3), 0.1, jnp.bfloat16)
    assert not np.any(Identity().kernel_fn(x, None, "nngp", mask_constant=0.1))
    integers = np.array([[1, 2], [3, 1]])
    kernel = Identity().kernel_fn(integers, None, "nngp", mask_constant=1)
    assert_close(kernel, np.array([[2.0, 0.0], [0.0, 4.5]]))
    out = Identity().apply_fn((), integers, mask_constant=1)
    np.testing.assert_array_equal(out.mask, integers == 1)


def test_only_what_equals_the_constant_is_exempt_from_the_check():
    x = masked(np.inf)
    for constant in (None, np.nan, -np.inf, 7.0):
        with pytest.raises(ValueError, match=r"x1 to be finite.* index \(0, 1, 0\)"):
            NET.kernel_fn(x, mask_constant=constant)


def test_under_jit():
    x = masked(7.0).astype(np.float32)
    expected = NET.kernel_fn(x, None, "ntk", mask_constant=7.0)

    @jax.jit
    def traced(x, constant):
        return NET.kernel_fn(x, None, "ntk", mask_constant=constant)

    assert_close(traced(x, 7.0), expected)
    assert_close(traced(masked(np.nan), np.nan), expected)
    grad = jax.grad(lambda x: traced(x, 7.0).sum())(x)
    assert np.isfinite(grad).all()
    assert not np.any(grad[MASK])


@pytest.mark.usefixtures("x64")
def test_branches():
    x1, x2 = masked(7.0), masked(7.0)[:, ::-1]
    net = serial(parallel(NET, serial(Dense(2))), FanInSum())
    kernel = net.kernel_fn([x1, x2], None, mask_constant=7.0)
    a = NET.kernel_fn(x1, None, mask_constant=7.0)
    b = Dense(2).kernel_fn(x2, None, mask_constant=7.0)
    both = np.asarray(a.mask1) & np.asarray(b.mask1)
    np.testing.assert_array_equal(kernel.mask1, both)
    assert_close(kernel.ntk, a.ntk + b.ntk)
    _, params = net.init_fn(KEY, [x1.shape] * 2)
    out = net.apply_fn(params, [x1, x2], mask_constant=7.0)
    np.testing.assert_array_equal(out.mask, both)
    pair = parallel(NET, Identity()).apply_fn((params[0][0], ()), (x1, x2), mask_constant=7.0)
    assert type(pair) is tuple
    assert [type(part) for part in pair] == [MaskedArray] * 2
    hidden = unmask_fn(lambda: pair)()
    np.testing.assert_array_equal(hidden[1], np.where(x2 == 7.0, 0, x2))


@pytest.mark.usefixtures("x64")
def test_concatenated_masks():
    net = serial(FanOut(2), parallel(Dense(2, 1.1), serial(Identity())), FanInConcat())
    kernel = net.kernel_fn(masked(7.0), None, mask_constant=7.0)
    positions = MASK.all(-1, keepdims=True)
    expected = np.concatenate([np.broadcast_to(positions, (4, 3, 2)), MASK], -1)
    np.testing.assert_array_equal(kernel.mask1, expected)
    later = serial(net, Dense(3)).kernel_fn(masked(7.0), None, mask_constant=7.0)
    np.testing.assert_array_equal(later.mask1, positions)


@pytest.mark.usefixtures("x64")
def test_kernels_carry_masks_on():
    x1, x2 = masked(7.0), masked(7.0)[:2]
    first, second = Dense(6, 1.2, 0.3), serial(Cos(), Dense(2, 1.1, 0.2))
    for other in (x2, x1.copy()):
        inner = first.kernel_fn(x1, other, mask_constant=7.0)
        kernel = second.kernel_fn(inner)
        expected = NET.kernel_fn(x1, other, mask_constant=7.0)
        assert_close(kernel.ntk, expected.ntk)
        np.testing.assert_array_equal(kernel.mask1, expected.mask1)
        np.testing.assert_array_equal(kernel.mask2, expected.mask2)
    # Traced, the kernel does not know that x2 is x1: the second mask is needed.
    traced = jax.jit(lambda k: second.kernel_fn(k, get="nngp"))(inner)
    assert_close(traced, expected.nngp, rtol=1e-7)


def test_helpers():
    assert collapse(None, 1) is None
    np.testing.assert_array_equal(
        collapse(jnp.array([[True, False], [True, True]]), 1), [[False], [True]]
    )
    assert all_masked((None, None)) is None
    np.testing.assert_array_equal(
        all_masked((jnp.array([True, False]), None, jnp.array([True, True]))), [True, False]
    )
    assert_close(hide(jnp.ones((2, 2)), jnp.array([[True], [False]])), [[0, 0], [1, 1]], rtol=0)
    x, mask = split_mask([jnp.ones(2), MaskedArray(jnp.ones(2), jnp.array([True, False]))], None)
    assert mask[0] is None
    assert_close(x[1], jnp.array([0.0, 1.0]))
    assert split_mask(None, 3.0) == (None, None)
    out = jax.jit(lambda m: m)(MaskedArray(jnp.ones(2), None))
    assert out.mask is None


def test_masks_of_the_wrong_shape_are_refused():
    net = serial(Identity(), Relu())
    x = np.ones((2, 5, 3), np.float32)
    for shape in ((2, 5), (2, 4, 1), (1, 5, 2)):
        masked = MaskedArray(jnp.asarray(x), jnp.zeros(shape, bool))
        with pytest.raises(ValueError, match="a mask that fits values of shape") as error:
            net.apply_fn([(), ()], masked)
        assert error.value.__notes__ == ["at serial"]


def test_relu_first_layer_takes_numpy_and_masked_arrays():
    x = np.array([[1.0, -2.0], [7.0, 3.0]])
    out = Relu().apply_fn((), x, mask_constant=7.0)
    again = Relu().apply_fn((), MaskedArray(jnp.asarray(x), jnp.asarray(x == 7.0)))
    assert_close(out.masked_value, again.masked_value)
    with pytest.raises(TypeError, match="got a MaskedArray: use mask_constant"):
        Dense(2).kernel_fn(again)
