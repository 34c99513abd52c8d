"""Finite networks for empirical kernels: plain functions of parameters, and their sizes.

`parameters` imports numpy only; the functions import jax inside, so that any version will do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

CLASSES = 10
MLP_WIDTH, MLP_INPUTS = 1024, 784
RESNET_CHANNELS = (16, 16, 32, 64)  # of the blocks; each change halves the image
LENGTH, WIDTH, HEADS, HIDDEN, BLOCKS = 32, 128, 4, 512, 2  # of the transformer

Parameters = dict[str, Any]


def mlp_shapes() -> dict[str, tuple[int, ...]]:
    sizes = (MLP_INPUTS, MLP_WIDTH, MLP_WIDTH, CLASSES)
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"w{i}": (fan_in, fan_out), f"b{i}": (fan_out,)}
    return shapes


def resnet_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"stem": (3, 3, 3, RESNET_CHANNELS[0])}
    before = RESNET_CHANNELS[0]
    for i, channels in enumerate(RESNET_CHANNELS):
        shapes |= {f"a{i}": (3, 3, before, channels), f"b{i}": (3, 3, channels, channels)}
        shapes |= {f"scale{i}": (channels,), f"shift{i}": (channels,)}
        if channels != before:
            shapes[f"skip{i}"] = (1, 1, before, channels)
        before = channels
    return {**shapes, "out": (before, CLASSES), "bias": (CLASSES,)}


def transformer_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"position": (LENGTH, WIDTH)}
    for i in range(BLOCKS):
        shapes |= {f"qkv{i}": (WIDTH, 3 * WIDTH), f"merge{i}": (WIDTH, WIDTH)}
        shapes |= {f"up{i}": (WIDTH, HIDDEN), f"down{i}": (HIDDEN, WIDTH)}
        shapes |= {f"up_bias{i}": (HIDDEN,), f"down_bias{i}": (WIDTH,)}
        for name in ("scale", "shift"):
            shapes |= {f"{name}{i}": (WIDTH,), f"{name}{i}b": (WIDTH,)}
    return {**shapes, "out": (WIDTH, CLASSES), "bias": (CLASSES,)}


SHAPES = {"mlp": mlp_shapes, "resnet": resnet_shapes, "transformer": transformer_shapes}


def parameters(network: str, dtype: Any) -> Parameters:
    """Returns the parameters of a network: of variance 2 / fan-in, or near 0 or 1."""
    rng = np.random.default_rng(1)
    found = {}
    for name, shape in SHAPES[network]().items():
        drawn = rng.standard_normal(shape, np.float32)
        if len(shape) > 1:
            drawn *= np.sqrt(2 / np.prod(shape[:-1], dtype=float)).astype(np.float32)
        else:
            drawn = 0.1 * drawn + np.float32(name.startswith("scale"))
        found[name] = drawn.astype(dtype)
    return found


def mlp(params: Parameters, x: Any) -> Any:
    import jax

    for i in range(3):
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        x = jax.nn.relu(x) if i < 2 else x
    return x


def resnet(params: Parameters, x: Any) -> Any:
    import jax

    def conv(x: Any, kernel: Any, stride: int = 1) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)

    x = conv(x, params["stem"])
    before = RESNET_CHANNELS[0]
    for i, channels in enumerate(RESNET_CHANNELS):
        stride = 1 if channels == before else 2
        h = conv(jax.nn.relu(x), params[f"a{i}"], stride)
        h = jax.nn.relu(h * params[f"scale{i}"] + params[f"shift{i}"])
        h = conv(h, params[f"b{i}"])
        x = h + (x if channels == before else conv(x, params[f"skip{i}"], stride))
        before = channels
    return jax.nn.relu(x).mean((1, 2)) @ params["out"] + params["bias"]


def transformer(params: Parameters, x: Any) -> Any:
    import jax

    def normalise(x: Any, scale: Any, shift: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + shift

    def heads(x: Any) -> Any:
        return x.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS).swapaxes(1, 2)

    x = x + params["position"]
    for i in range(BLOCKS):
        h = normalise(x, params[f"scale{i}"], params[f"shift{i}"]) @ params[f"qkv{i}"]
        q, k, v = (heads(h[..., j * WIDTH : (j + 1) * WIDTH]) for j in range(3))
        scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) / (WIDTH // HEADS) ** 0.5, axis=-1)
        mixed = (scores @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + mixed @ params[f"merge{i}"]
        h = normalise(x, params[f"scale{i}b"], params[f"shift{i}b"])
        h = jax.nn.gelu(h @ params[f"up{i}"] + params[f"up_bias{i}"])
        x = x + h @ params[f"down{i}"] + params[f"down_bias{i}"]
    return x.mean(1) @ params["out"] + params["bias"]


FUNCTIONS: dict[str, Callable[[Parameters, Any], Any]] = {
    "mlp": mlp,
    "resnet": resnet,
    "transformer": transformer,
}
INPUTS = {"mlp": (MLP_INPUTS,), "resnet": (32, 32, 3), "transformer": (LENGTH, WIDTH)}
BATCH = {"mlp": 64, "resnet": 16, "transformer": 8}
