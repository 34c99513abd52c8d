"""ConvLocal behind convolutions that tell the spatial axes apart, where neural-tangents swaps them.

What is right comes from finite layers alone: a layer with weights and biases w ~ N(0, 1) is linear
in them, so with J its derivative by them the covariance of its output is J J^T, exactly, for an
input whose channels have the covariance that came before.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.monte_carlo import agrees, compare
from tests.tolerance import assert_close
from widelimit import stax
from widelimit.stax import AvgPool, Conv, ConvLocal, ConvTranspose, Dense, GlobalAvgPool, serial

KEY = jax.random.PRNGKey(0)
X1, X2 = (np.random.default_rng(i).standard_normal((n, 4, 3, 2)) for i, n in ((0, 2), (1, 1)))


def channels_of(covariance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Activations [n, H, W, c] with a covariance [n H W, n H W] as the mean over channels."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    return root.reshape(*shape, -1) * root.shape[1] ** 0.5


def derivatives(layer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """What weights, and what biases, contribute to the covariance of the outputs, and their shape.

    Of a layer with one output channel.
    """
    params = jax.tree.map(jnp.asarray, layer.init_fn(KEY, x.shape)[1])
    jacobian = jax.jacrev(lambda p: layer.apply_fn(p, x))(params)
    shape = layer.init_fn(KEY, x.shape)[0]
    flat = [np.zeros((np.prod(shape), 1)) if j is None else j for j in jacobian]
    rows = [np.asarray(j).reshape(np.prod(shape), -1) for j in flat]
    return rows[0] @ rows[0].T, rows[1] @ rows[1].T, shape[:-1]


def relu(k: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernels after a ReLU (arXiv:0911.0305)."""
    scale = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    angle = np.arccos(np.clip(k / scale, -1, 1))
    slope = (np.pi - angle) / (2 * np.pi)
    return scale * np.sin(angle) / (2 * np.pi) + k * slope, t * slope


def expected(layers: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK [n1, H, W, n2, H, W] of x1 with x2."""
    x = np.concatenate([X1, X2])
    shape = x.shape[:-1]
    flat = x.reshape(-1, x.shape[-1])
    k, t = flat @ flat.T / x.shape[-1], np.zeros((len(flat), len(flat)))
    for layer in layers:
        if isinstance(layer, stax.Relu):
            k, t = relu(k, t)
            continue
        if isinstance(layer, AvgPool | GlobalAvgPool):
            features = channels_of(np.eye(len(k)), shape) / len(k) ** 0.5
            out = np.asarray(layer.apply_fn((), features))
            pool = out.reshape(-1, len(k))
            k, t, shape = pool @ k @ pool.T, pool @ t @ pool.T, out.shape[:-1]
            continue
        passed = derivatives(layer, channels_of(t, shape))[0]
        weights, biases, shape = derivatives(layer, channels_of(k, shape))
        k, t = weights + biases, weights + biases + passed
    first = np.prod((len(X1), *shape[1:]))
    rest = shape[1:]
    return tuple(m[:first, first:].reshape(len(X1), *rest, len(X2), *rest) for m in (k, t))


LOCAL = ConvLocal(1, (1, 2), (2, 1), "SAME", 1.3, 0.4)
NETWORKS: dict[str, list[Any]] = {
    "filter": [Conv(1, (3, 1), padding="SAME", b_std=0.3), stax.Relu(), LOCAL],
    "strides": [Conv(1, (2, 2), (2, 1), "SAME"), stax.Relu(), ConvLocal(1, (2, 1), b_std=0.2)],
    "local filter": [Conv(1, (1, 1), b_std=0.3), ConvLocal(1, (3, 2)), stax.Relu(), Dense(1)],
    "three": [
        *(Conv(1, (3, 1), padding="SAME"), stax.Relu(), Conv(1, (1, 2), padding="SAME", b_std=0.1)),
        *(stax.Relu(), Conv(1, (2, 1), padding="SAME"), stax.Relu(), LOCAL),
    ],
    "transposed": [ConvTranspose(1, (1, 2), (1, 2), "SAME", b_std=0.3), stax.Relu(), LOCAL],
    "circular": [
        *(Conv(1, (3, 1), padding="CIRCULAR"), stax.Relu()),
        *(ConvLocal(1, (1, 3), (1, 2), "CIRCULAR", b_std=0.2), stax.Relu(), AvgPool((2, 2))),
    ],
    "two": [
        *(Conv(1, (3, 1), padding="SAME"), stax.Relu(), LOCAL, stax.Relu()),
        *(Conv(1, (2, 1), padding="SAME"), stax.Relu(), LOCAL, stax.Relu(), GlobalAvgPool()),
        Dense(1, 1.1, 0.2),
    ],
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_those_of_finite_layers(name: str) -> None:
    layers = NETWORKS[name]
    kernel = serial(*layers).kernel_fn(X1, X2)
    for actual, right in zip((kernel.nngp, kernel.ntk), expected(layers), strict=True):
        order = np.arange(right.ndim).reshape(2, -1).T.ravel()
        assert_close(actual, right.transpose(order))


@pytest.mark.slow
def test_wide_finite_networks() -> None:
    def build(width: int, outputs: int) -> Any:
        return serial(
            *(Conv(width, (3, 1), (2, 1), "SAME", 1.3, 0.3), stax.Relu()),
            *(ConvLocal(width, (1, 2), (1, 2), "SAME", 1.3, 0.4), stax.Relu()),
            *(GlobalAvgPool(), Dense(outputs)),
        )

    assert agrees(compare(build, X1, X2)).all()
