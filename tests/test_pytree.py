"""Frozen dataclass trees: leaves and structure; the network as an argument of jit: one trace."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit._pytree import as_leaf, data_fields, is_concrete, pytree, same_values, static
from widelimit.layers.elementwise import ElementwiseLayer
from widelimit.stax import Dense, Polynomial, Relu, serial

X = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)


@pytree
class Pair:
    first: Any
    second: Any = None
    name: str = static(default="pair")

    def __post_init__(self):
        if self.first is None:
            raise ValueError("expected a first")


def test_leaves_and_structure():
    pair = Pair(1.0, [2.0, 3.0], "a")
    assert jax.tree.leaves(pair) == [1.0, 2.0, 3.0]
    assert data_fields(pair) == ("first", "second")
    doubled = jax.tree.map(lambda v: 2 * v, pair)
    assert (doubled.first, doubled.second, doubled.name) == (2.0, [4.0, 6.0], "a")
    assert jax.tree.structure(pair) != jax.tree.structure(Pair(1.0, [2.0, 3.0], "b"))
    paths = jax.tree_util.tree_flatten_with_path(pair)[0]
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [
        ".first",
        ".second[0]",
        ".second[1]",
    ]
    with pytest.raises(AttributeError):
        pair.first = 3


def test_unflattening_does_not_validate():
    with pytest.raises(ValueError, match="expected a first"):
        Pair(None)
    assert jax.tree.map(lambda _: None, Pair(1.0)).first is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (True, 1.0), (np.sqrt(2), 2**0.5), (np.float32(0.5), 0.5), (np.array(3), 3.0)],
)
def test_numbers_become_floats(value, expected):
    leaf = as_leaf(value)
    assert type(leaf) is float
    assert leaf == expected


def test_other_leaves_stay():
    array = jnp.ones(())
    assert as_leaf(array) is array
    assert as_leaf(None) is None
    assert as_leaf([1, (2, array)]) == (1.0, (2.0, array))


def test_equal_values_where_nan_is_nan():
    x = np.array([[1.0, np.nan], [np.inf, 2.0]])
    assert same_values(x, x.copy())
    assert same_values(x.astype(np.float32), jnp.asarray(x))
    assert same_values(jnp.asarray(x, jnp.bfloat16), jnp.asarray(x, jnp.bfloat16))
    assert same_values(np.arange(3), np.arange(3.0))
    assert same_values(np.array(["a"]), np.array(["a"]))
    assert not same_values(x, np.where(np.isnan(x), 0.0, x))
    assert not same_values(x, x[:1])
    assert not same_values(np.arange(3), np.array([0.0, 1.0, np.nan]))


def test_equal_trees():
    x = np.ones(2)
    assert same_values({"a": [x, 2, None]}, {"a": [jnp.ones(2), 2, None]})
    assert not same_values([x, None], [None, x])
    assert not same_values([x], (x,))
    assert not same_values(x, None)
    assert same_values(jax.random.key(1), jax.random.key(1))
    assert not same_values(jax.random.key(1), jax.random.key(2))


def test_traced_arrays_are_equal_to_themselves_alone():
    seen = []

    def look(x):
        seen.append((same_values([x], [x]), same_values([x], [x + 0]), same_values(X, x)))
        return x

    jax.jit(look)(X)
    assert seen == [(True, False, False)]


def test_is_concrete():
    seen = []

    def look(x):
        seen.append(is_concrete(x, X))
        return x.sum()

    assert is_concrete(X, [jnp.ones(2), 1.0], None)
    jax.jit(look)(jnp.ones(2))
    jax.grad(look)(jnp.ones(2))
    jax.vmap(look)(jnp.ones((2, 2)))
    assert seen == [False] * 3


TRACES = []


@pytree
class Counted(ElementwiseLayer):
    """A rectifier that counts how often it is traced."""

    key: str = static(default="")

    def activation(self, x):
        return jnp.maximum(x, 0)

    def dual(self, c, q1, q2, gap):
        TRACES.append(self.key)
        return Relu().dual(c, q1, q2, gap)

    def variance(self, features):
        return features / 2


def network(key, w):
    return serial(Dense(6, w, 0.1 * w), Counted(key), Dense(1, W_std=w))


def check_one_trace(key, call, scales):
    first = None
    for w in scales:
        value = call(network(key, w))
        first = TRACES.count(key) if first is None else first
        expected = serial(Dense(6, w, 0.1 * w), Relu(), Dense(1, w)).kernel_fn(X, None, "ntk")
        assert_close(value, expected)
    # One compilation: nothing is traced again for the later networks.
    assert TRACES.count(key) == first > 0


@pytest.mark.parametrize(
    "scales",
    [(1, 1.5, np.sqrt(2), np.float32(1.2)), tuple(map(jnp.float32, (1, 1.5, 2**0.5)))],
    ids=["numbers", "arrays"],
)
def test_one_trace_for_all_hyper_parameters(scales):
    key = f"plain {type(scales[0])}"
    check_one_trace(key, lambda net: net.kernel_fn(X, None, "ntk"), scales)
    jitted = jax.jit(lambda net, x: net.kernel_fn(x, None, "ntk"))
    check_one_trace(f"jit {key}", lambda net: jitted(net, X), scales)


def test_gradient_with_respect_to_the_network():
    def loss(net):
        return net.kernel_fn(X, None, "ntk").sum()

    net = serial(Dense(6, 1.2, 0.3), Relu(), Dense(1, 1.1))
    gradient = jax.grad(loss)(net)
    assert type(gradient) is type(net)
    step = 1e-3
    for layer, field in ((0, "W_std"), (0, "b_std"), (2, "W_std")):
        moved = []
        for sign in (1, -1):
            layers = list(net.layers)
            changed = copy.copy(layers[layer])
            object.__setattr__(changed, field, getattr(changed, field) + sign * step)
            layers[layer] = changed
            moved.append(float(loss(serial(*layers))))
        numerical = (moved[0] - moved[1]) / (2 * step)
        exact = float(getattr(gradient.layers[layer], field))
        assert exact == pytest.approx(numerical, rel=2e-2)
    assert gradient.layers[2].b_std is None


def test_networks_survive_copies_and_pickles():
    net = serial(Dense(6, 1.2), Relu(), Dense(1), Polynomial([1, 2.5]))
    for again in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        jax.tree.map(lambda v: v, net),
    ):
        assert jax.tree.structure(again) == jax.tree.structure(net)
        assert repr(again) == repr(net)
    assert "Dense(6, W_std=1.2)" in repr(net)
