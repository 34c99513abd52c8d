"""Products with a stored kernel matrix by many processes, each of which reads some tiles."""

from __future__ import annotations

import functools
import time

import numpy as np

from widelimit.engines.fused.parallel import one_blas_thread
from widelimit.scale.executors import Executor
from widelimit.scale.schema import expect_content
from widelimit.scale.stored_tiles import StoredTiles
from widelimit.scale.task import tiles_of
from widelimit.scale.tiled_operator import SUMS, StoredOperator


class DistributedOperator(StoredOperator):
    """Products whose parts are computed by the workers of an executor, and added in a fixed order.

    The bits are those of `StoredOperator`, whatever the number of workers. Should all workers that
    hold the vectors die at once, a product raises the error of dask.
    """

    def __init__(
        self, tiles: StoredTiles, store: tuple[str, str], get: str, executor: Executor
    ) -> None:
        """Takes the tiles of one kernel.

        Args:
          tiles: the tiles.
          store: path or URL of the store, as workers see it, and its fingerprint.
          get: which kernel.
          executor: who computes.
        """
        super().__init__(tiles)
        self._store, self._get, self._executor = store, get, executor

    def close(self) -> None:
        """Ends the executor."""
        self._executor.close()

    def _sums(self, v: np.ndarray) -> list[np.ndarray]:
        shared, run = self._executor.share(v), f"{time.time_ns():x}"
        for k in range(SUMS):
            arguments = *self._store, self._get, k, shared
            self._executor.submit(f"product-{k}-{run}", part_of_product, *arguments)
        parts: dict[int, np.ndarray] = dict(self._executor.as_completed())  # type: ignore[arg-type]
        return [parts[k] for k in range(SUMS)]


def part_of_product(
    location: str, fingerprint: str, get: str, k: int, v: np.ndarray
) -> tuple[int, np.ndarray]:
    """Returns k and the k-th sum of a product [n, c], as a task."""
    result = np.zeros(v.shape)
    with one_blas_thread():
        _operator(location, fingerprint, get).add_rows(k, np.asarray(v), result)
    return k, result


@functools.lru_cache(maxsize=4)
def _operator(location: str, fingerprint: str, get: str) -> StoredOperator:
    """Returns the operator of a kernel, which a process opens once."""
    content = expect_content(location, fingerprint)
    return StoredOperator(tiles_of(location, content, "r")[get])
