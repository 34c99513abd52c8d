"""Numbers of both ends of every pair of positions: inputs, and what nonlinearities have recorded.

Each end is an image. Its numbers are planes of positions; a rectangle of a block reads a stretch of
rows at either end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.instructions import (
    BACK,
    CHANNELS,
    CIRCULAR,
    CODE,
    COUNT,
    COUNTED,
    D_X,
    D_Y,
    FIRST_ROW,
    HEAD,
    HEIGHT,
    INPUT,
    LEVEL,
    MASK,
    MASKS,
    P_X,
    P_Y,
    PITCH,
    PLACE,
    PLANES,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    SIZE_X,
    SIZE_Y,
    ZERO_BLOCK,
)
from widelimit.engines.fused.places import region, u, whole
from widelimit.engines.fused.stencils import clear, correlate, pack_rows


@loop
def pack_ends(code: Any, geometry: Any, sizes: Any, b: Any, ends: Any, packed: Any) -> Any:
    """Returns where the numbers of both ends are, in rows as long as those of a block.

    So numbers of a rectangle are one stretch. At the horizontal offset 0 they are so already. Where
    space is circular the second image is turned by the horizontal offset, and follows itself below.
    """
    prep1, base1, prep2, base2, _ = ends
    levels, blocks, block_levels = geometry[0], geometry[1], geometry[2]
    circular = levels[0, CIRCULAR] == 1
    if blocks[b, ZERO_BLOCK] == 1 or (block_levels[b, 0, D_X] == 0 and not circular):
        return ends
    half, copies = len(packed) // 2, 1 + levels[0, CIRCULAR]
    for end in range(2):
        prep, base = (prep2, base2) if end else (prep1, base1)
        for i in range(code.shape[0]):
            index, place, planes = code[i, LEVEL], code[i, PLACE], code[i, PLANES]
            planes = sizes[CHANNELS] if code[i, CODE] == INPUT else planes
            size = levels[index, SIZE_Y] * levels[index, PITCH]
            counted = code[i, COUNTED]
            count = _count(prep, base + place, u(size)) if counted > 0 else counted
            for plane in range(planes):
                if HEAD <= plane < HEAD + counted - count or (counted and plane >= HEAD + counted):
                    continue
                at = place + plane * size
                _pack_plane(
                    geometry, b, index, end, packed, end * half + copies * at, prep, base + at
                )
    return packed, 0, packed, half, copies


@loop
def _count(prep: Any, at: Any, n: Any) -> Any:
    """Returns the largest of n numbers, as a whole number."""
    largest = prep[at]
    for i in range(n):
        largest = max(largest, prep[u(at) + i])
    return np.int64(largest)


@loop
def _pack_plane(
    geometry: Any, b: Any, level: Any, end: Any, packed: Any, at: Any, prep: Any, base: Any
) -> None:
    levels, block_levels = geometry[0], geometry[2]
    rows, pitch = u(levels[level, SIZE_Y]), u(levels[level, PITCH])
    row, d = block_levels[b, level, ROW], block_levels[b, level, D_X]
    if levels[level, CIRCULAR] == 0:
        start = base + block_levels[b, level, P_X] + end * d
        pack_rows(packed, u(at), u(row), prep, u(start), pitch, rows, u(row))
        return
    turn, width = end * d, levels[level, SIZE_X]
    for _ in range(1 + end):
        pack_rows(packed, u(at), u(row), prep, u(base + turn), pitch, rows, u(width - turn))
        pack_rows(packed, u(at + width - turn), u(row), prep, u(base), pitch, rows, u(turn))
        pack_rows(packed, u(at + width), u(row), prep, u(base + width), pitch, rows, u(row - width))
        at += levels[level, SIZE_Y] * row


@loop
def stretch(geometry: Any, b: Any, r: Any, level: Any, place: Any, ends: Any) -> Any:
    """Returns where a rectangle begins in a slot, its numbers at both ends, a plane, the size."""
    levels, _, block_levels, rect_levels = geometry
    row, y, copies = block_levels[b, level, ROW], rect_levels[r, level, P_Y], ends[4]
    one = ends[1] + copies * place + y * row
    two = ends[3] + copies * place + (y + rect_levels[r, level, D_Y]) * row
    plane = copies * levels[level, SIZE_Y] * levels[level, PITCH]
    start, n = rect_levels[r, level, FIRST_ROW] * row, rect_levels[r, level, HEIGHT] * row
    return start, u(one), u(two), u(plane), n


@loop
def fill_masks(geometry: Any, sizes: Any, b: Any, masks: Any, buf: Any) -> None:
    """Writes ones where the positions of a block lie, at every level."""
    levels, _, block_levels, _ = geometry
    for level in range(len(levels)):
        at, source = u(region(sizes, MASKS + level)), u(block_levels[b, level, MASK])
        n = u(block_levels[b, level, COUNT])
        for i in range(n):
            buf[at + i] = masks[source + i]
        clear(buf, at + n, u(sizes[BACK]))


@loop
def correlate_ends(geometry: Any, sizes: Any, b: Any, at: Any, ends: Any, buf: Any) -> None:
    """Writes the mean over channels of products of two images."""
    blocks = geometry[1]
    end = 0
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        start, one, two, plane, n = stretch(geometry, b, r, 0, 0, ends)
        clear(buf, u(at + end), u(start - end))
        correlate(
            buf, u(at + start), ends[0], one, ends[2], two, plane, u(sizes[CHANNELS]), whole(n)
        )
        end = start + n
    clear(buf, u(at + geometry[2][b, 0, COUNT]), u(sizes[BACK]))
