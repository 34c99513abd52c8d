"""The choice of the parameters of a tangent kernel."""

from __future__ import annotations

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from widelimit.finite.empirical.arguments import is_array
from widelimit.typing import Params, Subset


def choose_leaves(params: Params, subset: Subset) -> tuple[bool, ...]:
    """Returns, for every leaf of the parameters, whether the kernel includes it.

    Args:
      params: tree of parameters.
      subset: None for all leaves; a pattern such as "*/lora_*" of paths like "layers/0/kernel", or
        a list of patterns; a tree of booleans like the parameters, or like the upper part of their
        tree, whether it can be called (a module) or not; or a function of a path and a leaf.

    Raises:
      TypeError: a chosen leaf that is not an array of floating-point or complex numbers.
      ValueError: no leaf is chosen, no path matches a pattern, or the tree of booleans does not
        fit.
    """
    entries = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in entries]
    leaves = [leaf for _, leaf in entries]
    if not leaves:
        raise ValueError("expected parameters, got a tree without leaves: the kernel has no terms")
    chosen = _chosen(params, paths, leaves, subset)
    if not any(chosen):
        raise ValueError(f"expected subset to choose some of {_few(paths)}, got {subset!r}")
    for path, leaf, is_chosen in zip(paths, leaves, chosen, strict=True):
        if is_chosen and not _is_inexact(leaf):
            kind = f"{leaf.dtype} numbers" if is_array(leaf) else type(leaf).__name__
            raise TypeError(
                f"expected floating-point or complex parameters, got {kind} at {path!r}: leave "
                "them out by subset, or close over them"
            )
    return chosen


def real_names(params: Params, subset: Subset) -> list[str]:
    """Returns the path of every real array that the kernel includes."""
    names = []
    entries = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), chosen in zip(entries, choose_leaves(params, subset), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if chosen:
            names += [f"{name}.real", f"{name}.imag"] if jnp.iscomplexobj(leaf) else [name]
    return names


def _chosen(
    params: Params, paths: list[str], leaves: list[PyTree], subset: Subset
) -> tuple[bool, ...]:
    if subset is None:
        return (True,) * len(leaves)
    if isinstance(subset, str):
        subset = [subset]
    if isinstance(subset, list | tuple) and subset and all(isinstance(s, str) for s in subset):
        for pattern in subset:
            if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                raise ValueError(
                    f"expected a pattern of some path among {_few(paths)}, got {pattern!r}"
                )
        return tuple(any(fnmatch.fnmatchcase(p, pattern) for pattern in subset) for p in paths)
    flags = _broadcast(subset, params)
    if callable(subset) and not _is_tree(subset, flags is not None):
        return tuple(bool(subset(p, leaf)) for p, leaf in zip(paths, leaves, strict=True))
    if flags is None:
        raise ValueError(
            "expected subset to be a pattern, a list of patterns, a function of path and leaf, or "
            f"booleans in a tree like {jax.tree.structure(params)}, got {subset!r}, a tree like "
            f"{jax.tree.structure(subset)}"
        )
    for path, flag in zip(paths, flags, strict=True):
        if not _is_flag(flag):
            raise TypeError(f"expected booleans in subset, got {flag!r} for {path!r}")
    return tuple(map(bool, flags))


def _broadcast(subset: Subset, params: Params) -> list[object] | None:
    """Returns the leaves of a tree like the parameters, or like its upper part, for every leaf."""
    try:
        return jax.tree.leaves(jax.tree.broadcast(subset, params))
    except ValueError:
        return None


def _is_tree(subset: Subset, fits: bool) -> bool:
    """Returns whether a callable is meant as a tree of booleans, as modules can be.

    A tree of booleans that does not fit was made for other parameters, unless the booleans are
    arguments of a partial function.
    """
    leaves = jax.tree.leaves(subset)
    if not leaves or leaves[0] is subset:
        return False
    return fits or (all(map(_is_flag, leaves)) and not isinstance(subset, jax.tree_util.Partial))


def _is_flag(leaf: object) -> bool:
    return isinstance(leaf, bool | np.bool_)


def _is_inexact(leaf: object) -> bool:
    if isinstance(leaf, float | complex):
        return True
    return is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _few(paths: list[str]) -> str:
    """Returns the first paths as text."""
    return ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
