"""Layouts of kernels and targets: from zipped axes and trace axes to matrices, and back.

A kernel over outputs of shape (n, h, ...) has zipped axes (n1, n2, h1, h2, ...). The output axes
that it lacks are the trace axes: along them the kernel is read as a multiple of the identity.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from widelimit._text import shown
from widelimit.predict.checks import check_real
from widelimit.typing import Axes as Axes

Shape = tuple[int, ...]

_T = TypeVar("_T")
_Array = TypeVar("_Array", jax.Array, np.ndarray, jax.Array | np.ndarray)


def row_shape(kernel: ArrayLike) -> Shape:
    """Returns the shape of the first argument's outputs, without trace axes."""
    return tuple(jnp.shape(kernel)[::2])


def column_shape(kernel: ArrayLike) -> Shape:
    """Returns the shape of the second argument's outputs, without trace axes."""
    return tuple(jnp.shape(kernel)[1::2])


def to_matrix(name: str, kernel: _Array) -> _Array:
    """Returns the kernel (n1, n2, h1, h2, ...) as a matrix [n1 h1 ..., n2 h2 ...].

    Raises:
      ValueError: if the number of axes is odd.
    """
    if kernel.ndim % 2:
        raise ValueError(
            f"expected {name} to have pairs of axes (n1, n2, h1, h2, ...), got shape {kernel.shape}"
        )
    order = (*range(0, kernel.ndim, 2), *range(1, kernel.ndim, 2))
    rows, columns = math.prod(row_shape(kernel)), math.prod(column_shape(kernel))
    return kernel.transpose(order).reshape(rows, columns)


def from_matrix(matrix: jax.Array, rows: Shape, columns: Shape) -> jax.Array:
    """Returns the matrices [..., n1 h1 ..., n2 h2 ...] as kernels (..., n1, n2, h1, h2, ...)."""
    lead = matrix.ndim - 2
    order = [lead + i + side * len(rows) for i in range(len(rows)) for side in (0, 1)]
    kernel = matrix.reshape(matrix.shape[:lead] + rows + columns)
    return kernel.transpose(*range(lead), *order)


class Targets(NamedTuple):
    """The layout of arrays shaped like the targets as matrices [kept axes, trace axes].

    Attributes:
      shape: shape of the training targets.
      traced: the trace axes, sorted, non-negative, without duplicates.
      name: the name of the targets in errors.
    """

    shape: Shape
    traced: Shape
    name: str = "y_train"

    @classmethod
    def of(cls, y: ArrayLike, trace_axes: Axes) -> "Targets":
        """Returns the layout of targets y.

        Raises:
          TypeError: if trace axes are not integers.
          ValueError: if a trace axis is out of range.
        """
        shape = tuple(jnp.shape(y))
        axes = trace_axes if isinstance(trace_axes, Iterable) else (trace_axes,)
        for axis in axes:
            if not isinstance(axis, int | np.integer):
                raise TypeError(
                    f"expected trace_axes to be an axis of y_train or several, got "
                    f"{shown(trace_axes)}"
                )
            if not -len(shape) <= axis < len(shape):
                raise ValueError(
                    f"expected trace_axes between {-len(shape)} and {len(shape) - 1} for y_train "
                    f"of shape {shape}, got {shown(trace_axes)}"
                )
        return cls(shape, tuple(sorted({int(axis) % len(shape) for axis in axes})))

    @property
    def kept(self) -> Shape:
        """The axes that the kernel has."""
        return _others(len(self.shape), self.traced)

    @property
    def kept_shape(self) -> Shape:
        """Sizes of the kept axes of the training targets."""
        return tuple([self.shape[axis] for axis in self.kept])

    def full_shape(self, kept_shape: Shape) -> Shape:
        """Returns the shape of outputs whose kept axes have other sizes, as on a test set."""
        sizes = dict(zip(self.kept, kept_shape, strict=True))
        return tuple(sizes.get(axis, size) for axis, size in enumerate(self.shape))

    def to_matrix(self, outputs: jax.Array) -> jax.Array:
        """Returns outputs on the training or a test set as a matrix [kept, traced]."""
        own = self.kept
        matrix = outputs.transpose(own + self.traced)
        rows, columns = matrix.shape[: len(own)], matrix.shape[len(own) :]
        return matrix.reshape(math.prod(rows), math.prod(columns))

    def from_matrix(self, matrix: jax.Array, kept_shape: Shape) -> jax.Array:
        """Returns the matrices [..., kept, traced] as outputs (..., *full_shape(kept_shape))."""
        lead = matrix.ndim - 2
        axes = self.kept + self.traced
        traced_shape = tuple([self.shape[axis] for axis in self.traced])
        outputs = matrix.reshape(matrix.shape[:lead] + kept_shape + traced_shape)
        return outputs.transpose(*range(lead), *(lead + np.argsort(axes)))

    def check_train_train(self, name: str, kernel: ArrayLike) -> None:
        """Raises ValueError unless the kernel is square and fits the training targets."""
        shape = tuple(jnp.shape(kernel))
        if len(shape) % 2 or row_shape(kernel) != column_shape(kernel):
            raise ValueError(
                f"expected {name} to have pairs of equal axes (n, n, h, h, ...), got shape {shape}"
            )
        if row_shape(kernel) != self.kept_shape:
            raise ValueError(
                f"expected {name} of shape {_zipped(self.kept_shape, self.kept_shape)} for "
                f"{self._described()}, got shape {shape}{self._advice(shape)}"
            )

    def _described(self) -> str:
        """Returns a description of the targets and of the axes that a kernel lacks."""
        axes = f"trace axes {self.traced}" if self.name == "y_train" else "independent outputs"
        return f"{self.name} of shape {self.shape} and {axes}"

    def _advice(self, kernel_shape: Shape) -> str:
        """Returns advice for a kernel whose shape does not fit."""
        if len(self.shape) == 1:
            return f"; write targets of one output as {self.name}[:, None]"
        if kernel_shape == _zipped(self.shape, self.shape):
            chosen = "trace_axes=(), or " if self.name == "y_train" else ""
            return f"; a kernel with axes of outputs needs {chosen}the mean over them"
        if len(kernel_shape) > 2 * len(self.kept):
            return "; a network that keeps spatial axes needs stax.Flatten() before its last layer"
        return ""

    def check_test_train(self, name: str, kernel: ArrayLike | None) -> None:
        """Raises unless the kernel is real, and between some outputs and the training targets."""
        shape = () if kernel is None else tuple(jnp.shape(kernel))
        sizes = self.kept_shape
        paired = kernel is not None and len(shape) == 2 * len(sizes)
        if not paired or shape[1::2] != sizes:
            expected = _zipped(("t",) * len(sizes), sizes)
            swapped = paired and shape[::2] == sizes
            advice = ": swap both sides of this one" if swapped else ""
            raise ValueError(
                f"expected {name} of shape {expected} for {self._described()}, where t is any "
                f"size, got shape {shape}{advice}"
            )
        check_real(name, kernel)


def check_test_test(name: str, k_test_test: ArrayLike, k_test_train: ArrayLike) -> None:
    """Raises ValueError unless both sides of k_test_test are the rows of k_test_train."""
    rows = row_shape(k_test_train)
    if tuple(jnp.shape(k_test_test)) != _zipped(rows, rows):
        raise ValueError(
            f"expected {name} of shape {_zipped(rows, rows)} beside a test-train kernel of shape "
            f"{tuple(jnp.shape(k_test_train))}, got shape {tuple(jnp.shape(k_test_test))}"
        )


def _zipped(rows: tuple[_T, ...], columns: tuple[_T, ...]) -> tuple[_T, ...]:
    return tuple(size for pair in zip(rows, columns, strict=True) for size in pair)


@functools.lru_cache(maxsize=64)
def _others(ndim: int, axes: Shape) -> Shape:
    """Returns the axes other than `axes`."""
    return tuple(axis for axis in range(ndim) if axis not in axes)
