"""Products of the kernel with vectors, and kernels from such products."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from widelimit.finite.empirical.jacobian import pulled
from widelimit.finite.empirical.kernel_axes import KernelAxes, kernel_dtype
from widelimit.tracing.varying import varying_like

TreeFunction = Callable[[PyTree], PyTree]


def ntk_vector_product(f1: TreeFunction, f2: TreeFunction | None, params: PyTree) -> TreeFunction:
    """Returns the linear map v -> J1 J2^T v for real functions of the parameters.

    Args:
      f1: a function of the parameters with real arrays as its outputs.
      f2: a second function, whose outputs are like v; None for f1 itself.
      params: tree of real arrays.
    """
    _, pull = pulled(f2 or f1, params)
    push = pushed(f1, params)
    return lambda v: push(pull(v))


def pushed(f: TreeFunction, params: PyTree, *, keep: bool = False) -> TreeFunction:
    """Returns the linear map u -> J u from directions of the parameters.

    It uses forward mode; or, for a function with a custom rule for reverse mode only, the transpose
    of that, which is the derivative of a linear map.

    Args:
      f: a function of the parameters.
      params: tree of real arrays.
      keep: whether to evaluate f once and store the linearisation, for many directions.
    """

    def forward(u: PyTree) -> PyTree:
        return jax.jvp(f, (varying_like(params, u),), (varying_like(u, params),))[1]

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), params)
    try:
        jax.eval_shape(jax.vmap(forward), one)  # raises without forward mode only under `vmap`
    except TypeError:
        out, pull = pulled(f, params)
        zeros = jax.tree.map(lambda y: varying_like(jnp.zeros(y.shape, y.dtype), y), out)
        _, transposed = pulled(pull, zeros)
        return transposed
    except (NotImplementedError, ValueError):
        pass  # f has no `vmap`, so nothing is known about forward mode
    if not keep:
        return forward
    push = jax.linearize(f, params)[1]
    return lambda u: push(varying_like(u, params))


def ntk_vector_products(
    f1: TreeFunction, f2: TreeFunction | None, params: PyTree, axes: KernelAxes
) -> Array:
    """Returns the kernel of two outputs column by column; see `Implementation`.

    Each column takes a reverse and a forward pass, all columns at once. Only the entries of a
    column that remain after trace and diagonal axes are stored.
    """
    out1, out2 = (jax.eval_shape(f, params) for f in (f1, f2 or f1))
    dtype = kernel_dtype(out1.dtype, *(leaf.dtype for leaf in jax.tree.leaves(params)))
    shape = axes.kernel_shape(out1.shape, out2.shape)
    if not math.prod(out1.shape) * math.prod(out2.shape):
        return jnp.zeros(shape, dtype)
    product = ntk_vector_product(f1, f2, params)
    rank = len(out2.shape)
    paired = axes.kept(rank)
    slots = (*axes.trace, *axes.diagonal)
    slot_shape = tuple(out2.shape[a] for a in slots)
    paired_shape = tuple(out2.shape[a] for a in paired)

    def column(slot: Array, index: Array) -> Array:
        """Returns the entries [*paired of output 1] of the column at a slot and an index."""
        places = [jnp.int32(0)] * rank
        for a, place in zip(slots, jnp.unravel_index(slot, slot_shape), strict=True):
            places[a] = place
        at_slot = list(places)
        for a, place in zip(paired, jnp.unravel_index(index, paired_shape), strict=True):
            places[a] = place
        unit = jnp.zeros(out2.shape, out2.dtype).at[tuple(places)].set(1)
        read = tuple(slice(None) if a in paired else at_slot[a] for a in range(rank))
        return product(unit)[read].astype(dtype)

    over_kept = jax.vmap(column, in_axes=(None, 0), out_axes=-1)
    indices = jnp.arange(math.prod(paired_shape))
    # [*trace, *diagonal, *paired of output 1, *paired of output 2]
    columns = jax.vmap(over_kept, in_axes=(0, None))(jnp.arange(math.prod(slot_shape)), indices)
    first = tuple(out1.shape[a] for a in paired)
    columns = columns.reshape(*slot_shape, *first, *paired_shape)
    summed = columns.sum(axis=tuple(range(len(axes.trace))))
    return summed.transpose(axes.zipped_order(rank))
