"""Windows over space, of convolutions and pooling: sizes, strides, padding, axes."""

from __future__ import annotations

import dataclasses
import enum
import operator
from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

from widelimit.covariance.offsets import Need
from widelimit.covariance.stencil import Stencil, out_size, same_padding, window_stencil
from widelimit.typing import Sizes

Pair = tuple[int, int]


class Padding(enum.Enum):
    """The treatment of the border of an image by windows: CIRCULAR, SAME or VALID."""

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"


def as_padding(padding: PaddingLike, ndim: int, what: str = "window") -> str | tuple[Pair, ...]:
    """Returns a padding as the name of a rule, or as pairs (before, behind) per axis.

    Args:
      padding: a `Padding`, its exact name, or a sequence of pairs of ints >= 0.
      ndim: number of axes.
      what: the owner of these axes, for the message.

    Raises:
      ValueError: anything else.
    """
    if isinstance(padding, Padding):
        return padding.value
    if isinstance(padding, str):
        if padding in Padding.__members__:
            return padding
    elif isinstance(padding, tuple | list):
        pairs = tuple(tuple(pair) for pair in padding if isinstance(pair, tuple | list))
        if len(pairs) == len(padding) and all(_is_pair(pair) for pair in pairs):
            if len(pairs) != ndim:
                raise ValueError(
                    f"expected {ndim} pairs of padding, one per {what} axis, got {pairs}"
                )
            return tuple((int(a), int(b)) for a, b in pairs)
    raise ValueError(
        f"expected padding 'SAME', 'VALID', 'CIRCULAR' or pairs of ints >= 0, got {padding!r}"
    )


def _is_pair(pair: Sequence[object]) -> bool:
    return len(pair) == 2 and all(isinstance(p, int) and p >= 0 for p in pair)


PaddingLike: TypeAlias = str | Padding | Sequence[Sequence[int]]


def as_sizes(name: str, sizes: Sizes | None, ndim: int | None = None) -> tuple[int, ...]:
    """Returns one positive int per axis; None means ones.

    Raises:
      ValueError: another number of axes, or a size below 1.
      TypeError: sizes that are not ints.
    """
    if sizes is None:
        return (1,) * (ndim or 0)
    try:
        values = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"expected a sequence of ints for {name}, got {sizes!r}") from None
    if ndim is not None and len(values) != ndim:
        raise ValueError(f"expected {ndim} numbers in {name}, one per window axis, got {values}")
    if any(value < 1 for value in values):
        raise ValueError(f"expected numbers of at least 1 in {name}, got {values}")
    return values


@dataclasses.dataclass(frozen=True)
class Windows:
    """A window over space. All tuples have one entry per spatial axis, in the order of the input.

    Attributes:
      shape: sizes.
      strides: steps between outputs.
      dilation: steps between taps.
      padding: 'SAME', 'VALID', 'CIRCULAR', or pairs.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[Pair, ...]

    @property
    def circular(self) -> bool:
        """Whether space wraps around."""
        return self.padding == "CIRCULAR"

    def pads(self, spatial: tuple[int, ...]) -> tuple[Pair, ...]:
        """Returns the padding (before, behind) of every axis."""
        if isinstance(self.padding, tuple):
            return self.padding
        if self.padding == "VALID":
            return ((0, 0),) * len(spatial)
        parts = zip(spatial, self.shape, self.strides, self.dilation, strict=True)
        return tuple(same_padding(*part) for part in parts)

    def output(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of the output.

        Raises:
          ValueError: the number of axes is wrong, or the window is larger than the padded image.
        """
        if len(spatial) != len(self.shape):
            raise ValueError(
                f"expected an input with {len(self.shape)} spatial axes for a window of shape "
                f"{self.shape}, got {len(spatial)}, of sizes {spatial}"
            )
        parts = zip(
            spatial, self.shape, self.strides, self.dilation, self.pads(spatial), strict=True
        )
        sizes = tuple(out_size(*part) for part in parts)
        if any(size < 1 for size in sizes):
            spread = "" if set(self.dilation) <= {1} else f" with steps {self.dilation}"
            raise ValueError(
                f"expected a window that fits the image, got a window of shape {self.shape}"
                f"{spread} and an image of sizes {spatial} with padding {self.padding!r}"
            )
        return sizes

    def stencils(
        self, spatial: tuple[int, ...], *, tied: bool, normalise: bool = False
    ) -> tuple[Stencil, ...]:
        """Returns one stencil per axis; see `widelimit.covariance.stencil.window_stencil`."""
        parts = zip(
            spatial, self.shape, self.strides, self.dilation, self.pads(spatial), strict=True
        )
        return tuple(
            window_stencil(*part, circular=self.circular, tied=tied, normalise=normalise)
            for part in parts
        )

    def moduli(self, moduli: tuple[int, ...]) -> tuple[int | None, ...]:
        """Returns the moduli of folded offsets behind the window."""
        pairs = zip(moduli, self.strides, strict=True)
        return tuple(m // s if m % s == 0 else None for m, s in pairs)

    def temporaries(self, need: Need) -> tuple[float, int]:
        """Returns the memory that sums over the window allocate; see `Layer.temporaries`."""
        return (2.5 if need.cross.moduli else 1.5), 0  # two kinds of pairs are summed separately

    def centres(self, mask: Array, axes: tuple[int, ...]) -> Array:
        """Returns a mask read at the centres of the windows; unchanged if the sizes do not change.

        A centre in the padding is not masked.

        Args:
          mask: array of bools.
          axes: its spatial axes.
        """
        spatial = tuple(mask.shape[axis] for axis in axes)
        taps = self.stencils(spatial, tied=True)
        for axis, size, out, stencil in zip(axes, spatial, self.output(spatial), taps, strict=True):
            if out != size:
                centre = stencil.table[(len(stencil.table) - 1) // 2]
                inside = (centre >= 0).reshape([-1 if i == axis else 1 for i in range(mask.ndim)])
                mask = jnp.take(mask, jnp.maximum(centre, 0), axis=axis) & inside
        return mask


def wrap(x: Array, pads: tuple[Pair, ...], axes: tuple[int, ...]) -> Array:
    """Returns the array padded periodically along its spatial axes."""
    widths = [(0, 0)] * x.ndim
    for axis, pair in zip(axes, pads, strict=True):
        widths[axis] = pair
    return jnp.pad(x, widths, mode="wrap")
