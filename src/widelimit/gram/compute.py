"""The loop over tiles, and the assembly of their results."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from widelimit._pytree import AnyArray, is_concrete, same_values
from widelimit.gram.callables import CallableTiler, is_pair
from widelimit.gram.devices import resolve_devices
from widelimit.gram.fields import Part, at, parts, rebuild
from widelimit.gram.kernels import KernelTiler
from widelimit.gram.layout import totals_refused
from widelimit.gram.progress import progress_bar
from widelimit.gram.sizes import Grid, choose_grid
from widelimit.gram.storage import Memory, Storage
from widelimit.gram.tiler import Tiler
from widelimit.kernel.kernel import holds_kernels, is_kernel
from widelimit.typing import KernelFunction, Keywords

# More bytes than one entry of any network in the literature takes for images of 32 x 32.
_LARGE_ENTRY = 2**26


class TracedTileError(TypeError):
    """Raised when a kernel function of concrete inputs returns traced results."""


def kernel_fn_of(net_or_kernel_fn: object) -> KernelFunction:
    """Returns the kernel function of a network, a triple of functions, or a kernel function.

    Raises:
      TypeError: the argument is none of these.
    """
    if isinstance(net_or_kernel_fn, tuple | list) and len(net_or_kernel_fn) == 3:
        net_or_kernel_fn = net_or_kernel_fn[2]  # (init_fn, apply_fn, kernel_fn)
    kernel_fn = getattr(net_or_kernel_fn, "kernel_fn", net_or_kernel_fn)
    if not callable(kernel_fn):
        raise TypeError(
            "expected a network with a kernel_fn, or a function kernel_fn(x1, x2, get), got "
            f"{type(net_or_kernel_fn).__name__}"
        )
    return kernel_fn


def unwrapped(kernel_fn: KernelFunction, kwargs: Keywords) -> tuple[KernelFunction, Keywords]:
    """Returns the function inside `functools.partial` and all keywords; others unchanged.

    The function of a network is also taken out of `jax.jit`, which only changes its compilation.
    """
    while isinstance(kernel_fn, functools.partial) and not kernel_fn.args:
        keywords, kernel_fn = kernel_fn.keywords, kernel_fn.func
        kwargs = {**keywords, **kwargs}
    if isinstance(kernel_fn, jax.stages.Wrapped) and hasattr(kernel_fn, "__wrapped__"):
        inner, keywords = unwrapped(kernel_fn.__wrapped__, kwargs)
        if hasattr(inner, "tiler"):
            return inner, keywords
    return kernel_fn, kwargs


def make_tiler(
    kernel_fn: KernelFunction,
    x1: PyTree,
    x2: PyTree,
    args: tuple[object, ...],
    devices: list[jax.Device],
    kwargs: Keywords,
) -> Tiler:
    """Returns the tiler of a kernel function: its own, or a general one.

    Args:
      kernel_fn: the function.
      x1: inputs.
      x2: inputs, or None for x1.
      args: arguments after the inputs, commonly `get`.
      devices: the devices to compute on.
      kwargs: keywords of the function.

    Raises:
      TypeError: traced inputs.
      ValueError: inputs that the function refuses.
    """
    if not is_concrete(x1, x2, kwargs):
        raise TypeError(
            "expected concrete inputs to compute kernels in tiles, got traced ones: call kernel_fn "
            "or wl.batch(kernel_fn, size) inside jit, vmap or grad"
        )
    own = getattr(kernel_fn, "tiler", None)
    if own is not None and not holds_kernels(x1):
        return own(x1, x2, *args, devices=devices, **kwargs)
    return _any_tiler(kernel_fn, x1, x2, args, devices, kwargs)


def make_traced_tiler(
    kernel_fn: KernelFunction, x1: PyTree, x2: PyTree, args: tuple[object, ...], kwargs: Keywords
) -> CallableTiler | KernelTiler:
    """Returns the tiler of any kernel function of traced arguments; see `make_tiler`.

    Raises:
      ValueError: inputs without samples, or with different numbers of samples.
    """
    return _any_tiler(kernel_fn, x1, x2, args, jax.local_devices()[:1], kwargs)


def _any_tiler(
    kernel_fn: KernelFunction,
    x1: PyTree,
    x2: PyTree,
    args: tuple[object, ...],
    devices: list[jax.Device],
    kwargs: Keywords,
) -> CallableTiler | KernelTiler:
    if not holds_kernels(x1):
        return CallableTiler(kernel_fn, (x1, x2), args, devices, kwargs)
    if jax.tree.leaves(x2):
        raise ValueError("expected x2=None with a Kernel as input, got an x2 as well")
    pairs = {name: value for name, value in kwargs.items() if is_pair(value)}
    constants = {name: value for name, value in kwargs.items() if name not in pairs}
    return KernelTiler(kernel_fn, x1, args, pairs, constants)


def compute(tiler: Tiler, grid: Grid, get: object, storage: Storage, progress: bool) -> PyTree:
    """Returns the kernels between all samples, assembled from tiles.

    Args:
      tiler: computes the tiles.
      grid: the tiles.
      get: the fields requested of the tiler.
      storage: stores the results.
      progress: whether to show a bar.

    Raises:
      KeyboardInterrupt: the user interrupts; the message gives the progress and the files left.
      ValueError: results that cannot be assembled from tiles.
    """
    assembly = _Assembly(tiler, grid, get, storage)
    total = grid.counts[0] * grid.counts[1]
    try:
        if grid.whole and not storage.reserves:
            return jax.tree.map(_owned, _checked(_only_tile(tiler)))
        if storage.reserves:
            assembly.allocate(tiler.outline())
        with progress_bar(total, progress and not grid.single) as advance:
            for done in assembly.run():
                advance(done)
        return assembly.finish()
    except KeyboardInterrupt:
        share = assembly.done / max(total, 1)
        raise KeyboardInterrupt(
            f"gram was interrupted after {share:.0%} of {total} pairs: {storage.abandon()}"
        ) from None
    except BaseException as error:
        error.add_note(f"gram ended early: {storage.abandon()}")
        raise


def kernels_between(
    kernel_fn: KernelFunction, x1: PyTree, x2: PyTree, get: object, memory: int, kwargs: Keywords
) -> PyTree:
    """Returns `kernel_fn(x1, x2, get, **kwargs)`, in tiles if it is too large for one call.

    It is also one call if anything is traced, if `kernel_fn` already works in tiles, draws at
    random (`rng`) or combines samples of a batch, and for inputs that are not arrays.

    Args:
      kernel_fn: a function of kernels.
      x1: inputs.
      x2: inputs, or None for x1.
      get: a name or a tuple of names.
      memory: budget of tiles in bytes.
      kwargs: keywords of `kernel_fn`.

    Raises:
      ValueError: a budget too small for one entry, or errors of `kernel_fn`.
    """
    kernel_fn, kwargs = unwrapped(kernel_fn, kwargs)
    tiler = _tiler_for(kernel_fn, x1, x2, get, memory, kwargs)
    if tiler is None:
        return kernel_fn(x1, x2, get, **kwargs)
    with jax.ensure_compile_time_eval():  # concrete data remain concrete inside the user's jit
        result = _in_tiles(tiler, get, memory, has_tiler=hasattr(kernel_fn, "tiler"))
    return kernel_fn(x1, x2, get, **kwargs) if result is None else result


def _in_tiles(tiler: Tiler, get: object, memory: int, *, has_tiler: bool) -> PyTree:
    """Returns the kernels between all samples, None if one call is as good."""
    grid = choose_grid(tiler, memory, len(resolve_devices(None)))
    if grid.whole and has_tiler:
        return _only_tile(tiler)
    if grid.single or not (has_tiler or is_concrete(tiler.outline())):
        return None
    result = compute(tiler, grid, get, Memory(), progress=True)
    for leaf in jax.tree.leaves(result):
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False  # so that it need not be copied
    return result


def _tiler_for(
    kernel_fn: KernelFunction, x1: PyTree, x2: PyTree, get: object, memory: int, kwargs: Keywords
) -> Tiler | None:
    """Returns the tiler of a kernel function, None if only one call is possible."""
    if getattr(kernel_fn, "works_in_tiles", False) or "rng" in kwargs:
        return None
    for leaf in jax.tree.leaves((x1, x2), is_leaf=is_kernel):
        if not (isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim):
            return None
    if not (is_concrete(x1, x2, kwargs) and getattr(kernel_fn, "is_concrete", True)):
        return None
    has_tiler = hasattr(kernel_fn, "tiler")
    if has_tiler and kwargs.get("diagonal_batch") is False:
        return None
    try:
        tiler = make_tiler(kernel_fn, x1, x2, (get,), resolve_devices(None), kwargs)
        tiler.check()
    except ValueError:
        return None  # samples cannot be cut; one call may raise the same error
    # For other functions a trace may not be worthwhile.
    return tiler if has_tiler or math.prod(tiler.counts) * _LARGE_ENTRY > memory else None


def _only_tile(tiler: Tiler) -> PyTree:
    """Returns the kernels between all samples."""
    n1, n2 = tiler.counts
    first = tiler.prepare(tiler.rows(0, 0, n1, n1))
    return tiler.tile(first, None if tiler.same else tiler.prepare(tiler.rows(1, 0, n2, n2)))


def _checked(tile: PyTree) -> PyTree:
    """Returns a tile with concrete values.

    Raises:
      TracedTileError: it is traced.
    """
    if not is_concrete(tile):
        raise TracedTileError(
            "expected concrete kernels to assemble them from tiles, got traced ones: "
            "call kernel_fn or wl.batch(kernel_fn, size) inside jit, vmap or grad"
        )
    return tile


def _owned(value: object) -> object:
    """Returns an array as a writeable NumPy array."""
    if not isinstance(value, np.ndarray | jax.Array):
        return value
    values = np.asarray(value)
    return values if values.flags.writeable else values.copy()


class _Assembly:
    """A result, assembled from tiles.

    Attributes:
      done: number of pairs of samples so far.
    """

    def __init__(self, tiler: Tiler, grid: Grid, get: object, storage: Storage) -> None:
        self._tiler, self._grid, self._get, self._storage = tiler, grid, get, storage
        self._pieces = _Pieces(tiler, grid)
        self._arrays: dict[str, np.ndarray] = {}
        self._first: PyTree = None
        self._found: list[Part] = []
        self._mirrors = False
        self.done = 0

    def allocate(self, result: PyTree) -> None:
        """Allocates the arrays of the whole result, from the shapes of a tile."""
        arrays = {part.key: part for part in self._parts(result)}
        self._storage.check(list(arrays))
        self._arrays = {
            key: self._storage.allocate(key, part.shape(self._grid.counts), part.value.dtype)
            for key, part in arrays.items()
        }

    def run(self) -> Iterator[int]:
        """Computes the tiles that are needed; yields the number of pairs that each completes."""
        first = self._tile(0, 0)
        self._begin(first)
        rows, columns = self._grid.spans(0), self._grid.spans(1)
        places = list(itertools.product(range(len(rows)), range(len(columns))))
        places = [p for p in places if p == (0, 0) or any(self._tells(q, p) for q in self._found)]
        areas = [(rows[i][1] - rows[i][0]) * (columns[j][1] - columns[j][0]) for i, j in places]
        total = self._grid.counts[0] * self._grid.counts[1]
        for place, area in zip(places, itertools.accumulate(areas), strict=True):
            self._put(first if place == (0, 0) else self._tile(*place), place)
            before, self.done = self.done, total * area // max(sum(areas), 1)
            yield self.done - before

    def _begin(self, tile: PyTree) -> None:
        self._first, self._found = tile, self._parts(tile)
        pairs = [part for part in self._found if part.is_pairs]
        self._mirrors = self._tiler.same and all(part.mirrors for part in pairs)
        if not self._arrays:
            self.allocate(tile)
        self._storage.check([part.key for part in self._found])

    def finish(self) -> PyTree:
        """Returns the whole result."""
        self._arrays = {}
        return rebuild(self._first, self._storage.finish(), self._grid.counts)

    def _tile(self, i: int, j: int) -> PyTree:
        first = self._pieces.get(0, i)
        own = self._tiler.same and i == j
        return _checked(self._tiler.tile(first, None if own else self._pieces.get(1, j)))

    def _parts(self, result: PyTree) -> list[Part]:
        return parts(result, self._get, self._tiler.diagonal_spatial, self._tiler.layout())

    def _put(self, tile: PyTree, place: tuple[int, int]) -> None:
        """Puts a tile into the result."""
        ends = [self._grid.spans(side)[k] for side, k in enumerate(place)]
        spans = slice(*ends[0]), slice(*ends[1])
        tile_parts = {part.key: part for part in self._parts(tile)}
        for part in self._found:
            if part.samples.sides and not self._tells(part, place):
                continue
            target = self._arrays[part.key]
            index = part.index(spans)
            value = self._entries(part, tile_parts.get(part.key), target[index].shape, ends)
            if not part.samples.sides and place != (0, 0) and not same_values(target, value):
                raise totals_refused(part.key, value)
            target[index] = value
            if part.is_pairs and self._mirrors and place[0] != place[1]:
                target[part.index(spans[::-1])] = part.mirrored(np.asarray(value))

    def _entries(
        self,
        part: Part,
        tile_part: Part | None,
        shape: tuple[int, ...],
        ends: list[tuple[int, int]],
    ) -> AnyArray:
        """Returns the entries of a tile, without its repeated last samples.

        Raises:
          ValueError: an array of another shape, or a missing one.
        """
        counts = tuple(stop - start for start, stop in ends)
        value = None if tile_part is None else np.asarray(tile_part.value)
        if tile_part is not None and value is not None and value.ndim == len(part.value.shape):
            entries = value[part.index((slice(counts[0]), slice(counts[1])))]
            fit = (
                value.shape[axis] in (counts[side], self._grid.sizes[side])
                for side, axis in zip(part.samples.sides, part.samples.axes, strict=True)
            )
            if all(fit) and entries.shape == shape:
                return entries
        raise ValueError(
            f"expected the same axes for every tile{at(part.key)}, {shape} for one of "
            f"{counts[0]} x {counts[1]} samples, got {None if value is None else value.shape}: "
            "only results with separate entries for every sample can be assembled from tiles"
        )

    def _tells(self, part: Part, place: tuple[int, int]) -> bool:
        """Returns whether a tile holds entries of this array that no other tile holds."""
        i, j = place
        if part.is_pairs:
            return i <= j or not self._mirrors
        if part.samples.diagonal or (self._tiler.same and part.samples.sides):
            return i == j
        return bool(part.samples.sides) and place[1 - part.samples.sides[0]] == 0


class _Pieces:
    """A cache of prepared pieces of samples, within the memory budget, most recently used first."""

    def __init__(self, tiler: Tiler, grid: Grid) -> None:
        self._tiler, self._grid = tiler, grid
        self._kept: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
        self._room = 2 + grid.spare // max(grid.sizes)

    def get(self, side: int, index: int) -> Any:
        """Returns a prepared piece; for x with itself both sides share pieces."""
        key = (0 if self._tiler.same else side, index)
        if key not in self._kept:
            while len(self._kept) >= self._room:
                self._kept.popitem(last=False)
            span = self._grid.spans(key[0])[index]
            rows = self._tiler.rows(key[0], *span, self._grid.sizes[key[0]])
            self._kept[key] = self._tiler.prepare(rows)
        self._kept.move_to_end(key)
        return self._kept[key]
