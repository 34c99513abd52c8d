"""The compiled interpreter: runs a stage of a network on slices of covariances.

A slice holds the covariances of one pair of images at one or more offsets, as rectangles of
positions below each other, with rows and columns of zeros between them (see `geometry.py`). It
stays in cache while it goes through all layers of a stage. What a stage consists of is data: depth,
widths and hyper-parameters compile nothing.
"""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.activate import activate, activate_own, record
from widelimit.engines.fused.around import close_around, open_again
from widelimit.engines.fused.compiling import borrowed, entry, loop
from widelimit.engines.fused.ends import correlate_ends, fill_masks, pack_ends
from widelimit.engines.fused.instructions import (
    ADD,
    AROUND,
    BACK,
    CODE,
    COLUMN,
    COUNT,
    END,
    FINAL,
    FINAL_LEVEL,
    FIRST_ROW,
    FLAT,
    HAS_T,
    HEIGHT,
    INPUT,
    LEVEL,
    LEVEL_OUT,
    LOAD,
    MASKS,
    MULTIPLY,
    NONLINEAR,
    OWN,
    PAD_X,
    PAD_Y,
    POOL,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    ROW_K,
    ROW_T,
    SOURCE,
    STEP_X,
    STEP_Y,
    STRIDE_X,
    STRIDE_Y,
    SUM_K,
    SUM_T,
    TAPS_X,
    TAPS_Y,
    TARGET,
    WIDTH,
    WINDOW,
    ZERO_BLOCK,
)
from widelimit.engines.fused.places import region, slot, u, whole
from widelimit.engines.fused.pools import pool_columns, pool_rows
from widelimit.engines.fused.stencils import (
    add,
    affine_map,
    affine_strided,
    affine_sum3,
    clear,
    copy,
    multiply,
    sum_taps,
    total,
    values,
)


@loop
def _load(
    geometry: Any, sizes: Any, b: Any, k: Any, t: Any, store: Any, base: Any, places: Any,
    factor: Any, buf: Any,
) -> None:  # fmt: skip
    """Writes a slice from the pooled covariances of the stage before."""
    _, blocks, block_levels, rect_levels = geometry
    count, row, width = (
        block_levels[b, 0, COUNT],
        block_levels[b, 0, ROW],
        block_levels[b, 0, WIDTH],
    )
    clear(buf, u(k), u(count + sizes[BACK]))
    clear(buf, u(t), u(count + sizes[BACK]))
    half = store.shape[0] // 2  # all K, then all T
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        for y in range(rect_levels[r, 0, HEIGHT]):
            to = (rect_levels[r, 0, FIRST_ROW] + y) * row
            source = base + places[r] + y * width
            to_k, to_t = u(k + to), u(t + to)
            from_k, from_t = u(source), u(half + source)
            for x in range(u(width)):
                buf[to_k + x] = factor * store[from_k + x]
                buf[to_t + x] = factor * store[from_t + x]


@loop
def _window(geometry: Any, sizes: Any, b: Any, code: Any, i: Any, buf: Any, numbers: Any) -> None:
    """Convolution, or Dense: sums over windows of the whole slice, then w, b, u, v.

    Sums are taken at every position; strides and cropped borders are left out of the result.
    """
    row, count = geometry[2][b, code[i, LEVEL], ROW], geometry[2][b, code[i, LEVEL], COUNT]
    p = values(numbers, i)
    both, flat = code[i, HAS_T], code[i, FLAT]
    mask = region(sizes, MASKS + code[i, LEVEL])
    k, t = slot(sizes, code[i, SOURCE], 0), slot(sizes, code[i, SOURCE], 1)
    to_k, to_t = slot(sizes, code[i, TARGET], 0), slot(sizes, code[i, TARGET], 1)
    if code[i, AROUND]:
        close_around(geometry, b, code[i, LEVEL], k, buf)
        close_around(geometry, b, code[i, LEVEL], t, buf)
    shift = code[i, PAD_Y] * row + code[i, PAD_X]
    reach = (code[i, TAPS_X] - 1) * code[i, STEP_X]
    n = count if flat else count + shift + sizes[BACK]  # outputs over padding too
    from_k, from_t = u(k - shift), u(t - shift)
    if code[i, TAPS_Y] > 1:
        sum_k, sum_t = u(region(sizes, ROW_K)), u(region(sizes, ROW_T))
        step, taps = u(code[i, STEP_Y] * row), u(code[i, TAPS_Y])
        sum_taps(buf, sum_k, sum_t, from_k, from_t, both, step, taps, u(n + reach))
        from_k, from_t = sum_k, sum_t
    n = whole(n)
    if flat and code[i, TAPS_X] == 3:
        step = u(code[i, STEP_X])
        affine_sum3(buf, u(to_k), u(to_t), from_k, from_t, both, step, u(mask), n, p)
    else:
        if code[i, TAPS_X] > 1:
            sum_k, sum_t = u(region(sizes, SUM_K)), u(region(sizes, SUM_T))
            step, taps = u(code[i, STEP_X]), u(code[i, TAPS_X])
            sum_taps(buf, sum_k, sum_t, from_k, from_t, both, step, taps, n)
            from_k, from_t = sum_k, sum_t
        if flat:
            affine_map(buf, u(to_k), u(to_t), from_k, from_t, both, u(mask), n, p)
        else:
            _crop(geometry, b, code, i, to_k, to_t, from_k, from_t, buf, p)
    if code[i, AROUND]:
        open_again(geometry, b, code[i, LEVEL], k, mask, buf)
        open_again(geometry, b, code[i, LEVEL], t, mask, buf)
    end = geometry[2][b, code[i, LEVEL_OUT], COUNT]
    clear(buf, u(to_k + end), u(sizes[BACK]))
    clear(buf, u(to_t + end), u(sizes[BACK]))


@loop
def _crop(
    geometry: Any, b: Any, code: Any, i: Any, to_k: Any, to_t: Any, k: Any, t: Any, buf: Any,
    p: Any,
) -> None:  # fmt: skip
    """Writes `affine_map` of the sums at every so many positions, onto another grid."""
    _, blocks, block_levels, rect_levels = geometry
    level, level_out = code[i, LEVEL], code[i, LEVEL_OUT]
    row, row_out = block_levels[b, level, ROW], block_levels[b, level_out, ROW]
    count = u(block_levels[b, level_out, COUNT])
    clear(buf, u(to_k), count)
    clear(buf, u(to_t), count)
    n, stride, down = (
        u(block_levels[b, level_out, WIDTH]),
        u(code[i, STRIDE_X]),
        u(code[i, STRIDE_Y] * row),
    )
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        source, to = (
            u(rect_levels[r, level, FIRST_ROW] * row),
            rect_levels[r, level_out, FIRST_ROW] * row_out,
        )
        at_k, at_t = u(to_k + to), u(to_t + to)
        for _ in range(rect_levels[r, level_out, HEIGHT]):
            affine_strided(buf, at_k, at_t, k + source, t + source, code[i, HAS_T], stride, n, p)
            source += down
            at_k += u(row_out)
            at_t += u(row_out)


@loop
def run_layers(
    code: Any, numbers: Any, cst: Any, geometry: Any, sizes: Any, b: Any, same: Any, recording: Any,
    inputs: Any, ends: Any, buf: Any,
) -> None:  # fmt: skip
    """Runs all layers of a stage on one block of one pair."""
    store, base, places, scale = inputs
    block_levels = geometry[2]
    zero_block = geometry[1][b, ZERO_BLOCK] == 1
    for i in range(code.shape[0]):
        count = block_levels[b, code[i, LEVEL], COUNT]
        k, t = slot(sizes, code[i, TARGET], 0), slot(sizes, code[i, TARGET], 1)
        if code[i, CODE] == INPUT:
            correlate_ends(geometry, sizes, b, k, ends, buf)
            clear(buf, u(t), u(count + sizes[BACK]))
        elif code[i, CODE] == LOAD:
            _load(geometry, sizes, b, k, t, store, base, places, scale, buf)
        elif code[i, CODE] == WINDOW:
            _window(geometry, sizes, b, code, i, buf, numbers)
        elif code[i, CODE] == NONLINEAR:
            if recording and zero_block:
                record(geometry, sizes, b, code, i, numbers, cst, buf, ends[0], ends[1])
            if same and zero_block and code[i, OWN] != 0:
                activate_own(sizes, code, i, count, numbers, cst, buf)
            else:
                activate(geometry, sizes, b, code, i, numbers, cst, ends, buf)
        else:
            n = u(count + sizes[BACK])
            from_k, from_t = slot(sizes, code[i, SOURCE], 0), slot(sizes, code[i, SOURCE], 1)
            if code[i, CODE] == ADD:
                add(buf, u(k), u(from_k), n)
                add(buf, u(t), u(from_t), n)
            elif code[i, CODE] == MULTIPLY:
                multiply(buf, u(k), u(t), u(from_k), u(from_t), n)
            else:
                copy(buf, u(k), u(from_k), n)
                copy(buf, u(t), u(from_t), n)


@entry
def run_stages(
    code: Any, numbers: Any, cst: Any, sizes: Any, geometry: Any, masks: Any, rows: Any,
    places: Any, scale: Any, pool: Any, chosen: Any, pairs: Any, prep1: Any, prep2: Any,
    store_in: Any, store_out: Any, sums: Any, columns: Any, recording: Any, buf: Any,
    packed: Any, middle: Any,
) -> None:  # fmt: skip
    """Runs a stage on pairs of images.

    Args:
      code: instructions [ops, COLUMNS].
      numbers: their hyper-parameters [ops, NUMBERS].
      cst: constants of the dtype.
      sizes: sizes of the stage [SIZES].
      geometry: tables of levels, blocks, blocks at levels, rectangles at levels.
      masks: ones where positions lie, of every block at every level.
      rows: index of the vertical offset of every rectangle.
      places: place of every rectangle in the store of one pair.
      scale: factor of what is loaded.
      pool: tables of what the pooled outputs read; empty where the stage ends in a sum.
      chosen: the blocks to run.
      pairs: [m, 3], image of x1, image of x2, whether they are the same.
      prep1: recorded numbers of the images of x1 [n1, size].
      prep2: those of x2.
      store_in: pooled covariances of the stage before, all K and then all T; [2 m size].
      store_out: those of this stage, added to.
      sums: sums of K and T over the positions of each block [m, blocks, 2].
      columns: [low, high] of the pooled columns to compute.
      recording: whether to write into prep1 what nonlinearities need.
      buf: scratch of zeros.
      packed: room for the numbers of two images.
      middle: zeros, room for the pooled rows of one horizontal offset.
    """
    code, numbers, cst, sizes = borrowed((code, numbers, cst, sizes))
    geometry, masks, rows = borrowed((geometry, masks, rows))
    places, pool = borrowed((places, pool))
    chosen, pairs, columns, sums = borrowed((chosen, pairs, columns, sums))
    store_in, store_out = borrowed((store_in, store_out))
    buf, packed, middle = borrowed((buf, packed, middle))
    size1, size2 = prep1.shape[1], prep2.shape[1]
    flat1, flat2 = borrowed((prep1.reshape(-1), prep2.reshape(-1)))
    count = len(pairs)
    step_in, step_out = store_in.shape[0] // (2 * count), store_out.shape[0] // (2 * count)
    for m in range(count):
        same = pairs[m, 2] == 1
        inputs = (store_in, m * step_in, places, scale)
        images = (flat1, pairs[m, 0] * size1, flat2, pairs[m, 1] * size2, 1)
        ends, column, width, stale = images, -1, 0, True
        for i in range(len(chosen)):
            b = chosen[i]
            if geometry[1][b, COLUMN] != column:
                if sizes[END] == POOL and column >= 0:
                    pool_columns(
                        sizes, column, width, pool, middle, store_out, m * step_out,
                        columns[0], columns[1],
                    )  # fmt: skip
                column = geometry[1][b, COLUMN]
                width, stale = geometry[2][b, sizes[FINAL_LEVEL], WIDTH], True
            if stale:
                ends = pack_ends(code, geometry, sizes, b, images, packed)
            stale = geometry[1][b, ZERO_BLOCK] == 1  # it may have recorded numbers
            fill_masks(geometry, sizes, b, masks, buf)
            run_layers(code, numbers, cst, geometry, sizes, b, same, recording, inputs, ends, buf)
            if sizes[END] == POOL:
                pool_rows(geometry, sizes, b, rows, pool, middle, buf)
            else:
                n = u(geometry[2][b, sizes[FINAL_LEVEL], COUNT])
                for tangent in range(2):
                    at = u(slot(sizes, sizes[FINAL], tangent))
                    sums[m, b, tangent] = total(buf, at, n)
        if sizes[END] == POOL and column >= 0:
            pool_columns(
                sizes, column, width, pool, middle, store_out, m * step_out,
                columns[0], columns[1],
            )  # fmt: skip
