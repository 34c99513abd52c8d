"""Empirical kernels of the finite networks in PyTorch, by the recipe in its documentation.

The tutorial "Neural Tangent Kernels" of torch.func: per-sample Jacobians of x1 and of x2 by
`vmap(jacrev)` and their product, or products of the kernel with unit vectors by `vjp` and `jvp`.
ONE_JACOBIAN is not in the tutorial: it uses that x2 is x1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.func import jacrev, jvp, vjp, vmap
from torch.nn import functional

from benchmarks.finite_networks import BLOCKS, CLASSES, HEADS, RESNET_CHANNELS, WIDTH, parameters

Parameters = dict[str, torch.Tensor]


def mlp(params: Parameters, x: torch.Tensor) -> torch.Tensor:
    for i in range(3):
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        x = functional.relu(x) if i < 2 else x
    return x


def resnet(params: Parameters, x: torch.Tensor) -> torch.Tensor:
    def conv(x: torch.Tensor, kernel: torch.Tensor, stride: int = 1) -> torch.Tensor:
        # "SAME" of JAX: the odd pixel of padding goes behind.
        pads = []
        for size, taps in ((x.shape[3], kernel.shape[3]), (x.shape[2], kernel.shape[2])):
            total = max((-(-size // stride) - 1) * stride + taps - size, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), kernel, stride=stride)

    x = conv(x, params["stem"])
    before = RESNET_CHANNELS[0]
    for i, channels in enumerate(RESNET_CHANNELS):
        stride = 1 if channels == before else 2
        h = conv(functional.relu(x), params[f"a{i}"], stride)
        h = functional.relu(
            h * params[f"scale{i}"][:, None, None] + params[f"shift{i}"][:, None, None]
        )
        h = conv(h, params[f"b{i}"])
        x = h + (x if channels == before else conv(x, params[f"skip{i}"], stride))
        before = channels
    return functional.relu(x).mean((2, 3)) @ params["out"] + params["bias"]


def transformer(params: Parameters, x: torch.Tensor) -> torch.Tensor:
    def normalise(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * scale + shift

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS).transpose(1, 2)

    x = x + params["position"]
    for i in range(BLOCKS):
        h = normalise(x, params[f"scale{i}"], params[f"shift{i}"]) @ params[f"qkv{i}"]
        q, k, v = (heads(part) for part in h.split(WIDTH, -1))
        scores = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, -1)
        x = x + (scores @ v).transpose(1, 2).reshape(x.shape) @ params[f"merge{i}"]
        h = normalise(x, params[f"scale{i}b"], params[f"shift{i}b"])
        h = functional.gelu(h @ params[f"up{i}"] + params[f"up_bias{i}"], approximate="tanh")
        x = x + h @ params[f"down{i}"] + params[f"down_bias{i}"]
    return x.mean(1) @ params["out"] + params["bias"]


FUNCTIONS = {"mlp": mlp, "resnet": resnet, "transformer": transformer}
Single = Callable[[Parameters, torch.Tensor], torch.Tensor]


def jacobian(f: Single, params: Parameters, x: torch.Tensor) -> list[torch.Tensor]:
    rows = vmap(jacrev(f), (None, 0))(params, x)
    return [row.flatten(2) for row in rows.values()]


def product(rows1: list[torch.Tensor], rows2: list[torch.Tensor]) -> torch.Tensor:
    pairs = zip(rows1, rows2, strict=True)
    return sum(torch.einsum("Naf,Maf->NM", one, two) for one, two in pairs)


def jacobian_contraction(f: Single, params: Parameters, x: torch.Tensor) -> torch.Tensor:
    return product(jacobian(f, params, x), jacobian(f, params, x))


def one_jacobian(f: Single, params: Parameters, x: torch.Tensor) -> torch.Tensor:
    rows = jacobian(f, params, x)
    return product(rows, rows)


def vector_products(f: Single, params: Parameters, x: torch.Tensor) -> torch.Tensor:
    def of_pair(x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        def product(v: torch.Tensor) -> torch.Tensor:
            _, pull = vjp(lambda p: f(p, x2), params)
            return jvp(lambda p: f(p, x1), (params,), pull(v))[1]

        return torch.einsum("KK->", vmap(product)(torch.eye(CLASSES, dtype=x1.dtype)))

    return vmap(vmap(of_pair, (None, 0)), (0, None))(x, x)


WAYS = {
    "JACOBIAN_CONTRACTION": jacobian_contraction,
    "NTK_VECTOR_PRODUCTS": vector_products,
    "ONE_JACOBIAN": one_jacobian,
}


def kernel(network: str, get: str, gram: bool) -> Callable[[Any, Any], Any]:  # noqa: ARG001
    """Returns the function of x1 and None that computes the kernel in the way called `get`."""

    def single(params: Parameters, x: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[network](params, x[None])[0]

    def compute(x1: Any, x2: Any) -> Any:  # noqa: ARG001
        params = {name: _tensor(value) for name, value in parameters(network, x1.dtype).items()}
        x = torch.from_numpy(x1)
        x = x.permute(0, 3, 1, 2) if network == "resnet" else x
        return (WAYS[get](single, params, x) / CLASSES).numpy()

    return compute


def _tensor(value: np.ndarray) -> torch.Tensor:
    """Returns a parameter; kernels of convolutions with output channels first."""
    return torch.from_numpy(value.transpose(3, 2, 0, 1).copy() if value.ndim == 4 else value)


def about(network: str, shape: tuple[int, ...]) -> dict[str, Any]:  # noqa: ARG001
    """Returns versions and the device."""
    return {"versions": {"torch": torch.__version__}, "device": "cpu"}
