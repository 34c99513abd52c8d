"""Sums of products in float64, and what a window passes back."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.compiling import loop


@loop
def dot(buf: Any, a: Any, b: Any, n: Any) -> Any:
    """Returns the sum of products of two slices, by eight sums side by side."""
    sums = np.zeros(8)
    whole = n - n % np.uint64(8)
    for i in range(np.uint64(0), whole, np.uint64(8)):
        for j in range(8):
            sums[j] += buf[a + i + np.uint64(j)] * buf[b + i + np.uint64(j)]
    for i in range(whole, n):
        sums[0] += buf[a + i] * buf[b + i]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


@loop
def pull_affine(
    buf: Any, to_k: Any, to_t: Any, k_bar: Any, t_bar: Any, both: Any, anew: Any, n: Any,
    numbers: Any,
) -> None:  # fmt: skip
    """Adds the cotangents of K and T of K' = w K + b, T' = w T + u K + v; writes them if `anew`."""
    w, u = numbers[0], numbers[2]
    still = buf.dtype.type(both)
    if anew:
        for i in range(n):
            slope = buf[t_bar + i]
            buf[to_k + i] = w * buf[k_bar + i] + u * slope
            buf[to_t + i] = still * w * slope
    else:
        for i in range(n):
            slope = buf[t_bar + i]
            buf[to_k + i] += w * buf[k_bar + i] + u * slope
            buf[to_t + i] += still * w * slope


@loop
def put(buf: Any, to: Any, source: Any, anew: Any, n: Any) -> None:
    """Adds a slice to another, or writes it there if `anew`."""
    if anew:
        for i in range(n):
            buf[to + i] = buf[source + i]
    else:
        for i in range(n):
            buf[to + i] += buf[source + i]


@loop
def pull_product(
    buf: Any, to_k: Any, to_t: Any, k: Any, t: Any, k_bar: Any, t_bar: Any, anew: Any, n: Any
) -> None:
    """Adds the cotangents of one factor, of K' = K1 K and T' = T1 K + K1 T; k and t the other."""
    if anew:
        for i in range(n):
            buf[to_k + i] = buf[k_bar + i] * buf[k + i] + buf[t_bar + i] * buf[t + i]
            buf[to_t + i] = buf[t_bar + i] * buf[k + i]
    else:
        for i in range(n):
            buf[to_k + i] += buf[k_bar + i] * buf[k + i] + buf[t_bar + i] * buf[t + i]
            buf[to_t + i] += buf[t_bar + i] * buf[k + i]
