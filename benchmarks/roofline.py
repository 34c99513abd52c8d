"""Operations and bytes that a kernel needs at least, counted from the plan of its network.

Counted per stored entry (one pair of positions of one pair of samples), for the formulas as a good
engine evaluates them; a square root, a division and a comparison count as one. Left out: the
self-covariances of each sample, which are computed once per sample and not per pair.

| layer | NNGP | NTK in addition |
|---|---|---|
| input | 2 per channel | |
| Conv | one addition per tap but one, per axis (the window is summed one axis at a time), 2 for W_std and b_std | the same |
| Relu | 24: see `RELU` | 2: the product with the derivative's dual, which is a by-product, and its factor |
| AvgPool, GlobalAvgPool, Flatten | one addition per entry at its *input* (windows do not overlap) | the same |
| FanInSum | 1 | 1 |
| Dense | 2 | 2 |

Bytes: `least` reads both inputs and writes the result, as an engine does that keeps everything else
in cache; `streamed` writes and reads every covariance of every layer once, as one does that cannot.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

# With r = 1 / sqrt(variance) and s = sqrt(variance) given per position: the cosine of the angle
# (2), its sine (a product, a difference, a square root: 3), the angle (a polynomial of degree 6 in
# multiply-adds 12, the reflection of negative arguments 3), sine + angle * cosine (2), scale (2).
RELU = 24
RELU_NTK = 2

FREE = ("FanOut", "Identity", "serial")
SUMS = ("AvgPool", "GlobalAvgPool", "Flatten")


@dataclasses.dataclass(frozen=True)
class Count:
    """What a kernel needs.

    Attributes:
      operations: floating point operations per pair of samples.
      least: bytes between memory and cores per call, if only inputs and results go there.
      streamed: bytes per pair of samples, if every covariance of every layer goes there.
      nonlinear: entries per pair of samples that pass a nonlinearity.
    """

    operations: int
    least: int
    streamed: int
    nonlinear: int


def window(layer: str) -> tuple[int, ...]:
    """Returns the window of a layer as a plan prints it: (3, 3) of 'Conv(8, (3, 3), ...)'."""
    found = re.search(r"\((\d+(?:, ?\d+)*),?\)", layer.partition("(")[2])
    if found is None:
        raise ValueError(f"expected a layer with a window, got {layer!r}")
    return tuple(map(int, found[1].split(",")))


def layer_operations(layer: str, entries_in: int, entries: int, ntk: bool) -> int:
    """Returns the operations of one layer per pair of samples.

    Args:
      layer: the layer as a plan prints it.
      entries_in: entries stored at its input.
      entries: entries stored at its output.
      ntk: whether the NTK is computed beside the NNGP.

    Raises:
      ValueError: a layer without a formula here, or pooling windows that overlap.
    """
    arrays = 1 + ntk
    kind = layer.partition("(")[0]
    if kind in FREE:
        return 0
    if kind == "Conv":
        return entries * arrays * (sum(k - 1 for k in window(layer)) + 2)
    if kind == "Relu":
        return entries * (RELU + RELU_NTK * ntk)
    if kind in SUMS:
        if kind == "AvgPool" and f"strides={window(layer)}" not in layer:
            raise ValueError(f"expected pooling windows that do not overlap, got {layer}")
        return entries_in * arrays
    if kind == "FanInSum":
        return entries * arrays
    if kind == "Dense":
        return entries * arrays * 2
    raise ValueError(f"expected a layer of {(*FREE, *SUMS, 'Conv', 'Relu', 'Dense')}, got {layer}")


def count(rows: Iterable[Any], get: str, itemsize: int, workload: Any) -> Count:
    """Returns what a kernel needs.

    Args:
      rows: `plan(net, shape).rows`. What pools or flattens must follow the layer it reads.
      get: 'nngp' or 'ntk'.
      itemsize: bytes of a number.
      workload: its sizes and the shape of a sample.
    """
    ntk = get == "ntk"
    (first, *later) = rows
    before = first.entries
    total = 2 * first.shape[-1] * before
    streamed = before
    nonlinear = 0
    for row in later:
        layer = row.layer.strip()
        total += layer_operations(layer, before, row.entries, ntk)
        if not layer.startswith(FREE):
            streamed += 2 * (1 + ntk) * row.entries
        if layer.startswith("Relu"):
            nonlinear += row.entries
        before = row.entries
    samples = workload.n1 + (workload.n2 or 0)
    least = itemsize * (samples * math.prod(workload.shape) + workload.entries)
    return Count(total, least, streamed * itemsize, nonlinear)


def bound_seconds(counted: Count, pairs: int, flops: float, bandwidth: float) -> float:
    """Returns the seconds that a call takes at least: arithmetic and memory go on side by side.

    Args:
      counted: from `count`.
      pairs: pairs of samples that have to be computed.
      flops: operations per second of the machine.
      bandwidth: bytes per second of its memory.
    """
    return max(pairs * counted.operations / flops, counted.least / bandwidth)
