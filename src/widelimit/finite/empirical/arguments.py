"""Arguments of kernels of two sets of inputs: their keywords, and the axes of their samples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, PyTreeDef
from jaxtyping import PyTree

from widelimit._pytree import AnyArray, Outline, is_concrete, is_random_key, own, same_values
from widelimit.typing import Inputs, Keywords


class Arguments(NamedTuple):
    """One set of inputs of f.

    Attributes:
      x: tree of inputs.
      kwargs: keywords of f.
    """

    x: Inputs
    kwargs: Keywords


def two_sides(x1: PyTree, x2: PyTree, kwargs: Keywords) -> tuple[Arguments, Arguments | None]:
    """Returns both sets of inputs with their keywords, the second None if equal to the first.

    Pairs (tuples of two) are split between x1 and x2. A single random key `rng` belongs to x1; x2
    gets the same key if it is equal to x1, and otherwise a key derived from it.

    Args:
      x1: tree of inputs.
      x2: tree of inputs; None, or a tree of None, for x1.
      kwargs: keywords.

    Raises:
      ValueError: x1 and x2 with trees that differ.
    """
    has_x2 = bool(jax.tree.leaves(x2))
    trees: tuple[PyTreeDef, PyTreeDef] = (jax.tree.structure(x1), jax.tree.structure(x2))
    if has_x2 and trees[0] != trees[1]:
        raise ValueError(
            f"expected x1 and x2 with the same tree of arrays, got {trees[0]} and {trees[1]}"
        )
    first, second = {}, {}
    for name, value in kwargs.items():
        pair = type(value) is tuple and len(value) == 2
        if name == "rng" and value is not None:
            first[name], second[name] = _keys(value, pair, x1, x2 if has_x2 else None)
        elif pair:
            first[name] = value[0]
            second[name] = value[0] if value[1] is None and not has_x2 else value[1]
        else:
            first[name] = second[name] = value
    if not has_x2 and _same(first, second):
        return Arguments(x1, first), None
    return Arguments(x1, first), Arguments(x2 if has_x2 else x1, second)


def _keys(rng: PyTree, pair: bool, x1: PyTree, x2: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the random keys of x1 and x2: the same for equal inputs."""
    if pair:
        if x2 is None and not _same(*rng):
            warnings.warn(
                "expected one random key for one set of inputs, got two: the first is used for "
                "both, since different noise would change the kernel of x1 with itself",
                stacklevel=4,
            )
            return rng[0], rng[0]
        return rng
    equal = _equal_inputs(x1, x2)
    if equal is True:
        return rng, rng
    other = jax.random.fold_in(rng, 1)
    return rng, other if equal is False else jnp.where(equal, rng, other)


def _equal_inputs(x1: PyTree, x2: PyTree) -> bool | jax.Array:
    """Returns whether inputs are equal: a bool, which is traced if they are."""
    if x2 is None or same_values(x1, x2):
        return True
    pairs = list(zip(jax.tree.leaves(x1), jax.tree.leaves(x2), strict=True))
    if is_concrete(x1, x2) or any(jnp.shape(a) != jnp.shape(b) for a, b in pairs):
        return False
    return jnp.array([jnp.array_equal(a, b, equal_nan=True) for a, b in pairs]).all()


def _same(first: PyTree, second: PyTree) -> bool:
    """Returns whether trees hold the same objects, or concrete arrays with equal entries."""
    return Constants.of(first) == Constants.of(second)


def _same_leaf(a: object, b: object) -> bool:
    if a is b:
        return True
    if not is_concrete(a, b):
        return False
    if not (is_array(a) and is_array(b)):
        # zeros of either sign are equal numbers
        return bool(type(a) is type(b) and a == b and (a != 0 or repr(a) == repr(b)))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if is_random_key(a):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def is_array(leaf: object) -> TypeGuard[jax.Array | np.ndarray]:
    """Returns whether a leaf is an array, traced or not."""
    return isinstance(leaf, np.ndarray | np.generic | jax.Array)


class Constants:
    """Leaves of arguments that are not arrays, as a static argument of compiled functions.

    Two are equal if they hold the same objects, or equal objects of the same type.
    """

    def __init__(self, structure: PyTreeDef, leaves: tuple[object, ...]) -> None:
        """Stores the structure of a tree and its leaves, with placeholders for the arrays."""
        self.structure, self.leaves = structure, leaves

    @classmethod
    def of(cls, tree: PyTree) -> Constants:
        """Returns the constants of a tree, in which None is a leaf."""
        leaves, structure = jax.tree.flatten(tree, is_leaf=lambda v: v is None)
        return cls(structure, tuple(leaves))

    @property
    def tree(self) -> PyTree:
        """The tree, with placeholders in place of arrays."""
        return jax.tree.unflatten(self.structure, self.leaves)

    def __hash__(self) -> int:
        return hash((self.structure, tuple(map(type, self.leaves))))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Constants)
            and self.structure == other.structure
            and len(self.leaves) == len(other.leaves)
            and all(map(_same_leaf, self.leaves, other.leaves))
        )


class _Hole:
    """The placeholder of an array among constants."""

    def __repr__(self) -> str:
        return "array"


_HOLE = _Hole()


def split_arrays(tree: PyTree) -> tuple[list[AnyArray], Constants]:
    """Returns the arrays of a tree, and its other leaves: flags, text, numbers, functions.

    Arrays of NumPy are copied.
    """
    leaves, structure = jax.tree.flatten(tree)
    arrays = own([leaf for leaf in leaves if _is_traceable(leaf)])
    rest = tuple(_HOLE if _is_traceable(leaf) else leaf for leaf in leaves)
    return arrays, Constants(structure, rest)


def join_arrays(arrays: Sequence[Outline], constants: Constants) -> PyTree:
    """Returns the tree whose arrays and constants `split_arrays` returned."""
    rest = iter(arrays)
    leaves = [next(rest) if leaf is _HOLE else leaf for leaf in constants.leaves]
    return jax.tree.unflatten(constants.structure, leaves)


def _is_traceable(leaf: object) -> bool:
    """Returns whether a leaf is an array of numbers or of random keys."""
    return is_array(leaf) and not (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype == "O")


def path_text(path: KeyPath) -> str:
    """Returns the place of a leaf, for messages; empty if it is the whole tree."""
    return f" at {jax.tree_util.keystr(path)}" if path else ""


def mapped_axes(axes: PyTree, tree: PyTree, name: str) -> list[int | None]:
    """Returns the mapped axis of every leaf, None for leaves that are not mapped.

    Args:
      axes: an integer or None for all leaves, or a tree of those like `tree`, or the upper part of
        one.
      tree: the arguments.
      name: the name of the arguments in errors.

    Raises:
      ValueError: a tree that does not fit, or an axis out of range.
      TypeError: axes that are neither integers nor None.
    """
    try:
        spread = jax.tree.broadcast(axes, tree, is_leaf=lambda v: v is None)
    except ValueError as error:
        raise ValueError(
            f"expected vmap_axes for {name} like {jax.tree.structure(tree)}, got {axes}"
        ) from error
    places: list[int | None] = []
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda v: v is None)
    each = jax.tree.leaves(spread, is_leaf=lambda v: v is None)
    for axis, (path, leaf) in zip(each, leaves, strict=True):
        if leaf is None:
            continue
        if axis is None or not hasattr(leaf, "ndim"):
            places.append(None)
            continue
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(
                f"expected integers or None in vmap_axes for {name}{path_text(path)}, got {axis!r}"
            )
        if not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(
                f"expected an array with axis {axis} in {name}{path_text(path)}, as vmap_axes say, "
                f"got shape {leaf.shape}"
            )
        places.append(int(axis) % leaf.ndim)
    return places


class MappedAxes(NamedTuple):
    """The axis of samples in inputs, outputs and keywords, each a tree, an integer or None."""

    inputs: PyTree
    outputs: PyTree
    kwargs: PyTree

    @classmethod
    def of(cls, vmap_axes: PyTree) -> MappedAxes:
        """Returns the axes from the argument of a user: a triple, or the same for x and f(x)."""
        if type(vmap_axes) is tuple and len(vmap_axes) == 3:
            return cls(*vmap_axes)
        return cls(vmap_axes, vmap_axes, {})

    def of_kwargs(self, kwargs: Keywords) -> Keywords:
        """Returns the axes of these keywords; keywords without axes are not mapped.

        Raises:
          ValueError: axes for keywords that are missing.
        """
        if self.kwargs is None or isinstance(self.kwargs, int):
            return {name: None if name == "rng" else self.kwargs for name in kwargs}
        unknown = set(self.kwargs) - set(kwargs)
        if unknown:
            raise ValueError(
                f"expected vmap_axes for keywords among {sorted(kwargs)}, got {sorted(unknown)}"
            )
        return {name: self.kwargs.get(name) for name in kwargs}
