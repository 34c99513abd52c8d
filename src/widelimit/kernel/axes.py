"""Operations on covariances in the public layout that follow operations on activations.

Every axis of an activation except the channels appears in a covariance twice, side by side, or
once if only equal indices are stored. The functions here apply to both copies what is applied to
the activation: a permutation, an index, a mask, a product with a constant.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from widelimit.typing import BasicIndex, Sizes

Shape = tuple[int, ...]
Index = tuple[int | slice, ...]
AxisPair = tuple[Shape, Shape]


@dataclasses.dataclass(frozen=True)
class Places:
    """The places of the axes of an activation in a covariance.

    Attributes:
      order: axes of the activation as they are stored: samples first, no channels.
      single: axes of which only equal indices are stored, so that both copies are one axis.
    """

    order: Shape
    single: frozenset[int]

    @functools.cached_property
    def copies(self) -> dict[int, tuple[int, int]]:
        """Per axis of the activation, the axes of its first and of its second copy."""
        places_, count = {}, 0
        for axis in self.order:
            width = 1 if axis in self.single else 2
            places_[axis] = count, count + width - 1
            count += width
        return places_


def reorder(value: Array, places: Places, order: Shape) -> Array:
    """Returns the covariance with the axes of the activation stored in another order."""
    return value.transpose([i for axis in order for i in dict.fromkeys(places.copies[axis])])


def hide_pairs(value: Array, places: Places, hidden: tuple[Array | None, Array | None]) -> Array:
    """Returns the covariance with zeros where either index is hidden.

    Args:
      value: covariance.
      places: its axes.
      hidden: bool [n, *spatial] of each side; None hides nothing.
    """
    own_axes = (places.order[0], *sorted(places.order[1:]))
    for copy, flags in enumerate(hidden):
        if flags is None:
            continue
        stored = flags.transpose([own_axes.index(axis) for axis in places.order])
        shape = [1] * value.ndim
        for axis, size in zip(places.order, stored.shape, strict=True):
            shape[places.copies[axis][copy]] = size
        value = jnp.where(jnp.broadcast_to(stored.reshape(shape), value.shape), 0, value)
    return value


def take(value: Array, places: Places, indices: tuple[Index, Index]) -> Array:
    """Returns the covariance of indexed activations, one index per axis and side."""
    full: list[int | slice] = [slice(None)] * value.ndim
    for axis, copies in places.copies.items():
        for copy, index in zip(copies, indices, strict=True):
            full[copy] = index[axis]
    return value[tuple(full)]


def taken_shape(shape: Shape, index: Index) -> Shape:
    """Returns the shape of an indexed activation."""
    pairs = zip(shape, index, strict=True)
    return tuple(len(range(*i.indices(size))) for size, i in pairs if isinstance(i, slice))


def taken_axis(axis: int, index: Index) -> int:
    """Returns the place of an axis after indexing."""
    return axis - sum(not isinstance(i, slice) for i in index[:axis])


def take_mask(mask: Array | None, index: Index) -> Array | None:
    """Returns the mask of an indexed activation; its axes of size 1 hold for all indices."""
    if mask is None:
        return None
    parts: list[int | slice] = []
    for size, part in zip(mask.shape, index, strict=True):
        whole: int | slice = slice(None) if isinstance(part, slice) else 0
        parts.append(whole if size == 1 else part)
    return mask[tuple(parts)]


def canonical_index(idx: BasicIndex, shape: Shape, batch_axis: int, channel_axis: int) -> Index:
    """Returns a basic NumPy index as one int or slice per axis of an activation.

    Raises:
      NotImplementedError: an int on the batch axis, or anything but `:` on the channel axis.
      TypeError: indices other than ints, slices and an ellipsis.
      IndexError: more indices than axes, or an int outside its axis.
    """
    parts = list(idx) if isinstance(idx, tuple) else [idx]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError(f"expected one ellipsis at most, got {idx}")
    missing = len(shape) - (len(parts) - len(dots))
    if missing < 0:
        raise IndexError(f"expected at most {len(shape)} indices, got {len(parts) - len(dots)}")
    place = dots[0] if dots else len(parts)
    parts[place : place + len(dots)] = [slice(None)] * missing
    index = tuple(
        _basic(p, size, axis) for axis, (p, size) in enumerate(zip(parts, shape, strict=True))
    )
    if not isinstance(index[batch_axis], slice):
        raise NotImplementedError(
            f"expected a slice of the samples (axis {batch_axis}), got {index[batch_axis]}"
        )
    channels = index[channel_axis]
    full = (0, shape[channel_axis], 1)
    if not isinstance(channels, slice) or channels.indices(shape[channel_axis]) != full:
        raise NotImplementedError(
            f"expected all channels (`:` on axis {channel_axis}), got {channels}: kernels are "
            "averages over all channels"
        )
    return index


def _basic(part: BasicIndex, size: int, axis: int) -> int | slice:
    if isinstance(part, slice):
        return part
    try:
        number = operator.index(part)
    except TypeError:
        number = None
    if number is None or isinstance(part, bool | np.bool_):
        raise TypeError(
            f"expected ints, slices and an ellipsis as indices, got {part!r} on axis {axis}"
        )
    if not -size <= number < size:
        raise IndexError(f"expected an index on axis {axis} of size {size}, got {number}")
    return number % size


class Product(NamedTuple):
    """A product of an activation with a constant, axis by axis.

    An axis of the activation is named by its number. An axis of the constant has the name of the
    axis that it is multiplied with, or a new name if it is free.

    Attributes:
      numbers: contracted and batched axes, as `jax.lax.dot_general` takes them.
      is_lhs: whether the constant is the left factor.
      constant: names of the axes of the constant.
      out: names of the axes of the result.
      samples: name of the axis of the samples in the result.
      channels: name of the axis of the channels.
      fresh: names of the free axes of the constant.
    """

    numbers: tuple[AxisPair, AxisPair]
    is_lhs: bool
    constant: Shape
    out: Shape
    samples: int
    channels: int
    fresh: frozenset[int]

    def apply(self, x: Array, other: Array) -> Array:
        """Returns the product of an activation (or a mask) with the constant."""
        factors = (other, x) if self.is_lhs else (x, other)
        return jax.lax.dot_general(*factors, self.numbers)

    def shape(self, shape: Shape, other: Array) -> Shape:
        """Returns the shape of the product.

        Raises:
          ValueError: contracted or batched axes of different sizes.
        """
        try:
            x = jax.ShapeDtypeStruct(shape, other.dtype)
            return jax.eval_shape(self.apply, x, other).shape
        except TypeError as error:
            raise ValueError(
                f"expected factors that jax.lax.dot_general multiplies, got an activation {shape} "
                f"and a constant {other.shape}: {error}"
            ) from error

    def mask(
        self, mask: Array | None, shape: Shape, channel_axis: int, other: Array
    ) -> Array | None:
        """Returns the mask of the product: masked where all entries that contribute are masked."""
        if mask is None:
            return None
        size = (*shape[:channel_axis], mask.shape[channel_axis], *shape[channel_axis + 1 :])
        visible = jnp.broadcast_to(~mask, size).astype(jnp.float32)
        return self.apply(visible, (other != 0).astype(jnp.float32)) == 0

    def pairs(
        self,
        value: Float[Array, "..."],
        places: Places,
        others: tuple[Array, Array],
        single: bool,
    ) -> Float[Array, "..."]:
        """Returns the covariance of products.

        Args:
          value: covariance of the activations.
          places: its axes.
          others: the constant of each side.
          single: whether only equal indices are stored along the free axes of the constants.
        """
        once = places.single | (self.fresh - {self.samples} if single else frozenset())

        def label(name: int, copy: int) -> int:
            return 2 * name + (0 if name in once else copy)

        def both(names: Iterable[int]) -> list[int]:
            return list(dict.fromkeys(label(name, copy) for name in names for copy in (0, 1)))

        first, second = (jnp.asarray(other, value.dtype) for other in others)
        return jnp.einsum(
            first,
            [label(name, 0) for name in self.constant],
            value,
            both(places.order),
            second,
            [label(name, 1) for name in self.constant],
            both(self.kept),
            precision=jax.lax.Precision.HIGHEST,
        )

    @property
    def kept(self) -> Shape:
        """Names of the axes of the result in the public layout: samples first, no channels."""
        rest = (name for name in self.out if name not in (self.samples, self.channels))
        return (self.samples, *rest)


def plan_product(
    numbers: Sequence[Sequence[Sizes]],
    is_lhs: bool,
    ndims: tuple[int, int],
    batch_axis: int,
    channel_axis: int,
) -> Product:
    """Returns the product of an activation with a constant.

    Args:
      numbers: `((lhs_contracted, rhs_contracted), (lhs_batched, rhs_batched))`, as
        `jax.lax.dot_general` takes it.
      is_lhs: whether the constant is the left factor.
      ndims: number of axes of the activation, and of the constant.
      batch_axis: axis of the samples in the activation.
      channel_axis: axis of its channels.

    Raises:
      ValueError: the channel axis is contracted or batched, an axis is out of range, or the samples
        are contracted and the constant has no free axis to replace them.
    """
    ndim, other_ndim = ndims
    oriented = [pair[::-1] if is_lhs else pair for pair in numbers]
    (cs, other_cs), (bs, other_bs) = (
        (_axes(mine, ndim), _axes(theirs, other_ndim)) for mine, theirs in oriented
    )
    if channel_axis in cs + bs:
        raise ValueError(
            f"expected a product that leaves the channels (axis {channel_axis}) alone, got "
            f"dimension numbers {numbers}"
        )
    if len(cs) != len(other_cs) or len(bs) != len(other_bs):
        raise ValueError(f"expected pairs of axes in the dimension numbers, got {numbers}")
    constant = [ndim + j for j in range(other_ndim)]
    for name, j in zip(cs + bs, other_cs + other_bs, strict=True):
        constant[j] = name
    fresh = tuple(name for name in constant if name >= ndim)
    if batch_axis in cs and not fresh:
        raise ValueError(
            f"expected a constant with a free axis to replace the samples (axis "
            f"{batch_axis}), which are contracted; got none"
        )
    samples = fresh[0] if batch_axis in cs else batch_axis
    free = tuple(i for i in range(ndim) if i not in cs + bs)
    out = (*bs, *fresh, *free) if is_lhs else (*bs, *free, *fresh)
    contracted, batched = (cs, other_cs), (bs, other_bs)
    return Product(
        (contracted[::-1], batched[::-1]) if is_lhs else (contracted, batched),
        is_lhs,
        tuple(constant),
        out,
        samples,
        channel_axis,
        frozenset(fresh),
    )


def _axes(axes: Sizes, ndim: int) -> Shape:
    """Returns axes as non-negative numbers."""
    numbers = tuple(operator.index(axis) for axis in axes)
    if not all(-ndim <= axis < ndim for axis in numbers):
        raise ValueError(f"expected axes of a factor with {ndim} axes, got {numbers}")
    return tuple(axis % ndim for axis in numbers)
