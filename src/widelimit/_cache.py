"""Caches between calls: bounded, and safe to use from several threads."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

_T = TypeVar("_T")

_SIZE = 64  # largest number of entries per object
_NAME = "_kept"


class Cache:
    """A cache of the most recently used values, by key.

    Args:
      size: the largest number of values.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.RLock()
        self._known: collections.OrderedDict[Hashable, object] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Returns the value of a key, made by `make` if it is not cached."""
        with self._lock:
            if key not in self._known:
                self._known[key] = make()
                while len(self._known) > self._size:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return cast(_T, self._known[key])

    def __len__(self) -> int:
        return len(self._known)


def kept_with(owner: object, key: Hashable, make: Callable[[], _T]) -> _T:
    """Returns the value of a key from the cache of an immutable object, freed with the object.

    Args:
      owner: the object.
      key: a hashable key.
      make: makes the value, which may refer to the object.
    """
    cache: Cache | None = owner.__dict__.get(_NAME)
    if cache is None:
        cache = owner.__dict__.setdefault(_NAME, Cache(_SIZE))
    return cache.get(key, make)
