"""float64 computations, whatever the caller's setting, of values and derivatives."""

from collections.abc import Callable
from functools import partial, wraps
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import is_concrete

_T = TypeVar("_T")

# Number of rows of a kernel that are examined at a time.
_ROWS = 512
_LOW_BITS = np.uint32(0xFF)

_FORWARD_MODE = (
    "expected derivatives in reverse mode (jax.grad, jax.jacrev, jax.vjp) while float64 is off, "
    "got forward mode (jax.jvp, jax.jacfwd): use jax.jacrev, or turn float64 on by "
    'jax.config.update("jax_enable_x64", True)'
)


def result_dtype(kernel: ArrayLike) -> jnp.dtype:
    """Returns the dtype of results: the kernel's own, or the default float for integers."""
    return jnp.result_type(kernel, float)


def resolution(kernel: ArrayLike) -> float:
    """Returns the relative rounding error of the entries of the user's kernel.

    It is that of their dtype, or that of float32 if float64 entries were computed in float32.
    """
    dtype = jnp.asarray(kernel).dtype if not hasattr(kernel, "dtype") else kernel.dtype
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float64
    if dtype == jnp.float64 and is_concrete(kernel) and _rounded_to_float32(np.asarray(kernel)):
        dtype = jnp.float32
    return float(jnp.finfo(dtype).eps)


def _rounded_to_float32(values: np.ndarray) -> bool:
    """Returns whether all entries are float32 numbers, and not merely integers or short ones."""
    uses_all_bits = False
    for start in range(0, len(values) if values.ndim else 0, _ROWS):
        piece = np.asarray(values[start : start + _ROWS], np.float64)
        with np.errstate(over="ignore"):
            single = piece.astype(np.float32)
        if not (single == piece).all():
            return False
        uses_all_bits |= bool((single.view(np.uint32) & _LOW_BITS).any())
    return uses_all_bits


def in_float64(function: Callable[..., _T]) -> Callable[..., _T]:
    """Returns a function that computes on float64 copies of its arrays, derivatives included.

    Positional arguments are trees of arrays; keywords are static. With float64 off, JAX would
    transpose float64 operations outside `jax.enable_x64`, and so round every cotangent to float32.
    So the derivative there is a custom one that re-enters the context: first derivatives in reverse
    mode. It is right only for results that are cast back to one of the caller's dtypes. Forward
    mode raises TypeError, with advice unless it happens outside this call, as in the derivative of
    a jitted function. With float64 on, derivatives of every kind and order are JAX's own.
    """

    @wraps(function)
    def wrapper(*arrays: PyTree, **static: object) -> _T:
        leaves, structure = jax.tree.flatten(arrays)
        # Only what is traced can be differentiated. The rest is not passed through the custom
        # derivative: it stays concrete, and JAX cannot round an array of NumPy on the way in.
        traced, constants = [None] * len(leaves), list(leaves)
        for i, leaf in enumerate([] if is_concrete(leaves) else leaves):
            if not is_concrete(leaf):
                traced[i], constants[i] = leaf, None
        constants = _constants(constants)

        def compute(*holes: jax.Array | None) -> _T:
            filled = [
                constant if hole is None else hole.astype(jnp.float64)
                for constant, hole in zip(constants, holes, strict=True)
            ]
            return function(*jax.tree.unflatten(structure, filled), **static)

        if jnp.result_type(float) == jnp.float64:
            return compute(*traced)
        if not jax.tree.leaves(traced):
            with jax.enable_x64(True):
                return compute(*traced)
        try:
            return _guarded(compute, *traced)
        except TypeError as error:
            if "custom_vjp" not in str(error):
                raise
            raise TypeError(_FORWARD_MODE) from error

    return wrapper


def _constants(leaves: list[ArrayLike | None]) -> list[jax.Array | None]:
    # Made at once: a float64 array of NumPy that becomes a constant of a jitted function while
    # float64 is on cannot be an argument of another one while it is off (JAX 0.10.2).
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return [None if v is None else jnp.asarray(v).astype(jnp.float64) for v in leaves]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _guarded(compute: Callable[..., _T], *arrays: ArrayLike | None) -> _T:
    with jax.enable_x64(True):
        return compute(*arrays)


def _forward(
    compute: Callable[..., _T], *arrays: ArrayLike | None
) -> tuple[_T, Callable[[_T], PyTree]]:
    with jax.enable_x64(True):
        return jax.vjp(compute, *arrays)


def _backward(
    compute: Callable[..., _T], pull_back: Callable[[_T], PyTree], cotangent: _T
) -> PyTree:
    del compute
    with jax.enable_x64(True):
        return pull_back(cotangent)


_guarded.defvjp(_forward, _backward)
