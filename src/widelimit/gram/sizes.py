"""The size of tiles, from a budget of memory and the memory of a tile."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from widelimit._text import shown
from widelimit.gram.fields import relates_equal
from widelimit.gram.tiler import Tiler
from widelimit.typing import Bytes

DEFAULT_MEMORY = "4GiB"
# A kernel of x with itself that is too large for one tile is cut into at least _TILES per side, if
# each tile takes at least this fraction of a large one: with k per side, (k + 1) / 2k of the work
# remains.
_TILES_PER_SIDE = 8
_SMALL_SHARE = 8
_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{p}{s}": 1000**k for k, p in enumerate("kmgt", 1) for s in ("", "b")}
_UNITS |= {f"{p}i{s}": 1024**k for k, p in enumerate("kmgt", 1) for s in ("", "b")}


def parse_memory(memory: Bytes) -> int:
    """Returns a number of bytes.

    Args:
      memory: a number of bytes, or text like "4GiB", "500 MB" (decimal) or "512MiB" (binary).

    Raises:
      TypeError: neither a number nor text.
      ValueError: text that is not a size, or a number that is not positive.
    """
    if isinstance(memory, bool) or not isinstance(memory, str | int | float):
        raise TypeError(
            f"expected memory as a number of bytes or text like '4GiB', got {shown(memory)}"
        )
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", memory.lower())
        if match is None or match[2] not in _UNITS or match[1].count(".") > 1 or match[1] == ".":
            raise ValueError(f"expected memory like '4GiB', '500MB' or '8e9', got {shown(memory)}")
        memory = float(match[1]) * _UNITS[match[2]]
    if not 0 < memory < math.inf:
        raise ValueError(f"expected a positive amount of memory, got {shown(memory)}")
    return int(memory)


def human_bytes(count: float | int) -> str:
    """Returns a number of bytes as text, such as 3.2 GiB."""
    power = min(int(math.log(max(count, 1), 1024)), 4)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{count / 1024**power:.{1 if power else 0}f} {unit}"


class Grid(NamedTuple):
    """The pieces into which both sides are cut.

    Attributes:
      counts: number of samples of x1 and x2.
      sizes: number of samples of a tile on both sides.
      spare: number of prepared samples that may be cached besides those of one tile.
    """

    counts: tuple[int, int]
    sizes: tuple[int, int]
    spare: int

    def spans(self, side: int) -> list[tuple[int, int]]:
        """Returns the first sample of every piece of a side, and the one after its last."""
        count, size = self.counts[side], self.sizes[side]
        return [(start, min(start + size, count)) for start in range(0, count, size)] or [(0, 0)]

    @property
    def single(self) -> bool:
        """Whether it has one tile only."""
        (n1, n2), (rows, columns) = self.counts, self.sizes
        return n1 <= rows and n2 <= columns

    @property
    def filled(self) -> tuple[int, int]:
        """Numbers of samples with the padding of the last pieces."""
        (rows, columns), (n1, n2) = self.sizes, (len(self.spans(0)), len(self.spans(1)))
        return rows * n1, columns * n2

    @property
    def whole(self) -> bool:
        """Whether it has one tile only, without padding."""
        (n1, n2), (rows, columns) = self.counts, self.sizes
        return n1 in (0, rows) and n2 in (0, columns)


def choose_grid(tiler: Tiler, memory: int, devices: int) -> Grid:
    """Returns tiles that fit into a budget of memory.

    All tiles have the same shape, so that they share one compilation; the last piece of a side is
    padded, by less than one sample per tile.

    Args:
      tiler: computes the tiles.
      memory: budget in bytes of tiles and prepared samples.
      devices: number of devices; rows of a tile are split over them.

    Raises:
      ValueError: not even one entry fits (the message gives a sufficient budget), or results that
        cannot be assembled from tiles.
    """
    each, counts = tiler.prepared_bytes, tiler.counts

    def cost(rows: int, columns: int) -> int:
        return tiler.tile_bytes(rows, columns) + each * (rows + columns)

    least = cost(devices, 1)
    if least > memory:
        raise ValueError(
            f"expected memory of at least {least} bytes ({human_bytes(least)}), for "
            f"{'one entry' if devices == 1 else f'one entry on each of {devices} devices'} of "
            f"this kernel, got {memory} ({human_bytes(memory)})"
        )
    enough = min(memory, max(tiler.target_bytes, least))
    n1 = _up(max(counts[0], 1), devices)
    n2 = n1 if tiler.same else max(counts[1], 1)
    if cost(n1, n2) <= enough:
        return _fitting(tiler, Grid(counts, (n1, n2), 0))
    sizes = _largest(cost, enough, counts, devices, tiler.same)
    if tiler.same and sizes[0] < counts[0] and not tiler.halves:
        # Only half of a tile on the diagonal is needed: prefer more tiles, but not small ones.
        small = _largest(cost, max(enough // _SMALL_SHARE, least), counts, devices, True)[0]
        side = min(sizes[0], max(small, -(-counts[0] // _TILES_PER_SIDE)))
        sizes = side, side
    spare = (memory - cost(*sizes)) // max(each, 1)
    return _fitting(tiler, _balanced(counts, sizes, devices, spare, tiler.same))


def fixed_grid(tiler: Tiler, size: int, devices: int) -> Grid:
    """Returns tiles of `size` columns, and of `size` rows per device.

    Raises:
      ValueError: results that cannot be assembled from tiles.
    """
    counts = tiler.counts
    sizes = min(size * devices, max(counts[0], 1)), min(size, max(counts[1], 1))
    return _fitting(tiler, _balanced(counts, sizes, devices, sum(counts), tiler.same))


def _fitting(tiler: Tiler, grid: Grid) -> Grid:
    """Returns the grid, or one of square tiles if some results hold equal samples only.

    Raises:
      ValueError: results that cannot be assembled from tiles, or results of equal samples for
        different numbers of samples.
    """
    layout = None if grid.whole else tiler.layout()
    if not relates_equal(layout):
        return grid
    if grid.counts[0] != grid.counts[1]:
        raise ValueError(
            "expected as many samples in x1 as in x2, for kernels of equal samples only, got "
            f"{grid.counts[0]} and {grid.counts[1]}"
        )
    return grid._replace(sizes=(grid.sizes[0], grid.sizes[0]))


def _largest(
    cost: Callable[[int, int], int],
    budget: int,
    counts: tuple[int, int],
    devices: int,
    square: bool,
) -> tuple[int, int]:
    """Returns the largest square tile within a budget, or a longer one where a side is short."""
    n1 = _up(max(counts[0], 1), devices)
    n2 = n1 if square else max(counts[1], 1)
    side = _bisect(lambda t: cost(min(t, n1), min(t, n2)) <= budget, max(n1, n2))
    rows, columns = min(side, n1), min(side, n2)
    if not square and rows == n1:
        columns = _bisect(lambda t: cost(rows, t) <= budget, n2)
    elif not square and columns == n2:
        rows = _bisect(lambda t: cost(t, columns) <= budget, n1)
    rows = max(rows - rows % devices, devices) if rows < n1 else rows
    return (rows, rows) if square else (rows, columns)


def _bisect(fits: Callable[[int], bool], most: int) -> int:
    """Returns the largest number from 1 to `most` that fits, or 1; smaller ones fit too."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _up(count: int, step: int) -> int:
    """Returns the next multiple of a step."""
    return -(-count // step) * step


def _balanced(
    counts: tuple[int, int], sizes: tuple[int, int], devices: int, spare: int, square: bool
) -> Grid:
    """Returns as many tiles of equal size, as small as possible, rows a multiple of the devices."""
    pieces = [max(1, -(-count // size)) for count, size in zip(counts, sizes, strict=True)]
    rows, columns = (max(1, -(-n // k)) for n, k in zip(counts, pieces, strict=True))
    rows = _up(rows, devices)
    return Grid(counts, (rows, rows if square else columns), spare)
