"""How long kernels take here, and how large tiles should be."""

from __future__ import annotations

import time

import jax
import numpy as np

from widelimit._samples import Rows
from widelimit.engines.tiles import NetworkTiler

_TILE_SECONDS = 1.0
_SMALLEST, _LARGEST = 64, 2048
_MEASURED_SECONDS = 0.05
_MOST_SAMPLES = 512


def seconds_per_pair(tiler: NetworkTiler, x: np.ndarray) -> float:
    """Returns the time that a pair of samples takes, by a tile of a few samples.

    Args:
      tiler: what computes tiles.
      x: samples to measure with.
    """
    n = 1
    while True:
        n = min(2 * n, len(x), _MOST_SAMPLES)
        rows = tiler.prepare(Rows(np.asarray(x[:n]), {"pattern": None}))
        jax.block_until_ready(tiler.tile(rows, rows))  # compiles where an engine does
        started = time.perf_counter()
        jax.block_until_ready(tiler.tile(rows, rows))
        seconds = time.perf_counter() - started
        if seconds > _MEASURED_SECONDS or n in (len(x), _MOST_SAMPLES):
            return seconds / n**2


def choose_tile(tiler: NetworkTiler, x: np.ndarray, count: int, memory: int) -> int:
    """Returns the rows of a tile: about a second of work, a power of two of at most 2,048.

    A kill costs a tile, and starting one some milliseconds.

    Args:
      tiler: what computes tiles.
      x: samples to measure with.
      count: number of samples of the longer side.
      memory: bytes that a tile may take.
    """
    rate = seconds_per_pair(tiler, x)
    size = _LARGEST
    while size > _SMALLEST and size**2 * rate > _TILE_SECONDS:
        size //= 2
    while size > 1 and tiler.tile_bytes(size, size) + 2 * size * tiler.prepared_bytes > memory:
        size //= 2
    return max(1, min(size, count))
