"""Covariances of inputs by offset against direct sums; the public layout and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.covariance import layout
from widelimit.covariance.layout import mirror
from widelimit.covariance.offsets import Need, Offsets
from widelimit.covariance.signal import Signal

input_covariances = jax.jit(layout.input_covariances, static_argnums=(2, 3, 4))
to_public = jax.jit(layout.to_public, static_argnums=(1, 2), static_argnames="diagonal")
from_public = jax.jit(layout.from_public, static_argnums=(1, 2), static_argnames="diagonal")

RNG = np.random.default_rng(0)
SPATIAL = [(), (3,), (3, 2)]


def arrays(spatial, n1=4, n2=3, channels=5):
    x1 = RNG.standard_normal((n1, *spatial, channels))
    x2 = RNG.standard_normal((n2, *spatial, channels))
    return x1, x2, Signal(x1.shape, x2.shape, 0, len(spatial) + 1)


def direct(x1, x2):
    """[n1, n2, p, q], mean over channels."""
    a, b = (x.reshape(len(x), -1, x.shape[-1]) for x in (x1, x2))
    return np.einsum("npc,mqc->nmpq", a, b) / x1.shape[-1]


def unzipped(public, spatial):
    ndim = len(spatial)
    lead = public.ndim - 2 * ndim
    axes = [lead + 2 * i for i in range(ndim)] + [lead + 2 * i + 1 for i in range(ndim)]
    size = int(np.prod(spatial, dtype=int))
    moved = np.asarray(public).transpose(*range(lead), *axes)
    return moved.reshape(*moved.shape[:lead], size, size)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("shared", [False, True])
def test_input_covariances(spatial, shared):
    x1, x2, signal = arrays(spatial)
    if shared:
        x2, signal = None, Signal(x1.shape, x1.shape, 0, len(spatial) + 1)
    need = Need.full(spatial)
    given = None if shared else jnp.asarray(x2)
    cov = input_covariances(jnp.asarray(x1), given, signal, need, True)
    other = x1 if shared else x2
    expected = direct(x1, other)
    public = to_public(cov.nngp, need.cross, spatial, diagonal=False)
    assert_close(unzipped(public, spatial), expected)
    q1 = np.einsum("nnpp->np", direct(x1, x1))
    q2 = np.einsum("nnpp->np", direct(other, other))
    gap = (q1[:, None, :, None] + q2[None, :, None]) / 2 - expected
    assert_close(unzipped(to_public(cov.gap, need.cross, spatial, diagonal=False), spatial), gap)
    own = unzipped(to_public(cov.cov1, need.own, spatial, diagonal=False), spatial)
    assert_close(own, np.einsum("nnpq->npq", direct(x1, x1)))
    assert cov.ntk is None
    assert (cov.cov2 is None) == shared
    only = input_covariances(jnp.asarray(x1), given, signal, Need.zero(len(spatial)), True)
    diagonal = to_public(only.nngp, Offsets.zero(len(spatial)), spatial, diagonal=True)
    assert_close(diagonal.reshape(*expected.shape[:3]), np.einsum("nmpp->nmp", expected))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axes", [(1, 0), (2, 1), (0, 1)])
def test_other_axes(axes):
    x1, x2, _ = arrays((3,))
    batch, channel = axes
    moved1, moved2 = (np.moveaxis(x, (0, 2), (batch, channel)) for x in (x1, x2))
    signal = Signal(moved1.shape, moved2.shape, batch, channel)
    need = Need.full((3,))
    cov = input_covariances(jnp.asarray(moved1), jnp.asarray(moved2), signal, need, False)
    public = to_public(cov.nngp, need.cross, (3,), diagonal=False)
    assert_close(public, direct(x1, x2))


@pytest.mark.parametrize("spatial", SPATIAL)
def test_public_layout_and_back(spatial):
    offsets = Offsets.full(spatial)
    size = int(np.prod(spatial, dtype=int))
    public = RNG.standard_normal((4, 3, *(s for size in spatial for s in (size, size))))
    public = jnp.asarray(public, jnp.float32)
    stored = from_public(public, offsets, spatial, diagonal=False)
    assert stored.shape == (4, 3, offsets.count, size)
    np.testing.assert_array_equal(to_public(stored, offsets, spatial, diagonal=False), public)
    diagonal = to_public(stored, offsets, spatial, diagonal=True)
    assert diagonal.shape == (4, 3, *spatial)
    again = from_public(diagonal, Offsets.zero(len(spatial)), spatial, diagonal=True)
    np.testing.assert_array_equal(again[..., 0, :], stored[..., offsets.zero_index, :])


def test_positions_outside_are_zero():
    x1, x2, signal = arrays((4,))
    offsets = Offsets(((-3, 0, 2),))
    cov = input_covariances(
        jnp.asarray(x1, jnp.float32),
        jnp.asarray(x2, jnp.float32),
        signal,
        Need(offsets, offsets),
        False,
    )
    for value in (cov.nngp, cov.gap):
        assert not np.any(value[:, :, 0, :3])
        assert not np.any(value[:, :, 2, 2:])
    assert not np.any(cov.cov1[:, 0, :3])
    assert np.all(cov.gap >= 0)


def test_gap_of_duplicates():
    x = RNG.standard_normal((5, 700)).astype(np.float32)
    near = (x * (1 + 1e-5)).astype(np.float32)
    signal = Signal(x.shape, x.shape, 0, 1)
    cov = input_covariances(jnp.asarray(x), jnp.asarray(x), signal, Need.zero(0), False)
    gap = np.asarray(cov.gap[..., 0, 0])
    np.testing.assert_array_equal(np.diag(gap), 0)
    cov = input_covariances(jnp.asarray(x), jnp.asarray(near), signal, Need.zero(0), False)
    expected = ((x.astype(np.float64) - near) ** 2).mean(1) / 2
    assert_close(np.diag(cov.gap[..., 0, 0]).astype(np.float32), expected, rtol=1e-4)


def test_vmap_and_transposition_with_float64_off():
    x1, x2, signal = arrays((), 2, 2, 3)
    x1, x2 = jnp.asarray(x1, jnp.float32), jnp.asarray(x2, jnp.float32)

    def total(a, b):
        cov = input_covariances(a, b, signal, Need.zero(0), False)
        return (cov.nngp * cov.gap).sum() + cov.cov1.sum()

    stacked = jnp.stack([x1, 2 * x1])
    mapped = jax.vmap(total, (0, None))(stacked, x2)
    assert_close(mapped[1], total(2 * x1, x2))
    gradient, hessian = jax.jit(lambda *x: (jax.grad(total)(*x), jax.hessian(total)(*x)))(x1, x2)
    assert gradient.dtype == jnp.float32
    assert np.isfinite(hessian).all()


def test_mirror():
    value = jnp.asarray(RNG.standard_normal((3, 3, 2)), jnp.float32)
    result = mirror(value)
    np.testing.assert_array_equal(result, result.swapaxes(0, 1))
    np.testing.assert_array_equal(result[0, 1], value[0, 1])
    np.testing.assert_array_equal(result[2, 2], value[2, 2])
