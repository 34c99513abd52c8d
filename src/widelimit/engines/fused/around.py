"""Circular space: rectangles continued on all sides by what lies opposite."""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.instructions import (
    COUNT,
    FIRST_ROW,
    HEIGHT,
    REACH_X,
    REACH_Y,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    WIDTH,
)
from widelimit.engines.fused.places import u
from widelimit.engines.fused.stencils import copy


@loop
def close_around(geometry: Any, b: Any, level: Any, at: Any, buf: Any) -> None:
    """Writes what lies opposite into the gaps around the rectangles of a slot."""
    levels, blocks, block_levels, rect_levels = geometry
    row, width = block_levels[b, level, ROW], block_levels[b, level, WIDTH]
    reach_y, reach_x = levels[level, REACH_Y], levels[level, REACH_X]
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        start, height = at + rect_levels[r, level, FIRST_ROW] * row, rect_levels[r, level, HEIGHT]
        for y in range(height):
            line = start + y * row
            copy(buf, u(line + width), u(line), u(reach_x))
            copy(buf, u(line - reach_x), u(line + width - reach_x), u(reach_x))
        whole = u(width + 2 * reach_x)
        for y in range(reach_y):
            above, below = start - (y + 1) * row - reach_x, start + (height + y) * row - reach_x
            copy(buf, u(above), u(start + (height - 1 - y) * row - reach_x), whole)
            copy(buf, u(below), u(start + y * row - reach_x), whole)


@loop
def open_again(geometry: Any, b: Any, level: Any, at: Any, mask: Any, buf: Any) -> None:
    """Writes zeros into the gaps around the rectangles of a slot."""
    margin = geometry[0][level, REACH_Y] * geometry[2][b, level, ROW] + geometry[0][level, REACH_X]
    first, other = u(at - margin), u(mask - margin)
    for i in range(u(geometry[2][b, level, COUNT] + 2 * margin)):
        buf[first + i] *= buf[other + i]
