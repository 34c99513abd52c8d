"""The compiled interpreter for networks without spatial axes: rows of the kernel matrix.

A slice is a stretch of one row: the pairs of one sample of x1 with many of x2. Beside K and T it
carries the distances G, Z and H of `flat_marks.py`, where they are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.fused import nonlinear
from widelimit.fused.compiling import borrowed, entry, loop
from widelimit.fused.constants import ZERO
from widelimit.fused.flat_relu import relu, relu_with_area
from widelimit.fused.flat_smooth import careful, distances_after, record_flat
from widelimit.fused.instructions import (
    ADD,
    CAREFUL,
    CHUNK,
    CODE,
    COPY,
    GELU,
    HAS_T,
    INPUT,
    KIND,
    NEED_G,
    NEED_H,
    NEED_Z,
    NONLINEAR,
    PLACE,
    RELU,
    SOURCE,
    TARGET,
    WINDOW,
)
from widelimit.fused.stencils import add, copy

_U, _S = 0, 1  # temporaries; slots of K, T and G follow


@loop
def _at(index: Any) -> Any:
    return np.uint64(index * CHUNK)


@loop
def _slot(index: Any, part: Any) -> Any:
    """Returns the place of K (0), T (1), G (2), Z (3) or H (4) of a slot."""
    return np.uint64((2 + 5 * index + part) * CHUNK)


@loop
def _slots(index: Any) -> Any:
    """Returns the places of all parts of a slot."""
    return _slot(index, 0), _slot(index, 1), _slot(index, 2), _slot(index, 3), _slot(index, 4)


@loop
def _mask(buf: Any, n: Any) -> Any:
    """Returns the place of a slice of ones, behind the slots: nothing is masked here."""
    at = np.uint64(len(buf) - CHUNK)
    for i in range(n):
        buf[at + i] = buf.dtype.type(1)
    return at


@loop
def _dense(buf: Any, op: Any, n: Any, numbers: Any) -> None:
    """K' = w K + b, T' = w T + u K + v, G' = w G, Z'^2 = (w Z)^2 + 2 w b G, H' = w H + 2 b."""
    w, b, u, v = numbers[0], numbers[1], numbers[2], numbers[3]
    k, t, g, z, h = _slots(op[SOURCE])
    to_k, to_t, to_g, to_z, to_h = _slots(op[TARGET])
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
    if op[NEED_Z]:
        twice = w * (b + b)
        for i in range(n):
            area = w * buf[z + i]
            buf[to_z + i] = np.sqrt(area * area + twice * buf[g + i])
    if op[NEED_H]:
        for i in range(n):
            buf[to_h + i] = w * buf[h + i] + (b + b)
    if op[NEED_G]:
        for i in range(n):
            buf[to_g + i] = w * buf[g + i]


@loop
def _relu(
    buf: Any, op: Any, n: Any, numbers: Any, cst: Any, prep1: Any, i: Any, prep2: Any, j: Any
) -> None:
    place = op[PLACE]
    first, root, prep = prep1[place, i], prep1[place + 1, i], prep2.reshape(-1)
    firsts, roots = _planes(place, 0, prep2, j), _planes(place, 1, prep2, j)
    k, t, g, z, h = _slots(op[TARGET])
    if op[CAREFUL] or op[NEED_Z] or op[NEED_H]:
        relu_with_area(
            buf, k, t, g, z, h, n, numbers, cst, first, root, prep, firsts, roots
        )  # fmt: skip
    else:
        relu(buf, k, t, g, n, numbers, cst, first, root, prep, firsts, roots)


@loop
def _planes(place: Any, plane: Any, prep: Any, j: Any) -> Any:
    """Returns where recorded numbers of the samples from j on are."""
    return np.uint64((place + plane) * prep.shape[1]) + j


@loop
def _smooth(
    buf: Any, op: Any, n: Any, numbers: Any, cst: Any, prep1: Any, i: Any, prep2: Any, j: Any
) -> None:
    """Nonlinearities other than the ReLU family, and the distances after them."""
    kind, place, prep = op[KIND], op[PLACE], prep2.reshape(-1)
    own = prep1[place, i], prep1[place + 1, i], prep1[place + 2, i]
    at = _planes(place, 0, prep2, j), _planes(place, 1, prep2, j), _planes(place, 2, prep2, j)
    slots = _slots(op[TARGET])
    if op[CAREFUL]:
        careful(kind, buf, slots, n, numbers, cst, own, prep, at)
    else:
        _moderate(kind, buf, slots, n, numbers, cst, own, prep, at)
    rest = op[NEED_Z] or op[NEED_H]
    known = op[CAREFUL] and kind == GELU
    distances_after(known, buf, slots, n, cst, own, prep, at, op[NEED_G] or rest, rest)


@loop
def _moderate(
    kind: Any, buf: Any, slots: Any, n: Any, numbers: Any, cst: Any, own: Any, prep: Any, at: Any
) -> None:
    """Nonlinearities of variances that need no distances."""
    U, S = _at(_U), _at(_S)
    if nonlinear.adds(kind):
        for x in range(n):
            buf[U + x] = own[0] + prep[at[0] + x]
    else:
        for x in range(n):
            buf[U + x] = own[0] * prep[at[0] + x]
    if nonlinear.paired(kind):
        for x in range(n):
            buf[S + x] = own[1] * prep[at[1] + x]
    mask = _mask(buf, n)
    nonlinear.apply(kind, buf, slots[0], slots[1], U, S, mask, n, numbers, cst)


@loop
def _join(op: Any, n: Any, buf: Any, cst: Any, prep1: Any, i: Any, prep2: Any, j: Any) -> None:
    """Adds a slot to another, or copies it."""
    to, source = _slots(op[TARGET]), _slots(op[SOURCE])
    if op[CODE] == ADD and op[NEED_Z]:  # the area reads the old K
        place, prep = op[PLACE], prep2.reshape(-1)
        s1, r1 = prep1[place, i], prep1[place + 1, i]
        _add_areas(
            buf, to, source, n, cst, s1, r1, prep, _planes(place, 0, prep2, j),
            _planes(place, 1, prep2, j),
        )  # fmt: skip
    for part in range(5):
        wanted = part < 2 or (op[NEED_G] if part == 2 else op[NEED_H] if part == 4 else 0)
        if op[CODE] == COPY and part == 3:
            wanted = op[NEED_Z]
        if wanted:
            at, given = _slot(op[TARGET], part), _slot(op[SOURCE], part)
            if op[CODE] == ADD:
                add(buf, at, given, n)
            else:
                copy(buf, at, given, n)


@loop
def _add_areas(
    buf: Any, to: Any, source: Any, n: Any, cst: Any, s1: Any, r1: Any, prep: Any, second: Any,
    others: Any,
) -> None:  # fmt: skip
    """Writes the area of the sum of two slots; see `distances.distance_of_sum`."""
    zero = cst[ZERO]
    for i in range(n):
        s2, r2 = prep[second + i], prep[others + i]
        c, d, area, other = buf[to[0] + i], buf[source[0] + i], buf[to[3] + i], buf[source[3] + i]
        s, r = s1 * s2, r1 * r2
        one, two = s + abs(c), r + abs(d)
        near = area * (area / one) if one > zero else zero
        near2 = other * (other / two) if two > zero else zero
        mixed = near * r + abs(c) * near2 if c * d >= zero else s * r - c * d
        cross = s1 * r2 - s2 * r1
        square = area * area + other * other + cross * cross + (mixed + mixed)
        buf[to[3] + i] = np.sqrt(square)


@entry
def run_rows(
    code: Any, numbers: Any, cst: Any, products: Any, width: Any, squares1: Any, squares2: Any,
    own: Any, prep1: Any, prep2: Any, symmetric: Any, rows: Any, out: Any, buf: Any,
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
      out: K and T, each [n1, n2], or [n1, 0] where not wanted.
      buf: scratch.
    """
    code, numbers, cst, buf = borrowed((code, numbers, cst, buf))
    products, squares1, squares2, own = borrowed((products, squares1, squares2, own))
    prep1, prep2, out = borrowed((prep1, prep2, out))
    n2 = len(squares2)
    for i in range(rows[0], rows[1]):
        shift = rows[0] if symmetric else 0
        for j in range(i if symmetric else 0, n2, CHUNK):
            n = np.uint64(min(CHUNK, n2 - j))
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
        k, t = _slot(op[TARGET], 0), _slot(op[TARGET], 1)
        if op[CODE] == INPUT:
            _input(buf, op, products, np.uint64(column), width, square, squares, j, n)
            if same:
                buf[k] = own[i]
                _at_itself(buf, op)
        elif op[CODE] == WINDOW:
            _dense(buf, op, n, numbers[step])
        elif op[CODE] == NONLINEAR:
            exact = same and nonlinear.exact(op[KIND])
            kept_k, kept_t = buf[k], buf[t]
            if op[KIND] == RELU:
                _relu(buf, op, n, numbers[step], cst, prep1, i, prep2, j)
            else:
                _smooth(buf, op, n, numbers[step], cst, prep1, i, prep2, j)
            if exact:
                buf[k], buf[t] = kept_k, kept_t
                one = np.uint64(1)
                mask = _mask(buf, one)
                nonlinear.apply_exact(op[KIND], buf, k, t, mask, one, numbers[step], cst)
            if same:
                _at_itself(buf, op)
        else:
            _join(op, n, buf, cst, prep1, i, prep2, j)
    last = code[code.shape[0] - 1]
    for part in range(2):
        row, at = out[part][i], _slot(last[TARGET], part)
        if len(row) > 0:
            for x in range(n):
                row[j + x] = buf[at + x]


@loop
def _at_itself(buf: Any, op: Any) -> None:
    """Writes the distances of a sample to itself."""
    k, _, g, z, h = _slots(op[TARGET])
    zero = buf.dtype.type(0)
    buf[g], buf[z], buf[h] = zero, zero, buf[k] + buf[k]


@loop
def _input(
    buf: Any, op: Any, products: Any, column: Any, width: Any, square: Any, squares: Any, j: Any,
    n: Any,
) -> None:  # fmt: skip
    """Writes K and distances; those that are rounding errors of float64 are zero."""
    noise, inverse = 8 * 2.220446049250313e-16, 1.0 / width
    k, t, g, z, h = _slots(op[TARGET])
    zero = buf.dtype.type(0)
    for x in range(n):
        c, total = products[column + x] * inverse, square + squares[j + x]
        gap = 0.5 * total - c
        buf[k + x] = c
        buf[t + x] = zero
        buf[g + x] = gap if gap > noise * total else 0.0
    if op[NEED_Z]:
        for x in range(n):
            c, both = products[column + x] * inverse, square * squares[j + x]
            area = both - c * c
            buf[z + x] = np.sqrt(area if area > noise * both else 0.0)
    if op[NEED_H]:
        for x in range(n):
            c, total = products[column + x] * inverse, square + squares[j + x]
            span = 0.5 * total + c
            buf[h + x] = span if span > noise * total else 0.0


@loop
def _record(buf: Any, op: Any, numbers: Any, cst: Any, prep: Any, j: Any) -> None:
    """Records the numbers of a sample at a nonlinearity, and turns its variance into the next.

    The third one of smooth ones is that: of a careful Gelu, what it bends by.
    """
    one = np.uint64(1)
    kind, place = op[KIND], op[PLACE]
    k, t = _slot(op[TARGET], 0), _slot(op[TARGET], 1)
    q = buf[k]
    first, second = record_flat(kind, op[CAREFUL], q, numbers, cst)
    prep[place, j], prep[place + 1, j] = first, second
    if nonlinear.exact(kind):
        mask = _mask(buf, one)
        nonlinear.apply_exact(kind, buf, k, t, mask, one, numbers, cst)
    else:
        _smooth(buf, op, one, numbers, cst, prep, j, prep, j)
    if kind != RELU:
        prep[place + 2, j] = buf[k]
    if kind == GELU and op[CAREFUL]:
        _, _, bend = nonlinear.gelu_own(q, cst)
        prep[place + 2, j] = bend


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
    code, numbers, cst, own, prep, buf = borrowed((code, numbers, cst, own, prep, buf))
    for j in range(np.uint64(len(own))):
        one = np.uint64(1)
        for step in range(code.shape[0]):
            op = code[step]
            k, t = _slot(op[TARGET], 0), _slot(op[TARGET], 1)
            place = op[PLACE]
            if op[CODE] == INPUT:
                buf[k], buf[t] = own[j], cst[ZERO]
            elif op[CODE] == WINDOW:
                _dense(buf, op, one, numbers[step])
            elif op[CODE] == NONLINEAR:
                _record(buf, op, numbers[step], cst, prep, j)
            else:
                if op[CODE] == ADD:
                    prep[place, j] = np.sqrt(buf[k])
                    prep[place + 1, j] = np.sqrt(buf[_slot(op[SOURCE], 0)])
                _join(op, one, buf, cst, prep, j, prep, j)
            _at_itself(buf, op)
        own[j] = buf[_slot(code[code.shape[0] - 1][TARGET], 0)]


@entry
def mirror(values: Any, rows: Any) -> None:
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
