"""Products of derivatives with themselves: entries below the diagonal mirror those above.

A kernel has two copies of every axis of the output except trace and diagonal axes: ("out", axis, 1)
for the first function and ("out", axis, 2) for the second. If both are the same function, swapping
all first copies with all second ones changes nothing.
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

# Fewest multiply-adds that two products must save in place of one.
_LEAST_GAIN = 1e7


class Upper(NamedTuple):
    """A symmetric product: rows below `cut` with all columns, others with columns from `cut` on.

    Attributes:
      axis: axis of the result with the rows that are cut; the next axis has the columns.
      cut: number of rows above.
      above: factors of the rows above.
      below: factors of the other rows.
      orders: orders of both products.
    """

    axis: int
    cut: int
    above: Sequence[Factor]
    below: Sequence[Factor]
    orders: tuple[ProductOrder, ProductOrder]

    @property
    def cost(self) -> float:
        """The cost in multiply-adds."""
        return sum(order.cost for order in self.orders)

    def product(self, out: Labels) -> Array:
        """Returns the whole product, with axes in the order of `out`."""
        axis, cut = self.axis, self.cut
        above = product(self.above, out, self.orders[0])
        right = product(self.below, out, self.orders[1])
        n = above.shape[axis + 1]
        left = mirrored(lax.slice_in_dim(above, cut, n, axis=axis + 1), out)
        return jnp.concatenate([above, jnp.concatenate([left, right], axis + 1)], axis)


def upper_half(factors: Sequence[Factor], out: Labels, cost: float) -> Upper | None:
    """Returns the plan of a symmetric product by its upper half; None if that gains little.

    Args:
      factors: factors of both sides.
      out: labels of the result.
      cost: cost of the whole product.
    """
    sizes = sizes_of(factors)
    rows = [a for a, x in enumerate(out) if _is_copy(x, 1) and sizes[x] > 1]
    if not rows:
        return None
    axis = max(rows, key=lambda a: sizes[out[a]])
    row, column = out[axis], out[axis + 1]
    n = sizes[row]
    cut = (n + 1) // 2
    above = [_sliced(factor, {row: (0, cut)}) for factor in factors]
    below = [_sliced(factor, {row: (cut, n), column: (cut, n)}) for factor in factors]
    plan = Upper(axis, cut, above, below, (factor_order(above, out), factor_order(below, out)))
    return plan if cost - plan.cost > _LEAST_GAIN else None


def mirrored(values: Array, out: Labels) -> Array:
    """Returns values with both copies of every axis swapped."""
    order = list(range(len(out)))
    for axis, label in enumerate(out):
        if _is_copy(label, 1):
            order[axis : axis + 2] = [axis + 1, axis]
    return values.transpose(order)


def _is_copy(label: Hashable, side: int) -> bool:
    return isinstance(label, tuple) and len(label) == 3 and label[2] == side


def _sliced(factor: Factor, spans: dict[Hashable, tuple[int, int]]) -> Factor:
    """Returns a factor restricted to spans of its labels."""
    array = factor.array
    for axis, label in enumerate(factor.labels):
        if label in spans:
            array = lax.slice_in_dim(array, *spans[label], axis=axis)
    return factor._replace(array=array)
