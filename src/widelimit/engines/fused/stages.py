"""The stages of a program: instructions, layer by layer, for networks with spatial axes.

Inside a stage offsets do not mix: a slice at one offset goes through all its layers. A pool over
windows ends a stage, since it sums over offsets; a global pool or a Flatten ends the last one, or
the covariances of all pairs of positions are kept there.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from widelimit.covariance.offsets import Need, Offsets
from widelimit.covariance.signal import Signal
from widelimit.engines.fused import geometry as g
from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.activations.base import RefusedError
from widelimit.engines.fused.tape import (
    INPUT,
    Activations,
    Path,
    Reach,
    Source,
    Tape,
    Value,
    at_path,
)
from widelimit.layers.base import Layer, Site
from widelimit.layers.combine import Serial
from widelimit.layers.convolution import Conv
from widelimit.layers.pooling import AvgPool, GlobalAvgPool, GlobalSumPool, SumPool
from widelimit.layers.reshape import Flatten, Identity


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What `machine.run` needs of a stage, hyper-parameters apart.

    Attributes:
      code: instructions [ops, COLUMNS].
      sources: per instruction, a function from the network to its numbers; None without any.
      activations: per instruction, the activation; None without any.
      sizes: [SIZES], without the room that depends on geometry.
      levels: grids.
      cross: geometry of x1 with x2.
      own: geometry of an image with itself, None where no variance is needed.
      pool: the pool that ends the stage, per axis; None where all is summed.
      out: the grid of what is pooled.
      scale: factor of what the stage before has pooled.
    """

    code: np.ndarray
    sources: tuple[Source | None, ...]
    activations: Activations
    sizes: np.ndarray
    levels: tuple[g.Level, ...]
    cross: g.Geometry
    own: g.Geometry | None
    cross_offsets: g.Offsets2
    own_offsets: g.Offsets2
    pool: tuple[g.PoolAxis, g.PoolAxis] | None
    out: g.Level
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class SpatialProgram:
    """A network up to the end of its spatial axes, or up to a layer that is refused.

    Attributes:
      stages: in order.
      image: (channels, rows, columns) of an image.
      room: numbers kept per prepared image.
      scale: factor of the final sums.
      kept: offsets that are kept at the end; None where all positions are summed.
      tangent: whether there is a tangent kernel at the end.
      own: whether the layers behind need variances of the images.
      gaussian: whether channels are Gaussian there.
      signal_out: description of what the layers behind get.
      behind: where these stand in the network.
    """

    stages: tuple[Stage, ...]
    image: tuple[int, int, int]
    room: int
    scale: float
    kept: g.Offsets2 | None
    tangent: bool
    own: bool
    gaussian: bool
    signal_out: Signal
    behind: tuple[Path, ...]

    def tail(self, net: Layer) -> Serial:
        """Returns the layers behind.

        Where there still is space they keep their places, which errors name.
        """
        if self.kept is None:
            return Serial(tuple(at_path(net, path) for path in self.behind))
        left = _behind(net, (), self.behind)
        return left if isinstance(left, Serial) else Serial((left,))

    def head(self, net: Layer) -> Layer:
        """Returns the layers of the program, with the identity in place of those behind."""
        return _ahead(net, (), self.behind)


def _ahead(layer: Layer, path: Path, behind: tuple[Path, ...]) -> Layer:
    """Returns a network with the identity in place of all layers that are behind."""
    if path in behind:
        return Identity()
    if isinstance(layer, Serial):
        inner = enumerate(layer.layers)
        return Serial(tuple(_ahead(part, (*path, i), behind) for i, part in inner))
    return layer


def _behind(layer: Layer, path: Path, behind: tuple[Path, ...]) -> Layer:
    """Returns a network with the identity in place of all layers that are not behind."""
    if isinstance(layer, Serial):
        inner = enumerate(layer.layers)
        return Serial(tuple(_behind(part, (*path, i), behind) for i, part in inner))
    return layer if path in behind else Identity()


class CircularError(RefusedError):
    """There is a circular window: offsets are those modulo the size, from the start."""


_MIXED = "circular and other windows stand in one network"
ENDS = (GlobalAvgPool, GlobalSumPool, Flatten)


def _plane(values: Any, fill: Any) -> tuple[Any, Any]:
    """Returns two entries, for rows and columns; one spatial axis is that of the columns."""
    values = tuple(values)
    return (fill, *values) if len(values) == 1 else values


class StageTape(Tape):
    """Collects the instructions of stage after stage."""

    def __init__(self, signal: Signal, site: Site, tangent: bool, circular: bool) -> None:
        super().__init__(tangent)
        self.circular = circular
        self.signal = signal
        self.stages: list[Stage] = []
        height, width = _plane(signal.spatial, 1)
        self.image = signal.channels, height, width
        self.scale = 1.0
        self.kept: g.Offsets2 | None = None
        self.value: Any = self._open(site.need_in, (height, width), False, False)
        self.emit(m.INPUT, self.value)

    # The chain of layers.

    def top(self, layer: Layer, path: Path, site: Site) -> None:
        """Adds a layer of the chain, which may end a stage."""
        if isinstance(layer, (AvgPool, SumPool, *ENDS)) and not isinstance(self.value, Value):
            raise RefusedError("a pool stands on branches")
        match layer:
            case AvgPool() | SumPool():
                self._pool(layer, site)
            case GlobalAvgPool() | GlobalSumPool() | Flatten():
                self._end(layer, site)
            case _:
                self.value = self.lower(layer, path, site, self.value)

    def other(self, layer: Layer, path: Path, site: Site, value: Any) -> Value:
        """Returns the value after a convolution."""
        if not isinstance(layer, Conv):
            return super().other(layer, path, site, value)
        windows = layer.windows
        if layer.axes.order != tuple(range(len(windows.shape))):
            raise RefusedError("a convolution permutes spatial axes")
        pads = windows.pads(site.signal_in.spatial)
        window = Reach(
            _plane(windows.shape, 1),
            _plane((before for before, _ in pads), 0),
            _plane(windows.strides, 1),
            _plane(windows.dilation, 1),
            windows.circular and max(windows.shape) > 1,
        )
        self._check_circular(window, _plane(site.signal_in.spatial, 1))
        return self.window(layer, path, site, value, window)

    def _check_circular(self, window: Reach, size: tuple[int, int]) -> None:
        """Raises unless a window fits the other ones: circular or not."""
        if window.around and not self.circular:
            raise CircularError(_MIXED)
        if not self.circular:
            return
        if not window.around and (max(window.taps) > 1 or max(window.pads) > 0):
            raise RefusedError(_MIXED)
        if any(n % stride for n, stride in zip(size, window.strides, strict=True)):
            raise RefusedError("a stride does not divide the size of a circular image")
        spans = ((taps - 1) * step for taps, step in zip(window.taps, window.steps, strict=True))
        if any(span > n for span, n in zip(spans, size, strict=True)):
            raise RefusedError("a circular window is larger than the image")

    def target(self, site: Site, value: Value, window: Reach) -> int:
        """Returns the grid of the output of a window."""
        size = _plane(site.signal_out.spatial, 1)
        level = self.levels[value.level]
        self._reach(value.level, window, size)
        if window.strides == (1, 1) and size == level.size:
            target = value.level
        else:
            pairs = zip(level.stride, window.strides, strict=True)
            target = self._level(size, tuple(a * b for a, b in pairs))
        self._check_offsets(site.need_out, target)
        return target

    # Levels.

    def _level(self, size: tuple[int, int], stride: Any) -> int:
        for i, level in enumerate(self.levels):
            if (level.size, level.stride) == (size, stride):
                return i
        self.levels.append(g.Level(size, stride, (0, 0), self.circular))
        return len(self.levels) - 1

    def _reach(self, index: int, window: Reach, size: tuple[int, int]) -> None:
        """Widens the zeros between rectangles to what a window reads."""
        level = self.levels[index]
        reach = []
        for i in range(2):
            last = (size[i] - 1) * window.strides[i] + (window.taps[i] - 1) * window.steps[i]
            beyond = last - window.pads[i] - (level.size[i] - 1)
            reach.append(max(level.reach[i], window.pads[i], beyond))
        self.levels[index] = dataclasses.replace(level, reach=(reach[0], reach[1]))

    def _offsets(self, offsets: Offsets, size: tuple[int, int]) -> g.Offsets2:
        """Returns the offsets of rows and columns; those modulo the size in circular space."""
        if not offsets.wanted:
            return (), ()
        axes: g.Offsets2 = _plane(offsets.axes, (0,))
        if not self.circular:
            return axes
        rows, columns = (
            tuple(sorted({d % n for d in axis})) for axis, n in zip(axes, size, strict=True)
        )
        return rows, columns

    def _check_offsets(self, need: Need, index: int) -> None:
        """Raises unless a place needs just the offsets that the slices of the stage have."""
        level = self.levels[index]
        for ours, theirs in ((self.cross, need.cross), (self.own, need.own)):
            if theirs.wanted:
                scaled = tuple(
                    tuple(d // s for d in axis) for axis, s in zip(ours, level.stride, strict=True)
                )
                if scaled != self._offsets(theirs, level.size):
                    raise RefusedError(
                        "offsets differ within a stage: branches that need different ones, or "
                        "windows that reach across a small image"
                    )

    # Stages.

    def _open(self, need: Need, size: tuple[int, int], has_t: bool, gaussian: bool) -> Value:
        """Begins a stage."""
        self.clear()
        self.levels = [g.Level(size, (1, 1), (0, 0), self.circular)]
        self.cross = self._offsets(need.cross, size)
        self.own = self._offsets(need.own, size)
        self.stage_scale, self.scale = self.scale, 1.0
        return Value(self.slot(), 0, has_t, gaussian, frozenset({INPUT}))

    def _close(self, pool: Any, size_out: tuple[int, int]) -> None:
        """Ends a stage."""
        levels = self._place()
        cross = g.make_geometry(levels, self.cross)
        own = g.make_geometry(levels, self.own) if self.own[0] else None
        sizes = np.zeros(m.SIZES, np.int64)
        sizes[m.SLOTS], sizes[m.CHANNELS] = len(self.uses), self.signal.channels
        sizes[m.FINAL], sizes[m.FINAL_LEVEL] = self.value.slot, self.value.level
        sizes[m.END] = m.SUM if pool is None else m.POOL
        if pool is not None:
            sizes[[m.POOL_STRIDE_Y, m.POOL_STRIDE_X]] = [axis.stride for axis in pool]
            sizes[m.POOL_PAD_Y] = pool[0].pad
        code = np.stack(self.code)
        self.stages.append(
            Stage(
                code,
                tuple(self.sources),
                tuple(self.activations),
                sizes,
                levels,
                cross,
                own,
                self.cross,
                self.own,
                pool,
                g.Level(size_out, (1, 1), (0, 0), self.circular),
                self.stage_scale,
            )
        )

    def _place(self) -> tuple[g.Level, ...]:
        """Returns the grids of a stage, now that all windows are known, with places for numbers."""
        if not self.stages:
            self.room = self.signal.channels * self.levels[0].plane
        self.place_records([level.plane for level in self.levels])
        return tuple(self.levels)

    def _pool(self, layer: AvgPool | SumPool, site: Site) -> None:
        windows = layer.windows
        pads = windows.pads(site.signal_in.spatial)
        if layer.edges and any(before or after for before, after in pads):
            raise RefusedError("a pool normalises its edges")
        pool = tuple(
            g.PoolAxis(*axis)
            for axis in zip(
                _plane(windows.shape, 1),
                _plane(windows.strides, 1),
                _plane((before for before, _ in pads), 0),
                strict=True,
            )
        )
        self._check_pool(windows.circular, pool, site)
        size = _plane(site.signal_out.spatial, 1)
        self._close(pool, size)
        self.scale = 1 / math.prod(windows.shape) ** 2 if layer.average else 1.0
        self.value = dataclasses.replace(
            self._open(site.need_out, size, self.value.has_t, self.value.gaussian),
            origins=self.value.origins,
        )
        self.emit(m.LOAD, self.value)

    def _check_pool(self, around: bool, pool: Any, site: Site) -> None:
        """Raises unless a pool fits the windows before it: circular or not."""
        if around and not self.circular:
            raise CircularError(_MIXED)
        if not self.circular:
            return
        sizes, out = _plane(site.signal_in.spatial, 1), _plane(site.signal_out.spatial, 1)
        for axis, size, size_out in zip(pool, sizes, out, strict=True):
            if size_out * axis.stride != size or max(axis.window, axis.pad) > size:
                raise RefusedError("a pool does not divide a circular image")
            last = (size_out - 1) * axis.stride + axis.window - axis.pad
            if not around and (axis.pad or last > size):
                raise RefusedError(_MIXED)

    def keep(self, site: Site, own: Offsets) -> None:
        """Ends the last stage; the covariances of all pairs of positions are kept.

        Args:
          site: site of the layers so far.
          own: offsets at which covariances of images with themselves may be asked for.

        Raises:
          RefusedError: variances are needed at offsets that are not.
        """
        size, need = _plane(site.signal_out.spatial, 1), site.need_out
        if any(set(a) - set(b) for a, b in zip(own.axes, need.cross.axes, strict=True)):
            raise RefusedError("variances are needed at offsets of their own")
        self.kept = self._offsets(need.cross, size)
        self._close((g.PoolAxis(1, 1, 0),) * 2, size)
        self.scale, self.flattened = 1.0, False

    def _end(self, layer: Layer, site: Site) -> None:
        self._close(None, (1, 1))
        positions = site.signal_in.positions
        match layer:
            case GlobalAvgPool():
                self.scale = 1 / positions**2
            case Flatten():
                self.scale = 1 / positions
        self.flattened = isinstance(layer, Flatten)

    def program(self, signal_out: Signal, own: bool, behind: tuple[Path, ...]) -> SpatialProgram:
        """Returns the program of everything added."""
        return SpatialProgram(
            tuple(self.stages),
            self.image,
            self.room,
            self.scale,
            self.kept,
            self.value.has_t,
            own and self.kept is None,
            self.value.gaussian and not self.flattened,
            signal_out,
            behind,
        )
