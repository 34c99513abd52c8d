"""Validation of concrete numbers on the host, before a solver uses them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from widelimit._pytree import is_concrete


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
