"""Cotangents of windows: sums over the turned window, then those of an affine map."""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.adjoints.order import HOME, LAST_READ, READ
from widelimit.engines.fused.adjoints.sums import dot
from widelimit.engines.fused.compiling import loop, piece
from widelimit.engines.fused.instructions import (
    BACK,
    COUNT,
    FIRST_ROW,
    FLAT,
    FRONT,
    HAS_T,
    HEIGHT,
    LEVEL,
    LEVEL_OUT,
    MASKS,
    PAD_X,
    PAD_Y,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    ROW_K,
    ROW_T,
    STEP_X,
    STEP_Y,
    STRIDE_X,
    STRIDE_Y,
    SUM_K,
    SUM_T,
    TAPS_X,
    TAPS_Y,
    WIDTH,
)
from widelimit.engines.fused.places import region, slot, u, whole
from widelimit.engines.fused.stencils import clear, sum_taps, total


@piece
def pull_window(
    geometry: Any, sizes: Any, b: Any, code: Any, reads: Any, i: Any, buf: Any, numbers: Any,
    numbers_bar: Any,
) -> None:  # fmt: skip
    """Adds the cotangents of K and T before a window, and of w, b, u, v.

    An output p reads the inputs p + t - pad, so an input q is read by the outputs q + pad - t.
    """
    block_levels, level, level_out = geometry[2], code[i, LEVEL], code[i, LEVEL_OUT]
    row, count = block_levels[b, level, ROW], block_levels[b, level, COUNT]
    end, home, source = block_levels[b, level_out, COUNT], reads[i, HOME], reads[i, READ]
    k_bar, t_bar = slot(sizes, home, 0), slot(sizes, home, 1)
    bars = numbers_bar[i]
    bars[1] += total(buf, u(k_bar), u(end))
    bars[3] += total(buf, u(t_bar), u(end))
    if not code[i, FLAT]:
        spare = SUM_K if code[i, TAPS_Y] > 1 else ROW_K  # what the first sum does not write
        _place(geometry, sizes, b, code, i, k_bar, region(sizes, spare), buf)
        _place(geometry, sizes, b, code, i, t_bar, region(sizes, spare + 1), buf)
        k_bar, t_bar = region(sizes, spare), region(sizes, spare + 1)
    down, right = (
        (code[i, TAPS_Y] - 1) * code[i, STEP_Y] * row,
        (code[i, TAPS_X] - 1) * code[i, STEP_X],
    )
    shift = code[i, PAD_Y] * row + code[i, PAD_X] - down - right
    from_k, from_t = u(k_bar + shift), u(t_bar + shift)
    if code[i, TAPS_Y] > 1:
        sum_k, sum_t = u(region(sizes, ROW_K)), u(region(sizes, ROW_T))
        step, taps = u(code[i, STEP_Y] * row), u(code[i, TAPS_Y])
        sum_taps(buf, sum_k, sum_t, from_k, from_t, 1, step, taps, u(whole(count + right)))
        from_k, from_t = sum_k, sum_t
    if code[i, TAPS_X] > 1:
        sum_k, sum_t = u(region(sizes, SUM_K)), u(region(sizes, SUM_T))
        step, taps = u(code[i, STEP_X]), u(code[i, TAPS_X])
        sum_taps(buf, sum_k, sum_t, from_k, from_t, 1, step, taps, u(whole(count)))
        from_k, from_t = sum_k, sum_t
    k, t = u(slot(sizes, source, 0)), u(slot(sizes, source, 1))
    bars[0] += dot(buf, from_k, k, u(count))
    if code[i, HAS_T]:
        bars[0] += dot(buf, from_t, t, u(count))
    bars[2] += dot(buf, from_t, k, u(count))
    _map(
        sizes, code, reads, i, from_k, from_t, u(region(sizes, MASKS + level)), u(count), buf,
        numbers[i],
    )  # fmt: skip


@loop
def _map(
    sizes: Any, code: Any, reads: Any, i: Any, k: Any, t: Any, mask: Any, n: Any, buf: Any,
    numbers: Any,
) -> None:  # fmt: skip
    """Adds w and u times sums to cotangents of K and T inside of images; writes them if first."""
    w, v = numbers[0], numbers[2]
    home = reads[reads[i, READ], HOME]
    to_k, to_t = u(slot(sizes, home, 0)), u(slot(sizes, home, 1))
    still = buf.dtype.type(code[i, HAS_T]) * w
    if reads[i, LAST_READ]:
        clear(buf, to_k + n, u(sizes[BACK]))
        clear(buf, to_t + n, u(sizes[BACK]))
        for x in range(n):
            slope, keep = buf[t + x], buf[mask + x]
            buf[to_k + x] = (w * buf[k + x] + v * slope) * keep
            buf[to_t + x] = (still * slope) * keep
    else:
        for x in range(n):
            slope, keep = buf[t + x], buf[mask + x]
            buf[to_k + x] += (w * buf[k + x] + v * slope) * keep
            buf[to_t + x] += (still * slope) * keep


@loop
def _place(
    geometry: Any, sizes: Any, b: Any, code: Any, i: Any, source: Any, to: Any, buf: Any
) -> None:
    """Writes outputs where their windows begin on the grid of the inputs, and zeros elsewhere.

    Outputs over the padding of two rectangles may have one place: they read the same zeros.
    """
    _, blocks, block_levels, rect_levels = geometry
    level, level_out = code[i, LEVEL], code[i, LEVEL_OUT]
    row, row_out = block_levels[b, level, ROW], block_levels[b, level_out, ROW]
    width, stride = u(block_levels[b, level_out, WIDTH]), u(code[i, STRIDE_X])
    pads = code[i, PAD_Y] * row + code[i, PAD_X]
    clear(
        buf,
        u(to - sizes[FRONT]),
        u(sizes[FRONT] + block_levels[b, level, COUNT] + pads + 2 * sizes[BACK]),
    )
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        at = source + rect_levels[r, level_out, FIRST_ROW] * row_out
        target = to + rect_levels[r, level, FIRST_ROW] * row
        for _ in range(rect_levels[r, level_out, HEIGHT]):
            first, second = u(target), u(at)
            for x in range(width):
                buf[first + stride * x] += buf[second + x]
            target += code[i, STRIDE_Y] * row
            at += row_out
