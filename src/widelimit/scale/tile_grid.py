"""Which tiles a kernel matrix is cut into."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

_BLOCK = 8

Place: TypeAlias = tuple[int, int]
"""Row and column of a tile."""


class TileGrid(NamedTuple):
    """The tiles of a kernel matrix [n1, n2]; of a symmetric one those of the upper triangle.

    Attributes:
      counts: (n1, n2).
      size: rows and columns of a tile; the last ones are smaller.
      symmetric: whether tiles below the diagonal are transposes of stored ones.
    """

    counts: tuple[int, int]
    size: int
    symmetric: bool

    @property
    def pieces(self) -> tuple[int, int]:
        """Numbers of tiles along both axes."""
        n1, n2 = self.counts
        return -(-n1 // self.size), -(-n2 // self.size)

    def __len__(self) -> int:
        rows, columns = self.pieces
        return rows * (rows + 1) // 2 if self.symmetric else rows * columns

    def all(self) -> Iterator[Place]:
        """Yields every tile, in square blocks: those of a block share few samples."""
        rows, columns = self.pieces
        for top, left in itertools.product(range(0, rows, _BLOCK), range(0, columns, _BLOCK)):
            for i in range(top, min(top + _BLOCK, rows)):
                first = max(left, i) if self.symmetric else left
                yield from ((i, j) for j in range(first, min(left + _BLOCK, columns)))

    def span(self, side: int, piece: int) -> slice:
        """Returns the samples of a piece of x1 (0) or x2 (1)."""
        start = piece * self.size
        return slice(start, min(start + self.size, self.counts[side]))

    def shape(self, place: Place) -> tuple[int, int]:
        """Returns the rows and columns of a tile that hold samples."""
        first, second = (self.span(side, place[side]) for side in (0, 1))
        return first.stop - first.start, second.stop - second.start

    def contains(self, place: Place) -> bool:
        """Returns whether a place is one of these tiles."""
        i, j = place
        rows, columns = self.pieces
        return 0 <= i < rows and 0 <= j < columns and (i <= j or not self.symmetric)

    def words(self, place: Place) -> str:
        """Returns a tile as people find it: "rows 0:2048 of x1, 4096:5000 of x2"."""
        first, second = (self.span(side, place[side]) for side in (0, 1))
        other = "x1" if self.symmetric else "x2"
        return f"rows {first.start}:{first.stop} of x1, {second.start}:{second.stop} of {other}"
