"""The largest stable learning rate of gradient descent on a mean squared error."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import ArrayLike

from widelimit.predict.checks import (
    as_float64,
    check_finite,
    check_not_negative,
    is_concrete,
    result_dtype,
)
from widelimit.predict.matrices import column_shape, row_shape, to_matrix

# Below this size all eigenvalues together cost less than Lanczos iterations for one.
_DENSE_UP_TO = 64


def max_learning_rate(
    ntk_train_train: ArrayLike,
    y_train_size: int | None = None,
    momentum: ArrayLike = 0.0,
    eps: ArrayLike = 1e-12,
) -> jax.Array:
    """The learning rate below which gradient descent converges, a scalar in the kernel's dtype.

    It is 2 (1 + momentum) N / (largest eigenvalue + eps) for the loss 0.5 mean((f - y)^2) over N
    entries, and for a linear or infinitely wide network. See arXiv:1902.06720.

    Args:
      ntk_train_train: NTK of the training set with itself (n, n, h, h, ...). Concrete, its largest
        eigenvalue is found by Lanczos iterations; traced by JAX, by a dense eigendecomposition.
      y_train_size: N, the number of entries of the targets; None takes the size of the matrix,
        which is right for one output.
      momentum: momentum of the optimiser.
      eps: added to the eigenvalue.

    Raises:
      ValueError: if the kernel is not square, or concrete and not finite, or a concrete number is
        negative.

    Example:
      >>> import jax.numpy as jnp
      >>> max_learning_rate(jnp.diag(jnp.array([1.0, 4.0])))
      Array(1., dtype=float32)
    """
    if jnp.ndim(ntk_train_train) % 2 or row_shape(ntk_train_train) != column_shape(ntk_train_train):
        raise ValueError(
            "expected ntk_train_train to have pairs of equal axes (n, n, h, h, ...), got shape "
            f"{jnp.shape(ntk_train_train)}"
        )
    check_finite("ntk_train_train", ntk_train_train)
    check_not_negative("momentum", momentum)
    check_not_negative("eps", eps)
    with jax.enable_x64(True):
        matrix = to_matrix("ntk_train_train", as_float64(ntk_train_train))
        size = matrix.shape[0] if y_train_size is None else y_train_size
        largest = _largest_eigenvalue(matrix)
        rate = 2 * (1 + as_float64(momentum)) * size / (largest + as_float64(eps))
        return rate.astype(result_dtype(ntk_train_train))


def _largest_eigenvalue(matrix: jax.Array) -> jax.Array:
    if not is_concrete(matrix):
        return jnp.linalg.eigvalsh(matrix)[-1]
    values, n = np.asarray(matrix), matrix.shape[0]
    if n <= _DENSE_UP_TO:
        top = scipy.linalg.eigvalsh(values, subset_by_index=[n - 1, n - 1])
    else:
        # A fixed start makes results repeatable; drawn, it is not orthogonal to the answer.
        start = np.random.default_rng(0).normal(size=n)
        top = scipy.sparse.linalg.eigsh(
            values, k=1, which="LA", v0=start, return_eigenvectors=False
        )
    return jnp.asarray(top[0])
