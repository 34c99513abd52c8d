"""The compiled interpreter for networks without spatial axes: rows of the kernel matrix.

A slice is a stretch of one row: the pairs of one sample of x1 with many of x2. Beside K and T it
carries the gap G = (q1 + q2) / 2 - K, which the difference loses for near-duplicates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused import nonlinear
from widelimit.engines.fused.compiling import entry, loop
from widelimit.engines.fused.constants import HALF, ONE, PI, ZERO
from widelimit.engines.fused.formulas import angle_ratio
from widelimit.engines.fused.instructions import (
    ADD,
    CHUNK,
    CODE,
    HAS_G,
    HAS_T,
    INPUT,
    KIND,
    NONLINEAR,
    PLACE,
    RELU,
    SOURCE,
    TARGET,
    WINDOW,
)
from widelimit.engines.fused.stencils import add, copy

_U, _S = 0, 1  # temporaries; slots of K, T and G follow


@loop
def _at(index: Any) -> Any:
    return np.uint64(index * CHUNK)


@loop
def _slot(index: Any, part: Any) -> Any:
    """Returns the place of K (0), T (1) or G (2) of a slot."""
    return np.uint64((2 + 3 * index + part) * CHUNK)


@loop
def _mask(buf: Any, n: Any) -> Any:
    """Returns the place of a slice of ones, behind the slots: nothing is masked here."""
    at = np.uint64(len(buf) - CHUNK)
    for i in range(n):
        buf[at + i] = buf.dtype.type(1)
    return at


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
def _relu(
    buf: Any, op: Any, n: Any, numbers: Any, cst: Any, first: Any, root: Any, prep: Any,
    firsts: Any, roots: Any,
) -> None:  # fmt: skip
    """The dual of a min(x, 0) + b max(x, 0), from the gap where the two inputs are near.

    With s = sqrt(q), 1 - rho = (G - (s1 - s2)^2 / 2) / (s1 s2), which cancels where G is large.
    """
    one, zero, half, pi = cst[ONE], cst[ZERO], cst[HALF], cst[PI]
    slope, kink = numbers[0], numbers[1]
    k, t, g = _slot(op[TARGET], 0), _slot(op[TARGET], 1), _slot(op[TARGET], 2)
    for i in range(n):
        other = prep[roots + i]
        u, s, apart = first * prep[firsts + i], root * other, root - other
        c, gap = buf[k + i], buf[g + i]
        r = c * u
        away = (gap - half * apart * apart) * u
        away = away if gap * u < one else one - r
        zeros = (u > zero) & (s <= zero)  # two zero inputs have the angle 0
        r, away = one if zeros else r, zero if zeros else away
        near = r > zero
        away = away if near else one + r
        away = away if away > zero else zero
        a = one - away
        sine = np.sqrt(away * (one + a))
        theta = sine * angle_ratio(a, cst)
        theta = theta if near else pi - theta
        rho = a if near else -a
        arc = s * kink * (sine - theta * rho)
        buf[t + i] *= slope - kink * theta
        buf[k + i] = slope * c + arc
        buf[g + i] = slope * gap - arc


@loop
def _difference(buf: Any, op: Any, n: Any, root: Any, prep: Any, roots: Any) -> None:
    """Writes the gap as the difference that it stands for."""
    k, g = _slot(op[TARGET], 0), _slot(op[TARGET], 2)
    half = buf.dtype.type(0.5)
    for i in range(n):
        other = prep[roots + i]
        buf[g + i] = half * (root * root + other * other) - buf[k + i]


@loop
def _smooth(
    buf: Any, op: Any, n: Any, numbers: Any, cst: Any, prep1: Any, i: Any, prep2: Any, j: Any
) -> None:
    """Nonlinearities that need no gap."""
    kind, place = op[KIND], op[PLACE]
    U, S = _at(_U), _at(_S)
    first = prep1[place, i]
    row = prep2[place]
    if nonlinear.adds(kind):
        for x in range(n):
            buf[U + x] = first + row[j + x]
    else:
        for x in range(n):
            buf[U + x] = first * row[j + x]
    if nonlinear.paired(kind):
        second, seconds = prep1[place + 1, i], prep2[place + 1]
        for x in range(n):
            buf[S + x] = second * seconds[j + x]
    mask = _mask(buf, n)
    k, t = _slot(op[TARGET], 0), _slot(op[TARGET], 1)
    nonlinear.apply(kind, buf, k, t, U, S, mask, n, numbers, cst)


@loop
def _join(op: Any, n: Any, buf: Any) -> None:
    """Adds a slot to another, or copies it."""
    for part in range(3):
        to, source = _slot(op[TARGET], part), _slot(op[SOURCE], part)
        if op[CODE] == ADD:
            add(buf, to, source, n)
        else:
            copy(buf, to, source, n)


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
        k, t, g = _slot(op[TARGET], 0), _slot(op[TARGET], 1), _slot(op[TARGET], 2)
        if op[CODE] == INPUT:
            _input(buf, k, t, g, products, np.uint64(column), width, square, squares, j, n)
            if same:
                buf[k], buf[g] = own[i], cst[ZERO]
        elif op[CODE] == WINDOW:
            _dense(buf, op, n, numbers[step])
        elif op[CODE] == NONLINEAR:
            exact = same and nonlinear.exact(op[KIND])
            kept_k, kept_t = buf[k], buf[t]
            if op[KIND] == RELU:
                place = op[PLACE]
                width = prep2.shape[1]
                firsts, roots = np.uint64(place * width) + j, np.uint64((place + 1) * width) + j
                if not op[HAS_G]:
                    _difference(buf, op, n, prep1[place + 1, i], prep2.reshape(-1), roots)
                _relu(
                    buf, op, n, numbers[step], cst, prep1[place, i], prep1[place + 1, i],
                    prep2.reshape(-1), firsts, roots,
                )  # fmt: skip
            else:
                _smooth(buf, op, n, numbers[step], cst, prep1, i, prep2, j)
            if exact:
                buf[k], buf[t], buf[g] = kept_k, kept_t, cst[ZERO]
                one = np.uint64(1)
                mask = _mask(buf, one)
                nonlinear.apply_exact(op[KIND], buf, k, t, mask, one, numbers[step], cst)
        else:
            _join(op, n, buf)
    last = code[code.shape[0] - 1]
    for part in range(2):
        row, at = out[part][i], _slot(last[TARGET], part)
        if len(row) > 0:
            for x in range(n):
                row[j + x] = buf[at + x]


@loop
def _input(
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
                first, second = nonlinear.record(op[KIND], buf[k], numbers[step], cst)
                prep[op[PLACE], j] = first
                if nonlinear.paired(op[KIND]):
                    prep[op[PLACE] + 1, j] = second
                if nonlinear.exact(op[KIND]):
                    mask = _mask(buf, one)
                    nonlinear.apply_exact(op[KIND], buf, k, t, mask, one, numbers[step], cst)
                else:
                    _smooth(buf, op, one, numbers[step], cst, prep, j, prep, j)
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
