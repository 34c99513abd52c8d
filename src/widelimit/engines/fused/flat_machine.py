"""The compiled interpreter for networks without spatial axes: rows of the kernel matrix.

A slice is a stretch of one row: the pairs of one sample of x1 with many of x2. Beside K and T it
carries the gap G = (q1 + q2) / 2 - K, which the difference loses for near-duplicates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.compiling import call, entry, loop, pointer
from widelimit.engines.fused.constants import ONE, ZERO
from widelimit.engines.fused.instructions import (
    ADD,
    CHUNK,
    CODE,
    HAS_G,
    HAS_T,
    INPUT,
    LOOP,
    MULTIPLY,
    NONLINEAR,
    OWN,
    PLACE,
    PLANES,
    RECORD,
    SOURCE,
    TABLE,
    TARGET,
    WINDOW,
    WORK,
)
from widelimit.engines.fused.places import parameters
from widelimit.engines.fused.stencils import add, copy, multiply


@loop
def _slot(index: Any, part: Any) -> Any:
    """Returns the place of K (0), T (1) or G (2) of a slot."""
    return np.uint64((3 * index + part) * CHUNK)


@loop
def _dense(buf: Any, op: Any, n: Any, numbers: Any) -> None:
    """K' = w K + b, T' = w T + u K + v, G' = w G."""
    w, b, u, v = numbers[0], numbers[1], numbers[2], numbers[3]
    k, t, g = _slot(op[SOURCE], 0), _slot(op[SOURCE], 1), _slot(op[SOURCE], 2)
    to_k, to_t, to_g = _slot(op[TARGET], 0), _slot(op[TARGET], 1), _slot(op[TARGET], 2)
    if op[HAS_T]:
        for i in range(n):
            value = buf[k + i]
            buf[to_t + i] = w * buf[t + i] + u * value + v
            buf[to_k + i] = w * value + b
    else:
        for i in range(n):
            value = buf[k + i]
            buf[to_t + i] = u * value + v
            buf[to_k + i] = w * value + b
    for i in range(n):
        buf[to_g + i] = w * buf[g + i]


@loop
def _activate(
    buf: Any, op: Any, n: Any, numbers: Any, step: Any, cst: Any, prep1: Any, i: Any, prep2: Any,
    j: Any,
) -> None:  # fmt: skip
    """Writes K', T' and the gap of sample i of x1 with samples j to j + n - 1 of x2."""
    n1, n2, place = prep1.shape[1], prep2.shape[1], op[PLACE]
    k, t, g = _slot(op[TARGET], 0), _slot(op[TARGET], 1), _slot(op[TARGET], 2)
    call(
        op[LOOP],
        (
            pointer(buf, k), pointer(buf, t), pointer(buf, g), pointer(prep1, place * n1 + i),
            pointer(prep2, place * n2 + j), parameters(op[TABLE], step, numbers), pointer(cst, 0),
            pointer(buf, len(buf) - CHUNK - WORK), np.uint64(n1), np.uint64(n2),
            np.uint64(op[HAS_G]), n,
        ),
    )  # fmt: skip


@loop
def _activate_own(buf: Any, op: Any, numbers: Any, step: Any, cst: Any) -> None:
    """Writes K' and T' of a sample with itself; its gap is zero. Nothing is masked."""
    k, t, g = _slot(op[TARGET], 0), _slot(op[TARGET], 1), _slot(op[TARGET], 2)
    mask = np.uint64(len(buf) - CHUNK)  # behind the slots
    buf[mask] = cst[ONE]
    p = parameters(op[TABLE], step, numbers)
    one = np.uint64(1)
    call(op[OWN], (pointer(buf, k), pointer(buf, t), pointer(buf, mask), p, pointer(cst, 0), one))
    buf[g] = cst[ZERO]


@loop
def _join(op: Any, n: Any, buf: Any) -> None:
    """Adds a slot to another, multiplies them, or copies it."""
    if op[CODE] == MULTIPLY:
        k, t = _slot(op[SOURCE], 0), _slot(op[SOURCE], 1)
        multiply(buf, _slot(op[TARGET], 0), _slot(op[TARGET], 1), k, t, n)
        return
    for part in range(3):
        to, source = _slot(op[TARGET], part), _slot(op[SOURCE], part)
        if op[CODE] == ADD:
            add(buf, to, source, n)
        else:
            copy(buf, to, source, n)


@entry
def run_rows(
    code: Any, numbers: Any, cst: Any, products: Any, width: Any, squares1: Any, squares2: Any,
    own: Any, prep1: Any, prep2: Any, symmetric: Any, rows: Any, chunk: Any, out: Any, buf: Any,
) -> None:  # fmt: skip
    """Writes rows of K and T.

    Args:
      code: instructions [ops, COLUMNS].
      numbers: their hyper-parameters [ops, NUMBERS].
      cst: constants of the dtype.
      products: products of inputs in float64; row 0 is sample `low` of x1, column 0
        sample 0 of x2, or sample `low` if symmetric.
      width: number of features.
      squares1: mean squares of the samples of x1, float64.
      squares2: those of x2.
      own: mean squares in the working dtype.
      prep1: recorded numbers of x1 [places, n1].
      prep2: those of x2.
      symmetric: whether x2 is x1: entries from the diagonal on are written.
      rows: [low, high], samples of x1 to do.
      chunk: samples of x2 to do at a time, CHUNK or fewer.
      out: K and T, each [n1, n2], or [n1, 0] where not wanted.
      buf: scratch.
    """
    n2, shift = len(squares2), rows[0] if symmetric else 0
    for start in range(shift, n2, chunk):  # what is recorded of these samples stays in cache
        for i in range(rows[0], min(rows[1], start + chunk) if symmetric else rows[1]):
            j = max(start, i) if symmetric else start
            n = np.uint64(min(start + chunk, n2) - j)
            same = symmetric and i == j
            _row(
                code, numbers, cst, products[i - rows[0]], j - shift, width, squares1[i], squares2,
                own, prep1, prep2, same, i, np.uint64(j), n, out, buf,
            )  # fmt: skip


@loop
def _row(
    code: Any, numbers: Any, cst: Any, products: Any, column: Any, width: Any, square: Any,
    squares: Any, own: Any, prep1: Any, prep2: Any, same: Any, i: Any, j: Any, n: Any, out: Any,
    buf: Any,
) -> None:  # fmt: skip
    """Runs all instructions on one slice. If `same`, its first entry is a sample with itself."""
    for step in range(code.shape[0]):
        op = code[step]
        k, t, g = _slot(op[TARGET], 0), _slot(op[TARGET], 1), _slot(op[TARGET], 2)
        if op[CODE] == INPUT:
            fill_input(buf, k, t, g, products, np.uint64(column), width, square, squares, j, n)
            if same:
                buf[k], buf[g] = own[i], cst[ZERO]
        elif op[CODE] == WINDOW:
            _dense(buf, op, n, numbers[step])
        elif op[CODE] == NONLINEAR:
            kept_k, kept_t = buf[k], buf[t]
            _activate(buf, op, n, numbers, step, cst, prep1, i, prep2, j)
            if same and op[OWN] != 0:
                buf[k], buf[t] = kept_k, kept_t
                _activate_own(buf, op, numbers, step, cst)
        else:
            _join(op, n, buf)
    last = code[code.shape[0] - 1]
    for part in range(2):
        row, at = out[part][i], _slot(last[TARGET], part)
        if len(row) > 0:
            for x in range(n):
                row[j + x] = buf[at + x]


@loop
def fill_input(
    buf: Any, k: Any, t: Any, g: Any, products: Any, column: Any, width: Any, square: Any,
    squares: Any, j: Any, n: Any,
) -> None:  # fmt: skip
    """Writes K and the gap; a gap that is a rounding error of float64 is zero."""
    noise, inverse = 8 * 2.220446049250313e-16, 1.0 / width
    zero = buf.dtype.type(0)
    for x in range(n):
        c, total = products[column + x] * inverse, square + squares[j + x]
        gap = 0.5 * total - c
        buf[k + x] = c
        buf[t + x] = zero
        buf[g + x] = gap if gap > noise * total else 0.0


@entry
def run_own(code: Any, numbers: Any, cst: Any, own: Any, prep: Any, buf: Any) -> None:
    """Records what nonlinearities need of every sample; turns `own` into variances of the output.

    Args:
      code: instructions [ops, COLUMNS].
      numbers: their hyper-parameters [ops, NUMBERS].
      cst: constants of the dtype.
      own: mean squares of the samples [n].
      prep: recorded numbers [places, n].
      buf: scratch.
    """
    for j in range(np.uint64(len(own))):
        one = np.uint64(1)
        for step in range(code.shape[0]):
            op = code[step]
            k, t, g = _slot(op[TARGET], 0), _slot(op[TARGET], 1), _slot(op[TARGET], 2)
            if op[CODE] == INPUT:
                buf[k], buf[t], buf[g] = own[j], cst[ZERO], cst[ZERO]
            elif op[CODE] == WINDOW:
                _dense(buf, op, one, numbers[step])
            elif op[CODE] == NONLINEAR:
                at = pointer(prep, op[PLACE] * prep.shape[1] + j)
                p = parameters(op[TABLE], step, numbers)
                plane = np.uint64(prep.shape[1] if op[PLANES] > 1 else 0)
                call(op[RECORD], (pointer(buf, k), at, p, pointer(cst, 0), plane, one))
                if op[OWN] != 0:
                    _activate_own(buf, op, numbers, step, cst)
                else:
                    _activate(buf, op, one, numbers, step, cst, prep, j, prep, j)
            else:
                _join(op, one, buf)
        own[j] = buf[_slot(code[code.shape[0] - 1][TARGET], 0)]


@entry
def mirror_rows(values: Any, rows: Any) -> None:
    """Copies the upper triangle of a matrix to the lower one, in the rows low to high - 1."""
    low: Any = np.uint64(rows[0])
    high: Any = np.uint64(rows[1])
    tile: Any = np.uint64(64)
    # Rows of many matrices lie at equal places in the cache, so that columns are read from a copy.
    copy = np.empty((tile, tile), values.dtype)
    for start in range(np.uint64(0), high, tile):
        for top in range(low, high, tile):
            end, width = min(top + tile, high), min(tile, high - start)
            if end <= start:
                continue
            for j in range(width):
                for i in range(end - top):
                    copy[i, j] = values[start + j, top + i]
            for i in range(max(top, start), end):
                for j in range(min(width, i - start)):
                    values[i, start + j] = copy[i - top, j]
