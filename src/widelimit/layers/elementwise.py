"""Nonlinearities with duals in closed form (from `activations`).

All act as K' = E[f(u) f(v)] and T' = T E[f'(u) f'(v)] for (u, v) ~ N(0, [[q1, c], [c, q2]]). They
need a Gaussian input (the output of Dense, Conv, ...); their output is not Gaussian.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from widelimit import activations
from widelimit._pytree import as_leaf, pytree, static
from widelimit.activations import Dual
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.verbs import ElementwiseRule, elementwise
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.typing import Arrays, Needs, Params, Scalar, Signals


class ElementwiseLayer(Layer):
    """Base class of nonlinearities: override `activation` and `dual`.

    A nonlinearity that needs work once per variance overrides `features` and `variance` too;
    `dual` then gets features in place of variances.
    """

    # Whether its dual depends on absolute differences of covariances.
    subtracts: ClassVar[bool] = False
    # Whether it has a kink or a jump: its dual depends on the square root of 1 - correlation.
    kinked: ClassVar[bool] = False

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """Returns f(x).

        Args:
          x: array of any shape.
        """
        raise NotImplementedError

    def features(self, q: Float[Array, "..."]) -> Arrays:
        """Returns the features of variances that `dual` needs, the axes of q last.

        Args:
          q: variances.
        """
        return q

    def dual(
        self, c: Float[Array, "..."], q1: Arrays, q2: Arrays, gap: Float[Array, "..."]
    ) -> Dual:
        """Returns E[f f], E[f' f'] and the gap after the nonlinearity (None: not carried).

        Args:
          c: covariances.
          q1: features of the variances of the first variable.
          q2: features of the variances of the second variable.
          gap: half the mean squared distances (q1 + q2) / 2 - c.
        """
        raise NotImplementedError

    def variance(self, features: Arrays) -> Array:
        """Returns E[f(u)^2].

        Args:
          features: features of the variances of u.
        """
        return self.dual(features, features, features, jnp.zeros_like(features)).k

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        return self.activation(x)

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return need.with_variances()

    def operations(self, site: Site) -> int:
        return 60  # an arctangent, a square root and some twenty multiply-adds

    def temporaries(self, site: Site) -> tuple[float, int]:
        return 0.0, 4

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        if not cov.gaussian:
            raise ValueError(
                f"expected a Gaussian input (the output of Dense, Conv, ...) for {self.label}, got "
                "the output of a nonlinearity, of Flatten, or raw input: put a Dense or Conv "
                "layer before it"
            )
        return elementwise(cov, ElementwiseRule(self.features, self.dual, self.variance))


class ClosedForm(ElementwiseLayer):
    """Nonlinearities with a dual `_formula(c, q1, q2, gap, *fields)`."""

    _formula: ClassVar[Callable[..., Dual]]

    def dual(
        self, c: Float[Array, "..."], q1: Arrays, q2: Arrays, gap: Float[Array, "..."]
    ) -> Dual:
        fields = dataclasses.fields(self)
        return self._formula(c, q1, q2, gap, *(getattr(self, field.name) for field in fields))


@pytree
class _OfDegree(ClosedForm):
    """Base class of nonlinearities with a degree."""

    degree: int = static()

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or int(self.degree) != self.degree or self.degree < 0:
            raise NotImplementedError(
                f"expected a non-negative integer degree, got {self.degree!r}"
            )


@pytree
class Erf(ClosedForm):
    """Returns a nonlinearity a erf(b x) + c.

    Source: Williams (1997), *Computing with infinite networks*.

    Args:
      a: output scale.
      b: input scale.
      c: output shift.

    Example:
      >>> from widelimit import stax
      >>> net = stax.serial(stax.Dense(512), stax.Erf(), stax.Dense(1))
    """

    _formula = staticmethod(activations.erf)
    subtracts = True

    a: Scalar = 1.0
    b: Scalar = 1.0
    c: Scalar = 0.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return self.a * jax.scipy.special.erf(self.b * x) + self.c


def Sigmoid_like() -> Erf:
    """Returns erf(x / 2.4020563531719796) / 2 + 1/2, an `Erf` close to the logistic sigmoid."""
    return Erf(0.5, 1 / 2.4020563531719796, 0.5)


@pytree
class Sin(ClosedForm):
    """Returns a nonlinearity a sin(b x + c).

    Args:
      a: output scale.
      b: input scale.
      c: phase.
    """

    _formula = staticmethod(activations.sin)
    subtracts = True

    a: Scalar = 1.0
    b: Scalar = 1.0
    c: Scalar = 0.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return self.a * jnp.sin(self.b * x + self.c)


def Cos(a: Scalar = 1.0, b: Scalar = 1.0, c: Scalar = 0.0) -> Sin:
    """Returns a cos(b x + c), as a `Sin`.

    Args:
      a: output scale.
      b: input scale.
      c: phase.
    """
    return Sin(a, b, c + math.pi / 2)


@pytree
class Rbf(ClosedForm):
    """Returns a nonlinearity sqrt(2) sin(sqrt(2 gamma) x + pi/4).

    Its dual is the Gaussian kernel exp(-gamma |x1 - x2|^2).

    Source: Rahimi & Recht (2007), *Random features for large-scale kernel machines*.

    Args:
      gamma: inverse squared length scale.
    """

    _formula = staticmethod(activations.rbf)
    subtracts = True

    gamma: Scalar = 1.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return math.sqrt(2) * jnp.sin(jnp.sqrt(2 * self.gamma) * x + math.pi / 4)


@pytree
class Gelu(ElementwiseLayer):
    """Returns a GELU x Phi(x), with Phi the standard normal distribution function.

    Source: arXiv:1606.08415; kernel: arXiv:2002.08517.

    Args:
      approximate: use the tanh approximation in the finite network; the kernel is always exact.
    """

    subtracts = True

    approximate: bool = static(default=False)

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jax.nn.gelu(x, approximate=self.approximate)

    def dual(
        self, c: Float[Array, "..."], q1: Arrays, q2: Arrays, gap: Float[Array, "..."]
    ) -> Dual:
        return activations.gelu(c, q1, q2, gap)


@pytree
class Gabor(ClosedForm):
    """Returns a nonlinearity exp(-x^2) sin(x)."""

    _formula = staticmethod(activations.gabor)
    subtracts = True

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jnp.exp(-jnp.square(x)) * jnp.sin(x)


@pytree
class Exp(ClosedForm):
    """Returns a nonlinearity a exp(b x).

    Args:
      a: output scale.
      b: input scale.
    """

    _formula = staticmethod(activations.exp)
    subtracts = True

    a: Scalar = 1.0
    b: Scalar = 1.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return self.a * jnp.exp(self.b * x)


@pytree
class Gaussian(ClosedForm):
    """Returns a nonlinearity a exp(b x^2).

    For b > 0 the kernel is NaN at variances where the expectation diverges.

    Args:
      a: output scale.
      b: coefficient of x^2.
    """

    _formula = staticmethod(activations.gaussian)
    subtracts = True

    a: Scalar = 1.0
    b: Scalar = -1.0

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return self.a * jnp.exp(self.b * jnp.square(x))


@pytree
class Monomial(_OfDegree):
    """Returns a nonlinearity x^degree.

    Args:
      degree: a non-negative integer.

    Raises:
      NotImplementedError: a negative or fractional degree.
    """

    _formula = staticmethod(activations.monomial)

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return x**self.degree


@pytree
class RectifiedMonomial(_OfDegree):
    """Returns a nonlinearity x^degree for x >= 0, else 0; its dual is an arc-cosine kernel.

    E[f' f'] of degree 0 is 0 by convention. Source: Cho & Saul (2009), *Kernel methods for deep
    learning*.

    Args:
      degree: a non-negative integer.

    Raises:
      NotImplementedError: a negative or fractional degree.
    """

    _formula = staticmethod(activations.rectified_monomial)
    kinked = True

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        return jnp.where(x >= 0, x**self.degree, 0)


@pytree
class Polynomial(ClosedForm):
    """Returns a nonlinearity sum_i coef[i] x^i.

    Args:
      coef: coefficients, lowest power first; may be empty.
    """

    _formula = staticmethod(activations.polynomial)

    coef: Arrays

    def __post_init__(self) -> None:
        coef = self.coef.tolist() if isinstance(self.coef, np.ndarray) else self.coef
        object.__setattr__(self, "coef", as_leaf(tuple(coef)))

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        out = jnp.zeros_like(x)
        for coefficient in reversed(self.coef):
            out = out * x + coefficient
        return out


@pytree
class Hermite(_OfDegree):
    """Returns the normalised probabilists' Hermite polynomial He_d(x) / sqrt(d!).

    The dual is c^d at unit variance, and the exact expectation at any other.

    Args:
      degree: a non-negative integer.

    Raises:
      NotImplementedError: a negative or fractional degree.
    """

    _formula = staticmethod(activations.hermite)

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        previous, current = jnp.zeros_like(x), jnp.ones_like(x)
        for n in range(self.degree):
            previous, current = current, (x * current - n**0.5 * previous) / (n + 1) ** 0.5
        return current


@pytree
class ExpNormalized(ClosedForm):
    """Returns a layer with the kernel sqrt(q1 q2) exp(gamma (rho + shift)), rho = c / sqrt(q1 q2).

    It has no finite form: `apply_fn` raises NotImplementedError. Source: arXiv:1605.06265.

    Args:
      gamma: rate of the exponential.
      shift: shift of the correlation.
      do_clip: clip rho to [-1, 1].
    """

    _formula = staticmethod(activations.exp_normalized)

    gamma: Scalar = 1.0
    shift: Scalar = -1.0
    do_clip: bool = static(default=False)

    def activation(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        raise NotImplementedError(
            "expected a layer with a finite form, got ExpNormalized: it is defined by its kernel"
        )
