"""KernelTiler: tiles of a kernel function whose inputs are kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
from jax import lax
from jaxtyping import PyTree

from widelimit._pytree import is_concrete
from widelimit.gram.fields import (
    Layout,
    between_others,
    block_at,
    resize,
    resized,
)
from widelimit.gram.layout import find_layout
from widelimit.gram.liveness import live_bytes
from widelimit.gram.sizes import Grid
from widelimit.kernel.kernel import Kernel, is_kernel
from widelimit.tracing.jaxprs import Equations
from widelimit.typing import Integer, KernelFunction, Keywords

_TARGET_BYTES = 2**26

Extras: TypeAlias = dict[str, PyTree]
"""Trees of arrays with samples along their first axis, by name."""


class KernelPiece(NamedTuple):
    """A piece of samples of kernels.

    Attributes:
      span: the samples.
      extras: their extras.
    """

    span: slice
    extras: Extras


class KernelTiler:
    """Tiles of `kernel_fn(kernels, None, get, ...)` for a `Kernel`, or a list or tuple of them.

    A tile is the function of a block of the kernels; nothing is prepared or padded.

    Attributes:
      same: whether they are kernels of x1 with itself, and no extras differ between sides.
      given_x2: whether they are kernels of x1 with an x2.
      diagonal_spatial: whether results hold equal positions only.
    """

    def __init__(
        self,
        kernel_fn: KernelFunction,
        kernels: PyTree[Kernel],
        args: tuple[object, ...],
        pairs: Mapping[str, tuple[PyTree, PyTree]],
        constants: Keywords,
    ) -> None:
        """Stores the kernels.

        Args:
          kernel_fn: the function.
          kernels: its first input.
          args: arguments after the inputs.
          pairs: keywords whose values are pairs of trees of arrays, for x1 and x2.
          constants: other keywords.

        Raises:
          NotImplementedError: covariances between all samples of a batch.
        """
        self._kernel_fn, self._kernels, self._args = kernel_fn, kernels, args
        self._constants = constants
        leaves: list[Kernel] = jax.tree.leaves(kernels, is_leaf=is_kernel)
        first = leaves[0]
        if not all(kernel.diagonal_batch for kernel in leaves):
            raise NotImplementedError(
                "expected Kernels with covariances of equal samples only, to cut them into tiles; "
                "got one with diagonal_batch=False"
            )
        self.counts = first.shape1[first.batch_axis], first.shape2[first.batch_axis]
        self.given_x2 = any(kernel.cov2 is not None for kernel in leaves)
        self.same = not self.given_x2 and not pairs
        diagonal = any(kernel.diagonal_spatial for kernel in leaves)
        keyword = constants.get("diagonal_spatial")
        self.diagonal_spatial = diagonal if keyword is None else bool(keyword)
        self._extras = tuple(
            {k: v[0] if v[side] is None else v[side] for k, v in pairs.items()} for side in (0, 1)
        )

    @property
    def target_bytes(self) -> int:
        """Bytes beyond which larger tiles are not faster."""
        return _TARGET_BYTES

    @property
    def halves(self) -> bool:
        """Whether a tile of samples with themselves takes half the work of another."""
        return False

    @property
    def prepared_bytes(self) -> int:
        """Zero: nothing is prepared."""
        return 0

    def layout(self) -> Layout | None:
        """Returns the axes of samples in the result, None for the function of a network.

        Raises:
          ValueError: results that cannot be assembled from tiles.
        """
        if hasattr(self._kernel_fn, "check_tiles"):
            return None
        return self._found_layout

    @functools.cached_property
    def _found_layout(self) -> Layout:
        return find_layout(self._example, self._args[0] if self._args else None, self.given_x2)

    def _example(self, n1: int, n2: int | None, values: bool) -> PyTree:
        """Returns the result for n1 and n2 samples, or only its shapes if not `values`."""
        count = n1 if n2 is None else n2
        kernels = self._kernels if n2 is None else between_others(self._kernels)
        kernels = resized(kernels, (n1, count))
        sides = (_sized(self._extras[0], n1), _sized(self._extras[1], count))
        kwargs = self._keywords(*sides)

        def evaluate(kernels: PyTree) -> PyTree:
            return self._kernel_fn(kernels, None, *self._args, **kwargs)

        if not values:
            with contextlib.suppress(Exception):  # it may not support tracing
                return jax.eval_shape(evaluate, kernels)
        return evaluate(kernels)

    def check(self) -> None:
        """Raises if a network combines samples; other functions are not checked.

        Raises:
          ValueError: the network combines samples; the message names the layer.
        """
        check = getattr(self._kernel_fn, "check_tiles", None)
        if check is not None:
            check(self._kernels)

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns the bytes of a tile, by a trace of the function on a small block."""
        return int(self._pair_bytes * n1 * n2)

    @functools.cached_property
    def _pair_bytes(self) -> float:
        first, second = (self._small(side) for side in (0, 1))
        kernels, kwargs = self._inputs(first, second)
        traced = Equations.of(lambda k: self._kernel_fn(k, None, *self._args, **kwargs), kernels)
        return live_bytes(traced) / max(first.span.stop * second.span.stop, 1)

    def _small(self, side: int) -> KernelPiece:
        count = min(4, self.counts[side])
        return self.rows(side, 0, count, count)

    def outline(self) -> PyTree:
        """Returns the kernels of one sample of x1 with one of x2."""
        return self.tile(*(self.rows(side, 0, 1, 1) for side in (0, 1)))

    def rows(self, side: int, start: int, stop: int, size: int) -> KernelPiece:
        """Returns samples start to stop of x1 (0) or x2 (1), without padding."""
        del size
        span = slice(start, stop)
        return KernelPiece(span, jax.tree.map(lambda v: v[span], self._extras[side]))

    def prepare(self, rows: KernelPiece) -> KernelPiece:
        """Returns the samples unchanged."""
        return rows

    def tile(self, first: KernelPiece, second: KernelPiece | None) -> PyTree:
        """Returns the result of the function for a block of the kernels."""
        kernels, kwargs = self._inputs(first, second or first)
        return self._kernel_fn(kernels, None, *self._args, **kwargs)

    @property
    def aligned(self) -> bool:
        """Whether samples of x1 and x2 with the same index are the same."""
        leaves = jax.tree.leaves(self._kernels, is_leaf=is_kernel)
        same = (is_concrete(k.x1_is_x2) and bool(k.x1_is_x2) for k in leaves)
        return self.same or (not self._extras[0] and all(same))

    def traced_size(self, most: int) -> int:
        """Returns how many samples a side of a traced tile should have: `most`."""
        return most

    def traced_tiles(self, grid: Grid) -> Callable[[Integer, Integer, bool], PyTree]:
        """Returns a function (i, j, own) -> tile; `own` for one set of samples with itself."""
        totals = grid.filled
        own = resized(self._kernels, totals)
        between = resized(between_others(self._kernels), totals)
        extras = [_sized(v, n) for v, n in zip(self._extras, totals, strict=True)]

        def tile(i: Integer, j: Integer, is_own: bool) -> PyTree:
            starts = i * grid.sizes[0], j * grid.sizes[1]
            kernels = block_at(own if is_own else between, starts, grid.sizes)
            sides = map(_cut, extras, starts, grid.sizes)
            return self._kernel_fn(kernels, None, *self._args, **self._keywords(*sides))

        return tile

    def _inputs(self, first: KernelPiece, second: KernelPiece) -> tuple[PyTree, Keywords]:
        kernels = jax.tree.map(
            lambda k: k.slice(first.span, second.span), self._kernels, is_leaf=is_kernel
        )
        return kernels, self._keywords(first.extras, second.extras)

    def _keywords(self, first: Extras, second: Extras) -> Keywords:
        return {name: (value, second[name]) for name, value in first.items()} | self._constants


def _sized(extras: Extras, count: int) -> Extras:
    """Returns the extras of `count` samples, with repetitions."""
    return jax.tree.map(lambda v: resize(v, (0,), (count,)), extras)


def _cut(extras: Extras, start: Integer, size: int) -> Extras:
    """Returns the extras of `size` samples from a traced start on."""
    return jax.tree.map(lambda v: lax.dynamic_slice_in_dim(v, start, size), extras)
