"""GPJaxKernel: a kernel of GPJax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
from gpjax.kernels import AbstractKernel
from gpjax.kernels.computations import AbstractKernelComputation
from gpjax.parameters import PositiveReal, val
from jax import numpy as jnp
from jaxtyping import Array, Float
from paramax import AbstractUnwrappable

from widelimit.estimators.family import Family
from widelimit.layers.base import Layer
from widelimit.typing import NetworkLike, Scalar, Size


class WholeMatrices(AbstractKernelComputation):
    """Computes all pairs in one call, and not pair by pair."""

    def _cross_covariance(
        self, kernel: Any, x: Float[Array, "n1 d"], y: Float[Array, "n2 d"]
    ) -> Float[Array, "n1 n2"]:
        return kernel.matrix(x, y)


class GPJaxKernel(AbstractKernel):
    """The NNGP or the NTK of an infinite network, as a kernel of GPJax.

    W_std and b_std of a named network are parameters that `gpjax.fit` trains. Turn float64 on, as
    GPJax advises: `jax.config.update("jax_enable_x64", True)`.

    Args:
      network: "fcn", "cnn" or a network, whose hyper-parameters stay as they are.
      kernel: "nngp" or "ntk".
      depth: hidden layers of a named network.
      activation: nonlinearity of a named network, a name or a layer; see `NNGPRegressor`.
      W_std: standard deviation of the weights of a named network, a number or a parameter.
      b_std: standard deviation of its biases, a number or a parameter; None means no bias.
      image_shape: (height, width, channels) of images that come as rows, or None.
      active_dims: features that are read; None for all.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit.estimators import GPJaxKernel
      >>> GPJaxKernel(depth=2).cross_covariance(jnp.ones((3, 2)), jnp.ones((4, 2))).shape
      (3, 4)
    """

    W_std: Any
    b_std: Any
    family: Family = eqx.field(static=True)
    name = "NNGP or NTK"

    def __init__(
        self,
        network: NetworkLike | str = "fcn",
        kernel: str = "nngp",
        depth: Size = 3,
        activation: Layer | str = "relu",
        W_std: Scalar | AbstractUnwrappable = 2**0.5,
        b_std: Scalar | AbstractUnwrappable | None = 0.1,
        image_shape: Sequence[int] | None = None,
        active_dims: list[int] | slice | None = None,
    ) -> None:
        named, shape = isinstance(network, str), None if image_shape is None else tuple(image_shape)
        self.family = Family(kernel, network, depth, activation, b_std is not None, shape)
        self.W_std = _parameter(W_std) if named else None
        self.b_std = _parameter(b_std) if named and b_std is not None else None
        super().__init__(active_dims, None, WholeMatrices())

    def __call__(self, x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
        """Returns the kernel between two inputs."""
        return self.matrix(x[None], y[None])[0, 0]

    def matrix(self, x: Float[Array, "n1 d"], y: Float[Array, "n2 d"]) -> Float[Array, "n1 n2"]:
        """Returns the kernel between all rows of x and y."""
        values = jnp.array([val(getattr(self, name)) for name in self.family.names])
        return self.family.matrix(values, self.slice_input(x), self.slice_input(y))


def _parameter(value: Scalar | AbstractUnwrappable) -> AbstractUnwrappable:
    return value if isinstance(value, AbstractUnwrappable) else PositiveReal(jnp.asarray(value))
