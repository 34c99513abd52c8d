"""Where products with a kernel matrix come from: the disk, memory, devices, or computed anew."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np

from widelimit._text import shown
from widelimit.scale.distributed_operator import DistributedOperator
from widelimit.scale.executors import make_executor
from widelimit.scale.maker import Known, TileMaker
from widelimit.scale.operator import DenseOperator, Operator, ShardedOperator
from widelimit.scale.stored_tiles import StoredTiles
from widelimit.scale.tiled_operator import RecomputedOperator, StoredOperator

Backend: TypeAlias = Literal["stored", "recompute", "memory", "sharded"]
"""Where products come from."""


def check_backend(backend: object) -> None:
    """Raises ValueError unless this is a back end."""
    if backend not in get_args(Backend):
        raise ValueError(f"expected backend one of {get_args(Backend)}, got {shown(backend)}")


def recomputed(location: str, fingerprint: str, get: str, known: Known) -> Operator:
    """Returns the kernel of a store as an operator that computes tiles anew."""
    return RecomputedOperator(TileMaker.of(location, fingerprint, known), get)


def stored(
    location: str,
    fingerprint: str,
    get: str,
    tiles: StoredTiles,
    backend: Backend,
    engine: object,
) -> Operator:
    """Returns the kernel of a store, whose tiles are all there, as an operator.

    Args:
      location: path or URL of the store.
      fingerprint: of what it holds.
      get: which kernel.
      tiles: its tiles.
      backend: "stored", "memory" or "sharded".
      engine: who reads tiles of "stored".

    Raises:
      ValueError: missing tiles, a kernel of x1 with x2, or an engine for another back end.
    """
    missing = len(tiles.grid) - len(tiles.complete()[0])
    if missing:
        raise ValueError(
            f"expected all {len(tiles.grid)} tiles in {location}, got {missing} missing: "
            "store.fill() computes them"
        )
    if backend != "stored" and engine != "inline":
        raise ValueError(f"expected engine='inline' for backend={backend!r}, got {shown(engine)}")
    whole = StoredOperator(tiles)
    count = whole.shape[0]
    if backend == "memory":
        return DenseOperator(rows_of(tiles, 0, count))
    if backend == "sharded":
        return ShardedOperator(lambda start, stop: rows_of(tiles, start, stop), count)
    if engine == "inline":
        return whole
    return DistributedOperator(tiles, (location, fingerprint), get, make_executor(engine))


def rows_of(tiles: StoredTiles, start: int, stop: int) -> np.ndarray:
    """Returns rows of a symmetric kernel [stop - start, n], read from its tiles."""
    grid = tiles.grid
    result = np.empty((stop - start, grid.counts[1]), tiles.array.dtype)
    for i in range(start // grid.size, -(-stop // grid.size)):
        span = grid.span(0, i)
        first, last = max(start, span.start), min(stop, span.stop)
        inside = slice(first - span.start, last - span.start)
        for j in range(grid.pieces[1]):
            tile = tiles.mapped((i, j)) if i <= j else tiles.mapped((j, i)).T
            result[first - start : last - start, grid.span(1, j)] = tile[inside]
    return result
