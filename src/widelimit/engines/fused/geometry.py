"""How the covariances of a stage lie in memory: rectangles of positions, in blocks.

At an offset d the first positions p with p + d inside the image form a rectangle. A block holds the
rectangles of one horizontal offset and several vertical ones, below each other in rows of equal
length, with columns and rows of zeros between them as wide as the windows reach. A block goes
through a whole stage; strided layers map it to smaller rectangles of the same block.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from widelimit.engines.fused import instructions as m

_TARGET = 2048  # positions of a block: a few arrays of it stay in cache
SLACK = 2 * m.VECTOR  # loops read and write up to a vector beyond a slice


@dataclasses.dataclass(frozen=True)
class Level:
    """A grid of positions within a stage.

    Attributes:
      size: rows and columns of the grid.
      stride: steps of the grid in units of that at the start of the stage.
      reach: how far windows read beyond a rectangle, per axis.
      circular: whether space closes on itself. Then offsets are those modulo the size, from 0 on,
        and every one has all positions.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    reach: tuple[int, int]
    circular: bool = False

    @property
    def pitch(self) -> int:
        """Length of a row of recorded numbers, with zeros behind it: that of the widest slices."""
        return self.size[1] + self.gap[1]

    @property
    def gap(self) -> tuple[int, int]:
        """Rows and columns between rectangles: of zeros, or of what closes space on either side."""
        sides = 1 + self.circular
        return sides * self.reach[0], sides * self.reach[1]

    def extent(self, offset: int, axis: int) -> int:
        """Returns how many positions have a partner at an offset along an axis."""
        return self.line(axis).extent(offset)

    def line(self, axis: int) -> Line:
        """Returns one of its axes."""
        return Line(self.size[axis], self.circular)

    def extents(self, offsets: tuple[int, ...], axis: int) -> np.ndarray:
        """Returns the same for several offsets."""
        return np.array([self.extent(offset, axis) for offset in offsets], np.int64)

    def first(self, offset: int) -> int:
        """Returns the first of them."""
        return self.line(0).first(offset)

    @property
    def plane(self) -> int:
        """Room of a number per position."""
        return self.size[0] * self.pitch


class Geometry(NamedTuple):
    """The tables of `machine.run`, which `instructions` names.

    Attributes:
      tables: of levels, blocks, blocks at levels, rectangles at levels.
      rows: index of the vertical offset of every rectangle.
      masks: ones where positions lie, of every block at every level.
      length: room of a slot.
      front: zeros before position 0.
      back: zeros behind the last position.
    """

    tables: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    rows: np.ndarray
    masks: np.ndarray
    length: int
    front: int
    back: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.tables[1])


Offsets2 = tuple[tuple[int, ...], tuple[int, ...]]


def make_geometry(levels: tuple[Level, ...], offsets: Offsets2) -> Geometry:
    """Returns how the covariances at `offsets` (of the first level) lie in memory.

    Args:
      levels: the grids of the stage.
      offsets: vertical and horizontal offsets; their product is the set.
    """
    groups = list(_groups(levels[0], offsets))
    n_rects = sum(len(group.dys) for group in groups)
    blocks = np.zeros((len(groups), 4), np.int64)
    block_levels = np.zeros((len(groups), len(levels), 6), np.int64)
    rect_levels = np.zeros((n_rects, len(levels), 4), np.int64)
    rows = np.zeros(n_rects, np.int64)
    place = {dy: i for i, dy in enumerate(offsets[0])}
    masks: list[np.ndarray] = []
    start = filled = 0
    for b, group in enumerate(groups):
        end = start + len(group.dys)
        column = offsets[1].index(group.dx)
        blocks[b] = start, end, column, group.dx == 0 and group.dys == (0,)
        rows[start:end] = [place[dy] for dy in group.dys]
        for i, level in enumerate(levels):
            rects, info = _lay_out(level, group)
            rect_levels[start:end, i], block_levels[b, i] = rects, (*info, filled)
            masks.append(_mask(rects, info))
            filled += len(masks[-1])
        start = end
    table = np.array(
        [(*level.size, level.pitch, *level.reach, level.circular) for level in levels],
        np.int64,
    )
    front = int(max(_margin(level) for level in levels))
    back = front + SLACK
    # Sums for outputs over the padding end behind the slice.
    length = 2 * (front + back) + int(block_levels[:, :, m.COUNT].max()) + SLACK
    return Geometry(
        (table, blocks, block_levels, rect_levels),
        rows,
        np.concatenate(masks),
        -(-length // 16) * 16,
        front,
        back,
    )


class _Group(NamedTuple):
    dx: int
    dys: tuple[int, ...]


def _groups(level: Level, offsets: Offsets2) -> list[_Group]:
    """Returns the offsets of each block. Offset 0 stands alone, first."""
    height = level.size[0]
    groups: list[_Group] = []
    for dx in sorted(offsets[1], key=lambda d: (d != 0, d)):
        dys = sorted(offsets[0], key=lambda d: (d % height, d))  # large beside small rectangles
        if dx == 0 and 0 in dys:
            dys.remove(0)
            groups.insert(0, _Group(0, (0,)))
        pitch = level.extent(dx, 1) + level.gap[1]
        group: list[int] = []
        filled = 0
        for dy in dys:
            group.append(dy)
            filled += (level.extent(dy, 0) + level.gap[0]) * pitch
            if filled >= _TARGET:
                groups.append(_Group(dx, tuple(group)))
                group, filled = [], 0
        if group:
            groups.append(_Group(dx, tuple(group)))
    return groups


def _lay_out(level: Level, group: _Group) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns the rectangles of a block at a level, and what they share."""
    dx = group.dx // level.stride[1]
    dys = [dy // level.stride[0] for dy in group.dys]
    heights = np.array([level.extent(dy, 0) for dy in dys], np.int64)
    width = level.extent(dx, 1)
    firsts = np.concatenate([[0], np.cumsum(heights + level.gap[0])[:-1]])
    pitch = width + level.gap[1]
    rects = np.stack([firsts, heights, [level.first(dy) for dy in dys], dys], axis=1)
    count = int(firsts[-1] + heights[-1]) * pitch
    return rects, (width, pitch, count, level.first(dx), dx)


def _mask(rects: np.ndarray, info: tuple[int, ...]) -> np.ndarray:
    """Returns ones at the positions of rectangles, zeros in the gaps between them."""
    width, pitch, count = info[m.WIDTH], info[m.ROW], info[m.COUNT]
    lines = np.zeros(-(-count // max(pitch, 1)), np.int8)
    for first, height in rects[:, [m.FIRST_ROW, m.HEIGHT]]:
        lines[first : first + height] = 1
    return (lines[:, None] * (np.arange(pitch) < width)).astype(np.int8).ravel()[:count]


def _margin(level: Level) -> int:
    widest = level.size[1] + level.gap[1]
    return (level.reach[0] + 1) * widest + level.reach[1] + SLACK


def store_places(level: Level, offsets: Offsets2) -> tuple[np.ndarray, int]:
    """Returns the place of every rectangle in the store of pooled covariances, and its size.

    Args:
      level: the grid of the pooled positions.
      offsets: vertical and horizontal offsets.

    Returns:
      places [columns, rows]: column by column, so that a range of columns is contiguous.
      size: of the store of one pair.
    """
    heights, widths = level.extents(offsets[0], 0), level.extents(offsets[1], 1)
    areas = np.outer(widths, heights)
    ends = np.cumsum(areas).reshape(areas.shape)
    return ends - areas, int(ends[-1, -1])


class Line(NamedTuple):
    """One axis of a grid.

    Attributes:
      size: positions.
      circular: whether it closes on itself.
    """

    size: int
    circular: bool

    def extent(self, offset: int) -> int:
        """Returns how many positions have a partner at an offset."""
        return max(0, self.size - (0 if self.circular else abs(offset)))

    def first(self, offset: int) -> int:
        """Returns the first of them."""
        return 0 if self.circular else max(-offset, 0)


class PoolAxis(NamedTuple):
    """A pool along one axis.

    Attributes:
      window: size of the window.
      stride: steps between outputs.
      pad: padding before.
    """

    window: int
    stride: int
    pad: int


def pool_items(
    pool: PoolAxis, offsets: tuple[int, ...], targets: tuple[int, ...], ends: tuple[Line, Line]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which outputs read each offset of one axis: (starts, items).

    An output at offset d' reads, through taps a and b, the offset s d' + b - a. In circular space
    that is so modulo the size, and windows that leave the image on one side come back on the other.

    Args:
      pool: the window.
      offsets: offsets at the input.
      targets: offsets of the output.
      ends: the axis at the input and at the output.
    """
    starts, items = [0], []
    inner, outer = ends
    turns = [-inner.size, 0, inner.size] if inner.circular else [0]
    for offset in offsets:
        for (i, target), turn in itertools.product(enumerate(targets), turns):
            difference = offset - pool.stride * target + turn
            first, last = max(0, -difference), min(pool.window, pool.window - difference)
            if last > first:
                out = outer.first(target), outer.extent(target)
                items += [(i, first + back, last - first, *out) for back in turns]
        starts.append(len(items))
    return np.array(starts, np.int64), np.array(items, np.int64).reshape(-1, 5)


def pool_runs(
    pool: PoolAxis, offsets: tuple[int, ...], inner: Line, items: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of outputs that read each offset of one axis: (starts, runs).

    A run is a stretch of outputs that read equally many inputs; padding ends one.

    Args:
      pool: the window.
      offsets: offsets at the input.
      inner: the axis at the input.
      items: result of `pool_items`.
    """
    starts = [0]
    runs: list[list[int]] = []
    for i, offset in enumerate(offsets):
        first_p, width = inner.first(offset), inner.extent(offset)
        for item in items[1][items[0][i] : items[0][i + 1]]:
            previous = None
            for out in range(item[m.OUT_SIZE]):
                start = pool.stride * (item[m.OUT_FIRST] + out) + item[m.FIRST_TAP]
                start -= pool.pad + first_p
                low, high = max(start, 0), min(start + item[m.TAP_COUNT], width)
                taps = high - low
                if taps <= 0:
                    previous = None
                elif previous == (taps, low - pool.stride):
                    runs[-1][m.RUN_COUNT] += 1
                    previous = taps, low
                else:
                    runs.append([item[m.TARGET_INDEX], low, out, taps, 1, item[m.OUT_SIZE]])
                    previous = taps, low
        starts.append(len(runs))
    return np.array(starts, np.int64), np.array(runs, np.int64).reshape(-1, 6)


def stored_pairs(
    level: Level, offsets: Offsets2, partners: tuple[np.ndarray, ...], *, turned: bool
) -> np.ndarray:
    """Returns where a store holds the pairs of a layout [d, p]; its size where there is no pair.

    Args:
      level: the grid of the positions.
      offsets: offsets of the store.
      partners: per axis where p + d lies, [d, p]; -1 outside of the image.
      turned: whether the first position is that of the second image.
    """
    places, room = store_places(level, offsets)
    partners = partners if len(partners) == 2 else (np.zeros((1, 1), np.int64), *partners)
    known, index, local = [], [], []
    for axis, partner in enumerate(partners):
        line, inside = level.line(axis), partner >= 0
        positions = np.broadcast_to(np.arange(partner.shape[1]), partner.shape)
        d = np.where(inside, positions - partner if turned else partner - positions, 0)
        d = d % line.size if line.circular else d
        first = np.array([line.first(value) for value in offsets[axis]], np.int64)
        at = np.searchsorted(offsets[axis], d)
        if not set(d[inside].tolist()) <= set(offsets[axis]):
            raise ValueError(f"expected offsets among {offsets[axis]} on axis {axis}, got others")
        known.append(inside)
        index.append(at)
        local.append((partner if turned else positions) - first[at])
    rows, columns = (slice(None), None, slice(None), None), (None, slice(None), None, slice(None))
    widths = level.extents(offsets[1], 1)[index[1]][columns]
    found = places[index[1][columns], index[0][rows]] + local[0][rows] * widths + local[1][columns]
    found = np.where(known[0][rows] & known[1][columns], found, room)
    return found.reshape(found.shape[0] * found.shape[1], -1)
