"""CallableTiler: tiles of any kernel function."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple, SupportsIndex, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from widelimit._pytree import is_concrete, same_values
from widelimit._samples import Rows, Samples, check_finite, count_rows, join, place
from widelimit.gram.fields import Layout, block, relates_equal
from widelimit.gram.layout import find_layout
from widelimit.gram.liveness import tile_costs
from widelimit.gram.sizes import Grid
from widelimit.tracing.jaxprs import Equations
from widelimit.typing import Integer, KernelFunction, Keywords

_TARGET_BYTES = 2**26
# Assumed memory of a function that JAX cannot trace, in units of its results and inputs.
_UNKNOWN = 16


class InputPiece(NamedTuple):
    """A piece of samples, as tiles of any kernel function read it.

    Attributes:
      start: index of the first sample.
      rows: their inputs and extras.
    """

    start: int
    rows: Rows


class CallableTiler:
    """Tiles of any function `kernel_fn(x1, x2, *args, **kwargs)` of arrays or trees of them.

    Attributes:
      same: whether x2 is None, and all extras are the same on both sides.
      given_x2: whether x2 is not None.
      diagonal_spatial: the keyword of the caller.
    """

    def __init__(
        self,
        kernel_fn: KernelFunction,
        inputs: tuple[PyTree, PyTree],
        args: tuple[object, ...],
        devices: list[jax.Device],
        kwargs: Keywords,
    ) -> None:
        """Stores the inputs.

        Args:
          kernel_fn: the function.
          inputs: x1 and x2, or None for x1.
          args: arguments after the inputs, commonly `get`.
          devices: the devices to compute on.
          kwargs: keywords of `kernel_fn`. Pairs of arrays are cut with x1 and x2, `rng` is folded
            with the first samples of a tile, others are passed unchanged.

        Raises:
          ValueError: inputs that are not finite, or pairs of arrays that do not fit x1 and x2.
        """
        self._kernel_fn, self._args, self._devices = kernel_fn, args, devices
        pairs = {name: value for name, value in kwargs.items() if is_pair(value)}
        self._constants = {k: v for k, v in kwargs.items() if k not in pairs and k != "rng"}
        self._rng = kwargs.get("rng")
        diagonal = kwargs.get("diagonal_spatial")
        self.diagonal_spatial = None if diagonal is None else bool(diagonal)
        self.given_x2 = bool(jax.tree.leaves(inputs[1]))
        self._on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(inputs))
        self._sides = self._both_sides(inputs, pairs, _batch_axes(kernel_fn, inputs[0], kwargs))
        for name, side in zip(("x1", "x2"), self._sides[: 1 + self.given_x2], strict=False):
            for leaf in jax.tree.leaves(side.x):
                check_finite(name, leaf, kwargs.get("mask_constant"))
        first, second = self._sides
        self._equal = same_values(first.x, second.x)
        self._equal_extras = same_values(first.extras, second.extras)
        self.same = not self.given_x2 and self._equal_extras
        self._costs: tuple[float, float] | None = None

    def _both_sides(
        self,
        inputs: tuple[PyTree, PyTree],
        pairs: Mapping[str, tuple[PyTree, PyTree]],
        axes: tuple[int, ...] | int,
    ) -> tuple[Samples, Samples]:
        x1, x2 = inputs
        extras = {k: v[0] for k, v in pairs.items()}
        others = {k: v[0] if v[1] is None and not self.given_x2 else v[1] for k, v in pairs.items()}
        first = Samples.of(x1, axes, extras, "x1")
        return first, Samples.of(x2 if self.given_x2 else x1, axes, others, "x2")

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of samples of x1 and x2."""
        return self._sides[0].count, self._sides[1].count

    @property
    def target_bytes(self) -> int:
        """Bytes beyond which larger tiles are not faster."""
        return _TARGET_BYTES * len(self._devices)

    @property
    def halves(self) -> bool:
        """Whether a tile of samples with themselves takes half the work of another."""
        return False

    @property
    def prepared_bytes(self) -> int:
        """Bytes of one sample, with its copies on devices."""
        return self._sides[0].sample_bytes() * (1 + len(self._devices))

    def check(self) -> None:
        """Raises if a network combines samples; other functions are not checked.

        Raises:
          ValueError: the network combines samples; the message names the layer.
        """
        check = getattr(self._kernel_fn, "check_tiles", None)
        if check is not None:
            check(self._sides[0].x, **_named_axes(self._constants))

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns the bytes of a tile by a trace of the function, see `liveness`."""
        if self._costs is None:
            self._costs = self._estimated()
        per_pair, per_sample = self._costs
        return int(per_pair * n1 * n2 + per_sample * (n1 + n2))

    def _estimated(self) -> tuple[float, float]:
        """Returns bytes per pair and per sample, by a trace of the function if it can be traced."""
        try:
            return tile_costs(
                lambda n: Equations.of(self._call, *(side.outline(n) for side in self._sides))
            )
        except Exception:  # functions that cannot be traced may raise anything
            inputs = sum(side.sample_bytes() for side in self._sides)
            return float(_UNKNOWN * _bytes(self.outline())), float(_UNKNOWN * inputs)

    def layout(self) -> Layout | None:
        """Returns the axes of samples in the result, None for the function of a network.

        Raises:
          ValueError: results that cannot be assembled from tiles.
        """
        if hasattr(self._kernel_fn, "tiler"):
            return None
        return self._found_layout

    @functools.cached_property
    def _found_layout(self) -> Layout:
        return find_layout(self._example, self._get, self.given_x2)

    def _example(self, n1: int, n2: int | None, values: bool) -> PyTree:
        """Returns the kernels of n1 and n2 samples, or only their shapes if not `values`."""
        if not values:
            shapes = self._sides[0].outline(n1), None if n2 is None else self._sides[1].outline(n2)
            with contextlib.suppress(Exception):  # it may not support tracing
                return jax.eval_shape(self._call, *shapes)
        return self._call(self._few(0, n1), None if n2 is None else self._few(1, n2))

    def _few(self, side: int, count: int) -> Rows:
        samples = self._sides[side]
        if is_concrete(samples.x, samples.extras):
            return samples.cut(0, min(count, samples.count), count)
        return samples.filled(count).cut_at(0, count)

    def outline(self) -> PyTree:
        """Returns the kernels of one sample of x1 with one of x2."""
        return self._call(self._few(0, 1), self._few(1, 1))

    def rows(self, side: int, start: int, stop: int, size: int) -> InputPiece:
        """Returns samples start to stop of x1 (0) or x2 (1), the last repeated up to `size`."""
        return InputPiece(start, self._sides[side].cut(start, stop, size))

    def prepare(self, rows: InputPiece) -> InputPiece:
        """Returns the samples unchanged: NumPy arrays, or JAX arrays if the user passed these."""
        return InputPiece(rows.start, self._placed(rows.rows, split=False))

    def tile(self, first: InputPiece, second: InputPiece | None) -> PyTree:
        """Returns the kernels between two sets of samples, or of one with itself (None)."""
        if second is None:
            return self._call(self._placed(first.rows, split=True), None, self._key(first, first))
        aligned = self.given_x2 and self._equal and first.start == second.start
        if not aligned and same_values(first.rows.x, second.rows.x):
            return self._between_copies(first, second)
        rows = self._placed(first.rows, split=True), self._placed(second.rows, split=False)
        return self._call(*rows, self._key(first, second))

    def _between_copies(self, first: InputPiece, second: InputPiece) -> PyTree:
        """Returns the kernels between different samples that happen to be equal.

        A kernel function may treat equal inputs as identical, with the same dropout or noise. So
        both are joined to one set; for results of equal samples only, one sample that differs is
        appended to each side instead.
        """
        axes, key = self._sides[0].axes, self._key(first, second)
        size = count_rows(first.rows, axes)
        columns = slice(size, None)
        if first.start == second.start and relates_equal(self.layout()):
            ends = (side.cut(self._different, self._different + 1, 1) for side in self._sides)
            pieces = zip((first.rows, second.rows), ends, strict=True)
            sides = (self._placed(join(*pair, axes), split=False) for pair in pieces)
            both, columns = self._call(next(sides), next(sides), key), slice(size)
        else:
            rows = self._placed(join(first.rows, second.rows, axes), split=False)
            both = self._call(rows, None, key)
        return block(both, self._get, (slice(size), columns), self.layout())

    @functools.cached_property
    def _different(self) -> int:
        """The first sample that differs between x1 and x2, which have equal numbers of samples."""
        first, second = (side.cut for side in self._sides)
        counts = range(self.counts[0])
        return next(
            k for k in counts if not same_values(first(k, k + 1, 1).x, second(k, k + 1, 1).x)
        )

    @property
    def aligned(self) -> bool:
        """Whether samples of x1 and x2 with the same index are the same."""
        return self.same or (self.given_x2 and self._equal)

    def traced_size(self, most: int) -> int:
        """Returns how many samples a side of a traced tile should have, `most` or fewer."""
        of_network = getattr(self._kernel_fn, "traced_size", None)
        if of_network is None:
            return most
        return int(of_network(self._sides[0].x, self._get, most, **_named_axes(self._constants)))

    def traced_tiles(self, grid: Grid) -> Callable[[Integer, Integer, bool], PyTree]:
        """Returns a function (i, j, own) -> tile; `own` for one set of samples with itself."""
        sides = [side.filled(n) for side, n in zip(self._sides, grid.filled, strict=True)]

        def tile(i: Integer, j: Integer, own: bool) -> PyTree:
            starts = i * grid.sizes[0], j * grid.sizes[1]
            first, other = map(Samples.cut_at, sides, starts, grid.sizes)
            if own:
                # The same object is the same set of samples, for functions that look.
                other = Rows(first.x, first.extras if self._equal_extras else other.extras)
            second = None if own and not self.given_x2 else other
            return self._call(first, second, self._key_at(*starts))

        return tile

    def _key_at(self, start1: Integer, start2: Integer) -> jax.Array | None:
        if self._rng is None:
            return None
        other = jax.random.fold_in(jax.random.fold_in(self._rng, start1), start2)
        return jnp.where((start1 == 0) & (start2 == 0), self._rng, other)

    @property
    def _get(self) -> object:
        return self._args[0] if self._args else None

    def _key(self, first: InputPiece, second: InputPiece) -> jax.Array | None:
        """Returns the random key of the tile; the user's for the first."""
        if first.start == second.start == 0:
            return self._rng
        return self._key_at(first.start, second.start)

    def _call(self, first: Rows, second: Rows | None, rng: jax.Array | None = None) -> PyTree:
        other = first if second is None else second
        pairs: Keywords = {n: (first.extras[n], other.extras[n]) for n in first.extras}
        if self._rng is not None:
            pairs["rng"] = self._rng if rng is None else rng
        x2 = None if second is None else second.x
        return self._kernel_fn(first.x, x2, *self._args, **pairs, **self._constants)

    def _placed(self, rows: Rows, split: bool) -> Rows:
        """Returns samples on the devices, whole on each or split.

        On a single device they stay on the host, unless the user passed arrays on a device.
        """
        if len(self._devices) == 1 and not self._on_device:
            return rows
        return place(rows, self._sides[0].axes, self._devices, split)


def is_pair(value: PyTree) -> TypeGuard[tuple[PyTree, PyTree]]:
    """Returns whether this is a pair of (trees of) arrays, or of one and None."""
    return (
        type(value) in (list, tuple)
        and len(value) == 2
        and bool(jax.tree.leaves(value))
        and all(np.ndim(leaf) for leaf in jax.tree.leaves(value))
    )


def _batch_axes(kernel_fn: KernelFunction, x: PyTree, kwargs: Keywords) -> tuple[int, ...] | int:
    """Returns the batch axis of every array of the inputs, or one for all."""
    own = getattr(kernel_fn, "batch_axes", None)
    if own is not None:
        return own(x, **_named_axes(kwargs))
    axis = kwargs.get("batch_axis")
    return operator.index(axis) if isinstance(axis, SupportsIndex) else 0


def _named_axes(kwargs: Keywords) -> Keywords:
    return {k: v for k, v in kwargs.items() if k in ("batch_axis", "channel_axis")}


def _bytes(result: PyTree) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(result))
