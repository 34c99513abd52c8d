"""Sets of offsets, and the tables that say where pairs of positions are stored."""

import itertools

import numpy as np
import pytest

from widelimit.offsets import Need, Offsets, pair_table, partner_table

SHAPES = [(), (1,), (4,), (3, 2), (2, 1, 3)]


def positions(shape):
    return list(itertools.product(*map(range, shape)))


def test_sets():
    assert Offsets.zero(2).axes == ((0,), (0,))
    assert Offsets.full((2, 3)).axes == ((-1, 0, 1), (-2, -1, 0, 1, 2))
    union = Offsets(((0, 2), (0,))) | Offsets(((-1, 0), (0, 1)))
    assert union.axes == ((-1, 0, 2), (0, 1))
    assert union.clip((2, 1)).axes == ((-1, 0), (0,))
    assert union.count == 6
    with pytest.raises(ValueError, match="argument"):
        Offsets.zero(1) | Offsets.zero(2)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_stores_every_pair_once(shape):
    full = Offsets.full(shape)
    size = len(positions(shape))
    assert full.entries(shape) == size**2
    assert Offsets.zero(len(shape)).entries(shape) == size
    steps = list(itertools.product(*full.axes))
    assert len(steps) == full.count
    assert steps[full.zero_index] == (0,) * len(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_against_loops(shape):
    offsets = Offsets.full(shape) if len(shape) != 2 else Offsets(((-1, 0, 2), (0, 1)))
    places = positions(shape)
    partner, inside = partner_table(offsets, shape)
    index, stored = pair_table(offsets, shape)
    assert partner.shape == (offsets.count, len(places))
    found = np.zeros_like(stored)
    for d, step in enumerate(itertools.product(*offsets.axes)):
        for p, place in enumerate(places):
            moved = tuple(a + b for a, b in zip(place, step, strict=True))
            assert inside[d, p] == (moved in places)
            if moved in places:
                q = places.index(moved)
                assert partner[d, p] == q
                assert index[p, q] == d * len(places) + p
                found[p, q] = True
            else:
                assert partner[d, p] == 0
    np.testing.assert_array_equal(stored, found)
    assert stored.sum() == offsets.entries(shape)


def test_needs():
    need = Need.zero(1) | Need(Offsets.zero(1), Offsets.full((2,)))
    assert need.cross == Offsets.zero(1)
    assert need.own == Offsets.full((2,))
    assert Need.full((2,)) == Need(Offsets.full((2,)), Offsets.full((2,)))
    assert hash(Need.zero(1)) == hash(Need.zero(1))
