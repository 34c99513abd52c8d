"""What finite layers get beside parameters and inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import extend, stax

KEY = jax.random.key(3)
X = np.ones((4, 5), np.float32)


def test_layers_inside_get_keys_of_their_own():
    found = extend.Context(KEY).split(3)
    for one, key in zip(found, jax.random.split(KEY, 3), strict=True):
        assert (jax.random.key_data(one.rng) == jax.random.key_data(key)).all()
    assert [one.rng for one in extend.Context().split(2)] == [None, None]
    assert extend.Context(KEY).split(0) == []


def test_branches_get_their_masks():
    mask = jnp.ones((4, 1), bool)
    first, second = extend.Context(KEY, (mask, None), pattern="graph").branches(2)
    assert first.mask is mask
    assert second.mask is None
    assert (first.pattern, second.pattern) == ("graph", "graph")


def test_a_context_passes_transformations():
    context = extend.Context(KEY, jnp.ones((4, 1), bool))
    back = jax.jit(lambda c: c.with_mask(~c.mask))(context)
    assert not back.mask.any()
    assert back.pattern is None


@pytest.mark.parametrize("combine", [stax.serial, stax.repeat, stax.parallel])
def test_dropout_inside_of_networks(combine):
    drop = stax.Dropout(0.5)
    net = {stax.repeat: lambda: stax.repeat(drop, 2)}.get(combine, lambda: combine(drop, drop))()
    x = [X, X] if combine is stax.parallel else X
    params = [(), ()] if combine is not stax.repeat else ()
    one, two = jax.random.split(KEY)
    found = net.apply_fn(params, x, rng=KEY)
    if combine is stax.parallel:
        right = [drop.apply_fn((), X, rng=key) for key in (one, two)]
    else:
        right = drop.apply_fn((), drop.apply_fn((), X, rng=one), rng=two)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, right))
    with pytest.raises(ValueError, match="expected rng=key"):
        net.apply_fn(params, x)
