"""The relative scale of lazy training: the curvature of a network relative to its slope."""

from __future__ import annotations

import functools
import operator as operators
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

from widelimit.diagnostics.chunked import in_chunks
from widelimit.diagnostics.movement import norm
from widelimit.finite.empirical.network import real_output
from widelimit.finite.empirical.operator import NTKOperator
from widelimit.finite.empirical.outputs import Call
from widelimit.finite.empirical.vector_products import ntk_vector_product
from widelimit.tracing.varying import varying_like
from widelimit.typing import ApplyFunction, Inputs, Outputs, Params, Size, Subset

# Matrices up to this size are computed in full: that takes fewer products than an iteration.
_SMALL = 32


class RelativeScale(NamedTuple):
    """The relative scale of a model (Chizat, Oyallon and Bach, arXiv:1812.07956), and its parts.

    Attributes:
      kappa: residual * hessian / jacobian^2. Far below 1 the network is nearly linear along the
        path of training: it is lazy.
      residual: |f - y|, Euclidean norm over all entries.
      hessian: |D^2 f|, the largest |D^2 f [u, v]| over unit vectors u and v of parameters.
      jacobian: |D f|, the largest singular value: the root of the NTK's largest eigenvalue.
    """

    kappa: float
    residual: float
    hessian: float
    jacobian: float


def relative_scale(
    f: ApplyFunction,
    params: Params,
    x: Inputs,
    y: Outputs,
    *,
    subset: Subset = None,
    batch_size: int | None = None,
    starts: int = 3,
    tol: float = 1e-3,
    max_iter: int = 1000,
    seed: int = 0,
) -> RelativeScale:
    """Returns the relative scale of arXiv:1812.07956, kappa = |f - y| |D^2 f| / |D f|^2.

    Training moves parameters by about |f - y| / |D f|, and along that path D f changes by |D^2 f|
    times as much: kappa is that change relative to D f. Multiplying f by a constant alpha, with
    outputs near zero at the start, divides kappa by alpha, and so makes any model lazy.

    No Hessian and no Jacobian is stored. |D f| is computed from products of the NTK with vectors,
    by Lanczos iterations. |D^2 f| is the norm of a form in three vectors, u and v of parameters and
    w of outputs. It is computed by improving each with the others fixed (power iteration, a
    Hessian-vector product at each step). The value never decreases, but may end in a local maximum:
    the largest of several random starts is a lower bound of the norm, in practice the norm itself.

    Args:
      f: f(params, x), with one array as its output.
      params: tree of parameters at which to take D f and D^2 f: commonly those at the start.
      x: tree of inputs.
      y: targets like f(params, x).
      subset: parameters to differentiate by; see `empirical_ntk_fn`.
      batch_size: number of samples to compute at a time, for functions that treat samples
        independently, along first axes; None for all at once.
      starts: number of random starts.
      tol: stop when the relative change of |D^2 f| in a round is smaller.
      max_iter: largest number of rounds of each start.
      seed: seed of the random starts.

    Raises:
      TypeError: parameters that are not floating-point numbers, or an output of f that is not one
        array.
      ValueError: f does not depend on the parameters, targets of another shape, derivatives that
        are zero or not finite, no convergence, or counts below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> scale = relative_scale(lambda p, x: p**2 * x, jnp.array(2.0), jnp.ones(1), jnp.ones(1))
      >>> scale.kappa  # |4 - 1| * 2 / 4^2
      0.375
    """
    _check_count("starts", starts)
    _check_count("max_iter", max_iter)
    operator = NTKOperator(in_chunks(f, batch_size), params, x, subset=subset)
    shape = operator.output.shapes[0]
    if jnp.shape(y) != shape:
        raise ValueError(f"expected y of the shape of f(params, x), {shape}, got {jnp.shape(y)}")
    residual = float(_distance(operator, jnp.asarray(y)))
    jacobian = _jacobian_norm(operator, seed)
    if not 0 < jacobian < np.inf:
        raise ValueError(f"expected finite derivatives of f that are not all zero, got {jacobian}")
    maxima = [
        _hessian_norm(operator, key, jnp.asarray(tol, jnp.float32), max_iter)
        for key in jax.random.split(jax.random.key(seed), starts)
    ]
    for value, change in maxima:
        if not float(change) <= tol:
            raise ValueError(
                f"expected the norm of D^2 f to change by at most {tol:.1e} within {max_iter} "
                f"rounds, got {float(value):.3e} and a relative change of {float(change):.1e}"
            )
    hessian = max(float(value) for value, _ in maxima)
    return RelativeScale(residual * hessian / jacobian**2, residual, hessian, jacobian)


def _check_count(name: str, value: Size) -> None:
    try:
        is_count = not isinstance(value, bool) and operators.index(value) > 0
    except TypeError:
        is_count = False
    if not is_count:
        raise ValueError(f"expected {name} of at least 1, got {value!r}")


def _function(operator: NTKOperator) -> tuple[Callable[[PyTree], jax.Array], list[jax.Array]]:
    """Returns the real output as a function of real parameters, and the real parameters."""
    call = Call(operator.network, operator.params, operator.arrays)
    return call.function(operator.output.index), operator.network.parameters.real(operator.params)


@jax.jit
def _distance(operator: NTKOperator, y: jax.Array) -> jax.Array:
    f, real = _function(operator)
    is_complex = jnp.issubdtype(operator.dtype, jnp.complexfloating)
    apart = f(real) - real_output(y + 0j if is_complex else y)
    return norm(apart)


def _jacobian_norm(operator: NTKOperator, seed: int) -> float:
    """Returns the largest singular value of the Jacobian."""
    # In real numbers: complex vectors have other norms.
    f, real = _function(operator)
    out = jax.eval_shape(f, real)
    size = out.size

    def product(v: np.ndarray) -> np.ndarray:
        return np.asarray(_product(operator, jnp.asarray(v, out.dtype)), np.float64)

    if size <= _SMALL:
        matrix = np.stack([product(row) for row in np.eye(size)])
        values = np.linalg.eigvalsh(matrix) if np.isfinite(matrix).all() else np.full(1, np.nan)
    else:
        from scipy.sparse.linalg import LinearOperator, eigsh

        start = np.random.default_rng(seed).standard_normal(size)
        linear = LinearOperator((size, size), product, dtype=np.float64)
        if not np.isfinite(product(start)).all():
            return np.nan
        values = eigsh(linear, k=1, which="LA", v0=start, tol=1e-5, return_eigenvectors=False)
    return float(np.sqrt(max(values.max(), 0.0))) if np.isfinite(values).all() else np.nan


@jax.jit
def _product(operator: NTKOperator, v: jax.Array) -> jax.Array:
    """Returns the product of the NTK of real outputs with a flat vector."""
    f, real = _function(operator)
    shape = jax.eval_shape(f, real).shape
    return ntk_vector_product(f, None, real)(v.reshape(shape)).reshape(-1)


class _Round(NamedTuple):
    """Unit vectors, the value of the form, and its relative increase in the last round."""

    u: list[jax.Array]
    v: list[jax.Array]
    value: jax.Array
    change: jax.Array
    rounds: jax.Array


@functools.partial(jax.jit, static_argnames="max_iter")
def _hessian_norm(
    operator: NTKOperator, key: jax.Array, tol: jax.Array, max_iter: int
) -> tuple[jax.Array, jax.Array]:
    """Returns a local maximum of |D^2 f [u, v]| and the relative change in the last round."""
    f, real = _function(operator)

    def along(v: list[jax.Array]) -> Callable[[list[jax.Array]], jax.Array]:
        """Returns p -> D f(p) [v]."""
        return lambda p: jax.jvp(f, (p,), (v,))[1]

    def best_output(u: list[jax.Array], v: list[jax.Array]) -> jax.Array:
        return _unit(jax.jvp(along(v), (real,), (u,))[1])[0]

    def best_parameters(v: list[jax.Array], w: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        return _unit(jax.grad(lambda p: jnp.sum(w * along(v)(p)))(real))

    def improve(state: _Round) -> _Round:
        w = best_output(state.u, state.v)
        u, _ = best_parameters(state.v, w)
        v, value = best_parameters(u, w)
        change = jnp.abs(value - state.value) / jnp.where(value > 0, value, 1)
        return _Round(u, v, value, change, state.rounds + 1)

    def goes_on(state: _Round) -> jax.Array:
        return (state.change > tol) & (state.rounds < max_iter)

    keys = jax.random.split(key, len(real) + 1)
    out = jax.eval_shape(f, real)
    real = varying_like(real, out, key)
    v, _ = _unit([jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, real, strict=False)])
    w, _ = _unit(jax.random.normal(keys[-1], out.shape, out.dtype))
    v, w = varying_like((v, w), real, out)
    u, value = best_parameters(v, w)
    state = _Round(u, v, value, value + jnp.inf, jnp.int32(0))
    state = lax.while_loop(goes_on, improve, state)
    return state.value, state.change


def _unit(tree: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns a tree scaled to norm 1 (zeros for zeros), and its norm."""
    length = norm(tree)
    safe = jnp.where(length > 0, length, 1)
    return jax.tree.map(lambda a: (a / safe).astype(a.dtype), tree), length
