"""Kernels of named networks as functions of their hyper-parameters, with derivatives."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from widelimit._text import shown
from widelimit.estimators.named_networks import build_network
from widelimit.gram.compute import kernel_fn_of
from widelimit.kernel.get import KERNELS
from widelimit.layers.base import Layer
from widelimit.typing import NetworkLike, Scalar, Size


@dataclasses.dataclass(frozen=True)
class Family:
    """The kernels of a network for all its hyper-parameters.

    Attributes:
      kernel: "nngp" or "ntk".
      network: "fcn", "cnn", or a network, which has no hyper-parameters here.
      depth: hidden layers of a named network.
      activation: nonlinearity of a named network.
      has_bias: whether a named network has biases.
      image_shape: shape of images that come as rows, or None.
    """

    kernel: str
    network: NetworkLike | str
    depth: Size
    activation: Layer | str
    has_bias: bool
    image_shape: tuple[int, ...] | None

    def __post_init__(self) -> None:
        """Checks what no other function does.

        Raises:
          ValueError: an unknown kernel.
        """
        if self.kernel not in KERNELS:
            raise ValueError(f"expected kernel to be one of {KERNELS}, got {shown(self.kernel)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The hyper-parameters, in the order in which functions take them."""
        if not isinstance(self.network, str):
            return ()
        return ("W_std", "b_std") if self.has_bias else ("W_std",)

    def member(self, W_std: Scalar, b_std: Scalar | None) -> NetworkLike:
        """Returns the network with those hyper-parameters, which may be traced."""
        bias = b_std if self.has_bias else None
        return build_network(self.network, self.depth, self.activation, W_std, bias)

    def shaped(self, x: Array) -> Array:
        """Returns inputs as the network takes them."""
        return x if self.image_shape is None else x.reshape(len(x), *self.image_shape)

    def matrix(
        self, values: Real[Array, " names"], x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]
    ) -> Float[Array, "n1 n2"]:
        """Returns the kernel between rows of inputs, for values of `names`."""
        named = dict(zip(self.names, values, strict=True))
        network = self.member(named.get("W_std", 1.0), named.get("b_std"))
        return kernel_fn_of(network)(self.shaped(x1), self.shaped(x2), self.kernel)


@functools.partial(jax.jit, static_argnums=0)
def _matrices(family: Family, values: Array, x1: Array, x2: Array) -> Array:
    return jax.vmap(functools.partial(family.matrix, values))(x1, x2)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(family: Family, values: Array, x1: Array, x2: Array) -> Array:
    return jax.jacfwd(lambda v: family.matrix(v, x1, x2))(values)


@functools.partial(jax.jit, static_argnums=0)
def _pulled_back(
    family: Family, values: Array, x1: Array, x2: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    return jax.vjp(functools.partial(_matrices, family), values, x1, x2)[1](cotangent)


def kernel_slopes(
    family: Family, values: Float[np.ndarray, " names"], x: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n n names"]:
    """Returns the derivatives of the kernel of x with itself, by each hyper-parameter."""
    with jax.enable_x64(True):
        return np.asarray(_slopes(family, jnp.asarray(values), jnp.asarray(x), jnp.asarray(x)))


def batched_kernels(
    family: Family,
    values: Float[np.ndarray, " names"],
    x1: Float[np.ndarray, "batch n1 d"],
    x2: Float[np.ndarray, "batch n2 d"],
) -> Float[np.ndarray, "batch n1 n2"]:
    """Returns kernels between rows, batch by batch; compiled once for several sizes."""
    with jax.enable_x64(True):
        kernels = np.asarray(_matrices(family, jnp.asarray(values), _padded(x1), _padded(x2)))
    return kernels[: len(x1), : x1.shape[1], : x2.shape[1]]


def pulled_back(
    family: Family,
    values: Float[np.ndarray, " names"],
    x1: Float[np.ndarray, "batch n1 d"],
    x2: Float[np.ndarray, "batch n2 d"],
    cotangent: Float[np.ndarray, "batch n1 n2"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the derivatives of sum(cotangent * kernels) by hyper-parameters, x1 and x2."""
    first, second = _padded(x1), _padded(x2)
    size = len(first), first.shape[1], second.shape[1]
    with jax.enable_x64(True):
        slopes = _pulled_back(
            family, jnp.asarray(values), first, second, _grown(cotangent, size, 0.0)
        )
    by_values, by_x1, by_x2 = (np.asarray(slope) for slope in slopes)
    return by_values, by_x1[: len(x1), : x1.shape[1]], by_x2[: len(x2), : x2.shape[1]]


def _padded(x: Float[np.ndarray, "batch n d"]) -> np.ndarray:
    """Returns the rows with ones behind them, up to the next powers of two."""
    batch, rows = (2 ** (size - 1).bit_length() for size in x.shape[:2])
    return _grown(x, (batch, rows, x.shape[2]), 1.0)


def _grown(array: np.ndarray, shape: tuple[int, ...], value: float) -> np.ndarray:
    """Returns the array at the start of a larger one, filled with a value."""
    widths = [(0, size - old) for size, old in zip(shape, array.shape, strict=True)]
    return np.pad(array, widths, constant_values=value)
