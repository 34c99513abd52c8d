"""Activations of slices: K' and T' in place, from the numbers recorded of both ends.

The loops are those of `loops`, compiled apart and called by their addresses; ReLU, the most
frequent one, is compiled in.
"""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.compiling import call, loop, pointer
from widelimit.engines.fused.ends import stretch
from widelimit.engines.fused.instructions import (
    AVERAGE,
    COUNT,
    FIRST_ROW,
    HEIGHT,
    LEVEL,
    LOOP,
    MASKS,
    OWN,
    PITCH,
    PLACE,
    PLANES,
    RECORD,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    ROW_K,
    ROW_T,
    SIZE_Y,
    SOURCE,
    SUM_K,
    TABLE,
    VECTOR,
    WIDTH,
    WORK,
)
from widelimit.engines.fused.loops import relu_pairs
from widelimit.engines.fused.places import parameters, region, slot, u, whole
from widelimit.engines.fused.stencils import copy, total


@loop
def record(
    geometry: Any, sizes: Any, b: Any, code: Any, i: Any, numbers: Any, cst: Any, buf: Any,
    prep: Any, base: Any,
) -> None:  # fmt: skip
    """Records what an activation needs of the variances of one image (block of offset 0)."""
    levels, blocks, block_levels, rect_levels = geometry
    level, r = code[i, LEVEL], blocks[b, RECTS_FROM]
    width, row = block_levels[b, level, WIDTH], block_levels[b, level, ROW]
    first_row, height = rect_levels[r, level, FIRST_ROW], rect_levels[r, level, HEIGHT]
    pitch = levels[level, PITCH]
    plane = levels[level, SIZE_Y] * pitch if code[i, PLANES] > 1 else 0
    k = slot(sizes, code[i, SOURCE], 0)
    mean_row = region(sizes, SUM_K)
    if code[i, AVERAGE]:
        mean = total(buf, u(k), u(block_levels[b, level, COUNT])) / (width * height)
        for x in range(u(width)):
            buf[u(mean_row) + x] = mean
    for y in range(height):
        source = mean_row if code[i, AVERAGE] else k + (first_row + y) * row
        at = base + code[i, PLACE] + y * pitch
        call(
            code[i, RECORD],
            (
                pointer(buf, source), pointer(prep, at), parameters(code[i, TABLE], i, numbers),
                pointer(cst, 0), u(plane), u(width),
            ),
        )  # fmt: skip


@loop
def activate_own(
    sizes: Any, code: Any, i: Any, count: Any, numbers: Any, cst: Any, buf: Any
) -> None:
    """Writes K' and T' of the positions of one image with themselves over K and T."""
    k, t = slot(sizes, code[i, SOURCE], 0), slot(sizes, code[i, SOURCE], 1)
    mask = region(sizes, MASKS + code[i, LEVEL])
    call(
        code[i, OWN],
        (
            pointer(buf, k), pointer(buf, t), pointer(buf, mask),
            parameters(code[i, TABLE], i, numbers), pointer(cst, 0), whole(count),
        ),
    )  # fmt: skip


@loop
def activate(
    geometry: Any, sizes: Any, b: Any, code: Any, i: Any, numbers: Any, cst: Any, ends: Any,
    buf: Any,
) -> None:  # fmt: skip
    """Writes K' and T' of a block over K and T.

    Between rectangles K and T are zero, and stay so. Loops run to the end of a vector; what is too
    much there, which may be the next rectangle, is put back.
    """
    blocks, size, level = geometry[1], u(VECTOR), code[i, LEVEL]
    k, t = slot(sizes, code[i, SOURCE], 0), slot(sizes, code[i, SOURCE], 1)
    mask, p, constants = (
        region(sizes, MASKS + level),
        parameters(code[i, TABLE], i, numbers),
        pointer(cst, 0),
    )
    kept_k, kept_t = u(region(sizes, ROW_K)), u(region(sizes, ROW_T))
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        start, one, two, plane, n = stretch(geometry, b, r, level, code[i, PLACE], ends)
        end_k, end_t = u(k + start + n), u(t + start + n)
        copy(buf, kept_k, end_k, size)
        copy(buf, kept_t, end_t, size)
        at_k, at_t = pointer(buf, k + start), pointer(buf, t + start)
        first, second = pointer(ends[0], one), pointer(ends[2], two)
        inside, work = pointer(buf, mask + start), pointer(buf, len(buf) - WORK)
        if code[i, LOOP] == 0:
            relu_pairs(at_k, at_t, first, second, inside, p, constants, work, plane, n, whole(n))
        else:
            call(
                code[i, LOOP],
                (at_k, at_t, first, second, inside, p, constants, work, plane, n, whole(n)),
            )
        copy(buf, end_k, kept_k, size)
        copy(buf, end_t, kept_t, size)
