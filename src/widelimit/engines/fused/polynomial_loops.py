"""Loops of polynomials: sums of powers of c, with coefficients recorded at both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from widelimit.engines.fused.activations.polynomials import COEFFICIENTS, POWERS, SHIFT, TERMS
from widelimit.engines.fused.compiling import loop, moved, read, write

_PIECE = 128  # entries whose sums stay in the first cache


def _record_loop(name: str) -> Callable[..., None]:
    """Returns a loop that records the polynomials g_l of n variances, the highest l first."""

    def record(variances: Any, to: Any, p: Any, cst: Any, plane: Any, n: Any) -> None:
        size, powers = np.int64(plane), np.int64(p[POWERS])
        for l in range(np.int64(p[TERMS])):
            for i in range(np.int64(n)):
                q, value = variances[i] - p[SHIFT], p[COEFFICIENTS + l * powers]
                for j in range(1, powers):
                    value = value * q + p[COEFFICIENTS + l * powers + j]
                to[l * size + i] = value

    return record


@loop
def _sums(
    k: Any, t: Any, one: Any, plane1: Any, still: Any, two: Any, plane2: Any, p: Any, work: Any,
    n: Any,
) -> None:  # fmt: skip
    """Writes K' and T' of n pairs, piece by piece, by Horner's rule in c.

    The first end is one sample if `still` is 0.
    """
    for start in range(0, n, _PIECE):
        size = min(_PIECE, n - start)
        first, second, c = moved(one, start * still), moved(two, start), moved(k, start)
        for i in range(size):
            write(work, i, 0.0)
            write(work, _PIECE + i, 0.0)
        for l in range(np.int64(p[TERMS])):
            for i in range(size):
                total = work[i]
                product = read(first, l * plane1 + i * still) * read(second, l * plane2 + i)
                write(work, _PIECE + i, work[_PIECE + i] * c[i] + total)
                write(work, i, total * c[i] + product)
        for i in range(size):
            t[start + i] *= work[_PIECE + i]
            write(k, start + i, work[i])


def _pairs_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of n pairs of positions over K and T."""

    def pairs(
        k: Any, t: Any, one: Any, two: Any, mask: Any, p: Any, cst: Any, work: Any, plane: Any,
        real: Any, n: Any,
    ) -> None:  # fmt: skip
        size = np.int64(plane)
        _sums(k, t, one, size, 1, two, size, p, work, np.int64(n))

    return pairs


def _rows_loop(name: str) -> Callable[..., None]:
    """Returns a loop that writes K' and T' of one sample with n others."""

    def rows(
        k: Any, t: Any, g: Any, one: Any, two: Any, p: Any, cst: Any, work: Any, plane1: Any,
        plane2: Any, has_gap: Any, n: Any,
    ) -> None:  # fmt: skip
        _sums(k, t, one, np.int64(plane1), 0, two, np.int64(plane2), p, work, np.int64(n))

    return rows


LOOPS = {"record": _record_loop, "pairs": _pairs_loop, "rows": _rows_loop}
