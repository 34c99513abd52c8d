"""Networks as text: each network of the zoo is built again, the same to the bit."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.cases import CASES
from widelimit import stax
from widelimit._pytree import pytree
from widelimit.layers.base import Layer


def own_function(x: jax.Array) -> jax.Array:
    return jnp.arctan(x)


@pytree
class Doubled(stax.Dense):
    """A layer from outside."""


MODELS = [
    wl.models.fcn(3),
    wl.models.cnn(2, "gap"),
    wl.models.myrtle(5),
    wl.models.wide_resnet(),
    wl.models.lenet(),
    wl.models.transformer_block(),
    stax.repeat(stax.serial(stax.Dense(8), stax.Tanh()), 3),
]


def assert_same(first: Layer, second: Layer) -> None:
    """Asserts that two networks have the same structure and hyper-parameters."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


NAMED = [case for case in CASES if "lambda" not in case.name]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_zoo(case) -> None:
    text = wl.to_json(case.net)
    again = wl.from_json(text, known=[jnp.arctan, jnp.tanh])
    assert_same(again, case.net)
    assert wl.to_json(again) == text


@pytest.mark.parametrize("net", MODELS, ids=str)
def test_models(net) -> None:
    assert_same(wl.from_json(wl.to_json(net)), net)


def test_numbers_are_written_in_full() -> None:
    leaves = (np.float32(0.1), 1 / 3, jnp.float32(2) / 3, float("inf"), np.arange(3.0))
    net = stax.serial(*(stax.ABRelu(leaf, 1.0) for leaf in leaves), stax.DotGeneral(lhs=np.eye(2)))
    found = wl.from_json(wl.to_json(net))
    assert_same(found, net)
    assert "NaN" not in wl.to_json(stax.ABRelu(float("nan"), 1.0))


def test_indices_and_options() -> None:
    net = stax.serial(stax.Index(stax.Slice[:, ::2, ..., 0:3]), stax.Index((slice(None), -1)))
    assert_same(wl.from_json(wl.to_json(net)), net)


def test_kernels_are_the_same_to_the_bit() -> None:
    net, x = wl.models.cnn(2), np.random.default_rng(0).standard_normal((2, 4, 4, 3))
    again = wl.from_json(wl.to_json(net))
    np.testing.assert_array_equal(net.kernel_fn(x, None, "ntk"), again.kernel_fn(x, None, "ntk"))


def test_what_is_not_of_this_package_is_named() -> None:
    net = stax.serial(Doubled(4), stax.Elementwise(own_function), stax.Elementwise(jax.nn.gelu))
    text = wl.to_json(net)
    found = wl.from_json(text, known=[Doubled, own_function, jax.nn.gelu])
    assert_same(found, net)
    with pytest.raises(ValueError, match=r"test_description:Doubled' at network.layers\[0\]"):
        wl.from_json(text)


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (stax.serial(stax.Elementwise(lambda x: x)), r"at network\.layers\[0\]\.fn"),
        (stax.layer(lambda: (lambda *a: a, lambda *a: a, lambda k: k))(), "made from functions"),
        ("net", "expected a network to describe, got str"),
    ],
)
def test_no_description(net, match) -> None:
    with pytest.raises(TypeError, match=match):
        wl.to_json(net)


def test_traced_numbers_have_no_description() -> None:
    with pytest.raises(TypeError, match=r"network\.W_std"):
        jax.jit(lambda w: wl.to_json(stax.Dense(1, w)))(1.0)


@pytest.mark.parametrize(
    ("network", "match"),
    [
        ({"type": "os:system"}, "got 'os:system' at network"),
        ({"type": "Dense"}, "arguments that Dense takes at network"),
        ({"type": "Dense", "out_dim": 1, "width": 3}, "arguments that Dense takes"),
        ({"type": "Foreign"}, "got 'Foreign'"),
        ({"enum": "Padding", "member": "NONE"}, "the output of to_json"),
        ({"array": [[1], [2, 3]], "dtype": "float32"}, "inhomogeneous"),
        ({"odd": 1}, "the output of to_json"),
        (3, "description of a network, got 3"),
    ],
)
def test_bad_descriptions(network, match) -> None:
    with pytest.raises(ValueError, match=match):
        wl.from_json(json.dumps({"schema": 1, "network": network}))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "expected a network as JSON"),
        ("{}", "'schema' and 'network'"),
        ('{"schema": 2, "network": {"type": "Relu"}}', "schema 1, got 2"),
    ],
)
def test_other_text(text, match) -> None:
    with pytest.raises(ValueError, match=match):
        wl.from_json(text)
