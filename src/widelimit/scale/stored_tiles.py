"""The tiles of one kernel on disk: one chunk a tile, with a checksum."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from widelimit.scale.optional import import_optional
from widelimit.scale.tile_grid import Place, TileGrid

_CHECKSUM_BYTES = 4


def codecs() -> dict[str, object]:
    """Returns the arguments of zarr for chunks that are raw bytes and a checksum.

    Without compression a chunk can be mapped into memory. crc32c is in its last four bytes: zarr
    reads a flipped bit as an error.
    """
    return {"filters": None, "compressors": [import_optional("zarr.codecs").Crc32cCodec()]}


class StoredTiles:
    """The tiles of one kernel.

    zarr writes a chunk under another name and renames it: a chunk that exists is whole, unless the
    disk lost it later.

    Attributes:
      array: the array of zarr.
      grid: the tiles.
      folder: the chunks as files, None for stores that are not a local folder.
    """

    def __init__(self, array: Any, grid: TileGrid, folder: Path | None) -> None:
        """Keeps an open array.

        Args:
          array: the array of zarr.
          grid: its tiles.
          folder: the folder of its chunks, if there is one.
        """
        self.array, self.grid, self.folder = array, grid, folder
        self._verified: set[Place] = set()

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk."""
        return self.grid.size**2 * self.array.dtype.itemsize + _CHECKSUM_BYTES

    def complete(self) -> tuple[set[Place], set[Place]]:
        """Returns the tiles whose chunk exists, and those whose chunk has a wrong size.

        Nothing is read but names and sizes. Of stores that are not a local folder, names alone.
        """
        found = {place: size for place, size in self._sizes() if self.grid.contains(place)}
        wrong = {place for place, size in found.items() if size not in (self.chunk_bytes, None)}
        return set(found) - wrong, wrong

    def exists(self, place: Place) -> bool:
        """Returns whether the chunk of a tile exists and has the right size."""
        if self.folder is None:
            return bool(asyncio.run(self.array.store.exists(self._key(place))))
        try:
            return self._file(place).stat().st_size == self.chunk_bytes
        except OSError:
            return False

    def write(self, place: Place, tile: np.ndarray) -> None:
        """Writes a tile [rows, columns].

        Raises:
          OSError: the disk is full.
        """
        self._verified.discard(place)
        self.array[self._index(place)] = tile

    def read(self, place: Place) -> np.ndarray:
        """Returns a tile [rows, columns], its checksum verified.

        Raises:
          ValueError: a chunk that does not exist, or is damaged.
        """
        if not self.exists(place):
            raise ValueError(
                f"expected a tile with {self.grid.words(place)} in {self._name}, got none of "
                f"{self.chunk_bytes} bytes: store.fill() computes what is missing"
            )
        try:
            tile = np.asarray(self.array[self._index(place)])
        except ValueError as error:
            raise ValueError(
                f"expected an intact tile with {self.grid.words(place)} in {self._name}, got a "
                f"damaged one: store.repair() computes it again ({error})"
            ) from error
        self._verified.add(place)
        return tile

    def mapped(self, place: Place) -> np.ndarray:
        """Returns a tile [rows, columns] without a copy where it can; verified once.

        Raises:
          ValueError: as `read`.
        """
        if self.folder is None or place not in self._verified:
            return self.read(place)
        whole = np.memmap(self._file(place), self.array.dtype, "r", shape=self.array.chunks)
        rows, columns = self.grid.shape(place)
        return whole[:rows, :columns]

    def prefetch(self, place: Place) -> None:
        """Asks the system to read a tile from a local disk, without waiting for it."""
        if self.folder is None or not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(OSError):
            descriptor = os.open(self._file(place), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            os.close(descriptor)

    def is_intact(self, place: Place) -> bool:
        """Returns whether the checksum of a tile holds."""
        try:
            self.read(place)
        except ValueError:
            return False
        return True

    def remove(self, place: Place) -> None:
        """Removes the chunk of a tile, if there is one."""
        self._verified.discard(place)
        if self.folder is None:
            asyncio.run(self.array.store.delete(self._key(place)))
        else:
            self._file(place).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Removes what writers that were killed left behind; returns how many files.

        Only files with the names of zarr's unfinished chunks, older than an hour: other processes
        may be writing.
        """
        if self.folder is None:
            return 0
        left = [p for p in self.folder.rglob("*.partial") if _age(p) > 3600.0]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    @property
    def _name(self) -> str:
        return str(self.array.store_path)

    def _sizes(self) -> Iterator[tuple[Place, int | None]]:
        if self.folder is None:
            yield from ((place, None) for place in asyncio.run(self._listed()))
            return
        if not self.folder.is_dir():
            return
        for row in os.scandir(self.folder):
            if row.is_dir() and row.name.isdecimal():
                for chunk in os.scandir(row.path):
                    if chunk.name.isdecimal():
                        yield (int(row.name), int(chunk.name)), chunk.stat().st_size

    async def _listed(self) -> list[Place]:
        prefix = f"{self.array.path}/c/"
        names = [key async for key in self.array.store.list_prefix(prefix)]
        parts = [name.removeprefix(prefix).split("/") for name in names]
        return [(int(p[0]), int(p[1])) for p in parts if len(p) == 2 and all(map(str.isdecimal, p))]

    def _key(self, place: Place) -> str:
        return f"{self.array.path}/c/{place[0]}/{place[1]}"

    def _file(self, place: Place) -> Path:
        assert self.folder is not None
        return self.folder / str(place[0]) / str(place[1])

    def _index(self, place: Place) -> tuple[slice, slice]:
        return self.grid.span(0, place[0]), self.grid.span(1, place[1])


def _age(path: Path) -> float:
    """Returns the seconds since a file was written, by the clock of its file system."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
