"""Piecewise linear nonlinearities and the sign: a kink or a jump at 0."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from widelimit import activations
from widelimit._pytree import pytree, static
from widelimit.activations import Dual
from widelimit.layers.elementwise import ClosedForm, ElementwiseLayer
from widelimit.typing import Arrays, Scalar


class _ReluFamily(ElementwiseLayer):
    """Piecewise linear functions with a kink at 0."""

    alias = "ABRelu"
    kinked = True

    def slopes(self) -> tuple[Scalar, Scalar]:
        """Returns the slopes for negative and for positive x."""
        raise NotImplementedError

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        a, b = self.slopes()
        return a * jnp.minimum(x, 0) + b * jnp.maximum(x, 0)

    def dual(
        self, c: Float[Array, "..."], q1: Arrays, q2: Arrays, gap: Float[Array, "..."]
    ) -> Dual:
        return activations.abrelu(c, q1, q2, gap, *self.slopes())

    def variance(self, features: Array) -> Array:
        a, b = self.slopes()
        return (a**2 + b**2) / 2 * features


@pytree
class ABRelu(_ReluFamily):
    """Returns a nonlinearity a min(x, 0) + b max(x, 0).

    Derivatives at coinciding or zero inputs are one-sided: the angle between the inputs has
    derivative 0 there. Source: Cho & Saul (2009), *Kernel methods for deep learning*.

    Args:
      a: slope for negative x.
      b: slope for positive x.
      do_stabilize: ignored: every entry is scaled to order 1 before the formula in any case.
    """

    a: Scalar
    b: Scalar
    do_stabilize: bool = static(default=False)

    def slopes(self) -> tuple[Scalar, Scalar]:
        return self.a, self.b


@pytree
class Relu(_ReluFamily):
    """Returns a ReLU max(x, 0).

    Its dual is the arc-cosine kernel of order 1, see Cho & Saul (2009), *Kernel methods for deep
    learning*.

    Args:
      do_stabilize: ignored; see `ABRelu`.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import stax
      >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> net.kernel_fn(jnp.array([[1.0, 0.0], [0.0, 1.0]]), None, "nngp")
      Array([[0.25..., 0.0795...], [0.0795..., 0.25...]], dtype=float32)
    """

    do_stabilize: bool = static(default=False)

    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jnp.maximum(x, 0)


@pytree
class Abs(_ReluFamily):
    """Returns a nonlinearity |x|.

    Args:
      do_stabilize: see `ABRelu`.
    """

    do_stabilize: bool = static(default=False)

    def slopes(self) -> tuple[float, float]:
        return -1.0, 1.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jnp.abs(x)


@pytree
class LeakyRelu(_ReluFamily):
    """Returns a leaky ReLU alpha min(x, 0) + max(x, 0).

    Args:
      alpha: slope for negative x.
      do_stabilize: see `ABRelu`.
    """

    alpha: Scalar
    do_stabilize: bool = static(default=False)

    def slopes(self) -> tuple[Scalar, Scalar]:
        return self.alpha, 1.0


@pytree
class Sign(ClosedForm):
    """Returns a nonlinearity sign(x).

    E[f' f'] is 0 by convention: gradients vanish almost everywhere.
    """

    _formula = staticmethod(activations.sign)
    kinked = True

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jnp.sign(x)
