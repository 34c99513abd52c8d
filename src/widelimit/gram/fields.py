"""Which samples the arrays of a kernel belong to: how blocks are cut and put together."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from widelimit.nt_kernel import Kernel

PAIRS = (0, 1)
_ROWS, _COLUMNS = (0,), (1,)
_SIDES = {"cov1": _ROWS, "mask1": _ROWS, "cov2": _COLUMNS, "mask2": _COLUMNS}


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One array of a kernel.

    Attributes:
      key: where in the result it stands, as text.
      value: the array.
      sides: whose samples its axes are: x1 (0), x2 (1), or both.
      axis: the first of these axes.
      paired: whether all axes come in pairs (n1, n2, H, H, ...); None if that is not known.
    """

    key: str
    value: Any
    sides: tuple[int, ...]
    axis: int
    paired: bool | None

    @property
    def is_pairs(self) -> bool:
        """Whether it relates x1 and x2."""
        return self.sides == PAIRS

    @property
    def mirrors(self) -> bool:
        """Whether the kernel of x2 with x1 follows from that of x1 with x2."""
        return self.paired is not None or np.ndim(self.value) == 2

    def index(self, spans: tuple[slice, slice]) -> tuple[slice, ...]:
        """Returns the index of the samples in a span on each side."""
        return (slice(None),) * self.axis + tuple(spans[side] for side in self.sides)

    def shape(self, counts: tuple[int, int]) -> tuple[int, ...]:
        """Returns the shape with other numbers of samples."""
        shape = list(np.shape(self.value))
        for i, side in enumerate(self.sides):
            shape[self.axis + i] = counts[side]
        return tuple(shape)

    def mirrored(self, value: Any) -> Any:
        """Returns the array between x2 and x1 from that between x1 and x2."""
        order = list(range(value.ndim))
        for i in range(0, value.ndim if self.paired else 2, 2):
            order[i : i + 2] = [i + 1, i]
        return value.transpose(order)


def parts(result: Any, get: Any, diagonal_spatial: bool | None) -> list[Part]:
    """Returns the arrays of a result that belong to samples.

    Args:
      result: what a kernel function returned: an array, a named tuple, a `Kernel`, or lists and
        tuples of them.
      get: what it was asked for; a name says what a single array is.
      diagonal_spatial: whether equal positions only are kept, None if that is not known.

    Raises:
      NotImplementedError: covariances between all samples of a batch.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(result, is_leaf=is_kernel):
        start = jax.tree_util.keystr(path)
        if is_kernel(leaf):
            found += _kernel_parts(leaf, start)
            continue
        name = getattr(path[-1], "name", None) if path else None
        name = name or (get.lower() if isinstance(get, str) else "")
        sides = _SIDES.get(name, PAIRS)
        if np.ndim(leaf) >= len(sides):
            paired = None if diagonal_spatial is None else not diagonal_spatial
            found.append(Part(start, leaf, sides, 0, paired))
    return found


def _kernel_parts(kernel: Kernel, start: str) -> list[Part]:
    if not kernel.diagonal_batch:
        raise NotImplementedError(
            "expected kernels with covariances of equal samples only (diagonal_batch=True), to put "
            "them together from tiles; got cov1 between all samples"
        )
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(kernel):
        name = path[-1].name
        axis = kernel.batch_axis if name.startswith("mask") else 0
        if np.ndim(leaf):
            key = start + jax.tree_util.keystr(path)
            sides = _SIDES.get(name, PAIRS)
            found.append(Part(key, leaf, sides, axis, not kernel.diagonal_spatial))
    return found


def rebuild(result: Any, arrays: dict[str, Any], counts: tuple[int, int]) -> Any:
    """Returns the result for all samples from that of a block and whole arrays by key."""

    def shapes(kernel: Any) -> Any:
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


def block(result: Any, get: Any, spans: tuple[slice, slice]) -> Any:
    """Returns a block of the kernels of x with itself, as kernels between two sets of samples."""

    def cut(path: Any, leaf: Any) -> Any:
        if is_kernel(leaf):
            return leaf.slice(*spans)
        for part in parts(result, get, None):
            if part.key == jax.tree_util.keystr(path):
                return leaf[part.index(spans)]
        return leaf

    return jax.tree_util.tree_map_with_path(cut, result, is_leaf=is_kernel)


def is_kernel(value: Any) -> bool:
    """Returns whether this is a `Kernel` (usable as `is_leaf`)."""
    return isinstance(value, Kernel)
