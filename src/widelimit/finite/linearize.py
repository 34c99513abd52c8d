"""Taylor polynomials of a network in its parameters."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath, PyTreeDef
from jaxtyping import ArrayLike, PyTree

from widelimit._pytree import own
from widelimit.typing import Function, Params, Size

Orders: TypeAlias = Callable[[Params], tuple[PyTree, ...]]
"""A function and its derivatives along one direction, by order."""


def linearize(f: Function, params0: Params) -> Function:
    """Returns `f_lin(params, *args, **kwargs)`, f to first order in its parameters.

    f_lin(p, x) = f(p0, x) + df/dp(p0, x) (p - p0), one Jacobian-vector product: about twice the
    operations of f, and no Jacobian. A wide network stays close to it throughout training
    (arXiv:1902.06720). It is `taylor_expand` of degree 1.

    Args:
      f: a function `f(params, *args, **kwargs)` of trees of arrays; its outputs may be a tree, too.
      params0: the parameters to expand about, real or complex floating-point numbers.

    Raises:
      TypeError: if f is not a function, or parameters are not floating-point numbers. `f_lin`
        raises it for such parameters, and for outputs of f that are not floating-point numbers.
      ValueError: `f_lin` raises it for parameters of another structure or shape.

    Example:
      >>> import jax.numpy as jnp
      >>> f_lin = linearize(lambda p, x: p**2 * x, 3.0)
      >>> float(f_lin(4.0, 2.0))  # 9 * 2 + 2 * 3 * (4 - 3) * 2
      30.0
    """
    return taylor_expand(f, params0, 1)


def taylor_expand(f: Function, params0: Params, degree: Size) -> Function:
    """Returns `f_k(params, *args, **kwargs)`, the Taylor polynomial of f in its parameters.

    f_k(p, x) = sum over j <= k of D^j f(p0, x) [(p - p0), ..., (p - p0)] / j!, with k the degree.

    Each order is one more forward-mode derivative along p - p0 of all orders below, so that
    degree k takes about 2^k times the operations of f. This is exact for every f that JAX can
    differentiate k times in forward mode, custom derivatives included (the cost of
    `jax.experimental.jet` grows as k^2 only, but it has no rules for many primitives and ignores
    custom derivatives). At a kink, such as that of ReLU, it is the polynomial of the side that JAX
    takes.

    Args:
      f: a function `f(params, *args, **kwargs)` of trees of arrays; its outputs may be a tree, too.
      params0: the parameters to expand about, real or complex floating-point numbers.
      degree: order of the polynomial, at least 0.

    Raises:
      TypeError: if f is not a function, `degree` is not an int, or parameters are not
        floating-point numbers. `f_k` raises it for such parameters, and for outputs of f that are
        not floating-point numbers.
      ValueError: if `degree` is negative; `f_k` raises it for parameters of another structure or
        shape.

    Example:
      >>> f_2 = taylor_expand(lambda p, x: p**3 * x, 1.0, degree=2)
      >>> float(f_2(2.0, 1.0))  # 1 + 3 + 6 / 2!
      7.0
    """
    if not callable(f):
        raise TypeError(f"expected a function f(params, ...), got {type(f).__name__}")
    if isinstance(degree, bool) or not hasattr(degree, "__index__"):
        raise TypeError(f"expected degree to be an int, got {degree!r}")
    order = operator.index(degree)
    if order < 0:
        raise ValueError(f"expected degree of at least 0, got {order}")
    _check_floating("params0", params0)
    params0 = own(params0)

    def expanded(params: Params, *args: PyTree, **kwargs: PyTree) -> PyTree:
        direction = _difference(own(params), params0)

        def value(p: Params) -> tuple[PyTree, ...]:
            out = f(p, *args, **kwargs)
            _check_floating("outputs of f", out)
            return (out,)

        derivatives: Orders = value
        for _ in range(order):
            derivatives = _with_next_order(derivatives, direction)
        orders = derivatives(jax.tree.map(jnp.asarray, params0))

        def polynomial(*terms: ArrayLike) -> ArrayLike:
            # Highest order first: small terms are added to each other before large ones.
            reversed_terms = reversed(list(enumerate(terms)))
            return sum(term * (1 / math.factorial(j)) for j, term in reversed_terms)

        return jax.tree.map(polynomial, *orders)

    return expanded


def _with_next_order(derivatives: Orders, direction: PyTree) -> Orders:
    """Returns p -> (f, Df, ..., D^(k+1)f) along a direction, from the function of k orders."""

    def extended(p: Params) -> tuple[PyTree, ...]:
        orders, slopes = jax.jvp(derivatives, (p,), (direction,))
        return (*orders, slopes[-1])

    return extended


def _difference(params: Params, params0: Params) -> PyTree:
    """Returns params - params0 in the dtypes of params0."""
    _check_floating("params", params)
    structure: PyTreeDef = jax.tree.structure(params)
    structure0: PyTreeDef = jax.tree.structure(params0)
    if structure != structure0:
        raise ValueError(
            f"expected params of the structure of params0, {structure0}, got {structure}"
        )

    def difference(path: KeyPath, p: ArrayLike, p0: ArrayLike) -> jax.Array:
        if jnp.shape(p) != jnp.shape(p0):
            raise ValueError(
                f"expected params{jax.tree_util.keystr(path)} of shape {jnp.shape(p0)}, as in "
                f"params0, got {jnp.shape(p)}"
            )
        dtype = jnp.result_type(p0)
        if jnp.issubdtype(jnp.result_type(p), jnp.complexfloating) and not jnp.issubdtype(
            dtype, jnp.complexfloating
        ):
            raise TypeError(
                f"expected real params{jax.tree_util.keystr(path)}, as in params0, got "
                f"{jnp.result_type(p)}"
            )
        return (jnp.asarray(p) - jnp.asarray(p0)).astype(dtype)

    return jax.tree_util.tree_map_with_path(difference, params, params0)


def _check_floating(name: str, tree: PyTree) -> None:
    """Raises TypeError unless all leaves are arrays of real or complex floating-point numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        place = f"{name}{jax.tree_util.keystr(path)}"
        try:
            dtype = jnp.result_type(leaf)
        except TypeError:
            raise TypeError(f"expected {place} to be an array, got {type(leaf).__name__}") from None
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"expected floating-point numbers at {place}, got {dtype}: integers have no "
                "derivatives; let f close over them or take them as another argument"
            )
