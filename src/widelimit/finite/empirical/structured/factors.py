"""Sums of products of arrays with labelled axes, in the order with the fewest operations."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from widelimit.finite.empirical.kernel_axes import kernel_dtype
from widelimit.finite.empirical.long_rows import rows_product

Labels = tuple[Hashable, ...]

# Cost of reading or writing a number in multiply-adds, measured on one machine.
TRAFFIC = 8.0


class Factor(NamedTuple):
    """An array whose axes have distinct labels."""

    array: Array
    labels: Labels

    def sizes(self) -> dict[Hashable, int]:
        """Returns the size of each label."""
        return dict(zip(self.labels, self.array.shape, strict=True))


class OneHot(NamedTuple):
    """An array [*labels, picked] of zeros and ones, stored as the places of the ones."""

    where: Array
    labels: Labels
    picked: Hashable
    size: int

    def dense(self, dtype: DTypeLike) -> Factor:
        """Returns the dense array; an index out of range picks nothing."""
        hot = self.where[..., None] == jnp.arange(self.size).reshape((1,) * self.where.ndim + (-1,))
        return Factor(hot.astype(dtype), (*self.labels, self.picked))


class ProductOrder(NamedTuple):
    """An order of products: pairs of positions (the product goes last), and the cost."""

    pairs: tuple[tuple[int, int], ...]
    cost: float


def sizes_of(factors: Sequence[Factor]) -> dict[Hashable, int]:
    """Returns the size of every label."""
    sizes: dict[Hashable, int] = {}
    for factor in factors:
        sizes.update(factor.sizes())
    return sizes


@functools.lru_cache(maxsize=4096)
def cheapest_order(
    operands: tuple[frozenset[Hashable], ...],
    out: frozenset[Hashable],
    sizes: frozenset[tuple[Hashable, int]],
) -> ProductOrder:
    """Returns the cheapest order of pairwise products.

    Args:
      operands: labels of each factor.
      out: labels of the result.
      sizes: sizes of all labels.
    """
    size = dict(sizes)

    def volume(labels: frozenset[Hashable]) -> float:
        return float(math.prod(size[x] for x in labels))

    @functools.cache
    def best(rest: tuple[frozenset[Hashable], ...]) -> ProductOrder:
        if len(rest) == 1:
            return ProductOrder((), 0.0)
        orders = []
        for i, j in itertools.combinations(range(len(rest)), 2):
            others = tuple(x for k, x in enumerate(rest) if k not in (i, j))
            both = rest[i] | rest[j]
            product = both & out.union(*others)
            moved = volume(rest[i]) + volume(rest[j]) + volume(product)
            cost = volume(both) + TRAFFIC * moved
            after = best((*others, product)) if len(rest) <= 5 else ProductOrder((), 0.0)
            orders.append(ProductOrder(((i, j), *after.pairs), cost + after.cost))
        best_order = min(orders, key=lambda order: order.cost)
        if len(rest) > 5:  # the cheapest pair first: trying all orders would take too long
            i, j = best_order.pairs[0]
            others = tuple(x for k, x in enumerate(rest) if k not in (i, j))
            after = best((*others, (rest[i] | rest[j]) & out.union(*others)))
            best_order = ProductOrder(
                (*best_order.pairs, *after.pairs), best_order.cost + after.cost
            )
        return best_order

    return best(operands)


def factor_order(factors: Sequence[Factor], out: Labels) -> ProductOrder:
    """Returns the cheapest order of multiplying factors for a result with labels `out`."""
    labels = tuple(frozenset(factor.labels) for factor in factors)
    return cheapest_order(labels, frozenset(out), frozenset(sizes_of(factors).items()))


def product(factors: Sequence[Factor], out: Labels, order: ProductOrder | None = None) -> Array:
    """Returns the sum of products over all labels but `out`, with axes in that order.

    Every label in `out` must be one of a factor.
    """
    last = unordered_product(factors, out, order)
    return last.array.transpose([last.labels.index(x) for x in out])


def unordered_product(
    factors: Sequence[Factor], out: Labels, order: ProductOrder | None = None
) -> Factor:
    """Returns the same as `product`, with axes in the cheapest order."""
    left = list(factors)
    for i, j in (order or factor_order(factors, out)).pairs:
        others = [factor for k, factor in enumerate(left) if k not in (i, j)]
        needed = set(out).union(*(factor.labels for factor in others))
        left = [*others, _multiply(left[i], left[j], needed)]
    (last,) = left
    return _summed(last, set(out))


def _multiply(one: Factor, two: Factor, needed: set[Hashable]) -> Factor:
    """Returns the product of two factors, summed over labels that are not needed."""
    two = _without_units(two, one.labels)
    one, two = _summed(one, needed | set(two.labels)), _summed(two, needed | set(one.labels))
    large, small = (one, two) if one.array.size >= two.array.size else (two, one)
    common = [x for x in large.labels if x in small.labels]
    shared = [x for x in common if x in needed]
    summed = [x for x in common if x not in needed]
    if not summed and (len(shared) in (len(one.labels), len(two.labels))):
        return _entrywise(one, two)
    dtype = kernel_dtype(one.array.dtype, two.array.dtype)
    a, axis_a = _as_matrices(large, shared, summed)
    b, axis_b = _as_matrices(small, shared, summed)
    if a.dtype != b.dtype:
        a, b = a.astype(dtype), b.astype(dtype)
    if not shared and axis_a == axis_b == 1:
        array = rows_product(a, b, dtype)
    else:
        array = lax.dot_general(
            a,
            b,
            (((axis_a,), (axis_b,)), ((0,), (0,)) if shared else ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=dtype,
        )
    sizes = sizes_of([one, two])
    labels = (*shared, *(x for f in (large, small) for x in f.labels if x not in common))
    return Factor(array.reshape([sizes[x] for x in labels]), labels)


def _without_units(factor: Factor, others: Labels) -> Factor:
    """Returns a factor without axes of size 1 whose labels are in `others`."""
    sizes = factor.sizes()
    rest = tuple(x for x in factor.labels if sizes[x] != 1 or x not in others)
    return Factor(factor.array.reshape([sizes[x] for x in rest]), rest)


def _as_matrices(
    factor: Factor, shared: Sequence[Hashable], summed: Sequence[Hashable]
) -> tuple[Array, int]:
    """Returns a factor as matrices, one per entry of shared labels, and the summed axis.

    Several labels become one axis here: XLA would transpose more than necessary.
    """
    free = [x for x in factor.labels if x not in shared and x not in summed]
    sizes = factor.sizes()
    last = next((x for x in reversed(factor.labels) if sizes[x] > 1), None)
    # Contiguous axes remain contiguous.
    groups = (
        [list(shared), free, list(summed)] if last in summed else [list(shared), list(summed), free]
    )
    order = [factor.labels.index(x) for group in groups for x in group]
    shape = [math.prod(sizes[x] for x in group) for group in groups]
    shape = shape if shared else shape[1:]
    axis = len(shape) - (1 if last in summed else 2)
    return factor.array.transpose(order).reshape(shape), axis


def _entrywise(one: Factor, two: Factor) -> Factor:
    """Returns the product of two factors, one of which has all labels of the other."""
    large, small = (one, two) if len(one.labels) >= len(two.labels) else (two, one)
    order = sorted(range(len(small.labels)), key=lambda a: large.labels.index(small.labels[a]))
    missing = [a for a, x in enumerate(large.labels) if x not in small.labels]
    spread = jnp.expand_dims(small.array.transpose(order), missing)
    dtype = kernel_dtype(large.array.dtype, small.array.dtype)
    return Factor(large.array.astype(dtype) * spread.astype(dtype), large.labels)


def _summed(factor: Factor, needed: set[Hashable]) -> Factor:
    """Returns a factor summed over labels that are not needed."""
    gone = tuple(a for a, x in enumerate(factor.labels) if x not in needed)
    if not gone:
        return factor
    dtype = kernel_dtype(factor.array.dtype)
    labels = tuple(x for x in factor.labels if x in needed)
    gone = tuple(a for a in gone if factor.array.shape[a] != 1)  # a reshape costs nothing
    array = factor.array.sum(gone, dtype=dtype) if gone else factor.array
    return Factor(array.astype(dtype).reshape([factor.sizes()[x] for x in labels]), labels)


def without_one_hots(parts: Sequence[Factor | OneHot], out: Labels = ()) -> list[Factor]:
    """Returns factors without one-hots, with the same sum of products over all labels but `out`.

    Factors with fewer digits than the sum are converted: their products would be rounded.
    """
    left = list(parts)
    dtype = kernel_dtype(*(part.array.dtype for part in parts if isinstance(part, Factor)))
    while True:
        hot = next((part for part in left if isinstance(part, OneHot)), None)
        if hot is None:
            return [_widened(part, dtype) for part in left if isinstance(part, Factor)]
        left = [part for part in left if part is not hot]
        touched = [i for i, part in enumerate(left) if _has(part, hot.picked)]
        if (
            hot.picked in out
            or len(touched) != 1
            or set(_labels(left[touched[0]])) & set(hot.labels)
        ):
            left.append(hot.dense(dtype))
            continue
        left[touched[0]] = _picked(left[touched[0]], hot, dtype)


def _widened(factor: Factor, dtype: DTypeLike) -> Factor:
    """Returns a factor whose products are summed in at least this dtype."""
    if kernel_dtype(factor.array.dtype) == dtype:
        return factor
    return factor._replace(array=factor.array.astype(dtype))


def _labels(part: Factor | OneHot) -> Labels:
    return part.labels if isinstance(part, Factor) else (*part.labels, part.picked)


def _has(part: Factor | OneHot, label: Hashable) -> bool:
    return label in _labels(part)


def _picked(part: Factor | OneHot, hot: OneHot, dtype: DTypeLike) -> Factor:
    """Returns the entries of a factor that a one-hot picks, along the axes of the one-hot."""
    if isinstance(part, OneHot):
        a = part.where.reshape(part.where.shape + (1,) * hot.where.ndim)
        b = hot.where.reshape((1,) * part.where.ndim + hot.where.shape)
        ok = (a == b) & (a >= 0) & (a < part.size)
        return Factor(ok.astype(dtype), (*part.labels, *hot.labels))
    axis = part.labels.index(hot.picked)
    index = jnp.where(hot.where < 0, hot.size, hot.where)
    array = jnp.take(part.array, index, axis=axis, mode="fill", fill_value=0)
    labels = (*part.labels[:axis], *hot.labels, *part.labels[axis + 1 :])
    return Factor(array, labels)
