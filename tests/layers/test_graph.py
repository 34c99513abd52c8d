"""Aggregate: explicit loops over edges, dense and sparse patterns, limits of finite networks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit._pytree import pytree
from widelimit.stax import (
    Aggregate,
    AggregateImplementation,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Relu,
    serial,
)

KEY = jax.random.PRNGKey(0)
BOTH = ("nngp", "ntk")
BASE = Dense(5, 1.3, 0.4)


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def edges(*shape: int, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random edges [batch, edges, K, 2], some repeated, some padding."""
    rng = np.random.default_rng(seed)
    out = np.stack([rng.integers(0, size, (*shape, 2)) for size in sizes], -2)
    out[:, 1] = out[:, 0]
    out[0, -1, 0, 1] = -1
    out[-1, -2] = -7
    return out


def dense(pattern: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The weights [batch, *tail, *head] of a list of edges, one edge after another."""
    out = np.zeros((len(pattern), *sizes, *sizes))
    for n, sample in enumerate(pattern):
        for edge in sample:
            tail, head = edge.T
            if (head >= 0).all():
                out[(n, *tail, *head)] += 1
    return out


def message_passing(x: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """out[head] = sum_tail pattern[tail, head] x[tail] over the axes 1 and 2 of x."""
    out = np.zeros_like(x)
    for n, *tail_head in np.argwhere(pattern):
        tail, head = tail_head[:2], tail_head[2:]
        out[(n, *head)] += pattern[(n, *tail, *head)] * x[(n, *tail)]
    return out


SIZES = (2, 3)


@pytest.mark.usefixtures("x64")
def test_finite_layer_passes_messages_along_edges():
    x = inputs(2, *SIZES, 4)
    sparse = edges(2, 9, sizes=SIZES)
    pattern = dense(sparse, SIZES)
    expected = message_passing(x, pattern)
    assert_close(Aggregate().apply_fn((), x, pattern=pattern), expected)
    by_edges = Aggregate(implementation="SPARSE")
    assert_close(by_edges.apply_fn((), x, pattern=sparse), expected)
    assert_close(jax.jit(by_edges.apply_fn)((), x, pattern=sparse), expected)
    weighted = inputs(2, *SIZES, *SIZES)
    assert_close(Aggregate().apply_fn((), x, pattern=weighted), message_passing(x, weighted))
    assert by_edges.init_fn(KEY, x.shape) == (x.shape, ())
    assert_close(Aggregate().apply_fn((), x), x)


@pytest.mark.parametrize("implementation", list(AggregateImplementation))
@pytest.mark.usefixtures("x64")
def test_axes_in_any_order(implementation):
    x = inputs(2, *SIZES, 4)
    sparse = edges(2, 9, sizes=SIZES)
    pattern = sparse if implementation.name == "SPARSE" else dense(sparse, SIZES)
    expected = message_passing(x, dense(sparse, SIZES))
    other = Aggregate((3, -4), 2, 1, implementation=implementation)
    # batch 0 -> 2, channels 3 -> 1; the graph's axes stand in reverse
    moved = x.transpose(2, 3, 0, 1)
    assert_close(other.apply_fn((), moved, pattern=pattern).transpose(2, 3, 0, 1), expected)
    plain = Aggregate(implementation=implementation).kernel_fn(
        x, None, "nngp", pattern=[pattern] * 2
    )
    swapped = other.kernel_fn(moved, None, "nngp", pattern=(pattern, None))
    assert_close(swapped.transpose(0, 1, 4, 5, 2, 3), plain)


@pytest.mark.parametrize("implementation", ["DENSE", "SPARSE"])
@pytest.mark.usefixtures("x64")
def test_kernels_are_congruences(implementation):
    x1, x2 = inputs(2, *SIZES, 4), inputs(3, *SIZES, 4, seed=1)
    sparse = edges(2, 9, sizes=SIZES), edges(3, 7, sizes=SIZES, seed=1)
    p1, p2 = (dense(p, SIZES) for p in sparse)
    pattern = (p1, p2) if implementation == "DENSE" else sparse
    layer = Aggregate(implementation=implementation)
    before = BASE.kernel_fn(x1, x2)
    after = serial(BASE, layer).kernel_fn(x1, x2, pattern=pattern)
    for get in BOTH:
        expected = np.einsum("nabAB,nmacbd,mcdCD->nmACBD", p1, getattr(before, get), p2)
        assert_close(getattr(after, get), expected)
    own = np.einsum("nabAB,nacbd,ncdCD->nACBD", p1, before.cov1, p1)
    assert_close(after.cov1, own)
    assert after.is_gaussian
    # The finite layer on features whose products are the kernel.
    features = (
        layer.apply_fn((), x1, pattern=pattern[0]),
        layer.apply_fn((), x2, pattern=pattern[1]),
    )
    exact = layer.kernel_fn(x1, x2, "nngp", pattern=pattern)
    assert_close(exact, np.einsum("nabk,mcdk->nmacbd", *features) / 4)


@pytree
class _NotTransposed(Aggregate):
    """Sends messages from heads to tails."""

    def _dense(self, pattern: Any, signal: Any) -> Any:
        return super()._dense(pattern, signal).swapaxes(-1, -2)


@pytree
class _OneSide(Aggregate):
    """Takes the pattern of x1 for both sides."""

    def _matrix(self, pattern: Any, signal: Any, shape: Any) -> Any:
        matrix = super()._matrix(pattern, signal, shape)
        return matrix if shape is signal.shape1 else jnp.broadcast_to(matrix[:1], matrix.shape)


@pytest.mark.parametrize("kind", [_NotTransposed, _OneSide])
def test_planted_mistakes_are_seen(kind):
    x1, x2 = inputs(2, 3, 4), inputs(4, 3, 4, seed=1)
    p1, p2 = inputs(2, 3, 3, seed=2), inputs(4, 3, 3, seed=3)
    finite = (Aggregate().apply_fn((), x, pattern=p) for x, p in ((x1, p1), (x2, p2)))
    expected = np.einsum("nak,mbk->nmab", *finite) / 4
    assert_close(Aggregate().kernel_fn(x1, x2, "nngp", pattern=(p1, p2)), expected)
    wrong = kind().kernel_fn(x1, x2, "nngp", pattern=(p1, p2))
    assert np.abs(wrong - expected).max() > 0.1


def network(layer: Any) -> Any:
    """A strided convolution in front: offsets must be widened on the aggregated axis only."""
    conv = Conv(6, (2, 2), (1, 2), "SAME", 1.3, 0.2)
    return serial(conv, Relu(), layer, Dense(6, 1.2), Relu(), Flatten(), Dense(2))


@pytest.mark.usefixtures("x64")
def test_some_axes_of_an_image():
    x1, x2 = inputs(2, 3, 4, 2), inputs(2, 3, 4, 2, seed=1)
    p1, p2 = inputs(2, 3, 3, seed=2), inputs(2, 3, 3, seed=3)
    eye = np.eye(2)
    whole = tuple(np.einsum("nab,cd->nacbd", p, eye) for p in (p1, p2))
    some = network(Aggregate(1)).kernel_fn(x1, x2, BOTH, pattern=(p1, p2))
    every = network(Aggregate()).kernel_fn(x1, x2, BOTH, pattern=whole)
    assert_close(some, every)


@pytest.mark.usefixtures("x64")
def test_no_pattern_is_the_identity():
    x1, x2 = inputs(2, 3, 4, 2), inputs(3, 3, 4, 2, seed=1)
    net, without = network(Aggregate()), network(serial())
    expected = without.kernel_fn(x1, x2, BOTH)
    for options in ({}, {"pattern": None}, {"pattern": (None, None)}):
        assert_close(net.kernel_fn(x1, x2, BOTH, **options).ntk, expected.ntk)
    flat = Aggregate().kernel_fn(x1[:, 0, 0], None, "nngp")
    assert_close(flat, x1[:, 0, 0] @ x1[:, 0, 0].T / 2)


@pytest.mark.optimised
@pytest.mark.usefixtures("x64")
def test_equal_inputs_and_tracing_give_the_same_kernel():
    x, pattern = inputs(3, 4, 2), edges(3, 6, sizes=(4,))[:, :, 0]
    net = serial(BASE, Relu(), Aggregate(implementation="SPARSE"), Dense(4), Relu(), Flatten())
    alone = net.kernel_fn(x, None, BOTH, pattern=(pattern, None))
    assert_close(net.kernel_fn(x, None, BOTH, pattern=(pattern, pattern)), alone)
    assert_close(net.kernel_fn(x, x.copy(), BOTH, pattern=(pattern, pattern)), alone)
    block = net.kernel_fn(x[:2], x[2:], BOTH, pattern=(pattern[:2], pattern[2:]))
    assert_close(block.ntk, alone.ntk[:2, 2:])

    @jax.jit
    def traced(net, x, y, p, q):
        return net.kernel_fn(x, y, BOTH, pattern=(p, q))

    assert_close(traced(net, x[:2], x[2:], pattern[:2], pattern[2:]), block)


@pytest.mark.usefixtures("x64")
def test_equal_features_on_two_graphs_are_two_inputs():
    x, graphs = np.ones((2, 4, 3)), dense(edges(4, 5, sizes=(4,)), (4,))
    p1, p2 = graphs[:2], graphs[2:]
    net = serial(Dense(4, 1.2, 0.3), Relu(), Aggregate(), Dense(4), Relu(), Flatten())
    expected = net.kernel_fn(x, 1 + 1e-13 * inputs(2, 4, 3), BOTH, pattern=(p1, p2))
    for x2 in (None, x, x.copy()):
        kernel = net.kernel_fn(x, x2, pattern=(p1, p2))
        for get in BOTH:
            assert_close(getattr(kernel, get), getattr(expected, get), rtol=1e-6)
        assert not kernel.x1_is_x2
        assert kernel.cov2 is not None
    with pytest.raises(NotImplementedError):
        net.kernel_fn(x, x.copy(), "nngp", pattern=(p1, None))
    with pytest.raises(TypeError, match="a pair of graph patterns"):
        net.kernel_fn(x, None, "nngp", pattern=p1)


@pytest.mark.parametrize("implementation", ["DENSE", "SPARSE"])
@pytest.mark.usefixtures("x64")
def test_masked_nodes_are_as_if_absent(implementation):
    x = inputs(2, 5, 4)
    pattern = edges(2, 8, sizes=(3,))
    small = pattern[:1]
    if implementation == "DENSE":
        pattern, small = dense(pattern, (5,)), dense(small, (3,))
    layer = Aggregate(implementation=implementation)
    net = serial(BASE, layer, Relu(), GlobalAvgPool(), Dense(2))
    short = net.kernel_fn(x[:1, :3], None, BOTH, pattern=(small, None))
    params = jax.jit(net.init, static_argnums=1)(KEY, x.shape)
    out = net.apply_fn(params, x[:1, :3], pattern=small)
    x[0, 3:] = 9.0
    kernel = net.kernel_fn(x, None, BOTH, pattern=(pattern, None), mask_constant=9.0)
    for get in BOTH:
        assert_close(getattr(kernel, get)[:1, :1], getattr(short, get))
    masked = net.apply_fn(params, x, pattern=pattern, mask_constant=9.0)
    assert_close(masked.masked_value[:1], out)
    inner = serial(BASE, layer).kernel_fn(
        x, None, "nngp", pattern=(pattern, None), mask_constant=9.0
    )
    assert not np.any(inner[0, :, 3:])


@pytest.mark.usefixtures("x64")
def test_messages_of_masked_nodes_are_lost():
    x, pattern = inputs(2, 4, 3), inputs(2, 4, 4, seed=1)
    x[0, 1] = 9.0
    shut = pattern.copy()
    shut[0, 1] = shut[0, :, 1] = 0
    layer = serial(BASE, Aggregate())
    kernel = layer.kernel_fn(x, None, "ntk", pattern=(pattern, None), mask_constant=9.0)
    assert_close(kernel, layer.kernel_fn(x, None, "ntk", pattern=(shut, None)))


@pytest.mark.usefixtures("x64")
def test_patterns_are_decoded():
    x, pattern = inputs(2, 3, 4), inputs(2, 3, 3, seed=1)

    def decode(coded: Any) -> Any:
        return coded["half"] * 2

    coded = {"half": pattern / 2}
    net = Aggregate(to_dense=decode)
    expected = Aggregate().apply_fn((), x, pattern=pattern)
    assert_close(net.apply_fn((), x, pattern=coded), expected)
    expected = Aggregate().kernel_fn(x, None, "nngp", pattern=(pattern, None))
    assert_close(net.kernel_fn(x, None, "nngp", pattern=(coded, None)), expected)
    sparse = edges(2, 5, sizes=(3,))
    plain = Aggregate(implementation="SPARSE")
    coded = Aggregate(implementation="SPARSE", to_dense=decode)
    assert_close(*(net.apply_fn((), x, pattern=sparse) for net in (plain, coded)))


def finite_kernels(net: Any, key: Any, x: Any, pattern: Any) -> Any:
    """NNGP and NTK [2, n, n] of one random network, mean over its outputs."""
    params = net.init_fn(key, x.shape)[1]
    apply = functools.partial(net.apply_fn, inputs=x, pattern=pattern)
    out = apply(params)
    jacobian = jax.jacrev(lambda p: apply(p)[:, :2])(params)
    products = [
        jnp.einsum("nkp,mkp->nm", *[leaf.reshape(*leaf.shape[:2], -1)] * 2)
        for leaf in jax.tree.leaves(jacobian)
    ]
    return jnp.stack([out @ out.T / out.shape[-1], sum(products) / 2])


@pytest.mark.slow
def test_kernels_are_the_limit_of_finite_networks():
    x, pattern = inputs(3, 3, 2).astype(np.float32), np.abs(inputs(3, 3, 3, seed=1))
    pattern = pattern.astype(np.float32)

    def build(width: int) -> Any:
        hidden = [Dense(width, 1.3, 0.3), Relu(), Aggregate(), Dense(width, 1.1, 0.2), Relu()]
        return serial(*hidden, Flatten(), Dense(width, 1.1))

    means, errors = [], []
    for width in (128, 256):
        net = build(width)
        exact = jnp.stack(net.kernel_fn(x, None, BOTH, pattern=(pattern, None)))
        keys = jax.random.split(KEY, 800)
        one = functools.partial(finite_kernels, net, x=x, pattern=pattern)
        draws = jax.jit(lambda keys, one=one: jax.lax.map(one, keys))(keys)
        scaled = np.asarray((draws - exact[None]) / jnp.abs(exact).max((1, 2), keepdims=True)[None])
        means.append(scaled.mean(0))
        errors.append(scaled.std(0) / len(keys) ** 0.5)
    error = np.hypot(errors[0], 2 * errors[1])
    assert error.max() < 0.02
    assert (np.abs(2 * means[1] - means[0]) < 5 * error).all()


def test_derivatives_are_finite():
    x, pattern = np.zeros((2, 3, 2), np.float32), inputs(2, 3, 3, seed=1).astype(np.float32)
    net = serial(Dense(4), Aggregate(), Relu(), GlobalAvgPool(), Dense(1))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(x, pattern):
        k = net.kernel_fn(x, None, BOTH, pattern=(pattern, None))
        return k.nngp.sum() + k.ntk.sum()

    for start in (x, x + 1):
        assert all(np.isfinite(g).all() for g in gradient(start, pattern))


def test_options():
    assert Aggregate(implementation=AggregateImplementation.SPARSE).implementation == "SPARSE"
    assert Aggregate([1, -2]).aggregate_axis == (1, -2)
    assert repr(Aggregate()) == "Aggregate()"
    with pytest.raises(ValueError, match="implementation to be one of 'DENSE', 'SPARSE'"):
        Aggregate(implementation="dense")


def test_refusals():
    x, pattern = inputs(2, 3, 4).astype(np.float32), np.ones((2, 3, 3), np.float32)
    sparse = Aggregate(implementation="SPARSE")
    net = serial(BASE, Aggregate())
    for both in ((pattern, None), (None, pattern)):
        with pytest.raises(NotImplementedError, match=r"both x1 and x2, or for neither"):
            net.kernel_fn(x, x[:1], pattern=both)
    with pytest.raises(NotImplementedError, match="got none for x1"):
        net.kernel_fn(x, None, pattern=(None, pattern))
    for bad in (pattern[:1], pattern[:, :2], pattern[0]):
        with pytest.raises(ValueError, match=r"dense pattern of shape \(2, 3, 3\)"):
            Aggregate().apply_fn((), x, pattern=bad)
        with pytest.raises(ValueError, match=r"dense pattern of shape \(2, 3, 3\)") as error:
            net.kernel_fn(x, x[:2] + 1, pattern=(bad, pattern))
        assert "at serial[1].Aggregate" in error.value.__notes__
    with pytest.raises(ValueError, match=r"shape \(1, 3, 3\)"):
        net.kernel_fn(x, x[:1], pattern=(pattern, pattern))
    graph = edges(2, 5, sizes=(3,))
    for bad in (graph[:1], graph[..., :1], graph[0, 0], np.repeat(graph, 2, 2)):
        for call in (
            sparse.apply_fn,
            lambda _, x, pattern: sparse.kernel_fn(x, pattern=[pattern] * 2),
        ):
            with pytest.raises(ValueError, match=r"shape \(2, edges, 1, 2\) or \(2, edges, 2\)"):
                call((), x, pattern=bad)
    with pytest.raises(TypeError, match="edges as ints"):
        sparse.apply_fn((), x, pattern=graph.astype(np.float32))
    for end, value in ((0, -1), (0, 3), (1, 3)):
        bad = graph.copy()
        bad[1, 2, 0] = 1
        bad[1, 2, 0, end] = value
        with pytest.raises(ValueError, match="edge 2 of sample 1 from"):
            sparse.apply_fn((), x, pattern=bad)
        dropped = bad.copy()
        dropped[1, 2] = -1
        traced = jax.jit(sparse.apply_fn)((), x, pattern=bad)
        assert_close(traced, sparse.apply_fn((), x, pattern=dropped))
    for axis in (0, 2, 3, (1, 1), (1, -2)):
        with pytest.raises(ValueError, match="distinct spatial axes among"):
            Aggregate(axis).init_fn(KEY, x.shape)
