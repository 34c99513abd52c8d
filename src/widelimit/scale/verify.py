"""Whether every tile of a store exists and is intact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from widelimit.scale.stored_tiles import StoredTiles
from widelimit.scale.tile_grid import Place, TileGrid


class VerifyReport(NamedTuple):
    """What `Store.verify` found.

    Attributes:
      intact: number of tiles whose checksum holds, in all kernels.
      missing: tiles without a chunk.
      damaged: tiles with a chunk that is truncated, or whose checksum does not hold.
    """

    intact: int
    missing: tuple[Place, ...]
    damaged: tuple[Place, ...]

    def __bool__(self) -> bool:
        """Whether the store is complete and intact."""
        return not (self.missing or self.damaged)


def verify(
    chunks: Mapping[str, StoredTiles], grid: TileGrid, advance: Callable[[int], object]
) -> VerifyReport:
    """Returns which tiles are intact; all of them are read.

    Args:
      chunks: the tiles of every kernel.
      grid: which tiles there should be.
      advance: called with the number of pairs of samples that were verified.
    """
    states: dict[Place, str] = {}
    listed = [part.complete() for part in chunks.values()]
    for place in grid.all():
        if any(place in wrong for _, wrong in listed):
            states[place] = "damaged"
        elif not all(place in complete for complete, _ in listed):
            states[place] = "missing"
        else:
            intact = all(part.is_intact(place) for part in chunks.values())
            states[place] = "intact" if intact else "damaged"
        rows, columns = grid.shape(place)
        advance(rows * columns)
    missing, damaged = (
        tuple(p for p, state in states.items() if state == name) for name in ("missing", "damaged")
    )
    return VerifyReport(len(states) - len(missing) - len(damaged), missing, damaged)
