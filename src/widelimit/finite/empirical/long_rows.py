"""Products of few long rows, such as those of Jacobians.

On a CPU, XLA computes them several times slower than it computes their pieces one by one.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from widelimit.tracing.varying import varying_like
from widelimit.typing import Integer

# With more rows a single product is as fast.
_MOST_ROWS = 128
# Numbers of a piece of rows: it fits into the cache.
_PIECE = 2**18
_LEAST_PIECES = 8


def rows_product(a: Array, b: Array, dtype: DTypeLike) -> Array:
    """Returns a b^T, summed and returned in a dtype.

    Args:
      a: rows [n, k].
      b: rows [m, k] of the same dtype.
      dtype: dtype of the sums.
    """
    rows = max(len(a), len(b), 1)
    piece = _PIECE // rows
    pieces = a.shape[1] // piece
    if rows > _MOST_ROWS or pieces < _LEAST_PIECES or jax.default_backend() != "cpu":
        return _whole(a, b, dtype)
    return _in_pieces(a, b, dtype, piece)


def _whole(a: Array, b: Array, dtype: DTypeLike) -> Array:
    return lax.dot_general(
        a,
        b,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _in_pieces(a: Array, b: Array, dtype: DTypeLike, piece: int) -> Array:
    """Returns the product as a sum over pieces of the rows, `piece` numbers of each at a time."""
    count = a.shape[1] // piece

    def product(start: Integer, size: int) -> Array:
        one, two = (lax.dynamic_slice_in_dim(rows, start, size, 1) for rows in (a, b))
        return _whole(one, two, dtype)

    def add(i: Array, total: Array) -> Array:
        return total + product(i * piece, piece)

    done = count * piece
    rest = product(done, a.shape[1] - done)
    return lax.fori_loop(0, count, add, varying_like(rest, (a, b)))


@_in_pieces.defjvp
def _derivative(
    dtype: DTypeLike, piece: int, rows: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Returns the product, and its derivative as whole products, which can be transposed."""
    (a, b), (da, db) = rows, tangents
    return _in_pieces(a, b, dtype, piece), _whole(da, b, dtype) + _whole(a, db, dtype)
