"""Links and uses: how a parameter enters a program, as rules describe it.

Every derivative here is a sum of products. With names for axes ("labels"), the derivative of the
output by a parameter theta through one use of it is

    J[output axes, theta axes] = sum over all other labels of cotangent[...] * read[...] * ...

with the derivative of the output by the result of that use (the cotangent) and values of the
program (reads). For y = x W it is J[o, i, j] = sum over p of cotangent[o, p, j] * x[p, i].

A label is an integer for an axis of the parameter, or a pair for a sum.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from widelimit.finite.empirical.structured.program import Path, Place, Step

Label = Hashable
Labels = tuple[Label, ...]


@dataclasses.dataclass(frozen=True)
class Read:
    """A value of the program as a factor.

    Attributes:
      source: place of the value, or an array of numbers.
      labels: labels of its axes after `change`.
      loops: labels of the leading axes, one per scan around it.
      change: function applied to the value of one round and one sample, or None.
      fixed: whether the value is the same for all samples.
    """

    source: Place | np.ndarray
    labels: Labels
    loops: Labels = ()
    change: Callable[[Array], Array] | None = None
    fixed: bool = False


@dataclasses.dataclass(frozen=True)
class Crop:
    """A factor that is 1 where label `outer` = `start` + label `inner`, else 0."""

    outer: Label
    inner: Label
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Pick:
    """A factor that is 1 where the label `picked`, of `size` values, equals `index`, else 0.

    An index outside 0 ... size - 1 picks nothing.
    """

    index: Read
    picked: Label
    size: int


Part = Read | Crop | Pick


@dataclasses.dataclass(frozen=True)
class Link:
    """A value that depends linearly on a parameter.

    Attributes:
      leaf: number of the parameter.
      frame: the changes of the parameter (reshape, slice, reverse) after which labels number its
        axes. Two uses in the same frame have the same axes.
      shape: shape of the parameter in that frame.
      labels: labels of the axes of the value.
      loops: labels of the scans around it.
      parts: further factors.
    """

    leaf: int
    frame: tuple[Any, ...]
    shape: tuple[int, ...]
    labels: Labels
    loops: Labels = ()
    parts: tuple[Part, ...] = ()

    def relabelled(self, labels: Labels, *parts: Part) -> Link:
        """Returns the link of a value with other labels and further factors."""
        return dataclasses.replace(self, labels=labels, parts=(*self.parts, *parts))

    def own(self) -> bool:
        """Returns whether the value is the parameter up to the order of axes and a factor."""
        held = [*self.labels, *(label for label in self.loops if isinstance(label, int))]
        plain = all(isinstance(part, Read) and not part.labels for part in self.parts)
        return plain and sorted(held, key=str) == sorted(range(len(self.shape)), key=str)


@dataclasses.dataclass(frozen=True)
class Use:
    """A place where a parameter enters the rest of the program, with its factors.

    Attributes:
      leaf, frame, shape: see `Link`.
      place: the value whose cotangent is the first factor; None for the parameter itself.
      labels: labels of the cotangent behind the axes of the output and of `loops`.
      loops: labels of the scans around it.
      parts: the other factors.
      rule: name of the primitive.
      change: shape of the cotangent with these labels, None for that of the value.
    """

    leaf: int
    frame: tuple[Any, ...]
    shape: tuple[int, ...]
    place: Place | None
    labels: Labels
    loops: Labels = ()
    parts: tuple[Part, ...] = ()
    rule: str = ""
    change: tuple[int, ...] | None = None


class Scope:
    """The part of the program around a step that rules can read.

    Attributes:
      path: path of the program.
      types: types of its values.
      fixed: numbers of the values that depend on no array but parameters.
      weights: numbers of the values among these that depend on parameters.
    """

    def __init__(
        self, path: Path, types: Mapping[int, Any], fresh: itertools.count[int] | None = None
    ) -> None:
        self.path = path
        self.types = types
        self.fixed: set[int] = set()
        self.weights: set[int] = set()
        self.counter = itertools.count() if fresh is None else fresh

    def fresh(self, count: int = 1) -> Labels:
        """Returns new labels of sums."""
        return tuple(("sum", next(self.counter)) for _ in range(count))

    def read(
        self,
        number: int,
        labels: Labels,
        link: Link,
        change: Callable[[Array], Array] | None = None,
    ) -> Read:
        """Returns a value of the program as a factor beside a link."""
        fixed = not self.path and number in self.fixed
        return Read((self.path, number), labels, link.loops, change, fixed)

    def use(
        self,
        step: Step,
        link: Link,
        labels: Labels,
        *parts: Part,
        change: tuple[int, ...] | None = None,
    ) -> Use:
        """Returns the use of a link by a step whose output has these labels."""
        return Use(
            link.leaf,
            link.frame,
            link.shape,
            (self.path, step.outputs[0]),
            labels,
            link.loops,
            (*link.parts, *parts),
            step.name,
            change,
        )


def disjoint(frame1: tuple[Any, ...], frame2: tuple[Any, ...]) -> bool:
    """Returns whether two frames certainly share no entry of the parameter."""
    for change1, change2 in zip(frame1, frame2, strict=False):
        if change1 == change2:
            continue
        if change1[2] != "slice" or change2[2] != "slice" or change1[:2] != change2[:2]:
            return False
        spans = zip(*change1[3:5], *change2[3:5], strict=True)
        return any(stop1 <= start2 or stop2 <= start1 for start1, stop1, start2, stop2 in spans)
    return False
