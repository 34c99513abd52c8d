"""What a store holds, and how it is told from another: attributes, inputs and a fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from widelimit._text import shown
from widelimit.scale.optional import import_optional
from widelimit.scale.stored_tiles import codecs
from widelimit.scale.tile_grid import TileGrid

SCHEMA = 1
_PIECE_BYTES = 2**24
_INPUTS = ("x1", "x2")


class Content(NamedTuple):
    """What decides every bit of a store.

    Attributes:
      network: its description, see `widelimit.to_json`.
      get: names of the kernels.
      counts: numbers of samples (n1, n2).
      symmetric: whether x2 is x1.
      inputs: SHA-256 of x1, and of x2 unless that is x1.
      tile: rows and columns of a tile.
      dtype: of the kernels.
      engine: name of the engine that computes kernels.
    """

    network: str
    get: tuple[str, ...]
    counts: tuple[int, int]
    symmetric: bool
    inputs: tuple[str, ...]
    tile: int
    dtype: str
    engine: str

    @property
    def grid(self) -> TileGrid:
        """The tiles."""
        return TileGrid(self.counts, self.tile, self.symmetric)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps([SCHEMA, *self]).encode()).hexdigest()

    def check_same(self, other: Content, location: str) -> None:
        """Raises ValueError if the store at a location, which holds this, is asked for another."""
        names = [k for k in self._fields if getattr(self, k) != getattr(other, k)]
        if names:
            differences = "; ".join(
                f"{k} {shown(getattr(self, k))} here, {shown(getattr(other, k))} asked for"
                for k in names
            )
            raise ValueError(
                f"{location} holds a different kernel: {differences}. Choose another name, or "
                "remove the store"
            )


def is_local(location: str) -> bool:
    """Returns whether a location is a path, and not a URL."""
    return "://" not in location


def open_group(location: str, mode: str) -> Any:
    """Returns the group of zarr at a path or a URL of fsspec."""
    return import_optional("zarr").open_group(location, mode=mode, zarr_format=3)


def hash_array(x: np.ndarray) -> str:
    """Returns the SHA-256 of the dtype, the shape and the values of an array."""
    digest = hashlib.sha256(f"{x.dtype.str} {x.shape}".encode())
    rows = np.atleast_1d(x)
    for span in pieces_of(rows):
        digest.update(np.ascontiguousarray(rows[span]).tobytes())
    return digest.hexdigest()


def pieces_of(x: np.ndarray) -> Iterator[slice]:
    """Yields spans of samples that take a few megabytes."""
    size = max(1, _PIECE_BYTES // max(1, x[:1].nbytes))
    yield from (slice(start, start + size) for start in range(0, len(x), size))


def create(location: str, content: Content, arrays: Sequence[np.ndarray]) -> None:
    """Writes the inputs, empty arrays for kernels, and last the attributes.

    A store without attributes is one whose creation was cut short: it is created again.

    Args:
      location: path or URL.
      content: what it holds.
      arrays: x1, and x2 unless that is x1.
    """
    group = open_group(location, "a")
    for name, x in zip(_INPUTS, arrays, strict=False):
        _write_inputs(group, name, x)
    tile = content.tile
    for name in content.get:
        group.create_array(
            name,
            shape=content.counts,
            chunks=(tile, tile),
            dtype=content.dtype,
            fill_value=float("nan"),
            overwrite=True,
            **codecs(),
        )
    versions = {name: metadata.version(name) for name in ("widelimit", "jax", "numpy", "zarr")}
    record = {"schema": SCHEMA, "fingerprint": content.fingerprint, **content._asdict()}
    group.attrs.update({"versions": versions, **record})


def _write_inputs(group: Any, name: str, x: np.ndarray) -> None:
    spans = list(pieces_of(x))
    chunks = (max(1, min(len(x), spans[0].stop)), *[max(1, n) for n in x.shape[1:]])
    array = group.create_array(
        name, shape=x.shape, chunks=chunks, dtype=x.dtype, overwrite=True, **codecs()
    )
    for span in spans:
        array[span] = x[span]


def read_content(location: str) -> Content | None:
    """Returns what the store at a location holds, None where there is no complete one.

    Raises:
      ValueError: a store of a later schema, or attributes that were changed.
    """
    if is_local(location) and not Path(location).exists():
        return None
    try:
        attributes = dict(open_group(location, "r").attrs)
    except FileNotFoundError:
        return None
    if "fingerprint" not in attributes:
        return None
    if attributes.get("schema") != SCHEMA:
        raise ValueError(
            f"expected a store with schema {SCHEMA}, got {shown(attributes.get('schema'))} at "
            f"{location}: this version of widelimit does not read it"
        )
    fields = {name: _tuples(attributes.get(name)) for name in Content._fields}
    content = Content(**fields)
    if content.fingerprint != attributes["fingerprint"]:
        raise ValueError(
            f"expected attributes that belong to the fingerprint of {location}, got others: they "
            "were changed"
        )
    return content


def expect_content(location: str, fingerprint: str) -> Content:
    """Returns what the store at a location holds.

    Raises:
      ValueError: no store, or one with another fingerprint: it was replaced.
    """
    content = read_content(location)
    if content is None or content.fingerprint != fingerprint:
        other = "none" if content is None else f"one with {content.fingerprint[:12]}..."
        raise ValueError(
            f"expected the store with the fingerprint {fingerprint[:12]}... at {location}, got "
            f"{other}: it was moved, removed or replaced"
        )
    return content


def read_inputs(location: str, symmetric: bool) -> list[Any]:
    """Returns the arrays of zarr that hold x1, and x2 unless that is x1."""
    group = open_group(location, "r")
    return [group[name] for name in _INPUTS[: 1 if symmetric else 2]]


@contextlib.contextmanager
def creation_lock(location: str) -> Iterator[None]:
    """Holds a lock while a store on a local disk is created: two drivers may start at once."""
    if not is_local(location):
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    Path(location).mkdir(parents=True, exist_ok=True)
    with Path(location, "creation.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
