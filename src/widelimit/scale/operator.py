"""Symmetric matrices known by their products: the protocol, and matrices in memory or on devices.

Solvers of this room read a kernel only through an `Operator`. Products are float64 whatever the
dtype of the entries, so that a float32 kernel is one fixed matrix to them.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float64, Shaped

from widelimit._text import shown

# Rows that are turned to float64 at a time take so many bytes: they stay in the cache.
_BLOCK_BYTES = 2**22

Indices: TypeAlias = Shaped[np.ndarray, " m"]
"""Integers."""

Rows: TypeAlias = Callable[[int, int], np.ndarray]
"""(start, stop) -> these rows of a matrix."""


@runtime_checkable
class Operator(Protocol):
    """A symmetric matrix [n, n] by its products."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""

    def matmat(self, v: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """Returns the product with the columns of v, in one pass over the entries."""

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """Returns the diagonal."""

    def columns(self, indices: Indices) -> Float[np.ndarray, "n m"]:
        """Returns these columns, in the dtype in which entries are kept."""


def rows_at_a_time(n: int) -> int:
    """Returns how many rows of n entries are turned to float64 at once."""
    return max(1, _BLOCK_BYTES // (8 * max(n, 1)))


def as_vectors(v: object, n: int) -> Float64[np.ndarray, "n c"]:
    """Returns float64 columns.

    Raises:
      ValueError: if they are not finite, or not of shape [n, c].
    """
    vectors = np.asarray(v, np.float64)
    if vectors.ndim != 2 or len(vectors) != n:
        raise ValueError(f"expected columns of shape ({n}, c), got {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"expected finite columns, got NaN or infinity in {shown(vectors)}")
    return vectors


def check_product(product: np.ndarray) -> np.ndarray:
    """Returns a product with a kernel.

    Raises:
      ValueError: if it is not finite: the kernel has entries that are not.
    """
    wrong = np.flatnonzero(~np.isfinite(product).all(axis=1))
    if wrong.size:
        raise ValueError(
            f"expected finite products with the kernel, got NaN or infinity in {wrong.size} of "
            f"{len(product)} rows, the first of which is {wrong[0]}: entries of the kernel are not "
            "finite (`Store.verify` looks for damaged ones)"
        )
    return product


class DenseOperator:
    """A symmetric matrix in memory, float32 or float64.

    Float32 entries are turned to float64 some rows at a time, and never all at once.

    Args:
      matrix: the matrix; it is not copied.

    Raises:
      ValueError: if it is not square, or not float32 or float64.

    Example:
      >>> import numpy as np
      >>> DenseOperator(np.eye(2, dtype=np.float32)).matmat(np.ones((2, 1)))
      array([[1.], [1.]])
    """

    def __init__(self, matrix: Float[np.ndarray, "n n"]) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"expected a square matrix, got shape {matrix.shape}")
        if matrix.dtype not in (np.float32, np.float64):
            raise ValueError(f"expected a matrix of float32 or float64, got {matrix.dtype}")
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self._matrix.shape[0], self._matrix.shape[1]

    def matmat(self, v: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """Returns the product with the columns of v."""
        matrix, n = self._matrix, self.shape[0]
        if matrix.dtype == np.float64:
            return matrix @ v
        result, step = np.empty_like(v), rows_at_a_time(n)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            result[rows] = matrix[rows].astype(np.float64) @ v
        return result

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """Returns the diagonal."""
        return self._matrix.diagonal().astype(np.float64)

    def columns(self, indices: Indices) -> Float[np.ndarray, "n m"]:
        """Returns these columns."""
        return self._matrix[:, indices]


class ShardedOperator:
    """A symmetric matrix over several devices of JAX, each of which holds some of the rows.

    The columns of a product are copied to every device; each computes its rows in float64, and
    turns few of them at a time, so that a device holds n^2 / devices entries and little beside.

    Args:
      rows: (start, stop) -> these rows [stop - start, n] of the matrix, float32 or float64. It is
        asked once for the rows of each device.
      n: number of rows.
      devices: devices of JAX; None takes all of the default backend.

    Raises:
      ValueError: if rows come with another shape.

    Example:
      >>> import numpy as np
      >>> operator = ShardedOperator(lambda start, stop: np.eye(3)[start:stop], 3)
      >>> operator.matmat(np.ones((3, 1)))[:, 0]
      array([1., 1., 1.])
    """

    def __init__(self, rows: Rows, n: int, devices: list[jax.Device] | None = None) -> None:
        devices = jax.devices() if devices is None else devices
        self._n, self._mesh = n, Mesh(np.array(devices), ("rows",))
        self._block = min(rows_at_a_time(n), -(-n // len(devices)))
        unit = self._block * len(devices)
        padded = -(-n // unit) * unit

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(padded)
            return _padded_rows(rows, n, start, stop)

        with jax.enable_x64(True):
            self._matrix = jax.make_array_from_callback((padded, n), self._over("rows"), part)
            self._product = jax.jit(
                jax.shard_map(
                    self._local_product,
                    mesh=self._mesh,
                    in_specs=(PartitionSpec("rows"), PartitionSpec()),
                    out_specs=PartitionSpec("rows"),
                )
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self._n, self._n

    def matmat(self, v: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """Returns the product with the columns of v."""
        with jax.enable_x64(True):
            result = self._product(self._matrix, jax.device_put(v, self._over()))
            return np.array(result)[: self._n]

    def diagonal(self) -> Float64[np.ndarray, " n"]:
        """Returns the diagonal."""
        places = np.arange(self._n)
        with jax.enable_x64(True):
            return np.array(self._matrix[places, places], np.float64)

    def columns(self, indices: Indices) -> Float[np.ndarray, "n m"]:
        """Returns these columns."""
        with jax.enable_x64(True):
            return np.array(self._matrix[:, np.asarray(indices)])[: self._n]

    def _over(self, *axes: str) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def _local_product(self, matrix: jax.Array, v: jax.Array) -> jax.Array:
        """The rows of one device, a block at a time."""
        blocks = matrix.reshape(-1, self._block, self._n)

        def product(block: jax.Array) -> jax.Array:
            return jnp.matmul(block.astype(jnp.float64), v, precision=jax.lax.Precision.HIGHEST)

        return jax.lax.map(product, blocks).reshape(-1, v.shape[1])


def _padded_rows(rows: Rows, n: int, start: int, stop: int) -> np.ndarray:
    """Rows of the matrix, with zeros below the last one."""
    first, last = min(start, n), min(stop, n)
    part = rows(first, last) if last > first else rows(0, 1)[:0]
    if part.shape != (last - first, n):
        raise ValueError(
            f"expected rows {first} to {last} of shape {(last - first, n)}, got {part.shape}"
        )
    return np.pad(part, ((0, stop - start - len(part)), (0, 0)))


def as_scipy(operator: Operator) -> Any:
    """Returns the operator as a `scipy.sparse.linalg.LinearOperator`, for the solvers of SciPy.

    Example:
      >>> import numpy as np, scipy.sparse.linalg
      >>> linear = as_scipy(DenseOperator(np.diag([1.0, 2.0, 4.0])))
      >>> float(scipy.sparse.linalg.eigsh(linear, k=1, return_eigenvectors=False)[0])
      4.0
    """
    import scipy.sparse.linalg  # here, for a light import

    def product(v: np.ndarray) -> np.ndarray:
        columns = np.asarray(v, np.float64).reshape(operator.shape[0], -1)
        return operator.matmat(columns).reshape(v.shape)

    return scipy.sparse.linalg.LinearOperator(
        operator.shape, matvec=product, rmatvec=product, matmat=product, dtype=np.float64
    )
