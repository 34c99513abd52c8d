"""Empirical kernels of the finite networks in neural-tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.finite_networks import FUNCTIONS, parameters
from benchmarks.networks_nt import import_nt

WAYS = {"JACOBIAN_CONTRACTION": 1, "NTK_VECTOR_PRODUCTS": 2, "STRUCTURED_DERIVATIVES": 3}


def kernel(network: str, get: str, gram: bool) -> Callable[[Any, Any], Any]:  # noqa: ARG001
    """Returns the function of x1 and x2 that computes the kernel in the way called `get`."""
    import jax
    import jax.numpy as jnp

    ntk_fn = import_nt().empirical_ntk_fn(
        FUNCTIONS[network], trace_axes=(-1,), vmap_axes=0, implementation=WAYS[get]
    )
    params = jax.tree_util.tree_map(jnp.asarray, parameters(network, jnp.zeros(0).dtype))
    jitted = jax.jit(ntk_fn)
    return lambda x1, x2: jitted(x1, x2, params)


def about(network: str, shape: tuple[int, ...]) -> dict[str, Any]:  # noqa: ARG001
    """Returns versions and the device."""
    import jax

    return {
        "versions": {"neural-tangents": import_nt().__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }
