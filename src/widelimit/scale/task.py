"""One tile as a task: it depends on the store and a place alone, and writes one chunk a kernel."""

from __future__ import annotations

import errno
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from widelimit.scale.maker import Known, TileMaker
from widelimit.scale.schema import Content, is_local, open_group
from widelimit.scale.stored_tiles import StoredTiles
from widelimit.scale.tile_grid import Place

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Outcome(NamedTuple):
    """What became of a tile.

    Attributes:
      place: which tile.
      state: "done", "skipped" (another driver had written it) or "refused" (not finite).
    """

    place: Place
    state: str


def tiles_of(location: str, content: Content, mode: str) -> dict[str, StoredTiles]:
    """Returns the tiles of every kernel of a store, by name.

    Args:
      location: path or URL of the store.
      content: what it holds.
      mode: "r" to read, "r+" to write.
    """
    group = open_group(location, mode)
    folder = Path(location) if is_local(location) else None
    return {
        name: StoredTiles(group[name], content.grid, folder and folder / name / "c")
        for name in content.get
    }


def compute_tile(location: str, fingerprint: str, place: Place, known: Known) -> Outcome:
    """Computes a tile, unless it exists, and writes it.

    Kernels that are not finite are not written.

    Args:
      location: path or URL of the store.
      fingerprint: of what it holds.
      place: which tile.
      known: layers and functions of users in its network.

    Raises:
      ValueError: another store at the location.
      OSError: the disk is full.
    """
    maker = TileMaker.of(location, fingerprint, known)
    chunks = _tiles_of(location, maker.content)
    if all(chunk.exists(place) for chunk in chunks.values()):
        return Outcome(place, "skipped")
    tiles = maker.tile(place)
    if not all(np.isfinite(tile).all() for tile in tiles.values()):
        return Outcome(place, "refused")
    for name, tile in tiles.items():
        _write(chunks[name], place, tile)
    return Outcome(place, "done")


@functools.lru_cache(maxsize=4)
def _tiles_of(location: str, content: Content) -> dict[str, StoredTiles]:
    """Returns the tiles of a store to write to, which a process opens once."""
    return tiles_of(location, content, "r+")


def _write(chunks: StoredTiles, place: Place, tile: np.ndarray) -> None:
    try:
        chunks.write(place, tile)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno,
            f"no space for a tile of {chunks.chunk_bytes} bytes in {chunks.folder}: what is "
            "written is kept, and store.fill() goes on from there",
        ) from None
