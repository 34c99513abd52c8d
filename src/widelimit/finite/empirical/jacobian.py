"""Jacobians, and kernels as their products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from widelimit.finite.empirical.kernel_axes import KernelAxes, kernel_of_arrays
from widelimit.tracing.varying import varying_like
from widelimit.typing import Integer

_T = TypeVar("_T")

OutputFunction = Callable[[PyTree], Array]
"""One real output, as a function of the parameters."""


def jacobian_contraction(
    f1: OutputFunction, f2: OutputFunction | None, params: PyTree, axes: KernelAxes
) -> Array:
    """Returns the kernel of two outputs as the product of their Jacobians.

    It takes the memory of both Jacobians: parameters times outputs. See `Implementation`.
    """
    first = jacobian(f1, params)
    second = first if f2 is None else jacobian(f2, params)
    shapes = [jax.eval_shape(f, params).shape for f in (f1, f2 or f1)]
    return kernel_of_jacobians(first, second, axes, (shapes[0], shapes[1]))


def kernel_of_jacobians(
    first: PyTree, second: PyTree, axes: KernelAxes, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> Array:
    """Returns the product of two Jacobians, leaf by leaf; zeros for a tree without leaves.

    Args:
      first: tree of arrays [*shape of output 1, *leaf].
      second: tree of arrays [*shape of output 2, *leaf].
      axes: trace and diagonal axes of the outputs.
      shapes: shapes of both outputs.
    """
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    total = [kernel_of_arrays(a, b, axes, len(shapes[0])) for a, b in pairs]
    return sum(total[1:], start=total[0]) if total else jnp.zeros(axes.kernel_shape(*shapes))


def jacobian(f: OutputFunction, params: PyTree, forward: bool | None = None) -> PyTree:
    """Returns the Jacobian: a tree like the parameters of arrays [*shape of f, *leaf].

    Args:
      f: a function of the parameters with one real array as its output.
      params: tree of real arrays.
      forward: whether to use forward mode; None for the mode with fewer passes, or the other one if
        the function has only one mode (a custom rule for reverse mode, loops of unknown length).
    """
    out = jax.eval_shape(f, params)
    leaves = jax.tree.leaves(params)
    size = math.prod(out.shape)
    count = sum(leaf.size for leaf in leaves)
    if size == 0 or count == 0:
        return jax.tree.map(lambda leaf: jnp.zeros(out.shape + leaf.shape, leaf.dtype), params)
    if forward is not None:
        return _forward_jacobian(f, params) if forward else _reverse_jacobian(f, params)
    first, second = _reverse_jacobian, _forward_jacobian
    return either(*((second, first) if count < size else (first, second)))(f, params)


def either(first: Callable[..., _T], second: Callable[..., _T]) -> Callable[..., _T]:
    """Returns a function that calls the first, or the second if the first has no derivative.

    If neither has one, it raises the error of the first.
    """

    def do(*args: object) -> _T:
        try:
            return first(*args)
        except (TypeError, ValueError) as error:
            try:
                return second(*args)
            except (TypeError, ValueError):
                raise error from None

    return do


def _reverse_jacobian(f: OutputFunction, params: PyTree) -> PyTree:
    """Returns the Jacobian by one pass per output."""
    out, pull = pulled(f, params)
    size = math.prod(out.shape)
    rows = jax.vmap(pull)(jnp.eye(size, dtype=out.dtype).reshape(size, *out.shape))
    return jax.tree.map(lambda row, leaf: row.reshape(out.shape + leaf.shape), rows, params)


def _forward_jacobian(f: OutputFunction, params: PyTree) -> PyTree:
    """Returns the Jacobian by one pass per parameter."""
    leaves, structure = jax.tree.flatten(params)
    _, push = jax.linearize(f, params)
    columns = []
    for i, leaf in enumerate(leaves):
        zeros = [jnp.zeros_like(other) for other in leaves]

        def column(tangent: Array, i: int = i, zeros: list[Array] = zeros) -> Array:
            return push(jax.tree.unflatten(structure, [*zeros[:i], tangent, *zeros[i + 1 :]]))

        if leaf.size:
            basis = jnp.eye(leaf.size, dtype=leaf.dtype).reshape(leaf.size, *leaf.shape)
            column_rows = jax.vmap(column, out_axes=-1)(varying_like(basis, leaf))
            columns.append(
                column_rows.reshape(*column_rows.shape[:-1], *leaf.shape).astype(leaf.dtype)
            )
        else:
            out = jax.eval_shape(f, params)
            columns.append(jnp.zeros(out.shape + leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, columns)


def unit_row(f: OutputFunction, params: PyTree, index: Integer) -> PyTree:
    """Returns one row of the Jacobian: the gradient of entry `index` of the raveled output."""
    out, pull = pulled(f, params)
    return pull(jnp.zeros(math.prod(out.shape), out.dtype).at[index].set(1).reshape(out.shape))


def pulled(
    f: Callable[[PyTree], PyTree], params: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Returns the shapes and dtypes of outputs, and the linear map v -> J^T v.

    Inside `jax.shard_map` J is that of one device: if outputs vary between devices, parameters that
    are the same on all devices count as one copy per device.
    """
    out = jax.eval_shape(f, params)
    _, pull = jax.vjp(f, varying_like(params, out))
    return out, lambda v: pull(varying_like(v, out))[0]
