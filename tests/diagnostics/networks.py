"""Small networks for the tests of diagnostics."""

import jax
import jax.numpy as jnp
import numpy as np

X = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
Y = np.random.default_rng(2).standard_normal((5, 2)).astype(np.float32)


def network(params, x):
    """Two layers, 2 outputs."""
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["a"]


def linear(params, x):
    """Linear in its parameters, not in x."""
    return jnp.tanh(x @ jnp.ones((3, 4))) @ params["a"] + params["b"][None]


def parameters(seed, f=network):
    shapes = {"a": (4, 2), "b": (4,) if f is network else (2,), "w": (3, 4)}
    if f is linear:
        del shapes["w"]
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape)
        for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }
