"""Sums over windows and affine maps of slices, as loops over one flat scratch array.

All places and counts are unsigned: with signed ones numba adds checks for negative indices, and
the loops are not vectorised. `buf` is the scratch array; other arguments named like arrays are
places in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.compiling import loop


@loop
def values(numbers: Any, i: Any) -> Any:
    """Returns a row of a table as numbers."""
    return (
        numbers[i, 0], numbers[i, 1], numbers[i, 2], numbers[i, 3], numbers[i, 4], numbers[i, 5]
    )  # fmt: skip


@loop
def clear(buf: Any, at: Any, n: Any) -> None:
    """Writes zeros."""
    zero = buf.dtype.type(len(buf) < 0)  # a constant would make this a call of memset
    for i in range(n):
        buf[at + i] = zero


@loop
def copy(buf: Any, to: Any, source: Any, n: Any) -> None:
    """Copies a slice."""
    for i in range(n):
        buf[to + i] = buf[source + i]


@loop
def multiply(buf: Any, to_k: Any, to_t: Any, k: Any, t: Any, n: Any) -> None:
    """Multiplies covariances by those of another slice: K' = K1 K2 and T' = T1 K2 + K1 T2."""
    for i in range(n):
        first, second = buf[to_k + i], buf[k + i]
        buf[to_t + i] = buf[to_t + i] * second + first * buf[t + i]
        buf[to_k + i] = first * second


@loop
def add(buf: Any, to: Any, source: Any, n: Any) -> None:
    """Adds a slice to another."""
    for i in range(n):
        buf[to + i] += buf[source + i]


@loop
def _sum_taps(buf: Any, to: Any, source: Any, step: Any, taps: Any, n: Any) -> None:
    """Writes out[i] = sum over t < taps of in[i + t step]."""
    second = source + step
    third = second + step
    if taps == 3:
        for i in range(n):
            buf[to + i] = (buf[source + i] + buf[second + i]) + buf[third + i]
    elif taps == 5:
        fourth, fifth = third + step, third + step + step
        for i in range(n):
            value = (buf[source + i] + buf[second + i]) + buf[third + i]
            buf[to + i] = (value + buf[fourth + i]) + buf[fifth + i]
    elif taps == 1:
        copy(buf, to, source, n)
    else:
        for i in range(n):
            buf[to + i] = buf[source + i] + buf[second + i]
        for _ in range(taps - np.uint64(2)):
            add(buf, to, third, n)
            third += step


@loop
def sum_taps(
    buf: Any, to_k: Any, to_t: Any, k: Any, t: Any, both: Any, step: Any, taps: Any, n: Any
) -> None:
    """Writes sums over neighbours of K, and of T if `both`: out[i] = sum_t in[i + t step]."""
    for tangent in range(1 + both):  # one copy of the loops in the machine code
        to, source = (to_t, t) if tangent else (to_k, k)
        _sum_taps(buf, to, source, step, taps, n)


@loop
def add_rows(middle: Any, to: Any, buf: Any, source: Any, row: Any, pair: Any, n: Any) -> None:
    """Adds a row of a slice, or it and the row below, to a row of `middle`."""
    if pair:
        for i in range(n):
            middle[to + i] += buf[source + i] + buf[source + row + i]
    else:
        for i in range(n):
            middle[to + i] += buf[source + i]


@loop
def pool_row(middle: Any, source: Any, store: Any, to: Any, taps: Any, stride: Any, n: Any) -> None:
    """Adds sums of neighbouring entries to a row of the store."""
    two = np.uint64(2)
    if taps == two and stride == two:
        for i in range(n):
            j = i + i
            store[to + i] += middle[source + j] + middle[source + j + np.uint64(1)]
    elif stride == two:
        for tap in range(taps):
            for i in range(n):
                store[to + i] += middle[source + tap + i + i]
    else:
        for tap in range(taps):
            for i in range(n):
                store[to + i] += middle[source + tap + stride * i]


@loop
def affine_map(
    buf: Any, to_k: Any, to_t: Any, k: Any, t: Any, both: Any, mask: Any, n: Any, numbers: Any
) -> None:
    """Writes K' = w K + b and T' = w T + u K + v where the mask is one, and zero elsewhere.

    T counts as zero unless `both`.
    """
    w, b, u, v = numbers[0], numbers[1], numbers[2], numbers[3]
    if both:
        for i in range(n):
            value, keep = buf[k + i], buf[mask + i]
            buf[to_t + i] = (w * buf[t + i] + u * value + v) * keep
            buf[to_k + i] = (w * value + b) * keep
    else:
        for i in range(n):
            value, keep = buf[k + i], buf[mask + i]
            buf[to_t + i] = (u * value + v) * keep
            buf[to_k + i] = (w * value + b) * keep


@loop
def affine_sum3(
    buf: Any, to_k: Any, to_t: Any, k: Any, t: Any, both: Any, step: Any, mask: Any, n: Any,
    numbers: Any,
) -> None:  # fmt: skip
    """Writes `affine_map` of sums of three taps."""
    w, b, u, v = numbers[0], numbers[1], numbers[2], numbers[3]
    k1, k2, t1, t2 = k + step, k + step + step, t + step, t + step + step
    if both:
        for i in range(n):
            value = (buf[k + i] + buf[k1 + i]) + buf[k2 + i]
            slope = (buf[t + i] + buf[t1 + i]) + buf[t2 + i]
            keep = buf[mask + i]
            buf[to_t + i] = (w * slope + u * value + v) * keep
            buf[to_k + i] = (w * value + b) * keep
    else:
        for i in range(n):
            value = (buf[k + i] + buf[k1 + i]) + buf[k2 + i]
            keep = buf[mask + i]
            buf[to_t + i] = (u * value + v) * keep
            buf[to_k + i] = (w * value + b) * keep


@loop
def affine_strided(
    buf: Any, to_k: Any, to_t: Any, k: Any, t: Any, both: Any, stride: Any, n: Any, numbers: Any
) -> None:
    """Writes `affine_map` of every `stride`-th entry, without a mask."""
    w, b, u, v = numbers[0], numbers[1], numbers[2], numbers[3]
    if both:
        for i in range(n):
            value = buf[k + stride * i]
            buf[to_t + i] = w * buf[t + stride * i] + u * value + v
            buf[to_k + i] = w * value + b
    else:
        for i in range(n):
            value = buf[k + stride * i]
            buf[to_t + i] = u * value + v
            buf[to_k + i] = w * value + b


@loop
def pack_rows(
    to: Any, at: Any, row: Any, source: Any, start: Any, pitch: Any, rows: Any, n: Any
) -> None:
    """Copies the first n entries of rows that are `pitch` apart to rows that are `row` apart."""
    for _ in range(rows):
        for x in range(n):
            to[at + x] = source[start + x]
        at, start = at + row, start + pitch


@loop
def correlate(
    buf: Any, to: Any, prep1: Any, one: Any, prep2: Any, two: Any, plane: Any, channels: Any,
    n: Any,
) -> None:  # fmt: skip
    """Writes means over channels of products of two images."""
    inverse = buf.dtype.type(1) / buf.dtype.type(channels)
    if channels == 3:
        a, b = one + plane, two + plane
        c, d = a + plane, b + plane
        for i in range(n):
            value = prep1[one + i] * prep2[two + i] + prep1[a + i] * prep2[b + i]
            buf[to + i] = (value + prep1[c + i] * prep2[d + i]) * inverse
    else:
        for i in range(n):
            buf[to + i] = prep1[one + i] * prep2[two + i]
        for _ in range(channels - np.uint64(1)):
            one, two = one + plane, two + plane
            for i in range(n):
                buf[to + i] += prep1[one + i] * prep2[two + i]
        for i in range(n):
            buf[to + i] *= inverse


@loop
def total(buf: Any, at: Any, n: Any) -> Any:
    """Returns the sum of a slice, in float64, by eight sums side by side."""
    sums = np.zeros(8)
    whole = n - n % np.uint64(8)
    for i in range(np.uint64(0), whole, np.uint64(8)):
        for j in range(8):
            sums[j] += buf[at + i + np.uint64(j)]
    for i in range(whole, n):
        sums[0] += buf[at + i]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
