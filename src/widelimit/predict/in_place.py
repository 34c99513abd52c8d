"""Factorisations of concrete kernels on the host, in the memory of their result.

A kernel of n outputs takes one float64 matrix [n, n] here, which becomes its Cholesky factor; its
eigenvectors take two more while they are computed.
"""

from typing import SupportsFloat

import jax
import numpy as np
from jaxtyping import ArrayLike

from widelimit.predict.matrices import to_matrix

# Alignment in bytes with which JAX uses arrays of NumPy without a copy.
_ALIGNMENT = 64
_BLOCK = 512


def regularised(kernel: ArrayLike, relative: SupportsFloat, absolute: SupportsFloat) -> np.ndarray:
    """Returns the symmetric part of a zipped kernel plus a ridge, as a new float64 matrix [r, r].

    Args:
      kernel: concrete kernel.
      relative: the ridge in units of the mean diagonal.
      absolute: the ridge in absolute units, added to the relative one.
    """
    kernel_matrix = to_matrix("kernel", np.asarray(kernel))
    rows = len(kernel_matrix)
    matrix = _aligned(rows)
    matrix[...] = kernel_matrix
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        for left in range(0, stop, _BLOCK):
            block = slice(start, stop), slice(left, min(left + _BLOCK, stop))
            mean = (matrix[block] + matrix[block[::-1]].T) / 2
            matrix[block], matrix[block[::-1]] = mean, mean.T
    ridge = float(relative) * np.diagonal(kernel_matrix).mean(dtype=np.float64) + float(absolute)
    matrix[np.diag_indices(rows)] += ridge
    return matrix


def cholesky(matrix: np.ndarray) -> np.ndarray | None:
    """Returns the lower triangular factor, written over the matrix; None if it does not exist."""
    import scipy.linalg.lapack  # here, for a light `import widelimit`

    # LAPACK reads columns: the upper factor of its matrix is the lower one of ours.
    upper, failed = scipy.linalg.lapack.dpotrf(matrix.T, lower=0, clean=1, overwrite_a=1)
    return None if failed else upper.T


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending eigenvalues, and eigenvectors as columns; overwrites the matrix."""
    import scipy.linalg

    return scipy.linalg.eigh(matrix.T, overwrite_a=True, driver="evd", check_finite=False)


def solve_lower(lower: ArrayLike, b: ArrayLike, transposed: bool) -> jax.Array:
    """Returns L^-1 b, or L^-T b, without a copy of the concrete lower L [r, r], for b [r, c]."""
    import scipy.linalg.blas

    upper = np.asarray(lower).T  # of which BLAS reads columns
    columns = np.array(b, np.float64, order="F")
    solution = scipy.linalg.blas.dtrsm(
        1.0, upper, columns, lower=0, trans_a=0 if transposed else 1, overwrite_b=1
    )
    return to_jax(np.ascontiguousarray(solution))


def to_jax(matrix: np.ndarray) -> jax.Array:
    """Returns a float64 matrix as a JAX array, on the CPU not a copy: do not change it later."""
    with jax.enable_x64(True):
        return jax.device_put(matrix)


def _aligned(rows: int) -> np.ndarray:
    """Returns a new float64 matrix [rows, rows] that JAX can use without a copy."""
    count = rows * rows
    space = np.empty(count * 8 + _ALIGNMENT, np.uint8)
    start = -space.ctypes.data % _ALIGNMENT
    return space[start : start + count * 8].view(np.float64).reshape(rows, rows)
