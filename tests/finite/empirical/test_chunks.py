import collections

import jax
import jax.numpy as jnp
import pytest

import widelimit as wl
from tests.finite.empirical.small import full_kernel, inputs, mlp, mlp_params, reduced
from tests.tolerance import assert_close
from widelimit.finite.empirical import chunks as module

pytestmark = pytest.mark.usefixtures("x64")
KB = 1000
ROWS = "JACOBIAN_CONTRACTION"


@pytest.mark.parametrize(
    ("trace", "diagonal", "vmap_axes", "second", "memory", "is_cut"),
    [
        ((2,), (), 0, None, 7 * KB, True),
        ((2,), (), 0, 3, 7 * KB, True),
        ((), (1,), None, 9, 12 * KB, True),
        ((0, 2), (), 0, None, 7 * KB, False),
        ((1,), (0,), None, None, 12 * KB, False),
        ((), (), None, None, 1000 * KB, False),
    ],
)
def test_chunks_add_up(trace, diagonal, vmap_axes, second, memory, is_cut):
    params, x1, x2 = mlp_params(), inputs(7), None if second is None else inputs(second, 2)
    ntk_fn = wl.empirical_ntk_fn(mlp, trace, diagonal, vmap_axes, ROWS, memory=memory)
    expected = reduced(full_kernel(mlp, params, x1, x2), trace, diagonal)
    chunks = ntk_fn.chunks(x1, x2, params)
    assert (chunks.blocks > 1 or len(chunks.groups) > 1) == is_cut
    assert chunks.bytes <= memory
    assert_close(ntk_fn(x1, x2, params), expected)
    assert_close(jax.jit(ntk_fn)(x1, x2, params), expected)


def test_blocks_of_the_jacobian_are_computed_as_often_as_stated(monkeypatch):
    fill, computed = module._fill, collections.Counter()

    def counted(rows, group, buffers, at, params, arrays, samples, entries):
        computed.update((group, int(s), int(e)) for s, e in zip(samples, entries, strict=True))
        return fill(rows, group, buffers, at, params, arrays, samples, entries)

    monkeypatch.setattr(module, "_fill", counted)
    params, x = mlp_params(), inputs(20)
    weight = 8 * sum(leaf.size for leaf in jax.tree.leaves(params))
    for trace, memory in (((2,), 9 * KB), ((), 40 * KB)):
        computed.clear()
        ntk_fn = wl.empirical_ntk_fn(mlp, trace, (), 0, ROWS, memory=memory)
        chunks = ntk_fn.chunks(x, None, params)
        ntk_fn(x, None, params)
        assert len(computed) == len(chunks.groups) * 20 * 6
        # The last rows fill up the last chunk.
        common = sorted(computed.values())[: -3 * chunks.streamed]
        assert 1 < common[-1] <= chunks.computed_at_most
        assert chunks.computed_at_most <= -(-weight * 20 * 6 // memory)


def test_convolutions_one_sample_at_a_time():
    def f(params, x):
        y = jax.lax.conv(x, params["w"], (1, 1), "SAME")
        return jnp.tanh(y).mean((2, 3)) @ params["v"]

    key = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(key[0], (4, 2, 3, 3)), "v": jax.random.normal(key[1], (4, 3))}
    x = jax.random.normal(key[2], (5, 2, 4, 4))
    ntk_fn = wl.empirical_ntk_fn(f, (-1,), (), 0, ROWS, memory="20KB", subset="w")
    assert ntk_fn.chunks(x, None, params).called == 1
    whole = wl.empirical_ntk_fn(f, subset=["w"])(x, None, params)
    assert_close(ntk_fn(x, None, params), whole)


def test_too_small_a_budget_says_what_would_do():
    ntk_fn = wl.empirical_ntk_fn(mlp, memory=100)
    with pytest.raises(ValueError, match="memory of at least about"):
        ntk_fn(inputs(3), None, mlp_params())
    with pytest.raises(ValueError, match="expected a budget"):
        wl.empirical_ntk_fn(mlp).chunks(inputs(3), None, mlp_params())


def test_kernel_fn_within_memory():
    params, x = mlp_params(), inputs(5)
    found = wl.empirical_kernel_fn(mlp, vmap_axes=0, memory="8KB")(x, None, None, params)
    whole = wl.empirical_kernel_fn(mlp)(x, None, None, params)
    assert_close(found.ntk, whole.ntk)
    assert_close(found.nngp, whole.nngp)


def test_chunks_under_vmap():
    params, x = mlp_params(), inputs(7)
    ntk_fn = wl.empirical_ntk_fn(mlp, (-1,), (), 0, ROWS, memory=7 * KB)
    found = jax.vmap(ntk_fn, (None, None, 0))(x, None, jax.tree.map(lambda v: v[None], params))
    assert_close(found[0], reduced(full_kernel(mlp, params, x), (2,)))
