"""The samples to which the arrays of a kernel belong, to cut them into blocks and join these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from widelimit._pytree import Outline
from widelimit.kernel.kernel import Kernel, is_kernel
from widelimit.typing import Integer, KernelArray

PAIRS = (0, 1)
ROWS, COLUMNS = (0,), (1,)
SIDES = {"cov1": ROWS, "mask1": ROWS, "cov2": COLUMNS, "mask2": COLUMNS}

FLAG = "x1_is_x2"


class SampleAxes(NamedTuple):
    """The axes of samples in one array.

    Attributes:
      sides: the sides whose samples it has, x1 (0), x2 (1), or both; empty without samples.
      axes: the axes of these.
      diagonal: whether it holds equal samples of x1 and x2 only, along one axis.
    """

    sides: tuple[int, ...]
    axes: tuple[int, ...]
    diagonal: bool = False


Layout = dict[str, SampleAxes]
"""Axes of samples, by the path of an array in the result, as text."""


def relates_equal(layout: Layout | None) -> bool:
    """Returns whether some arrays hold equal samples of x1 and x2 only."""
    return any(samples.diagonal for samples in (layout or {}).values())


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One array of a kernel.

    Attributes:
      key: its path in the result, as text.
      value: the array.
      samples: its axes of samples.
      paired: whether all axes come in pairs (n1, n2, H, H, ...); None if unknown.
    """

    key: str
    value: Outline
    samples: SampleAxes
    paired: bool | None

    @property
    def array(self) -> KernelArray:
        """The array, if its values are known."""
        assert not isinstance(self.value, jax.ShapeDtypeStruct)
        return np.asarray(self.value) if isinstance(self.value, np.generic) else self.value

    @property
    def is_pairs(self) -> bool:
        """Whether it has axes of both x1 and x2."""
        return self.samples.sides == PAIRS

    @property
    def mirrors(self) -> bool:
        """Whether the kernel of x2 with x1 follows from that of x1 with x2."""
        if jnp.issubdtype(self.value.dtype, jnp.complexfloating):
            return False  # it may be the conjugate, or not
        return len(self.value.shape) == 2 or (
            self.paired is not None and self.samples.axes == PAIRS
        )

    def index(self, spans: tuple[slice, slice]) -> tuple[slice, ...]:
        """Returns the index of a span of samples on each side."""
        index = [slice(None)] * len(self.value.shape)
        for side, axis in zip(self.samples.sides, self.samples.axes, strict=True):
            index[axis] = spans[side]
        return tuple(index)

    def shape(self, counts: tuple[int, int]) -> tuple[int, ...]:
        """Returns the shape with other numbers of samples."""
        shape = list(self.value.shape)
        for side, axis in zip(self.samples.sides, self.samples.axes, strict=True):
            shape[axis] = counts[side]
        return tuple(shape)

    def mirrored(self, value: KernelArray) -> KernelArray:
        """Returns the array between x2 and x1 from that between x1 and x2."""
        order = list(range(value.ndim))
        for i in range(0, value.ndim if self.paired else 2, 2):
            order[i : i + 2] = [i + 1, i]
        return value.transpose(order)


def parts(
    result: PyTree, get: object, diagonal_spatial: bool | None, layout: Layout | None = None
) -> list[Part]:
    """Returns the arrays of a result that belong to samples.

    Args:
      result: the result of a kernel function: an array, a named tuple, a `Kernel`, or lists and
        tuples of them.
      get: the requested fields; a single name is the name of a single array.
      diagonal_spatial: whether results hold equal positions only, None if unknown.
      layout: axes of samples of arrays that are not fields of a `Kernel`; None if all are.

    Raises:
      NotImplementedError: covariances between all samples of a batch.
      ValueError: an array that the layout lacks.
    """
    listed = []
    paired = None if diagonal_spatial is None else not diagonal_spatial
    for path, leaf in jax.tree_util.tree_leaves_with_path(result, is_leaf=is_kernel):
        start = jax.tree_util.keystr(path)
        if is_kernel(leaf):
            listed += _kernel_parts(leaf, start)
        elif layout is None:
            sides = SIDES.get(name_of(path, get), PAIRS)
            if np.ndim(leaf) >= len(sides):
                listed.append(
                    Part(start, leaf, SampleAxes(sides, tuple(range(len(sides)))), paired)
                )
        elif name_of(path, get) == FLAG:
            continue  # that of the first tile
        elif start not in layout or np.ndim(leaf) <= max(layout[start].axes, default=-1):
            raise ValueError(
                "expected results of the same structure and axes for x2=None and for an x2, got "
                f"different ones{at(start)}"
            )
        elif hasattr(leaf, "dtype"):
            listed.append(Part(start, leaf, layout[start], paired))
    return listed


def name_of(path: KeyPath, get: object) -> str:
    """Returns the name of an array at the end of a path, or `get` for a single array."""
    name = getattr(path[-1], "name", None) if path else None
    return name or (get.lower() if isinstance(get, str) else "")


def whole_parts(result: PyTree) -> list[Part]:
    """Returns all arrays of a result, each as one without axes of samples."""
    return [
        Part(jax.tree_util.keystr(path), leaf, SampleAxes((), ()), None)
        for path, leaf in jax.tree_util.tree_leaves_with_path(result)
        if hasattr(leaf, "dtype")
    ]


def _kernel_parts(kernel: Kernel, start: str) -> list[Part]:
    if not kernel.diagonal_batch:
        raise NotImplementedError(
            "expected kernels with covariances of equal samples only (diagonal_batch=True), to "
            "assemble them from tiles; got cov1 between all samples"
        )
    listed = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(kernel):
        name = path[-1].name
        axis = kernel.batch_axis if name.startswith("mask") else 0
        if np.ndim(leaf):
            key = start + jax.tree_util.keystr(path)
            sides = SIDES.get(name, PAIRS)
            samples = SampleAxes(sides, tuple(range(axis, axis + len(sides))))
            listed.append(Part(key, leaf, samples, not kernel.diagonal_spatial))
    return listed


def rebuild(result: PyTree, arrays: Mapping[str, KernelArray], counts: tuple[int, int]) -> PyTree:
    """Returns the result for all samples from that of a block and whole arrays by key."""

    def shapes(kernel: PyTree) -> PyTree:
        if not is_kernel(kernel):
            return kernel
        first, second = (
            (*shape[: kernel.batch_axis], count, *shape[kernel.batch_axis + 1 :])
            for shape, count in zip((kernel.shape1, kernel.shape2), counts, strict=True)
        )
        return kernel.replace(shape1=first, shape2=second)

    whole = jax.tree.map(shapes, result, is_leaf=is_kernel)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: arrays.get(jax.tree_util.keystr(path), leaf), whole
    )


def block(result: PyTree, get: object, spans: tuple[slice, slice], layout: Layout | None) -> PyTree:
    """Returns a block of the kernels of x with itself, as kernels between two sets of samples."""

    def cut(path: KeyPath, leaf: PyTree) -> PyTree:
        if is_kernel(leaf):
            return leaf.slice(*spans)
        for part in parts(result, get, None, layout):
            if part.key == jax.tree_util.keystr(path):
                return leaf[part.index(spans)]
        return leaf

    return jax.tree_util.tree_map_with_path(cut, result, is_leaf=is_kernel)


def resized(kernels: PyTree, counts: tuple[int, int]) -> PyTree:
    """Returns kernels between other numbers of samples: the first ones, repeated where missing."""
    arrays = {}
    for part in parts(kernels, None, None):
        sizes = tuple(counts[side] for side in part.samples.sides)
        arrays[part.key] = resize(part.array, part.samples.axes, sizes)
    return rebuild(kernels, arrays, counts)


def block_at(kernels: PyTree, starts: tuple[Integer, Integer], sizes: tuple[int, int]) -> PyTree:
    """Returns blocks of kernels of `sizes` samples from traced starts on."""
    arrays = {}
    for part in parts(kernels, None, None):
        value = part.array
        for side, axis in zip(part.samples.sides, part.samples.axes, strict=True):
            value = lax.dynamic_slice_in_dim(value, starts[side], sizes[side], axis)
        arrays[part.key] = value
    return rebuild(kernels, arrays, sizes)


def between_others(kernels: PyTree) -> PyTree:
    """Returns kernels of x1 with itself as those of x1 with a different x2."""

    def change(kernel: Kernel) -> Kernel:
        whole = slice(None)  # adds the fields of x2
        return kernel.slice(whole, whole).replace(x1_is_x2=jnp.asarray(False))

    return jax.tree.map(change, kernels, is_leaf=is_kernel)


def resize(value: KernelArray, axes: tuple[int, ...], sizes: tuple[int, ...]) -> KernelArray:
    """Returns an array of other sizes along some axes, repeated where it is too short."""
    for axis, size in zip(axes, sizes, strict=True):
        if value.shape[axis] != size:
            value = jnp.take(value, np.arange(size) % max(value.shape[axis], 1), axis)
    return value


def at(key: str) -> str:
    """Returns the place of an array in a result, in words."""
    return f" at result{key}" if key else ""
