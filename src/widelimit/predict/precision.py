"""float64 inside, whatever the caller's setting: values, and derivatives as well."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp

from widelimit._pytree import is_concrete


def result_dtype(kernel: Any) -> jnp.dtype:
    """The dtype of results: the kernel's own, canonicalised; the default float for integers."""
    return jnp.result_type(kernel, float)


def resolution(kernel: Any) -> float:
    """The relative rounding error of the kernel's entries as they were given."""
    dtype = jnp.asarray(kernel).dtype if not hasattr(kernel, "dtype") else kernel.dtype
    return float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float64).eps)


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on float64 copies of its arrays, with derivatives in float64 too.

    Positional arguments are trees of arrays; keywords are static. Where float64 is off, JAX would
    transpose float64 operations outside of `jax.enable_x64`, and so round every cotangent to
    float32. Hence the derivative there is a custom one that re-enters the context: first
    derivatives in reverse mode. It is right only for results that are cast back to a dtype of the
    caller's. Where float64 is on, derivatives of every kind and order are JAX's own.
    """

    @wraps(function)
    def wrapper(*arrays: Any, **static: Any) -> Any:
        leaves, structure = jax.tree.flatten(arrays)
        # Only what is traced can be differentiated. The rest is not passed through the custom
        # derivative: it stays concrete, and JAX cannot round an array of NumPy on the way in.
        traced = [None if is_concrete(leaf) else leaf for leaf in leaves]
        constants = [_constant(leaf) if is_concrete(leaf) else None for leaf in leaves]

        def compute(*holes: Any) -> Any:
            filled = [
                constant if hole is None else hole.astype(jnp.float64)
                for constant, hole in zip(constants, holes, strict=True)
            ]
            return function(*jax.tree.unflatten(structure, filled), **static)

        if jnp.result_type(float) == jnp.float64:
            return compute(*traced)
        if all(hole is None for hole in traced):
            with jax.enable_x64(True):
                return compute(*traced)
        return _guarded(compute, *traced)

    return wrapper


def _constant(leaf: Any) -> jax.Array:
    # Made at once: a float64 array of NumPy that becomes a constant of a jitted function while
    # float64 is on cannot be an argument of another one while it is off (JAX 0.10.2).
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return jnp.asarray(leaf).astype(jnp.float64)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _guarded(compute: Callable[..., Any], *arrays: Any) -> Any:
    with jax.enable_x64(True):
        return compute(*arrays)


def _forward(compute: Callable[..., Any], *arrays: Any) -> tuple[Any, Any]:
    with jax.enable_x64(True):
        return jax.vjp(compute, *arrays)


def _backward(compute: Callable[..., Any], pull_back: Any, cotangent: Any) -> Any:
    del compute
    with jax.enable_x64(True):
        return pull_back(cotangent)


_guarded.defvjp(_forward, _backward)
