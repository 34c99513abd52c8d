"""Networks of other libraries: any f(params, x) will do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close

IMAGES = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)
VECTORS = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)


def check(f, params, x, rules):
    """The kernel is that of the Jacobian, and every weight enters by a rule."""
    ntk_fn = wl.empirical_ntk_fn(f, vmap_axes=0, implementation="STRUCTURED_DERIVATIVES")
    jacobian = jax.jacobian(f)(params, x)
    rows = [np.reshape(leaf, (len(x), -1)) for leaf in jax.tree.leaves(jacobian)]
    size = f(params, x).shape[-1]
    assert_close(ntk_fn(x, None, params), sum(row @ row.T for row in rows) / size)
    explanation = ntk_fn.explain(x, None, params)
    assert {rule for report in explanation for rule in report.rules} == rules
    weights = [report for report in explanation if np.prod(report.shape) >= 8]
    assert all(report.rules for report in weights), str(explanation)


def test_flax_linen():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(3, (3, 3))(x))
            x = nn.Dense(4)(nn.LayerNorm()(x.mean((1, 2))))
            return nn.Dense(2)(nn.gelu(x))

    network = Network()
    params = network.init(jax.random.key(0), IMAGES)
    check(network.apply, params, IMAGES, {"conv_general_dilated", "dot_general"})


def test_flax_linen_attention():
    nn = pytest.importorskip("flax.linen")
    network = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4, out_features=2)
    tokens = IMAGES.reshape(3, 8, 4)

    def f(params, x):
        return network.apply(params, x).sum(1)

    params = network.init(jax.random.key(0), tokens)
    check(f, params, tokens, {"dot_general"})


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    network = nnx.Sequential(
        nnx.Linear(5, 4, rngs=rngs),
        nnx.relu,
        nnx.BatchNorm(4, rngs=rngs, use_running_average=True),
        nnx.Linear(4, 2, rngs=rngs),
    )
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def f(params, x):
        return nnx.merge(graph, params, rest)(x)

    check(f, params, VECTORS, {"dot_general"})


def test_equinox():
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    network = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 3, 2, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.MLP(27, 2, 4, 1, key=key),
        ]
    )
    params, rest = eqx.partition(network, eqx.is_inexact_array)

    def f(params, x):
        return jax.vmap(eqx.combine(params, rest))(x)

    check(f, params, IMAGES.transpose(0, 3, 1, 2), {"conv_general_dilated", "dot_general"})


def test_haiku_style():
    """Pure functions init(key, x) and apply(params, key, x), and nested dictionaries."""

    def init(key, x):
        keys = jax.random.split(key)
        sizes = [("mlp/linear_0", x.shape[1], 4), ("mlp/linear_1", 4, 2)]
        return {
            name: {"w": jax.random.normal(k, (a, b)), "b": jnp.zeros(b)}
            for k, (name, a, b) in zip(keys, sizes, strict=True)
        }

    def apply(params, key, x):
        for name, layer in params.items():
            x = x @ layer["w"] + layer["b"][None]
            x = jnp.tanh(x) if name.endswith("0") else x
        return x

    params = init(jax.random.key(0), VECTORS)
    check(lambda params, x: apply(params, None, x), params, VECTORS, {"dot_general"})


def test_functions_of_stax():
    init_fn, apply_fn, _ = wl.stax.serial(
        wl.stax.Conv(3, (3, 3)), wl.stax.Relu(), wl.stax.Flatten(), wl.stax.Dense(2, b_std=0.1)
    )
    _, params = init_fn(jax.random.key(0), IMAGES.shape)
    check(apply_fn, params, IMAGES, {"conv_general_dilated", "dot_general"})


def check_twice(f, params, change):
    """The kernel is that of f as it is at each call."""
    ntk_fn = wl.empirical_ntk_fn(f, trace_axes=())
    kernels = []
    for _ in range(2):
        jacobian = jax.jacobian(f)(params, VECTORS)
        rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian)]
        right = sum(np.einsum("iap,jbp->ijab", row, row) for row in rows)
        kernels.append(ntk_fn(VECTORS, None, params))
        assert_close(kernels[-1], right)
        change()
    assert abs(kernels[1] - kernels[0]).max() > 0.1 * abs(kernels[0]).max()


def test_flax_linen_with_statistics_that_change():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.tanh(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))))

    variables = dict(Network().init(jax.random.key(0), VECTORS))
    params = variables.pop("params")

    def change():
        variables["batch_stats"] = jax.tree.map(lambda v: 4 * v + 1, variables["batch_stats"])

    check_twice(lambda p, x: Network().apply({"params": p, **variables}, x), params, change)


def test_flax_nnx_with_statistics_that_change():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(5, use_running_average=True, rngs=rngs)
            self.dense = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return jnp.tanh(self.dense(self.norm(x)))

    model = Network(nnx.Rngs(0))

    def f(params, x):
        graph, _, rest = nnx.split(model, nnx.Param, ...)
        return nnx.merge(graph, params, rest)(x)

    def change():
        model.norm.var[...] = 9.0 * model.norm.var[...]

    check_twice(f, nnx.split(model, nnx.Param, ...)[1], change)


def test_equinox_with_a_module_that_changes():
    eqx = pytest.importorskip("equinox")

    class Network(eqx.Module):
        scale: jax.Array
        dense: eqx.nn.Linear

        def __call__(self, x):
            return jnp.tanh(jax.vmap(self.dense)(self.scale * x))

    models = [Network(jnp.asarray(1.0), eqx.nn.Linear(5, 2, key=jax.random.key(0)))]
    params = models[0].dense

    def f(dense, x):
        return eqx.tree_at(lambda m: m.dense, models[0], dense)(x)

    def change():
        models[0] = eqx.tree_at(lambda m: m.scale, models[0], jnp.asarray(0.3))

    check_twice(f, params, change)
