"""float64 inside, whatever the caller's setting: values, and derivatives as well."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial, wraps
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
    dtype = jnp.asarray(kernel).dtype if not hasattr(kernel, "dtype") else kernel.dtype
    return float(jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float64).eps)


@contextlib.contextmanager
def at_once(*inputs: Any) -> Iterator[None]:
    """Inside, concrete inputs give concrete results, even within the user's `jax.jit`."""
    with jax.ensure_compile_time_eval() if is_concrete(*inputs) else contextlib.nullcontext():
        yield


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on float64 copies of its arrays, with derivatives in float64 too.

    Positional arguments are trees of arrays; keywords are static. Where float64 is off, JAX would
    transpose float64 operations outside of `jax.enable_x64`, and so round every cotangent to
    float32. Hence the derivative is a custom one that re-enters the context: first derivatives in
    reverse mode. Where float64 is on, derivatives of every kind and order are JAX's own.
    """

    @wraps(function)
    def wrapper(*arrays: Any, **static: Any) -> Any:
        arrays = jax.tree.map(_keep_digits, arrays)
        compute = partial(_cast_and_call, partial(function, **static))
        if jnp.result_type(float) == np.float64:
            return compute(*arrays)
        return _guarded(compute, *arrays)

    return wrapper


def _as_float64(x: Any) -> jax.Array:
    return jnp.asarray(x).astype(jnp.float64)


def _keep_digits(leaf: Any) -> Any:
    """A concrete leaf in float64: JAX would round a float64 array of NumPy on the way in."""
    if not is_concrete(leaf):
        return leaf
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return _as_float64(leaf)


def _cast_and_call(function: Callable[..., Any], *arrays: Any) -> Any:
    return function(*jax.tree.map(_as_float64, arrays))


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
