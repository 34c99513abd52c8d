"""Mesh axes along which arrays vary, inside `jax.shard_map`.

There JAX distinguishes arrays that are the same on all devices and arrays that vary along axes of
the mesh. Carries of loops, cotangents and tangents must vary like their counterparts; arrays made
from shapes alone do not. The derivative with respect to parameters that are the same everywhere
is a sum over devices; with respect to parameters that vary, it is that of one device.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jaxtyping import ArrayLike, PyTree

_T = TypeVar("_T")


def varying_like(tree: _T, *references: PyTree) -> _T:
    """Returns a tree whose arrays vary along every mesh axis along which the references vary.

    Outside `jax.shard_map` it is the tree itself.

    Args:
      tree: tree of arrays.
      *references: trees of arrays, or of their shapes and dtypes from `jax.eval_shape`.
    """
    axes = varying_axes(references)
    if not axes:
        return tree

    def cast(leaf: PyTree) -> PyTree:
        if not hasattr(leaf, "dtype"):
            return leaf
        missing = tuple(sorted(axes - varying_axes(leaf)))
        return _to_varying(leaf, missing) if missing else leaf

    return jax.tree.map(cast, tree)


def varying_together(*trees: PyTree) -> PyTree:
    """Returns the trees, whose arrays all vary along the same mesh axes.

    Inside `jax.shard_map` a function may carry one argument through a loop with another.
    """
    return varying_like(trees, trees)


def varying_axes(tree: PyTree) -> frozenset[str]:
    """Returns the mesh axes along which arrays of a tree vary."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "dtype"):
            continue
        # Structs and types of JAX have the attribute themselves.
        aval: Any = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
        # It is called `vma` in older releases.
        kind = getattr(aval, "vma", None) or getattr(aval, "manual_axis_type", None)
        axes |= getattr(kind, "varying", kind) or frozenset()
    return axes


def _to_varying(x: ArrayLike, axes: tuple[str, ...]) -> jax.Array:
    lax: Any = jax.lax
    if hasattr(lax, "pcast"):
        return lax.pcast(x, axes, to="varying")
    return lax.pvary(x, axes)  # its name in older releases
