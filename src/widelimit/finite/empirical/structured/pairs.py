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
    """The derivative of the output by a parameter through one use, or several equal ones.

    Attributes:
      parts: the factors; the first is the cotangent, with labels ("out", axis) for the output.
      frame: frame of the axes of the parameter.
      shape: shape of the parameter in that frame; its labels are 0, 1, ...
    """

    parts: tuple[Factor | OneHot, ...]
    frame: tuple[Hashable, ...]
    shape: tuple[int, ...]


class Chosen(NamedTuple):
    """The chosen way to multiply the derivatives of one parameter.

    Attributes:
      whole: whether the derivatives by the parameter are formed first.
      cost: the cost in multiply-adds.
    """

    whole: bool
    cost: float


def merged(derivatives: Sequence[Derivative]) -> list[Derivative]:
    """Returns fewer derivatives with the same sum: equal uses become one with a further label."""
    groups: dict[Hashable, list[Derivative]] = {}
    for derivative in derivatives:
        canonical = _canonical(derivative)
        key = (
            canonical.frame,
            tuple((type(part), _array(part).shape, _array(part).dtype) for part in canonical.parts),
            tuple(part.size for part in canonical.parts if isinstance(part, OneHot)),
            tuple(_labels(part) for part in canonical.parts),
        )
        groups.setdefault(key, []).append(canonical)
    return [_stacked(group) for group in groups.values()]


def _canonical(derivative: Derivative) -> Derivative:
    """Returns the derivative with labels of sums numbered in order of appearance."""
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
    uses: Hashable = ("sum", "use")
    parts: list[Factor | OneHot] = []
    for versions in zip(*(derivative.parts for derivative in group), strict=True):
        array = jnp.stack([_array(part) for part in versions])
        part = versions[0]
        if isinstance(part, Factor):
            parts.append(part._replace(array=array, labels=(uses, *part.labels)))
        else:
            parts.append(part._replace(where=array, labels=(uses, *part.labels)))
    return first._replace(parts=tuple(parts))


def kernel_of_parameter(
    first: Sequence[Derivative], second: Sequence[Derivative] | None, axes: KernelAxes, rank: int
) -> tuple[Array | None, Chosen]:
    """Returns the part of the kernel of one parameter, and how it was computed.

    Args:
      first: derivatives of the first output.
      second: derivatives of the second output; None if it is the first.
      axes: trace and diagonal axes.
      rank: rank of the outputs.
    """
    out = kept_labels(axes, rank)
    one = [_side(derivative, 1, axes) for derivative in first]
    two = [_side(derivative, 2, axes) for derivative in second or first]
    couples = [
        _Couple(a, b, out, None if second is not None else i == j)
        for (i, a), (j, b) in itertools.product(enumerate(one), enumerate(two))
        if a.frame == b.frame and (second is not None or i <= j)
    ]
    if not couples:
        return None, Chosen(False, 0.0)
    apart = sum(couple.cost for couple in couples)
    wholes = [_Whole.of(side) for side in (one, two)]
    if len({d.frame for d in (*one, *two)}) == 1:
        formed = wholes[: 1 if second is None else 2]
        together = sum(whole.cost for whole in formed) + _product_cost(wholes, out)
        if together < apart:
            factors = [whole.factor() for whole in formed]
            if second is None:
                names = dict(zip(wholes[0].labels, wholes[1].labels, strict=True))
                labels = tuple(names[x] for x in factors[0].labels)
                factors.append(Factor(factors[0].array, labels))
            return product(factors, out), Chosen(True, together)
    total = sum((couple.product() for couple in couples[1:]), couples[0].product())
    return total, Chosen(False, apart)


def kept_labels(axes: KernelAxes, rank: int) -> Labels:
    """Returns the labels of the kernel: both copies of an axis side by side."""
    out: list[Hashable] = []
    for axis in range(rank):
        if axis in axes.diagonal:
            out.append(("out", axis))
        elif axis not in axes.trace:
            out += [("out", axis, 1), ("out", axis, 2)]
    return tuple(out)


def _side(derivative: Derivative, side: int, axes: KernelAxes) -> Derivative:
    """Returns a derivative with the labels of its side; those of shared axes do not change."""
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
      cost: the cost in multiply-adds.
    """

    def __init__(self, one: Derivative, two: Derivative, out: Labels, same: bool | None) -> None:
        """Plans the product.

        Args:
          one: derivative of the first output.
          two: derivative of the second output.
          out: labels of the kernel.
          same: if both outputs are the same, whether both derivatives are; else None. The
            product of two different derivatives then includes its mirror image.
        """
        parts = [*one.parts, *two.parts]
        shape = one.shape
        present = {label for part in parts for label in _labels(part)}
        # A label of the parameter in no factor: all its entries have the same derivative.
        lost = math.prod(n for label, n in enumerate(shape) if label not in present)
        if lost != 1:
            parts.append(Factor(jnp.full((), lost, jnp.float32), ()))
        self._factors = without_one_hots(parts)
        self._kept = out
        self._both_ways = same is False
        self._order = factor_order(self._factors, out)
        self._upper = upper_half(self._factors, out, self._order.cost) if same else None
        self.cost = self._order.cost if self._upper is None else self._upper.cost

    def product(self) -> Array:
        """Returns the part of the kernel."""
        if self._upper is not None:
            return self._upper.product(self._kept)
        part = product(self._factors, self._kept, self._order)
        return part + mirrored(part, self._kept) if self._both_ways else part


class _Whole(NamedTuple):
    """The derivatives of one side, to be formed and summed."""

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
        """Returns the sum of the derivatives, with axes in any order."""
        total: Factor | None = None
        for derivative in self.derivatives:
            factors = without_one_hots(derivative.parts, self.labels)
            held = {x for factor in factors for x in factor.labels}
            part = unordered_product(factors, tuple(x for x in self.labels if x in held))
            order = (*part.labels, *(x for x in self.labels if x not in held))
            order = order if total is None else total.labels
            array = part.array.transpose([part.labels.index(x) for x in order if x in held])
            array = jnp.expand_dims(array, [a for a, x in enumerate(order) if x not in held])
            sizes = dict(zip(self.labels, self.sizes, strict=True))
            array = jnp.broadcast_to(array, [sizes[x] for x in order])
            total = Factor(array if total is None else total.array + array, order)
        assert total is not None
        return total


def _product_cost(wholes: Sequence[_Whole], out: Labels) -> float:
    """Returns the cost of the product of two whole derivatives."""
    empty = np.zeros((), np.float32)
    factors = [
        Factor(np.broadcast_to(empty, whole.sizes), whole.labels)  # type: ignore[arg-type]
        for whole in wholes
    ]
    return factor_order(factors, out).cost


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
