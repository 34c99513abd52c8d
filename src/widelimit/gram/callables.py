"""Tiles of any kernel function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.gram.fields import block
from widelimit.gram.liveness import peak_bytes
from widelimit.samples import Rows, Samples, check_finite, place, same_values, to_host

_TARGET_BYTES = 2**26
# What a function that JAX cannot trace is taken to need, in units of its results and inputs.
_UNKNOWN = 16


class Piece(NamedTuple):
    """Some samples, as tiles of any kernel function read them.

    Attributes:
      start: the first of them.
      rows: their inputs and extras.
    """

    start: int
    rows: Rows


class CallableTiler:
    """Tiles of any function `kernel_fn(x1, x2, *args, **kwargs)` of arrays or trees of them.

    Attributes:
      same: whether there is no x2, and everything that goes with samples is the same on both sides.
      given_x2: whether there is an x2.
      diagonal_spatial: as the caller asked `kernel_fn` for.
    """

    def __init__(
        self,
        kernel_fn: Callable[..., Any],
        inputs: tuple[Any, Any],
        args: tuple[Any, ...],
        devices: list[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Keeps the inputs.

        Args:
          kernel_fn: the function.
          inputs: concrete x1 and x2, or None for x1.
          args: what follows the inputs, `get` as a rule.
          devices: where to compute.
          kwargs: keywords of `kernel_fn`. Pairs of arrays are cut with x1 and x2, `rng` is folded
            with the first samples of a tile, others are handed on as they are.

        Raises:
          ValueError: inputs that are not finite, or pairs of arrays that do not fit x1 and x2.
        """
        self._kernel_fn, self._args, self._devices = kernel_fn, args, devices
        pairs = {name: value for name, value in kwargs.items() if is_pair(value)}
        self._constants = {k: v for k, v in kwargs.items() if k not in pairs and k != "rng"}
        self._rng = kwargs.get("rng")
        self.diagonal_spatial = kwargs.get("diagonal_spatial")
        self.given_x2 = bool(jax.tree.leaves(inputs[1]))
        self._on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(inputs))
        self._sides = self._both_sides(inputs, pairs, kwargs.get("batch_axis") or 0)
        for name, side in zip(("x1", "x2"), self._sides[: 1 + self.given_x2], strict=False):
            for leaf in jax.tree.leaves(side.x):
                if jnp.issubdtype(leaf.dtype, jnp.inexact):
                    check_finite(leaf, name, kwargs.get("mask_constant"))
        first, second = self._sides
        self._equal = _equal(first.x, second.x)
        self.same = not self.given_x2 and _equal(first.extras, second.extras)
        self._costs: tuple[float, float] | None = None

    def _both_sides(
        self, inputs: tuple[Any, Any], pairs: dict[str, Any], axes: int
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
        """Bytes of a tile beyond which it is no faster."""
        return _TARGET_BYTES * len(self._devices)

    @property
    def prepared_bytes(self) -> int:
        """Bytes of one sample, with its copies on devices."""
        return self._sides[0].sample_bytes() * (1 + len(self._devices))

    def check(self) -> None:
        """Returns: nothing is known of how the function treats samples."""

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns what a tile takes by a trace of the function, see `liveness`."""
        if self._costs is None:
            self._costs = self._estimated()
        per_pair, per_sample = self._costs
        return int(per_pair * n1 * n2 + per_sample * (n1 + n2))

    def _estimated(self) -> tuple[float, float]:
        """Returns bytes per pair and per sample, from tiles of 2 and of 4 samples per side."""
        try:
            two, four = (
                peak_bytes(jax.make_jaxpr(self._call)(self._abstract(0, n), self._abstract(1, n)))
                for n in (2, 4)
            )
        except Exception:  # whatever a function does that is not made to be traced
            inputs = sum(side.sample_bytes() for side in self._sides)
            return float(_UNKNOWN * _bytes(self.outline())), float(_UNKNOWN * inputs)
        per_pair = max((four - 2 * two) / 8, two / 16)
        return per_pair, max((two - 4 * per_pair) / 4, 0.0)

    def _abstract(self, side: int, count: int) -> Rows:
        """Returns samples of which only shapes and dtypes are known."""
        rows = jax.tree.map(np.asarray, self.rows(side, 0, 1, count).rows)
        return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), rows)

    def outline(self) -> Any:
        """Returns the kernels of one sample of x1 with one of x2."""
        rows = (self.rows(side, 0, 1, 1).rows for side in (0, 1))
        return self._call(*rows)

    def rows(self, side: int, start: int, stop: int, size: int) -> Piece:
        """Returns samples start to stop of x1 (0) or x2 (1), the last repeated up to `size`."""
        return Piece(start, self._sides[side].cut(start, stop, size))

    def prepare(self, rows: Piece) -> Piece:
        """Returns the samples as they are: functions read arrays of NumPy, or of JAX if given."""
        return Piece(rows.start, self._placed(rows.rows, split=False))

    def tile(self, first: Piece, second: Piece | None) -> Any:
        """Returns the kernels between two sets of samples, or of one with itself (None)."""
        if second is None:
            return self._call(self._placed(first.rows, split=True), None, self._key(first, first))
        aligned = self.given_x2 and self._equal and first.start == second.start
        if not aligned and _equal(first.rows.x, second.rows.x):
            return self._between_copies(first, second)
        rows = self._placed(first.rows, split=True), self._placed(second.rows, split=False)
        return self._call(*rows, self._key(first, second))

    def _between_copies(self, first: Piece, second: Piece) -> Any:
        """Returns the kernels between different samples that happen to be equal.

        A kernel function may take equal inputs for the same ones, whose dropout or noise is shared.
        Side by side in one set they are told apart.
        """
        axes = self._sides[0].axes
        parts = to_host((first.rows, second.rows))
        leaves, structure = zip(*(jax.tree.flatten(part.x) for part in parts), strict=True)
        joined = [np.concatenate(pair, axis) for *pair, axis in zip(*leaves, axes, strict=True)]
        x = jax.tree.unflatten(structure[0], joined)
        extras = jax.tree.map(lambda a, b: np.concatenate([a, b]), *(p.extras for p in parts))
        rows = self._placed(Rows(x, extras), split=False)
        both = self._call(rows, None, self._key(first, second))
        half = joined[0].shape[axes[0]] // 2
        return block(both, self._get, (slice(half), slice(half, None)))

    @property
    def _get(self) -> Any:
        return self._args[0] if self._args else None

    def _key(self, first: Piece, second: Piece) -> Any:
        """Returns a random key of the tile; the given one for the first."""
        if self._rng is None or first.start == second.start == 0:
            return self._rng
        return jax.random.fold_in(jax.random.fold_in(self._rng, first.start), second.start)

    def _call(self, first: Rows, second: Rows | None, rng: Any = None) -> Any:
        other = first if second is None else second
        pairs = {name: (first.extras[name], other.extras[name]) for name in first.extras}
        if self._rng is not None:
            pairs["rng"] = self._rng if rng is None else rng
        x2 = None if second is None else second.x
        return self._kernel_fn(first.x, x2, *self._args, **pairs, **self._constants)

    def _placed(self, rows: Rows, split: bool) -> Rows:
        """Returns samples on the devices, whole on each or split.

        On a single one they stay on the host, unless the caller had them on a device.
        """
        if len(self._devices) == 1 and not self._on_device:
            return rows
        return place(rows, self._sides[0].axes, self._devices, split)


def is_pair(value: Any) -> bool:
    """Returns whether this is a pair of (trees of) arrays, or of one and None."""
    return (
        type(value) in (list, tuple)
        and len(value) == 2
        and bool(jax.tree.leaves(value))
        and all(np.ndim(leaf) for leaf in jax.tree.leaves(value))
    )


def _equal(first: Any, second: Any) -> bool:
    """Returns whether trees have equal arrays."""
    if first is second:
        return True
    leaves1, leaves2 = jax.tree.leaves(first), jax.tree.leaves(second)
    if len(leaves1) != len(leaves2):
        return False
    return all(map(same_values, leaves1, leaves2))


def _bytes(result: Any) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(result))
