"""Pools: sums over windows, of a stage's covariances into those of the next one."""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.instructions import (
    FINAL,
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
from widelimit.engines.fused.places import slot, u, whole
from widelimit.engines.fused.stencils import add_rows, clear, pool_row


@loop
def pool_rows(
    geometry: Any, sizes: Any, b: Any, rows: Any, pool: Any, middle: Any, buf: Any
) -> None:
    """Adds rows of a block to those of the pooled rows that read them, for all columns.

    An output at offset d' reads inputs at offsets s d' + b - a, a and b taps of the two windows.
    Rows of `middle` are whole vectors; what stands behind the last column is never read.
    """
    _, blocks, block_levels, rect_levels = geometry
    y_from, y_items, firsts = pool[2], pool[3], pool[5]
    level = sizes[FINAL_LEVEL]
    half, n = u(len(middle) // 2), whole(block_levels[b, level, WIDTH])
    row = block_levels[b, level, ROW]
    k, t = slot(sizes, sizes[FINAL], 0), slot(sizes, sizes[FINAL], 1)
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        height, first_row = rect_levels[r, level, HEIGHT], rect_levels[r, level, FIRST_ROW]
        for i in range(y_from[rows[r]], y_from[rows[r] + 1]):
            shift = y_items[i, FIRST_TAP] - sizes[POOL_PAD_Y] - rect_levels[r, level, P_Y]
            taps, to = y_items[i, TAP_COUNT], u(firsts[y_items[i, TARGET_INDEX]]) * n
            for y in range(y_items[i, OUT_SIZE]):
                start = sizes[POOL_STRIDE_Y] * (y_items[i, OUT_FIRST] + y) + shift
                x, end = max(start, 0), min(start + taps, height)
                while x < end:
                    at, pair = (first_row + x) * row, x + 1 < end
                    add_rows(middle, to, buf, u(k + at), u(row), pair, n)
                    add_rows(middle, half + to, buf, u(t + at), u(row), pair, n)
                    x += 1 + pair
                to += n


@loop
def pool_columns(
    sizes: Any, column: Any, width: Any, pool: Any, middle: Any, store: Any, base: Any,
    low: Any, high: Any,
) -> None:  # fmt: skip
    """Adds pooled rows of one horizontal offset to the columns low to high - 1, and clears them."""
    x_from, x_runs, _, _, places, firsts = pool
    pitch = int(whole(width))
    half, half_out, stride = len(middle) // 2, store.shape[0] // 2, u(sizes[POOL_STRIDE_X])
    for j in range(x_from[column], x_from[column + 1]):
        target = x_runs[j, RUN_TARGET]
        if target < low or target >= high:
            continue
        taps, n = u(x_runs[j, RUN_TAPS]), u(x_runs[j, RUN_COUNT])
        for i in range(len(firsts) - 1):
            for y in range(firsts[i + 1] - firsts[i]):
                to = base + places[target, i] + y * x_runs[j, RUN_PITCH] + x_runs[j, RUN_TO]
                source = (firsts[i] + y) * pitch + x_runs[j, RUN_FROM]
                pool_row(middle, u(source), store, u(to), taps, stride, n)
                pool_row(middle, u(source + half), store, u(to + half_out), taps, stride, n)
    for tangent in range(2):
        clear(middle, u(tangent * half), u(firsts[-1] * pitch))
