"""The compiled interpreter: runs a stage of a network on slices of covariances.

A slice holds the covariances of one pair of images at one or more offsets, as rectangles of
positions below each other, with rows and columns of zeros between them (see `geometry.py`). It
stays in cache while it goes through all layers of a stage. What a stage consists of is data: depth,
widths and hyper-parameters compile nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.fused import nonlinear
from widelimit.fused.compiling import entry, loop
from widelimit.fused.instructions import (
    ADD,
    AVERAGE,
    BACK,
    CHANNELS,
    CODE,
    COLUMN,
    COUNT,
    D_X,
    D_Y,
    END,
    FINAL,
    FINAL_LEVEL,
    FIRST_ROW,
    FIRST_TAP,
    FLAT,
    FRONT,
    HAS_T,
    HEIGHT,
    INPUT,
    KIND,
    LENGTH,
    LEVEL,
    LEVEL_OUT,
    LOAD,
    MASKS,
    NONLINEAR,
    ONES,
    OUT_FIRST,
    OUT_SIZE,
    P_X,
    P_Y,
    PAD_X,
    PAD_Y,
    PITCH,
    PLACE,
    POOL,
    POOL_PAD_Y,
    POOL_STRIDE_X,
    POOL_STRIDE_Y,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    ROW_K,
    ROW_T,
    RUN_COUNT,
    RUN_FROM,
    RUN_PITCH,
    RUN_TAPS,
    RUN_TARGET,
    RUN_TO,
    S_REGION,
    SIZE_Y,
    SLOTS,
    SOURCE,
    STEP_X,
    STEP_Y,
    STRIDE_X,
    STRIDE_Y,
    SUM_K,
    SUM_T,
    TAP_COUNT,
    TAPS_X,
    TAPS_Y,
    TARGET,
    TARGET_INDEX,
    U_REGION,
    WIDTH,
    WINDOW,
    ZERO_BLOCK,
)
from widelimit.fused.stencils import (
    add,
    affine,
    affine_strided,
    affine_sum3,
    clear,
    combine,
    copy,
    correlate,
    pool_row,
    sum_taps,
    total,
)


@loop
def _u(x: Any) -> Any:
    return np.uint64(x)


@loop
def _slot(sizes: Any, index: Any, tangent: Any) -> Any:
    """Returns the place of position 0 of a slot: K, or T."""
    return sizes[FRONT] + sizes[LENGTH] * (2 * index + tangent)


@loop
def _region(sizes: Any, index: Any) -> Any:
    """Returns the place of a region beside the slots."""
    return sizes[FRONT] + sizes[LENGTH] * (2 * sizes[SLOTS] + index)


@loop
def _rows(
    geometry: Any, b: Any, level: Any, to: Any, second: Any, place: Any, sums: Any, paired: Any,
    prep1: Any, base1: Any, prep2: Any, base2: Any, buf: Any,
) -> None:  # fmt: skip
    """Writes what combines the numbers of both ends of every pair of positions of a block.

    Products, or sums; of a second plane of numbers too if `paired`. Zeros follow every row of
    numbers, and either end of a rectangle's row is the last of the image: products that are
    written beyond a row are zero, until the next row is written over them.
    """
    levels, blocks, block_levels, rect_levels = geometry
    info, pitch = block_levels[b, level], levels[level, PITCH]
    width = _u((info[ROW] + 15) & ~15)  # the zeros behind a row too, in whole vectors
    plane = _u(levels[level, SIZE_Y] * pitch)
    end = 0
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        rect = rect_levels[r, level]
        start = rect[FIRST_ROW] * info[ROW]
        clear(buf, _u(to + end), _u(start - end))
        if paired:
            clear(buf, _u(second + end), _u(start - end))
        one = _u(base1 + place + rect[P_Y] * pitch + info[P_X])
        two = _u(base2 + place + (rect[P_Y] + rect[D_Y]) * pitch + info[P_X] + info[D_X])
        combine(
            buf, prep1, prep2, _u(to + start), _u(second + start), one, two, plane, sums, paired,
            _u(rect[HEIGHT]), width, _u(info[ROW]), _u(pitch),
        )  # fmt: skip
        end = start + rect[HEIGHT] * info[ROW]


@loop
def _fill_masks(
    geometry: Any, sizes: Any, b: Any, prep1: Any, base1: Any, prep2: Any, base2: Any, buf: Any
) -> None:
    """Writes ones where the positions of a block lie, at every level."""
    levels, _, block_levels, _ = geometry
    for level in range(len(levels)):
        at = _region(sizes, MASKS + level)
        _rows(
            geometry, b, level, at, at, levels[level, ONES], False, False,
            prep1, base1, prep2, base2, buf,
        )  # fmt: skip
        clear(buf, _u(at + block_levels[b, level, COUNT]), _u(sizes[BACK]))


@loop
def _input(
    geometry: Any, sizes: Any, b: Any, at: Any, prep1: Any, base1: Any, prep2: Any, base2: Any,
    buf: Any,
) -> None:  # fmt: skip
    """Writes the mean over channels of products of two images."""
    levels, blocks, block_levels, rect_levels = geometry
    info, pitch = block_levels[b, 0], levels[0, PITCH]
    width = _u((info[ROW] + 15) & ~15)  # as in `_rows`
    plane, channels = _u(levels[0, SIZE_Y] * pitch), _u(sizes[CHANNELS])
    end = 0
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        rect = rect_levels[r, 0]
        start = rect[FIRST_ROW] * info[ROW]
        clear(buf, _u(at + end), _u(start - end))
        correlate(
            buf, prep1, prep2, _u(at + start), _u(base1 + rect[P_Y] * pitch + info[P_X]),
            _u(base2 + (rect[P_Y] + rect[D_Y]) * pitch + info[P_X] + info[D_X]),
            plane, channels, _u(rect[HEIGHT]), width, _u(info[ROW]), _u(pitch),
        )  # fmt: skip
        end = start + rect[HEIGHT] * info[ROW]
    clear(buf, _u(at + info[COUNT]), _u(sizes[BACK]))


@loop
def _load(
    geometry: Any, sizes: Any, b: Any, k: Any, t: Any, store: Any, base: Any, places: Any,
    factor: Any, buf: Any,
) -> None:  # fmt: skip
    """Writes a slice from the pooled covariances of the stage before."""
    _, blocks, block_levels, rect_levels = geometry
    info = block_levels[b, 0]
    clear(buf, _u(k), _u(info[COUNT] + sizes[BACK]))
    clear(buf, _u(t), _u(info[COUNT] + sizes[BACK]))
    half = store.shape[0] // 2  # all K, then all T
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        rect = rect_levels[r, 0]
        for y in range(rect[HEIGHT]):
            to = (rect[FIRST_ROW] + y) * info[ROW]
            source = base + places[r] + y * info[WIDTH]
            to_k, to_t = _u(k + to), _u(t + to)
            from_k, from_t = _u(source), _u(half + source)
            for x in range(_u(info[WIDTH])):
                buf[to_k + x] = factor * store[from_k + x]
                buf[to_t + x] = factor * store[from_t + x]


@loop
def _window(geometry: Any, sizes: Any, b: Any, op: Any, buf: Any, numbers: Any) -> None:
    """Convolution, or Dense: sums over windows of the whole slice, then w, b, u, v.

    Sums are taken at every position; strides and cropped borders are left out of the result.
    """
    info = geometry[2][b, op[LEVEL]]
    both, flat = op[HAS_T], op[FLAT]
    k, t = _slot(sizes, op[SOURCE], 0), _slot(sizes, op[SOURCE], 1)
    to_k, to_t = _slot(sizes, op[TARGET], 0), _slot(sizes, op[TARGET], 1)
    shift = op[PAD_Y] * info[ROW] + op[PAD_X]
    reach = (op[TAPS_X] - 1) * op[STEP_X]
    n = info[COUNT] if flat else info[COUNT] + shift + sizes[BACK]  # outputs over padding too
    from_k, from_t = _u(k - shift), _u(t - shift)
    if op[TAPS_Y] > 1:
        sum_k, sum_t = _u(_region(sizes, ROW_K)), _u(_region(sizes, ROW_T))
        step, taps = _u(op[STEP_Y] * info[ROW]), _u(op[TAPS_Y])
        sum_taps(buf, sum_k, sum_t, from_k, from_t, both, step, taps, _u(n + reach))
        from_k, from_t = sum_k, sum_t
    mask, count = _u(_region(sizes, MASKS + op[LEVEL])), _u(n)
    if flat and both and op[TAPS_X] == 3:
        step = _u(op[STEP_X])
        affine_sum3(buf, _u(to_k), _u(to_t), from_k, from_t, step, mask, count, numbers)
    else:
        if op[TAPS_X] > 1:
            sum_k, sum_t = _u(_region(sizes, SUM_K)), _u(_region(sizes, SUM_T))
            step, taps = _u(op[STEP_X]), _u(op[TAPS_X])
            sum_taps(buf, sum_k, sum_t, from_k, from_t, both, step, taps, count)
            from_k, from_t = sum_k, sum_t
        if flat:
            affine(buf, _u(to_k), _u(to_t), from_k, from_t, both, mask, count, numbers)
        else:
            _crop(geometry, b, op, to_k, to_t, from_k, from_t, buf, numbers)
    end = geometry[2][b, op[LEVEL_OUT], COUNT]
    clear(buf, _u(to_k + end), _u(sizes[BACK]))
    clear(buf, _u(to_t + end), _u(sizes[BACK]))


@loop
def _crop(
    geometry: Any, b: Any, op: Any, to_k: Any, to_t: Any, k: Any, t: Any, buf: Any,
    numbers: Any,
) -> None:  # fmt: skip
    """Writes `affine` of the sums at every so many positions, onto another grid."""
    _, blocks, block_levels, rect_levels = geometry
    info, out = block_levels[b, op[LEVEL]], block_levels[b, op[LEVEL_OUT]]
    clear(buf, _u(to_k), _u(out[COUNT]))
    clear(buf, _u(to_t), _u(out[COUNT]))
    n, stride, down = _u(out[WIDTH]), _u(op[STRIDE_X]), _u(op[STRIDE_Y] * info[ROW])
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        rect, target = rect_levels[r, op[LEVEL]], rect_levels[r, op[LEVEL_OUT]]
        source, to = _u(rect[FIRST_ROW] * info[ROW]), target[FIRST_ROW] * out[ROW]
        at_k, at_t = _u(to_k + to), _u(to_t + to)
        for _ in range(target[HEIGHT]):
            affine_strided(buf, at_k, at_t, k + source, t + source, op[HAS_T], stride, n, numbers)
            source += down
            at_k += _u(out[ROW])
            at_t += _u(out[ROW])


@loop
def _record(
    geometry: Any, sizes: Any, b: Any, op: Any, numbers: Any, cst: Any, buf: Any,
    prep: Any, base: Any,
) -> None:  # fmt: skip
    """Records what a nonlinearity needs of the variances of one image (block of offset 0)."""
    levels, blocks, block_levels, rect_levels = geometry
    info, level = block_levels[b, op[LEVEL]], levels[op[LEVEL]]
    rect = rect_levels[blocks[b, RECTS_FROM], op[LEVEL]]
    plane = level[SIZE_Y] * level[PITCH]
    k = _slot(sizes, op[SOURCE], 0)
    mean = buf.dtype.type(0)
    if op[AVERAGE]:
        mean = buf.dtype.type(total(buf, _u(k), _u(info[COUNT])) / (info[WIDTH] * rect[HEIGHT]))
    for y in range(rect[HEIGHT]):
        for x in range(info[WIDTH]):
            q = mean if op[AVERAGE] else buf[_u(k + (rect[FIRST_ROW] + y) * info[ROW] + x)]
            first, second = nonlinear.record(op[KIND], q, numbers, cst)
            at = base + op[PLACE] + y * level[PITCH] + x
            prep[_u(at)] = first
            if nonlinear.paired(op[KIND]):
                prep[_u(at + plane)] = second


@loop
def _nonlinear(
    geometry: Any, sizes: Any, b: Any, op: Any, numbers: Any, cst: Any, buf: Any,
    prep1: Any, base1: Any, prep2: Any, base2: Any,
) -> None:  # fmt: skip
    level, block_levels = op[LEVEL], geometry[2]
    U, S = _region(sizes, U_REGION), _region(sizes, S_REGION)
    _rows(
        geometry, b, level, U, S, op[PLACE], nonlinear.adds(op[KIND]),
        nonlinear.paired(op[KIND]), prep1, base1, prep2, base2, buf,
    )  # fmt: skip
    k, t = _u(_slot(sizes, op[SOURCE], 0)), _u(_slot(sizes, op[SOURCE], 1))
    n, mask = _u(block_levels[b, level, COUNT]), _u(_region(sizes, MASKS + level))
    nonlinear.apply(op[KIND], buf, k, t, _u(U), _u(S), mask, n, numbers, cst)


@loop
def _pool(
    geometry: Any, sizes: Any, b: Any, rows: Any, pool: Any, store: Any, base: Any,
    low: Any, high: Any, buf: Any,
) -> None:  # fmt: skip
    """Adds what a block gives to the pooled covariances of the columns low to high - 1.

    An output at offset d' reads inputs at offsets s d' + b - a, a and b taps of the two windows.
    """
    _, blocks, block_levels, rect_levels = geometry
    x_from, x_runs, y_from, y_items, places = pool
    level = sizes[FINAL_LEVEL]
    k, t = _slot(sizes, sizes[FINAL], 0), _slot(sizes, sizes[FINAL], 1)
    info, column = block_levels[b, level], blocks[b, COLUMN]
    row_k, row_t = _u(_region(sizes, ROW_K)), _u(_region(sizes, ROW_T))
    half = store.shape[0] // 2
    pitch, width = info[ROW], _u(info[WIDTH])
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        rect = rect_levels[r, level]
        for i in range(y_from[rows[r]], y_from[rows[r] + 1]):
            item = y_items[i]
            shift = item[FIRST_TAP] - sizes[POOL_PAD_Y] - rect[P_Y]
            for y in range(item[OUT_SIZE]):
                start = sizes[POOL_STRIDE_Y] * (item[OUT_FIRST] + y) + shift
                top, bottom = max(start, 0), min(start + item[TAP_COUNT], rect[HEIGHT])
                if bottom <= top:
                    continue
                at = (rect[FIRST_ROW] + top) * pitch
                from_k, from_t = _u(k + at), _u(t + at)
                if bottom > top + 1:
                    taps = _u(bottom - top)
                    sum_taps(buf, row_k, row_t, from_k, from_t, 1, _u(pitch), taps, width)
                    from_k, from_t = row_k, row_t
                for j in range(x_from[column], x_from[column + 1]):
                    run = x_runs[j]
                    if low <= run[RUN_TARGET] < high:
                        to = base + places[run[RUN_TARGET], item[TARGET_INDEX]]
                        to += y * run[RUN_PITCH] + run[RUN_TO]
                        first = _u(run[RUN_FROM])
                        pool_row(
                            buf, from_k + first, from_t + first, store, _u(to), _u(half + to),
                            _u(run[RUN_TAPS]), _u(sizes[POOL_STRIDE_X]), _u(run[RUN_COUNT]),
                        )  # fmt: skip


@loop
def _layers(
    code: Any, numbers: Any, cst: Any, geometry: Any, sizes: Any, b: Any, same: Any, record: Any,
    inputs: Any, ends: Any, buf: Any,
) -> None:  # fmt: skip
    """Runs all layers of a stage on one block of one pair."""
    store, base, places, scale = inputs
    prep1, base1, prep2, base2 = ends
    block_levels = geometry[2]
    zero_block = geometry[1][b, ZERO_BLOCK] == 1
    for i in range(code.shape[0]):
        op = code[i]
        info = block_levels[b, op[LEVEL]]
        k, t = _slot(sizes, op[TARGET], 0), _slot(sizes, op[TARGET], 1)
        if op[CODE] == INPUT:
            _input(geometry, sizes, b, k, prep1, base1, prep2, base2, buf)
            clear(buf, _u(t), _u(info[COUNT] + sizes[BACK]))
        elif op[CODE] == LOAD:
            _load(geometry, sizes, b, k, t, store, base, places, scale, buf)
        elif op[CODE] == WINDOW:
            _window(geometry, sizes, b, op, buf, numbers[i])
        elif op[CODE] == NONLINEAR:
            if record and zero_block:
                _record(geometry, sizes, b, op, numbers[i], cst, buf, prep1, base1)
            if same and zero_block and nonlinear.exact(op[KIND]):
                n, mask = _u(info[COUNT]), _u(_region(sizes, MASKS + op[LEVEL]))
                nonlinear.apply_exact(op[KIND], buf, _u(k), _u(t), mask, n, numbers[i], cst)
            else:
                _nonlinear(geometry, sizes, b, op, numbers[i], cst, buf, prep1, base1, prep2, base2)
        else:
            n = _u(info[COUNT] + sizes[BACK])
            from_k, from_t = _slot(sizes, op[SOURCE], 0), _slot(sizes, op[SOURCE], 1)
            if op[CODE] == ADD:
                add(buf, _u(k), _u(from_k), n)
                add(buf, _u(t), _u(from_t), n)
            else:
                copy(buf, _u(k), _u(from_k), n)
                copy(buf, _u(t), _u(from_t), n)


@entry
def run(
    code: Any, numbers: Any, cst: Any, sizes: Any, geometry: Any, rows: Any, places: Any,
    scale: Any, pool: Any, chosen: Any, pairs: Any, prep1: Any, prep2: Any,
    store_in: Any, store_out: Any, sums: Any, columns: Any, record: Any, buf: Any,
) -> None:  # fmt: skip
    """Runs a stage on pairs of images.

    Args:
      code: instructions [ops, COLUMNS].
      numbers: their hyper-parameters [ops, NUMBERS].
      cst: constants of the dtype.
      sizes: sizes of the stage [SIZES].
      geometry: tables of levels, blocks, blocks at levels, rectangles at levels.
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
      record: whether to write into prep1 what nonlinearities need.
      buf: scratch of zeros.
    """
    size1, size2 = prep1.shape[1], prep2.shape[1]
    flat1, flat2 = prep1.reshape(-1), prep2.reshape(-1)
    count = len(pairs)
    step_in, step_out = store_in.shape[0] // (2 * count), store_out.shape[0] // (2 * count)
    for m in range(count):
        same = pairs[m, 2] == 1
        inputs = (store_in, m * step_in, places, scale)
        ends = (flat1, pairs[m, 0] * size1, flat2, pairs[m, 1] * size2)
        for i in range(len(chosen)):
            b = chosen[i]
            _fill_masks(geometry, sizes, b, *ends, buf)
            _layers(code, numbers, cst, geometry, sizes, b, same, record, inputs, ends, buf)
            if sizes[END] == POOL:
                _pool(
                    geometry, sizes, b, rows, pool, store_out, m * step_out,
                    columns[0], columns[1], buf,
                )  # fmt: skip
            else:
                n = _u(geometry[2][b, sizes[FINAL_LEVEL], COUNT])
                for tangent in range(2):
                    at = _u(_slot(sizes, sizes[FINAL], tangent))
                    sums[m, b, tangent] = total(buf, at, n)
