"""The axes of a convolution, as letters: the places of batch, channels and space."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class DimensionNumbers:
    """The order of the axes of the input, filter and output of a convolution.

    Attributes:
      lhs: letters of the input, e.g. 'NHWC'; N is the batch, C the channels.
      rhs: letters of the filter, e.g. 'HWIO'; I and O are its channels.
      out: letters of the output.
    """

    lhs: str
    rhs: str
    out: str

    @staticmethod
    def parse(numbers: Sequence[str] | None, ndim: int) -> DimensionNumbers:
        """Returns the axes from a triple of strings, channels last by default.

        Raises:
          ValueError: letters that do not name `ndim` spatial axes three times.
        """
        if numbers is None:
            letters = "".join(c for c in string.ascii_uppercase if c not in "NCIO")[:ndim]
            return DimensionNumbers(f"N{letters}C", f"{letters}IO", f"N{letters}C")
        is_triple = isinstance(numbers, Sequence) and len(numbers) == 3
        if not is_triple or not all(isinstance(part, str) for part in numbers):
            raise ValueError(
                "expected dimension_numbers of three strings such as ('NHWC', 'HWIO', 'NHWC'), "
                f"got {numbers!r}"
            )
        lhs, rhs, out = numbers
        spaces = {
            frozenset(lhs) - set("NC"),
            frozenset(rhs) - set("IO"),
            frozenset(out) - set("NC"),
        }
        distinct = all(len(set(part)) == len(part) == ndim + 2 for part in (lhs, rhs, out))
        named = set("NC") <= set(lhs) & set(out) and set("IO") <= set(rhs)
        if len(spaces) > 1 or not distinct or not named:
            raise ValueError(
                f"expected dimension_numbers that name {ndim} spatial axes (the filter has {ndim}) "
                f"and N and C, I and O, N and C, got {numbers!r}"
            )
        return DimensionNumbers(lhs, rhs, out)

    def space(self, part: str) -> str:
        """Returns the spatial letters of 'lhs', 'rhs' or 'out', in order."""
        return "".join(c for c in getattr(self, part) if c not in ("IO" if part == "rhs" else "NC"))

    def from_filter(self, values: Sequence[_T]) -> tuple[_T, ...]:
        """Returns one value per spatial axis of the input from one per filter axis."""
        return tuple(values[self.space("rhs").index(c)] for c in self.space("lhs"))

    def to_filter(self, values: Sequence[_T]) -> tuple[_T, ...]:
        """Returns one value per filter axis from one per spatial axis of the input."""
        return tuple(values[self.space("lhs").index(c)] for c in self.space("rhs"))

    @property
    def order(self) -> tuple[int, ...]:
        """The place of each spatial axis of the output among those of the input."""
        return tuple(self.space("lhs").index(c) for c in self.space("out"))

    @property
    def spatial(self) -> tuple[int, ...]:
        """Spatial axes of the input."""
        return tuple(self.lhs.index(c) for c in self.space("lhs"))
