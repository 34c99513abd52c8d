"""The argument `get` of kernel functions: names of fields of `Kernel`, one or several."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from jaxtyping import PyTree

from widelimit._text import shown
from widelimit.kernel.kernel import Kernel
from widelimit.typing import Get

_T = TypeVar("_T")

FIELDS = tuple(field.name for field in dataclasses.fields(Kernel))
KERNELS = ("nngp", "ntk")


def parse_get(
    get: object, allowed: tuple[str, ...] = FIELDS, default: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Returns the names in `get`, in lower case.

    Args:
      get: a name, several, or None.
      allowed: the possible names.
      default: the names that None means: commonly all of them; None if None is not allowed.

    Raises:
      ValueError: an unknown or repeated name, or no names.
    """
    default = allowed if default is None else default
    requested = default if get is None else get if isinstance(get, list | tuple) else (get,)
    names = _names_of(tuple(map(str, requested)), allowed)
    if not names:
        raise ValueError(
            f"expected get to be {'None, ' if default else ''}one of {', '.join(allowed)}, or a "
            f"tuple of distinct ones, got {shown(get)}"
        )
    return names


@functools.lru_cache(maxsize=256)
def _names_of(requested: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Returns names in lower case, none if one is unknown or repeated."""
    lower = tuple(name.lower() for name in requested)
    return lower if len({*lower} & {*allowed}) == len(lower) else ()


def as_asked(
    kind: str, get: object, names: tuple[str, ...], values: Iterable[_T]
) -> _T | tuple[_T, ...]:
    """Returns the single value if `get` was one name, else a named tuple of the values.

    Args:
      kind: name of the type of tuples.
      get: the argument of the user.
      names: the result of `parse_get`.
      values: one per name.
    """
    if isinstance(get, str):
        (value,) = values
        return value
    return named_tuple(kind, names)(*values)


@functools.lru_cache(maxsize=64)
def named_tuple(kind: str, names: tuple[str, ...]) -> Callable[..., tuple]:
    """Returns the named tuple of these fields; always the same type, since JAX compares types."""
    return collections.namedtuple(kind, names)


def select_fields(result: PyTree, get: Get) -> PyTree:
    """Returns the fields in `get`, kernel by kernel.

    Args:
      result: a `Kernel`, arrays by name, or a list or tuple of them.
      get: None for the whole result, a name, or a tuple of names.

    Raises:
      ValueError: an unknown or repeated name.
    """
    if isinstance(result, list | tuple):
        return type(result)(select_fields(part, get) for part in result)
    if get is None:
        return result
    names = parse_get(get)
    arrays = result if isinstance(result, Mapping) else vars(result)
    if isinstance(get, str):
        return arrays[names[0]]
    return named_tuple("AnalyticKernel", names)(*(arrays[name] for name in names))
