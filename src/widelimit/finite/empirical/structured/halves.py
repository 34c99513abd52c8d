"""Products of derivatives with themselves: entries below the diagonal mirror those above.

A kernel has two copies of every axis of the output that is kept, ("out", axis, 1) for the first
function and ("out", axis, 2) for the second. Where both are the same function, swapping all first
copies with all second ones changes nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from widelimit.finite.empirical.structured.factors import (
    Factor,
    Labels,
    ProductOrder,
    factor_order,
    product,
    sizes_of,
)

# Multiply-adds that must be saved for two products instead of one to be worth it.
_LEAST_GAIN = 1e7


class Upper(NamedTuple):
    """A symmetric product, of which rows below `cut` meet all columns, the others those from there.

    Attributes:
      axis: of the result, of the rows that are cut; the next one is that of the columns.
      cut: how many rows are above.
      above: factors of the rows above.
      below: factors of the other ones.
      orders: in which order both are multiplied.
    """

    axis: int
    cut: int
    above: Sequence[Factor]
    below: Sequence[Factor]
    orders: tuple[ProductOrder, ProductOrder]

    @property
    def cost(self) -> float:
        """What it takes, in multiply-adds."""
        return sum(order.cost for order in self.orders)

    def product(self, kept: Labels) -> Array:
        """Returns the whole product, with axes in the order of `kept`."""
        axis, cut = self.axis, self.cut
        above = product(self.above, kept, self.orders[0])
        right = product(self.below, kept, self.orders[1])
        n = above.shape[axis + 1]
        left = mirrored(lax.slice_in_dim(above, cut, n, axis=axis + 1), kept)
        return jnp.concatenate([above, jnp.concatenate([left, right], axis + 1)], axis)


def upper_half(factors: Sequence[Factor], kept: Labels, cost: float) -> Upper | None:
    """Returns how to compute a symmetric product by its upper half; None if that gains little.

    Args:
      factors: of both sides.
      kept: labels of the result.
      cost: of the product as it is.
    """
    sizes = sizes_of(factors)
    rows = [a for a, x in enumerate(kept) if _is_copy(x, 1) and sizes[x] > 1]
    if not rows:
        return None
    axis = max(rows, key=lambda a: sizes[kept[a]])
    row, column = kept[axis], kept[axis + 1]
    n = sizes[row]
    cut = (n + 1) // 2
    above = [_sliced(factor, {row: (0, cut)}) for factor in factors]
    below = [_sliced(factor, {row: (cut, n), column: (cut, n)}) for factor in factors]
    found = Upper(axis, cut, above, below, (factor_order(above, kept), factor_order(below, kept)))
    return found if cost - found.cost > _LEAST_GAIN else None


def mirrored(values: Array, kept: Labels) -> Array:
    """Returns values with both copies of every axis swapped."""
    order = list(range(len(kept)))
    for axis, label in enumerate(kept):
        if _is_copy(label, 1):
            order[axis : axis + 2] = [axis + 1, axis]
    return values.transpose(order)


def _is_copy(label: Hashable, side: int) -> bool:
    return isinstance(label, tuple) and len(label) == 3 and label[2] == side


def _sliced(factor: Factor, spans: dict[Hashable, tuple[int, int]]) -> Factor:
    """Returns a factor for some entries of the labels it has."""
    array = factor.array
    for axis, label in enumerate(factor.labels):
        if label in spans:
            array = lax.slice_in_dim(array, *spans[label], axis=axis)
    return factor._replace(array=array)
