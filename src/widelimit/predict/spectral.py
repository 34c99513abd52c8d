"""Functions of a symmetric matrix through its eigenbasis, with derivatives that are always finite.

f(K) B = U f(l) U^T B with K = U diag(l) U^T. Differentiating the eigenvectors themselves divides by
differences of eigenvalues. The derivative of f(K) does not: by Daleckii and Krein it is
U (F * (U^T dK U)) U^T, where F[i, j] is the divided difference of f, which tends to f'(l) as
eigenvalues meet. Everything here is float64.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree


class SpectralFunction(NamedTuple):
    """A scalar function f(l, tau) of an eigenvalue and a time, for arrays of both.

    In place of times tau [m] there may be a tree of arrays that describes m times.

    Attributes:
      value: (l [r], tau [m]) -> f [m, r].
      divided: (l [r], tau [m]) -> (f(l_i) - f(l_j)) / (l_i - l_j) [m, r, r].
      slope: (l [r], tau [m], change of tau [m]) -> the change of f [m, r] to first order.
    """

    value: Callable[[jax.Array, PyTree], jax.Array]
    divided: Callable[[jax.Array, PyTree], jax.Array]
    slope: Callable[[jax.Array, PyTree, PyTree], jax.Array]


class AtTimes(NamedTuple):
    """A function of eigenvalues at m times: called with l [r], it returns its values [m, r].

    Attributes:
      function: the function of eigenvalues and times.
      tau: times [m], or a tree of arrays that describes m times.
    """

    function: SpectralFunction
    tau: PyTree

    def __call__(self, l: ArrayLike) -> jax.Array:
        """Returns the values [m, r] at eigenvalues l [r]."""
        return self.function.value(jnp.asarray(l), self.tau)


def _exponent(l: jax.Array, tau: jax.Array) -> jax.Array:
    """Returns l tau, which is 0 for l = 0 also at infinite tau."""
    return jnp.where(l == 0, 0.0, l * jnp.where(l == 0, 1.0, tau))


def _integral(l: jax.Array, tau: jax.Array) -> jax.Array:
    """Returns (1 - exp(-l tau)) / l, the integral of exp(-l s) over 0 < s < tau, also at l = 0."""
    return jnp.where(l == 0, tau, -jnp.expm1(-_exponent(l, tau)) / jnp.where(l == 0, 1.0, l))


def _pairs(l: jax.Array, tau: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the lower and higher of two eigenvalues [1, r, r], their gap, and tau [m, 1, 1]."""
    low = jnp.minimum(l[:, None], l[None, :])[None]
    high = jnp.maximum(l[:, None], l[None, :])[None]
    return low, high, high - low, tau[:, None, None]


def _decay_value(l: jax.Array, tau: jax.Array) -> jax.Array:
    return jnp.exp(-_exponent(l[None, :], tau[:, None]))


def _decay_divided(l: jax.Array, tau: jax.Array) -> jax.Array:
    low, _, gap, tau = _pairs(l, tau)
    decay = jnp.exp(-_exponent(low, tau))
    integral = _integral(gap, tau)
    # At infinite time decay is 0 for nonzero eigenvalues, and a pair of zeros does not decay.
    finite = (decay > 0) & (integral < jnp.inf)
    return jnp.where(finite, -decay * jnp.where(finite, integral, 0.0), 0.0)


def _decay_slope(l: jax.Array, tau: jax.Array, d_tau: jax.Array) -> jax.Array:
    return -l[None, :] * _decay_value(l, tau) * d_tau[:, None]


def _response_value(l: jax.Array, tau: jax.Array) -> jax.Array:
    l, tau = l[None, :], tau[:, None]
    return jnp.where(l == 0, 0.0, -jnp.expm1(-_exponent(l, tau)) / jnp.where(l == 0, 1.0, l))


def _response_divided(l: jax.Array, tau: jax.Array) -> jax.Array:
    value = _response_value(l, tau)
    decay_divided = _decay_divided(l, tau)
    low, high, _, tau = _pairs(l, tau)
    # The response falls with l, so the greater value belongs to the lower eigenvalue; a frozen
    # one (l = 0) has response 0, which makes the quotient that of a matrix of constant rank.
    greater = jnp.maximum(value[:, :, None], value[:, None, :])
    safe_high = jnp.where(high == 0, 1.0, high)
    live = -(greater + decay_divided) / safe_high
    frozen = jnp.where(high == 0, 0.0, greater / safe_high)
    return jnp.where(low == 0, frozen, jnp.where(high * tau < 0.03, _early(low, high, tau), live))


def _early(low: jax.Array, high: jax.Array, tau: jax.Array) -> jax.Array:
    """Returns the divided difference of the response by its series in tau, for small high tau."""
    tau = jnp.where(jnp.isinf(tau), 0.0, tau)
    x, y = low * tau, high * tau
    total, homogeneous, power, factorial = jnp.zeros_like(y), jnp.ones_like(y), x, 1.0
    for k in range(1, 8):
        factorial *= -(k + 1)
        total = total + homogeneous / factorial
        homogeneous = y * homogeneous + power
        power = power * x
    return total * tau * tau


def _response_slope(l: jax.Array, tau: jax.Array, d_tau: jax.Array) -> jax.Array:
    return jnp.where(l[None, :] == 0, 0.0, _decay_value(l, tau)) * d_tau[:, None]


def _root_value(l: jax.Array, tau: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(l, 0.0))[None, :] + 0.0 * tau[:, None]


def _root_divided(l: jax.Array, tau: jax.Array) -> jax.Array:
    root = _root_value(l, tau)
    total = root[:, :, None] + root[:, None, :]
    return jnp.where(total == 0, 0.0, 1.0 / jnp.where(total == 0, 1.0, total))


def _root_slope(l: jax.Array, tau: jax.Array, d_tau: jax.Array) -> jax.Array:
    return jnp.zeros((tau.shape[0], l.shape[0]), d_tau.dtype)


DECAY = SpectralFunction(_decay_value, _decay_divided, _decay_slope)
RESPONSE = SpectralFunction(_response_value, _response_divided, _response_slope)
ROOT = SpectralFunction(_root_value, _root_divided, _root_slope)


class Eigenbasis(NamedTuple):
    """The eigenvalues and eigenvectors of a symmetric float64 matrix [r, r].

    Attributes:
      matrix: the matrix, which derivatives refer to; None if it is a constant.
      evals: eigenvalues [r], ascending; those lost in rounding are exactly zero.
      evecs: eigenvectors [r, r], as columns.
    """

    matrix: jax.Array | None
    evals: jax.Array
    evecs: jax.Array

    def apply(self, function: SpectralFunction, tau: PyTree, b: jax.Array) -> jax.Array:
        """Returns f(K, tau) b [m, r, c] at times tau [m], for b of shape [1 or m, r, c]."""
        return _apply(function, *self, tau, b)

    def decay(self, tau: jax.Array, b: jax.Array) -> jax.Array:
        """Returns exp(-K tau) b [m, r, c] at times tau [m], for b of shape [1 or m, r, c]."""
        return self.apply(DECAY, tau, b)

    def response(self, tau: jax.Array, b: jax.Array) -> jax.Array:
        """Returns K^-1 (1 - exp(-K tau)) b [m, r, c] at times tau [m], for b [1 or m, r, c].

        Eigenvalues of zero contribute nothing: at infinite time this is the pseudo-inverse.
        """
        return self.apply(RESPONSE, tau, b)

    def decayed(self, tau: jax.Array) -> jax.Array:
        """Returns K exp(-K tau) [m, r, r] at times tau [m]."""
        if self.matrix is not None:
            return self.decay(tau, self.matrix[None])
        weights = self.evals[None, :] * DECAY.value(self.evals, tau)
        return jnp.einsum("sr,mr,tr->mst", self.evecs, weights, self.evecs)

    def root(self, b: jax.Array) -> jax.Array:
        """Returns K^(1/2) b [m, r, c] for b [m, r, c]; negative eigenvalues count as zero."""
        return self.apply(ROOT, jnp.zeros((1,), b.dtype), b)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(
    function: SpectralFunction,
    matrix: jax.Array | None,
    evals: jax.Array,
    evecs: jax.Array,
    tau: PyTree,
    b: jax.Array,
) -> jax.Array:
    del matrix
    rotated = jnp.einsum("sr,msc->mrc", evecs, b)
    weighted = function.value(evals, tau)[:, :, None] * rotated
    return jnp.einsum("sr,mrc->msc", evecs, weighted)


@_apply.defjvp
def _apply_jvp(
    function: SpectralFunction, primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]
) -> tuple[jax.Array, jax.Array]:
    matrix, evals, evecs, tau, b = primals
    d_matrix, _, _, d_tau, d_b = tangents
    l, u = _once_differentiable(matrix, evals, evecs)
    rotated = jnp.einsum("sr,msc->mrc", u, b)
    change = function.slope(l, tau, d_tau)[:, :, None] * rotated
    if matrix is not None:
        d_rotated = jnp.einsum("si,st,tj->ij", u, d_matrix, u)
        divided = function.divided(l, tau) * d_rotated[None]
        change = change + jnp.einsum("mij,mjc->mic", divided, rotated)
    tangent = jnp.einsum("sr,mrc->msc", u, change)
    tangent = tangent + _apply(function, matrix, evals, evecs, tau, d_b)
    return _apply(function, *primals), tangent


@jax.custom_jvp
def _once_differentiable(
    matrix: jax.Array | None, evals: jax.Array, evecs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del matrix
    return evals, evecs


@_once_differentiable.defjvp
def _refuse(*_: object) -> NoReturn:
    raise NotImplementedError(
        "second derivatives with respect to a kernel at finite or infinite t are not available; "
        "t=None solves by Cholesky and has derivatives of every order"
    )
