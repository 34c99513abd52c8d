"""What computes the tiles of a store in this process."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree

from widelimit._samples import Rows
from widelimit.engines.choose import choose_engine
from widelimit.engines.tiles import NetworkTiler
from widelimit.layers.base import Layer
from widelimit.layers.description import from_json
from widelimit.scale.schema import Content, expect_content, read_inputs
from widelimit.scale.tile_grid import Place

Known: TypeAlias = tuple[type[Layer] | Callable[..., object], ...]
"""Layers and functions of users that a network holds; see `widelimit.from_json`."""

_PREPARED_BYTES = 2**30


class TileMaker:
    """Computes tiles; samples are read and prepared once while there is room for them.

    Attributes:
      content: what the store holds.
    """

    def __init__(self, content: Content, inputs: Sequence[Any], known: Known) -> None:
        """Builds the network.

        Args:
          content: what the store holds.
          inputs: arrays of NumPy or of zarr: x1, and x2 unless that is x1.
          known: layers and functions of users in the network.
        """
        self.content, self._inputs = content, inputs
        self._x64 = content.dtype == "float64"
        net, sample = network_of(content, known), np.asarray(inputs[0][:1])
        with jax.enable_x64(self._x64):
            self._tiler = tiler_of(net, sample, None, content.get)
            choice = choose_engine(net, sample.shape)
        if choice.name != content.engine:
            raise ValueError(
                f"expected the engine {content.engine!r}, which began this store, got "
                f"{choice.name!r} here: {choice.reason}"
            )
        each = max(1, self._tiler.prepared_bytes) * content.tile
        self._room = max(2, _PREPARED_BYTES // each)
        self._prepared: collections.OrderedDict[tuple[int, int], object] = collections.OrderedDict()

    @classmethod
    @functools.lru_cache(maxsize=4)
    def of(cls, location: str, fingerprint: str, known: Known) -> TileMaker:
        """Returns the one of a store, which a process makes once.

        Args:
          location: path or URL of the store.
          fingerprint: of what it holds.
          known: layers and functions of users in its network.

        Raises:
          ValueError: another store at the location, or another engine on this machine.
        """
        content = expect_content(location, fingerprint)
        return cls(content, read_inputs(location, content.symmetric), known)

    def tile(self, place: Place) -> dict[str, np.ndarray]:
        """Returns the kernels of a tile by name, each [rows, columns]."""
        i, j = place
        with jax.enable_x64(self._x64):
            first = self._piece(0, i)
            second = None if self.content.symmetric and i == j else self._piece(1, j)
            return self._named(self._tiler.tile(first, second), self.content.grid.shape(place))

    def rows(self, piece: int, x: object) -> dict[str, np.ndarray]:
        """Returns the kernels between a piece of x1 and samples that `prepare` returned."""
        span = self.content.grid.span(0, piece)
        with jax.enable_x64(self._x64):
            tile = self._tiler.tile(self._piece(0, piece), x)
            return self._named(tile, (span.stop - span.start, self.content.tile))

    def samples(self, indices: np.ndarray) -> np.ndarray:
        """Returns samples of x1 by their indices, in any order."""
        order = np.argsort(indices, kind="stable")
        x = self._inputs[0]
        ordered = x.oindex[indices[order]] if hasattr(x, "oindex") else x[indices[order]]
        result = np.empty_like(ordered)
        result[order] = ordered
        return result

    def prepare(self, x: np.ndarray) -> object:
        """Returns samples as tiles read them, the last repeated until they fill a tile."""
        with jax.enable_x64(self._x64):
            return self._tiler.prepare(Rows(_filled(x, self.content.tile), {"pattern": None}))

    def _piece(self, side: int, piece: int) -> object:
        key = (0 if self.content.symmetric else side, piece)
        if key not in self._prepared:
            while len(self._prepared) >= self._room:
                self._prepared.popitem(last=False)
            x = self._inputs[key[0]][self.content.grid.span(side, piece)]
            self._prepared[key] = self.prepare(np.asarray(x))
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _named(self, tile: PyTree, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        rows, columns = shape
        arrays = zip(self.content.get, tile, strict=True)
        return {name: np.asarray(array)[:rows, :columns] for name, array in arrays}


def network_of(content: Content, known: Known) -> Layer:
    """Returns the network of a store."""
    return from_json(content.network, known)


def tiler_of(net: Layer, x1: ArrayLike, x2: ArrayLike | None, get: tuple[str, ...]) -> NetworkTiler:
    """Returns what computes tiles of a network between inputs."""
    kernel_fn: Any = net.kernel_fn
    return kernel_fn.tiler(x1, x2, get, jax.local_devices()[:1])


def _filled(x: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(x)
    return x if missing <= 0 else np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])
