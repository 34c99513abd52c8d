"""Tiles of a kernel function whose inputs are kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from widelimit.gram.fields import is_kernel
from widelimit.gram.liveness import peak_bytes
from widelimit.nt_kernel import Kernel

_TARGET_BYTES = 2**26


class Piece(NamedTuple):
    """Some samples of kernels.

    Attributes:
      span: which.
      extras: what goes with them.
    """

    span: slice
    extras: dict[str, Any]


class KernelTiler:
    """Tiles of `kernel_fn(kernels, None, get, ...)` for a `Kernel`, or a list or tuple of them.

    A tile is the function of a block of the kernels; nothing is prepared, nor filled up.

    Attributes:
      same: whether they are kernels of x1 with itself.
      given_x2: the opposite.
      diagonal_spatial: whether results keep equal positions only.
    """

    def __init__(
        self,
        kernel_fn: Callable[..., Any],
        kernels: Any,
        args: tuple[Any, ...],
        pairs: dict[str, Any],
        constants: dict[str, Any],
    ) -> None:
        """Keeps the kernels.

        Args:
          kernel_fn: the function.
          kernels: its first input.
          args: what follows the inputs.
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
        stored = any(kernel.diagonal_spatial for kernel in leaves)
        given = constants.get("diagonal_spatial")
        self.diagonal_spatial = stored if given is None else bool(given)
        self._extras = tuple(
            {k: v[0] if v[side] is None else v[side] for k, v in pairs.items()} for side in (0, 1)
        )

    @property
    def target_bytes(self) -> int:
        """Bytes of a tile beyond which it is no faster."""
        return _TARGET_BYTES

    @property
    def prepared_bytes(self) -> int:
        """Nothing is prepared."""
        return 0

    def check(self) -> None:
        """Raises if a network combines samples; of other functions nothing is known.

        Raises:
          ValueError: it does; the message names the layer.
        """
        check = getattr(self._kernel_fn, "check_tiles", None)
        if check is not None:
            check(self._kernels)

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns what a tile takes, by a trace of the function on a small block."""
        return int(self._pair_bytes * n1 * n2)

    @functools.cached_property
    def _pair_bytes(self) -> float:
        first, second = (self._small(side) for side in (0, 1))
        kernels, kwargs = self._inputs(first, second)
        traced = jax.make_jaxpr(lambda k: self._kernel_fn(k, None, *self._args, **kwargs))(kernels)
        return peak_bytes(traced) / max(first.span.stop * second.span.stop, 1)

    def _small(self, side: int) -> Piece:
        count = min(4, self.counts[side])
        return self.rows(side, 0, count, count)

    def outline(self) -> Any:
        """Returns the kernels of one sample of x1 with one of x2."""
        return self.tile(*(self.rows(side, 0, 1, 1) for side in (0, 1)))

    def rows(self, side: int, start: int, stop: int, size: int) -> Piece:
        """Returns samples start to stop of x1 (0) or x2 (1), never more."""
        del size
        span = slice(start, stop)
        return Piece(span, jax.tree.map(lambda v: v[span], self._extras[side]))

    def prepare(self, rows: Piece) -> Piece:
        """Returns the samples as they are."""
        return rows

    def tile(self, first: Piece, second: Piece | None) -> Any:
        """Returns what the function makes of a block of the kernels."""
        kernels, kwargs = self._inputs(first, second or first)
        return self._kernel_fn(kernels, None, *self._args, **kwargs)

    def _inputs(self, first: Piece, second: Piece) -> tuple[Any, dict[str, Any]]:
        kernels = jax.tree.map(
            lambda k: k.slice(first.span, second.span), self._kernels, is_leaf=is_kernel
        )
        pairs = {name: (value, second.extras[name]) for name, value in first.extras.items()}
        return kernels, pairs | self._constants
