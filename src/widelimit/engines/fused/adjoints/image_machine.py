"""The compiled interpreter that pulls cotangents of a stage back, block by block.

A block goes forwards through all layers, of which each keeps its K and T, and then backwards.
Cotangents are zero outside of images, as covariances are.
"""

from __future__ import annotations

from typing import Any

from widelimit.engines.fused.adjoints.order import HOME, JOINED, LAST_JOINED, LAST_READ, READ
from widelimit.engines.fused.adjoints.pools import unpool_columns, unpool_rows
from widelimit.engines.fused.adjoints.sums import pull_product, put
from widelimit.engines.fused.adjoints.windows import pull_window
from widelimit.engines.fused.compiling import borrowed, call, entry, loop, piece, pointer
from widelimit.engines.fused.ends import fill_masks, pack_ends, stretch
from widelimit.engines.fused.instructions import (
    ADD,
    BACK,
    CHANNELS,
    CODE,
    COLUMN,
    COUNT,
    D_X,
    D_Y,
    END,
    FINAL_LEVEL,
    FIRST_ROW,
    HEIGHT,
    INPUT,
    LEVEL,
    LOAD,
    MASKS,
    MULTIPLY,
    NONLINEAR,
    P_X,
    P_Y,
    PITCH,
    PLACE,
    POOL,
    RECTS_FROM,
    RECTS_TO,
    ROW,
    ROW_K,
    ROW_T,
    SIZE_Y,
    SUM_K,
    SUM_T,
    TABLE,
    WIDTH,
    WINDOW,
    ZERO_BLOCK,
)
from widelimit.engines.fused.machine import run_layers
from widelimit.engines.fused.places import parameters, region, slot, u, whole
from widelimit.engines.fused.stencils import clear


@loop
def _spread(
    geometry: Any, b: Any, level: Any, end: Any, buf: Any, at: Any, bars: Any, to: Any
) -> None:
    """Adds numbers of pairs of positions to those of the positions at one end."""
    levels, blocks, block_levels, rect_levels = geometry
    row, width, pitch = (
        block_levels[b, level, ROW],
        block_levels[b, level, WIDTH],
        levels[level, PITCH],
    )
    left = block_levels[b, level, P_X] + end * block_levels[b, level, D_X]
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        top = rect_levels[r, level, P_Y] + end * rect_levels[r, level, D_Y]
        source, target = u(at + rect_levels[r, level, FIRST_ROW] * row), u(to + top * pitch + left)
        for _ in range(rect_levels[r, level, HEIGHT]):
            for x in range(u(width)):
                bars[target + x] += buf[source + x]
            source, target = source + u(row), target + u(pitch)


@loop
def _gather(geometry: Any, b: Any, level: Any, bars: Any, source: Any, buf: Any, to: Any) -> None:
    """Adds numbers of the positions of an image to a slice of offset 0."""
    levels, blocks, block_levels, rect_levels = geometry
    row, width, r = (
        block_levels[b, level, ROW],
        block_levels[b, level, WIDTH],
        blocks[b, RECTS_FROM],
    )
    for y in range(rect_levels[r, level, HEIGHT]):
        target = u(to + (rect_levels[r, level, FIRST_ROW] + y) * row)
        at = u(source + y * levels[level, PITCH])
        for x in range(u(width)):
            buf[target + x] += bars[at + x]


@piece
def _pull_inputs(
    geometry: Any, sizes: Any, b: Any, k_bar: Any, images: Any, bars: Any, buf: Any
) -> None:
    """Adds the cotangents of the pixels of both images."""
    levels, blocks, block_levels, rect_levels = geometry
    row, width, pitch = block_levels[b, 0, ROW], block_levels[b, 0, WIDTH], levels[0, PITCH]
    left, d, plane = block_levels[b, 0, P_X], block_levels[b, 0, D_X], levels[0, SIZE_Y] * pitch
    inverse = 1.0 / sizes[CHANNELS]
    prep1, base1, prep2, base2, _ = images
    bars1, to1, bars2, to2 = bars
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        for y in range(rect_levels[r, 0, HEIGHT]):
            top = rect_levels[r, 0, P_Y] + y
            source = u(k_bar + (rect_levels[r, 0, FIRST_ROW] + y) * row)
            one, two = top * pitch + left, (top + rect_levels[r, 0, D_Y]) * pitch + left + d
            for c in range(sizes[CHANNELS]):
                from1, from2 = u(base1 + one + c * plane), u(base2 + two + c * plane)
                at1, at2 = u(to1 + one + c * plane), u(to2 + two + c * plane)
                for x in range(u(width)):
                    bars1[at1 + x] += inverse * buf[source + x] * prep2[from2 + x]
                for x in range(u(width)):
                    bars2[at2 + x] += inverse * buf[source + x] * prep1[from1 + x]


@piece
def _pull_load(
    geometry: Any, b: Any, k_bar: Any, t_bar: Any, inputs: Any, store_bar: Any, buf: Any
) -> None:
    """Adds the cotangents of what a slice has loaded."""
    _, blocks, block_levels, rect_levels = geometry
    _, base, places, factor = inputs
    row, width, half = block_levels[b, 0, ROW], block_levels[b, 0, WIDTH], store_bar.shape[0] // 2
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        for y in range(rect_levels[r, 0, HEIGHT]):
            at = (rect_levels[r, 0, FIRST_ROW] + y) * row
            to_k, to_t = u(base + places[r] + y * width), u(half + base + places[r] + y * width)
            k, t = u(k_bar + at), u(t_bar + at)
            for x in range(u(width)):
                store_bar[to_k + x] += factor * buf[k + x]
                store_bar[to_t + x] += factor * buf[t + x]


@piece
def _pull_nonlinear(
    code: Any, reads: Any, pulls: Any, places: Any, numbers: Any, cst: Any, geometry: Any,
    sizes: Any, b: Any, i: Any, own: Any, ends: Any, bars: Any, buf: Any,
) -> None:  # fmt: skip
    """Passes the cotangents of a nonlinearity to K, T and the variances at both ends."""
    blocks, level, source, anew = geometry[1], code[i, LEVEL], reads[i, READ], reads[i, LAST_READ]
    k, t = slot(sizes, source, 0), slot(sizes, source, 1)
    k_bar, t_bar = slot(sizes, reads[i, HOME], 0), slot(sizes, reads[i, HOME], 1)
    home_k, home_t = slot(sizes, reads[source, HOME], 0), slot(sizes, reads[source, HOME], 1)
    to_k, to_t = (home_k, home_t) if anew else (region(sizes, ROW_K), region(sizes, ROW_T))
    q1, q2 = region(sizes, SUM_K), region(sizes, SUM_T)
    mask, n = region(sizes, MASKS + level), geometry[2][b, level, COUNT] + sizes[BACK]
    clear(buf, u(to_k), u(n))
    clear(buf, u(to_t), u(n))
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        start, one, two, plane, size = stretch(geometry, b, r, level, code[i, PLACE], ends)
        call(
            pulls[i],
            (
                pointer(buf, k + start), pointer(buf, t + start), pointer(buf, mask + start),
                pointer(buf, k_bar + start), pointer(buf, t_bar + start), pointer(ends[0], one),
                pointer(ends[2], two), parameters(code[i, TABLE], i, numbers), pointer(cst, 0),
                pointer(buf, to_k + start), pointer(buf, to_t + start), pointer(buf, q1 + start),
                pointer(buf, q2 + start), plane, whole(size),
            ),
        )  # fmt: skip
    if not anew:
        put(buf, u(home_k), u(to_k), 0, u(n))
        put(buf, u(home_t), u(to_t), 0, u(n))
    bars1, base1, bars2, base2 = bars
    _spread(geometry, b, level, 0, buf, q1, bars1, base1 + places[i])
    _spread(geometry, b, level, 1, buf, q2, bars2, base2 + places[i])
    if own and blocks[b, ZERO_BLOCK] == 1:
        _gather(geometry, b, level, bars1, base1 + places[i], buf, home_k)


@piece
def _pull_join(code: Any, reads: Any, sizes: Any, i: Any, n: Any, buf: Any) -> None:
    """Passes the cotangents of a sum, a product or a copy to what it reads."""
    source, first = reads[i, READ], reads[i, JOINED]
    k_bar, t_bar = u(slot(sizes, reads[i, HOME], 0)), u(slot(sizes, reads[i, HOME], 1))
    home = reads[source, HOME]
    to_k, to_t, anew = u(slot(sizes, home, 0)), u(slot(sizes, home, 1)), reads[i, LAST_READ]
    if code[i, CODE] == MULTIPLY:
        k, t = u(slot(sizes, first, 0)), u(slot(sizes, first, 1))
        pull_product(buf, to_k, to_t, k, t, k_bar, t_bar, anew, n)
        k, t, home = u(slot(sizes, source, 0)), u(slot(sizes, source, 1)), reads[first, HOME]
        to_k, to_t, anew = u(slot(sizes, home, 0)), u(slot(sizes, home, 1)), reads[i, LAST_JOINED]
        pull_product(buf, to_k, to_t, k, t, k_bar, t_bar, anew, n)
        return
    put(buf, to_k, k_bar, anew, n)
    put(buf, to_t, t_bar, anew, n)
    if code[i, CODE] == ADD:
        home, anew = reads[first, HOME], reads[i, LAST_JOINED]
        put(buf, u(slot(sizes, home, 0)), k_bar, anew, n)
        put(buf, u(slot(sizes, home, 1)), t_bar, anew, n)


@piece
def _begin(
    geometry: Any, sizes: Any, b: Any, rows: Any, pool: Any, middle: Any, given: Any, home: Any,
    buf: Any,
) -> None:  # fmt: skip
    """Writes the cotangents of the last values of a stage."""
    level = sizes[FINAL_LEVEL]
    n, mask = u(geometry[2][b, level, COUNT]), u(region(sizes, MASKS + level))
    k_bar, t_bar = u(slot(sizes, home, 0)), u(slot(sizes, home, 1))
    clear(buf, k_bar, n + u(sizes[BACK]))
    clear(buf, t_bar, n + u(sizes[BACK]))
    if sizes[END] == POOL:
        unpool_rows(geometry, sizes, b, rows, pool, middle, int(k_bar), int(t_bar), buf)
        return
    k, t = buf.dtype.type(given[0]), buf.dtype.type(given[1])
    for x in range(n):
        buf[k_bar + x] = k * buf[mask + x]
        buf[t_bar + x] = t * buf[mask + x]


@piece
def _forward(
    code: Any, numbers: Any, cst: Any, geometry: Any, sizes: Any, b: Any, same: Any, inputs: Any,
    ends: Any, masks: Any, buf: Any,
) -> None:  # fmt: skip
    """Runs all layers of a stage on one block of one pair, each in a slot of its own."""
    fill_masks(geometry, sizes, b, masks, buf)
    run_layers(code, numbers, cst, geometry, sizes, b, same, False, inputs, ends, buf)


@entry
def pull_stage(
    forward: Any, forward_numbers: Any, code: Any, numbers: Any, reads: Any, pulls: Any,
    bar_places: Any, cst: Any, sizes: Any, geometry: Any, masks: Any, rows: Any, places: Any,
    scale: Any, pool: Any, pairs: Any, given: Any, prep1: Any, prep2: Any, store_in: Any,
    store_in_bar: Any, store_out_bar: Any, bars1: Any, bars2: Any, numbers_bar: Any, own: Any,
    inputs: Any, buf: Any, packed: Any, middle: Any,
) -> None:  # fmt: skip
    """Pulls cotangents back through a stage, of pairs of images.

    Args:
      forward: instructions that write every value into a slot of its own.
      forward_numbers: their hyper-parameters.
      code: the instructions of the stage [ops, COLUMNS].
      numbers: their hyper-parameters [ops, NUMBERS].
      reads: `order.values_read` of them.
      pulls: addresses of the loops of nonlinearities [ops].
      bar_places: where cotangents of the variances of an image are [ops].
      cst: constants of the dtype.
      sizes: sizes of the stage [SIZES].
      geometry: tables, as for `machine.run_stages`.
      masks: likewise, and all up to `pool`.
      rows: likewise.
      places: likewise.
      scale: likewise.
      pool: likewise.
      pairs: [m, 3], image of x1, image of x2, whether they are the same.
      given: cotangents of the sums of K and T of pairs [m, 2]; not read where the stage ends in a
        pool.
      prep1: recorded numbers of the images of x1 [n1, size].
      prep2: those of x2.
      store_in: pooled covariances of the stage before.
      store_in_bar: adds to their cotangents.
      store_out_bar: cotangents of those of this stage.
      bars1: adds to the cotangents of pixels and variances of the images of x1 [n1, room].
      bars2: of x2.
      numbers_bar: adds to those of numbers [ops, NUMBERS].
      own: whether pairs are images with themselves, whose variances are what is recorded.
      inputs: whether cotangents of pixels are wanted.
      buf: scratch of zeros.
      packed: room for the numbers of two images.
      middle: zeros, room for the pooled rows of one horizontal offset.
    """
    forward, forward_numbers, code, numbers = borrowed((forward, forward_numbers, code, numbers))
    reads, pulls, bar_places, cst, sizes = borrowed((reads, pulls, bar_places, cst, sizes))
    geometry, masks, rows = borrowed((geometry, masks, rows))
    places, pool, pairs, given = borrowed((places, pool, pairs, given))
    store_in, store_in_bar, store_out_bar = borrowed((store_in, store_in_bar, store_out_bar))
    numbers_bar, buf, packed, middle = borrowed((numbers_bar, buf, packed, middle))
    size1, size2, room1, room2 = prep1.shape[1], prep2.shape[1], bars1.shape[1], bars2.shape[1]
    flat1, flat2 = borrowed((prep1.reshape(-1), prep2.reshape(-1)))
    to1, to2 = borrowed((bars1.reshape(-1), bars2.reshape(-1)))
    count, last = len(pairs), code.shape[0] - 1
    step_in, step_out = store_in.shape[0] // (2 * count), store_out_bar.shape[0] // (2 * count)
    for m in range(count):
        same = pairs[m, 2] == 1
        loaded = (store_in, m * step_in, places, scale)
        images = (flat1, pairs[m, 0] * size1, flat2, pairs[m, 1] * size2, 1)
        bars = (to1, pairs[m, 0] * room1, to2, pairs[m, 1] * room2)
        ends, column = images, -1
        # The block of offset 0 is the first one: its cotangents of variances come last.
        for b in range(len(geometry[1]) - 1, -1, -1):
            if geometry[1][b, COLUMN] != column or geometry[1][b, ZERO_BLOCK] == 1:
                ends = pack_ends(code, geometry, sizes, b, images, packed)
                column = geometry[1][b, COLUMN]
                if sizes[END] == POOL:
                    width = geometry[2][b, sizes[FINAL_LEVEL], WIDTH]
                    unpool_columns(sizes, column, width, pool, middle, store_out_bar, m * step_out)
            _forward(
                forward, forward_numbers, cst, geometry, sizes, b, same, loaded, ends, masks, buf
            )
            _begin(geometry, sizes, b, rows, pool, middle, given[m], reads[last, HOME], buf)
            for i in range(last, -1, -1):
                k_bar, t_bar = slot(sizes, reads[i, HOME], 0), slot(sizes, reads[i, HOME], 1)
                if code[i, CODE] == INPUT:
                    if inputs:
                        _pull_inputs(geometry, sizes, b, k_bar, images, bars, buf)
                elif code[i, CODE] == LOAD:
                    _pull_load(geometry, b, k_bar, t_bar, loaded, store_in_bar, buf)
                elif code[i, CODE] == WINDOW:
                    pull_window(geometry, sizes, b, code, reads, i, buf, numbers, numbers_bar)
                elif code[i, CODE] == NONLINEAR:
                    _pull_nonlinear(
                        code, reads, pulls, bar_places, numbers, cst, geometry, sizes, b, i, own,
                        ends, bars, buf,
                    )  # fmt: skip
                else:
                    n = u(geometry[2][b, code[i, LEVEL], COUNT] + sizes[BACK])
                    _pull_join(code, reads, sizes, i, n, buf)
