"""A batch of inputs that can be cut into samples: arrays, trees of arrays, and extras by sample.

Everything with samples is cut: the inputs along their batch axes, extras such as graph patterns
along their first axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, PyTree

from widelimit._pytree import Outline, is_concrete
from widelimit.typing import Arrays, Scalar

_T = TypeVar("_T")
_Leaf = TypeVar("_Leaf")

_Numbers: TypeAlias = Array | np.ndarray

# Inputs are checked in pieces of this size.
_CHECKED_BYTES = 2**24


class Rows(NamedTuple):
    """Some samples of a batch.

    Attributes:
      x: their inputs, a tree like the whole batch.
      extras: trees of arrays with samples along their first axis, by name.
    """

    x: Arrays
    extras: dict[str, Arrays]


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """A batch of samples on the host, or traced ones.

    Attributes:
      x: array of NumPy or traced array, or a tree of such.
      axes: batch axis of every leaf of x, in order.
      extras: trees of arrays with samples along their first axis, by name.
      count: number of samples.
    """

    x: Arrays
    axes: tuple[int, ...]
    extras: dict[str, Arrays]
    count: int

    @classmethod
    def of(
        cls, x: Arrays, axes: tuple[int, ...] | int, extras: dict[str, Arrays], name: str
    ) -> Samples:
        """Returns the batch.

        Args:
          x: an array, or a tree of arrays.
          axes: batch axis of every leaf of x, or one for all.
          extras: trees of arrays by name.
          name: the name of x in errors.

        Raises:
          ValueError: no arrays, an axis out of range, or numbers of samples that differ.
        """
        x, extras = to_host((x, extras))
        leaves = jax.tree.leaves(x)
        each = axes if isinstance(axes, tuple) else (axes,) * len(leaves)
        positive: tuple[int, ...] = ()
        counts = []
        for leaf, axis in zip(leaves, each, strict=True):
            if not -np.ndim(leaf) <= axis < np.ndim(leaf):
                raise ValueError(
                    f"expected arrays with a batch axis {axis} in {name}, got shape "
                    f"{np.shape(leaf)}"
                )
            positive += (axis % np.ndim(leaf),)
            counts.append(leaf.shape[axis])
        if len(set(counts)) != 1:
            raise ValueError(
                f"expected arrays with the same number of samples in {name}, got {counts}"
            )
        for key, tree in extras.items():
            for leaf in jax.tree.leaves(tree):
                if np.shape(leaf)[:1] != (counts[0],):
                    raise ValueError(
                        f"expected {key} with the {counts[0]} samples of {name} along its first "
                        f"axis, got shape {np.shape(leaf)}"
                    )
        return cls(x, positive, extras, counts[0])

    def cut(self, start: int, stop: int, size: int) -> Rows:
        """Returns samples start to stop, the last of them repeated until there are `size`."""

        def cut(value: np.ndarray, axis: int) -> np.ndarray:
            return _cut(value, axis, start, stop, size)

        extras = jax.tree.map(lambda v: cut(v, 0), self.extras)
        return Rows(map_inputs(cut, self.x, self.axes), extras)

    def filled(self, size: int) -> Samples:
        """Returns at least `size` samples, by repeating the last. Arrays may be traced."""

        def fill(value: _Numbers, axis: int) -> _Numbers:
            missing = size - value.shape[axis]
            widths = [(0, missing if a == axis else 0) for a in range(value.ndim)]
            return jnp.pad(value, widths, mode="edge") if missing > 0 else value

        extras = jax.tree.map(lambda v: fill(v, 0), self.extras)
        x = map_inputs(fill, self.x, self.axes)
        return dataclasses.replace(self, x=x, extras=extras, count=max(size, self.count))

    def cut_at(self, start: Array | int, size: int) -> Rows:
        """Returns `size` samples from a traced start on."""

        def cut(value: _Numbers, axis: int) -> Array:
            return lax.dynamic_slice_in_dim(value, start, size, axis)

        extras = jax.tree.map(lambda v: cut(v, 0), self.extras)
        return Rows(map_inputs(cut, self.x, self.axes), extras)

    def outline(self, count: int) -> Rows:
        """Returns the shapes and dtypes of `count` samples."""

        def shape(value: _Numbers, axis: int) -> jax.ShapeDtypeStruct:
            sizes = (*value.shape[:axis], count, *value.shape[axis + 1 :])
            return jax.ShapeDtypeStruct(sizes, value.dtype)

        extras = jax.tree.map(lambda v: shape(v, 0), self.extras)
        return Rows(map_inputs(shape, self.x, self.axes), extras)

    def sample_bytes(self, itemsize: int | None = None) -> int:
        """Returns the bytes of one sample; its numbers take `itemsize` bytes if not None."""

        def size(leaf: _Numbers, itemsize: int | None = None) -> int:
            return leaf.size * (itemsize or leaf.dtype.itemsize)

        inputs = sum(size(leaf, itemsize) for leaf in jax.tree.leaves(self.x))
        extras = sum(map(size, jax.tree.leaves(self.extras)))
        return (inputs + extras) // max(self.count, 1)


def map_inputs(
    function: Callable[[_Leaf, int], Outline], x: Arrays, axes: tuple[int, ...]
) -> PyTree[Outline]:
    """Returns the tree of results of a function of each array and its batch axis."""
    leaves, structure = jax.tree.flatten(x)
    return jax.tree.unflatten(structure, map(function, leaves, axes))


def count_rows(rows: Rows, axes: tuple[int, ...]) -> int:
    """Returns the number of samples; `axes` are the batch axes of the inputs."""
    return int(np.shape(jax.tree.leaves(rows.x)[0])[axes[0]])


def join(first: Rows, second: Rows, axes: tuple[int, ...]) -> Rows:
    """Returns two sets of samples joined on the host; `axes` are the batch axes of the inputs."""
    first, second = to_host((first, second))
    others = iter(jax.tree.leaves(second.x))
    x = map_inputs(lambda v, axis: np.concatenate([v, next(others)], axis), first.x, axes)
    extras = jax.tree.map(lambda a, b: np.concatenate([a, b]), first.extras, second.extras)
    return Rows(x, extras)


def check_finite(
    name: str, x: ArrayLike, mask_constant: Scalar | None = None, dtype: np.dtype | None = None
) -> None:
    """Raises if a concrete array holds NaN or infinities, without copying the whole array.

    Args:
      name: the name of the array in errors.
      x: numbers; integers and traced arrays pass.
      mask_constant: entries equal to it are not checked; NaN masks every NaN.
      dtype: dtype to which they will be cast; entries that overflow in it are not finite. None for
        their own.

    Raises:
      ValueError: entries are not finite; the message gives their number and the first one.
    """
    if not is_concrete(x):
        return
    values = np.asarray(x)
    dtype = dtype or values.dtype
    if not jnp.issubdtype(values.dtype, np.inexact):
        return
    rows = np.atleast_1d(values)
    step = max(1, _CHECKED_BYTES // max(rows[:1].nbytes, 1))
    count, first = 0, None
    for start in range(0, len(rows), step):
        with np.errstate(over="ignore"):
            piece = rows[start : start + step].astype(dtype, copy=False)
        finite = finite_or_masked(piece, mask_constant)
        if not finite.all():
            count += int((~finite).sum())
            row, *rest = (int(i) for i in np.argwhere(~finite)[0])
            first = first or (start + row, *rest)[: values.ndim]
    if count:
        raise ValueError(
            f"expected {name} to be finite, got {count} of {values.size} entries that are not "
            f"(in {dtype}), the first at index {first}: {values[first]}"
        )


def finite_or_masked(x: np.ndarray, mask_constant: Scalar | None) -> np.ndarray:
    """Returns where an array is finite or may be masked.

    Args:
      x: real numbers.
      mask_constant: entries equal to it are masked, NaN masks NaN, None nothing; if traced, any
        entry may be masked.
    """
    finite = np.asarray(np.isfinite(x))
    if mask_constant is None or finite.all():
        return finite
    if not is_concrete(mask_constant):
        return np.ones_like(finite)
    constant = float(mask_constant)
    return finite | (np.isnan(x) if np.isnan(constant) else x == constant)


def place(rows: Rows, axes: tuple[int, ...], devices: list[jax.Device], split: bool) -> Rows:
    """Returns samples on devices: whole on each of them, or split over them.

    Args:
      rows: the samples; a multiple of the number of devices if they are split.
      axes: batch axis of every array of the inputs.
      devices: the devices.
      split: whether each device holds only its part.
    """
    if len(devices) == 1:
        return jax.device_put(rows, devices[0])
    mesh = Mesh(np.array(devices), ("samples",))

    def put(value: _Numbers, axis: int) -> Array:
        parts = (None,) * axis + ("samples",) if split else ()
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*parts)))

    extras = jax.tree.map(lambda v: put(v, 0), rows.extras)
    return Rows(map_inputs(put, rows.x, axes), extras)


def to_host(tree: _T) -> _T:
    """Returns a tree with its JAX arrays as NumPy arrays; on the CPU they share memory.

    Traced arrays are returned unchanged.
    """
    return jax.tree.map(
        lambda v: np.asarray(v) if isinstance(v, jax.Array) and is_concrete(v) else v, tree
    )


def _cut(x: np.ndarray, axis: int, start: int, stop: int, size: int) -> np.ndarray:
    index: list[slice] = [slice(None)] * x.ndim
    index[axis] = slice(start, stop)
    rows = x[tuple(index)]
    missing = size - (stop - start)
    if missing <= 0:
        return rows
    index[axis] = slice(stop - 1, stop)
    return np.concatenate([rows, np.repeat(x[tuple(index)], missing, axis)], axis)
