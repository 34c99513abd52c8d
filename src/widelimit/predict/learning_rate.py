"""The largest stable learning rate of gradient descent on a mean squared error."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from widelimit._pytree import is_concrete
from widelimit._samples import check_finite
from widelimit.predict.checks import check_scalar
from widelimit.predict.matrices import column_shape, row_shape, to_matrix
from widelimit.predict.precision import in_float64, result_dtype
from widelimit.predict.selection import check_is_array
from widelimit.typing import SquareKernel

# Below this size all eigenvalues cost less than Lanczos iterations for one.
_DENSE_UP_TO = 64


def max_learning_rate(
    ntk_train_train: SquareKernel,
    y_train_size: int | None = None,
    momentum: ArrayLike = 0.0,
    eps: ArrayLike = 1e-12,
) -> jax.Array:
    """Returns the learning rate below which gradient descent converges, a scalar.

    It is 2 (1 + momentum) N / (largest eigenvalue + eps) for the loss 0.5 mean((f - y)^2) over N
    entries, and for a linear or infinitely wide network, in the dtype of the kernel. See
    arXiv:1902.06720.

    Args:
      ntk_train_train: NTK of the training set with itself (n, n, h, h, ...). Concrete, its largest
        eigenvalue is computed by Lanczos iterations; traced by JAX, by a dense eigendecomposition.
      y_train_size: N, the number of entries of the targets; None takes the size of the matrix,
        which is right for one output.
      momentum: momentum of the optimiser.
      eps: added to the eigenvalue.

    Raises:
      TypeError: if the kernel is a function instead of an array, or another argument is not a
        number.
      ValueError: if the kernel is a `Kernel`, not square, or concrete and not finite, or another
        argument is an array, or concrete and negative.

    Example:
      >>> import jax.numpy as jnp
      >>> max_learning_rate(jnp.diag(jnp.array([1.0, 4.0])))
      Array(1., dtype=float32)
    """
    check_is_array("ntk_train_train", ntk_train_train)
    if jnp.ndim(ntk_train_train) % 2 or row_shape(ntk_train_train) != column_shape(ntk_train_train):
        raise ValueError(
            "expected ntk_train_train to have pairs of equal axes (n, n, h, h, ...), got shape "
            f"{jnp.shape(ntk_train_train)}"
        )
    check_finite("ntk_train_train", ntk_train_train)
    if y_train_size is not None:
        check_scalar("y_train_size", y_train_size, "; pass y_train.size")
    check_scalar("momentum", momentum)
    check_scalar("eps", eps)
    size = math.prod(row_shape(ntk_train_train)) if y_train_size is None else y_train_size
    return _rate(
        *(_concrete_eigenvalue(ntk_train_train), ntk_train_train, momentum, eps),
        size=size,
        dtype=result_dtype(ntk_train_train),
    )


@in_float64
def _rate(
    largest: jax.Array | None,
    kernel: jax.Array,
    momentum: jax.Array,
    eps: jax.Array,
    *,
    size: int,
    dtype: jnp.dtype,
) -> jax.Array:
    if largest is None:
        largest = jnp.linalg.eigvalsh(to_matrix("ntk_train_train", kernel))[-1]
    return (2 * (1 + momentum) * size / (largest + eps)).astype(dtype)


def _concrete_eigenvalue(kernel: ArrayLike) -> float | None:
    """Returns the largest eigenvalue of a concrete kernel, None if it is traced."""
    if not is_concrete(kernel):
        return None
    import scipy.linalg  # here, for a light `import widelimit`
    import scipy.sparse.linalg

    matrix = np.asarray(to_matrix("ntk_train_train", np.asarray(kernel)), np.float64)
    n = len(matrix)
    if n <= _DENSE_UP_TO:
        return float(scipy.linalg.eigvalsh(matrix, subset_by_index=[n - 1, n - 1])[0])
    # A fixed random start: results are repeatable, and it is not orthogonal to the eigenvector.
    start = np.random.default_rng(0).normal(size=n)
    eigenvalues = scipy.sparse.linalg.eigsh(
        matrix, k=1, which="LA", v0=start, return_eigenvectors=False
    )
    return float(eigenvalues[0])
