"""States of iterations on disk, which a writer that is killed at any time leaves usable."""

import hashlib
import os
from typing import Any, TypeAlias

import numpy as np

from widelimit.scale.operator import Operator
from widelimit.scale.schema import hash_array, open_group

Arrays: TypeAlias = dict[str, np.ndarray]
"""Arrays by name."""

Location: TypeAlias = str | os.PathLike
"""The path or URL of a store."""

_SLOTS = ("slot0", "slot1")
# What zarr raises for arrays that are missing, cut short or damaged.
_DAMAGE = (KeyError, OSError, TypeError, ValueError)


def digest(*values: object) -> str:
    """Returns the SHA-256 of arrays, with their shapes and dtypes, and of texts of other values."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            sha.update(hash_array(value).encode())
        else:
            sha.update(f"{value!r};".encode())
    return sha.hexdigest()


def identity(operator: Operator) -> str:
    """Returns a text that tells kernels apart: of the diagonal and the first column."""
    return digest(operator.diagonal(), operator.columns(np.arange(1)))


def _group(location: Location, name: str) -> Any:
    return open_group(os.fspath(location), "a").require_group(name)


def _write(group: Any, name: str, array: np.ndarray) -> None:
    there = group.get(name)
    if there is not None and (there.shape, there.dtype) == (array.shape, array.dtype):
        there[...] = array
    else:
        group.create_array(name, data=array, chunks=array.shape, compressors=None, overwrite=True)


class Checkpoint:
    """The state of an iteration in two slots of a group `solve/ID`, written in turn.

    A slot is its arrays and then, last, the attributes with their checksums. A slot that is torn or
    damaged fails its checksums; then the state before it is read from the other one.

    Args:
      location: path or URL of a store, or of any folder.
      fingerprint: a text of what is solved; another one has other slots.
    """

    def __init__(self, location: Location, fingerprint: str) -> None:
        self._root = _group(location, f"solve/{fingerprint[:32]}")
        self._turn = max((turn for turn, _ in self._intact()), default=-1)

    def read(self) -> Arrays | None:
        """Returns the newest state that is intact, None if there is none."""
        return max(self._intact(), key=lambda found: found[0], default=(-1, None))[1]

    def write(self, arrays: Arrays) -> None:
        """Writes a state in place of the last but one."""
        self._turn += 1
        slot = self._root.require_group(_SLOTS[self._turn % 2])
        for name, array in arrays.items():
            _write(slot, name, array)
        checks = {name: digest(array) for name, array in arrays.items()}
        slot.attrs.put({"turn": self._turn, "checks": checks})

    def _intact(self) -> list[tuple[int, Arrays]]:
        found = [_read_slot(self._root, name) for name in _SLOTS]
        return [slot for slot in found if slot is not None]


def _read_slot(root: Any, name: str) -> tuple[int, Arrays] | None:
    try:
        slot = root[name]
        turn, checks = int(slot.attrs["turn"]), dict(slot.attrs["checks"])
        arrays = {key: np.asarray(slot[key][...]) for key in checks}
    except _DAMAGE:
        return None
    intact = all(digest(arrays[key]) == check for key, check in checks.items())
    return (turn, arrays) if intact else None


class SavedBasis:
    """A Krylov basis in a group `krylov/ID`, of which every step is one chunk row.

    The basis is the checkpoint: step j holds its blocks of the projected matrix and the block of
    vectors that it leads to. The attributes, written last, hold a checksum of every step.

    Args:
      location: path or URL of a store, or of any folder.
      fingerprint: a text of what spans the basis; another one has another group.
      shape: number of rows n and the width of the first block.
    """

    def __init__(self, location: Location, fingerprint: str, shape: tuple[int, int]) -> None:
        self._group, self._shape = _group(location, f"krylov/{fingerprint[:32]}"), shape
        if "vectors" not in self._group or "projected" not in self._group:
            self._create()
        self._checks = list(self._group.attrs.get("checks", []))

    def _create(self) -> None:
        (n, width), group = self._shape, self._group
        for name, rows in [("vectors", (width, n)), ("projected", (2 * width, width))]:
            group.create_array(
                *(name,),
                shape=(0, *rows),
                chunks=(1, *rows),
                dtype="f8",
                fill_value=float("nan"),
                compressors=None,
                overwrite=True,
            )

    def read(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Returns the steps (A, B, Q) up to the first that is missing or damaged.

        A [w, w] and B [v, w] are blocks of the projected matrix, Q [n, v] is the next block of
        vectors.
        """
        steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for index in range(len(self._checks)):
            step = self._read_step(index)
            if step is None:
                break
            steps.append(step)
        del self._checks[len(steps) :]
        return steps

    def write(self, a: np.ndarray, b: np.ndarray, q: np.ndarray) -> None:
        """Writes the next step."""
        index = len(self._checks)
        n, width = self._shape
        vectors, projected = np.full((width, n), np.nan), np.full((2 * width, width), np.nan)
        vectors[: q.shape[1]] = q.T
        projected[: len(a), : len(a)] = a
        projected[width : width + len(b), : len(a)] = b
        for name, rows in [("vectors", vectors), ("projected", projected)]:
            array = self._group[name]
            if array.shape[0] <= index:
                array.resize((index + 1, *array.shape[1:]))
            array[index] = rows
        self._checks.append([*b.shape, digest(a, b, q)])
        self._group.attrs.put({"checks": self._checks})

    def _read_step(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        out, into, check = self._checks[index]
        width = self._shape[1]
        try:
            vectors = np.asarray(self._group["vectors"][index])
            projected = np.asarray(self._group["projected"][index])
        except _DAMAGE:
            return None
        q, a = np.asfortranarray(vectors[:out].T), projected[:into, :into].copy()
        b = projected[width : width + out, :into].copy()
        return (a, b, q) if digest(a, b, q) == check else None
