"""Arrays of pairs of positions by offset, against all pairs [p, p']."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.covariance.offsets import Offsets
from widelimit.covariance.pairs import (
    apply_stencils,
    from_pairs,
    permute_axes,
    relayout,
    rezero,
    shift,
    to_pairs,
)
from widelimit.covariance.stencil import index_stencil, transposed_stencil, window_stencil

RNG = np.random.default_rng(1)
pytestmark = pytest.mark.usefixtures("x64")


def dense(offsets, spatial, pairs):
    """Pairs [n, p, p'] by offset [n, d, p], entry by entry."""
    places = list(itertools.product(*map(range, spatial)))
    out = np.zeros((len(pairs), offsets.count, len(places)))
    partners = offsets.partners(spatial)
    for d, rows in enumerate(itertools.product(*(range(c) for c in offsets.counts))):
        for p, place in enumerate(places):
            other = tuple(t[r, i] for t, r, i in zip(partners, rows, place, strict=True))
            if min(other, default=0) >= 0:
                out[:, d, p] = pairs[:, p, places.index(other)]
    return jnp.asarray(out)


def random_pairs(spatial):
    size = int(np.prod(spatial, dtype=int))
    return RNG.standard_normal((2, size, size))


SPATIAL = (4, 3)
FULL = Offsets.full(SPATIAL)
SETS = [
    FULL,
    FULL.fold(SPATIAL, (4, 5)),
    Offsets(((-1, 0, 1), (0, 2))),
    Offsets(((-2, 0, 2), (-2, -1, 0, 1, 2))).fold(SPATIAL, (4, 3)),
]


@pytest.mark.parametrize("offsets", SETS)
def test_shift_and_rezero(offsets):
    f = RNG.standard_normal((2, 12))
    moved = rezero(
        jax.jit(shift, static_argnums=(1, 2))(jnp.asarray(f), offsets, SPATIAL), offsets, SPATIAL
    )
    assert_close(moved, dense(offsets, SPATIAL, np.repeat(f[:, None], 12, axis=1)))


@pytest.mark.parametrize(("a", "b"), list(itertools.product(range(4), repeat=2)))
def test_relayout(a, b):
    pairs = random_pairs(SPATIAL)
    stored, wanted = SETS[a], SETS[b]
    truth = dense(wanted, SPATIAL, pairs)
    held = dense(stored, SPATIAL, np.ones_like(pairs))
    present = relayout(held, stored, wanted, SPATIAL)
    out = relayout(dense(stored, SPATIAL, pairs), stored, wanted, SPATIAL)
    assert_close(out, truth * np.asarray(present))  # what was not stored is zero
    if a < 2:
        assert_close(out, truth)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("offsets", SETS)
def test_open_axes_and_back(offsets, axes):
    pairs = random_pairs(SPATIAL)
    value = dense(offsets, SPATIAL, pairs)
    opened = to_pairs(value, offsets, SPATIAL, axes)
    size = int(np.prod([SPATIAL[i] for i in axes], dtype=int))
    assert opened.shape[-2:] == (size, size)
    assert_close(from_pairs(opened, offsets, SPATIAL, axes), value)
    if axes == (0, 1) and offsets.entries(SPATIAL) == 144:
        assert_close(opened[:, 0, 0], pairs)


@pytest.mark.parametrize("offsets", SETS)
def test_permute_axes(offsets):
    pairs = random_pairs(SPATIAL)
    swapped = pairs.reshape(2, 4, 3, 4, 3).transpose(0, 2, 1, 4, 3).reshape(2, 12, 12)
    out = permute_axes(dense(offsets, SPATIAL, pairs), offsets, SPATIAL, (1, 0))
    assert_close(out, dense(offsets.permute((1, 0)), (3, 4), swapped))


WINDOWS = [
    (window_stencil(4, 3, 1, 1, (1, 1)), window_stencil(3, 2, 1, 1, (0, 1))),
    (window_stencil(4, 2, 2, 1, (0, 0)), window_stencil(3, 2, 1, 2, (1, 1))),
    (window_stencil(4, 3, 1, 1, (1, 1), circular=True), index_stencil(3, (2, 0))),
    (window_stencil(4, 2, 2, 1, (0, 0), tied=False), transposed_stencil(3, 6, 3, 2, 1, 2)),
]


@pytest.mark.parametrize("stencils", WINDOWS)
@pytest.mark.parametrize("wanted", ["all", "folded", "equal"])
def test_stencils_on_two_axes(stencils, wanted):
    out_shape = tuple(s.size_out for s in stencils)
    target = Offsets.zero(2) if wanted == "equal" else Offsets.full(out_shape)
    target = target.fold(out_shape, out_shape) if wanted == "folded" else target
    pairs = random_pairs(SPATIAL).reshape(2, 4, 3, 4, 3)
    expected = 0
    first, second = (s.tap_pairs() for s in stencils)
    for (a, b), (c, d) in itertools.product(first, second):
        maps = []
        for stencil, tap in zip((*stencils, *stencils), (a, c, b, d), strict=True):
            matrix = np.zeros((stencil.size_out, stencil.size_in))
            o = np.nonzero(stencil.table[tap] >= 0)[0]
            matrix[o, stencil.table[tap, o]] = 1
            maps.append(matrix)
        expected = expected + np.einsum("nabcd,wa,xb,yc,zd->nwxyz", pairs, *maps)
    size = int(np.prod(out_shape))
    truth = dense(target, out_shape, expected.reshape(2, size, size))
    for stored in SETS[:2]:
        value = dense(stored, SPATIAL, pairs.reshape(2, 12, 12))
        assert_close(apply_stencils(value, stencils, stored, target), truth)


def test_nothing_wanted_gives_no_rows():
    value = jnp.zeros((2, 0, 12))
    assert relayout(value, Offsets.none(2), Offsets.none(2), SPATIAL).shape == (2, 0, 12)
    stencils = WINDOWS[0]
    assert apply_stencils(value, stencils, Offsets.none(2), Offsets.none(2)).shape == (2, 0, 12)
    assert to_pairs(value, Offsets.none(2), SPATIAL, (0,)).shape == (2, 0, 3, 4, 4)
    assert shift(jnp.zeros((2, 12)), Offsets.none(2), SPATIAL).shape == (2, 0, 12)
