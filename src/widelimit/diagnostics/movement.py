"""The movement of parameters, and the distance of a network from its linearisation."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, PyTree

from widelimit._pytree import is_concrete
from widelimit.diagnostics.chunked import in_chunks
from widelimit.finite.linearize import linearize
from widelimit.typing import ApplyFunction, Inputs, Params

# Movements of outputs below this number of units in the last place of their norm are rounding.
_ROUNDING = 16


class Gap(NamedTuple):
    """The distance of a network from its linearisation at the same parameters.

    Attributes:
      absolute: root mean square of f(p, x) - f_lin(p, x) over the entries of the outputs.
      relative: |f(p, x) - f_lin(p, x)| / |f(p, x) - f(p0, x)|; NaN where outputs have not moved, or
        only by rounding.
      moved: root mean square of f(p, x) - f(p0, x).
    """

    absolute: Float[jax.Array, ""]
    relative: Float[jax.Array, ""]
    moved: Float[jax.Array, ""]


def parameter_movement(params: Params, params0: Params) -> jax.Array:
    """Returns |p - p0| / |p0|, Euclidean norms over all entries of all leaves.

    Args:
      params: tree of parameters, after training for example.
      params0: tree of parameters to compare with, at the start.

    Raises:
      TypeError: leaves that are not arrays of floating-point or complex numbers.
      ValueError: trees or shapes that differ, parameters that are not finite, or `params0` of
        zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> float(parameter_movement({"w": jnp.full(3, 1.5)}, {"w": jnp.ones(3)}))
      0.5
    """
    check_params(params, params0)
    moved = norm(difference(params, params0)) / norm(params0)
    if is_concrete(moved) and not bool(jnp.isfinite(moved)):
        raise ValueError(
            f"expected finite parameters, and params0 that are not all zero, got a movement of "
            f"{moved}"
        )
    return moved


def linearization_gap(
    f: ApplyFunction, params: Params, params0: Params, x: Inputs, *, batch_size: int | None = None
) -> Gap:
    """Returns the distance of f from its linearisation about `params0`, at `params`.

    f_lin(p, x) = f(p0, x) + df/dp(p0, x) (p - p0), see `linearize`. A network in the lazy regime
    has a small relative gap after training; that of a linear model is zero.

    Args:
      f: f(params, x), any function of trees of arrays to trees of arrays.
      params: parameters, after training for example.
      params0: the parameters to linearise about.
      x: tree of inputs.
      batch_size: number of samples to compute at a time, for functions that treat samples
        independently, along first axes; None for all at once.

    Raises:
      TypeError: f is not a function; parameters or outputs that are not floating-point numbers.
      ValueError: parameters of another structure or shape, outputs that are not finite, or a wrong
        batch size.

    Example:
      >>> import jax.numpy as jnp
      >>> f = lambda p, x: p**2 * x
      >>> gap = linearization_gap(f, jnp.array(3.0), jnp.array(1.0), jnp.ones(2))
      >>> float(gap.absolute), float(gap.relative)  # 9 instead of 1 + 2 (3 - 1)
      (4.0, 0.5)
    """
    check_params(params, params0)
    gap = gap_of(in_chunks(f, batch_size), params, params0, x)
    if is_concrete(gap.absolute) and not bool(jnp.isfinite(gap.absolute)):
        raise ValueError(f"expected finite outputs of f, got a gap of {gap.absolute}")
    return gap


def gap_of(f: ApplyFunction, params: Params, params0: Params, x: Inputs) -> Gap:
    """Returns the gap of f without checks."""
    now, start = f(params, x), f(params0, x)
    apart = difference(now, linearize(f, params0)(params, x))
    moved, absolute = norm(difference(now, start)), norm(apart)
    root = sum(leaf.size for leaf in jax.tree.leaves(now)) ** 0.5
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(now))
    has_moved = moved > _ROUNDING * eps * norm(start)
    relative = jnp.where(has_moved, absolute / jnp.where(has_moved, moved, 1), jnp.nan)
    return Gap(absolute / root, relative, moved / root)


def difference(first: PyTree, second: PyTree) -> PyTree:
    """Returns first - second, leaf by leaf, in float32 at least."""
    return jax.tree.map(lambda a, b: _wide(a) - _wide(b), first, second)


def norm(tree: PyTree) -> jax.Array:
    """Returns the Euclidean norm over all entries, in float32 at least.

    Entries are divided by the largest one first: squares do not overflow or vanish.
    """
    leaves = [jnp.abs(_wide(leaf)) for leaf in jax.tree.leaves(tree)]
    zero = jnp.zeros((), jnp.float32)
    largest = functools.reduce(jnp.maximum, [jnp.max(leaf, initial=0) for leaf in leaves], zero)
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(sum([jnp.sum((leaf / unit) ** 2) for leaf in leaves], start=zero))


def _wide(leaf: ArrayLike) -> jax.Array:
    """Returns an array of float32 at least."""
    array = jnp.asarray(leaf)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def check_params(params: Params, params0: Params, name: str = "params") -> None:
    """Raises unless both are trees of floating-point arrays of the same shapes.

    Raises:
      TypeError: leaves that are not arrays of floating-point or complex numbers.
      ValueError: trees or shapes that differ.
    """
    # The checks of `linearize`, traced, so that nothing is computed.
    try:
        jax.eval_shape(lambda p: linearize(lambda q: q, params0)(p), params)
    except (TypeError, ValueError) as error:
        error.add_note(f"at {name}, compared with params0")
        raise
