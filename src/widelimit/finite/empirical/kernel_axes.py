"""Axes of an output in its kernel: twice, once or not at all, and the sums of products.

A kernel of two outputs of shapes [n1, h, c] and [n2, h, c] has both copies of each axis side by
side: [n1, n2, h, h, c, c]. Trace axes are equal in both copies and summed over, diagonal axes are
equal in both copies and appear once: with trace axis 2 and diagonal axis 1 it is [n1, n2, h].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from widelimit.finite.empirical.long_rows import rows_product
from widelimit.typing import Axes

Shape = tuple[int, ...]


class KernelAxes(NamedTuple):
    """Trace and diagonal axes of one output; static and hashable.

    Attributes:
      trace: axes that are summed over, ascending, none negative.
      diagonal: axes that appear once, ascending, none negative.
    """

    trace: Shape = ()
    diagonal: Shape = ()

    def kernel_shape(self, shape1: Shape, shape2: Shape) -> Shape:
        """Returns the shape of the kernel of outputs of these shapes."""
        shape: list[int] = []
        for axis, (size1, size2) in enumerate(zip(shape1, shape2, strict=True)):
            if axis in self.diagonal:
                shape.append(size1)
            elif axis not in self.trace:
                shape += [size1, size2]
        return tuple(shape)

    def trace_size(self, shape: Shape) -> int:
        """Returns the number of entries that a trace sums: the sum divided by it is the mean."""
        return math.prod(shape[axis] for axis in self.trace)

    def kept(self, rank: int) -> Shape:
        """Returns the axes of an output of this rank that appear twice, ascending."""
        return tuple(a for a in range(rank) if a not in self.trace and a not in self.diagonal)

    def zipped_order(self, rank: int) -> Shape:
        """Returns the transposition of [*diagonal, *paired, *paired] to the layout of kernels."""
        paired = self.kept(rank)
        order: list[int] = []
        for axis in range(rank):
            if axis in self.diagonal:
                order.append(self.diagonal.index(axis))
            elif axis in paired:
                first = len(self.diagonal) + paired.index(axis)
                order += [first, first + len(paired)]
        return tuple(order)


def resolve_axes(
    trace_axes: Axes, diagonal_axes: Axes, shape1: Shape, shape2: Shape, name: str = "an output"
) -> KernelAxes:
    """Returns the axes of one output.

    Args:
      trace_axes: axes to take the mean over, an integer or several, may be negative.
      diagonal_axes: axes that appear once, an integer or several, may be negative.
      shape1: shape of f(x1).
      shape2: shape of f(x2).
      name: the name of the output in errors.

    Raises:
      TypeError: axes that are not integers.
      ValueError: axes out of range, axes that are both, outputs of different rank, or of different
        size on one of these axes.
    """
    if len(shape1) != len(shape2):
        raise ValueError(
            f"expected f(x1) and f(x2) with the same number of axes, got {name} of shapes "
            f"{shape1} and {shape2}"
        )
    trace = _resolve(trace_axes, shape1, "trace_axes", name)
    diagonal = _resolve(diagonal_axes, shape1, "diagonal_axes", name)
    both = sorted(set(trace) & set(diagonal))
    if both:
        raise ValueError(
            f"expected different trace_axes and diagonal_axes, got {trace_axes} and "
            f"{diagonal_axes}, which share axis {both[0]} of {name} of shape {shape1}"
        )
    for kind, axes in (("trace", trace), ("diagonal", diagonal)):
        for axis in axes:
            if shape1[axis] != shape2[axis]:
                raise ValueError(
                    f"expected f(x1) and f(x2) of the same size along {kind} axis {axis}, got "
                    f"{name} of shapes {shape1} and {shape2}"
                )
    return KernelAxes(trace, diagonal)


def kernel_of_arrays(a1: Array, a2: Array, axes: KernelAxes, rank: int) -> Array:
    """Returns the kernel of two arrays: the sum of their products over trace and further axes.

    Args:
      a1: array [*shape of output 1, *rest], for example a Jacobian with respect to one parameter.
      a2: array [*shape of output 2, *rest].
      axes: trace and diagonal axes of the output.
      rank: number of axes of the output; without further axes this is the kernel of the outputs.

        Arrays are not conjugated. The sum is not divided by the size of the trace axes. Products of
        float16 and bfloat16 are summed, and returned, in float32.
    """
    summed = (*axes.trace, *range(rank, a1.ndim))
    dtype = kernel_dtype(a1.dtype, a2.dtype)
    if a1.dtype != a2.dtype:
        a1, a2 = a1.astype(dtype), a2.astype(dtype)
    paired = axes.kept(rank)
    if not axes.diagonal and paired == tuple(range(len(paired))):
        shapes = [a.shape[: len(paired)] for a in (a1, a2)]
        length = math.prod(a1.shape[len(paired) :])
        rows1 = a1.reshape(math.prod(shapes[0]), length)
        rows2 = a2.reshape(math.prod(shapes[1]), length)
        product = rows_product(rows1, rows2, dtype).reshape(*shapes[0], *shapes[1])
        return product.transpose(axes.zipped_order(rank))
    # [*diagonal, *paired of a1, *paired of a2]
    product = lax.dot_general(
        a1,
        a2,
        ((summed, summed), (axes.diagonal, axes.diagonal)),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )
    return product.transpose(axes.zipped_order(rank))


def kernel_dtype(*dtypes: DTypeLike) -> np.dtype:
    """Returns the dtype in which products of these are summed: at least float32."""
    dtype = jnp.result_type(*dtypes)
    return np.dtype(jnp.promote_types(dtype, jnp.float32) if dtype.itemsize < 4 else dtype)


def mean_over_trace(kernel: Array, axes: KernelAxes, shape: Shape) -> Array:
    """Returns a sum over trace axes as the mean over them; `shape` is that of the output."""
    return kernel / axes.trace_size(shape) if axes.trace else kernel


def _resolve(axes: Axes, shape: Shape, kind: str, name: str) -> Shape:
    """Returns distinct non-negative axes in ascending order."""
    positive = set()
    for axis in axes if isinstance(axes, Sequence | np.ndarray) and np.ndim(axes) else (axes,):
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"expected integers in {kind}, got {axis!r}")
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"expected {kind} of {name} of shape {shape}, which has {len(shape)} axes, "
                f"got {axes}"
            )
        positive.add(int(axis) % len(shape))
    return tuple(sorted(positive))
