import jax
import jax.numpy as jnp
import pytest
from jax import lax

import widelimit as wl
from widelimit.finite.empirical.auto import GROUPED, TRAFFIC, cheapest, multiply_adds
from widelimit.tracing.jaxprs import Equations


def count(f, *shapes):
    return multiply_adds(Equations.of(f, *(jnp.zeros(shape) for shape in shapes)))


def test_counts_by_hand():
    assert count(jnp.sin, (3, 4)) == TRAFFIC * 12
    assert count(lambda a, b: a @ b, (3, 4), (4, 5)) == 60 + TRAFFIC * (12 + 20 + 15)
    assert count(lambda a: jnp.broadcast_to(a, (9, 4)), (4,)) == 0
    assert count(lambda a: jax.jit(jnp.sin)(a), (7,)) == TRAFFIC * 7


def test_convolutions_by_hand():
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(x, k, groups=1):
        return lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    x, out = (2, 5, 5, 4), 2 * 5 * 5 * 6
    moved = 200 + out
    assert count(conv, x, (3, 3, 4, 6)) == out * 9 * 4 + TRAFFIC * (moved + 9 * 24)
    grouped = count(lambda x, k: conv(x, k, 2), x, (3, 3, 2, 6))
    assert grouped == GROUPED * out * 9 * 2 + TRAFFIC * (moved + 9 * 12)


def test_rounds_of_a_scan_count():
    def once(h):
        return jnp.tanh(h @ jnp.ones((4, 4)))

    def repeated(h):
        return lax.scan(lambda h, _: (once(h), None), h, None, length=7)[0]

    assert count(repeated, (2, 4)) == 7 * count(once, (2, 4))


def test_cheapest_takes_the_first_of_equals():
    a = jnp.zeros((8, 8))
    ways = {"cubic": lambda a: a @ a, "sum": lambda a: a + a, "other sum": lambda a: a + 1}
    assert cheapest(ways, a) == "sum"


def test_auto_is_silent_and_follows_the_shapes(monkeypatch, capsys):
    chosen = []

    def spy(ways, *args):
        chosen.append(cheapest(ways, *args))
        return chosen[-1]

    monkeypatch.setattr("widelimit.finite.empirical.compiled.cheapest", spy)
    ntk_fn = wl.empirical_ntk_fn(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], vmap_axes=0, implementation="AUTO"
    )
    for width in (64, 1, 64):
        params = {"w": jnp.ones((2, width)), "v": jnp.ones((width, 3))}
        ntk_fn(jnp.ones((4, 2)), None, params)
    assert len(chosen) == 2, "expected one choice per shapes"
    assert chosen[0] is wl.NtkImplementation.STRUCTURED_DERIVATIVES
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [0, wl.NtkImplementation.AUTO])
def test_auto_by_number(number):
    ntk_fn = wl.empirical_ntk_fn(lambda p, x: x @ p, implementation=number)
    assert ntk_fn(jnp.eye(3), None, jnp.ones((3, 5))).shape == (3, 3)
