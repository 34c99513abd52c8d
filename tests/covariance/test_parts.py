"""The three parts of covariances: one function for all of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.covariance.layout import input_covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.parts import Pairing, Parts
from widelimit.covariance.signal import Signal

RNG = np.random.default_rng(0)
X1, X2 = (jnp.asarray(RNG.standard_normal((n, 4, 3))) for n in (2, 5))
FIELDS = ("nngp", "ntk", "cov1", "cov2")


def covariances(x2=None):
    signal = Signal(X1.shape, X1.shape if x2 is None else x2.shape, 0, 2)
    return input_covariances(X1, x2, signal, Need.full((4,)), True)


def test_a_pairing_tells_sides_axes_and_offsets():
    need = Need(Need.full((4,)).cross, Need.zero(1).own)
    assert [part.sides for part in Pairing] == [(0, 1), (0, 0), (1, 1)]
    assert [part.axes for part in Pairing] == [2, 1, 1]
    assert [part.of(need) for part in Pairing] == [need.cross, need.own, need.own]


@pytest.mark.parametrize("x2", [None, X2])
def test_map_reaches_every_array(x2):
    cov = covariances(x2)
    cov = cov.replace(ntk=3 * cov.nngp)
    seen = []

    def double(value, part):
        seen.append((part, value.shape))
        return 2 * value

    out = cov.map(double, gap=True, gaussian=True)
    for name in (*FIELDS, "gap"):
        before, after = getattr(cov, name), getattr(out, name)
        assert (before is None) == (after is None)
        assert before is None or (np.asarray(after) == 2 * np.asarray(before)).all()
    assert out.gaussian
    pairs = [Pairing.CROSS] * 3 + [Pairing.OWN1] + [Pairing.OWN2] * (x2 is not None)
    assert sorted(p.name for p, _ in seen) == sorted(p.name for p in pairs)
    assert cov.map(double).gap is None
    assert cov.replace(ntk=None).map(double).ntk is None


def test_ends_are_what_stands_at_both_positions():
    cov = covariances(X2)
    features = tuple(jnp.asarray(RNG.standard_normal((len(x), 4))) for x in (X1, X2))
    for part in Pairing:
        left, right = cov.ends(part, features)
        full = getattr(cov, {"CROSS": "nngp", "OWN1": "cov1", "OWN2": "cov2"}[part.name])
        left, right = (np.broadcast_to(f, full.shape) for f in (left, right))
        (offsets,) = part.of(cov.need).rows
        for d, offset in enumerate(offsets):
            for p in range(4):
                if 0 <= p + offset < 4:
                    first, second = (features[side] for side in part.sides)
                    a = left[..., d, p] if part.own else left[:, 0, d, p]
                    b = right[..., d, p] if part.own else right[0, :, d, p]
                    assert (a == first[:, p]).all()
                    assert (b == second[:, p + offset]).all()


def test_opened_arrays_are_mapped_alike():
    given = Parts(jnp.ones((2, 3)), None, jnp.ones(2), None)
    out = given.map(lambda value, part: value * part.axes)
    assert out.ntk is None
    assert out.cov2 is None
    assert (out.nngp == 2).all()
    assert (out.cov1 == 1).all()
