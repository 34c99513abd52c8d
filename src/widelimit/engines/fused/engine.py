"""Kernels of a program on arrays of images: prepared once per image, then pair by pair."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from widelimit.engines.fused import geometry as g
from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.constants import table
from widelimit.engines.fused.parallel import count_threads, run_parallel
from widelimit.engines.fused.stages import SpatialProgram, Stage
from widelimit.engines.fused.tape import numbers_of, with_addresses
from widelimit.layers.base import Layer

_STORE = 1 << 21  # bytes of pooled covariances that a thread works on at a time
_WORK = 1 << 23  # entries of layers that a thread computes at a time
_TILE = 8  # pairs go in tiles of so many images squared, which stay in cache


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Images with what nonlinearities need of their variances.

    Attributes:
      numbers: [n, room]: the images, and the numbers recorded of them.
      digests: per image, equal for equal images.
      variances: of each image at the end, if the layers behind need them; else None.
      lost: whether a variance is NaN, as it is where a series is not known.
      images: [n, channels, rows, columns], which are among the numbers.
    """

    numbers: np.ndarray
    digests: tuple[bytes, ...]
    variances: np.ndarray | None
    lost: bool
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class BoundStage:
    """A stage bound to hyper-parameters, with its tables: see `machine.run_stages`."""

    code: np.ndarray
    held: list[np.ndarray]  # what the code has the addresses of
    numbers: np.ndarray
    sizes: np.ndarray
    geometry: g.Geometry
    places: np.ndarray
    scale: Any
    pool: tuple[np.ndarray, ...]
    column_costs: np.ndarray
    room: int


class ImageKernels:
    """A network bound to its hyper-parameters, ready to run.

    Args:
      program: the network, lowered.
      net: the network, for its numbers.
      dtype: float32 or float64.
      single: whether results are rounded to float32.

    Attributes:
      cross: stages of pairs of images.
      own: stages of images with themselves, as far as variances are needed.
    """

    def __init__(self, program: SpatialProgram, net: Layer, dtype: Any, single: bool) -> None:
        self.program = program
        self.dtype = np.dtype(dtype)
        numbers = [numbers_of(stage.sources, net, self.dtype) for stage in program.stages]
        self.cross = _bind(program, net, numbers, self.dtype, own=False, single=single)
        self.own = _bind(program, net, numbers, self.dtype, own=True, single=single)

    def prepare(self, images: np.ndarray) -> Prepared:
        """Returns images [n, channels, rows, columns] with their variances at every layer."""
        n = len(images)
        channels, height, width = self.program.image
        # Loops read up to a vector beyond the last number.
        numbers = np.zeros((n, self.program.room + m.VECTOR), self.dtype)
        pitch = self.program.stages[0].levels[0].pitch
        planes = numbers[:, : channels * height * pitch].reshape(n, channels, height, pitch)
        planes[..., :width] = images
        digests = tuple(
            hashlib.blake2b(image.data, digest_size=16).digest() for image in _rows(images)
        )
        lost = False
        if self.own:
            same = np.stack([np.arange(n), np.arange(n), np.ones(n, np.int64)], axis=1)
            sums = np.empty((n, 2))

            def record(part: slice) -> None:
                sums[part] = self._run(self.own, same[part], numbers, numbers, record=True)

            run_parallel(record, _split(n, count_threads()))
            variances, lost = sums[:, 0] * self.program.scale, bool(np.isnan(sums[:, 0]).any())
        known = variances if self.program.own else None
        return Prepared(numbers, digests, known, lost, planes[..., :width])

    def kernels(self, first: Prepared, second: Prepared, pairs: np.ndarray) -> np.ndarray:
        """Returns K and T [m, 2] of pairs [m, 2] of prepared images.

        Those of all pairs of positions [m, 2, room], as `geometry.store_places` says, where the
        program keeps them.
        """
        full = with_equality(first, second, pairs)
        threads = count_threads()
        many = len(full) - len(full) % threads if len(full) < 16 * threads else len(full)
        room = self.cross[-1].room
        out = np.empty((len(full), 2, room), self.dtype) if room else np.empty((len(full), 2))

        def whole(part: slice) -> None:
            out[part] = self._run(
                self.cross, full[part], first.numbers, second.numbers, record=False
            )

        group = max(1, min(self._group(), -(-many // threads)))  # work for every thread
        run_parallel(whole, [slice(i, min(i + group, many)) for i in range(0, many, group)])
        for i in range(many, len(full)):
            out[i] = self._run_split(full[i : i + 1], first.numbers, second.numbers, threads)
        return out * self.program.scale

    def between(self, first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Returns K and T [m, 2] of pairs [m, 2] of images, of which only those are prepared."""
        used, places = zip(*(np.unique(side, return_inverse=True) for side in pairs.T), strict=True)
        sides = (self.prepare(first[used[0]]), self.prepare(second[used[1]]))
        return self.kernels(*sides, np.column_stack(places))

    def _group(self) -> int:
        """Returns how many pairs a thread takes at a time: a few milliseconds, if they fit."""
        work = sum(len(s.code) * int(s.geometry.tables[2][:, 0, m.COUNT].sum()) for s in self.cross)
        store = 2 * max(stage.room for stage in self.cross) * self.dtype.itemsize
        return max(1, min(_TILE**2, _WORK // max(work, 1), _STORE // max(store, 1)))

    def _run(
        self, stages: Any, pairs: np.ndarray, prep1: Any, prep2: Any, *, record: bool
    ) -> np.ndarray:
        """Returns the sums [m, 2] of pairs, on the calling thread."""
        store = np.zeros(0, self.dtype)
        sums = np.zeros((len(pairs), 0, 2))
        for stage in stages:
            chosen = np.arange(stage.geometry.blocks)
            out = np.zeros(2 * len(pairs) * stage.room, self.dtype)
            sums = np.zeros((len(pairs), stage.geometry.blocks, 2))
            columns = np.array([0, len(stage.column_costs)])
            call_stage(stage, pairs, chosen, columns, prep1, prep2, store, out, sums, record)
            store = out
        return _result(store, sums)

    def _run_split(self, pairs: np.ndarray, prep1: Any, prep2: Any, threads: int) -> np.ndarray:
        """Returns the sums of one pair, on all threads; the same to the bit as `_run`."""
        store = np.zeros(0, self.dtype)
        sums = np.zeros((1, 0, 2))
        for stage in self.cross:
            out = np.zeros(2 * stage.room, self.dtype)
            sums = np.zeros((1, stage.geometry.blocks, 2))
            parts = _parts(stage, threads)

            def part(
                task: Any, stage: Any = stage, store: Any = store, out: Any = out, sums: Any = sums
            ) -> None:
                chosen, columns = task
                call_stage(stage, pairs, chosen, columns, prep1, prep2, store, out, sums, False)

            run_parallel(part, parts)
            store = out
        return _result(store, sums)


def _bind(
    program: SpatialProgram,
    net: Layer,
    numbers: list[np.ndarray],
    dtype: np.dtype,
    *,
    own: bool,
    single: bool,
) -> tuple[BoundStage, ...]:
    """Returns the stages for pairs of x1 with x2, or for images with themselves."""
    bound = []
    for i, stage in enumerate(program.stages):
        geometry = stage.own if own else stage.cross
        if geometry is None:
            break
        targets = None if own else program.kept
        if i + 1 < len(program.stages):
            following = program.stages[i + 1]
            targets = following.own_offsets if own else following.cross_offsets
        sizes = stage.sizes.copy()
        sizes[[m.LENGTH, m.FRONT, m.BACK]] = geometry.length, geometry.front, geometry.back
        if own and (targets is None or not targets[0]):
            targets, sizes[m.END] = None, m.SUM
        tables = _tables(stage, targets, own)
        code, held = with_addresses(
            stage.code, stage.activations, net, dtype, space=True, single=single
        )
        bound.append(
            BoundStage(
                code,
                held,
                numbers[i],
                sizes,
                geometry,
                tables.places_in,
                dtype.type(stage.scale),
                tables.pool,
                tables.costs,
                tables.room,
            )
        )
    return tuple(bound)


@dataclasses.dataclass(frozen=True)
class _Tables:
    places_in: np.ndarray
    pool: tuple[np.ndarray, ...]
    costs: np.ndarray
    room: int


@functools.lru_cache(maxsize=256)
def _tables(stage: Stage, targets: g.Offsets2 | None, own: bool) -> _Tables:
    """Returns where a stage finds what it loads, and where it puts what it pools at `targets`."""
    geometry = stage.own if own else stage.cross
    offsets = stage.own_offsets if own else stage.cross_offsets
    assert geometry is not None
    blocks = geometry.tables[1]
    counts = blocks[:, m.RECTS_TO] - blocks[:, m.RECTS_FROM]
    places, _ = g.store_places(stage.levels[0], offsets)
    places_in = places[np.repeat(blocks[:, m.COLUMN], counts), geometry.rows]
    if targets is None or stage.pool is None:
        none, nothing = np.zeros((0, 6), np.int64), np.zeros(1, np.int64)
        return _Tables(places_in, (nothing, none, nothing, none, none, nothing), np.zeros(0), 0)
    places_out, room = g.store_places(stage.out, targets)
    level = stage.levels[stage.sizes[m.FINAL_LEVEL]]
    inner = [tuple(d // level.stride[i] for d in offsets[i]) for i in range(2)]
    rows, columns = (
        g.pool_items(stage.pool[i], inner[i], targets[i], (level.line(i), stage.out.line(i)))
        for i in range(2)
    )
    runs = g.pool_runs(stage.pool[1], inner[1], level.line(1), columns)
    costs, heights = stage.out.extents(targets[1], 1), stage.out.extents(targets[0], 0)
    firsts = np.concatenate([[0], np.cumsum(heights)])
    return _Tables(places_in, (*runs, *rows, places_out, firsts), costs, room)


def _parts(stage: BoundStage, threads: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns blocks and pooled columns for each thread; every output is that of one thread."""
    blocks = np.arange(stage.geometry.blocks)
    if stage.sizes[m.END] == m.SUM:
        nothing = np.zeros(2, np.int64)
        return [(blocks[i::threads], nothing) for i in range(threads) if len(blocks) > i]
    ends = np.cumsum(stage.column_costs)
    shares = np.searchsorted(ends, ends[-1] * np.arange(threads + 1) / threads)
    shares[-1] = len(ends)
    starts, runs = stage.pool[0], stage.pool[1]
    of_block = stage.geometry.tables[1][:, m.COLUMN]
    parts = []
    for low, high in itertools.pairwise(shares):
        reached = np.array(
            [
                ((runs[a:b, m.RUN_TARGET] >= low) & (runs[a:b, m.RUN_TARGET] < high)).any()
                for a, b in itertools.pairwise(starts)
            ]
        )
        if high > low:
            parts.append((blocks[reached[of_block]], np.array([low, high])))
    return parts


def call_stage(
    stage: BoundStage,
    pairs: np.ndarray,
    chosen: np.ndarray,
    columns: np.ndarray,
    prep1: np.ndarray,
    prep2: np.ndarray,
    store_in: np.ndarray,
    store_out: np.ndarray,
    sums: np.ndarray,
    record: bool,
) -> None:
    """Runs a stage."""
    from widelimit.engines.fused.machine import run_stages

    geometry, sizes = stage.geometry, stage.sizes
    copies = 1 + int(geometry.tables[0][0, m.CIRCULAR])
    widest = -(-int(geometry.tables[0][:, m.SIZE_X].max()) // m.VECTOR) * m.VECTOR
    slots = 2 * int(sizes[m.SLOTS]) + m.MASKS + len(geometry.tables[0])
    run_stages(
        stage.code,
        stage.numbers,
        table(stage.numbers.dtype),
        sizes,
        geometry.tables,
        geometry.masks,
        geometry.rows,
        stage.places,
        stage.scale,
        stage.pool,
        chosen,
        pairs,
        prep1,
        prep2,
        store_in,
        store_out,
        sums,
        columns,
        record,
        np.zeros(slots * geometry.length + m.WORK, stage.numbers.dtype),
        np.empty(copies * (prep1.shape[1] + prep2.shape[1]) + 2 * m.VECTOR, stage.numbers.dtype),
        np.zeros(2 * int(stage.pool[-1][-1]) * widest, stage.numbers.dtype),
    )


def _result(store: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Returns what the last stage has kept of every pair [m, 2, room], or its sums [m, 2]."""
    if len(store) == 0:
        return _ordered_sum(sums)
    return store.reshape(2, len(sums), -1).swapaxes(0, 1)


def _ordered_sum(sums: np.ndarray) -> np.ndarray:
    """Returns the sums [m, 2] over blocks, in an order that does not depend on m."""
    total = np.zeros((len(sums), 2))
    for b in range(sums.shape[1]):
        total += sums[:, b]
    return total


def with_equality(first: Prepared, second: Prepared, pairs: np.ndarray) -> np.ndarray:
    """Returns pairs [m, 3] of prepared images with whether they are the same image."""
    known: dict[bytes, int] = {}
    names1, names2 = (
        np.array([known.setdefault(digest, len(known)) for digest in side.digests], np.int64)
        for side in (first, second)
    )
    return np.column_stack([pairs, names1[pairs[:, 0]] == names2[pairs[:, 1]]])


def pair_order(n1: int, n2: int, symmetric: bool) -> np.ndarray:
    """Returns all pairs [m, 2] (those with i <= j if symmetric), tile by tile."""
    i, j = (index.ravel() for index in np.indices((n1, n2)))
    if symmetric:
        i, j = i[i <= j], j[i <= j]
    order = np.lexsort((j, i, j // _TILE, i // _TILE))
    return np.stack([i[order], j[order]], axis=1)


def _rows(images: np.ndarray) -> Iterable[np.ndarray]:
    return (np.ascontiguousarray(image) for image in images)


def _split(n: int, parts: int) -> list[slice]:
    bounds = np.linspace(0, n, parts + 1).astype(np.int64)
    return [slice(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
