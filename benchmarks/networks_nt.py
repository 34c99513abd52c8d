"""The networks of the benchmarks in neural-tangents, number for number those of widelimit.

Each takes the module of layers, so that this file is read without neural-tangents installed.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}
W_STD, B_STD = 2**0.5, 0.1


def fc(stax: Any, depth: int) -> Any:
    hidden = [stax.Dense(2048, W_STD, B_STD), stax.Relu()]
    return stax.serial(stax.Flatten(), *hidden * depth, stax.Dense(10, W_STD, B_STD))


def cnn(stax: Any, depth: int, readout: Any) -> Any:
    hidden = [stax.Conv(512, (3, 3), None, "SAME", W_STD, B_STD), stax.Relu()]
    return stax.serial(*hidden * depth, readout, stax.Dense(10, W_STD, B_STD))


def myrtle(stax: Any, depth: int) -> Any:
    hidden = [stax.Conv(512, (3, 3), None, "SAME", W_STD), stax.Relu()]
    pool = stax.AvgPool((2, 2), (2, 2))
    layers: list[Any] = []
    for n in MYRTLE[depth]:
        layers += [*hidden * n, pool]
    return stax.serial(*layers, pool, pool, stax.Flatten(), stax.Dense(10, W_STD))


def wide_resnet(stax: Any, block_size: int, k: int) -> Any:
    def block(channels: int, stride: int, first: bool) -> Any:
        strides = (stride, stride)
        main = stax.serial(
            stax.Relu(),
            stax.Conv(channels, (3, 3), strides, "SAME"),
            stax.Relu(),
            stax.Conv(channels, (3, 3), None, "SAME"),
        )
        shortcut = stax.Conv(channels, (1, 1), strides, "SAME") if first else stax.Identity()
        return stax.serial(stax.FanOut(2), stax.parallel(main, shortcut), stax.FanInSum())

    def group(channels: int, stride: int) -> Any:
        later = [block(channels, 1, False) for _ in range(block_size - 1)]
        return stax.serial(block(channels, stride, True), *later)

    return stax.serial(
        stax.Conv(16, (3, 3), None, "SAME"),
        group(16 * k, 1),
        group(32 * k, 2),
        group(64 * k, 2),
        stax.Relu(),
        stax.GlobalAvgPool(),
        stax.Dense(10),
    )


def lenet(stax: Any) -> Any:
    layers: list[Any] = []
    for channels in (6, 16):
        convolution = stax.Conv(channels, (5, 5), None, "SAME", W_STD, B_STD)
        layers += [convolution, stax.Relu(), stax.AvgPool((2, 2), (2, 2))]
    layers.append(stax.Flatten())
    for width in (120, 84):
        layers += [stax.Dense(width, W_STD, B_STD), stax.Relu()]
    return stax.serial(*layers, stax.Dense(10, W_STD, B_STD))


NETWORKS: dict[str, Callable[[Any], Any]] = {
    "fc": lambda stax: fc(stax, 5),
    "cnn-flatten": lambda stax: cnn(stax, 21, stax.Flatten()),
    "cnn-gap": lambda stax: cnn(stax, 21, stax.GlobalAvgPool()),
    "myrtle-5": lambda stax: myrtle(stax, 5),
    "myrtle-7": lambda stax: myrtle(stax, 7),
    "myrtle-10": lambda stax: myrtle(stax, 10),
    "resnet": lambda stax: wide_resnet(stax, 4, 1),
    "lenet": lenet,
}


def import_nt() -> Any:
    """Returns neural_tangents, without its `experimental` part.

    That part alone needs TensorFlow and tf2jax (a gigabyte), and is imported whether used or
    not. An empty module in its place is the least that lets the rest be imported.
    """
    name = "neural_tangents.experimental"
    sys.modules.setdefault(name, types.ModuleType(name))
    import neural_tangents

    return neural_tangents


def kernel(network: str, get: str, gram: bool) -> Callable[[Any, Any], Any]:  # noqa: ARG001
    """Returns the jitted kernel function of a network, of x1 and x2."""
    import jax

    _, _, kernel_fn = NETWORKS[network](import_nt().stax)
    jitted = jax.jit(kernel_fn, static_argnums=(2,))
    return lambda x1, x2: jitted(x1, x2, get)


def about(network: str, shape: tuple[int, ...]) -> dict[str, Any]:  # noqa: ARG001
    """Returns versions, the device, and what runs a network."""
    import jax

    return {
        "versions": {"neural-tangents": import_nt().__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "engine": "jit",
    }
