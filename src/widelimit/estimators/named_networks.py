"""Networks by name, for people who tune a number rather than build a network."""

from __future__ import annotations

from collections.abc import Callable

from widelimit import models, stax
from widelimit._text import shown
from widelimit.layers.base import Layer
from widelimit.typing import NetworkLike, Scalar, Size

NETWORKS = ("fcn", "cnn")
ACTIVATIONS: dict[str, Callable[[], Layer]] = {
    "relu": stax.Relu,
    "erf": stax.Erf,
    "gelu": stax.Gelu,
    "leaky_relu": lambda: stax.LeakyRelu(0.01),
    "rbf": stax.Rbf,
    "silu": stax.Silu,
    "sin": stax.Sin,
    "tanh": stax.Tanh,
}


def build_network(
    network: NetworkLike | str,
    depth: Size,
    activation: Layer | str,
    W_std: Scalar,
    b_std: Scalar | None,
) -> NetworkLike:
    """Returns the network of a name, or the network that is given.

    Args:
      network: "fcn" for `models.fcn`, "cnn" for `models.cnn` with global average pooling, or a
        network, which holds its own hyper-parameters.
      depth: number of hidden layers of a named network.
      activation: name or layer of the nonlinearity of a named network.
      W_std: standard deviation of the weights of a named network.
      b_std: standard deviation of the biases of a named network; None means no bias.

    Raises:
      ValueError: an unknown name.
    """
    if not isinstance(network, str):
        return network
    layer = _activation_layer(activation)
    if network == "fcn":
        return models.fcn(depth, W_std=W_std, b_std=b_std, activation=layer, num_outputs=1)
    if network == "cnn":
        return models.cnn(depth, "gap", W_std=W_std, b_std=b_std, activation=layer, num_outputs=1)
    raise ValueError(f"expected network to be a network or one of {NETWORKS}, got {network!r}")


def _activation_layer(activation: Layer | str) -> Layer:
    if isinstance(activation, Layer):
        return activation
    if not (isinstance(activation, str) and activation in ACTIVATIONS):
        raise ValueError(
            f"expected activation to be a layer or one of {tuple(sorted(ACTIVATIONS))}, got "
            f"{shown(activation)}"
        )
    return ACTIVATIONS[activation]()
