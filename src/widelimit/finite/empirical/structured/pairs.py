"""The sum over pairs of uses of one parameter, from factors of their derivatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from widelimit.finite.empirical.kernel_axes import KernelAxes
from widelimit.finite.empirical.structured.factors import (
    Factor,
    OneHot,
    factor_order,
    product,
    unordered_product,
    without_one_hots,
)
from widelimit.finite.empirical.structured.halves import mirrored, upper_half

Labels = tuple[Hashable, ...]


class Derivative(NamedTuple):
    """The derivative of the output by a parameter through one use, or several alike, as factors.

    Attributes:
      parts: the first is the cotangent, whose labels ("out", axis) are those of the output.
      frame: of the axes of the parameter.
      shape: of the parameter in that frame; its labels are 0, 1, ...
    """

    parts: tuple[Factor | OneHot, ...]
    frame: tuple[Hashable, ...]
    shape: tuple[int, ...]


class Chosen(NamedTuple):
    """How the derivatives of one parameter are multiplied.

    Attributes:
      whole: whether the derivatives by the parameter are formed first.
      cost: what it takes, in multiply-adds.
    """

    whole: bool
    cost: float


def merged(derivatives: Sequence[Derivative]) -> list[Derivative]:
    """Returns fewer derivatives with the same sum: uses alike become one with a further label."""
    groups: dict[Hashable, list[Derivative]] = {}
    for derivative in derivatives:
        named = _canonical(derivative)
        key = (
            named.frame,
            tuple((type(part), _array(part).shape, _array(part).dtype) for part in named.parts),
            tuple(part.size for part in named.parts if isinstance(part, OneHot)),
            tuple(_labels(part) for part in named.parts),
        )
        groups.setdefault(key, []).append(named)
    return [_stacked(group) for group in groups.values()]


def _canonical(derivative: Derivative) -> Derivative:
    """Returns the same with labels of sums numbered in the order of appearance."""
    names: dict[Hashable, Hashable] = {}
    for part in derivative.parts:
        for label in _labels(part):
            if isinstance(label, tuple) and label[0] == "sum":
                names.setdefault(label, ("sum", len(names)))
    return _renamed(derivative, names)


def _stacked(group: Sequence[Derivative]) -> Derivative:
    first = group[0]
    if len(group) == 1:
        return first
    alike: Hashable = ("sum", "use")
    parts: list[Factor | OneHot] = []
    for versions in zip(*(derivative.parts for derivative in group), strict=True):
        array = jnp.stack([_array(part) for part in versions])
        part = versions[0]
        if isinstance(part, Factor):
            parts.append(part._replace(array=array, labels=(alike, *part.labels)))
        else:
            parts.append(part._replace(where=array, labels=(alike, *part.labels)))
    return first._replace(parts=tuple(parts))


def kernel_of_parameter(
    first: Sequence[Derivative], second: Sequence[Derivative] | None, axes: KernelAxes, rank: int
) -> tuple[Array | None, Chosen]:
    """Returns the part of the kernel that one parameter gives, and how it was computed.

    Args:
      first: derivatives of the first output.
      second: of the second; None if it is the first.
      axes: trace and diagonal axes.
      rank: of the outputs.
    """
    kept = kept_labels(axes, rank)
    one = [_side(derivative, 1, axes) for derivative in first]
    two = [_side(derivative, 2, axes) for derivative in second or first]
    couples = [
        _Couple(a, b, kept, None if second is not None else i == j)
        for (i, a), (j, b) in itertools.product(enumerate(one), enumerate(two))
        if a.frame == b.frame and (second is not None or i <= j)
    ]
    if not couples:
        return None, Chosen(False, 0.0)
    apart = sum(couple.cost for couple in couples)
    wholes = [_Whole.of(side) for side in (one, two)]
    if len({d.frame for d in (*one, *two)}) == 1:
        formed = wholes[: 1 if second is None else 2]
        together = sum(whole.cost for whole in formed) + _product_cost(wholes, kept)
        if together < apart:
            factors = [whole.factor() for whole in formed]
            if second is None:
                names = dict(zip(wholes[0].labels, wholes[1].labels, strict=True))
                labels = tuple(names[x] for x in factors[0].labels)
                factors.append(Factor(factors[0].array, labels))
            return product(factors, kept), Chosen(True, together)
    total = sum((couple.product() for couple in couples[1:]), couples[0].product())
    return total, Chosen(False, apart)


def kept_labels(axes: KernelAxes, rank: int) -> Labels:
    """Returns the labels of the kernel: both copies of an axis side by side."""
    kept: list[Hashable] = []
    for axis in range(rank):
        if axis in axes.diagonal:
            kept.append(("out", axis))
        elif axis not in axes.trace:
            kept += [("out", axis, 1), ("out", axis, 2)]
    return tuple(kept)


def _side(derivative: Derivative, side: int, axes: KernelAxes) -> Derivative:
    """Returns a derivative with labels that only its side has, but for shared ones."""
    names: dict[Hashable, Hashable] = {}
    for part in derivative.parts:
        for label in _labels(part):
            if not isinstance(label, tuple):
                continue
            shared = label[0] == "out" and label[1] in (*axes.trace, *axes.diagonal)
            names[label] = label if shared else (*label, side)
    return _renamed(derivative, names)


class _Couple:
    """Two derivatives, and the order in which to multiply their factors.

    Attributes:
      cost: what it takes, in multiply-adds.
    """

    def __init__(self, one: Derivative, two: Derivative, kept: Labels, same: bool | None) -> None:
        """Plans the product.

        Args:
          one: of the first output.
          two: of the second.
          kept: labels of the kernel.
          same: if both outputs are the same, whether both derivatives are; else None. Then the
            product of two that differ stands for the one the other way round as well.
        """
        parts = [*one.parts, *two.parts]
        shape = one.shape
        present = {label for part in parts for label in _labels(part)}
        # A label of the parameter that no factor has: all its entries have the same derivative.
        lost = math.prod(n for label, n in enumerate(shape) if label not in present)
        if lost != 1:
            parts.append(Factor(jnp.full((), lost, jnp.float32), ()))
        self._factors = without_one_hots(parts)
        self._kept = kept
        self._both_ways = same is False
        self._order = factor_order(self._factors, kept)
        self._upper = upper_half(self._factors, kept, self._order.cost) if same else None
        self.cost = self._order.cost if self._upper is None else self._upper.cost

    def product(self) -> Array:
        """Returns the part of the kernel."""
        if self._upper is not None:
            return self._upper.product(self._kept)
        found = product(self._factors, self._kept, self._order)
        return found + mirrored(found, self._kept) if self._both_ways else found


class _Whole(NamedTuple):
    """The derivatives of one side, to be formed and added up."""

    derivatives: Sequence[Derivative]
    labels: Labels
    sizes: tuple[int, ...]
    cost: float

    @classmethod
    def of(cls, derivatives: Sequence[Derivative]) -> _Whole:
        cotangent = derivatives[0].parts[0]
        out = [x for x in _labels(cotangent) if isinstance(x, tuple) and x[0] == "out"]
        sizes = dict(zip(_labels(cotangent), _array(cotangent).shape, strict=True))
        shape = derivatives[0].shape
        labels = (*out, *range(len(shape)))
        cost = 0.0
        for derivative in derivatives:
            factors = without_one_hots(derivative.parts, labels)
            held = {x for factor in factors for x in factor.labels}
            cost += factor_order(factors, tuple(x for x in labels if x in held)).cost
        return cls(derivatives, labels, (*(sizes[x] for x in out), *shape), cost)

    def factor(self) -> Factor:
        """Returns the sum of the derivatives; its axes in any order."""
        total: Factor | None = None
        for derivative in self.derivatives:
            factors = without_one_hots(derivative.parts, self.labels)
            held = {x for factor in factors for x in factor.labels}
            found = unordered_product(factors, tuple(x for x in self.labels if x in held))
            order = (*found.labels, *(x for x in self.labels if x not in held))
            order = order if total is None else total.labels
            array = found.array.transpose([found.labels.index(x) for x in order if x in held])
            array = jnp.expand_dims(array, [a for a, x in enumerate(order) if x not in held])
            sizes = dict(zip(self.labels, self.sizes, strict=True))
            array = jnp.broadcast_to(array, [sizes[x] for x in order])
            total = Factor(array if total is None else total.array + array, order)
        assert total is not None
        return total


def _product_cost(wholes: Sequence[_Whole], kept: Labels) -> float:
    """Returns what the product of two whole derivatives takes."""
    empty = np.zeros((), np.float32)
    factors = [
        Factor(np.broadcast_to(empty, whole.sizes), whole.labels)  # type: ignore[arg-type]
        for whole in wholes
    ]
    return factor_order(factors, kept).cost


def _array(part: Factor | OneHot) -> Array:
    return part.array if isinstance(part, Factor) else part.where


def _labels(part: Factor | OneHot) -> Labels:
    return part.labels if isinstance(part, Factor) else (*part.labels, part.picked)


def _renamed(derivative: Derivative, names: dict[Hashable, Hashable]) -> Derivative:
    parts: list[Factor | OneHot] = []
    for part in derivative.parts:
        labels = tuple(names.get(x, x) for x in part.labels)
        if isinstance(part, OneHot):
            picked = names.get(part.picked, part.picked)
            parts.append(part._replace(labels=labels, picked=picked))
        else:
            parts.append(part._replace(labels=labels))
    return derivative._replace(parts=tuple(parts))
