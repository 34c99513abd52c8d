"""Cotangents of pools: those of windows go to all that the windows read."""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.instructions import (
    FINAL_LEVEL,
    FIRST_ROW,
    FIRST_TAP,
    HEIGHT,
    OUT_FIRST,
    OUT_SIZE,
    P_Y,
    POOL_PAD_Y,
    POOL_STRIDE_X,
    POOL_STRIDE_Y,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    RUN_COUNT,
    RUN_FROM,
    RUN_PITCH,
    RUN_TAPS,
    RUN_TARGET,
    RUN_TO,
    TAP_COUNT,
    TARGET_INDEX,
    WIDTH,
)
from widelimit.engines.fused.places import u, whole
from widelimit.engines.fused.stencils import clear


@loop
def unpool_columns(
    sizes: Any, column: Any, width: Any, pool: Any, middle: Any, store_bar: Any, base: Any
) -> None:
    """Writes the cotangents of the pooled rows of one horizontal offset: see `pool_columns`."""
    x_from, x_runs, _, _, places, firsts = pool
    pitch = int(whole(width))
    half, half_out, stride = len(middle) // 2, store_bar.shape[0] // 2, u(sizes[POOL_STRIDE_X])
    for tangent in range(2):
        clear(middle, u(tangent * half), u(firsts[-1] * pitch))
    for j in range(x_from[column], x_from[column + 1]):
        target, n = x_runs[j, RUN_TARGET], u(x_runs[j, RUN_COUNT])
        for i in range(len(firsts) - 1):
            for y in range(firsts[i + 1] - firsts[i]):
                source = base + places[target, i] + y * x_runs[j, RUN_PITCH] + x_runs[j, RUN_TO]
                to = (firsts[i] + y) * pitch + x_runs[j, RUN_FROM]
                for tap in range(x_runs[j, RUN_TAPS]):
                    k, t = u(to + tap), u(to + tap + half)
                    from_k, from_t = u(source), u(source + half_out)
                    for x in range(n):
                        middle[k + stride * x] += store_bar[from_k + x]
                        middle[t + stride * x] += store_bar[from_t + x]


@loop
def unpool_rows(
    geometry: Any, sizes: Any, b: Any, rows: Any, pool: Any, middle: Any, k_bar: Any, t_bar: Any,
    buf: Any,
) -> None:  # fmt: skip
    """Adds the cotangents of pooled rows to those of the rows of a block: see `pool_rows`."""
    _, blocks, block_levels, rect_levels = geometry
    y_from, y_items, firsts = pool[2], pool[3], pool[5]
    level = sizes[FINAL_LEVEL]
    width, row = block_levels[b, level, WIDTH], block_levels[b, level, ROW]
    half, n = u(len(middle) // 2), whole(width)
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        height, first_row = rect_levels[r, level, HEIGHT], rect_levels[r, level, FIRST_ROW]
        for i in range(y_from[rows[r]], y_from[rows[r] + 1]):
            shift = y_items[i, FIRST_TAP] - sizes[POOL_PAD_Y] - rect_levels[r, level, P_Y]
            taps, source = y_items[i, TAP_COUNT], u(firsts[y_items[i, TARGET_INDEX]]) * n
            for y in range(y_items[i, OUT_SIZE]):
                start = sizes[POOL_STRIDE_Y] * (y_items[i, OUT_FIRST] + y) + shift
                for line in range(max(start, 0), min(start + taps, height)):
                    k, t = u(k_bar + (first_row + line) * row), u(t_bar + (first_row + line) * row)
                    for x in range(u(width)):
                        buf[k + x] += middle[source + x]
                        buf[t + x] += middle[half + source + x]
                source += n
