"""Nonlinearities without a closed form: any function, by its Mehler series (see `series.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from widelimit._pytree import pytree, static
from widelimit.activations import Dual, series
from widelimit.layers.base import Site
from widelimit.layers.elementwise import ElementwiseLayer
from widelimit.typing import Arrays, Function, Scalar


class SeriesLayer(ElementwiseLayer):
    """A nonlinearity whose dual is the Mehler series of `fn`."""

    def order(self) -> int:
        """Returns a lower bound on the order of the series."""
        return 0

    def derivative(self) -> Callable[[Array], Array] | None:
        """Returns f', or None for automatic differentiation."""
        return None

    def operations(self, site: Site) -> int:
        return 5 * 256

    def features(self, q: Float[Array, "..."]) -> Arrays:
        return series.features(self.activation, q, self.order(), self.derivative())

    def dual(
        self, c: Float[Array, "..."], q1: Arrays, q2: Arrays, gap: Float[Array, "..."]
    ) -> Dual:
        return series.series(c, q1, q2)

    def variance(self, features: Arrays) -> Array:
        return series.variance(features)


@pytree
class Tanh(SeriesLayer):
    """Returns a nonlinearity tanh(x); its dual is a Mehler series (see `activations.series`)."""

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jnp.tanh(x)


@pytree
class Sigmoid(SeriesLayer):
    """Returns a nonlinearity 1 / (1 + exp(-x)); its dual is a Mehler series."""

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jax.nn.sigmoid(x)


@pytree
class Softplus(SeriesLayer):
    """Returns a nonlinearity log(1 + exp(x)); its dual is a Mehler series."""

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jax.nn.softplus(x)


@pytree
class Elu(SeriesLayer):
    """Returns a nonlinearity x for x > 0, else alpha (exp(x) - 1); its dual is a Mehler series.

    Source: arXiv:1511.07289.

    Args:
      alpha: minus the limit at minus infinity.
    """

    alpha: Scalar = 1.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jax.nn.elu(x, self.alpha)


@pytree
class Selu(SeriesLayer):
    """Returns the scaled ELU of self-normalising networks; its dual is a Mehler series.

    Source: arXiv:1706.02515.
    """

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jax.nn.selu(x)


@pytree
class Silu(SeriesLayer):
    """Returns a nonlinearity x sigmoid(x); its dual is a Mehler series.

    Source: arXiv:1702.03118.
    """

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jax.nn.silu(x)


@pytree
class Mish(SeriesLayer):
    """Returns a nonlinearity x tanh(softplus(x)); its dual is a Mehler series.

    Source: arXiv:1908.08681.
    """

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jax.nn.mish(x)


@pytree
class ElementwiseNumerical(SeriesLayer):
    """Returns the nonlinearity `fn`; its dual is a Mehler series.

    Args:
      fn: elementwise function of an array, written in JAX.
      deg: lower bound on the order of the series.
      df: derivative of `fn`; automatic differentiation if None.

    Raises:
      ValueError: `deg` is less than 1.
      TypeError: `fn` is not a function.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import stax
      >>> layer = stax.ElementwiseNumerical(jnp.tanh, deg=25)
      >>> net = stax.serial(stax.Dense(512), layer, stax.Dense(1))
    """

    fn: Callable[[Array], Array] = static()
    deg: int = static()
    df: Callable[[Array], Array] | None = static(default=None)

    def __post_init__(self) -> None:
        _check_callable("fn", self.fn)
        if self.deg < 1:
            raise ValueError(f"expected deg of at least 1, got {self.deg}")

    def as_now(self, snapshot: Function) -> ElementwiseNumerical:
        df = None if self.df is None else snapshot(self.df)
        return dataclasses.replace(self, fn=snapshot(self.fn), df=df)

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return self.fn(x)

    def order(self) -> int:
        return self.deg

    def derivative(self) -> Callable[[Array], Array] | None:
        return self.df


@pytree
class Elementwise(SeriesLayer):
    """Returns the nonlinearity `fn`; its dual is `nngp_fn`, or a Mehler series of `fn` without it.

    Args:
      fn: elementwise function of an array; without it `apply_fn` raises NotImplementedError.
      nngp_fn: scalar function (c, q1, q2) -> E[f(u) f(v)] of the covariance c and the variances
        q1, q2; it is vectorised. Without it the dual is the Mehler series of `fn`.
      d_nngp_fn: scalar function (c, q1, q2) -> E[f'(u) f'(v)]; the derivative of `nngp_fn` with
        respect to c if None.

    Raises:
      ValueError: neither `fn` nor `nngp_fn` is passed.
      TypeError: one of them is not a function.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import stax
      >>> series = stax.Elementwise(fn=lambda x: jnp.sin(x) + x)
      >>> formula = stax.Elementwise(fn=lambda x: x, nngp_fn=lambda c, q1, q2: c)
    """

    fn: Callable[[Array], Array] | None = static(default=None)
    nngp_fn: Function | None = static(default=None)
    d_nngp_fn: Function | None = static(default=None)

    def __post_init__(self) -> None:
        if self.fn is None and self.nngp_fn is None:
            raise ValueError("expected fn, nngp_fn or both, got neither")
        for name in ("fn", "nngp_fn", "d_nngp_fn"):
            if getattr(self, name) is not None:
                _check_callable(name, getattr(self, name))

    def as_now(self, snapshot: Function) -> Elementwise:
        if self.nngp_fn is None:
            return dataclasses.replace(self, fn=snapshot(self.fn))
        slope = None if self.d_nngp_fn is None else snapshot(self.d_nngp_fn, 3)
        return dataclasses.replace(self, nngp_fn=snapshot(self.nngp_fn, 3), d_nngp_fn=slope)

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        if self.fn is None:
            raise NotImplementedError(
                "expected Elementwise(fn=...) for the finite network, got no fn"
            )
        return self.fn(x)

    def features(self, q: Float[Array, "..."]) -> Arrays:
        return q if self.nngp_fn is not None else super().features(q)

    def dual(
        self, c: Float[Array, "..."], q1: Arrays, q2: Arrays, gap: Float[Array, "..."]
    ) -> Dual:
        if self.nngp_fn is None:
            return super().dual(c, q1, q2, gap)
        slope = self.d_nngp_fn or jax.grad(self.nngp_fn)
        k, kdot = (jnp.vectorize(f)(c, q1, q2) for f in (self.nngp_fn, slope))
        return Dual(k, kdot)

    def variance(self, features: Arrays) -> Array:
        if self.nngp_fn is None:
            return super().variance(features)
        return jnp.vectorize(self.nngp_fn)(features, features, features)


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"expected a function for {name}, got {type(value).__name__}")
