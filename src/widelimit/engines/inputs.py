"""Inputs of a kernel function: checks, and conversion to one dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from widelimit._pytree import as_leaf, is_concrete, same_values
from widelimit._samples import check_finite
from widelimit.covariance.signal import is_branches
from widelimit.kernel.kernel import Kernel
from widelimit.kernel.masking import MaskedArray
from widelimit.typing import Inputs, Pattern, Scalar


def as_inputs(x1: Inputs, x2: Inputs, mask_constant: Scalar | None) -> tuple[Inputs, Inputs]:
    """Returns both inputs as arrays of the working dtype, or as kernels; x2 None if all None.

    Raises:
      TypeError: inputs other than real arrays, kernels, and lists or tuples of them.
      ValueError: non-finite values, fewer than two axes, or trees that differ.
    """
    if is_branches(x2) and not jax.tree.leaves(x2):
        x2 = None
    check_inputs(x1, x2, mask_constant)
    first = cast_inputs(x1, mask_constant)
    if x2 is None or x2 is x1:
        return first, x2 if x2 is None else first  # the same object, for `same_inputs`
    return first, cast_inputs(x2, mask_constant)


def check_inputs(x1: Inputs, x2: Inputs, mask_constant: Scalar | None) -> None:
    """Raises unless these are inputs of a kernel function; see `as_inputs`. Copies nothing."""
    kernels = _check(x1, "x1", mask_constant)
    if x2 is not None and x2 is not x1:
        kernels += _check(x2, "x2", mask_constant)
        _check_same_tree(x1, x2)
    if kernels:
        _check_kernels(kernels, _leaves(x1), x2)


def cast_inputs(x: Inputs, mask_constant: Scalar | None) -> Inputs:
    """Returns inputs that have passed `check_inputs` in the working dtype (kernels unchanged)."""
    if is_branches(x):
        return type(x)(cast_inputs(part, mask_constant) for part in x)
    if isinstance(x, Kernel):
        return x
    with np.errstate(over="ignore"):  # masked entries may overflow
        # A copy: JAX may alias a NumPy array and compute later, after the caller has written to
        # it.
        cast = jnp.array(x, working_dtype(), copy=isinstance(x, np.ndarray))
    if mask_constant is not None and x.dtype != cast.dtype:
        # 0.1 in float16 is not 0.1 in float32: masks are determined in the dtype of x.
        return jnp.where(x == as_leaf(mask_constant), mask_constant, cast)
    return cast


def working_dtype() -> np.dtype:
    """Returns the dtype of all kernels: float64 with x64 on, else float32."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def _leaves(tree: Inputs) -> list[Kernel | ArrayLike]:
    return jax.tree.leaves(tree, is_leaf=lambda v: isinstance(v, Kernel))


def _check_kernels(kernels: list[Kernel], first: list[Kernel | ArrayLike], x2: Inputs) -> None:
    """Raises if kernels are mixed with arrays, with an x2, or with kernels of another kind."""
    if x2 is not None:
        raise ValueError("expected x2=None with a Kernel as input, got an x2 as well")
    if len(kernels) < len(first):
        raise TypeError("expected arrays only or Kernels only in x1, got both")
    if len({kernel.cov2 is None for kernel in kernels}) > 1:
        raise ValueError(
            "expected Kernels between the same inputs, got some of x1 with itself (cov2 is None) "
            "and some of x1 with x2"
        )


def _check(x: Inputs, name: str, mask_constant: Scalar | None) -> list[Kernel]:
    """Returns the kernels of a tree of kernels and of real, finite arrays of two axes or more.

    Raises:
      TypeError: another type.
      ValueError: non-finite values, or fewer axes.
    """
    if isinstance(x, Kernel):
        return [x]
    if is_branches(x):
        parts = [_check(part, f"{name}[{i}]", mask_constant) for i, part in enumerate(x)]
        return [kernel for part in parts for kernel in part]
    if isinstance(x, MaskedArray):
        raise TypeError(f"expected an array for {name}, got a MaskedArray: use mask_constant")
    if not isinstance(x, np.ndarray | jax.Array):
        raise TypeError(
            f"expected an array, a Kernel, or a list or tuple of them for {name}, got "
            f"{type(x).__name__}: make an array of nested lists, np.array(x)"
        )
    if not (
        jnp.issubdtype(x.dtype, jnp.floating)
        or jnp.issubdtype(x.dtype, jnp.integer)
        or x.dtype == bool
    ):
        raise TypeError(f"expected real numbers in {name}, got dtype {x.dtype}")
    if x.ndim < 2:
        raise ValueError(
            f"expected {name} with a batch and a channel axis (at least 2 axes), got "
            f"shape {x.shape}"
        )
    # Values that overflow in the working dtype are not finite either.
    check_finite(name, x, mask_constant, working_dtype())
    return []


def _check_same_tree(first: Inputs, second: Inputs) -> None:
    if is_branches(first) or is_branches(second):
        same = type(first) is type(second) and len(first) == len(second)
        if not same:
            raise ValueError(
                "expected x1 and x2 with the same lists and tuples of arrays, got "
                f"{_outline(first)} and {_outline(second)}"
            )
        for a, b in zip(first, second, strict=True):
            _check_same_tree(a, b)


def _outline(x: Inputs) -> str:
    if not is_branches(x):
        return type(x).__name__
    return f"{type(x).__name__} of {len(x)}"


def same_inputs(x1: Inputs, x2: Inputs) -> bool:
    """Returns whether x2 is x1: None, the same object, or concrete and equal in every entry."""
    if isinstance(x1, Kernel):
        return x1.cov2 is None or (is_concrete(x1.x1_is_x2) and bool(x1.x1_is_x2))
    if is_branches(x1):
        others = (None,) * len(x1) if x2 is None else x2
        return all(same_inputs(a, b) for a, b in zip(x1, others, strict=True))
    # NaN is legal as a masked entry.
    return x2 is None or same_values(x1, x2)


def as_patterns(pattern: Pattern) -> tuple[Pattern, Pattern]:
    """Returns the graph patterns of x1 and x2.

    Raises:
      TypeError: neither None nor a pair.
    """
    if pattern is None:
        return None, None
    if type(pattern) not in (list, tuple) or len(pattern) != 2:
        raise TypeError(
            "expected pattern=(pattern1, pattern2), a pair of graph patterns for x1 and x2, got "
            f"{type(pattern).__name__}"
        )
    return pattern[0], pattern[1]


def same_patterns(patterns: tuple[Pattern, Pattern], shared: bool) -> bool:
    """Returns whether both graph patterns are the same; if shared, None for x2 means x1's."""
    first, second = patterns
    return (second is None and shared) or same_values(first, second)


def shares_x1(x1: Inputs, x2: Inputs) -> bool:
    """Returns whether x2 was not passed: it is None, and kernels have no cov2."""
    return x2 is None and all(getattr(leaf, "cov2", None) is None for leaf in _leaves(x1))


def stored_diagonal(x1: Inputs) -> bool:
    """Returns whether x1 holds kernels of equal positions only."""
    return any(getattr(leaf, "diagonal_spatial", False) for leaf in _leaves(x1))
