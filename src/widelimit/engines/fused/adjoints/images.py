"""Derivatives of kernels of images: pairs on all threads, stage by stage."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np

from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.adjoints.cotangents import Cotangents, Pulled
from widelimit.engines.fused.adjoints.order import in_own_slots, slots_of, values_read
from widelimit.engines.fused.constants import table
from widelimit.engines.fused.engine import (
    BoundStage,
    ImageKernels,
    Prepared,
    call_stage,
    pair_order,
    with_equality,
)
from widelimit.engines.fused.geometry import Geometry
from widelimit.engines.fused.parallel import run_parallel
from widelimit.engines.fused.stages import SpatialProgram, Stage
from widelimit.layers.base import Layer

_GROUP = 16  # pairs that a thread takes at a time, at most


@dataclasses.dataclass(frozen=True)
class _Backward:
    """What a stage needs beside its tables to run backwards.

    Attributes:
      bound: the stage, with more room around slices, and slots for all values and cotangents.
      forward: instructions that keep all values, and their numbers.
      reads: `order.values_read`.
      pulls: addresses of the loops of nonlinearities.
      places: where cotangents of the variances of an image are, per instruction.
      rows: where its instructions are among those of all stages.
    """

    bound: BoundStage
    forward: tuple[np.ndarray, np.ndarray]
    reads: np.ndarray
    pulls: np.ndarray
    places: np.ndarray
    rows: slice


class _ImageSums:
    """What a thread adds up: cotangents of numbers, and of pixels and variances of images."""

    def __init__(self, ops: int, sizes: tuple[int, ...], room: int) -> None:
        self.numbers = np.zeros((ops, m.NUMBERS))
        self.images = [np.zeros((n, room)) for n in sizes]

    def add(self, other: _ImageSums) -> None:
        """Adds those of another thread."""
        self.numbers += other.numbers
        for mine, theirs in zip(self.images, other.images, strict=True):
            mine += theirs


class ImageAdjoints:
    """The derivatives of a network bound to its hyper-parameters, in float64.

    Args:
      program: the network, lowered; all of its activations have partials.
      net: the network, for its numbers.
    """

    def __init__(self, program: SpatialProgram, net: Layer) -> None:
        self.kernels = ImageKernels(program, net, np.float64, single=False)
        self.program = program
        channels = program.image[0]
        self._pixels = channels * program.stages[0].levels[0].plane
        room, first, places, rows = self._pixels, 0, [], []
        for stage in program.stages:
            places.append(np.zeros(len(stage.code), np.int64))
            rows.append(slice(first, first + len(stage.code)))
            first += len(stage.code)
            for i, op in enumerate(stage.code):
                if op[m.CODE] == m.NONLINEAR:
                    places[-1][i] = room
                    room += stage.levels[op[m.LEVEL]].plane
        self._room, self._ops = room, first
        self._cross, self._own = (
            [
                _backward(stage, bound, place, row)
                # Variances are needed up to some stage only.
                for stage, bound, place, row in zip(
                    program.stages, side, places, rows, strict=False
                )
            ]
            for side in (self.kernels.cross, self.kernels.own)
        )

    def pull(
        self, first: Prepared, second: Prepared | None, given: Cotangents, inputs: bool
    ) -> Pulled:
        """Returns what cotangents of kernels become; samples are [n, channels, rows, columns].

        Args:
          first: images of x1.
          second: images of x2; None stands for `first`.
          given: the cotangents.
          inputs: whether those of images are wanted.
        """
        other = first if second is None else second
        n1, n2 = len(first.digests), len(other.digests)
        pairs = pair_order(n1, n2, symmetric=second is None)
        bars = np.stack([_of_pairs(values, pairs, second is None) for values in given[:2]], axis=1)
        sums = self._pairs(first, second, pairs, bars, inputs)
        for i, (side, values) in enumerate(((first, given.cov1), (second, given.cov2))):
            if side is None:
                continue
            if values is not None:
                self._variances(side, values, sums, i, inputs)
            self._own_pairs(side, sums, i, inputs)
        if not inputs:
            return Pulled(sums.numbers, None, None)
        x1 = self._images(sums.images[0])
        return Pulled(sums.numbers, x1, None if second is None else self._images(sums.images[1]))

    def _images(self, bars: np.ndarray) -> np.ndarray:
        """Returns the cotangents of pixels [n, channels, rows, columns]."""
        channels, height, width = self.program.image
        planes = bars[:, : self._pixels].reshape(len(bars), channels, height, -1)
        return planes[..., :width]

    def _variances(
        self, side: Prepared, values: np.ndarray, sums: _ImageSums, place: int, inputs: bool
    ) -> None:
        """Adds what variances of the output contribute."""
        n = len(side.digests)
        pairs = np.stack([np.arange(n), np.arange(n)], axis=1)
        bars = np.stack([values.astype(np.float64), np.zeros(n)], axis=1)
        found = self._pairs(side, None, pairs, bars, inputs)
        sums.numbers += found.numbers
        sums.images[place] += found.images[0]

    def _pairs(
        self, first: Prepared, second: Prepared | None, pairs: Any, bars: Any, inputs: bool
    ) -> _ImageSums:
        """Returns what pairs of images contribute."""
        other = first if second is None else second
        sizes = tuple(len(side.digests) for side in (first, second) if side is not None)
        full = with_equality(first, other, pairs)
        bars = bars * self.program.scale
        images = (first.numbers, other.numbers)
        tasks = [slice(i, i + _GROUP) for i in range(0, len(full), _GROUP)]
        if len(full) < 4 * _GROUP:
            tasks = [slice(i, i + 1) for i in range(len(full))]
        return self._on_threads(self._cross, full, bars, images, sizes, tasks, False, inputs)

    def _own_pairs(self, side: Prepared, sums: _ImageSums, place: int, inputs: bool) -> None:
        """Adds what the variances at all nonlinearities contribute."""
        if not self._own:
            return
        images = (side.numbers, side.numbers)
        lock, bars = threading.Lock(), sums.images[place]

        def part(i: int) -> None:
            found = _ImageSums(self._ops, (), 0)
            found.images = [bars[i : i + 1]]  # rows of images are those of one task
            here = tuple(v[i : i + 1] for v in images)
            pair = np.array([[0, 0, 1]])
            self._run(self._own, pair, np.zeros((1, 2)), here, found, True, inputs)
            with lock:
                sums.numbers[:] += found.numbers

        run_parallel(part, list(range(len(side.digests))))

    def _on_threads(
        self,
        stages: Any,
        pairs: np.ndarray,
        given: np.ndarray,
        images: Any,
        sizes: tuple[int, ...],
        tasks: list[slice],
        own: bool,
        inputs: bool,
    ) -> _ImageSums:
        """Returns the sums over pairs; every thread has its own until the end."""
        local, all_sums, lock = threading.local(), [], threading.Lock()

        def part(task: slice) -> None:
            if not hasattr(local, "sums"):
                local.sums = _ImageSums(self._ops, sizes, self._room)
                with lock:
                    all_sums.append(local.sums)
            self._run(stages, pairs[task], given[task], images, local.sums, own, inputs)

        run_parallel(part, tasks)
        if not all_sums:
            return _ImageSums(self._ops, sizes, self._room)
        for sums in all_sums[1:]:
            all_sums[0].add(sums)
        total: _ImageSums = all_sums[0]
        return total

    def _run(
        self,
        stages: Any,
        pairs: Any,
        given: Any,
        images: Any,
        sums: _ImageSums,
        own: bool,
        inputs: bool,
    ) -> None:
        """Adds what pairs contribute: all stages forwards, then backwards."""
        stores = [np.zeros(0)]
        for stage in stages[:-1]:
            bound, store = stage.bound, np.zeros(2 * len(pairs) * stage.bound.room)
            chosen, columns = (
                np.arange(bound.geometry.blocks),
                np.array([0, len(bound.column_costs)]),
            )
            nothing = np.zeros((len(pairs), bound.geometry.blocks, 2))
            call_stage(
                bound,
                pairs,
                chosen,
                columns,
                images[0],
                images[1],
                stores[-1],
                store,
                nothing,
                record=False,
            )
            stores.append(store)
        store_bar = np.zeros(0)
        for stage, store in zip(reversed(stages), reversed(stores), strict=True):
            before = np.zeros(store.shape)
            _pull(stage, pairs, given, images, (store, before, store_bar), sums, own, inputs)
            store_bar = before


def _backward(stage: Stage, bound: BoundStage, places: np.ndarray, rows: slice) -> _Backward:
    """Returns a stage that runs backwards."""
    from widelimit.engines.fused.adjoints.pulls import pull_address

    reads = values_read(stage.code)
    pulls = [
        0 if placed is None else pull_address(placed.activation, np.dtype(float), "pairs")
        for placed in stage.activations
    ]
    geometry = _widened(bound.geometry, stage.code)
    sizes = bound.sizes.copy()
    sizes[[m.LENGTH, m.FRONT, m.BACK]] = geometry.length, geometry.front, geometry.back
    sizes[m.SLOTS] = max(slots_of(reads), int(sizes[m.SLOTS]))
    return _Backward(
        dataclasses.replace(bound, geometry=geometry, sizes=sizes),
        in_own_slots(bound.code, bound.numbers, reads),
        reads,
        np.array(pulls, np.int64),
        places,
        rows,
    )


def _widened(geometry: Geometry, code: np.ndarray) -> Geometry:
    """Returns a geometry with room for the widest window on either side of a slice."""
    spans = [
        (code[:, t] - 1).clip(0) * code[:, s]
        for t, s in ((m.TAPS_Y, m.STEP_Y), (m.TAPS_X, m.STEP_X))
    ]
    widest = int(geometry.tables[2][:, :, m.ROW].max())
    more = -(-int((spans[0] * widest + spans[1]).max()) // m.VECTOR) * m.VECTOR
    return geometry._replace(
        front=geometry.front + more, back=geometry.back + more, length=geometry.length + 4 * more
    )


def _pull(
    stage: _Backward,
    pairs: np.ndarray,
    given: np.ndarray,
    images: Any,
    stores: Any,
    sums: _ImageSums,
    own: bool,
    inputs: bool,
) -> None:
    """Runs a stage backwards."""
    from widelimit.engines.fused.adjoints.image_machine import pull_stage

    bound, sizes = stage.bound, stage.bound.sizes
    geometry = bound.geometry
    widest = -(-int(geometry.tables[0][:, m.SIZE_X].max()) // m.VECTOR) * m.VECTOR
    slots = 2 * int(sizes[m.SLOTS]) + m.MASKS + len(geometry.tables[0])
    pull_stage(
        *stage.forward,
        bound.code,
        bound.numbers,
        stage.reads,
        stage.pulls,
        stage.places,
        table(np.dtype(np.float64)),
        sizes,
        geometry.tables,
        geometry.masks,
        geometry.rows,
        bound.places,
        bound.scale,
        bound.pool,
        pairs,
        given,
        *images,
        *stores,
        sums.images[0],
        sums.images[-1],
        sums.numbers[stage.rows],
        own,
        inputs,
        np.zeros(slots * geometry.length + m.WORK),
        np.empty(images[0].shape[1] + images[1].shape[1] + 2 * m.VECTOR),
        np.zeros(2 * int(bound.pool[-1][-1]) * widest),
    )


def _of_pairs(values: np.ndarray | None, pairs: np.ndarray, symmetric: bool) -> np.ndarray:
    """Returns cotangents of pairs [m], of both orders if symmetric; zeros for none."""
    if values is None:
        return np.zeros(len(pairs))
    i, j = pairs.T
    found = values[i, j].astype(np.float64)
    if symmetric:
        found += np.where(i == j, 0, values[j, i])
    return found
