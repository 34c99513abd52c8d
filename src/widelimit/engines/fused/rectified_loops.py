"""Loops of rectified monomials: polynomials of c times the angle, and times the sine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]

from widelimit.engines.fused.activations.rectified import COEFFICIENTS, DEGREE
from widelimit.engines.fused.compiling import loop, moved, read, write
from widelimit.engines.fused.constants import CONSTANTS, HALF, INV_2PI, ONE, PI, ZERO
from widelimit.engines.fused.formulas import angle, angle_of_gap, select

_PIECE = 128  # entries whose sums stay in the first cache
# What stands in scratch, piece by piece: (pi - theta) / (2 pi), s sine / (2 pi), a power of s, and
# sums: of P, of its derivative, of Q, of R.
_PHI, _SINE, _POWER, _VALUE, _SLOPE, _VALUE_BEND, _SLOPE_BEND = (_PIECE * i for i in range(7))


@loop
def _prepare(
    c: Any, g: Any, has_gap: Any, one: Any, plane1: Any, still: Any, two: Any, plane2: Any,
    degree: Any, constants: Any, work: Any, n: Any,
) -> None:  # fmt: skip
    """Writes angles and sines, and clears the sums."""
    scale, pi, zero = constants[INV_2PI], constants[PI], constants[ZERO]
    unit, half = constants[ONE], constants[HALF]
    for i in range(n):
        first = read(one, i * still), read(one, plane1 + i * still)
        second = read(two, i), read(two, plane2 + i)
        u, s = first[0] * second[0], first[1] * second[1]
        if has_gap:
            sine, theta, _ = angle_of_gap(c[i], g[i], first, second, constants)
        else:
            sine, theta = angle(c[i], u, s, constants)
        phi = scale * (pi - theta)
        if degree == 0:  # f(0) = 1; outside of images u is zero
            beside_zero = select(u > zero, unit, half)
            phi = select(s > zero, phi, select(u == zero, zero, beside_zero))
        write(work, _PHI + i, phi)
        write(work, _SINE + i, scale * s * sine)
        write(work, _POWER + i, unit)
        for part in range(_VALUE, _SLOPE_BEND + _PIECE, _PIECE):
            write(work, part + i, zero)


@loop
def _add_power(c: Any, work: Any, part: Any, coefficient: Any, n: Any) -> None:
    """Multiplies sums by c, and adds a coefficient times the power of s."""
    for i in range(n):
        write(work, part + i, work[part + i] * c[i] + coefficient * work[_POWER + i])


@loop
def _sums(
    k: Any, t: Any, g: Any, has_gap: Any, one: Any, plane1: Any, still: Any, two: Any, plane2: Any,
    p: Any, cst: Any, work: Any, n: Any,
) -> None:  # fmt: skip
    """Writes K' and T' of n pairs, piece by piece; with powers of s the sums are those of q1, q2.

    The first end is one sample if `still` is 0.
    """
    constants, degree = carray(cst, CONSTANTS), np.int64(p[DEGREE])
    for start in range(0, n, _PIECE):
        size = min(_PIECE, n - start)
        c, first, second = moved(k, start), moved(one, start * still), moved(two, start)
        _prepare(
            c, moved(g, start), has_gap, first, plane1, still, second, plane2, degree, constants,
            work, size,
        )  # fmt: skip
        for j in range(degree + 1):
            at = COEFFICIENTS + j
            for i in range(size):
                write(work, _SLOPE + i, work[_SLOPE + i] * c[i] + work[_VALUE + i])
            _add_power(c, work, _VALUE, p[at], size)
            if j < degree:
                _add_power(c, work, _VALUE_BEND, p[at + degree + 1], size)
            if j < degree - 1:
                _add_power(c, work, _SLOPE_BEND, p[at + 2 * (degree + 1)], size)
            for i in range(size):
                s = read(first, plane1 + i * still) * read(second, plane2 + i)
                write(work, _POWER + i, work[_POWER + i] * s)
        for i in range(size):
            phi, sine = work[_PHI + i], work[_SINE + i]
            t[start + i] *= phi * work[_SLOPE + i] + sine * work[_SLOPE_BEND + i]
            write(k, start + i, phi * work[_VALUE + i] + sine * work[_VALUE_BEND + i])


def _pairs_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of n pairs of positions over K and T."""

    def pairs(
        k: Any, t: Any, one: Any, two: Any, mask: Any, p: Any, cst: Any, work: Any, plane: Any,
        real: Any, n: Any,
    ) -> None:  # fmt: skip
        size, none = np.int64(plane), types.uint64(0)
        _sums(k, t, k, none, one, size, 1, two, size, p, cst, work, np.int64(n))

    return pairs


def _rows_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of one sample with n others."""

    def rows(
        k: Any, t: Any, g: Any, one: Any, two: Any, p: Any, cst: Any, work: Any, plane1: Any,
        plane2: Any, has_gap: Any, n: Any,
    ) -> None:  # fmt: skip
        size1, size2 = np.int64(plane1), np.int64(plane2)
        _sums(k, t, g, has_gap, one, size1, 0, two, size2, p, cst, work, np.int64(n))

    return rows


LOOPS = {"pairs": _pairs_loop, "rows": _rows_loop}
