import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.finite.empirical.small import full_kernel, inputs, mlp, mlp_params, reduced
from tests.tolerance import assert_close
from widelimit.finite.empirical import blocks as module
from widelimit.finite.empirical.block_plan import Blocks

pytestmark = pytest.mark.usefixtures("x64")
FACTORS = "STRUCTURED_DERIVATIVES"


def within(f, trace, diagonal, memory, **options):
    return wl.empirical_ntk_fn(f, trace, diagonal, 0, FACTORS, memory=memory, **options)


@pytest.mark.parametrize(
    ("trace", "diagonal", "second", "memory", "cut"),
    [
        ((2,), (), None, 25_000, (3, 1, 1, 1)),
        ((2,), (), None, 8_000, (1, 1, 2, 2)),
        ((2,), (), 3, 8_000, (1, 1, 1, 1)),
        ((1,), (2,), 9, 12_000, (1, 1, 1, 1)),
        ((), (1,), None, 8_000, (1, 1, 4, 4)),
        ((1, 2), (), 9, 8_000, (1, 1, 1, 1)),
        ((), (1, 2), 3, 12_000, (1, 3, 1, 1)),
        ((), (), 9, 12_000, (1, 1, 4, 5)),
    ],
)
def test_blocks_add_up(trace, diagonal, second, memory, cut):
    params, x1, x2 = mlp_params(), inputs(7), None if second is None else inputs(second, 2)
    ntk_fn = within(mlp, trace, diagonal, memory)
    blocks = ntk_fn.chunks(x1, x2, params)
    assert (blocks.traces, blocks.diagonals, blocks.blocks, blocks.passing) == cut
    assert blocks.bytes <= memory
    expected = reduced(full_kernel(mlp, params, x1, x2), trace, diagonal)
    assert_close(ntk_fn(x1, x2, params), expected)
    assert_close(jax.jit(ntk_fn)(x1, x2, params), expected)


def test_blocks_are_computed_as_often_as_stated(monkeypatch):
    fill, computed = module._fill, np.zeros(20, int)

    def counted(factors, held, at, given, samples, slot):
        computed[samples[0]] += at == 0
        return fill(factors, held, at, given, samples, slot)

    monkeypatch.setattr(module, "_fill", counted)
    ntk_fn = within(mlp, (1, 2), (), 8_000)
    blocks = ntk_fn.chunks(inputs(20), None, mlp_params())
    ntk_fn(inputs(20), None, mlp_params())
    rounds = 6 // blocks.traces
    assert blocks.blocks > 1
    assert np.count_nonzero(computed) == blocks.blocks
    assert computed.max() == blocks.computed_at_most * rounds


def test_within_a_budget_the_cheaper_way_is_taken():
    def wide(params, x):
        return jnp.tanh(x @ params[0]) @ params[1]

    def scaled(params, x):
        return jnp.tanh(x * params[0]) @ params[1]

    x = jnp.ones((8, 30))
    params = [jnp.ones((30, 200)), jnp.ones((200, 3))]
    ntk_fn = wl.empirical_ntk_fn(wide, vmap_axes=0, memory="1MB")
    assert isinstance(ntk_fn.chunks(x, None, params), Blocks)
    assert_close(ntk_fn(x, None, params), wl.empirical_ntk_fn(wide)(x, None, params))
    whole = wl.empirical_ntk_fn(wide, memory="1MB")  # samples that may depend on each other
    assert not isinstance(whole.chunks(x, None, params), Blocks)
    assert_close(whole(x, None, params), ntk_fn(x, None, params))


def test_convolutions_subsets_and_complex_numbers():
    def f(params, x, scale):
        y = jax.lax.conv(x, params["w"], (1, 1), "SAME")
        return jnp.tanh(y * scale).mean((2, 3)) @ params["v"] * params["c"]

    key = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(key[0], (4, 2, 3, 3)),
        "v": jax.random.normal(key[1], (4, 3)),
        "c": jnp.array(2 - 3j),
    }
    x = jax.random.normal(key[2], (5, 2, 4, 4))
    for subset in (None, "w", ["v", "c"]):
        options = {"trace_axes": (), "subset": subset}
        whole = wl.empirical_ntk_fn(f, **options)(x, x[:2] + 1, params, scale=0.5)
        found = within(f, (), (), "30KB", subset=subset)(x, x[:2] + 1, params, scale=0.5)
        assert_close(found, whole)


@pytest.mark.parametrize("rows", [0, 3])
def test_what_it_cannot_do_says_why(rows):
    params, x = mlp_params(), inputs(rows or 4)
    if not rows:
        with pytest.raises(ValueError, match="memory of at least about"):
            within(mlp, (2,), (), 100)(x, None, params)
        with pytest.raises(ValueError, match="neither a trace nor a diagonal"):
            within(mlp, (0,), (), "1MB")(x, None, params)
        return
    ntk_fn = wl.empirical_ntk_fn(mlp, implementation=FACTORS, memory="1MB")
    with pytest.raises(ValueError, match="expected vmap_axes"):
        ntk_fn(x, None, params)
