"""Products with a kernel matrix whose tiles are read from disk, or computed again each time."""

from __future__ import annotations

import abc
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float, Int

from widelimit.engines.fused.parallel import one_blas_thread, run_parallel
from widelimit.scale.maker import TileMaker
from widelimit.scale.operator import as_vectors
from widelimit.scale.stored_tiles import StoredTiles
from widelimit.scale.tile_grid import Place, TileGrid

# Rows of tiles are dealt to this many sums, whatever the number of threads: the bits of a product
# do not depend on the machine.
SUMS = 16
_COLUMNS = 64
_STRIP = 64

Vectors = Float[Array | np.ndarray, "n c"]


class TiledOperator(abc.ABC):
    """A symmetric kernel matrix [n, n] by its tiles, for products in float64.

    Attributes:
      shape: (n, n).
      grid: its tiles.
    """

    def __init__(self, grid: TileGrid, dtype: np.dtype) -> None:
        """Keeps the tiles.

        Args:
          grid: of a symmetric matrix.
          dtype: of the entries.

        Raises:
          ValueError: a matrix between two sets of samples.
        """
        if not grid.symmetric:
            raise ValueError(
                f"expected a kernel of x1 with itself, got one of x1 with x2, {grid.counts}"
            )
        self.grid, self.dtype = grid, dtype
        self.shape = grid.counts

    @abc.abstractmethod
    def _tile(self, place: Place) -> np.ndarray:
        """Returns a tile [rows, columns] of the upper triangle."""

    @abc.abstractmethod
    def _run(self, function: Callable[[int], None], tasks: list[int]) -> None:
        """Calls the function of all tasks, on threads where tiles may be read by several."""

    def matmat(self, v: Vectors) -> np.ndarray:
        """Returns the product K v [n, c] in float64.

        Args:
          v: [n, c].

        Raises:
          ValueError: another number of rows; values that are not finite; a tile that is missing or
            damaged.
        """
        v = as_vectors(v, self.shape[1])
        if v.shape[1] <= _COLUMNS:
            return self._product(v)
        starts = range(0, v.shape[1], _COLUMNS)
        return np.concatenate([self._product(v[:, s : s + _COLUMNS]) for s in starts], axis=1)

    def _product(self, v: np.ndarray) -> np.ndarray:
        v = np.ascontiguousarray(v)
        sums = self._sums(v)
        return sum(sums[1:], sums[0])

    def _sums(self, v: np.ndarray) -> list[np.ndarray]:
        """Returns what adds up to the product, always the same number of arrays [n, c]."""
        sums = [np.zeros_like(v) for _ in range(SUMS)]
        with one_blas_thread():
            self._run(lambda k: self.add_rows(k, v, sums[k]), list(range(SUMS)))
        return sums

    def add_rows(self, k: int, v: np.ndarray, result: np.ndarray) -> None:
        """Adds the products of the rows of tiles of one sum.

        Args:
          k: which of `SUMS` sums.
          v: vectors [n, c].
          result: what is added to, [n, c].
        """
        strip = np.empty((_STRIP, self.grid.size))
        rows, columns = _dealt(self.grid.pieces[0], k), self.grid.pieces[1]
        tiles = [(i, j) for i in rows for j in range(i, columns)]
        for place, following in zip(tiles, [*tiles[1:], *tiles[-1:]], strict=True):
            self._prefetch(following)
            self._add_tile(place, v, result, strip)

    def _prefetch(self, place: Place) -> None:  # noqa: B027
        """Begins to read a tile that is asked for next, where it is read from a disk."""

    def _add_tile(
        self, place: Place, v: np.ndarray, result: np.ndarray, buffer: np.ndarray
    ) -> None:
        """Adds the products of a tile, and of its transpose beyond the diagonal."""
        i, j = (self.grid.span(side, piece) for side, piece in enumerate(place))
        tile, mirrored = self._tile(place), place[0] != place[1]
        for start in range(0, len(tile), _STRIP):
            part = tile[start : start + _STRIP]
            strip = buffer[: len(part), : part.shape[1]]
            strip[:] = part
            rows = slice(i.start + start, i.start + start + len(strip))
            result[rows] += strip @ v[j]
            if mirrored:
                result[j] += strip.T @ v[rows]

    def diagonal(self) -> np.ndarray:
        """Returns the diagonal [n] in float64."""
        tiles = (self._tile((i, i)).diagonal() for i in range(self.grid.pieces[0]))
        return np.concatenate([np.asarray(d, float) for d in tiles])

    def columns(self, indices: Int[Array | np.ndarray, " m"]) -> np.ndarray:
        """Returns columns K[:, indices] [n, m] in the dtype of the kernel.

        Args:
          indices: which.

        Raises:
          IndexError: indices beyond n.
        """
        indices = check_indices(indices, self.shape[1])
        result = np.empty((self.shape[0], len(indices)), self.dtype)
        piece, offset = np.divmod(indices, self.grid.size)
        for p in np.unique(piece):
            of_piece = np.flatnonzero(piece == p)
            for i in range(self.grid.pieces[0]):
                rows = self.grid.span(0, i)
                mirrored = i > p
                tile = self._tile((int(p), i) if mirrored else (i, int(p)))
                chosen = offset[of_piece]
                block = tile[chosen].T if mirrored else tile[:, chosen]
                result[rows, of_piece] = block
        return result


class StoredOperator(TiledOperator):
    """Products that read the tiles of a store, mapped into memory; each is verified once."""

    def __init__(self, chunks: StoredTiles) -> None:
        """Takes the tiles of one kernel.

        Args:
          chunks: the tiles.
        """
        super().__init__(chunks.grid, np.dtype(chunks.array.dtype))
        self._tiles = chunks

    def _tile(self, place: Place) -> np.ndarray:
        return self._tiles.mapped(place)

    def _prefetch(self, place: Place) -> None:
        self._tiles.prefetch(place)

    def _run(self, function: Callable[[int], None], tasks: list[int]) -> None:
        run_parallel(function, tasks)


class RecomputedOperator(TiledOperator):
    """Products that compute every tile anew: no disk, and the same bits as of stored tiles."""

    def __init__(self, maker: TileMaker, get: str) -> None:
        """Takes what computes tiles.

        Args:
          maker: computes tiles.
          get: which kernel.
        """
        super().__init__(maker.content.grid, np.dtype(maker.content.dtype))
        self._maker, self._get = maker, get

    def _tile(self, place: Place) -> np.ndarray:
        return self._maker.tile(place)[self._get]

    def _run(self, function: Callable[[int], None], tasks: list[int]) -> None:
        for task in tasks:
            function(task)

    def columns(self, indices: Int[Array | np.ndarray, " m"]) -> np.ndarray:
        """Returns columns K[:, indices] [n, m]; only these are computed.

        Args:
          indices: which.

        Raises:
          IndexError: indices beyond n.
        """
        indices, size = check_indices(indices, self.shape[1]), self.grid.size
        result = np.empty((self.shape[0], len(indices)), self.dtype)
        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            samples = self._maker.prepare(self._maker.samples(chosen))
            for i in range(self.grid.pieces[0]):
                tile = self._maker.rows(i, samples)[self._get]
                result[self.grid.span(0, i), start : start + size] = tile[:, : len(chosen)]
        return result


def check_indices(indices: Int[Array | np.ndarray, " m"], count: int) -> np.ndarray:
    """Returns indices of samples [m] as an array of NumPy.

    Raises:
      IndexError: indices that are not integers from 0 to count - 1.
    """
    array = np.asarray(indices)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise IndexError(f"expected a vector of integer indices, got {array.dtype} {array.shape}")
    if array.size and not (array.min() >= 0 and array.max() < count):
        raise IndexError(
            f"expected indices from 0 to {count - 1}, got {array.min()}..{array.max()}"
        )
    return array


def _dealt(rows: int, k: int) -> list[int]:
    """Returns the rows of tiles of the k-th sum: dealt back and forth, for equal work."""
    order = [i % (2 * SUMS) for i in range(rows)]
    return [i for i, o in enumerate(order) if min(o, 2 * SUMS - 1 - o) == k]
