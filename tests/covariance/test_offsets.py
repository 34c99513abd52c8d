"""Sets of offsets, and the tables that say where pairs of positions are stored."""

import itertools

import numpy as np
import pytest

from widelimit.covariance.offsets import Need, Offsets, fitting_moduli

SHAPES = [(), (1,), (4,), (3, 2), (2, 1, 3)]


def test_sets():
    assert Offsets.zero(2).axes == ((0,), (0,))
    assert Offsets.full((2, 3)).axes == ((-1, 0, 1), (-2, -1, 0, 1, 2))
    union = Offsets(((0, 2), (0,))) | Offsets(((-1, 0), (0, 1)))
    assert union.axes == ((-1, 0, 2), (0, 1))
    assert union.clip((2, 1)).axes == ((-1, 0), (0,))
    assert union.permute((1, 0)).axes == ((0, 1), (-1, 0, 2))
    assert union.count == 6
    with pytest.raises(ValueError, match="argument"):
        Offsets.zero(1) | Offsets.zero(2)


def test_the_empty_set():
    nothing = Offsets.none(0)
    assert nothing.count == 0
    assert Offsets.zero(0).count == 1
    assert nothing | Offsets.zero(0) == Offsets.zero(0)
    assert (nothing | nothing).count == nothing.entries(()) == 0
    assert Offsets.none(2).fold((3, 3), (3, 3)) == Offsets.none(2)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_full_stores_every_pair_once(shape, folded):
    full = Offsets.full(shape)
    full = full.fold(shape, shape) if folded else full
    size = int(np.prod(shape, dtype=int))
    assert full.entries(shape) == size**2
    if folded:
        assert full.count == size  # nothing is padded
    assert Offsets.zero(len(shape)).entries(shape) == size
    steps = list(itertools.product(*full.rows))
    assert len(steps) == full.count
    assert steps[full.zero_index] == (0,) * len(shape)


FOLDS = [
    (Offsets.full((5,)), 5, 5),
    (Offsets.full((5,)), 5, 7),  # a gap where windows have shrunk the image
    (Offsets(((-4, -2, 0, 2, 4),)), 6, 6),  # multiples of a stride
    (Offsets(((-4, -1, 0, 1, 4),)), 5, 5),  # a band that closes on itself
    (Offsets(((-3, 0, 2),)), 4, 4),  # not closed: as it is
]


@pytest.mark.parametrize(("offsets", "size", "modulus"), FOLDS)
def test_tables_against_loops(offsets, size, modulus):
    stored = offsets.fold((size,), (modulus,))
    (rows,), (partner,), (places,) = stored.rows, stored.partners((size,)), stored.places((size,))
    assert partner.shape == (len(rows), size)
    for p, q in itertools.product(range(size), range(size)):
        if q - p in offsets.axes[0]:
            assert partner.reshape(-1)[places[p, q]] == q
            assert places[p, q] % size == p
        else:
            assert places[p, q] == -1
    assert (partner >= 0).sum() == (places >= 0).sum() == offsets.entries((size,))


def test_folds_take_fewer_rows_or_do_nothing():
    counts = [offsets.fold((size,), (modulus,)).count for offsets, size, modulus in FOLDS]
    assert counts == [5, 7, 3, 3, 3]
    band = Offsets(((-1, 0, 1),))
    assert band.fold((5,), (5,)) == band
    assert Offsets.full((5,)).fold((5,), (4,)).moduli == ()  # too small for the image


def test_moduli():
    full = Offsets.full((5, 4))
    assert fitting_moduli(full, (5, 4), None) == (5, 4)
    assert fitting_moduli(full, (5, 4), (7, 3)) == (7, 4)
    assert fitting_moduli(Offsets(((-4, 0, 4), (0,))), (7, 3), None) == (8, 3)
    assert fitting_moduli(full, (5, 4), (None, 6)) == (5, 6)


def test_needs():
    need = Need.zero(1) | Need(Offsets.zero(1), Offsets.full((2,)))
    assert need.cross == Offsets.zero(1)
    assert need.own == Offsets.full((2,))
    assert Need.full((2,)) == Need(Offsets.full((2,)), Offsets.full((2,)))
    assert hash(Need.zero(1)) == hash(Need.zero(1))
    assert Need(Offsets.full((2,)), Offsets.none(1)).with_variances().own == Offsets.zero(1)
    assert Need.full((3,)).fold((3,), (3,)).own.rows == ((0, 1, 2),)
