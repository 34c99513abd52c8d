"""Validation of concrete numbers on the host, before a solver uses them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit._pytree import is_concrete, own

# Large arrays are checked so many rows at a time.
_ROWS = 512


def check_finite(name: str, x: Any) -> None:
    """Raise ValueError if a concrete array holds NaN or infinity: how many and where the first."""
    if not is_concrete(x):
        return
    values = np.asarray(x)
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        return
    pieces = np.split(values, range(_ROWS, len(values), _ROWS)) if values.ndim else [values]
    if not all(np.isfinite(piece).all() for piece in pieces):
        bad = ~np.isfinite(values)
        first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
        raise ValueError(
            f"expected {name} to be finite, got {int(bad.sum())} of {bad.size} entries that are "
            f"not, the first at index {first}: {values[first]}"
        )


def check_not_negative(name: str, value: Any) -> None:
    """Raise unless a concrete number, or every entry of an array, is at least 0.

    Raises:
      TypeError: if it is no number.
      ValueError: if it is negative or NaN.
    """
    if not is_concrete(value):
        return
    values = np.asarray(value)
    is_real = jnp.issubdtype(values.dtype, jnp.integer) or jnp.issubdtype(
        values.dtype, jnp.floating
    )
    if not is_real:
        raise TypeError(f"expected a number for {name}, got {value!r}")
    if not (values >= 0).all():
        raise ValueError(f"expected {name} of at least 0, got {value}")


def check_real(name: str, x: Any) -> None:
    """Raise TypeError if an array holds complex numbers, whose imaginary parts would be lost."""
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(x)):
        raise TypeError(
            f"expected real numbers in {name}, got complex ones: write complex outputs as pairs of "
            "real ones"
        )


def check_scalar(name: str, value: Any) -> None:
    """Raise unless `value` is one number, finite and at least 0 as far as it is concrete.

    Raises:
      TypeError: if it is no number.
      ValueError: if it is an array, negative, infinite or NaN.
    """
    check_not_negative(name, value)
    if jnp.ndim(value):
        raise ValueError(f"expected one number for {name}, got an array of {jnp.shape(value)}")
    check_finite(name, value)


def as_targets(name: str, y: Any) -> Any:
    """The targets as an array of our own; concrete ones are finite.

    Raises:
      TypeError: if they are not numbers.
      ValueError: if they are not finite, or empty.
    """
    y = y if hasattr(y, "shape") else np.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.number) and y.dtype != bool:
        raise TypeError(f"expected numbers in {name}, got an array of dtype {y.dtype}")
    check_real(name, y)
    if not y.size:
        raise ValueError(f"expected at least one training target, got {name} of shape {y.shape}")
    check_finite(name, y)
    return own(y)
