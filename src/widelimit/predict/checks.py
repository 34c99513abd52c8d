"""Precision and validation: what the solvers ask of numbers before they use them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(*trees: Any) -> bool:
    """Whether every array in the arguments has a value now, rather than being traced by JAX."""
    for leaf in jax.tree.leaves(trees):
        try:
            np.asarray(leaf)
        except jax.errors.TracerArrayConversionError:
            return False
    return True


def result_dtype(kernel: Any) -> jnp.dtype:
    """The dtype of results: the kernel's own, canonicalised; the default float for integers."""
    return jnp.result_type(kernel, float)


def resolution(kernel: Any) -> float:
    """The relative rounding error of the kernel's entries as they were given."""
    dtype = np.dtype(getattr(kernel, "dtype", np.float64))
    floating = dtype if jnp.issubdtype(dtype, jnp.floating) else np.dtype(np.float64)
    return float(jnp.finfo(floating).eps)


def as_float64(x: Any) -> jax.Array:
    """The array in float64; call it under `jax.enable_x64(True)`."""
    return jnp.asarray(x).astype(jnp.float64)


def check_finite(name: str, x: Any) -> None:
    """Raise ValueError if a concrete array holds NaN or infinity: how many and where the first."""
    if not is_concrete(x):
        return
    values = np.asarray(x)
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        return
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
        raise ValueError(
            f"expected {name} to be finite, got {int(bad.sum())} of {bad.size} entries that are "
            f"not, the first at index {first}: {values[first]}"
        )


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError if a concrete number, or any entry of an array, is negative or NaN."""
    if not is_concrete(value):
        return
    values = np.asarray(value)
    if not (values >= 0).all():
        raise ValueError(f"expected {name} of at least 0, got {value}")
