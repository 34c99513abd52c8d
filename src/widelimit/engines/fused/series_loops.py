"""Loops of activations given by their Mehler series: see `activations.series`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from widelimit.activations.series import TAIL
from widelimit.engines.fused.activations.series import (
    COLUMN_MEAN,
    COUNT,
    DEGREE,
    FIRST_TERM,
    FLOOR,
    INVERSE,
    LIFT,
    LOWEST,
    MEAN,
    NODES,
    PANELS,
    SLOPE_EVEN,
    SLOPE_ODD,
    SLOPE_TAIL,
    SQUARE_EVEN,
    SQUARE_ODD,
    STEP,
    TABLE_HEAD,
    TERMS,
    UNROLLED,
    VALUE_TAIL,
    WIDTH,
)
from widelimit.engines.fused.compiling import loop, moved, read, write
from widelimit.engines.fused.formulas import select
from widelimit.engines.fused.instructions import HEAD

_PIECE = 128  # entries whose sums stay in the first cache
_NOISE = 1e-12  # share of a mean square that counts as rounding


@loop
def _locate(table: Any, q: Any) -> Any:
    """Returns the panel of a variance, and where it is there, from -1 to 1; -1 if there is none."""
    place = (np.log2(q) - table[LOWEST]) / table[WIDTH]
    panel = np.int64(min(max(np.floor(place), 0.0), table[PANELS] - 1))
    inside = place <= table[PANELS]  # False for NaN
    return panel if inside else np.int64(-1), 2 * (place - panel) - 1


@loop
def _column(table: Any, panel: Any, t: Any, column: Any) -> Any:
    """Returns a column of a panel at t, by Clenshaw's recurrence."""
    columns = np.int64(FIRST_TERM + table[TERMS])
    at = TABLE_HEAD + panel * (1 + NODES * columns) + 1 + column
    a, b = 0.0, 0.0
    for j in range(NODES - 1, 0, -1):
        a, b = table[at + j * columns] + 2 * t * a - b, a
    return table[at] + t * a - b


@loop
def _excess(square: Any, taken: Any, scale: Any) -> Any:
    """Returns what is left of a mean square, 0 if only rounding."""
    rest = square - taken
    return rest if rest > _NOISE * scale else 0.0


@loop
def _write_tail(
    to: Any, i: Any, plane: Any, part: Any, square: Any, slope: Any, q: Any, near: Any, far: Any
) -> None:
    """Records the coefficients of the two degrees that stand for a tail: see `series._tail`."""
    wanted = (q * slope - near * square) / (far - near)
    far_square = min(max(wanted, 0.0), square)
    near_square = square - far_square
    near_slope = min(near * near_square / q, slope)
    to[(VALUE_TAIL + part) * plane + i] = np.sqrt(near_square)
    to[(VALUE_TAIL + part + 1) * plane + i] = np.sqrt(far_square)
    to[(SLOPE_TAIL + part) * plane + i] = np.sqrt(near_slope)
    to[(SLOPE_TAIL + part + 1) * plane + i] = np.sqrt(slope - near_slope)


def _record_loop(name: str) -> Callable[..., None]:
    """Returns a loop that records n variances."""

    def record(variances: Any, to: Any, p: Any, cst: Any, plane: Any, n: Any) -> None:
        terms, step, degree = np.int64(p[TERMS]), np.int64(p[STEP]), p[DEGREE]
        plane = np.int64(plane)
        for i in range(np.int64(n)):
            q = variances[i]
            floored = max(q, p[FLOOR])
            panel, t = _locate(p, floored)
            if panel < 0:
                to[i] = 0
                to[INVERSE * plane + i] = np.nan
                continue
            count = np.int64(p[TABLE_HEAD + panel * (1 + NODES * (FIRST_TERM + terms))])
            root = np.sqrt(floored)
            mean = _column(p, panel, t, COLUMN_MEAN)
            to[COUNT * plane + i] = count
            to[INVERSE * plane + i] = 1 / root
            to[LIFT * plane + i] = np.sqrt(floored - q)
            to[MEAN * plane + i] = mean
            odd, even, odd_slope, even_slope = 0.0, 0.0, 0.0, 0.0
            for l in range(count):
                value = _column(p, panel, t, FIRST_TERM + l)
                to[(HEAD + terms - 1 - l) * plane + i] = value
                square = value * value
                if step == 2 or l % 2 == 0:  # an odd degree of f, an even one of f'
                    odd += floored * square
                    even_slope += (step * l + 1) * square
                else:
                    even += floored * square
                    odd_slope += (step * l + 1) * square
            if count < terms:
                continue
            squares = _column(p, panel, t, SQUARE_ODD), _column(p, panel, t, SQUARE_EVEN)
            slopes = _column(p, panel, t, SLOPE_EVEN), _column(p, panel, t, SLOPE_ODD)
            scale, slope_scale = squares[0] + squares[1], slopes[0] + slopes[1]
            _write_tail(
                to, i, plane, 0, _excess(squares[0], odd, scale),
                _excess(slopes[0], even_slope, slope_scale), floored, degree + 1,
                TAIL * degree + 1,
            )  # fmt: skip
            _write_tail(
                to, i, plane, 2, _excess(squares[1] - mean * mean, even, scale),
                _excess(slopes[1], odd_slope, slope_scale), floored, degree + 2,
                TAIL * degree + 2,
            )  # fmt: skip

    return record


def _own_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of n positions with themselves over K and T."""

    def own(k: Any, t: Any, mask: Any, p: Any, cst: Any, n: Any) -> None:
        for i in range(np.int64(n)):
            if mask[i] == 0:
                k[i], t[i] = 0, 0
                continue
            q = k[i]
            floored = max(q, p[FLOOR])
            panel, at = _locate(p, floored)
            if panel < 0:
                k[i] = np.nan
                continue
            mean = _column(p, panel, at, COLUMN_MEAN)
            square = _column(p, panel, at, SQUARE_EVEN) + _column(p, panel, at, SQUARE_ODD)
            if q < floored:
                square = mean * mean + (square - mean * mean) * (q / floored)
            t[i] *= _column(p, panel, at, SLOPE_EVEN) + _column(p, panel, at, SLOPE_ODD)
            k[i] = square

    return own


@loop
def _count(one: Any, at: Any, still: Any, two: Any, start: Any, n: Any) -> Any:
    """Returns the largest number of terms of n pairs: of each, the smaller one of both ends."""
    largest = 0.0
    for i in range(n):
        first, second = read(one, at + i * still), read(two, start + i)
        count = select(first < second, first, second)
        largest = select(count > largest, count, largest)
    return np.int64(largest)


@loop
def _prepare(
    k: Any, one: Any, plane1: Any, still: Any, two: Any, plane2: Any, step: Any, work: Any,
    start: Any, n: Any,
) -> None:  # fmt: skip
    """Writes the correlations, what the series is one in, and zeros for both sums.

    The first end is one sample if `still` is 0.
    """
    inverse1, lift1 = INVERSE * plane1, LIFT * plane1
    inverse2, lift2 = INVERSE * plane2 + start, LIFT * plane2 + start
    for i in range(n):
        j = i * still
        c = k[start + i] + read(one, lift1 + j) * read(two, lift2 + i)
        rho = c * read(one, inverse1 + j) * read(two, inverse2 + i)
        rho = select(rho > 1.0, 1.0, rho)
        rho = select(rho < -1.0, -1.0, rho)
        write(work, i, rho)
        write(work, 3 * _PIECE + i, select(step == 2, rho * rho, rho))
        write(work, _PIECE + i, 0.0)
        write(work, 2 * _PIECE + i, 0.0)


@loop
def _add_terms(
    one: Any, plane1: Any, still: Any, two: Any, plane2: Any, terms: Any, count: Any, work: Any,
    start: Any, n: Any,
) -> None:  # fmt: skip
    """Writes the sum over terms, by Horner's rule, and its derivative by the power that it is in.

    Args:
      one: numbers of the first end; terms stand behind the head, the last one first, since loops
        that go backwards are not vectorised.
      plane1: entries from one term to the next.
      still: 0 if the first end is one sample, else 1.
      two: numbers of the second end.
      plane2: likewise.
      terms: number of terms.
      count: number of terms that are not zero, a multiple of UNROLLED.
      work: correlations, the sum, its derivative, and what the series is one in.
      start: the first entry.
      n: number of entries.
    """
    for l in range(HEAD + terms - count, HEAD + terms, UNROLLED):
        a, b = l * plane1, l * plane2 + start
        for i in range(n):
            j, r = i * still, work[3 * _PIECE + i]
            total, slope = work[_PIECE + i], work[2 * _PIECE + i]
            slope = slope * r + total
            total = total * r + read(one, a + j) * read(two, b + i)
            slope = slope * r + total
            total = total * r + read(one, a + plane1 + j) * read(two, b + plane2 + i)
            slope = slope * r + total
            total = total * r + read(one, a + 2 * plane1 + j) * read(two, b + 2 * plane2 + i)
            slope = slope * r + total
            total = total * r + read(one, a + 3 * plane1 + j) * read(two, b + 3 * plane2 + i)
            write(work, _PIECE + i, total)
            write(work, 2 * _PIECE + i, slope)


@loop
def _finish(
    k: Any, one: Any, plane1: Any, still: Any, two: Any, plane2: Any, step: Any, work: Any,
    start: Any, n: Any,
) -> None:  # fmt: skip
    """Writes K', and the factor of T in place of the derivative, without the tails."""
    mean1, mean2 = MEAN * plane1, MEAN * plane2 + start
    for i in range(n):
        j, r = i * still, step * work[3 * _PIECE + i]
        total, slope = work[_PIECE + i], work[2 * _PIECE + i]
        write(work, 2 * _PIECE + i, total + r * slope)
        write(k, start + i, read(one, mean1 + j) * read(two, mean2 + i) + k[start + i] * total)


@loop
def _add_tails(
    k: Any, one: Any, plane1: Any, still: Any, two: Any, plane2: Any, degree: Any, work: Any,
    start: Any, n: Any,
) -> None:  # fmt: skip
    """Adds the degrees that stand for the tails: powers of rho of one less than each of them."""
    power, base = _PIECE, 3 * _PIECE
    for i in range(n):
        write(work, power + i, 1.0)
        write(work, base + i, work[i])
    left = degree
    while left > 0:
        for i in range(n):
            square = work[base + i]
            write(work, power + i, work[power + i] * square if left % 2 else work[power + i])
            write(work, base + i, square * square)
        left //= 2
    for i in range(n):
        write(work, base + i, work[power + i] ** TAIL)
    for part in range(4):
        value, slope = (VALUE_TAIL + part) * plane1, (SLOPE_TAIL + part) * plane1
        value2, slope2 = (VALUE_TAIL + part) * plane2 + start, (SLOPE_TAIL + part) * plane2 + start
        source = base if part % 2 else power
        for i in range(n):
            j, rho = i * still, work[i]
            raised = work[source + i] * rho if part >= 2 else work[source + i]
            write(
                k,
                start + i,
                k[start + i] + read(one, value + j) * read(two, value2 + i) * raised * rho,
            )
            write(
                work,
                2 * _PIECE + i,
                work[2 * _PIECE + i] + read(one, slope + j) * read(two, slope2 + i) * raised,
            )


@loop
def _series(
    k: Any, t: Any, one: Any, plane1: Any, still: Any, two: Any, plane2: Any, p: Any, work: Any,
    real: Any, n: Any,
) -> None:  # fmt: skip
    """Writes K' and T' of n pairs, piece by piece. Places are signed: pointers are not checked.

    Only `real` of them are pairs; what is recorded of the others is anything.
    """
    terms, step = np.int64(p[TERMS]), np.int64(p[STEP])
    for start in range(0, n, _PIECE):
        size = min(_PIECE, n - start)
        at = moved(one, start * still)
        count = _count(at, 0, still, two, start, max(min(size, real - start), 0))
        _prepare(k, at, plane1, still, two, plane2, step, work, start, size)
        _add_terms(at, plane1, still, two, plane2, terms, count, work, start, size)
        _finish(k, at, plane1, still, two, plane2, step, work, start, size)
        if count == terms:
            degree = np.int64(p[DEGREE])
            _add_tails(k, at, plane1, still, two, plane2, degree, work, start, size)
        for i in range(size):
            t[start + i] *= work[2 * _PIECE + i]


def _pairs_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of n pairs of positions over K and T."""

    def pairs(
        k: Any, t: Any, one: Any, two: Any, mask: Any, p: Any, cst: Any, work: Any, plane: Any,
        real: Any, n: Any,
    ) -> None:  # fmt: skip
        size = np.int64(plane)
        _series(k, t, one, size, 1, two, size, p, work, np.int64(real), np.int64(n))

    return pairs


def _rows_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of one sample with n others."""

    def rows(
        k: Any, t: Any, g: Any, one: Any, two: Any, p: Any, cst: Any, work: Any, plane1: Any,
        plane2: Any, has_gap: Any, n: Any,
    ) -> None:  # fmt: skip
        size = np.int64(n)
        _series(k, t, one, np.int64(plane1), 0, two, np.int64(plane2), p, work, size, size)

    return rows


LOOPS = {"record": _record_loop, "own": _own_loop, "pairs": _pairs_loop, "rows": _rows_loop}
