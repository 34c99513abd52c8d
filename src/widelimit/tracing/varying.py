"""Mesh axes along which arrays vary, inside `jax.shard_map`.

There JAX tells apart arrays that are the same on all devices and arrays that vary along axes of
the mesh. Carries of loops, cotangents and tangents must vary as what they meet does; arrays made
from shapes alone do not. The derivative with respect to parameters that are the same everywhere
is a sum over devices; with respect to parameters that vary, it is that of one device.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jaxtyping import ArrayLike, PyTree

_T = TypeVar("_T")


def varying_like(tree: _T, *references: PyTree) -> _T:
    """Returns a tree whose arrays vary along every mesh axis that those of references vary along.

    Outside of `jax.shard_map` it is the tree itself.

    Args:
      tree: tree of arrays.
      *references: trees of arrays, or of their shapes and dtypes from `jax.eval_shape`.
    """
    wanted = varying_axes(references)
    if not wanted:
        return tree

    def cast(leaf: PyTree) -> PyTree:
        if not hasattr(leaf, "dtype"):
            return leaf
        missing = tuple(sorted(wanted - varying_axes(leaf)))
        return _to_varying(leaf, missing) if missing else leaf

    return jax.tree.map(cast, tree)


def varying_together(*trees: PyTree) -> PyTree:
    """Returns the trees, whose arrays all vary along the same mesh axes.

    Inside `jax.shard_map` a function may carry one argument through a loop with another.
    """
    return varying_like(trees, trees)


def varying_axes(tree: PyTree) -> frozenset[str]:
    """Returns the mesh axes along which arrays of a tree vary."""
    found: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "dtype"):
            continue
        # structs and types of JAX say it themselves
        aval: Any = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
        # `vma` in older releases
        kind = getattr(aval, "vma", None) or getattr(aval, "manual_axis_type", None)
        found |= getattr(kind, "varying", kind) or frozenset()
    return found


def _to_varying(x: ArrayLike, axes: tuple[str, ...]) -> jax.Array:
    lax: Any = jax.lax
    if hasattr(lax, "pcast"):
        return lax.pcast(x, axes, to="varying")
    return lax.pvary(x, axes)  # its name in older releases
