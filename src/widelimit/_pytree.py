"""Frozen dataclasses that are JAX pytrees (traced data fields, static structure fields); leaves."""

from __future__ import annotations

import dataclasses
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import (
    Any,
    ClassVar,
    Protocol,
    TypeAlias,
    TypeGuard,
    TypeVar,
    dataclass_transform,
    runtime_checkable,
)

import jax
import jax.numpy as jnp
import numpy as np

_T = TypeVar("_T")

AnyArray: TypeAlias = jax.Array | np.ndarray | np.number | np.bool_
"""An array of JAX, perhaps traced, or of NumPy."""

AnyArrays: TypeAlias = Sequence[AnyArray]
"""A sequence of arrays."""

Outline: TypeAlias = AnyArray | jax.ShapeDtypeStruct
"""An array, or its shape and dtype."""

_Values: TypeAlias = tuple[object, ...]
_Keyed: TypeAlias = tuple[tuple[jax.tree_util.GetAttrKey, object], ...]


@runtime_checkable
class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


def static(*, default: object = dataclasses.MISSING, kw_only: bool = False) -> Any:
    """Returns a dataclass field that is part of the tree's structure instead of a leaf.

    Args:
      default: default value of the field.
      kw_only: whether the field is a keyword-only argument.
    """
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def pytree(cls: type[_T]) -> type[_T]:
    """Returns `cls` as a frozen dataclass registered with JAX.

    Unflattening bypasses `__init__`: JAX rebuilds trees with tracers and placeholders in them,
    so constructors can validate the values that users pass.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    meta = tuple(f.name for f in fields if f.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    get_data, get_meta = _getter(data), _getter(meta)

    def flatten(obj: object) -> tuple[_Values, _Values]:
        return get_data(obj), get_meta(obj)

    def flatten_with_keys(obj: object) -> tuple[_Keyed, _Values]:
        leaves, structure = flatten(obj)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: _Values, leaves: Iterable[object]) -> _T:
        obj = object.__new__(cls)
        for name, value in zip(data + meta, (*leaves, *structure), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _getter(names: tuple[str, ...]) -> Callable[[object], _Values]:
    """Returns a function from an object to a tuple of its attributes."""
    match names:
        case ():
            return lambda _: ()
        case (name,):
            return lambda obj: (getattr(obj, name),)
        case _:
            return operator.attrgetter(*names)


def data_fields(obj: Dataclass) -> tuple[str, ...]:
    """Returns the names of the traced fields of a `pytree` object, in order."""
    return tuple(f.name for f in dataclasses.fields(obj) if not f.metadata.get("static"))


def as_leaf(value: object) -> object:
    """Returns concrete numbers as Python floats; arrays, tracers and None unchanged.

    All numbers then have one abstract type, so that 1, 1.5 and `np.sqrt(2)` share a compilation.
    """
    if isinstance(value, tuple | list):
        return tuple(as_leaf(v) for v in value)
    if isinstance(value, numbers.Real | np.bool_):
        return float(value)
    return float(value) if isinstance(value, np.ndarray) and value.ndim == 0 else value


def is_concrete(*trees: object) -> bool:
    """Returns whether all leaves of the trees are concrete (not traced)."""
    try:
        for leaf in jax.tree.leaves(trees):
            if isinstance(leaf, jax.Array):
                leaf.is_fully_addressable  # noqa: B018 - the property that tracers refuse
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def same_values(first: object, second: object) -> bool:
    """Returns whether two trees are known to be equal: in structure, shapes and entries.

    NaN equals NaN. A traced array equals only itself.
    """
    if first is second:
        return True
    (leaves1, tree1), (leaves2, tree2) = map(jax.tree.flatten, (first, second))
    if operator.ne(tree1, tree2):
        return False
    pairs = [(a, b) for a, b in zip(leaves1, leaves2, strict=True) if a is not b]
    return is_concrete(pairs) and all(_same_entries(a, b) for a, b in pairs)


def _same_entries(first: object, second: object) -> bool:
    a, b = _entries(first), _entries(second)
    has_nan = jnp.issubdtype(a.dtype, np.inexact) and jnp.issubdtype(b.dtype, np.inexact)
    return bool(np.array_equal(a, b, equal_nan=has_nan))


def _entries(value: object) -> np.ndarray:
    return np.asarray(jax.random.key_data(value) if is_random_key(value) else value)


def is_random_key(value: object) -> TypeGuard[jax.Array]:
    """Returns whether this is an array of random keys of the new kind."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def own(tree: _T) -> _T:
    """Returns the tree with copies of its NumPy arrays, which callers may change later."""

    def copy(value: object) -> object:
        frozen = isinstance(value, np.ndarray) and value.base is None and not value.flags.writeable
        return value.copy() if isinstance(value, np.ndarray) and not frozen else value

    return jax.tree.map(copy, tree)
