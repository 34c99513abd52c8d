"""The loop over tiles inside a trace: one compiled tile for any number of tiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

from widelimit._pytree import is_concrete
from widelimit.gram.callables import CallableTiler
from widelimit.gram.fields import Part, at, parts, rebuild, whole_parts
from widelimit.gram.kernels import KernelTiler
from widelimit.gram.sizes import Grid
from widelimit.tracing.varying import varying_like
from widelimit.typing import Integer, KernelArray

Filled: TypeAlias = dict[str, jax.Array]
"""The arrays of a result, partly filled by tiles."""

Place: TypeAlias = jax.Array | np.ndarray
"""The index of a tile: two integers."""


def compute_traced(tiler: CallableTiler | KernelTiler, grid: Grid, get: object) -> PyTree:
    """Returns the kernels between all samples, assembled from tiles by a loop of JAX.

    It takes the memory of one tile. Derivatives compute each tile again, and so take the memory of
    one, too. For x1 with itself each pair of tiles is computed once.

    Args:
      tiler: computes the tiles.
      grid: the tiles, more than one.
      get: the fields requested of the tiler.

    Raises:
      ValueError: results that cannot be assembled from tiles.
    """
    loop = _Loop(tiler, grid, get)
    arrays = loop.arrays()
    for tiles in loop.passes():
        arrays = loop.run(tiles, arrays)
    return loop.result(arrays)


class _Pass(NamedTuple):
    """A group of tiles that are computed in the same way.

    Attributes:
      places: indices of the tiles, an array [tiles, 2].
      own: whether they are tiles of samples with themselves.
      keys: the arrays that they are written to.
      mirrored: whether their mirror images are written, too.
    """

    places: np.ndarray
    own: bool
    keys: list[str]
    mirrored: bool


class _Loop:
    def __init__(self, tiler: CallableTiler | KernelTiler, grid: Grid, get: object) -> None:
        self._tiler, self._grid, self._get = tiler, grid, get
        tile = tiler.traced_tiles(grid)

        def evaluate(place: Place, own: bool) -> PyTree:
            return tile(place[0], place[1], own)

        self._tile: Callable[[Place, bool], PyTree] = jax.checkpoint(
            evaluate, prevent_cse=False, static_argnums=1
        )
        first = jax.ShapeDtypeStruct((2,), np.int32)
        self._example = jax.eval_shape(lambda p: evaluate(p, tiler.aligned), first)
        self._parts = self._parts_of(self._example)
        for part in self._parts.values():
            if part.shape(grid.sizes) != np.shape(part.value):
                raise ValueError(
                    "expected a kernel function whose result has the same axes for every number of "
                    f"samples, got{at(part.key)} shape {np.shape(part.value)} for "
                    f"{grid.sizes[0]} x {grid.sizes[1]} samples"
                )

    def arrays(self) -> Filled:
        """Returns the arrays to be filled, padding included."""
        return {
            key: varying_like(
                jnp.zeros(part.shape(self._grid.filled), part.value.dtype), part.value
            )
            for key, part in self._parts.items()
        }

    def passes(self) -> list[_Pass]:
        """Returns the tiles in groups."""
        rows, columns = (np.arange(len(self._grid.spans(side))) for side in (0, 1))
        every = np.array(list(itertools.product(rows, columns)), np.int32)
        own, keys = self._tiler.aligned, list(self._parts)
        sides = [part.samples for part in self._parts.values()]
        if not own and not any(samples.diagonal for samples in sides):
            return [_Pass(every, False, keys, False)]
        equal, others = (
            every[(every[:, 0] == every[:, 1]) == diagonal] for diagonal in (True, False)
        )
        pairs = [key for key, part in self._parts.items() if part.is_pairs]
        mirrored = self._tiler.same and all(self._parts[key].mirrors for key in pairs)
        others = others[others[:, 0] < others[:, 1]] if mirrored else others
        passes = [_Pass(equal, own, keys, False)]
        return [*passes, _Pass(others, False, pairs, mirrored)] if pairs else passes

    def run(self, tiles: _Pass, arrays: Filled) -> Filled:
        """Returns the arrays with these tiles filled in."""

        def body(arrays: Filled, place: Place) -> tuple[Filled, None]:
            tile_parts = self._parts_of(self._tile(place, tiles.own))
            out = dict(arrays)
            for key in tiles.keys:
                part = self._parts[key]
                out[key] = self._written(out[key], tile_parts[key].array, part, place)
                if tiles.mirrored:
                    value = part.mirrored(tile_parts[key].array)
                    out[key] = self._written(out[key], value, part, place[::-1])
            return out, None

        if is_concrete(jnp.zeros(())):  # grad or vmap outside jit: a scan is compiled every time
            for place in tiles.places:
                arrays, _ = body(arrays, place)
            return arrays
        return lax.scan(body, arrays, tiles.places)[0]

    def result(self, arrays: Filled) -> PyTree:
        """Returns the result for all samples."""
        cut = {}
        for key, part in self._parts.items():
            spans = slice(self._grid.counts[0]), slice(self._grid.counts[1])
            cut[key] = arrays[key][part.index(spans)]
        tile = jax.tree_util.tree_map_with_path(
            lambda path, leaf: cut.get(jax.tree_util.keystr(path), leaf), self._example
        )
        return rebuild(tile, {}, self._grid.counts)

    def _parts_of(self, tile: PyTree) -> dict[str, Part]:
        """Returns the arrays of a tile: those with samples, and the flags of kernels."""
        sampled = parts(tile, self._get, self._tiler.diagonal_spatial, self._tiler.layout())
        return {part.key: part for part in (*whole_parts(tile), *sampled)}

    def _written(self, array: jax.Array, value: KernelArray, part: Part, place: Place) -> jax.Array:
        starts: list[Integer] = [0] * array.ndim
        for side, axis in zip(part.samples.sides, part.samples.axes, strict=True):
            starts[axis] = place[side] * self._grid.sizes[side]
        return lax.dynamic_update_slice(array, value, starts)
