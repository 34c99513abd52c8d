"""Validation of concrete numbers on the host, before a solver uses them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import is_concrete, own
from widelimit._samples import check_finite
from widelimit._text import shown
from widelimit.kernel.masking import is_masked_array, split_mask
from widelimit.typing import KernelArray, Keywords, Scalars, TargetsLike


def check_finite_inputs(name: str, x: PyTree, keywords: Keywords) -> None:
    """Raises ValueError if concrete inputs hold NaN or infinity that is not masked.

    Args:
      name: the name of the inputs in errors.
      x: an array, or a tree of arrays and `MaskedArray`s.
      keywords: keywords of the kernel function, which may include `mask_constant`.
    """
    for leaf in jax.tree.leaves(x, is_leaf=is_masked_array):
        value = split_mask(leaf, None)[0] if is_masked_array(leaf) else leaf
        try:
            check_finite(name, value, keywords.get("mask_constant"))
        except ValueError as error:
            raise ValueError(
                f"{error}; mark padding by mask_constant=... among the keywords of kernel_fn, "
                "or by functools.partial(kernel_fn, mask_constant=...)"
            ) from None


def check_not_negative(name: str, value: ArrayLike | Scalars) -> None:
    """Raises unless a concrete number, or every entry of an array, is at least 0.

    Raises:
      TypeError: if it is not a number.
      ValueError: if it is negative or NaN.
    """
    if not is_concrete(value):
        return
    values = np.asarray(value)
    is_real = jnp.issubdtype(values.dtype, jnp.integer) or jnp.issubdtype(
        values.dtype, jnp.floating
    )
    if not is_real:
        raise TypeError(f"expected a number for {name}, got {shown(value)}")
    if not (values >= 0).all():
        raise ValueError(f"expected {name} of at least 0, got {shown(value)}")


def check_real(name: str, x: PyTree) -> None:
    """Raises TypeError if an array holds complex numbers, whose imaginary parts would be lost."""
    if any(map(np.iscomplexobj, jax.tree.leaves(x))):
        raise TypeError(
            f"expected real numbers in {name}, got complex ones: write complex outputs as pairs of "
            "real ones"
        )


def check_scalar(name: str, value: ArrayLike, advice: str = "") -> None:
    """Raises unless `value` is one number, finite and at least 0 as far as it is concrete.

    Raises:
      TypeError: if it is not a number.
      ValueError: if it is an array, negative, infinite or NaN; `advice` is added for an array.
    """
    if np.ndim(value):
        raise ValueError(
            f"expected one number for {name}, got an array of shape {np.shape(value)}{advice}"
        )
    check_not_negative(name, value)
    check_finite(name, value)


def test_set_advice(call: str) -> str:
    """Returns advice for an array of a test set that was passed in place of a number."""
    return f"; pass arrays of a test set to the function returned: {call}"


def as_flag(name: str, value: object) -> bool:
    """Returns the value as True or False.

    Raises:
      TypeError: if it is neither, such as an array meant for another argument.
    """
    if not (isinstance(value, bool | np.bool_ | int) or _is_concrete_bool(value)):
        raise TypeError(f"expected {name} to be True or False, got {shown(value)}")
    return bool(value)


def _is_concrete_bool(value: object) -> bool:
    return is_concrete(value) and np.asarray(value).ndim == 0 and np.asarray(value).dtype == bool


def as_targets(name: str, y: TargetsLike) -> KernelArray:
    """Returns a copy of the targets as an array; concrete ones are checked to be finite.

    Raises:
      TypeError: if they are not numbers.
      ValueError: if they are not finite, or empty.
    """
    original, y = y, y if isinstance(y, jax.Array | np.ndarray) else np.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.number) and y.dtype != bool:
        raise TypeError(f"expected numbers in {name}, got {shown(original)} of dtype {y.dtype}")
    check_real(name, y)
    if not y.size:
        raise ValueError(f"expected at least one training target, got {name} of shape {y.shape}")
    check_finite(name, y)
    return own(y)
