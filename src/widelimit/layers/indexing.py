"""Selection of positions and samples: Index, and Slice to write an index."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from types import EllipsisType
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.linear_maps import take_positions, take_samples
from widelimit.covariance.offsets import Offsets
from widelimit.covariance.signal import Signal
from widelimit.covariance.stencil import index_stencil, needed_offsets
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import check_one_input
from widelimit.typing import (
    Arrays,
    BasicIndex,
    Masks,
    Moduli,
    Needs,
    Params,
    Shapes,
    Signals,
)

_T = TypeVar("_T")


class _IndexExpression:
    """Returns the expression between its brackets: `Slice[:, ::2, 0]`."""

    def __getitem__(self, idx: _T) -> _T:
        return idx

    def __repr__(self) -> str:
        return "Slice"


Slice = _IndexExpression()


class HashableSlice(NamedTuple):
    """A slice that can be hashed (slices of Python cannot)."""

    start: int | None
    stop: int | None
    step: int | None

    @property
    def whole(self) -> bool:
        """Whether it keeps the whole axis, whatever its size."""
        return self.start in (None, 0) and self.stop is None and self.step in (None, 1)

    def positions(self, size: int) -> tuple[int, ...]:
        """Returns the positions that it reads on an axis of this size."""
        return tuple(range(size)[slice(*self)])

    def __str__(self) -> str:
        ends = ["" if end is None else str(end) for end in self]
        return ":".join(ends[: 3 if self.step is not None else 2])


_ALL = HashableSlice(None, None, None)


@pytree
class Index(Layer):
    """Returns a layer that indexes its input as NumPy does with ints, slices and an Ellipsis.

    K' and T' are the entries of K and T at the chosen samples and positions.

    Args:
      idx: index of all axes; `Slice[...]` writes one. An int removes its axis.
      batch_axis: axis of the samples in the input.
      channel_axis: axis of the channels in the input.

    Raises:
      TypeError: other indices than ints, slices and an Ellipsis.
      ValueError: an index that does not fit the input, selects nothing on an axis, or cuts an axis
        of unknown size (-1).
      NotImplementedError: at kernel time, an int for the samples, or anything but `:` for the
        channels.
    """

    idx: BasicIndex = static()
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)

    def __post_init__(self) -> None:
        idx = self.idx if type(self.idx) is tuple else (self.idx,)
        object.__setattr__(self, "idx", tuple(map(_as_item, idx)))
        if sum(item is Ellipsis for item in self.idx) > 1:
            raise ValueError(f"expected at most one Ellipsis, got {self._text()}")

    def _repr_fields(self) -> Iterator[str]:
        yield self._text()
        yield from list(super()._repr_fields())[1:]

    def _text(self) -> str:
        items = ("..." if item is Ellipsis else str(item) for item in self.idx)
        return f"Slice[{', '.join(items) or '()'}]"

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def _items(self, ndim: int) -> tuple[int | HashableSlice, ...]:
        """Returns an int or a slice for every axis of the input."""
        items = [item for item in self.idx if item is not Ellipsis]
        if len(items) > ndim:
            raise ValueError(
                f"expected an index of at most {ndim} axes, as the input has, got {self._text()}"
            )
        place = self.idx.index(Ellipsis) if Ellipsis in self.idx else len(items)
        return (*items[:place], *[_ALL] * (ndim - len(items)), *items[place:])

    def output_shape(self, shape: Shapes) -> Shapes:
        check_one_input(shape)
        out = []
        for axis, (item, size) in enumerate(zip(self._items(len(shape)), shape, strict=True)):
            if isinstance(item, HashableSlice) and item.whole:
                out.append(size)
                continue
            if size < 0:
                raise ValueError(
                    f"expected the size of axis {axis}, which {self._text()} cuts, got shape "
                    f"{shape}"
                )
            if isinstance(item, int):
                if not -size <= item < size:
                    raise ValueError(
                        f"expected an index within axis {axis} of size {size}, got {item}"
                    )
            elif not item.positions(size):
                raise ValueError(
                    f"expected an index that selects part of axis {axis} of size {size}, got "
                    f"{self._text()}"
                )
            else:
                out.append(len(item.positions(size)))
        return tuple(out)

    def output_axes(self, signal: Signal) -> tuple[int, int]:
        items = self._items(signal.ndim)

        def place(axis: int) -> int:
            return axis - sum(isinstance(item, int) for item in items[:axis])

        return place(signal.batch_axis), place(signal.channel_axis)

    def output_signal(self, signal: Signals) -> Signals:
        if isinstance(signal, Signal):
            items = self._items(signal.ndim)
            samples, channels = items[signal.batch_axis], items[signal.channel_axis]
            if isinstance(samples, int):
                raise NotImplementedError(
                    f"expected a slice of the batch axis {signal.batch_axis} in a kernel, got "
                    f"{self._text()}: an int would leave no samples"
                )
            if isinstance(channels, int) or not channels.whole:
                raise NotImplementedError(
                    f"expected ':' for the channel axis {signal.channel_axis} in a kernel, got "
                    f"{self._text()}: kernels are averages over all channels"
                )
        return super().output_signal(signal)

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        return self._read(x)

    def _read(self, x: Arrays) -> Arrays:
        items = self._items(x.ndim)
        return x[tuple(slice(*item) if isinstance(item, HashableSlice) else item for item in items)]

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        if mask is None:
            return None
        items = zip(self._items(len(shape)), shape, mask.shape, strict=True)
        full = (m if isinstance(item, HashableSlice) and item.whole else s for item, s, m in items)
        return self._read(jnp.broadcast_to(mask, tuple(full)))

    def _positions(self, signal: Signal) -> tuple[tuple[int, ...], ...]:
        """Returns the positions that are read on every spatial axis."""
        items = self._items(signal.ndim)
        axes = zip(signal.spatial_axes, signal.spatial, strict=True)
        return tuple(
            (item % size,) if isinstance(item, int) else item.positions(size)
            for item, size in ((items[axis], size) for axis, size in axes)
        )

    def _widened(self, offsets: Offsets, signal: Signal) -> Offsets:
        """Returns offsets of the output with {0} for the axes that ints remove."""
        if not offsets.wanted:
            return Offsets.none(len(signal.spatial))
        items = self._items(signal.ndim)
        axes, moduli = iter(offsets.axes), iter(offsets.moduli or (None,) * len(offsets.axes))
        removed = [isinstance(items[axis], int) for axis in signal.spatial_axes]
        folds = tuple(None if gone else next(moduli) for gone in removed)
        wide = tuple((0,) if gone else next(axes) for gone in removed)
        return Offsets(wide, folds if any(folds) else ())

    def needs(self, need: Needs, signal: Signals) -> Needs:
        taps = tuple(map(index_stencil, signal.spatial, self._positions(signal)))
        return need.map(lambda offsets: needed_offsets(taps, self._widened(offsets, signal)))

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        items = [self._items(signal.ndim)[axis] for axis in signal.spatial_axes]
        return tuple(
            modulus if item.whole else None
            for item, modulus in zip(items, moduli, strict=True)
            if isinstance(item, HashableSlice)
        )

    def mixes_samples(self, signal: Signals) -> bool:
        samples = self._items(signal.ndim)[signal.batch_axis]
        return not (isinstance(samples, HashableSlice) and samples.whole)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        signal, need = site.signal_in, site.need_out
        wide = need.map(lambda offsets: self._widened(offsets, signal))
        cov = take_positions(cov, self._positions(signal), site.signal_out, wide)
        samples = self._items(signal.ndim)[signal.batch_axis]
        assert isinstance(samples, HashableSlice)
        # Axes removed by ints hold one row and one position, so arrays do not change.
        return take_samples(cov, slice(*samples), site.signal_out).replace(need=need)


def _as_item(item: BasicIndex | HashableSlice) -> int | HashableSlice | EllipsisType:
    """Returns one component of an index.

    Raises:
      TypeError: not an int, a slice of ints, or an Ellipsis.
    """
    if item is Ellipsis:
        return item
    if isinstance(item, HashableSlice):
        return item
    try:
        if isinstance(item, slice):
            ends = (item.start, item.stop, item.step)
            part = HashableSlice(*(None if end is None else operator.index(end) for end in ends))
            if part.step == 0:
                raise ValueError("expected a slice with a step other than 0")
            return part
        if not isinstance(item, bool) and np.ndim(item) == 0:
            return operator.index(item)
    except TypeError:
        pass
    raise TypeError(f"expected an index of ints, slices and an Ellipsis, got {item!r}")
