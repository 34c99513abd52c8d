"""Index: NumPy's indexing, kernels against brute force, samples, folded offsets, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.brute_force import same_samples, through
from tests.monte_carlo import agrees, compare
from tests.tolerance import assert_close
from widelimit import stax
from widelimit.stax import Conv, Dense, Flatten, GlobalAvgPool, Index, Relu, Slice, serial

KEY = jax.random.PRNGKey(0)
X1 = np.random.default_rng(0).standard_normal((3, 5, 4, 2))
X2 = np.random.default_rng(1).standard_normal((2, 5, 4, 2))
BASE = Conv(3, (2, 2), padding="SAME", W_std=1.3, b_std=0.2)
POOL = serial(Relu(), GlobalAvgPool())


@functools.cache
def before(x2: bool):
    return BASE.kernel_fn(X1, X2 if x2 else None, diagonal_batch=False)


def check(idx, x2, tail):
    layer, other = Index(idx), X2 if x2 else None
    axes = (0, -1)
    expected = through(layer, before(x2), axes)
    actual = serial(BASE, layer).kernel_fn(X1, other)
    assert (actual.shape1, actual.shape2) == (expected.shape1, expected.shape2)
    assert actual.is_gaussian
    for field in ("nngp", "ntk", "cov1") + (("cov2",) if x2 else ()):
        own = getattr(expected, field)
        diagonal = field.startswith("cov") and actual.diagonal_batch
        assert_close(getattr(actual, field), same_samples(own) if diagonal else own)
    out = serial(BASE, layer, tail).kernel_fn(X1, other, ("nngp", "ntk"))
    wanted = tail.kernel_fn(expected, None, ("nngp", "ntk"))
    assert_close(out.nngp, wanted.nngp)
    assert_close(out.ntk, wanted.ntk)


STRIDED = serial(Conv(4, (2, 1), (2, 1), W_std=1.2, b_std=0.1), Relu(), Flatten())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("idx", "x2", "tail"),
    [
        (Slice[:, 3::-1, 1:], True, STRIDED),
        (Slice[::-1, ::2, 1], True, POOL),
    ],
)
def test_kernel_is_the_chosen_part(idx, x2, tail):
    check(idx, x2, tail)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [True, False])
@pytest.mark.parametrize(
    ("idx", "tail"),
    [
        (Slice[:, ::2, ::-1], STRIDED),
        (Slice[..., 1:3, :], POOL),
        (Slice[1:, 2, -1], Relu()),
        (Slice[:2, :, ::3], serial(Dense(3), Relu(), STRIDED)),
        (Slice[:, -2, ...], POOL),
    ],
)
def test_kernel_sweep(idx, x2, tail):
    check(idx, x2, tail)


@pytest.mark.usefixtures("x64")
def test_only_the_offsets_of_the_part_are_stored():
    """A stride of 2 before Flatten needs equal positions; before pooling, multiples of 2."""
    from widelimit.covariance.offsets import Need
    from widelimit.covariance.signal import Signal

    signal = Signal((3, 5, 4, 6), (2, 5, 4, 6), 0, 3)
    assert Index(Slice[:, ::2, 1]).needs(Need.full((3,)), signal).cross.axes == (
        (-4, -2, 0, 2, 4),
        (0,),
    )
    assert Index(Slice[:, ::-1]).needs(Need.zero(2), signal).own.axes == ((0,), (0,))
    assert Index(Slice[:, 1]).moduli((5, 4), signal) == (4,)
    assert Index(Slice[:, 1:]).moduli((5, 4), signal) == (None, 4)


INDICES = [
    Slice[1:],
    Slice[:, 2],
    Slice[..., 0],
    Slice[0],
    Slice[:, ::-2, 1:3, 1:],
    Slice[...],
    Slice[()],
    Slice[np.int64(1), ..., -1],
]


@pytest.mark.parametrize("idx", INDICES, ids=str)
def test_finite_layer_is_numpy(idx):
    layer = Index(idx)
    expected = X1[idx]
    assert layer.init_fn(KEY, X1.shape)[0] == expected.shape
    np.testing.assert_array_equal(layer.apply_fn((), jnp.asarray(X1)), expected.astype(np.float32))
    hidden = np.where(X1 > 0.5, 9.0, X1).astype(np.float32)
    out = layer.apply_fn((), hidden, mask_constant=9.0)
    np.testing.assert_array_equal(out.mask, (hidden == 9)[idx])


@pytest.mark.usefixtures("x64")
def test_masks_and_axes_move_along():
    x = np.moveaxis(X1, 0, 2).copy()  # samples on axis 2, channels on axis 3
    x[3:, :, 0] = 9.0
    dense = Dense(3, 1.2, 0.1, batch_axis=2)
    net = serial(dense, Index(Slice[::3, 1], batch_axis=2))
    kernel = net.kernel_fn(x, mask_constant=9.0)
    plain = dense.kernel_fn(x, mask_constant=9.0)
    assert (kernel.batch_axis, kernel.channel_axis) == (1, 2)
    assert kernel.shape1 == (2, 3, 3)
    assert_close(kernel.nngp, plain.nngp[:, :, ::3, ::3, 1, 1])
    assert not np.any(kernel.nngp[0, :, 1])
    assert kernel.mask1.shape == (2, 3, 1)
    np.testing.assert_array_equal(kernel.mask1[1, :, 0], [True, False, False])


@pytest.mark.optimised
def test_near_duplicates_survive_in_float32():
    x = X1[:, 0].astype(np.float32)
    x = np.concatenate([x, x * np.float32(1 + 1e-3)])
    first, rest = serial(Dense(4), Relu()), serial(*[Dense(4, 2**0.5), Relu()] * 2)
    out = serial(first, Index(Slice[:, 1]), rest).kernel_fn(x, None, "ntk")
    expected = serial(first, rest).kernel_fn(x[:, 1], None, "ntk")
    assert_close(out, expected, rtol=1e-6)


@pytest.mark.slow
def test_limit_of_finite_networks():
    def build(width, out):
        conv = Conv(width, (2,), padding="SAME", W_std=1.3, b_std=0.2)
        return serial(conv, Relu(), Index(Slice[:, ::-2]), Conv(width, (2,)), POOL, Dense(out))

    assert agrees(compare(build, X1[:2, :, 0], X2[:, :, 0])).all()


def test_refusals():
    def refused(idx, error, match, net=True):
        with pytest.raises(error, match=match) as caught:
            serial(BASE, Index(idx)).kernel_fn(X1) if net else Index(idx)
        if net:
            assert "at serial[1].Index" in caught.value.__notes__

    refused(Slice[0], NotImplementedError, "a slice of the batch axis 0 in a kernel")
    for idx in (Slice[..., 1:], Slice[..., 0], Slice[..., ::-1]):
        refused(idx, NotImplementedError, "':' for the channel axis 3 in a kernel")
    refused(Slice[:, 5], ValueError, "an index within axis 1 of size 5, got 5")
    refused(Slice[:, 4:4], ValueError, "part of axis 1 of size 5")
    refused(Slice[:, 0, 0, :, 0], ValueError, "an index of at most 4 axes")
    for idx in (None, Slice[:, None], Slice[:, [0, 1]], Slice[np.arange(2)], True, "a", 1.0):
        refused(idx, TypeError, "an index of ints, slices and an Ellipsis", net=False)
    refused(Slice[..., 0, ...], ValueError, "at most one Ellipsis", net=False)
    refused(Slice[::0], ValueError, "a step other than 0", net=False)
    assert repr(Index(Slice[..., 1:3, ::-1, 0], channel_axis=1)) == (
        "Index(Slice[..., 1:3, ::-1, 0], channel_axis=1)"
    )


def test_unknown_batch_size():
    assert Index(Slice[:, 1:]).init_fn(KEY, (-1, 5, 2))[0] == (-1, 4, 2)
    assert Index(Slice[0::1, 1:]).init_fn(KEY, (-1, 5, 2))[0] == (-1, 4, 2)
    for idx in (Slice[:3], Slice[0], Slice[::-1]):
        with pytest.raises(ValueError, match="the size of axis 0"):
            Index(idx).init_fn(KEY, (-1, 5, 2))
    assert stax.Slice[1:, ..., 0] == (slice(1, None), ..., 0)
