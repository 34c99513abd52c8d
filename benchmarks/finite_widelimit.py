"""Empirical kernels of the finite networks in widelimit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import widelimit as wl
from benchmarks.finite_networks import FUNCTIONS, parameters

WAYS = {way.name: way for way in wl.NtkImplementation}


def kernel(network: str, get: str, gram: bool) -> Callable[[Any, Any], Any]:  # noqa: ARG001
    """Returns the function of x1 and x2 that computes the kernel in the way called `get`."""
    ntk_fn = wl.empirical_ntk_fn(FUNCTIONS[network], vmap_axes=0, implementation=WAYS[get])
    params = jax.tree.map(jnp.asarray, parameters(network, jnp.zeros(0).dtype))
    return lambda x1, x2: ntk_fn(x1, x2, params)


def about(network: str, shape: tuple[int, ...]) -> dict[str, Any]:  # noqa: ARG001
    """Returns versions and the device."""
    return {
        "versions": {"widelimit": wl.__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }
