"""What `get` asks of a kernel function: fields of `Kernel`, singly or in named tuples."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from widelimit.kernel.kernel import Kernel

_FIELDS = tuple(field.name for field in dataclasses.fields(Kernel))


def parse_get(get: Any) -> tuple[str, ...]:
    """Returns the names of the `Kernel` fields asked for, in lower case.

    Raises:
      ValueError: an unknown or repeated name, or none at all.
    """
    if get is None:
        return _FIELDS
    names = get if isinstance(get, list | tuple) else (get,)
    fields = _fields_named(tuple(map(str, names)))
    if not fields:
        raise ValueError(
            f"expected get to be None, one of {', '.join(_FIELDS)}, or a tuple of distinct ones; "
            f"got {get!r}"
        )
    return fields


@functools.lru_cache(maxsize=256)
def _fields_named(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the fields of these names in lower case, none if one is unknown or repeated."""
    lower = tuple(name.lower() for name in names)
    good = set(lower) <= set(_FIELDS) and len(set(lower)) == len(lower)
    return lower if good else ()


def select_fields(result: Any, get: Any) -> Any:
    """Returns the fields that the user asked for, kernel by kernel.

    Args:
      result: a `Kernel`, arrays by name, or a list or tuple of them.
      get: None for all of it, a name, or a tuple of names.

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
    return _named_tuple(names)(*(arrays[name] for name in names))


@functools.lru_cache(maxsize=64)
def _named_tuple(names: tuple[str, ...]) -> Any:
    return collections.namedtuple("AnalyticKernel", names)
